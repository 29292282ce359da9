"""A set that is made here takes no example twice, none that is a benchmark's, and none of its own held-out side."""

from __future__ import annotations

import pytest

from llm_tuner.data.examples import Example
from llm_tuner.data.overlap import Reference
from llm_tuner.data.sieve import Sieve
from llm_tuner.scoring import gold_attempt
from llm_tuner.types import ExactCalls, Message, Side, Task, ToolCall, ToolSpec

CLOCK = ToolSpec(name="clock", parameters={"type": "object", "properties": {"zone": {"type": "string"}}})
ASKED = "Please tell me what time it is right now in the office in Tokyo, and add the date"


def example(text: str, side: Side = "train", zone: str = "Asia/Tokyo") -> Example:
    expect = ExactCalls(calls=(ToolCall(name="clock", arguments={"zone": zone}),))
    task = Task(messages=(Message(role="user", text=text),), tools=(CLOCK,), expect=expect, split=side)
    return Example(task, gold_attempt(task))


@pytest.mark.parametrize(
    ("second", "stage", "reason"),
    [
        (example(ASKED), "duplicate", "same"),
        (example(ASKED + " too"), "duplicate", "nearly_same"),
        (example("What is the capital of France, and how many people live there?"), "overlap", "bfcl"),
    ],
)
def test_doubles_and_a_benchmark_s_requests_are_refused(second: Example, stage: str, reason: str) -> None:
    sieve = Sieve({"bfcl": [Reference("bfcl:1", "What is the capital of France, and how many people live there?")]})
    assert sieve.sizes == {"bfcl": 1}
    assert sieve.refusal(example(ASKED)) is None
    refused = sieve.refusal(second)
    assert refused is not None
    assert (refused.stage, refused.reason) == (stage, reason)


def test_the_same_request_with_another_call_is_contrast_and_stays() -> None:
    sieve = Sieve()
    assert sieve.refusal(example(ASKED)) is None
    assert sieve.refusal(example(ASKED, zone="UTC")) is None


def test_train_is_held_against_the_held_out_side_and_not_the_other_way_round() -> None:
    sieve = Sieve()
    assert sieve.refusal(example(ASKED, "held-out", "UTC")) is None
    refused = sieve.refusal(example(ASKED + "!"))
    assert refused is not None
    assert (refused.stage, refused.reason) == ("overlap", "held-out")
    assert sieve.refusal(example(ASKED + " again", "held-out")) is None
