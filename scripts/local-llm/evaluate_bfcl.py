#!/usr/bin/env python3
"""Measure a model on BFCL, single-turn and multi-turn. Progress goes to standard error, the result to standard output.

python scripts/local-llm/evaluate_bfcl.py --model qwen2.5-coder:0.5b --limit 20 --out runs/bfcl
python scripts/local-llm/evaluate_bfcl.py --model mytuned:candidate --categories simple_python,hallucination,multi_turn
python scripts/local-llm/evaluate_bfcl.py --ollama qwen2.5-coder:7b
python scripts/local-llm/evaluate_bfcl.py --base-url http://127.0.0.1:8080/v1 --model any
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llm_tuner.apps.commands.evaluate import print_benchmark
from llm_tuner.apps.console import drive
from llm_tuner.evaluation.benchmark import KNOWN, MAX_TOKENS, evaluate_categories
from llm_tuner.evaluation.target import Target
from llm_tuner.types import TunerError


def main(argv: list[str] | None = None) -> int:
    asked = parser().parse_args(argv)
    target = Target(
        model=asked.model,
        ollama=asked.ollama,
        base_url=asked.base_url,
        context=asked.context,
        threads=asked.threads,
        at_a_time=asked.parallel,
    )
    try:
        reports = drive(
            evaluate_categories(
                target,
                asked.categories,
                asked.limit,
                seed=asked.seed,
                reading="lenient" if asked.lenient else "native",
                out=asked.out,
                language=asked.language,
                max_tokens=asked.max_tokens,
            )
        )
    except TunerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command with the same --out goes on from here", file=sys.stderr)
        return 130
    print_benchmark(reports, asked.json)
    return 0


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description="Measure a model on BFCL's single-turn and multi-turn categories.")
    out.add_argument("--model", default="", help="catalogue name, NAME:ALIAS, path of a .gguf, or scheme:reference")
    out.add_argument("--ollama", default="", metavar="NAME", help="a model of the Ollama server (OLLAMA_HOST)")
    out.add_argument("--base-url", default="", metavar="URL", help="an OpenAI-style server; --model names its model")
    known = f"with commas (default non_live); known: {', '.join(KNOWN)}"
    out.add_argument("--categories", default="non_live", help=known)
    out.add_argument("--limit", type=int, metavar="N", help="so many tasks of each category, drawn at random")
    out.add_argument("--seed", type=int, default=0, help="which tasks --limit draws (default 0)")
    out.add_argument("--lenient", action="store_true", help="multi-turn: calls written as text are carried out, too")
    out.add_argument("--context", type=int, default=8192, metavar="TOKENS", help="window of the model (default 8192)")
    out.add_argument("--threads", type=int, default=0, metavar="N", help="of an embedded model (default: every core)")
    out.add_argument("--parallel", type=int, default=1, metavar="N", help="requests at a time (default 1)")
    out.add_argument("--max-tokens", type=int, default=MAX_TOKENS, metavar="N", help="of one answer (default 1024)")
    out.add_argument("--out", type=Path, metavar="FOLDER", help="keep attempts and reports there, a folder a category")
    out.add_argument("--language", choices=("en", "ja"), default="en", help="of the report's headings")
    out.add_argument("--json", action="store_true", help="print reports and scores as JSON")
    return out


if __name__ == "__main__":
    sys.exit(main())
