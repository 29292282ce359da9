"""Judge calls that a model made elsewhere: a file of rows in, a verdict a row out, the totals at the end.

Not a measurement: no model is asked. Two kinds of row are read, one JSON object a line, and a folder of such files too:

    {"id": "simple_python_0", "category": "simple_python", "calls": [{"name": "f", "arguments": {"x": 1}}]}
    {"id": "simple_python_0", "result": [{"f": "{\\"x\\": 1}"}]}

the second being the `result/` files of the official harness, as its function-calling handlers write them. `category`
may be left out (the id holds it), `arguments` may be JSON text. A `result` that is text holds no call, as for those
handlers: what models of its raw-prompt mode wrote as text is not read here.

The rule it protects: no row disappears. One that cannot be judged (malformed, unknown, there twice) has a verdict that
says so, is counted apart, and is in no rate; memory does not grow with the file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llm_tuner.evaluation import bfcl
from llm_tuner.evaluation.leaderboard import SIZES, Leaderboard, leaderboard
from llm_tuner.scoring import score
from llm_tuner.types import Attempt, DataError, Json, Message, Reason, ToolCall, Value

BadRow = Literal["malformed_line", "unknown_category", "unknown_id", "duplicate_id"]


class RowVerdict(NamedTuple):
    """The verdict on one row. `reason` is one of types.Reason, or BadRow where the row cannot be judged."""

    id: str | None
    ok: bool
    reason: Reason | BadRow
    detail: str
    category: str = ""

    def document(self) -> dict[str, Json]:
        return {"id": self.id, "ok": self.ok, "reason": self.reason, "detail": self.detail}


class Totals(Value):
    """What a file came to: rows read, rows judged, rows that could not be judged by reason, rows of categories that
    were not asked for, entries of the data set that no judged row answers, all entries by category, and the scores."""

    rows: int
    judged: int
    right: int
    bad: dict[str, int]
    left_out: int
    unanswered: dict[str, int]
    sizes: dict[str, int]
    scores: Leaderboard

    def document(self) -> dict[str, Json]:
        """`categories` (n, of, right, rate with 95 % interval), `groups`, and what is missing."""
        scores = self.scores.model_dump(mode="json")
        categories = {
            name: {"n": r.n, "of": self.sizes[name], "right": r.k, "rate": r.value, "low": r.low, "high": r.high}
            for name, r in self.scores.categories.items()
        }
        counts = self.model_dump(mode="json", exclude={"scores", "sizes"})
        return {"totals": {**counts, **scores, "categories": categories}}


class _Refused(Exception):
    """A row that cannot be judged."""

    def __init__(self, reason: BadRow, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class _Entry(NamedTuple):
    category: str
    row: bfcl.Row
    answers: list[bfcl.Answer]


def score_file(
    path: Path, categories: str | Sequence[str] = "all", *, cache: Path | None = None
) -> Generator[RowVerdict, None, Totals]:
    """Judge every row of a file, or of the files of a folder in the order of their names; return the totals.

    Rows of other categories than those named are only counted. Raises, before anything is fetched, DataError where
    there is nothing to read and what `bfcl.named` raises; while it runs what `bfcl.fetch` raises.
    """
    return _judged(lines_of(path), bfcl.named(categories), cache)


def _judged(
    lines: Iterator[tuple[str, str]], wanted: Sequence[str], cache: Path | None
) -> Generator[RowVerdict, None, Totals]:
    entries = {row["id"]: _Entry(c, row, answers) for c, row, answers in bfcl.rows(bfcl.GROUPS["all"], cache=cache)}
    seen: set[str] = set()
    counts: dict[str, Counter[bool]] = {category: Counter() for category in wanted}
    bad: Counter[str] = Counter()
    rows = left_out = 0
    for where, text in lines:
        rows += 1
        verdict = _verdict(text, where, entries, seen)
        if verdict.category and verdict.category not in counts:
            left_out += 1
            continue
        if verdict.category:
            counts[verdict.category][verdict.ok] += 1
        else:
            bad[verdict.reason] += 1
        yield verdict
    return _totals(rows, counts, bad, left_out)


def _totals(rows: int, counts: dict[str, Counter[bool]], bad: Counter[str], left_out: int) -> Totals:
    judged = {category: (count[True], count.total()) for category, count in counts.items()}
    missing = {category: SIZES[category] - n for category, (_, n) in judged.items() if n < SIZES[category]}
    return Totals(
        rows=rows,
        judged=sum(n for _, n in judged.values()),
        right=sum(right for right, _ in judged.values()),
        bad=dict(bad),
        left_out=left_out,
        unanswered=missing,
        sizes={category: SIZES[category] for category in counts},
        scores=leaderboard(judged),
    )


# ------------------------------------------------------------------------------------------------------------ reading


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(p for p in (*path.rglob("*_result.json"), *path.rglob("*.jsonl")) if p.is_file())
        if not found:
            raise DataError(f"{path} holds no *_result.json and no *.jsonl. Name a file, or the folder of a model.")
        return found
    if not path.exists():
        raise DataError(f"No file at {path}. Give a .jsonl file, or a result file or folder of the official harness.")
    return [path]


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """Where a line stands, and its text; of a file, or of a folder's files in the order of their names. A line without
    text is none. Raises DataError, at once, where there is nothing to read."""
    return _lines(_files(path))


def _lines(files: Sequence[Path]) -> Iterator[tuple[str, str]]:
    for file in files:
        with file.open(encoding="utf-8-sig", errors="replace") as lines:
            for number, text in enumerate(lines, 1):
                if text.strip():
                    yield f"{file.name}, line {number}", text


def _verdict(text: str, where: str, entries: dict[str, _Entry], seen: set[str]) -> RowVerdict:
    name: str | None = None
    try:
        row = _object(text, where)
        name = row["id"] if isinstance(row.get("id"), str) else None
        entry = _entry(row, name, where, entries)
        calls = _calls(row, where)
        if name in seen:
            raise _Refused("duplicate_id", f"{where}: {name} is there already; the first of them counts.")
        assert name is not None
        seen.add(name)
    except _Refused as refused:
        return RowVerdict(name, False, refused.reason, refused.detail)
    message = Message(role="assistant", tool_calls=calls)
    task = bfcl.task(entry.row, entry.answers, entry.category)
    verdict = score(task, Attempt(task_id=name, backend="file", messages=(message,)), rules="bfcl")
    return RowVerdict(name, verdict.ok, verdict.reason, verdict.detail, entry.category)


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Refused("malformed_line", f"{where}: not JSON ({error}).") from error
    if not isinstance(row, dict):
        raise _Refused("malformed_line", f"{where}: expected a JSON object, found {type(row).__name__}.")
    return row


def _entry(row: dict[str, Any], name: str | None, where: str, entries: dict[str, _Entry]) -> _Entry:
    if name is None:
        raise _Refused("malformed_line", f'{where}: "id" is missing or is no text.')
    category = row.get("category", name.rpartition("_")[0])
    if not isinstance(category, str):
        raise _Refused("malformed_line", f'{where}: "category" is no text.')
    if category not in SIZES:
        raise _Refused("unknown_category", f"{where}: {_why_unknown(category)}")
    entry = entries.get(name)
    if entry is None or entry.category != category:
        raise _Refused("unknown_id", f'{where}: {category} of BFCL {bfcl.VERSION} has no entry "{name[:80]}".')
    return entry


def _why_unknown(category: str) -> str:
    reason = next((why for kind, why in bfcl.NOT_RUN.items() if category.startswith(kind)), "")
    if reason:
        return f'"{category}" is not run: {reason}.'
    if category.startswith("multi_turn"):
        return f'"{category}" is not judged by its calls alone: it needs the benchmark\'s environment.'
    return f'no single-turn category "{category[:80]}" (known: {", ".join(SIZES)}).'


def _calls(row: dict[str, Any], where: str) -> tuple[ToolCall, ...]:
    if "calls" in row:
        calls = row["calls"]
        if not isinstance(calls, list):
            raise _Refused("malformed_line", f'{where}: "calls" is {type(calls).__name__}, expected a list.')
        return tuple(_call(call) for call in calls)
    if "result" not in row:
        raise _Refused("malformed_line", f'{where}: neither "calls" nor "result".')
    result = row["result"]
    return tuple(official_call(item) for item in result) if isinstance(result, list) else ()


def _call(call: Json) -> ToolCall:
    if isinstance(call, dict) and isinstance(call.get("function"), dict):
        call = call["function"]
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return ToolCall(name="", error="a call is an object with a name")
    return _made(call["name"], call.get("arguments", {}))


def official_call(item: Json) -> ToolCall:
    """One call of a `result` list. What cannot be read becomes a call with an error, never an exception."""
    if not isinstance(item, dict) or not item:
        return ToolCall(name="", error="a call is an object whose one key is its name")
    return _made(*next(iter(item.items())))


def _made(name: str, arguments: Json) -> ToolCall:
    name = bfcl.offered_name(_printable(name))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            return ToolCall(name=name, error=f"the arguments are not JSON ({error})")
    if not isinstance(arguments, dict):
        return ToolCall(name=name, error=f"the arguments are {type(arguments).__name__}, expected an object")
    return ToolCall(name=name, arguments={_printable(key): value for key, value in arguments.items()})


def _printable(text: str) -> str:
    """JSON text can hold half a character, which no value of ours may."""
    return text.encode("utf-8", "replace").decode("utf-8")
