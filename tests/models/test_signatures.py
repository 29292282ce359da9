"""Short forms of tools: pure, typed, small, and accepting what the tools themselves accept."""

import json
import random
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from llm_tuner.data.schema_values import Unfillable, by_schema
from llm_tuner.models.signatures import (
    MOST_NODES,
    catalogue_text,
    compressed,
    inlined,
    shown,
    signature,
)
from llm_tuner.types import Message, ToolSpec, canonical_json

HUB = [
    ToolSpec.model_validate(tool)
    for tool in json.loads((Path(__file__).parents[2] / "examples" / "hub-8" / "tools.json").read_text("utf-8"))
]

ASK = Message(role="user", text="hi")
TOOL = ToolSpec(
    name="book",
    description="Books a room for a meeting. Needs the room's name.\nMore.",
    parameters={
        "type": "object",
        "title": "Book",
        "$defs": {"who": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}},
        "properties": {
            "room": {"enum": ["red", "blue"], "description": "which"},
            "hours": {"type": "integer", "default": 2},
            "who": {"type": "array", "items": {"$ref": "#/$defs/who"}},
            "title": {"anyOf": [{"type": "string"}, {"type": "null"}], "title": "Title"},
            "loud": {"type": ["boolean", "null"], "default": False},
        },
        "required": ["room", "who"],
    },
)
LOOP = ToolSpec(
    name="loop",
    parameters={
        "type": "object",
        "properties": {"node": {"$ref": "#/$defs/n"}},
        "$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}},
    },
)


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"x": schema}}
    return schema


def test_a_signature_has_names_types_defaults_and_what_may_be_left_out():
    assert signature(TOOL) == "book(room: red|blue, hours?: int=2, who: [{name: str}], title?: str, loud?: bool=false)"
    assert signature(ToolSpec(name="stop")) == "stop()"
    assert signature(ToolSpec(name="odd", parameters={"type": "object"})) == "odd()"


def test_a_schema_that_contains_itself_ends():
    assert signature(LOOP).startswith("loop(node?: {next?:")
    assert len(signature(LOOP)) < 80


def test_one_line_a_tool_with_a_few_words_that_its_names_do_not_say():
    lines = catalogue_text([TOOL, LOOP], words=3).splitlines()
    assert [line.split("(")[0] for line in lines] == ["book", "loop"]
    assert lines[0].endswith(" # meeting")  # books, a, room, for: its name, its parameters, fillers
    assert catalogue_text([TOOL], words=0).endswith("bool=false)\n")


@pytest.mark.parametrize(
    ("name", "description", "said"),
    [
        ("git_reset", "Unstages all staged changes", "Unstages staged changes"),
        ("createUser", "Create a new user (e.g. an admin) in the tenant. Slow.", "admin tenant"),
        ("search", "カレンダーの予定を検索します。遅いです。", "カレンダーの予定を検索します"),
        ("search", "", ""),
        ("search", "   \n\n ", ""),
        ("list_issues", "List the issues.", ""),
    ],
)
def test_what_stands_behind_a_signature(name, description, said):
    line = catalogue_text([ToolSpec(name=name, description=description)])
    assert line == f"{name}()" + (f" # {said}" if said else "") + "\n"


def test_compressing_keeps_the_schema_and_drops_its_words():
    small = compressed(TOOL)
    assert small.description == "Books a room for a meeting."
    assert small.parameters == {
        "type": "object",
        "properties": {
            "room": {"enum": ["red", "blue"]},
            "hours": {"type": "integer", "default": 2},
            "who": {
                "type": "array",
                "items": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
            },
            "title": {"type": "string"},
            "loud": {"type": "boolean", "default": False},
        },
        "required": ["room", "who"],
    }


def test_a_description_stays_where_it_shows_what_a_value_looks_like():
    def of(**descriptions):
        properties = {name: {"type": "string", "description": text} for name, text in descriptions.items()}
        small = compressed(ToolSpec(name="convert_time", parameters={"type": "object", "properties": properties}))
        return {name: inner.get("description") for name, inner in small.parameters["properties"].items()}

    assert of(
        time="Time to convert in 24-hour format (HH:MM). Nothing else is read.",
        owner="The owner of the repository",  # mere words
        since="Start, e.g. '2024-01-15'",
        until="Start, e.g. '2024-01-15'",  # told already
        when="ISO 8601 形式。例: 2024-01-15",
    ) == {
        "time": "Time to convert in 24-hour format (HH:MM)",
        "owner": None,
        "since": "Start, e.g. '2024-01-15'",
        "until": None,
        "when": "ISO 8601 形式",
    }
    assert of(zone="IANA " + "name " * 60)["zone"].endswith("name…")


