"""Measure a backend on a suite: one attempt a task, judged, added up.

Not a trainer's validation loop and not a judge (scoring.py is): it asks, keeps every attempt, and counts. The rule it
protects: what a report says can be counted again from `attempts.jsonl`, and a stopped measurement goes on where it
stopped.
"""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

from llm_tuner.evaluation.counts import confusion, offered, schema_valid, servers_of, tokens, tools_of
from llm_tuner.evaluation.intervals import rate
from llm_tuner.scoring import Rules, made_calls, score, wants_call
from llm_tuner.store import append_jsonl, resume_jsonl, write_atomic
from llm_tuner.store.suite import Suite, catalogue_key
from llm_tuner.types import (
    GREEDY,
    Attempt,
    Backend,
    ChatOptions,
    CorruptModel,
    DataError,
    EmptyData,
    Event,
    Json,
    Latency,
    ModelError,
    Rate,
    Report,
    RuntimeUnavailable,
    SourceUnreachable,
    Task,
    UnknownModel,
    Verdict,
    canonical_json,
)

ATTEMPTS = "attempts.jsonl"
PATIENCE = 3
"""So many equal errors in a row of a backend that cannot be reached end the measurement."""

_UNREACHABLE = (RuntimeUnavailable, SourceUnreachable, UnknownModel, CorruptModel)
_MOST_VALUES = 16  # a tag with more values, or another one for every task, names tasks: it does not group them
_FIXED = ("language", "category", "server")


class Mark(NamedTuple):
    """One task's outcome under both readings."""

    task: Task
    wanted: bool
    native: Verdict
    lenient: Verdict
    surfaced: bool
    """The runtime surfaced a call."""
    called: bool
    """There is a call, natively or as text."""
    readable: bool
    """There is a call, and every one could be read."""
    valid: bool
    """There is a call, and every one is one that its tool's schema accepts."""


def measure(
    suite: Suite,
    backend: Backend,
    *,
    options: ChatOptions = GREEDY,
    rules: Rules = "strict",
    out: Path | None = None,
    machine: Mapping[str, str] | None = None,
    sha256: str = "",
    judge: Callable[[Task, Attempt], Verdict] | None = None,
) -> Generator[Event, None, tuple[Report, list[Attempt]]]:
    """Ask the backend every task of the suite; return the report and the attempts in the suite's order.

    One event a task; its `data` holds the task's id, the verdict's reason and the running rates (0..1). With `out` the
    attempts are appended to `out/attempts.jsonl`, and those already there are not asked again (failed ones are). A task
    that stands twice in the suite is asked once. A ModelError becomes an attempt with its `error`; the same error of a
    backend that cannot be reached three times in a row is raised. `sha256` is the model file's. `judge` gives the
    attempts' verdicts in the place of `score`; the report is about calls all the same.

    Raises EmptyData for a suite without tasks, DataError where `out` holds another backend's attempts.
    """
    if not suite.tasks:
        raise EmptyData(f'The suite "{suite.name}" holds no task: there is nothing to measure.')
    kept = (
        attempts_kept(out, {"model": sha256 or backend.name, "options": options.model_dump()})
        if out is not None
        else {}
    )
    attempts: dict[str, Attempt] = {}
    running: Counter[str] = Counter()
    errors: list[ModelError] = []
    tasks = _in_cache_order(suite.tasks)
    for task in tasks:
        attempt, fresh = kept.get(task.id), task.id not in kept
        if attempt is None:
            attempt, error = _ask(task, backend, options)
            errors = [*errors, error] if error is not None else []
        verdict = judge(task, attempt) if judge is not None else score(task, attempt, rules=rules)
        attempts[task.id] = attempt.model_copy(update={"verdict": verdict})
        if fresh and out is not None:
            append_jsonl(out / ATTEMPTS, attempts[task.id])
        running.update(ok=int(verdict.ok), selection=int(verdict.selection_ok), parameters=int(verdict.parameters_ok))
        yield _event(task, verdict, running, len(attempts), len(tasks))
        stop_if_unreachable(errors)
    ordered = [attempts[id_] for id_ in dict.fromkeys(task.id for task in suite.tasks)]
    return tally(suite, ordered, backend=backend.name, rules=rules, machine=machine, sha256=sha256), ordered


