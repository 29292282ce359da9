#!/usr/bin/env python3
"""Collect tool-use examples from a hub and fine-tune a model on them: commands of llm-tuner in a row.

python scripts/local-llm/train_tool_use.py --epochs 2
python scripts/local-llm/train_tool_use.py --hub .mcp.json --no-execute --base qwen2.5-coder:1.5b --json
python scripts/local-llm/train_tool_use.py --then dpo,grpo            # go on with what the model does itself

Exit codes are those of the commands (docs/errors.md). What was collected or trained before with the same options is
reused, so a command that was stopped goes on. With --json there is a document for each training.
"""

from __future__ import annotations

import argparse
import sys

from llm_tuner.apps.cli import run

METHODS = ("dpo", "grpo")


def main(argv: list[str] | None = None) -> int:
    asked, training = parser().parse_known_args(argv)
    collecting = ["--hub", asked.hub, "--base", asked.base, "--tasks", str(asked.tasks), "--own", "0"]
    collecting += ["--execute" if asked.execute else "--no-execute"]
    code = run(["data", "collect", *collecting, "--quiet"])
    code = code or run(["train", "--base", asked.base, *training])
    shared = ["--from", "last", "--base", asked.base, "--hub", asked.hub]
    shared += ["--execute" if asked.execute else "--no-execute", *(word for word in training if word == "--json")]
    for method in asked.then:
        code = code or run(["train", "--method", method, *shared])
    return code


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Further options go to `llm-tuner train`: --epochs, --learning-rate, --r, --alpha, --seed, --json.",
    )
    out.add_argument("--hub", default="demo", help='an mcpServers JSON file, or "demo"')
    out.add_argument("--base", default="qwen2.5-coder:0.5b", help="the model to fine-tune")
    out.add_argument("--tasks", type=int, default=320, help="training tasks to make")
    out.add_argument("--execute", action=argparse.BooleanOptionalAction, default=True, help="really call the servers")
    out.add_argument("--then", type=methods, default=(), help="methods to go on with, with commas: dpo, grpo")
    return out


def methods(text: str) -> tuple[str, ...]:
    """Method names with commas between."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if unknown := [name for name in names if name not in METHODS]:
        raise argparse.ArgumentTypeError(f"no method {unknown[0]!r}: choose from {', '.join(METHODS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
