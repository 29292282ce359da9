"""Short forms of tools: pure, typed, small."""

from llm_tuner.models.signatures import catalogue_text, compressed, shown, signature
from llm_tuner.types import Message, ToolSpec

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


def test_a_signature_has_names_types_defaults_and_what_may_be_left_out():
    assert signature(TOOL) == "book(room: red|blue, hours?: int=2, who: [{name: str}], title?: str, loud?: bool=false)"
    assert signature(ToolSpec(name="stop")) == "stop()"
    assert signature(ToolSpec(name="odd", parameters={"type": "object"})) == "odd()"


def test_a_schema_that_contains_itself_ends():
    assert signature(LOOP).startswith("loop(node?: {next?:")
    assert len(signature(LOOP)) < 80


def test_one_line_a_tool_with_a_few_words_of_purpose():
    lines = catalogue_text([TOOL, LOOP], words=3).splitlines()
    assert [line.split("(")[0] for line in lines] == ["book", "loop"]
    assert lines[0].endswith(" # Books a room")
    assert catalogue_text([TOOL], words=0).endswith("bool=false)\n")


def test_compressing_keeps_the_schema_and_drops_its_words():
    small = compressed(TOOL)
    assert small.description == "Books a room for a meeting."
    assert small.parameters["required"] == ["room", "who"]
    assert small.parameters["properties"]["title"] == {"anyOf": [{"type": "string"}, {"type": "null"}]}
    assert small.parameters["properties"]["room"] == {"enum": ["red", "blue"]}
    assert "title" not in small.parameters


def test_what_the_template_gets():
    assert shown([ASK], [TOOL], "full") == ((ASK,), (TOOL,))
    assert shown([ASK], [TOOL], "compressed") == ((ASK,), (compressed(TOOL),))
    messages, tools = shown([Message(role="system", text="Be brief."), ASK], [TOOL, LOOP], "compact")
    assert tools == ()
    assert messages[0].text.startswith("Be brief.\n\n")
    assert signature(TOOL) in messages[0].text
    assert messages[1:] == (ASK,)
    assert shown([ASK], [], "compact") == ((ASK,), ())
