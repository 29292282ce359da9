"""The card of a data set: what is in it, where it is from, what was refused, and some rows to look at.

Not a check (check.py). One pass over the set, counts only: a set of a million rows is described in flat memory. The
rule it protects: rows are untrusted text, and are shown as text in every form of the card."""

from __future__ import annotations

import html
import json
import random
import re
from collections import Counter
from collections.abc import Generator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_tuner.data import readable
from llm_tuner.data.dataset import file_hash, read_examples
from llm_tuner.data.examples import Example, calls_wanted
from llm_tuner.data.rejections import Rejection
from llm_tuner.data.split import Withheld
from llm_tuner.models.signatures import shown
from llm_tuner.store import write_atomic
from llm_tuner.types import Event, Json, Renderer, Value

if TYPE_CHECKING:
    from jinja2 import Template

ROWS = 20
_MOST = 200
"""Tools, servers and sources that the card lists by name."""

_OFFERED = ((1, "1"), (2, "2"), (3, "3"), (5, "4-5"), (8, "6-8"), (15, "9-15"), (30, "16-30"), (60, "31-60"))
_EVERY = 2000
_DIMENSIONS = (
    "kind", "language", "side", "tool", "server", "source", "licence", "tools offered", "withheld tool",
)  # fmt: skip


class Shown(Value):
    """One row of the set as the card shows it."""

    id: str
    side: str
    kind: str
    language: str
    source: str
    licence: str
    turns: tuple[tuple[str, str], ...]
    offered: str
    expected: str
    reply: str
    verdict: str


class Card(Value):
    """What is in a data set. `counts[dimension][value]` are examples by kind, language, side, tool called, server,
    source, licence, number of tools offered, and tools that only the held-out side has; `lengths` are percentiles of an
    example's length in `length_unit`; `rejected[stage][reason]`; `hashes` of the files, SHA-256."""

    examples: int
    counts: dict[str, dict[str, int]]
    left_out: dict[str, int]
    lengths: dict[str, int]
    length_unit: str
    rejected: dict[str, dict[str, int]]
    scrubbed: dict[str, int]
    against: dict[str, int]
    made: dict[str, Json]
    files: list[dict[str, Json]]
    hashes: dict[str, str]
    rows: tuple[Shown, ...]


