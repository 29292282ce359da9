"""Measuring: one attempt a task, kept as it comes, resumed, and added up."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llm_tuner.evaluation.attempts import ATTEMPTS, Judged
from llm_tuner.evaluation.measure import latency, measure, measure_all, tally
from llm_tuner.scoring import gold_attempt
from llm_tuner.store.suite import Suite
from llm_tuner.types import (
    GREEDY,
    Attempt,
    Backend,
    ChatOptions,
    DataError,
    EmptyData,
    Event,
    ExactCalls,
    Expectation,
    Message,
    ModelError,
    NoCall,
    Reply,
    Report,
    RuntimeUnavailable,
    Task,
    Timing,
    ToolCall,
    ToolSpec,
    Usage,
)

CLOCK = ToolSpec(name="clock", server="time", parameters={"type": "object", "properties": {"zone": {"type": "string"}}})
FETCH = ToolSpec(name="fetch", server="web")
RIGHT = ToolCall(name="clock", arguments={"zone": "JST"})


def task(text: str, expect: Expectation, tools: tuple[ToolSpec, ...] = (CLOCK, FETCH), **words: Any) -> Task:
    return Task(messages=(Message(role="user", text=text),), tools=tools, expect=expect, **words)


WANTED = ExactCalls(calls=(RIGHT,))
SUITE = Suite(
    name="s",
    tasks=(
        task("right", WANTED, language="en", tags={"seen": "yes"}),
        task("other catalogue", WANTED, (CLOCK,), language="ja", tags={"seen": "no"}),
        task("as text", WANTED, language="ja"),
        task("wrong value", WANTED, category="time", tags={"seen": "no"}),
        task("silent", NoCall(reply="No.")),
        task("talkative", NoCall()),
        task("broken", WANTED),
        task("down", WANTED),
    ),
)


class Scripted:
    """A backend that answers by the request's words, and remembers what it was asked."""

    name = "scripted"

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[str] = []
        self.error = error

    def chat(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), options: ChatOptions = GREEDY) -> Reply:
        text = messages[-1].text
        self.asked.append(text)
        if self.error:
            raise self.error
        if text == "down":
            raise ModelError("the prompt is too long")
        made: dict[str, Message] = {
            "as text": Message(role="assistant", text_calls=(RIGHT,)),
            "wrong value": Message(role="assistant", tool_calls=(ToolCall(name="clock", arguments={"zone": "UTC"}),)),
            "silent": Message(role="assistant", text="No."),
            "broken": Message(role="assistant", tool_calls=(ToolCall(name="clock", error="broken JSON"),)),
        }
        message = made.get(text, Message(role="assistant", tool_calls=(RIGHT,)))
        usage = Usage(prompt_tokens=10, completion_tokens=20)
        return Reply(message=message, usage=usage, timing=Timing(total_ms=100, first_token_ms=10, generate_ms=50))


Result = tuple[Report, Judged]


def run(steps: Generator[Event, None, Result]) -> tuple[Result, list[Event]]:
    events: list[Event] = []
    while True:
        try:
            events.append(next(steps))
        except StopIteration as end:
            return end.value, events


def test_rates_groups_and_events() -> None:
    backend = Scripted()
    (report, attempts), events = run(measure(SUITE, backend, machine={"cpu": "2"}, sha256="ab"))
    counts = {name: (rate.k, rate.n) for name, rate in report.rates.items()}
    assert counts == {
        "ok": (3, 8),
        "native_rate": (4, 6),
        "selection": (3, 6),
        "parameters": (2, 6),
        "parameters_given_selection": (2, 3),
        "selection_lenient": (4, 6),
        "parameters_lenient": (3, 6),
        "no_call": (1, 2),
        "no_call_lenient": (1, 2),
        "ok_lenient": (4, 8),
        "valid_json": (5, 6),
        "schema_valid": (5, 6),
    }
    assert report.reasons == {
        "ok": 3,
        "call_as_text": 1,
        "wrong_value": 1,
        "unwanted_call": 1,
        "broken_call": 1,
        "backend_error": 1,
    }
    assert {k: sorted(v) for k, v in report.groups.items()} == {
        "category": ["time"],
        "language": ["en", "ja"],
        "seen": ["no", "yes"],
        "server": ["time"],
        "tool": ["clock"],
        "tools_offered": ["1", "2"],
    }
    assert report.confusion == {"clock": {"clock": 4, "(broken)": 1, "(no answer)": 1}}
    assert report.tokens.model_dump() == {
        "n": 7,
        "prompt_p50": 10,
        "completion_p50": 20,
        "prompt": 70,
        "cached": 0,
        "completion": 140,
    }
    assert [verdict.reason for verdict in report.lenient.values()] == ["ok"]
    assert report.rules == "strict"
    assert report.groups["language"]["ja"]["selection"].n == 2
    assert (report.n, report.machine, report.model_sha256, report.suite_hash) == (8, {"cpu": "2"}, "ab", SUITE.hash)
    assert [attempt.task_id for attempt in attempts] == [task.id for task in SUITE.tasks]
    assert backend.asked[0] == "other catalogue"  # its one tool is how the other catalogue begins
    assert [event.done for event in events] == list(range(1, 9))
    assert events[0].data["ok"] == 1.0
    assert report.latency.model_dump() == {
        "n": 7,
        "p50_ms": 100,
        "p95_ms": 100,
        "p99_ms": 100,
        "first_token_p50_ms": 10,
        "tokens_per_s": 400,
    }


