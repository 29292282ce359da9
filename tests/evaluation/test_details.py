"""The attempts on a page: everything a reader needs, in a size that a page can hold, with what was left out counted."""

from __future__ import annotations

import pytest

from llm_tuner.evaluation.details import cut, details, entry, histogram
from llm_tuner.scoring import score
from llm_tuner.types import (
    Attempt,
    ExactCalls,
    Message,
    Task,
    Timing,
    ToolCall,
    ToolResult,
    ToolSpec,
    Usage,
)

CLOCK = ToolSpec(name="clock")
WANTED = ExactCalls(calls=(ToolCall(name="clock", arguments={"zone": "JST"}),))


def task(text: str) -> Task:
    return Task(messages=(Message(role="user", text=text),), tools=(CLOCK,), expect=WANTED)


def tried(one: Task, *calls: ToolCall, text: str = "", ms: float = 100) -> Attempt:
    message = Message(role="assistant", text=text, tool_calls=calls)
    usage = Usage(prompt_tokens=7, completion_tokens=3)
    attempt = Attempt(task_id=one.id, backend="b", messages=(message,), timing=Timing(total_ms=ms), usage=usage)
    return attempt.model_copy(update={"verdict": score(one, attempt)})


def test_an_entry_shows_the_whole_conversation_and_the_raw_answer() -> None:
    history = (
        Message(role="system", text="Be brief."),
        Message(role="user", text="Time?"),
        Message(role="assistant", tool_calls=(ToolCall(name="clock", arguments={"zone": "GMT"}, id="1"),)),
        Message(role="tool", result=ToolResult(call_id="1", content="00:00")),
        Message(role="user", text="And in Tokyo?"),
    )
    one = Task(messages=history, tools=(CLOCK,), expect=WANTED, tags={"id": "tokyo"})
    made = entry(one, tried(one, ToolCall(name="clock", arguments={}, raw='{"zone": ', error="cut off"), text="Wait."))
    assert [(turn.role, turn.text) for turn in made.turns] == [
        ("system", "Be brief."),
        ("user", "Time?"),
        ("assistant", 'clock({"zone": "GMT"})'),
        ("tool", "00:00"),
        ("user", "And in Tokyo?"),
    ]
    assert (made.request, made.name, made.expected) == ("And in Tokyo?", "tokyo", 'clock({"zone": "JST"})')
    assert made.output == 'Wait.\nclock {"zone": '
    assert (made.ok, made.reason, made.ms, made.prompt_tokens, made.completion_tokens) == (
        False,
        "broken_call",
        100,
        7,
        3,
    )


def test_attempts_stand_by_reason_and_failed_ones_come_first() -> None:
    tasks = [task(str(i)) for i in range(6)]
    right = ToolCall(name="clock", arguments={"zone": "JST"})
    wrong = ToolCall(name="clock", arguments={"zone": "UTC"})
    attempts = [tried(one, *([right] if i < 3 else [wrong] if i < 5 else [])) for i, one in enumerate(tasks)]
    found = details(tasks, attempts)
    assert [(section.reason, section.n, len(section.shown)) for section in found.sections] == [
        ("wrong_value", 2, 2),
        ("no_call", 1, 1),
        ("ok", 3, 3),
    ]
    assert found.left_out == 0
    small = details(tasks, attempts, room=500)
    assert [len(section.shown) for section in small.sections] == [1, 1, 0]
    assert small.left_out == 4


def test_attempts_without_verdict_or_task_are_not_shown() -> None:
    one = task("a")
    assert details([one], [Attempt(task_id=one.id, backend="b")]).sections == ()
    assert details([], [tried(one)]).sections == ()


def test_long_texts_are_cut_and_say_so() -> None:
    assert cut("x" * 10, 4) == "xxxx [… 6 more characters]"
    one = task("x" * 9000)
    made = entry(one, tried(one, text="y" * 9000))
    assert "[… 5000 more characters]" in made.output
    assert made.size < 10_000


def test_the_histogram_counts_every_attempt_once() -> None:
    bars = histogram([10, 20, 40, 10_000], bars=3)
    assert [bar.n for bar in bars] == [3, 0, 1]
    assert bars[0].low == pytest.approx(10)
    assert bars[-1].high == pytest.approx(10_000)
    assert bars[1].low == pytest.approx(100)
    assert histogram([5, 5]) == ()
    assert histogram([]) == ()