def tally(
    suite: Suite,
    attempts: Iterable[Attempt],
    *,
    backend: str,
    rules: Rules = "strict",
    machine: Mapping[str, str] | None = None,
    sha256: str = "",
) -> Report:
    """Judge attempts again and add them up. Attempts at tasks outside the suite do not count.

    Rates: `native_rate` (calls were wanted and the runtime surfaced one), `selection`, `parameters` and both with
    `_lenient` over the tasks that want a call; `parameters_given_selection` over those with the right selection;
    `no_call` over the tasks that want none and `ok` over all, both with `_lenient`; over the answers that hold a call
    `valid_json` (every call can be read) and `schema_valid` (and its tool's JSON Schema accepts it).
    Groups: by language, category, number of tools offered, server and name of the expected tools (a task counts for
    each tool it wants; no such group where tools are wanted less than twice on average), and every tag that has at most
    16 values and repeats one.
    """
    tasks = {task.id: task for task in suite.tasks}
    known = [attempt for attempt in attempts if attempt.task_id in tasks]
    marks = [_mark(tasks[attempt.task_id], attempt, rules) for attempt in known]
    return Report(
        suite=suite.name,
        suite_hash=suite.hash,
        backend=backend,
        n=len(marks),
        rates=_rates(marks),
        groups=_groups(marks),
        latency=latency(known),
        tokens=tokens(known),
        confusion=confusion((tasks[attempt.task_id], attempt) for attempt in known),
        rules=rules,
        reasons=dict(Counter(mark.native.reason for mark in marks).most_common()),
        verdicts={mark.task.id: mark.native for mark in marks},
        lenient={mark.task.id: mark.lenient for mark in marks if mark.lenient != mark.native},
        wanted=tuple(mark.task.id for mark in marks if mark.wanted),
        machine=dict(machine or {}),
        model_sha256=sha256,
    )


def latency(attempts: Sequence[Attempt]) -> Latency:
    """End-to-end times of the attempts that got an answer."""
    answered = [attempt for attempt in attempts if not attempt.error and attempt.timing.total_ms > 0]
    totals = [attempt.timing.total_ms for attempt in answered]
    firsts = [a.timing.first_token_ms for a in answered if a.timing.first_token_ms is not None]
    clocked = [(a.usage.completion_tokens, a.timing.generate_ms) for a in answered if a.timing.generate_ms]
    seconds = sum(ms for _, ms in clocked) / 1000
    return Latency(
        n=len(answered),
        p50_ms=median(totals) if totals else None,
        p95_ms=percentile(totals, 95),
        p99_ms=percentile(totals, 99),
        first_token_p50_ms=median(firsts) if firsts else None,
        tokens_per_s=sum(tokens for tokens, _ in clocked) / seconds if seconds else None,
    )


# -------------------------------------------------------------------------------------------------------------- asking


def _in_cache_order(tasks: Iterable[Task]) -> list[Task]:
    """Tasks of one catalogue follow each other: the runtime then keeps the catalogue's part of the prompt."""
    by_catalogue: dict[str, dict[str, Task]] = defaultdict(dict)
    for task in tasks:
        by_catalogue[catalogue_key(task.tools)][task.id] = task
    return [task for group in by_catalogue.values() for task in group.values()]


def _ask(task: Task, backend: Backend, options: ChatOptions) -> tuple[Attempt, ModelError | None]:
    start = time.perf_counter()
    try:
        reply = backend.chat(task.messages, task.tools, options)
    except ModelError as error:
        return Attempt(task_id=task.id, backend=backend.name, error=str(error) or type(error).__name__), error
    timing = reply.timing
    if timing.total_ms == 0:
        timing = timing.model_copy(update={"total_ms": (time.perf_counter() - start) * 1000})
    message, usage = reply.message, reply.usage
    return Attempt(task_id=task.id, backend=backend.name, messages=(message,), usage=usage, timing=timing), None


def stop_if_unreachable(errors: Sequence[ModelError]) -> None:
    """Raises the last error where a backend that cannot be reached gave it PATIENCE times in a row."""
    last = errors[-PATIENCE:]
    if len(last) == PATIENCE and isinstance(last[0], _UNREACHABLE) and len({(type(e), str(e)) for e in last}) == 1:
        raise last[-1]


def _event(task: Task, verdict: Verdict, running: Counter[str], done: int, total: int) -> Event:
    data: dict[str, Json] = {"task": task.id, "reason": verdict.reason}
    data |= {name: running[name] / done for name in ("ok", "selection", "parameters")}
    message = f"{running['ok']} of {done} right"
    return Event(step="measure", message=message, done=done, total=total, unit="tasks", data=data)


