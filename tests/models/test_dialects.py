"""One table for all dialects: what a model wrote -> the calls it made. Add a row to add a case."""

from __future__ import annotations

import json

import pytest

from llm_tuner.models import dialects
from llm_tuner.models.dialects import bare_json, fenced_json, tool_call_tags
from llm_tuner.types import Message, ToolCall, ToolSpec

TOOLS = tuple(ToolSpec(name=name) for name in ("get_weather", "write_file", "list_all"))

TOKYO = ("get_weather", {"city": "東京"})
PARIS = ("get_weather", {"city": "Paris"})
NESTED = ("write_file", {"path": "a.json", "content": {"a": {"b": [1, {"c": "}"}]}}})


def j(call: tuple[str, dict[str, object]], name: str = "name", arguments: str = "arguments") -> str:
    return json.dumps({name: call[0], arguments: call[1]}, ensure_ascii=False)


DEFINITION = json.dumps(
    {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
)

# id, text, the dialect that reads it, calls as (name, arguments); an error stands as (name, what its message contains)
ROWS = [
    ("tags", f"<tool_call>\n{j(TOKYO)}\n</tool_call>", tool_call_tags, [TOKYO]),
    (
        "tags, two blocks and prose",
        f"はい、調べます。\n<tool_call>\n{j(TOKYO)}\n</tool_call>\nand\n<tool_call>{j(PARIS)}</tool_call> done",
        tool_call_tags,
        [TOKYO, PARIS],
    ),
    (
        "tags, two calls in a block",
        f"<tool_call>\n{j(TOKYO)}\n{j(PARIS)}\n</tool_call>",
        tool_call_tags,
        [TOKYO, PARIS],
    ),
    ("tags, an array in a block", f"<tool_call>[{j(TOKYO)}, {j(PARIS)}]</tool_call>", tool_call_tags, [TOKYO, PARIS]),
    (
        "tags, last one open",
        f"<tool_call>{j(TOKYO)}</tool_call><tool_call>\n{j(PARIS)}",
        tool_call_tags,
        [TOKYO, PARIS],
    ),
    ("tags, none closed", f"<tool_call>\n{j(TOKYO)}\n<tool_call>\n{j(PARIS)}", tool_call_tags, [TOKYO, PARIS]),
    ("tags, a fence inside", f"<tool_call>\n```json\n{j(TOKYO)}\n```\n</tool_call>", tool_call_tags, [TOKYO]),
    (
        "tags, the closing tag in an argument",
        '<tool_call>{"name": "write_file", "arguments": {"content": "</tool_call>"}}</tool_call>',
        tool_call_tags,
        [("write_file", {"content": "</tool_call>"})],
    ),
    (
        "tags, a name not offered",
        '<tool_call>{"name": "Joke", "arguments": {}}</tool_call>',
        tool_call_tags,
        [("Joke", {})],
    ),
    ("tags, no name", '<tool_call>{"city": "東京"}</tool_call>', tool_call_tags, [("", "no name")]),
    (
        "tags, cut off",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "東',
        tool_call_tags,
        [("get_weather", "no JSON")],
    ),
    (
        "tags, one good and one broken",
        f"<tool_call>{j(TOKYO)}</tool_call><tool_call>{{'name': 'get_weather'}}</tool_call>",
        tool_call_tags,
        [TOKYO, ("get_weather", "no JSON")],
    ),
    ("tags, doubled braces", "<tool_call>{{}}</tool_call>", tool_call_tags, [("", "no JSON")]),
    ("tags, nothing inside", "<tool_call></tool_call>", tool_call_tags, [("", "no JSON")]),
    ("fence", f"```json\n{j(TOKYO)}\n```", fenced_json, [TOKYO]),
    ("fence, prose around", f"東京の天気ですね。\n```json\n{j(TOKYO)}\n```\nお待ちください。", fenced_json, [TOKYO]),
    ("fence, array", f"```json\n[{j(TOKYO)},\n{j(PARIS)}]\n```", fenced_json, [TOKYO, PARIS]),
    ("fence, two objects", f"```json\n{j(TOKYO)}\n{j(PARIS)}\n```", fenced_json, [TOKYO, PARIS]),
    ("fence, two fences", f"```json\n{j(TOKYO)}\n```\nthen\n```\n{j(PARIS)}\n```", fenced_json, [TOKYO, PARIS]),
    ("fence, open", f"```json\n{j(TOKYO)}", fenced_json, [TOKYO]),
    ("fence, nested braces", f"```json\n{j(NESTED)}\n```", fenced_json, [NESTED]),
    (
        "fence, a fence in an argument",
        '```json\n{"name": "write_file", "arguments": {"content": "```py\\nx\\n```"}}\n```',
        fenced_json,
        [("write_file", {"content": "```py\nx\n```"})],
    ),
    (
        "fence, one of two offered",
        f'```json\n[{{"name": "Joke", "arguments": {{}}}}, {j(TOKYO)}]\n```',
        fenced_json,
        [TOKYO],
    ),
    (
        "fence, trailing comma",
        '```json\n{"name": "get_weather", "arguments": {"city": "東京",}}\n```',
        fenced_json,
        [("get_weather", "no JSON")],
    ),
    ("fence, not a call", '```json\n{"temperature": 21}\n```', None, []),
    ("fence, not offered", '```json\n{"name": "Joke", "arguments": {"about": "cats"}}\n```', None, []),
    ("fence, broken and not offered", '```json\n{"name": "Joke", "arguments": \n```', None, []),
    ("fence, the definition again", f"```json\n{DEFINITION}\n```", None, []),
    ("fence, code", "```python\nprint({'a': 1})\n```", None, []),
    ("bare", j(TOKYO), bare_json, [TOKYO]),
    ("bare, tail", f"I will look it up: {j(TOKYO)}\n", bare_json, [TOKYO]),
    ("bare, head", f"{j(TOKYO)}\n\nThis asks for the weather in Tokyo.", bare_json, [TOKYO]),
    ("bare, in the middle of prose", f"One could send {j(TOKYO)} but there is no need.", None, []),
    ("bare, lines", f"{j(TOKYO)}\n{j(PARIS)}", bare_json, [TOKYO, PARIS]),
    ("bare, commas", f"{j(TOKYO)}, {j(PARIS)}", bare_json, [TOKYO, PARIS]),
    ("bare, array", f"[{j(TOKYO)}, {j(PARIS)}]", bare_json, [TOKYO, PARIS]),
    ("bare, nested braces", f"はい {j(NESTED)}", bare_json, [NESTED]),
    ("bare, other braces before", f"The set {{1, 2}} is small. {j(TOKYO)}", bare_json, [TOKYO]),
    ("bare, a tag never opened", f"{j(TOKYO)}\n</tool_call>", bare_json, [TOKYO]),
    ("bare, parameters", j(TOKYO, arguments="parameters"), bare_json, [TOKYO]),
    ("bare, function", j(TOKYO, name="function"), bare_json, [TOKYO]),
    ("bare, wrapped", f'{{"type": "function", "function": {j(TOKYO)}}}', bare_json, [TOKYO]),
    (
        "bare, arguments as a string",
        json.dumps({"name": "get_weather", "arguments": '{"city": "東京"}'}, ensure_ascii=False),
        bare_json,
        [TOKYO],
    ),
    (
        "bare, broken arguments as a string",
        '{"name": "get_weather", "arguments": "{city: 1"}',
        bare_json,
        [("get_weather", "arguments are no JSON")],
    ),
    (
        "bare, arguments as a list",
        '{"name": "get_weather", "arguments": ["東京"]}',
        bare_json,
        [("get_weather", "not an object")],
    ),
    ("bare, no arguments", '{"name": "list_all"}', bare_json, [("list_all", {})]),
    ("bare, null arguments", '{"name": "list_all", "arguments": null}', bare_json, [("list_all", {})]),
    ("bare, cut off", '{"name": "get_weather", "arguments": {"city"', bare_json, [("get_weather", "no JSON")]),
    (
        "bare, one good and one cut off",
        f'{j(TOKYO)}\n{{"name": "get_weather", "arguments": {{',
        bare_json,
        [TOKYO, ("get_weather", "no JSON")],
    ),
    (
        "bare, Python words",
        '{"name": "get_weather", "arguments": {"city": None}}',
        bare_json,
        [("get_weather", "no JSON")],
    ),
    (
        "bare, NaN is no JSON",
        '{"name": "get_weather", "arguments": {"city": NaN}}',
        bare_json,
        [("get_weather", "no JSON")],
    ),
    (
        "bare, cut off around an offered name",
        '{"name": "Joke", "arguments": {"name": "get_weather"}',
        None,
        [],
    ),
    ("bare, not offered", '{"name": "Joke", "arguments": {"about": "cats"}}', None, []),
    ("bare, data with an offered name", '{"name": "get_weather", "age": 3}', None, []),
    ("bare, the definition again", DEFINITION, None, []),
    ("prose", "今日は晴れです。{笑}", None, []),
    ("deep nesting", "[" * 100_000, None, []),
    ("empty", "", None, []),
]


@pytest.mark.parametrize(("text", "dialect", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_reading(text, dialect, expected):
    read = dialects.read(Message(role="assistant", text=text), TOOLS)
    assert read.text == text
    assert read.tool_calls == ()
    assert len(read.text_calls) == len(expected)
    for call, (name, value) in zip(read.text_calls, expected, strict=True):
        assert call.name == name
        if isinstance(value, str):
            assert value in call.error
            assert call.arguments == {}
        else:
            assert (call.arguments, call.error) == (value, "")
        assert call.raw in text
    if dialect is not None:
        assert dialect.parse(text, TOOLS) == read.text_calls


def test_every_dialect_has_the_same_three_names():
    for dialect in dialects.DIALECTS:
        assert isinstance(dialect.START, str)
        assert isinstance(dialect.END, str)
        assert dialect.parse("", TOOLS) == ()


def test_what_the_runtime_surfaced_is_left_alone():
    native = Message(role="assistant", text=j(PARIS), tool_calls=(ToolCall(name="get_weather"),))
    assert dialects.read(native, TOOLS) is native


def test_only_what_the_model_wrote_is_read():
    asked = Message(role="user", text=j(PARIS))
    assert dialects.read(asked, TOOLS) is asked
