"""xLAM function calling 60k (APIGen): a query, with tools and answers as JSON texts.

    {"id": 0, "query": "...", "answers": "[{\\"name\\": ..., \\"arguments\\": {...}}]",
     "tools": "[{\\"name\\": ..., \\"description\\": ..., \\"parameters\\": {\\"x\\": {\\"type\\": \\"str, optional\\",
                \\"description\\": ..., \\"default\\": ...}}}]"}

Parameters stand without a schema around them, types are Python's. Required is what is neither "optional" nor has a
default: the set says no more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from llm_tuner.data.examples import Example
from llm_tuner.data.importers.shapes import Row, Unreadable, calls_of, parse_json, tools_of, turns
from llm_tuner.scoring.schema import fits
from llm_tuner.types import Json, Message

NAME = "xlam"
SOURCE = "xlam-function-calling-60k"

_PLAIN = {
    "str": "string", "string": "string", "int": "integer", "integer": "integer", "float": "number", "number": "number",
    "complex": "string", "bool": "boolean", "boolean": "boolean", "list": "array", "array": "array", "tuple": "array",
    "set": "array", "dict": "object", "object": "object", "none": "null",
}  # fmt: skip
_OPTIONAL = re.compile(r",?\s*\boptional\b(?!\[)\.?", re.IGNORECASE)


def recognises(row: Row) -> bool:
    return {"query", "answers", "tools"} <= row.keys()


def examples(row: Row, source: str, licence: str) -> Iterator[Example]:
    tools = [_tool(body) for body in _list(row["tools"], "tools")]
    calls = calls_of(_list(row["answers"], "answers"))
    if not isinstance(row["query"], str):
        raise Unreadable("broken_message", "the query is no text")
    asked = Message(role="user", text=row["query"])
    if not calls:
        raise Unreadable("no_answer", "the answers are empty, and no text says why nothing is called")
    yield from turns(
        (asked, Message(role="assistant", tool_calls=calls)), tools_of(tools), source=source, licence=licence
    )


def schema(kind: str) -> dict[str, Json]:
    """JSON Schema of a Python type as text: "List[int]", "Dict[str, Any]", "Union[int, float]", "Optional[str]"."""
    kind = _OPTIONAL.sub("", kind).strip().strip(".,")
    head, _, rest = kind.partition("[")
    inner = _parts(rest[: rest.rfind("]")]) if rest else []
    head = head.strip().lower().removeprefix("typing.")
    if head in ("optional", "union"):
        options = [schema(part) for part in inner] + ([{"type": "null"}] if head == "optional" else [])
        return options[0] if len(options) == 1 else {"anyOf": options}
    plain = _PLAIN.get(head)
    if plain is None:
        return {}  # Any, Callable and the like: everything is allowed
    if plain == "array" and inner and head != "tuple":
        return {"type": "array", "items": schema(inner[0])}
    return {"type": plain}


def _tool(body: Json) -> Json:
    if not isinstance(body, dict) or not isinstance(body.get("parameters", {}), dict):
        return body
    given = body.get("parameters") or {}
    properties, required = {}, []
    for name, words in given.items():
        words = words if isinstance(words, dict) else {}
        kind = str(words.get("type", ""))
        properties[name] = property_ = {
            **{k: v for k, v in words.items() if k not in ("type", "default")},
            **schema(kind),
        }
        if "default" in words and fits(words["default"], property_, {}):
            property_["default"] = words["default"]
        if "default" not in words and not _OPTIONAL.search(kind) and not kind.lower().startswith("optional["):
            required.append(name)
    parameters: dict[str, Json] = {"type": "object", "properties": properties}
    return {**body, "parameters": parameters | ({"required": required} if required else {})}


def _parts(text: str) -> list[str]:
    """Split at the commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _list(value: Json, what: str) -> list[Json]:
    try:
        value = parse_json(value) if isinstance(value, str) else value
    except ValueError as error:
        raise Unreadable("broken_tool" if what == "tools" else "broken_call", f"{what}: {error}") from None
    if not isinstance(value, list):
        raise Unreadable("broken_tool" if what == "tools" else "broken_call", f"{what} are no list")
    return value
