"""Tools in few tokens: a compressed definition, or one typed signature line a tool.

Not a chat template. The rule it protects: whoever trains on a short form and whoever serves it take the very same bytes
from here. All functions are pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from llm_tuner.types import Json, Message, ToolSpec

Rendering = Literal["full", "compressed", "compact"]

PURPOSE_WORDS = 6
"""How much of a description stands behind a signature."""

HEADER = """# Tools

You may call these functions, one signature a line (`?`: may be left out):
"""
FOOTER = """
Return each call as JSON with the function's name and arguments inside tags:
<tool_call>
{"name": <name>, "arguments": <arguments>}
</tool_call>"""

_TYPES = {"string": "str", "integer": "int", "number": "num", "boolean": "bool", "null": "null"}
_DEPTH = 3


def shown(
    messages: Sequence[Message], tools: Sequence[ToolSpec], rendering: str
) -> tuple[tuple[Message, ...], tuple[ToolSpec, ...]]:
    """The conversation and the tools as the chat template is to get them. `compact` puts the catalogue into the system
    message and gives the template no tools at all."""
    if rendering == "compressed":
        return tuple(messages), tuple(map(compressed, tools))
    if rendering != "compact" or not tools:
        return tuple(messages), tuple(tools)
    text = HEADER + catalogue_text(tools) + FOOTER
    if messages and messages[0].role == "system":
        first = messages[0].model_copy(update={"text": f"{messages[0].text}\n\n{text}"})
        return (first, *messages[1:]), ()
    return (Message(role="system", text=text), *messages), ()


def catalogue_text(tools: Sequence[ToolSpec], words: int = PURPOSE_WORDS) -> str:
    """One line a tool, in their order: signature and the first `words` words of its purpose."""
    return "".join(f"{signature(tool)}{_behind(tool, words)}\n" for tool in tools)


def signature(tool: ToolSpec) -> str:
    """`name(required: type, optional?: type=default)`; enumerations as `a|b`, arrays as `[type]`, objects in braces."""
    parameters = tool.parameters
    return f"{tool.name}({_fields(parameters, parameters, 0)})"


def compressed(tool: ToolSpec) -> ToolSpec:
    """The same tool with its first sentence for a description and a schema without descriptions and titles."""
    first = re.split(r"(?<=[.!?])\s", tool.description.strip(), maxsplit=1)[0].splitlines()
    stripped = _without_words(tool.parameters)
    return tool.model_copy(update={"description": first[0] if first else "", "parameters": stripped})


def _behind(tool: ToolSpec, words: int) -> str:
    said = re.split(r"(?<=[.!?])\s", tool.description.strip(), maxsplit=1)[0].split()[:words]
    return f" # {' '.join(said).rstrip('.,;:')}" if said else ""


def _fields(schema: Mapping[str, Json], root: Mapping[str, Json], depth: int) -> str:
    properties = schema.get("properties")
    wanted = schema.get("required")
    needed = wanted if isinstance(wanted, list) else []
    if not isinstance(properties, dict):
        return ""
    return ", ".join(_field(name, inner, name in needed, root, depth) for name, inner in properties.items())


def _field(name: str, schema: Json, needed: bool, root: Mapping[str, Json], depth: int) -> str:
    default = schema.get("default") if isinstance(schema, dict) else None
    said = f"={_literal(default)}" if default not in (None, "", [], {}) else ""
    return f"{name}{'' if needed else '?'}: {_type(schema, root, depth)}{said}"


def _literal(value: Json) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _type(schema: Json, root: Mapping[str, Json], depth: int) -> str:
    if not isinstance(schema, dict) or depth > _DEPTH:
        return "any"
    if "$ref" in schema:
        return _type(_referred(schema["$ref"], root), root, depth + 1)
    if schema.get("enum"):
        return "|".join(map(str, schema["enum"]))
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            parts = [_type(part, root, depth + 1) for part in schema[key]]
            return "|".join(dict.fromkeys(part for part in parts if part != "null")) or "null"
    kind = schema.get("type", "object" if "properties" in schema else "any")
    if isinstance(kind, list):
        return "|".join(_TYPES.get(one, str(one)) for one in kind if one != "null") or "null"
    if kind == "array":
        return f"[{_type(schema.get('items'), root, depth + 1)}]"
    if kind == "object":
        return "{" + _fields(schema, root, depth + 1) + "}" if schema.get("properties") else "obj"
    return _TYPES.get(kind, str(kind))


def _referred(reference: Json, root: Mapping[str, Json]) -> Json:
    found: Json = root
    for part in str(reference).removeprefix("#/").split("/"):
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found


def _without_words(schema: Json, inside_properties: bool = False) -> Json:
    """The schema without `description`, `title` and `$schema`; a property of such a name stays."""
    if isinstance(schema, list):
        return [_without_words(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _without_words(inner, key in ("properties", "$defs", "definitions") and not inside_properties)
        for key, inner in schema.items()
        if inside_properties or key not in ("description", "title", "$schema", "examples")
    }