def test_gold_answers_give_a_perfect_report() -> None:
    report = tally(SUITE, [gold_attempt(task) for task in SUITE.tasks], backend="gold")
    assert {name for name, rate in report.rates.items() if rate.value != 1.0} == set()


def test_attempts_are_kept_and_failed_ones_asked_again(tmp_path: Path) -> None:
    first, _ = run(measure(SUITE, Scripted(), out=tmp_path))
    again = Scripted()
    second, _ = run(measure(SUITE, again, out=tmp_path))
    assert again.asked == ["down"]
    assert second[0] == first[0]


def cut_in_half(data: bytes) -> bytes:
    return data[: len(data) - 40]


def cut_the_newline(data: bytes) -> bytes:
    return data[:-1]


@pytest.mark.parametrize(("damage", "asked"), [(cut_in_half, 2), (cut_the_newline, 1)])
def test_resume_after_a_kill(tmp_path: Path, damage: Callable[[bytes], bytes], asked: int) -> None:
    tasks = SUITE.tasks[:4]
    short = Suite(name="s", tasks=tasks[:3])
    run(measure(short, Scripted(), out=tmp_path))
    path = tmp_path / ATTEMPTS
    path.write_bytes(damage(path.read_bytes()))
    backend = Scripted()
    (report, _), _ = run(measure(Suite(name="s", tasks=tasks), backend, out=tmp_path))
    assert (report.n, len(backend.asked)) == (4, asked)
    assert len(path.read_text(encoding="utf-8").splitlines()) == 4


def test_a_bad_line_in_the_middle_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / ATTEMPTS
    run(measure(SUITE, Scripted(), out=tmp_path))
    good = Attempt(task_id="t", backend="scripted").model_dump_json()
    path.write_text(f"oops\n{good}\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 1"):
        run(measure(SUITE, Scripted(), out=tmp_path))


@pytest.mark.parametrize("other", [{"sha256": "another file"}, {"options": ChatOptions(max_tokens=9)}])
def test_a_name_that_stands_for_another_model_now_does_not_reuse_old_attempts(tmp_path: Path, other: Any) -> None:
    run(measure(SUITE, Scripted(), out=tmp_path, sha256="this file"))
    with pytest.raises(DataError, match="another model or other options"):
        run(measure(SUITE, Scripted(), out=tmp_path, **{"sha256": "this file", **other}))


def test_an_unreachable_backend_ends_the_measurement() -> None:
    backend = Scripted(RuntimeUnavailable("Nothing answers at the address."))
    with pytest.raises(RuntimeUnavailable):
        run(measure(SUITE, backend))
    assert len(backend.asked) == 3


def test_other_errors_do_not_end_it() -> None:
    (report, _), _ = run(measure(SUITE, Scripted(ModelError("too long"))))
    assert report.reasons == {"backend_error": 8}
    assert report.latency.n == 0


def test_a_task_that_stands_twice_is_asked_once() -> None:
    backend = Scripted()
    (report, attempts), _ = run(measure(Suite(name="s", tasks=SUITE.tasks[:1] * 2), backend))
    assert (report.n, len(attempts), len(backend.asked)) == (1, 1, 1)


def test_an_empty_suite_is_an_error() -> None:
    with pytest.raises(EmptyData, match="holds no task"):
        run(measure(Suite(name="none", tasks=()), Scripted()))


def test_latency_of_one_and_of_none() -> None:
    one = Attempt(task_id="t", backend="b", timing=Timing(total_ms=7))
    assert latency([one]).p95_ms == 7
    assert latency([]).p50_ms is None


def test_tags_with_many_values_do_not_group() -> None:
    tasks = tuple(task(str(i), NoCall(), tags={"row": str(i), "half": str(i % 2)}) for i in range(20))
    suite = Suite(name="s", tasks=tasks)
    assert set(tally(suite, [gold_attempt(t) for t in tasks], backend="gold").groups) == {"half"}


