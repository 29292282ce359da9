"""Calls are held against the schemas of strangers: to the last range, without asking anybody, and in finite time."""

from __future__ import annotations

import time
import urllib.request
from typing import Any

import pytest
from rows import MAIL, asked, call

from llm_tuner.data.examples import piped
from llm_tuner.data.rejections import Rejection
from llm_tuner.data.validity import check_form, schema_fault
from llm_tuner.types import ToolSpec

NODE = {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}}}


def tool(**properties: Any) -> ToolSpec:
    defs = {"node": NODE, "unit": {"enum": ["c", "f"]}}
    return ToolSpec(name="t", parameters={"type": "object", "properties": properties, "required": ["a"], "$defs": defs})


@pytest.mark.parametrize(
    ("schema", "value", "reason"),
    [
        ({"type": "string"}, "x", ""),
        ({"type": "string"}, 1, "wrong_type"),
        ({"type": "integer", "maximum": 5}, 6, "wrong_value"),
        ({"enum": ["a"]}, "b", "wrong_value"),
        ({"$ref": "#/$defs/unit"}, "c", ""),
        ({"$ref": "#/$defs/unit"}, "k", "wrong_value"),
        ({"$ref": "#/$defs/node"}, {"v": 1, "next": {"v": 2, "next": {"v": 3}}}, ""),
        ({"$ref": "#/$defs/node"}, {"v": 1, "next": {"v": "2"}}, "wrong_type"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, None, ""),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, 3, "wrong_type"),
        ({"$ref": "#/$defs/gone"}, 1, "bad_schema"),
        ({"$ref": "http://schemas.example/x.json"}, 1, "bad_schema"),
        ({"type": "strnig"}, "x", "bad_schema"),
        ({"type": "string", "pattern": "["}, "x", "bad_schema"),
        ({"type": "string", "pattern": "^a+$"}, "b", "wrong_value"),
        ({}, object, ""),
    ],
)
def test_a_value(schema: Any, value: Any, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked_somebody(*_: Any, **__: Any) -> None:
        raise AssertionError("a schema made us ask an address")

    monkeypatch.setattr(urllib.request, "urlopen", asked_somebody)
    found = schema_fault(tool(a=schema), {"a": "x" if value is object else value})
    assert (found[0] if found else "") == reason


def test_required_and_undeclared() -> None:
    assert (schema_fault(tool(a={}), {}) or ("",))[0] == "missing_parameter"
    assert (schema_fault(tool(a={}), {"a": 1, "b": 2}) or ("",))[0] == "unexpected_parameter"
    for free in ({}, {"type": "object"}, {"type": "object", "properties": {}, "additionalProperties": True}):
        assert schema_fault(ToolSpec(name="t", parameters=free), {"b": 2}) is None


def test_a_pattern_that_never_ends_is_not_tried() -> None:
    started = time.process_time()
    assert schema_fault(tool(a={"type": "string", "pattern": "^(a+)+$"}), {"a": "a" * 60 + "!"}) is None
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        (asked("x", call("send_mail", to="a")), ""),
        (asked("x", call("send_mail", to="a", copies="two")), "wrong_type"),
        (asked("x", call("send_mail", text="a")), "missing_parameter"),
        (asked("x", call("paint", what="a")), "unknown_tool"),
        (asked("x", call("send_mail", to="a"), tools=(MAIL, MAIL.model_copy(update={"description": "2"}))), "bad_task"),
        (asked("x", reply="no"), ""),
    ],
)
def test_an_example(example: Any, reason: str) -> None:
    (item,) = piped([example], check_form())
    assert (item.reason if isinstance(item, Rejection) else "") == reason
