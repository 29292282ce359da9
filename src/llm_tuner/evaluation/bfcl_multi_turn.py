"""The Berkeley Function Calling Leaderboard's multi-turn tasks: the turn loop, the check, the report.

Not the single-turn part (bfcl.py) and not the environment (bfcl_environment.py). A conversation has turns, each begun
by the user; within a turn the model answers, its calls are carried out on the benchmark's own objects and it is shown
the results, until it calls nothing. Afterwards its calls and the ground truth's are carried out turn by turn on two
fresh sets of objects, as the official checker does (bfcl-eval 2026.3.23, `multi_turn_checker`, `multi_turn_runner`): a
turn that wants calls is right when it has some, the two sets have the same state, and every result of the ground
truth's calls in this turn is among the results that the model's calls have had so far. Calls in a turn that wants none
are carried out and not held against the model, as officially.

The rule it protects: a verdict follows from the recorded messages alone, so that it can be given again.
"""

from __future__ import annotations

import ast
import random
import time
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from llm_tuner.evaluation import bfcl
from llm_tuner.evaluation.asking import stop_if_unreachable
from llm_tuner.evaluation.attempts import Attempts
from llm_tuner.evaluation.bfcl_environment import Environment, EnvironmentLost, fetch
from llm_tuner.evaluation.intervals import rate
from llm_tuner.evaluation.measure import latency
from llm_tuner.evaluation.render import Failure, write
from llm_tuner.evaluation.target import Target, locate, opened
from llm_tuner.evaluation.wording import Language
from llm_tuner.models.resources import machine
from llm_tuner.scoring import Reading
from llm_tuner.types import (
    Attempt,
    Backend,
    ChatOptions,
    Event,
    Json,
    Message,
    ModelError,
    Rate,
    Reason,
    Report,
    SetupError,
    Timing,
    ToolCall,
    ToolResult,
    ToolSpec,
    Usage,
    Value,
    Verdict,
    content_hash,
)

CATEGORIES = ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context")

MOST_ANSWERS = 21
"""So many answers with calls end a turn and with it the conversation (officially: when more than 20 were counted)."""

MORE_TOOLS = "I have updated some more functions you can choose from. What about now?"
"""What the user says where held-out tools come in (bfcl_eval/constants/default_prompts.py)."""

OPTIONS = ChatOptions(max_tokens=1024)
"""Greedy; the length is ours, officially there is no limit."""

CONTEXT = 32768
"""Tokens that a multi-turn conversation is served with at least, where the runtime is ours to set."""

Answer = tuple[ToolCall, ...]
"""The calls of one answer."""

_SHOWN_FAILURES = 12
_SHOWN_CHARACTERS = 400


class Entry(Value):
    """One conversation of the benchmark. `later` are the tools that come in with the turn of that index; `truth` holds
    the right calls of each turn, as Python call expressions."""

    id: str
    category: str
    turns: tuple[tuple[Message, ...], ...]
    tools: tuple[ToolSpec, ...]
    later: Mapping[int, tuple[ToolSpec, ...]] = {}
    classes: tuple[str, ...]
    config: Mapping[str, Json]
    truth: tuple[tuple[str, ...], ...]

    @property
    def long_context(self) -> bool:
        return "long_context" in self.category

    @cached_property
    def wanted(self) -> tuple[tuple[str, ...], ...]:
        """The names of the tools that each turn's right calls call."""
        return tuple(tuple(_called(expression) for expression in turn) for turn in self.truth)


class Mark(NamedTuple):
    """What is counted of one conversation."""

    entry: Entry
    verdict: Verdict
    right_turns: int
    asked: int
    """Turns that wanted calls and were answered."""
    surfaced: int
    """Those of them in which the runtime surfaced a call."""
    silent: int
    """Turns that wanted no call, were answered and had none."""
    waiting: int
    """Turns that wanted no call and were answered."""
    attempt: Attempt
    """Without its messages: times and tokens."""


# ------------------------------------------------------------------------------------------------------------- entries


