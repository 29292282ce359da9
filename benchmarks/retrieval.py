#!/usr/bin/env python3
"""Recall of the right tool: among the k likeliest, and among those that fit a token budget, on a data set's requests.

Each request is asked with all tools of the hub, whatever its own catalogue was: retrieval sees the conversation and the
hub's definitions, nothing else. A tool counts as found where a wanted call's tool (the reference answer's) is among
those offered; another tool that would do as well (`read_file` for `read_text_file`) counts as a miss. Requests that
want no call are left out. The `search_tools` tool is offered and paid for, and counts for nothing.

    examples/hub-8/install.sh
    llm-tuner data synthesize --hub examples/hub-8/mcp.json --count 2400 --seed 3 --held-out 0.5 --masked 0 \\
        --no-benchmark --out hub-set
    python benchmarks/retrieval.py hub-set --json

`--side train` is for developing; held-out requests use words, values and tools that the train side never shows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from llm_tuner.apps.console import drive
from llm_tuner.evaluation.intervals import rate
from llm_tuner.evaluation.target import Target, locate
from llm_tuner.models.fitting import Count, fit
from llm_tuner.models.llamacpp import Embedded
from llm_tuner.models.resources import machine
from llm_tuner.models.signatures import Rendering
from llm_tuner.models.window import Meter, guessed
from llm_tuner.store.suite import load
from llm_tuner.tools.retrieval import Index, index, search_tool, used
from llm_tuner.types import ExactCalls, Task, ToolSpec

HUB = Path(__file__).parents[1] / "examples" / "hub-8" / "tools.json"
PLACES = (1, 3, 5, 8, 16)
FORMS: dict[str, tuple[Rendering, ...]] = {
    "full": ("full",),
    "compressed": ("full", "compressed"),
    "compact": ("full", "compressed", "compact"),
}
"""By the form that the tools end in where not all fit in a longer one."""


class Asked(NamedTuple):
    """A request and the tools that its reference answer calls."""

    task: Task
    wanted: tuple[str, ...]


def asked(path: Path, hub: Sequence[ToolSpec]) -> Iterator[Asked]:
    """The tasks that want calls of the hub's tools under their own names."""
    names = {tool.name for tool in hub}
    for task in load(path).tasks:
        if isinstance(task.expect, ExactCalls):
            wanted = tuple(dict.fromkeys(call.name for call in task.expect.calls))
            if wanted and set(wanted) <= names and "renamed" not in task.tags:
                yield Asked(task, wanted)


def measured(
    tasks: Sequence[Asked], found: Index, count: Count, budget: int, unseen: Sequence[str] = ()
) -> dict[str, Any]:
    """Recall of all, by language, by kind of task and by whether the tool is unseen in training, at the places and at
    the budget."""
    hits: defaultdict[tuple[str, str], list[bool]] = defaultdict(list)
    offered: defaultdict[str, list[int]] = defaultdict(list)
    tokens: defaultdict[str, int] = defaultdict(int)
    times: list[float] = []
    search = search_tool(tool.name for tool in found.tools)
    for task, wanted in tasks:
        began = time.perf_counter()
        ranked = found.rank(task.messages)
        times.append((time.perf_counter() - began) * 1000)
        place = {tool.name: number for number, tool in enumerate(ranked)}
        for name in wanted:
            seen = "unseen" if name in unseen else "seen"
            groups = ("all", task.language or "other", f"kind:{task.category}", f"tool:{seen}")
            for group in groups:
                for k in PLACES:
                    hits[group, f"at {k}"].append(place[name] < k)
        for form, renderings in FORMS.items():
            fitted = fit(
                found.tools,
                budget,
                count,
                ranked=ranked,
                kept=used(task.messages),
                renderings=renderings,
                search=search,
            )
            offered[form].append(len(fitted.tools))
            tokens[form] = max(tokens[form], fitted.tokens)
            for name in wanted:
                for group in ("all", task.language or "other", f"kind:{task.category}"):
                    hits[group, f"at {budget} tokens, {form}"].append(name in fitted.names)
    recall: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for (group, at), found_or_not in hits.items():
        recall[group][at] = rate(sum(found_or_not), len(found_or_not)).model_dump()
    return {
        "requests": len(tasks),
        "budget": budget,
        "recall": dict(recall),
        "tools_offered": {form: {"median": median(n), "fewest": min(n), "most": max(n)} for form, n in offered.items()},
        "most_tokens": dict(tokens),
        "rank_ms": {"median": median(times), "p99": sorted(times)[int(len(times) * 0.99)]} if times else {},
    }


def text(document: dict[str, Any]) -> str:
    lines = [f"{document['requests']} requests of the {document['side']} side, {document['tools']} tools"]
    groups = [group for group in document["recall"] if ":" not in group]
    places = list(document["recall"]["all"])
    lines.append("recall".ljust(32) + "".join(group.rjust(26) for group in groups))
    for at in places:
        cells = []
        for group in groups:
            one = document["recall"][group][at]
            cells.append(f"{one['value']:.1%} ({one['low']:.1%}-{one['high']:.1%})".rjust(26))
        lines.append(at.ljust(32) + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_set", type=Path, help="a folder that `llm-tuner data synthesize --masked 0` made")
    parser.add_argument("--tools", type=Path, default=HUB, help="the hub's tools, from `llm-tuner tools list --json`")
    parser.add_argument("--side", choices=("train", "held-out"), default="held-out")
    parser.add_argument("--budget", type=int, default=1900, help="tokens of the prompt that tools may take")
    parser.add_argument("--model", default="qwen2.5-coder:0.5b", help="whose tokens; empty: guessed from bytes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    hub = tuple(ToolSpec.model_validate(tool) for tool in json.loads(options.tools.read_text(encoding="utf-8")))
    tasks = list(asked(options.data_set / f"{options.side}.jsonl", hub))
    unseen = json.loads((options.data_set / "data.json").read_text(encoding="utf-8"))["unseen_tools"]
    began = time.perf_counter()
    found = index(hub)
    index_ms = (time.perf_counter() - began) * 1000
    if options.model:
        with Embedded(located(options.model), context=512) as renderer:
            result = measured(tasks, found, Meter(renderer), options.budget, unseen)
    else:
        result = measured(tasks, found, guessed, options.budget, unseen)
    facts = {"side": options.side, "tools": len(hub), "model": options.model, "index_ms": index_ms}
    document = {**facts, **result, "machine": machine()}
    print(json.dumps(document, ensure_ascii=False, indent=2) if options.json else text(document))


def located(model: str) -> Path:
    gguf = drive(locate(Target(model=model))).gguf
    if gguf is None:
        raise SystemExit(f"{model} has no file here: name a known or installed model, or a .gguf")
    return gguf


if __name__ == "__main__":
    main()
