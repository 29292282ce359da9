#!/usr/bin/env python3
"""Preference optimisation (DPO) of a trained model on its own mistakes: one command of llm-tuner.

python scripts/local-llm/run_dpo.py                                    # from the newest training run
python scripts/local-llm/run_dpo.py --from 20261125T051200-train-0a1b2c3d --own 200 --beta 0.05
python scripts/local-llm/run_dpo.py --from base --base qwen2.5-coder:1.5b --config tune.toml --json

The model of --from tries training tasks of a collect run; right answers are preferred to its mistakes, and to made ones
where it has none (docs/feedback.md). Exit codes are those of `llm-tuner train` (docs/errors.md).
"""

from __future__ import annotations

import argparse
import sys

from llm_tuner.apps.cli import run


def main(argv: list[str] | None = None) -> int:
    _, training = parser().parse_known_args(argv)
    return run(["train", "--method", "dpo", *training])


def parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Options are those of `llm-tuner train`: --from, --collect, --base, --own, --beta, --epochs, "
        "--learning-rate, --seed, --config, --runtime, --copy-to, --json.",
    )


if __name__ == "__main__":
    sys.exit(main())