# ------------------------------------------------------------------------------------------------- several at a time


class Together(Scripted):
    """Answers only when `wanted` requests are waiting at the same time, and remembers who asked what."""

    def __init__(self, wanted: int) -> None:
        super().__init__()
        self.barrier = threading.Barrier(wanted, timeout=20)
        self.by_thread: dict[int, list[str]] = {}

    def chat(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), options: ChatOptions = GREEDY) -> Reply:
        self.by_thread.setdefault(threading.get_ident(), []).append(messages[-1].text)
        self.barrier.wait()
        return super().chat(messages, tools, options)


def test_several_requests_are_under_way_at_a_time_and_the_report_is_the_same(tmp_path: Path) -> None:
    backend = Together(4)
    together, events = run(measure(SUITE, backend, at_a_time=4, out=tmp_path))
    alone, _ = run(measure(SUITE, Scripted()))
    assert {len(asked) for asked in backend.by_thread.values()} == {2}
    assert together[0] == alone[0].model_copy(update={"machine": {"requests_at_a_time": "4"}})
    assert list(together[1]) == list(alone[1])
    assert [event.done for event in events] == list(range(1, 9))
    again = Scripted()
    assert run(measure(SUITE, again, at_a_time=4, out=tmp_path))[0][0].verdicts == alone[0].verdicts
    assert again.asked == ["down"]


class Branching(Scripted):
    """Forks, and remembers the prompt and the number of each fork; refuses a prompt that is too long."""

    def __init__(self) -> None:
        super().__init__()
        self.forked: list[tuple[str, tuple[str, ...], int]] = []
        self.slots: dict[int, list[str]] = {}

    def fork(self, messages: Sequence[Message], tools: Sequence[ToolSpec], count: int) -> list[Backend]:
        self.forked.append((messages[-1].text, tuple(tool.name for tool in tools), count))
        if messages[-1].text == "down":
            raise ModelError("the prompt is too long")
        return [_Slot(self, number) for number in range(count)]


class _Slot:
    name = "scripted"

    def __init__(self, owner: Branching, number: int) -> None:
        self._owner, self._number = owner, number

    def chat(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), options: ChatOptions = GREEDY) -> Reply:
        self._owner.slots.setdefault(self._number, []).append(messages[-1].text)
        return self._owner.chat(messages, tools, options)


def test_a_backend_that_forks_reads_each_catalogue_once_and_each_slot_is_asked_one_thing_at_a_time() -> None:
    tasks = tuple(task(f"{n} {i}", WANTED, c) for i in range(6) for n, c in enumerate([(CLOCK,), (CLOCK, FETCH)]))
    alone = task("x", WANTED, (FETCH, CLOCK))
    backend = Branching()
    report, _ = run(measure(Suite(name="s", tasks=(*tasks, alone)), backend, at_a_time=4))[0]
    assert (report.n, report.rates["ok"].value) == (13, 1.0)
    assert sorted((tools, count) for _, tools, count in backend.forked) == [(("clock",), 4), (("clock", "fetch"), 4)]
    assert sorted(backend.asked) == sorted([*(t.request for t in tasks), "x"])
    assert sorted(text for asked in backend.slots.values() for text in asked) == sorted(t.request for t in tasks)
    assert set(backend.slots) <= set(range(4))


def test_where_the_first_prompt_of_a_catalogue_cannot_be_read_the_others_are_asked_all_the_same() -> None:
    tasks = tuple(task(text, WANTED, (CLOCK,)) for text in ("down", "one", "two"))
    backend = Branching()
    report, attempts = run(measure(Suite(name="s", tasks=tasks), backend, at_a_time=3))[0]
    assert report.reasons == {"ok": 2, "backend_error": 1}
    assert "too long" in next(iter(attempts)).error


def test_one_catalogue_is_asked_on_one_connection() -> None:
    catalogues = [(CLOCK,), (FETCH,), (CLOCK, FETCH), (FETCH, CLOCK)]
    tasks = tuple(task(f"{n} {i}", WANTED, catalogue) for i in range(6) for n, catalogue in enumerate(catalogues))
    backend = Together(2)
    run(measure(Suite(name="s", tasks=tasks), backend, at_a_time=2))
    for asked in backend.by_thread.values():
        changes = sum(one[0] != other[0] for one, other in pairwise(asked))
        assert (len(asked), changes) == (12, 1)