def named(categories: str) -> tuple[str, ...]:
    """The categories of a text with commas, single-turn ones and their groups (bfcl.named) before conversations; the
    word `multi_turn` stands for all four. Raises SetupError for a name that is none."""
    words = [word.strip() for word in categories.split(",")]
    conversations = dict.fromkeys(
        c for w in words for c in (CATEGORIES if w == "multi_turn" else (w,)) if c in CATEGORIES
    )
    others = [word for word in words if word and word not in (*CATEGORIES, "multi_turn")]
    return (*(bfcl.named(others) if others or not conversations else ()), *conversations)


def load(
    category: str,
    documents: Mapping[str, Sequence[Mapping[str, Any]]],
    limit: int | None = None,
    seed: int = 0,
    *,
    cache: Path | None = None,
) -> list[Entry]:
    """The conversations of a category, or `limit` of them at random; `documents` are the function documents by class.

    Raises SetupError for a category that is not among CATEGORIES, and what `bfcl.fetch` raises.
    """
    if category not in CATEGORIES:
        raise SetupError(
            f'No multi-turn BFCL category "{category}" (found {len(CATEGORIES)}: {", ".join(CATEGORIES)}).'
        )
    found = [(row, truth) for _, row, truth in bfcl.rows([category], cache=cache)]
    if limit is not None and limit < len(found):
        chosen = sorted(random.Random(f"{category}:{seed}").sample(range(len(found)), limit))
        found = [found[i] for i in chosen]
    return [entry(row, truth, documents) for row, truth in found]


def entry(row: Mapping[str, Any], truth: Sequence[Any], documents: Mapping[str, Sequence[Mapping[str, Any]]]) -> Entry:
    """One row of the data set with its ground truth as an entry."""
    tools = [bfcl.tool(document) for name in row["involved_classes"] for document in documents[name]]
    later: dict[int, tuple[ToolSpec, ...]] = {}
    for turn, names in row.get("missed_function", {}).items():
        later[int(turn)] = tuple(tool for name in names if (tool := _taken_out(tools, name)) is not None)
    turns = [tuple(Message(role=m["role"], text=m["content"]) for m in turn) for turn in row["question"]]
    for number in later:
        turns[number] = (Message(role="user", text=MORE_TOOLS),)
    return Entry(
        id=row["id"],
        category=row["id"].rpartition("_")[0],
        turns=tuple(turns),
        tools=tuple(tools),
        later=later,
        classes=tuple(row["involved_classes"]),
        config=row.get("initial_config") or {},
        truth=tuple(tuple(turn) for turn in truth),
    )


def _taken_out(tools: list[ToolSpec], name: str) -> ToolSpec | None:
    """The first tool of this name, which is then no longer among them."""
    at = next((i for i, tool in enumerate(tools) if tool.name == name), None)
    return None if at is None else tools.pop(at)


def _called(expression: str) -> str:
    node = ast.parse(expression, mode="eval").body
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else expression


# ----------------------------------------------------------------------------------------------------- the conversation


def converse(
    entry: Entry,
    backend: Backend,
    environment: Environment,
    *,
    options: ChatOptions = OPTIONS,
    reading: Reading = "native",
) -> tuple[Attempt, ModelError | None]:
    """Hold the conversation. The attempt's messages are all of it, the user's and the tools' too.

    A backend that cannot answer ends it: then `error` says why, and the ModelError, if it was one, is returned. With
    `reading="lenient"` calls written as text are carried out, too, and go into the history as if they were surfaced.
    """
    talk = _Talk(entry, backend, environment, options, reading)
    start = time.perf_counter()
    error: Exception | None = None
    try:
        talk.hold()
    except EnvironmentLost:
        pass  # the call that did it is the last of the record; the judge comes to it again
    except (ModelError, ValueError) as caught:  # ValueError: what was answered cannot be a message
        error = caught
    timing = talk.timing if talk.timing.total_ms else Timing(total_ms=(time.perf_counter() - start) * 1000)
    attempt = Attempt(
        task_id=entry.id,
        backend=backend.name,
        messages=tuple(talk.record),
        usage=talk.usage,
        timing=timing,
        error=(str(error) or type(error).__name__) if error is not None else "",
    )
    return attempt, error if isinstance(error, ModelError) else None


