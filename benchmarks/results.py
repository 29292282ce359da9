#!/usr/bin/env python3
"""The public tables, from the beginning: a data set of the reference hub, a round on it, BFCL of stock and tuned.

Each step is a command of llm-tuner, printed before it runs; each goes on where it stopped, and so does this script.
What comes out is one small JSON file: rates with 95 % intervals, the commands, the machine, the date.

    examples/hub-8/install.sh
    python benchmarks/results.py --base qwen2.5-coder:0.5b --work results-work --out docs/results
    python benchmarks/results.py --base qwen2.5-coder:1.5b --work results-work --out docs/results --bfcl 30
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm_tuner.models.resources import machine
from llm_tuner.store import Store
from llm_tuner.types import GATE_REFUSED, Rate, Report

HERE = Path(__file__).parent
HUB = HERE.parent / "examples" / "hub-8" / "mcp.json"
READINGS = {
    "selection": "right tool",
    "selection_lenient": "right tool, calls in text counted",
    "parameters": "right tool and arguments",
    "parameters_lenient": "right tool and arguments, calls in text counted",
    "native_rate": "calls that the server surfaced",
    "no_call": "no call where none fits",
    "ok": "all right",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="qwen2.5-coder:0.5b")
    parser.add_argument("--count", type=int, default=1000, help="tasks of the reference hub, of both sides")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--bfcl", type=int, default=20, help="entries of each category; 0: none")
    parser.add_argument("--work", type=Path, default=Path("results-work"), help="where the data set and reports lie")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    args = parser.parse_args()
    name = re.sub(r"[^a-z0-9]+", "-", args.base.lower()).strip("-")
    commands: list[str] = []

    def run(*words: str, allowed: tuple[int, ...] = (0,)) -> dict[str, Any]:
        commands.append(shlex.join(["llm-tuner", *(re.sub(r"^.*/(examples|benchmarks)/", r"\1/", w) for w in words)]))
        print(f"$ {commands[-1]}", file=sys.stderr)
        done = subprocess.run(
            [sys.executable, "-m", "llm_tuner", *words, "--json"], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode not in allowed:
            sys.exit(done.returncode)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    data = args.work / "hub-8"
    count, seed = str(args.count), str(args.seed)
    made = run("data", "synthesize", "--hub", str(HUB), "--count", count, "--seed", seed, "--out", str(data))
    config, tuned = str(HERE / "results.toml"), f"results-{name}"
    round_ = run(
        "tune", "--config", config, "--base", args.base, "--name", tuned, "--data", str(data),
        allowed=(0, GATE_REFUSED),
    )  # fmt: skip
    document: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "base": args.base,
        "machine": machine(),
        "data": {key: made[key] for key in ("counts", "hashes") if key in made},
        "round": {key: round_[key] for key in ("decision", "stages", "minutes")},
        "suites": suites(Store(), round_["stages"][-1]["train"]),
    }
    if args.bfcl:
        which = f"{tuned}:{'stable' if round_['decision']['promote'] else 'candidate'}"
        limits = ("--categories", "all", "--limit", str(args.bfcl), "--max-tokens", "256")
        for side, model in (("stock", args.base), ("tuned", which)):
            out = str(args.work / f"bfcl-{name}-{side}")
            found = run("eval", "bfcl", "--model", model, *limits, "--out", out)
            document.setdefault("bfcl", {})[side] = found
    document["commands"] = commands
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"{name}.json"
    file.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    print(table(document["suites"]))
    print(f"\n{file}")


def suites(store: Store, trained: str) -> dict[str, Any]:
    """By suite, then stock and tuned: the rates over all and by language, the median time."""
    decided = next(run for run in store.runs("promote") if run.inputs["train"] == trained)
    runs = {run.id: run for run in store.runs("evaluate")}
    sides = {"before": runs[decided.inputs["before"]], "after": runs[decided.inputs["after"]]}
    found: dict[str, Any] = {}
    for name in sides["after"].outputs:
        for side, run in sides.items():
            report = Report.model_validate_json((store.folder(run) / run.outputs[name]).read_text())
            found.setdefault(name, {})[side] = {
                "n": report.n,
                "rates": rates(report.rates),
                "languages": {key: rates(part) for key, part in report.groups.get("language", {}).items()},
                "latency_p50_ms": report.latency.p50_ms,
                "suite": report.suite_hash,
                "model": report.model_sha256,
            }
    return found


def rates(of: dict[str, Rate]) -> dict[str, list[float | int | None]]:
    """Value, lower and upper end, and of how many, for each reading."""
    return {key: [of[key].value, of[key].low, of[key].high, of[key].n] for key in READINGS if key in of}


def table(found: dict[str, Any]) -> str:
    """The same as a table in Markdown."""
    lines = ["| suite | | before | after |", "|---|---|---|---|"]
    for name, sides in found.items():
        for key, said in READINGS.items():
            cells = [percent(sides[side]["rates"].get(key)) for side in ("before", "after")]
            lines.append(f"| {name} ({sides['after']['n']}) | {said} | {' | '.join(cells)} |")
    return "\n".join(lines)


def percent(rate: list[float | int | None] | None) -> str:
    """A rate with its interval."""
    if not rate or rate[0] is None:
        return "–"
    value, low, high = (round(float(part or 0) * 100, 1) for part in rate[:3])
    return f"{value} % ({low:.0f}-{high:.0f})"


if __name__ == "__main__":
    main()