def attempts_kept(out: Path, identity: dict[str, Json]) -> dict[str, Attempt]:
    """Attempts of an earlier, stopped measurement of the same model with the same options: what a name stands for may
    have changed since. Those that failed are asked again."""
    note = out / "measured.json"
    attempts = resume_jsonl(out / ATTEMPTS, Attempt)
    if not attempts:
        write_atomic(note, canonical_json(identity))
    elif not note.is_file() or note.read_text(encoding="utf-8") != canonical_json(identity):
        raise DataError(f"{out} holds the attempts of another model or other options. Choose another folder.")
    return {attempt.task_id: attempt for attempt in attempts if not attempt.error}


# -------------------------------------------------------------------------------------------------------------- adding


def _mark(task: Task, attempt: Attempt, rules: Rules) -> Mark:
    calls = made_calls(attempt, "lenient")
    return Mark(
        task=task,
        wanted=wants_call(task),
        native=score(task, attempt, rules=rules),
        lenient=score(task, attempt, rules=rules, reading="lenient"),
        surfaced=bool(made_calls(attempt)),
        called=bool(calls),
        readable=bool(calls) and not any(call.error for call in calls),
        valid=schema_valid(task, attempt),
    )


def _share(marks: Iterable[Mark], of: Callable[[Mark], bool], among: Callable[[Mark], bool]) -> Rate:
    counted = [of(mark) for mark in marks if among(mark)]
    return rate(sum(counted), len(counted))


def _rates(marks: Sequence[Mark]) -> dict[str, Rate]:
    def wanted(mark: Mark) -> bool:
        return mark.wanted

    return {
        "ok": _share(marks, lambda m: m.native.ok, lambda m: True),
        "native_rate": _share(marks, lambda m: m.surfaced, wanted),
        "selection": _share(marks, lambda m: m.native.selection_ok, wanted),
        "parameters": _share(marks, lambda m: m.native.parameters_ok, wanted),
        "parameters_given_selection": _share(
            marks, lambda m: m.native.parameters_ok, lambda m: m.wanted and m.native.selection_ok
        ),
        "selection_lenient": _share(marks, lambda m: m.lenient.selection_ok, wanted),
        "parameters_lenient": _share(marks, lambda m: m.lenient.parameters_ok, wanted),
        "no_call": _share(marks, lambda m: m.native.ok, lambda m: not m.wanted),
        "no_call_lenient": _share(marks, lambda m: m.lenient.ok, lambda m: not m.wanted),
        "ok_lenient": _share(marks, lambda m: m.lenient.ok, lambda m: True),
        "valid_json": _share(marks, lambda m: m.readable, lambda m: m.called),
        "schema_valid": _share(marks, lambda m: m.valid, lambda m: m.called),
    }


def _groups(marks: Sequence[Mark]) -> dict[str, dict[str, dict[str, Rate]]]:
    sides: dict[str, dict[str, list[Mark]]] = defaultdict(lambda: defaultdict(list))
    numbers = offered([mark.task for mark in marks])
    for mark in marks:
        for dimension, values in _parts(mark.task, numbers).items():
            for value in filter(None, values):
                sides[dimension][value].append(mark)
    return {
        dimension: {value: _rates(values[value]) for value in sorted(values, key=_natural)}
        for dimension, values in sorted(sides.items())
        if _groups_something(dimension, values)
    }


def _parts(task: Task, numbers: Mapping[int, str]) -> dict[str, tuple[str, ...]]:
    """The parts of the suite that a task stands in, by dimension."""
    return {
        **{tag: (value,) for tag, value in task.tags.items()},
        "language": (task.language,),
        "category": (task.category,),
        "server": (servers_of(task),),
        "tool": tools_of(task),
        "tools_offered": (numbers[len(task.tools)],),
    }


def _groups_something(dimension: str, values: Mapping[str, Sequence[Mark]]) -> bool:
    marks = sum(map(len, values.values()))
    if dimension == "tool":
        return marks >= 2 * len(values)
    if dimension == "tools_offered":
        return len(values) > 1
    return dimension in _FIXED or (len(values) <= _MOST_VALUES and len(values) < marks)


def _natural(value: str) -> tuple[int, str]:
    """Numbers and ranges by their first number, then words."""
    digits = re.match(r"\d+", value)
    return (int(digits[0]) if digits else 1 << 62), value


def percentile(values: Sequence[float], percent: int) -> float | None:
    """Between the nearest two values, linearly (type 7); None of none."""
    if not values:
        return None
    return quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]
