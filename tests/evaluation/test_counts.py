"""Schema-valid calls, confused tools, parts of a suite."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuner.evaluation.counts import confusion, fits_schema, offered, schema_valid, servers_of, tools_of
from llm_tuner.types import Attempt, ExactCalls, Message, NoCall, Task, ToolCall, ToolSpec

ZONE = {"type": "object", "properties": {"zone": {"type": "string", "enum": ["JST", "UTC"]}}, "required": ["zone"]}
CLOCK = ToolSpec(name="clock", server="time", parameters=ZONE)
FETCH = ToolSpec(name="fetch", server="web")


def task(*names: str, text: str = "?") -> Task:
    expect = ExactCalls(calls=tuple(ToolCall(name=name) for name in names)) if names else NoCall()
    return Task(messages=(Message(role="user", text=text),), tools=(CLOCK, FETCH), expect=expect)


def answered(*calls: ToolCall, text: bool = False) -> Attempt:
    said = {"text_calls" if text else "tool_calls": calls}
    return Attempt(task_id="t", backend="b", messages=(Message(role="assistant", **said),))


def clock(**arguments: Any) -> ToolCall:
    return ToolCall(name="clock", arguments=arguments)


def test_schema_valid_asks_for_every_call() -> None:
    assert schema_valid(task("clock"), answered(clock(zone="JST")))
    assert schema_valid(task("clock"), answered(clock(zone="JST"), text=True))
    assert not schema_valid(task("clock"), answered())
    assert not schema_valid(task("clock"), answered(clock(zone="JST"), clock(zone="CET")))
    assert not schema_valid(task("clock"), answered(ToolCall(name="gone")))
    assert not schema_valid(task("clock"), answered(ToolCall(name="fetch", error="broken")))


@pytest.mark.parametrize(
    ("schema", "fits"),
    [
        ({"type": "object", "required": ["zone"]}, True),
        ({"type": "object", "properties": {"zone": {"type": "integer"}}}, False),
        ({"type": "object", "additionalProperties": False}, False),
        ({"type": "object", "properties": {"zone": {"$ref": "#/$defs/z"}}, "$defs": {"z": {"const": "JST"}}}, True),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "required": ["other"]}, False),
        ({"$schema": "http://nowhere.example/schema", "required": ["other"]}, False),
        # What is wrong with the schema is not the model's fault, and nothing is fetched.
        ({"type": "dict"}, True),
        ({"properties": {"zone": {"$ref": "http://127.0.0.1:9/schema.json"}}}, True),
        ({"properties": {"zone": {"pattern": "("}}}, True),
        ({"properties": 5}, True),
    ],
)
def test_a_call_against_a_schema(schema: dict[str, Any], fits: bool) -> None:
    assert fits_schema(ToolSpec(name="clock", parameters=schema), clock(zone="JST")) is fits


def test_confusion_counts_tasks_that_want_one_call() -> None:
    one = task("clock")
    pairs = [
        (one, answered(clock(zone="JST"))),
        (one, answered(ToolCall(name="fetch"), text=True)),
        (one, answered(ToolCall(name="invented"))),
        (one, answered()),
        (one, answered(clock(), clock())),
        (one, answered(ToolCall(name="", error="no name"))),
        (one, Attempt(task_id="t", backend="b", error="down")),
        (task("fetch"), answered(ToolCall(name="fetch"))),
        (task("clock", "fetch"), answered(clock())),
        (task(), answered(clock())),
    ]
    counts = confusion(pairs)
    assert list(counts) == ["clock", "fetch"]
    names = ("clock", "fetch", "(unknown)", "(nothing)", "(several)", "(broken)", "(no answer)")
    assert counts["clock"] == dict.fromkeys(names, 1)
    assert counts["fetch"] == {"fetch": 1}


def test_the_parts_of_a_task() -> None:
    both = task("clock", "fetch", "clock")
    assert tools_of(both) == ("clock", "fetch")
    assert servers_of(both) == "time+web"
    assert (tools_of(task()), servers_of(task())) == ((), "")


def offering(count: int) -> Task:
    tools = tuple(ToolSpec(name=f"t{i}") for i in range(count))
    return Task(messages=(), tools=tools, expect=NoCall())


def test_numbers_of_tools_become_ranges_where_there_are_many() -> None:
    assert offered([offering(n) for n in (3, 70, 3)]) == {3: "3", 70: "70"}
    many = offered([offering(n) for n in range(20)])
    assert [many[n] for n in (0, 1, 2, 3, 4, 7, 8, 15, 16, 19)] == [
        "0", "1", "2-3", "2-3", "4-7", "4-7", "8-15", "8-15", "16-31", "16-31",
    ]  # fmt: skip
    assert offered([offering(n) for n in (*range(20), 200)])[200] == "128+"