class _Talk:
    """One conversation while it is held. `record` is what was said, `history` what the model is shown of it."""

    def __init__(
        self, entry: Entry, backend: Backend, environment: Environment, options: ChatOptions, reading: Reading
    ) -> None:
        self.entry, self.backend, self.environment = entry, backend, environment
        self.options, self.reading = options, reading
        self.record: list[Message] = []
        self.history: list[Message] = []
        self.tools = list(entry.tools)
        self.usage, self.timing = Usage(), Timing()

    def hold(self) -> None:
        entry = self.entry
        self.environment.start(entry.id, entry.classes, entry.config, entry.long_context)
        for number, turn in enumerate(entry.turns):
            self.tools.extend(entry.later.get(number, ()))
            for message in turn:
                self._say(message)
            if not self._turn():
                return

    def _turn(self) -> bool:
        """Whether the turn came to an end by itself."""
        for _ in range(MOST_ANSWERS):
            message = self._ask()
            calls = calls_of(message, self.reading)
            self._say(message, _surfaced(message, calls, len(self.history)))
            if not calls:
                return True
            for call, shown in zip(calls, self.history[-1].tool_calls, strict=True):
                content = self.environment.call(call.name, call.arguments)
                failed = content.startswith("Error during execution:")
                result = ToolResult(call_id=shown.id, content=content, is_error=failed)
                self._say(Message(role="tool", result=result))
        return False

    def _ask(self) -> Message:
        start = time.perf_counter()
        reply = self.backend.chat(tuple(self.history), tuple(self.tools), self.options)
        reply.message.model_dump_json()  # what cannot be kept is the answer's error, not ours later
        took = reply.timing.total_ms or (time.perf_counter() - start) * 1000
        self.usage, self.timing = _sum(self.usage, reply.usage), _total(self.timing, reply.timing, took)
        return reply.message

    def _say(self, message: Message, shown: Message | None = None) -> None:
        self.record.append(message)
        self.history.append(shown or message)


def calls_of(message: Message, reading: Reading) -> Answer:
    """The calls of an answer, none where one of them cannot be read: then the whole answer counts as text."""
    calls = message.tool_calls or (message.text_calls if reading == "lenient" else ())
    return () if any(call.error for call in calls) else calls


def _surfaced(message: Message, calls: Answer, number: int) -> Message:
    """The message as the model is shown it afterwards: every call with an id, none of them written as text."""
    if not calls:
        return message
    named = tuple(c if c.id else c.model_copy(update={"id": f"call_{number}_{i}"}) for i, c in enumerate(calls))
    if message.tool_calls:
        return message.model_copy(update={"tool_calls": named})
    return Message(role="assistant", thinking=message.thinking, tool_calls=named)


def _sum(a: Usage, b: Usage) -> Usage:
    return Usage(
        prompt_tokens=a.prompt_tokens + b.prompt_tokens,
        cached_tokens=a.cached_tokens + b.cached_tokens,
        completion_tokens=a.completion_tokens + b.completion_tokens,
    )


def _total(a: Timing, b: Timing, took_ms: float) -> Timing:
    def both(one: float | None, other: float | None) -> float | None:
        return None if one is None and other is None else (one or 0.0) + (other or 0.0)

    return Timing(
        total_ms=a.total_ms + took_ms,
        prompt_ms=both(a.prompt_ms, b.prompt_ms),
        generate_ms=both(a.generate_ms, b.generate_ms),
    )


# ---------------------------------------------------------------------------------------------------------- the verdict


def turns_of(entry: Entry, messages: Iterable[Message]) -> list[list[Message]]:
    """The model's answers by turn, as far as the conversation came. A turn begins with the user's messages of it."""
    starts: Counter[int] = Counter()
    turns: list[list[Message]] = []
    for message in messages:
        if message.role == "assistant":
            turns[-1].append(message)
        elif message.role != "tool":
            if not turns or starts[len(turns) - 1] == len(entry.turns[len(turns) - 1]):
                turns.append([])
            starts[len(turns) - 1] += 1
    return turns