def test_what_may_be_left_out_need_not_be_null_and_what_is_needed_may():
    text = {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}
    schema = {"type": "object", "properties": {"a": text, "b": text}, "required": ["b"]}
    assert compressed(ToolSpec(name="t", parameters=schema)).parameters["properties"] == {
        "a": {"type": "string"},
        "b": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    }


def test_a_property_may_have_the_name_of_a_keyword():
    names = ["title", "description", "$ref", "$defs", "required", "default", "type", "properties", "enum"]
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names}
    tool = ToolSpec(name="t", parameters=schema)
    assert compressed(tool).parameters == schema
    assert signature(tool) == f"t({', '.join(f'{name}: str' for name in names)})"


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/nowhere"},
        {"$ref": "https://example.org/schema.json"},
        {"$ref": 7},
        {"properties": {"a": {"$ref": "#/properties/a"}}},
        {"properties": {"a": {"$ref": "#/properties/b"}, "b": {"$ref": "#/properties/a"}}},
        {"properties": None, "required": "a", "type": ["object", None]},
        {"properties": {"a": None, "b": True, "c": [], "d": {"type": 3, "items": 4, "enum": "x", "anyOf": {}}}},
        {"properties": {"a": {"type": "array"}, "b": {"anyOf": []}, "c": {"anyOf": [None]}}},
        nested(300),
    ],
)
def test_schemas_that_make_no_sense_end_in_some_line(schema):
    tool = ToolSpec(name="t", description="x", parameters=schema)
    assert signature(tool).startswith("t(")
    json.dumps(compressed(tool).parameters)


def test_references_that_multiply_end():
    defs = {f"d{n}": {"type": "object", "properties": {f"p{i}": {"$ref": f"#/$defs/d{n + 1}"} for i in range(9)}}
            for n in range(12)}  # fmt: skip
    tool = ToolSpec(name="t", parameters={"type": "object", "properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": defs})
    assert len(signature(tool)) < 200_000
    assert len(canonical_json(inlined(tool.parameters))) < 100 * MOST_NODES


def test_a_schema_of_a_megabyte_is_cut_where_it_is_deep_and_keeps_its_names():
    wide = {f"parameter_{n}": {"type": "string", "description": "x" * 1000} for n in range(1000)}
    line = signature(ToolSpec(name="t", parameters={"type": "object", "properties": wide}))
    assert line.count(":") == 1000


def test_no_short_form_depends_on_the_order_of_a_schemas_keys_where_it_says_the_same():
    again = TOOL.model_copy(update={"parameters": dict(reversed(TOOL.parameters.items()))})
    assert signature(again) == signature(TOOL)


@pytest.mark.parametrize("tool", HUB, ids=lambda tool: tool.name)
def test_what_a_hubs_tool_accepts_its_compressed_form_accepts(tool):
    rng, small = random.Random(tool.name), compressed(tool)
    own, short = Draft202012Validator(tool.parameters), Draft202012Validator(small.parameters)
    assert len(canonical_json(small.openai())) <= len(canonical_json(tool.openai()))
    assert "$ref" not in canonical_json(small.parameters)
    for _ in range(20):
        try:
            arguments = by_schema({**tool.parameters, "required": list(tool.parameters["properties"])}, "train", rng)
        except Unfillable:
            return
        arguments = {name: value for name, value in arguments.items() if value is not None}
        own.validate(arguments)
        short.validate(arguments)


def test_a_hubs_signatures_name_every_parameter_and_value():
    for tool in HUB:
        line = signature(tool)
        for name, inner in tool.parameters.get("properties", {}).items():
            assert f"{name}{'' if name in tool.parameters.get('required', ()) else '?'}:" in line
            for value in inner.get("enum", ()):
                assert value in line


def test_what_the_template_gets():
    assert shown([ASK], [TOOL], "full") == ((ASK,), (TOOL,))
    assert shown([ASK], [TOOL], "compressed") == ((ASK,), (compressed(TOOL),))
    messages, tools = shown([Message(role="system", text="Be brief."), ASK], [TOOL, LOOP], "compact")
    assert tools == ()
    assert messages[0].text.startswith("Be brief.\n\n")
    assert signature(TOOL) in messages[0].text
    assert messages[1:] == (ASK,)
    assert shown([ASK], [], "compact") == ((ASK,), ())
