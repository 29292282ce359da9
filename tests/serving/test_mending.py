"""Calls held against schemas: what is mended loses nothing, what would lose something is left and named."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuner.serving.mending import mend
from llm_tuner.types import ToolCall, ToolSpec

SCHEMA = {
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "lines": {"type": "integer"},
        "ratio": {"type": "number"},
        "deep": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "where": {"type": "object", "properties": {"line": {"type": "integer"}}},
        "mode": {"enum": [1, 2]},
        "either": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    },
    "required": ["path"],
}
TOOLS = (ToolSpec(name="read_file", parameters=SCHEMA), ToolSpec(name="list-files"), ToolSpec(name="git__log"))


def mended(**arguments: Any) -> tuple[dict[str, Any], str]:
    call, _, fault = mend(ToolCall(name="read_file", arguments={"path": "a"} | arguments), TOOLS)
    return {k: v for k, v in call.arguments.items() if k != "path"} or {"path": call.arguments.get("path")}, fault


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"lines": "5"}, {"lines": 5}),
        ({"lines": " 5"}, {"lines": 5}),
        ({"lines": 5.0}, {"lines": 5.0}),  # JSON Schema: 5.0 is an integer
        ({"lines": "5.0"}, {"lines": 5}),
        ({"ratio": "0.25"}, {"ratio": 0.25}),
        ({"deep": "true"}, {"deep": True}),
        ({"deep": "False"}, {"deep": False}),
        ({"tags": '["a", "b"]'}, {"tags": ["a", "b"]}),
        ({"tags": ["a", 1]}, {"tags": ["a", "1"]}),
        ({"where": '{"line": 3}'}, {"where": {"line": 3}}),
        ({"where": {"line": "3"}}, {"where": {"line": 3}}),
        ({"mode": "2"}, {"mode": 2}),
        ({"either": "7"}, {"either": 7}),
        ({"lines": None}, {"path": "a"}),
        ({"path": 12}, {"path": "12"}),
    ],
)
def test_what_says_the_same_is_said_in_the_right_type(written: dict[str, Any], meant: dict[str, Any]) -> None:
    values, fault = mended(**written)
    assert (values, fault) == (meant, "")


@pytest.mark.parametrize(
    ("written", "place"),
    [
        ({"lines": "five"}, "lines"),
        ({"lines": "007"}, "lines"),
        ({"lines": 5.5}, "lines"),
        ({"lines": True}, "lines"),
        ({"deep": "yes"}, "deep"),
        ({"deep": 1}, "deep"),
        ({"tags": "a"}, "tags"),
        ({"path": None}, "path"),
        ({"path": ["a"]}, "path"),
        ({"mode": 3}, "mode"),
    ],
)
def test_what_would_say_something_else_is_left_and_named(written: dict[str, Any], place: str) -> None:
    call = ToolCall(name="read_file", arguments={"path": "a"} | written)
    found = mend(call, TOOLS)
    assert found.call.arguments == call.arguments
    assert f"`{place}`" in found.fault
    assert not found.repairs


def test_every_change_is_told() -> None:
    found = mend(ToolCall(name="Read_File", arguments={"path": "a", "lines": "5", "deep": None}), TOOLS)
    assert found.call.name == "read_file"
    assert [repair.kind for repair in found.repairs] == ["renamed", "coerced", "dropped"] or [
        repair.kind for repair in found.repairs
    ] == ["renamed", "dropped", "coerced"]
    assert found.fault == ""


@pytest.mark.parametrize(
    ("written", "name"), [("list_files", "list-files"), ("log", "git__log"), ("a__read_file", "read_file")]
)
def test_a_name_is_found_by_its_other_spellings(written: str, name: str) -> None:
    assert mend(ToolCall(name=written, arguments={"path": "x"}), TOOLS).call.name == name


def test_an_unknown_name_and_a_broken_call_say_what_is_there() -> None:
    assert "The tools are: read_file" in mend(ToolCall(name="write"), TOOLS).fault
    assert "could not be read" in mend(ToolCall(name="", raw="{", error="no JSON"), TOOLS).fault
    missing = mend(ToolCall(name="read_file"), TOOLS).fault
    assert "'path' is a required property" in missing


def test_a_schema_that_cannot_be_used_does_not_stop_a_call() -> None:
    tool = ToolSpec(name="odd", parameters={"type": "object", "properties": {"x": {"$ref": "https://example.com/x"}}})
    assert mend(ToolCall(name="odd", arguments={"x": 1}), (tool,)).fault == ""
    wrong = ToolSpec(name="odd", parameters={"type": 7})
    assert mend(ToolCall(name="odd", arguments={"x": 1}), (wrong,)).fault == ""


MOVE = ToolSpec(
    name="move",
    parameters={
        "type": "object",
        "properties": {"source": {"type": "string"}, "target": {"type": "string"}, "force": {"type": "boolean"}},
        "required": ["source", "target"],
    },
)
SET = ToolSpec(name="set", parameters={"type": "object", "properties": {"where": {"type": "object"}, "n": {}}})


@pytest.mark.parametrize(
    ("raw", "arguments"),
    [
        ('{"name": "move", "arguments": ["a", "b"]}', {"source": "a", "target": "b"}),
        ('["a", "b", true]', {"source": "a", "target": "b", "force": True}),
        ('[{"source": "a", "target": "b"}]', {"source": "a", "target": "b"}),
        ('["a"]', None),  # one is missing
        ('["a", true, "b"]', None),  # not in this order
        ('["a", "b", true, 1]', None),
        ('[{"from": "a", "to": "b"}]', None),
        ("[]", None),
        ('["a", NaN]', None),
        ("{", None),
    ],
)
def test_arguments_in_a_list_mean_what_alone_fits(raw: str, arguments: dict[str, Any] | None) -> None:
    call, repairs, fault = mend(ToolCall(name="move", raw=raw, error="the arguments are a JSON list"), [MOVE])
    if arguments is None:
        assert fault.startswith("The call could not be read")
        assert repairs == ()
    else:
        assert (call.arguments, call.error, fault) == (arguments, "", "")
        assert [one.kind for one in repairs] == ["coerced"]


def test_a_list_that_can_be_read_in_two_ways_is_left() -> None:
    call = ToolCall(name="set", raw='[{"where": {}}]', error="a list")
    assert mend(call, [SET]).fault