def judge(entry: Entry, attempt: Attempt, environment: Environment, *, reading: Reading = "native") -> Mark:
    """The verdict on a conversation, and what is counted of it.

    Score: 1.0 when right, else the share of turns before the first wrong one. Selection: every tool that the ground
    truth calls up to the judged turn was called.
    """
    turns = turns_of(entry, attempt.messages)
    answers = [[calls for m in turn if (calls := calls_of(m, reading))] for turn in turns]
    right, fault = _first_fault(entry, attempt, turns, answers, environment)
    wanted = [bool(truth) for truth in entry.truth]
    answered = [i for i, turn in enumerate(turns) if turn]
    native = {i for i in answered if any(m.tool_calls for m in turns[i])}
    return Mark(
        entry=entry,
        verdict=_verdict(entry, answers, right, fault),
        right_turns=right,
        asked=sum(wanted[i] for i in answered),
        surfaced=sum(wanted[i] for i in native),
        silent=sum(not wanted[i] and not answers[i] for i in answered),
        waiting=sum(not wanted[i] for i in answered),
        attempt=attempt.model_copy(update={"messages": (), "results": ()}),
    )


class Fault(NamedTuple):
    reason: Reason
    detail: str


def _first_fault(
    entry: Entry,
    attempt: Attempt,
    turns: Sequence[Sequence[Message]],
    answers: Sequence[Sequence[Answer]],
    environment: Environment,
) -> tuple[int, Fault | None]:
    """How many turns are right before the first fault, and that fault."""
    if attempt.error:
        return 0, Fault("backend_error", attempt.error)
    of = f"of {len(entry.truth)}"
    # A conversation that was cut off is wrong, whatever was before; the turns before are judged to be counted.
    cut = bool(answers) and len(answers) < len(entry.truth) and len(answers[-1]) >= MOST_ANSWERS
    last = Fault("endless_turn", f"Turn {len(answers)} {of}: after {MOST_ANSWERS} answers with calls there was no end.")
    environment.start(entry.id, entry.classes, entry.config, entry.long_context)
    had: list[str] = []
    for number, made in enumerate(answers[:-1] if cut else answers):
        try:
            fault = _turn_fault(entry.truth[number], turns[number], made, had, environment)
        except EnvironmentLost as error:
            fault = Fault("wrong_value", str(error))
        if fault is not None:
            return number, last if cut else Fault(fault.reason, f"Turn {number + 1} {of}: {fault.detail}")
    if cut:
        return len(answers) - 1, last
    if len(answers) < len(entry.truth):
        return max(0, len(answers) - 1), Fault("wrong_value", f"Turn {len(answers)} {of}: a call did not come back.")
    return len(answers), None


def _turn_fault(
    truth: Sequence[str], said: Sequence[Message], made: Sequence[Answer], had: list[str], environment: Environment
) -> Fault | None:
    """What is wrong with one turn. `had` are the results of the model's calls so far; this turn's are added."""
    had.extend(environment.call(call.name, call.arguments) for calls in made for call in calls)
    results = [environment.truth(expression) for expression in truth]
    if not truth:
        return None
    if not made:
        return _silence(truth, said)
    if differing := environment.differences():
        first = differing[0]
        others = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        return Fault("wrong_state", f"{first.attribute}{others} is {first.made}, expected {first.wanted}.")
    if missing := Counter(results) - Counter(had):
        at = next(i for i, result in enumerate(results) if result in missing)
        return Fault("missing_result", f"What {truth[at]} gives is not among the results: {_short(results[at])}")
    return None


