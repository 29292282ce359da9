#!/usr/bin/env python3
"""Measure a model on BFCL's single-turn tasks. Progress goes to standard error, the result to standard output.

python scripts/local-llm/evaluate_bfcl.py --model qwen2.5-coder:0.5b --limit 20 --out runs/bfcl
python scripts/local-llm/evaluate_bfcl.py --model mytuned:candidate --categories simple_python,hallucination
python scripts/local-llm/evaluate_bfcl.py --ollama qwen2.5-coder:7b
python scripts/local-llm/evaluate_bfcl.py --base-url http://127.0.0.1:8080/v1 --model any
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator
from pathlib import Path

from llm_tuner.evaluation import bfcl
from llm_tuner.evaluation.render import to_markdown
from llm_tuner.evaluation.target import Target, evaluate
from llm_tuner.types import Event, Report, TunerError


def main(argv: list[str] | None = None) -> int:
    asked = parser().parse_args(argv)
    try:
        suite = bfcl.load(asked.categories.split(","), asked.limit, asked.seed)
        target = Target(
            model=asked.model,
            ollama=asked.ollama,
            base_url=asked.base_url,
            context=asked.context,
            threads=asked.threads,
            at_a_time=asked.parallel,
        )
        report = watch(evaluate(target, suite, rules="bfcl", out=asked.out, language=asked.language))
    except TunerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command with the same --out goes on from here", file=sys.stderr)
        return 130
    print(report.model_dump_json(indent=1) if asked.json else to_markdown(None, report, language=asked.language))
    return 0


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description="Measure a model on BFCL's single-turn tasks.")
    known = f"{', '.join(bfcl.GROUPS['all'])}; groups: {', '.join(bfcl.GROUPS)}"
    out.add_argument("--model", default="", help="catalogue name, NAME:ALIAS, path of a .gguf, or scheme:reference")
    out.add_argument("--ollama", default="", metavar="NAME", help="a model of the Ollama server (OLLAMA_HOST)")
    out.add_argument("--base-url", default="", metavar="URL", help="an OpenAI-style server; --model names its model")
    out.add_argument("--categories", default="non_live", help=f"with commas (default non_live); known: {known}")
    out.add_argument("--limit", type=int, metavar="N", help="so many tasks of each category, drawn at random")
    out.add_argument("--seed", type=int, default=0, help="which tasks --limit draws (default 0)")
    out.add_argument("--context", type=int, default=8192, metavar="TOKENS", help="window of the model (default 8192)")
    out.add_argument("--threads", type=int, default=0, metavar="N", help="of an embedded model (default: every core)")
    out.add_argument("--parallel", type=int, default=1, metavar="N", help="requests at a time (default 1)")
    out.add_argument("--out", type=Path, metavar="FOLDER", help="keep attempts and write report.json, .md, .html there")
    out.add_argument("--language", choices=("en", "ja"), default="en", help="of the report's headings")
    out.add_argument("--json", action="store_true", help="print the report as JSON")
    return out


def watch(steps: Generator[Event, None, Report]) -> Report:
    """Show the events of a step on standard error, return its result."""
    while True:
        try:
            event = next(steps)
        except StopIteration as end:
            result: Report = end.value
            return result
        if sys.stderr.isatty():
            print(f"\r\x1b[K{line(event)}", end="", file=sys.stderr, flush=True)
        elif event.unit == "tasks" and (event.done % 10 == 0 or event.done == event.total):
            print(line(event), file=sys.stderr)


def line(event: Event) -> str:
    share = f"{event.done / event.total:4.0%}" if event.total else ""
    return f"{event.step} {share} {event.message}"


if __name__ == "__main__":
    sys.exit(main())
