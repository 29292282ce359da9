#!/usr/bin/env python3
"""Collect tool-use examples from a hub and fine-tune a model on them: two commands of llm-tuner in a row.

python scripts/local-llm/train_tool_use.py --epochs 2
python scripts/local-llm/train_tool_use.py --hub .mcp.json --no-execute --base qwen2.5-coder:1.5b --json

Exit codes are those of the commands (docs/errors.md). What was collected before with the same options is reused.
"""

from __future__ import annotations

import argparse
import sys

from llm_tuner.apps.cli import run


def main(argv: list[str] | None = None) -> int:
    asked, training = parser().parse_known_args(argv)
    collecting = ["--hub", asked.hub, "--base", asked.base, "--tasks", str(asked.tasks), "--own", "0"]
    collecting += ["--execute" if asked.execute else "--no-execute"]
    code = run(["data", "collect", *collecting, "--quiet"])
    return code or run(["train", "--base", asked.base, *training])


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Further options go to `llm-tuner train`: --epochs, --learning-rate, --r, --alpha, --seed, --json.",
    )
    out.add_argument("--hub", default="demo", help='an mcpServers JSON file, or "demo"')
    out.add_argument("--base", default="qwen2.5-coder:0.5b", help="the model to fine-tune")
    out.add_argument("--tasks", type=int, default=320, help="training tasks to make")
    out.add_argument("--execute", action=argparse.BooleanOptionalAction, default=True, help="really call the servers")
    return out


if __name__ == "__main__":
    sys.exit(main())