def _silence(truth: Sequence[str], said: Sequence[Message]) -> Fault:
    last = said[-1] if said else Message(role="assistant")
    if broken := next((call for call in (*last.tool_calls, *last.text_calls) if call.error), None):
        return Fault("broken_call", f"A call could not be read: {broken.error}")
    if last.text_calls:
        names = ", ".join(call.name for call in last.text_calls)
        return Fault("call_as_text", f"The call was written as text ({names}); the runtime surfaced none.")
    return Fault("no_call", f"Expected {', '.join(truth)}; nothing was called.")


def _verdict(entry: Entry, answers: Sequence[Sequence[Answer]], right: int, fault: Fault | None) -> Verdict:
    if fault is None:
        detail = f"{len(entry.truth)} turns: right state, right results."
        return Verdict(ok=True, selection_ok=True, parameters_ok=True, score=1.0, reason="ok", detail=detail)
    wanted = {name for names in entry.wanted[: right + 1] for name in names}
    made = {call.name for turn in answers[: right + 1] for calls in turn for call in calls}
    selection = bool(made) and wanted <= made and fault.reason != "backend_error"
    return Verdict(
        ok=False,
        selection_ok=selection,
        parameters_ok=False,
        score=min(right, len(entry.truth) - 1) / len(entry.truth),
        reason=fault.reason,
        detail=fault.detail,
    )


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


# ---------------------------------------------------------------------------------------------------------- the measure


def measure(
    entries: Sequence[Entry],
    backend: Backend,
    environment: Environment,
    *,
    name: str,
    options: ChatOptions = OPTIONS,
    reading: Reading = "native",
    out: Path | None = None,
    machine: Mapping[str, str] | None = None,
    sha256: str = "",
) -> Generator[Event, None, tuple[Report, tuple[Failure, ...]]]:
    """Hold every conversation and judge it; return the report and some failures to show.

    One event a conversation. With `out` the attempts are appended to `out/attempts.jsonl`; those already there are
    judged again and not held again (failed ones are). A ModelError becomes an attempt with its `error`; the same error
    of a backend that cannot be reached three times in a row is raised. `sha256` is the model file's.

    Raises ToolError where the environment cannot be started, DataError where `out` holds another backend's attempts.
    """
    identity = {
        "model": sha256 or backend.name,
        "options": options.model_dump(),
        "bfcl": bfcl.VERSION,
        "reading": reading,
    }
    attempts = Attempts(out, identity)
    marks: dict[str, Mark] = {}
    failed: list[Failure] = []
    errors: list[ModelError] = []
    for entry in sorted(entries, key=lambda e: e.classes):  # tools in common, one after the other: the cache has them
        fresh = entry.id not in attempts
        if fresh:
            attempt, error = converse(entry, backend, environment, options=options, reading=reading)
            errors = [*errors, error] if error is not None else []
        else:
            attempt = attempts[entry.id]
        mark = judge(entry, attempt, environment, reading=reading)
        marks[entry.id] = mark
        if fresh and out is not None:
            attempts.add(attempt.model_copy(update={"verdict": mark.verdict}))
        if not mark.verdict.ok and len(failed) < _SHOWN_FAILURES:
            failed.append(_failure(entry, attempt, mark.verdict, reading))
        yield _event(marks.values(), mark, len(entries))
        stop_if_unreachable(errors)
    ordered = [marks[entry.id] for entry in entries]
    report = tally(name, ordered, backend=backend.name, reading=reading, machine=machine, sha256=sha256)
    return report, tuple(failed)


