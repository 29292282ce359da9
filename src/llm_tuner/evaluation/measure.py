"""Measure a backend on a suite: one attempt a task, judged, added up.

Not a trainer's validation loop and not a judge (scoring.py is): it asks, keeps every attempt, and counts. The rule it
protects: what a report says can be counted again from `attempts.jsonl`, and a stopped measurement goes on where it
stopped.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

from llm_tuner.evaluation.asking import PATIENCE, Question, answered, stop_if_unreachable
from llm_tuner.evaluation.attempts import Attempts, Judged
from llm_tuner.evaluation.counts import confusion, offered, schema_valid, servers_of, tokens, tools_of
from llm_tuner.evaluation.intervals import rate
from llm_tuner.scoring import Rules, made_calls, score, wants_call
from llm_tuner.store.suite import Suite
from llm_tuner.types import (
    GREEDY,
    Attempt,
    Backend,
    ChatOptions,
    EmptyData,
    Event,
    Json,
    Latency,
    ModelError,
    Rate,
    Report,
    SetupError,
    Task,
    Verdict,
)

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
    at_a_time: int = 1,
) -> Generator[Event, None, tuple[Report, Judged]]:
    """Ask the backend every task of the suite; return the report and the attempts in the suite's order.

    As `measure_all` with one suite, whose `out` is the folder itself.
    """
    (measured,) = yield from measure_all(
        (suite,),
        backend,
        options=options,
        rules=rules,
        outs=(out,),
        machine=machine,
        sha256=sha256,
        judge=judge,
        at_a_time=at_a_time,
    )
    return measured


def measure_all(
    suites: Sequence[Suite],
    backend: Backend,
    *,
    options: ChatOptions = GREEDY,
    rules: Rules = "strict",
    outs: Sequence[Path | None] = (),
    machine: Mapping[str, str] | None = None,
    sha256: str = "",
    judge: Callable[[Task, Attempt], Verdict] | None = None,
    at_a_time: int = 1,
    served: str = "",
) -> Generator[Event, None, list[tuple[Report, Judged]]]:
    """Ask the backend every task of every suite; return a report for each, with its attempts in the suite's order.

    One event a task; its `data` holds the task's id, its suite, the verdict's reason and the running rates (0..1). With
    a folder in `outs`, suite by suite, its attempts are appended to `attempts.jsonl` there, and those already there are
    not asked again (failed ones are). A task that stands twice in a suite is asked once. A ModelError becomes an
    attempt with its `error`; the same error of a backend that cannot be reached three times in a row is raised.
    `sha256` is the model file's; where there is no file of ours, `served` names the model beyond doubt (a digest, an
    address), so that a folder is not gone on with by another one. `judge` gives the attempts' verdicts in the place of
    `score`; the report is about calls all the same.

    The tasks of all suites are asked in the order of their tools, so that each request shares as much of its prompt as
    possible with the one before, and the runtime's prompt cache has it; `at_a_time` requests are sent at a time, for
    servers with so many slots. What is reported does not depend on the order, but times include what a request waited
    for the others.

    Raises EmptyData for a suite without tasks, DataError where a folder holds another backend's attempts, SetupError
    for less than one request at a time.
    """
    for suite in suites:
        if not suite.tasks:
            raise EmptyData(f'The suite "{suite.name}" holds no task: there is nothing to measure.')
    if at_a_time < 1:
        raise SetupError(f"{at_a_time} requests at a time measure nothing. Send at least 1.")
    identity: dict[str, Json] = {"model": sha256 or served or backend.name, "options": options.model_dump()}
    told = dict(machine or {}) | ({"requests_at_a_time": str(at_a_time)} if at_a_time > 1 else {})
    decide = judge or (lambda task, attempt: score(task, attempt, rules=rules))
    parts = [_Part(suite, Attempts(out, identity), decide) for suite, out in zip_longest(suites, outs[: len(suites)])]
    running, total, errors = Counter[str](), sum(len(part.tasks) for part in parts), list[ModelError]()
    for part in parts:
        for attempt in part.attempts.several([id_ for id_ in part.tasks if id_ in part.attempts]):
            yield _event(part, part.judge(attempt), running, total)
    missing = [
        Question(number, task)
        for number, part in enumerate(parts)
        for task in part.tasks.values()
        if task.id not in part.attempts
    ]
    for question, attempt, error in answered(missing, backend, options, at_a_time):
        part = parts[question.suite]
        verdict = part.judge(attempt)
        part.attempts.add(attempt.model_copy(update={"verdict": verdict}))
        yield _event(part, verdict, running, total)
        errors = [*errors[-PATIENCE:], error] if error is not None else []
        stop_if_unreachable(errors)
    found = []
    for part in parts:
        ordered = part.attempts.judged({id_: part.verdicts[id_] for id_ in part.tasks})
        report = tally(part.suite, ordered, backend=backend.name, rules=rules, machine=told, sha256=sha256)
        found.append((report, ordered))
    return found


class _Part:
    """One of the suites while it is measured."""

    def __init__(self, suite: Suite, attempts: Attempts, decide: Callable[[Task, Attempt], Verdict]) -> None:
        self.suite, self.attempts, self._decide = suite, attempts, decide
        self.tasks = {task.id: task for task in suite.tasks}
        self.verdicts: dict[str, Verdict] = {}
        self.last = ""

    def judge(self, attempt: Attempt) -> Verdict:
        self.last = attempt.task_id
        self.verdicts[self.last] = self._decide(self.tasks[self.last], attempt)
        return self.verdicts[self.last]


def tally(
    suite: Suite,
    attempts: Iterable[Attempt],
    *,
    backend: str,
    rules: Rules = "strict",
    machine: Mapping[str, str] | None = None,
    sha256: str = "",
) -> Report:
    """Judge attempts again and add them up. Attempts at tasks outside the suite do not count. `attempts` is gone
    through several times: not an iterator.

    Rates: `native_rate` (calls were wanted and the runtime surfaced one), `selection`, `parameters` and both with
    `_lenient` over the tasks that want a call; `parameters_given_selection` over those with the right selection;
    `no_call` over the tasks that want none and `ok` over all, both with `_lenient`; over the answers that hold a call
    `valid_json` (every call can be read) and `schema_valid` (and its tool's JSON Schema accepts it).
    Groups: by language, category, number of tools offered, server and name of the expected tools (a task counts for
    each tool it wants; no such group where tools are wanted less than twice on average), and every tag that has at most
    16 values and repeats one.
    """
    tasks = {task.id: task for task in suite.tasks}

    def known() -> Iterator[Attempt]:
        return (attempt for attempt in attempts if attempt.task_id in tasks)

    marks = [_mark(tasks[attempt.task_id], attempt, rules) for attempt in known()]
    return Report(
        suite=suite.name,
        suite_hash=suite.hash,
        backend=backend,
        n=len(marks),
        rates=_rates(marks),
        groups=_groups(marks),
        latency=latency(known()),
        tokens=tokens(known()),
        confusion=confusion((tasks[attempt.task_id], attempt) for attempt in known()),
        rules=rules,
        reasons=dict(Counter(mark.native.reason for mark in marks).most_common()),
        verdicts={mark.task.id: mark.native for mark in marks},
        lenient={mark.task.id: mark.lenient for mark in marks if mark.lenient != mark.native},
        wanted=tuple(mark.task.id for mark in marks if mark.wanted),
        machine=dict(machine or {}),
        model_sha256=sha256,
    )


def latency(attempts: Iterable[Attempt]) -> Latency:
    """End-to-end times of the attempts that got an answer."""
    times = [
        (timing.total_ms, timing.first_token_ms, timing.generate_ms, attempt.usage.completion_tokens)
        for attempt in attempts
        if not attempt.error and (timing := attempt.timing).total_ms > 0
    ]
    totals = [total for total, _, _, _ in times]
    firsts = [first for _, first, _, _ in times if first is not None]
    clocked = [(tokens, ms) for _, _, ms, tokens in times if ms]
    seconds = sum(ms for _, ms in clocked) / 1000
    return Latency(
        n=len(times),
        p50_ms=median(totals) if totals else None,
        p95_ms=percentile(totals, 95),
        p99_ms=percentile(totals, 99),
        first_token_p50_ms=median(firsts) if firsts else None,
        tokens_per_s=sum(tokens for tokens, _ in clocked) / seconds if seconds else None,
    )


# -------------------------------------------------------------------------------------------------------------- asking


def _event(part: _Part, verdict: Verdict, running: Counter[str], total: int) -> Event:
    running.update(n=1, ok=int(verdict.ok), selection=int(verdict.selection_ok), parameters=int(verdict.parameters_ok))
    done = running["n"]
    data: dict[str, Json] = {"task": part.last, "suite": part.suite.name, "reason": verdict.reason}
    data |= {name: running[name] / done for name in ("ok", "selection", "parameters")}
    message = f"{running['ok']} of {done} right"
    return Event(step="measure", message=message, done=done, total=total, unit="tasks", data=data)


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
