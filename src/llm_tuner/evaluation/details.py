"""What a page shows of single attempts: the conversation, what was wanted, what the model answered, the verdict.

Not a template and not a judge: texts are cut to a size that a page can hold, and how much was left out is counted. The
rule it protects: nothing is left out silently.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from llm_tuner.scoring import answer, made_calls
from llm_tuner.types import (
    AllowedCalls,
    AnyCall,
    Attempt,
    ExactCalls,
    Json,
    Message,
    Task,
    ToolCall,
    Value,
    Verdict,
)

LONGEST = 4000
"""Characters of one text on a page."""
PAGE = 4_000_000
"""Characters of all attempts on a page, before escaping."""
BARS = 24


class Turn(Value):
    """One message before the answer: who said it, and what."""

    role: str
    text: str


class Entry(Value):
    """One attempt as a reader wants to see it. Everything but the numbers is untrusted text."""

    task: str
    name: str
    turns: tuple[Turn, ...]
    tools: int
    expected: str
    calls: str
    output: str
    ok: bool
    reason: str
    detail: str
    ms: float
    prompt_tokens: int
    completion_tokens: int

    @property
    def request(self) -> str:
        """The last thing the user said."""
        return next((turn.text for turn in reversed(self.turns) if turn.role == "user"), "")

    @property
    def size(self) -> int:
        """Characters."""
        texts = (self.expected, self.calls, self.output, self.detail, *(turn.text for turn in self.turns))
        return 200 + sum(map(len, texts))


class Section(Value):
    """The attempts with one reason: `shown` of `n`."""

    reason: str
    n: int
    shown: tuple[Entry, ...]


class Bar(NamedTuple):
    """One bar of a histogram: from `low` to `high` (milliseconds), so many attempts."""

    low: float
    high: float
    n: int


class Details(Value):
    """What a page needs beside the report: the attempts by reason, failed ones first, and how long they took."""

    sections: tuple[Section, ...] = ()
    histogram: tuple[Bar, ...] = ()

    @property
    def left_out(self) -> int:
        """Attempts that the page has no room for."""
        return sum(section.n - len(section.shown) for section in self.sections)


def details(tasks: Iterable[Task], attempts: Iterable[Attempt], room: int = PAGE) -> Details:
    """The attempts at these tasks, by the reason of their own verdict; as many texts as fit into `room` characters,
    one of each reason after the other, failed ones first."""
    known = {task.id: task for task in tasks}
    shelves: dict[str, _Shelf] = {}
    taken: list[float] = []
    for attempt in attempts:
        if attempt.task_id not in known or attempt.verdict is None:
            continue
        shelves.setdefault(attempt.verdict.reason, _Shelf(room)).put(known[attempt.task_id], attempt)
        if not attempt.error and attempt.timing.total_ms > 0:
            taken.append(attempt.timing.total_ms)
    return Details(sections=tuple(_sections(shelves, room)), histogram=histogram(taken))


class _Shelf:
    """The attempts with one reason: all are counted, so many are held as a page could show if it had no others."""

    def __init__(self, room: int) -> None:
        self.n, self.held, self._room = 0, list[Entry](), room

    def put(self, task: Task, attempt: Attempt) -> None:
        self.n += 1
        if self._room > 0:
            self.held.append(made := entry(task, attempt))
            self._room -= made.size


def _sections(shelves: Mapping[str, _Shelf], room: int) -> Iterator[Section]:
    order = sorted(shelves, key=lambda reason: (reason == "ok", -shelves[reason].n))
    shown: dict[str, list[Entry]] = {reason: [] for reason in order}
    failed = [reason for reason in order if reason != "ok"]
    for reasons in (failed, [reason for reason in order if reason == "ok"]):
        open_ = {reason: iter(shelves[reason].held) for reason in reasons}
        while open_ and room > 0:
            for reason in list(open_):
                made = next(open_[reason], None)
                if made is None or room <= 0:
                    del open_[reason]
                    continue
                shown[reason].append(made)
                room -= made.size
    for reason in order:
        yield Section(reason=reason, n=shelves[reason].n, shown=tuple(shown[reason]))


def entry(task: Task, attempt: Attempt, verdict: Verdict | None = None) -> Entry:
    """One attempt at a task, judged by `verdict` or else by its own."""
    verdict = verdict or attempt.verdict
    return Entry(
        task=task.id,
        name=task.tags.get("id", ""),
        turns=tuple(Turn(role=message.role, text=cut(_said(message))) for message in task.messages),
        tools=len(task.tools),
        expected=cut(expected(task)),
        calls=cut(calls_text(made_calls(attempt, "lenient"))),
        output=cut(raw_output(attempt)),
        ok=bool(verdict and verdict.ok),
        reason=verdict.reason if verdict else "",
        detail=cut(verdict.detail if verdict else ""),
        ms=attempt.timing.total_ms,
        prompt_tokens=attempt.usage.prompt_tokens,
        completion_tokens=attempt.usage.completion_tokens,
    )


def histogram(values: Sequence[float], bars: int = BARS) -> tuple[Bar, ...]:
    """Equal steps of the logarithm between the fastest and the slowest: answers differ by orders of magnitude. None of
    fewer than two different values."""
    if not values or min(values) <= 0 or min(values) == max(values):
        return ()
    low, step = math.log(min(values)), (math.log(max(values)) - math.log(min(values))) / bars
    if not step:  # as good as equal
        return ()
    counts = [0] * bars
    for value in values:
        counts[min(bars - 1, int((math.log(value) - low) / step))] += 1
    edges = [math.exp(low + i * step) for i in range(bars + 1)]
    return tuple(Bar(edges[i], edges[i + 1], n) for i, n in enumerate(counts))


def expected(task: Task) -> str:
    """The expected calls, one a line; empty where none is wanted, an ellipsis where any call will do."""
    if isinstance(task.expect, ExactCalls):
        return calls_text(task.expect.calls)
    if isinstance(task.expect, AllowedCalls):
        return "\n".join(f"{call.name}({_json(call.arguments)})" for call in task.expect.calls)
    return "…" if isinstance(task.expect, AnyCall) else ""


def calls_text(calls: Iterable[ToolCall]) -> str:
    """The calls, one a line; a broken one as it came."""
    return "\n".join(call.raw if call.error else f"{call.name}({_json(call.arguments)})" for call in calls)


def raw_output(attempt: Attempt) -> str:
    """What the runtime gave back: thinking, text, and the calls that it surfaced itself, as they came; or the error."""
    message = answer(attempt)
    if attempt.error or message is None:
        return attempt.error
    surfaced = (f"{call.name} {call.raw or _json(call.arguments)}" for call in message.tool_calls)
    return "\n".join(filter(None, (message.thinking, message.text, *surfaced)))


def cut(text: str, longest: int = LONGEST) -> str:
    """The text, or its beginning and how many characters were left out."""
    return text if len(text) <= longest else f"{text[:longest]} [… {len(text) - longest} more characters]"


def _said(message: Message) -> str:
    if message.role == "tool" and message.result is not None:
        return message.result.content
    return "\n".join(filter(None, (message.text, calls_text(message.tool_calls))))


def _json(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False)