def tally(
    name: str,
    marks: Sequence[Mark],
    *,
    backend: str,
    reading: Reading = "native",
    machine: Mapping[str, str] | None = None,
    sha256: str = "",
) -> Report:
    """Add up. Rates: `ok` and `selection` over the conversations, or both with `_lenient`: a conversation is held under
    one reading, what the other would have come to is not measured. `turns` is the share of turns before the first wrong
    one; `native_rate` is over the answered turns that want calls (the runtime surfaced one), `no_call` over those that
    want none (nothing was called). Latency is of whole conversations. Groups: by category and by class of tools."""
    groups: dict[str, dict[str, list[Mark]]] = defaultdict(lambda: defaultdict(list))
    for mark in marks:
        groups["category"][mark.entry.category].append(mark)
        for class_name in mark.entry.classes:
            groups["server"][class_name].append(mark)
    return Report(
        suite=name,
        suite_hash=content_hash([bfcl.VERSION, sorted(mark.entry.id for mark in marks)]),
        backend=backend,
        n=len(marks),
        rates=_rates(marks, reading),
        groups={
            kind: {k: _rates(group, reading) for k, group in sorted(parts.items())} for kind, parts in groups.items()
        },
        latency=latency([mark.attempt for mark in marks]),
        reasons=dict(Counter(mark.verdict.reason for mark in marks).most_common()),
        verdicts={mark.entry.id: mark.verdict for mark in marks},
        wanted=tuple(mark.entry.id for mark in marks),
        machine=dict(machine or {}),
        model_sha256=sha256,
    )


def evaluate(
    target: Target,
    category: str,
    limit: int | None = None,
    *,
    seed: int = 0,
    reading: Reading = "native",
    options: ChatOptions = OPTIONS,
    out: Path | None = None,
    language: Language = "en",
) -> Generator[Event, None, Report]:
    """Fetch the data and the environment if need be, locate and open the model, measure one category; with `out` also
    keep attempts.jsonl there and write report.json, .md and .html. A second call with the same `out` goes on."""
    bundle = yield from fetch()
    yield from bfcl.fetch()
    entries = load(category, bundle.documents, limit, seed)
    located = yield from locate(target.model_copy(update={"context": max(target.context, CONTEXT)}))
    with opened(located, slots=1) as backend, Environment(bundle) as environment:
        report, failed = yield from measure(
            entries,
            backend,
            environment,
            name=f"bfcl:{category}",
            options=options,
            reading=reading,
            out=out,
            machine=machine(),
            sha256=located.sha256,
        )
    if out is not None:
        write(out, report, failed, language)
    return report


def _rates(marks: Sequence[Mark], reading: Reading) -> dict[str, Rate]:
    def share(k: str, n: str) -> Rate:
        return rate(sum(getattr(mark, k) for mark in marks), sum(getattr(mark, n) for mark in marks))

    unknown = rate(0, 0)
    right = rate(sum(mark.verdict.ok for mark in marks), len(marks))
    selection = rate(sum(mark.verdict.selection_ok for mark in marks), len(marks))
    return {
        "ok": right if reading == "native" else unknown,
        "ok_lenient": right if reading == "lenient" else unknown,
        "turns": rate(sum(mark.right_turns for mark in marks), sum(len(mark.entry.truth) for mark in marks)),
        "native_rate": share("surfaced", "asked"),
        "selection": selection if reading == "native" else unknown,
        "selection_lenient": selection if reading == "lenient" else unknown,
        "no_call": share("silent", "waiting"),
    }


def _event(marks: Iterable[Mark], mark: Mark, total: int) -> Event:
    seen = list(marks)
    ok = sum(m.verdict.ok for m in seen)
    data: dict[str, Json] = {"task": mark.entry.id, "reason": mark.verdict.reason, "ok": ok / len(seen)}
    message = f"{ok} of {len(seen)} right"
    return Event(step="measure", message=message, done=len(seen), total=total, unit="conversations", data=data)


def _failure(entry: Entry, attempt: Attempt, verdict: Verdict, reading: Reading) -> Failure:
    """The turn that failed, as far as the verdict knows it: what was asked, wanted and called."""
    turns = turns_of(entry, attempt.messages)
    at = min(round(verdict.score * len(entry.truth)), max(0, len(turns) - 1))
    calls = [call for message in (turns[at] if turns else ()) for call in calls_of(message, reading)]
    said = next((m.text for m in reversed(turns[at] if turns else []) if m.text), "")
    return Failure(
        request=_short("\n".join(m.text for m in entry.turns[at])),
        expected=_short("\n".join(entry.truth[at])),
        got=_short("\n".join(f"{call.name}({call.arguments})" for call in calls) or attempt.error or said),
        reason=verdict.reason,
        detail=_short(verdict.detail),
    )