def describe(
    folder: Path, facts: Mapping[str, Any], *, seed: int = 0, renderer: Renderer | None = None
) -> Generator[Event, None, Card]:
    """The card of the data set in this folder; `facts` are those of its data.json. Lengths are in tokens of the
    renderer's template, in characters where there is none."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in _DIMENSIONS}
    withheld = Withheld.model_validate((facts.get("config") or {}).get("withheld") or {"tools": 0, "servers": 0})
    lengths: Counter[int] = Counter()
    chosen: list[Example] = []
    rng, seen = random.Random(f"card:{seed}"), 0
    for example in read_examples(folder):
        _count(example, counts)
        if example.task.side == "held-out":
            counts["withheld tool"].update(tool.name for tool in example.task.tools if withheld.holds(tool))
        lengths[_length(example, renderer)] += 1
        if len(chosen) < ROWS:
            chosen.append(example)
        elif (place := rng.randrange(seen + 1)) < ROWS:
            chosen[place] = example
        seen += 1
        if seen % _EVERY == 0:
            yield Event(step="card", message=f"{seen} examples")
    rng.shuffle(chosen)
    return Card(
        examples=seen,
        counts={name: dict(counter.most_common(_MOST)) for name, counter in counts.items()},
        left_out={name: len(counter) - _MOST for name, counter in counts.items() if len(counter) > _MOST},
        lengths=_percentiles(lengths),
        length_unit="tokens" if renderer is not None else "characters",
        rejected=_rejected(folder / "rejected.jsonl"),
        scrubbed=facts.get("scrubbed", {}),
        against=facts.get("against", {}),
        made={name: facts[name] for name in ("made", "config", "versions") if name in facts},
        files=facts["files"] if isinstance(facts.get("files"), list) else [],
        hashes={p.name: file_hash(p) for p in sorted(folder.glob("*.jsonl"))},
        rows=tuple(map(_shown, chosen)),
    )


def write(folder: Path, card: Card) -> None:
    """card.json, card.md and card.html."""
    write_atomic(folder / "card.json", json.dumps(card.model_dump(mode="json"), ensure_ascii=False, indent=2) + "\n")
    for name in ("card.md", "card.html"):
        write_atomic(folder / name, _template(name).render(card=card, plots=_plots(card)))


def _count(example: Example, counts: Mapping[str, Counter[str]]) -> None:
    task = example.task
    counts["kind"][task.category or "-"] += 1
    counts["language"][task.language or "-"] += 1
    counts["side"][task.side] += 1
    counts["source"][task.source or "-"] += 1
    counts["licence"][task.licence or "none named"] += 1
    counts["tools offered"][_bin(len(task.tools))] += 1
    servers = {tool.name: tool.server for tool in task.tools}
    called = {name for name, _ in calls_wanted(task)}
    counts["tool"].update(called)
    counts["server"].update({servers.get(name) or "-" for name in called})


def _bin(offered: int) -> str:
    return next((label for most, label in _OFFERED if offered <= most), "61 and more")


def _length(example: Example, renderer: Renderer | None) -> int:
    task = example.task
    messages, offered = shown(task.messages, task.tools, task.tags.get("rendering", "full"))
    messages = (*messages, *example.attempt.messages[:1])
    if renderer is not None:
        return len(renderer.tokenize(renderer.render(messages, offered, False)))
    tools = sum(len(json.dumps(tool.openai(), ensure_ascii=False)) for tool in offered)
    return tools + sum(len(message.model_dump_json(exclude_defaults=True)) for message in messages)


def _percentiles(lengths: Counter[int]) -> dict[str, int]:
    total, wanted, out = lengths.total(), {"p5": 5, "p50": 50, "p95": 95, "p99": 99, "most": 100}, {}
    below = 0
    for length in sorted(lengths):
        below += lengths[length]
        for name, percent in wanted.items():
            if name not in out and below * 100 >= percent * total:
                out[name] = length
    return out


def _rejected(path: Path) -> dict[str, dict[str, int]]:
    counts: Counter[tuple[str, str]] = Counter()
    if path.is_file():
        with path.open("rb") as file:
            for line in file:
                rejection = Rejection.model_validate_json(line)
                counts[rejection.stage, rejection.reason] += 1
    out: dict[str, dict[str, int]] = {}
    for (stage, reason), count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        out.setdefault(stage, {})[reason] = count
    return out


def _shown(example: Example) -> Shown:
    task = example.task
    return Shown(
        id=task.id,
        side=task.side,
        kind=task.category,
        language=task.language,
        source=task.source,
        licence=task.licence,
        turns=tuple((turn.role, turn.text) for turn in readable.turns(example)),
        offered=f"{len(task.tools)}: {readable.offered(task)}",
        expected=readable.expected(task),
        reply=readable.short(example.answer.text),
        verdict=readable.verdict(example),
    )


def _plots(card: Card) -> list[dict[str, Any]]:
    """Bars of the mix in the picture's coordinates."""
    plots = []
    for name in ("kind", "language", "side", "tools offered", "tool", "server", "licence", "withheld tool"):
        values = list(card.counts[name].items())[:24]
        most = max((count for _, count in values), default=1)
        bars = [
            {
                "label": label,
                "count": count,
                "share": count / card.examples,
                "width": 330 * count / most,
                "y": 22 * place,
            }
            for place, (label, count) in enumerate(values)
        ]
        rest = len(card.counts[name]) - len(values) + card.left_out.get(name, 0)
        if bars:
            plots.append({"name": name, "bars": bars, "height": 22 * len(bars) + 4, "left_out": rest})
    return plots


@cache
def _template(name: str) -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("llm_tuner.data", "templates"),
        autoescape=name.endswith(".html"),
        finalize=None if name.endswith(".html") else _inert,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _inert(value: object) -> object:
    """Text that Markdown shows as text: no HTML, no emphasis, no link, no cell of its own."""
    if not isinstance(value, str):
        return value
    return re.sub(r"([\\`*\[\]|~_#])", r"\\\1", html.escape(" ".join(value.split()), quote=False))