def test_requests_follow_each_other_by_how_much_of_the_prompt_they_share() -> None:
    others = [ToolSpec(name=name) for name in ("b", "a", "c")]
    catalogues = [(CLOCK, others[0]), (FETCH,), (CLOCK,), (CLOCK, others[1]), (FETCH, others[2])]
    backend = Scripted()
    run(measure(Suite(name="s", tasks=tuple(task(str(i), WANTED, c) for i, c in enumerate(catalogues))), backend))
    assert backend.asked == ["2", "3", "0", "1", "4"]


def test_several_suites_are_one_measurement_with_a_report_each(tmp_path: Path) -> None:
    first, second = Suite(name="a", tasks=SUITE.tasks[:4]), Suite(name="b", tasks=SUITE.tasks[3:])
    outs = [tmp_path / "a", tmp_path / "b"]
    backend = Scripted()
    steps = measure_all((first, second), backend, outs=outs)
    events = []
    while True:
        try:
            events.append(next(steps))
        except StopIteration as end:
            both = end.value
            break
    for suite, (report, attempts), out in zip((first, second), both, outs, strict=True):
        (alone, _), _ = run(measure(suite, Scripted()))
        assert report == alone
        assert [attempt.task_id for attempt in attempts] == [t.id for t in suite.tasks]
        assert len((out / ATTEMPTS).read_text().splitlines()) == len(suite.tasks)
    assert sorted(backend.asked) == sorted(t.request for t in (*first.tasks, *second.tasks))
    assert backend.asked[0] == "other catalogue"
    assert [event.done for event in events] == list(range(1, 10))
    assert {event.data["suite"] for event in events} == {"a", "b"}


def test_our_own_error_in_a_worker_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        run(measure(SUITE, Scripted(ZeroDivisionError()), at_a_time=3))


def test_a_measurement_that_is_closed_asks_no_more() -> None:
    tasks = tuple(task(str(i), WANTED) for i in range(500))
    backend = Scripted()
    steps = measure(Suite(name="s", tasks=tasks), backend, at_a_time=2)
    next(steps)
    steps.close()
    for thread in threading.enumerate():
        if thread.name == "llm-tuner-asking":
            thread.join(timeout=20)
    assert len(backend.asked) <= 1 + 2 + 2  # taken, waiting to be taken, on its way


def test_half_a_character_is_that_answers_error(tmp_path: Path) -> None:
    class Odd(Scripted):
        def chat(
            self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), options: ChatOptions = GREEDY
        ) -> Reply:
            reply = super().chat(messages, tools, options)
            odd = reply.message.model_copy(update={"text": "\ud83d"})
            return reply.model_copy(update={"message": odd}) if messages[-1].text == "right" else reply

    (report, attempts), _ = run(measure(SUITE, Odd(), out=tmp_path))
    assert report.reasons["backend_error"] == 2
    assert "no message" in next(iter(attempts)).error
    assert report.n == 8


class Verbose(Scripted):
    """Writes 20 kB an answer."""

    def chat(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), options: ChatOptions = GREEDY) -> Reply:
        return Reply(message=Message(role="assistant", text="x" * 20_000), timing=Timing(total_ms=1))


def test_what_models_write_is_not_held_in_memory(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        suite = Suite(name="s", tasks=tuple(task(f"{count} {i}", WANTED) for i in range(count)))
        hash(suite.hash)
        tracemalloc.start()
        for step, _ in enumerate(steps := measure(suite, Verbose(), out=tmp_path / str(count))):
            if step == count - 1:
                break
        (_, attempts), _ = run(steps)
        assert sum(len(attempt.messages[0].text) for attempt in attempts) == 20_000 * count
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(200), peak(1200)
    assert (many - few) / 1000 < 8000  # bytes an attempt: its verdicts and its place in the file


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_half_a_character_in_a_server_s_error_is_kept_as_a_question_mark(tmp_path: Path, at_a_time: int) -> None:
    backend = Scripted(ModelError("boom \ud83d"))
    (report, attempts), _ = run(measure(SUITE, backend, out=tmp_path, at_a_time=at_a_time))
    assert report.reasons == {"backend_error": 8}
    assert {attempt.error for attempt in attempts} == {"boom ?"}


def test_an_index_error_of_a_backend_does_not_pass_for_the_end_of_the_work() -> None:
    with pytest.raises(IndexError):
        run(measure(SUITE, Scripted(IndexError("ours")), at_a_time=2))


def test_another_model_of_the_same_name_does_not_go_on_with_a_folder(tmp_path: Path) -> None:
    def measured(served: str) -> None:
        steps = measure_all((SUITE,), Scripted(), outs=(tmp_path,), served=served)
        while next(steps, None) is not None:
            pass

    measured("scripted at one address")
    measured("scripted at one address")
    with pytest.raises(DataError, match="another model"):
        measured("scripted at another address")
