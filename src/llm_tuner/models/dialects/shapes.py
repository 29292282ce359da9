"""What a JSON value must look like to be a call. The dialects share this; it is no dialect itself.

Accepted: a name under "name" or "function", arguments under "arguments" or "parameters" (an object, or one as a JSON
string), and {"function": {...}} around them. Broken JSON is reported, never repaired: a repaired call would be scored
as something the model did not write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Sequence
from typing import NoReturn

from pydantic_core import to_json

from llm_tuner.types import Json, ToolCall, ToolSpec

NAME_KEYS = ("name", "function")
ARGUMENT_KEYS = ("arguments", "parameters")
CALL_KEYS = frozenset({*NAME_KEYS, *ARGUMENT_KEYS, "type", "id", "index"})

_BETWEEN = re.compile(r"[\s,;]*")
_NAME = re.compile(r"""["'](?:name|function)["']\s*:\s*["']([^"']+)["']""")
_OPENING = re.compile(
    r"""[\s\[{]*["'](?:type["']\s*:\s*["']function["']\s*,\s*["'])?(?:function["']\s*:\s*\{\s*["'])?"""
    r"""(?:name|function)["']\s*:\s*["']([^"']+)["']"""
)


def _not_json(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_not_json)


def names(tools: Sequence[ToolSpec]) -> frozenset[str]:
    """The names on offer."""
    return frozenset(tool.name for tool in tools)


def values_at(text: str, start: int) -> tuple[list[tuple[Json, str]], int]:
    """The JSON objects and arrays that follow each other from `start`, each with its text, and where they end."""
    found: list[tuple[Json, str]] = []
    end = start
    while True:
        at = _after(_BETWEEN, text, end)
        if text[at : at + 1] not in ("{", "["):
            return found, end
        try:
            value, stop = _DECODER.raw_decode(text, at)
            value = printable(value)
        except (ValueError, RecursionError):
            return found, end
        found.append((value, text[at:stop]))
        end = stop


def calls_in(value: Json, raw: str, offered: Container[str] | None) -> list[ToolCall]:
    """The calls that a JSON value stands for. `offered` None: whatever is there is meant as a call."""
    if isinstance(value, list):
        return [call for item in value for call in calls_in(item, raw, offered)]
    inner = value.get("function") if isinstance(value, dict) else None
    shape = inner if isinstance(inner, dict) else value
    name = _name(shape)
    if offered is None and not name:
        return [ToolCall(name="", raw=raw, error="the call has no name")]
    if not name or (offered is not None and (name not in offered or _is_definition(shape))):
        return []
    arguments, error = arguments_of(next((shape[key] for key in ARGUMENT_KEYS if key in shape), None))
    return [ToolCall(name=name, arguments=arguments, raw=raw, error=error)]


def arguments_of(value: Json) -> tuple[dict[str, Json], str]:
    """Arguments and "", or {} and what is wrong with them. Nothing at all means no arguments."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value, parse_constant=_not_json)
        except (ValueError, RecursionError) as e:
            return {}, f"the arguments are no JSON: {e}"
    if value is None or value == "":
        return {}, ""
    if not isinstance(value, dict):
        return {}, f"the arguments are a JSON {type(value).__name__}, not an object"
    try:
        value = printable(value)
        to_json(value)
    except (ValueError, RecursionError):
        return {}, "the arguments are nested too deeply to be kept"
    return value, ""


def printable(value: Json) -> Json:
    """The value with question marks for half characters, which JSON text may hold and our files may not. Raises
    RecursionError for one that is nested too deeply."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.loads(text.encode("utf-8", "replace"))
    return value


def broken(raw: str) -> ToolCall:
    """A call that cannot be read, with the decoder's complaint and the name if one can be made out."""
    raw = raw.strip()
    name = _NAME.search(raw)
    try:
        _DECODER.decode(raw)
        complaint = "it is followed by other text"
    except RecursionError:
        complaint = "nested too deeply"
    except ValueError as e:
        complaint = str(e)
    return ToolCall(name=name.group(1) if name else "", raw=raw, error=f"the call is no JSON: {complaint}")


def opens_call(text: str, start: int) -> str:
    """The name, if the text at `start` opens an object the way a call does, readable or not."""
    match = _OPENING.match(text, start)
    return match.group(1) if match else ""


def _after(pattern: re.Pattern[str], text: str, start: int) -> int:
    match = pattern.match(text, start)
    return match.end() if match else start


def _name(shape: Json) -> str:
    if not isinstance(shape, dict):
        return ""
    return next((shape[key] for key in NAME_KEYS if isinstance(shape.get(key), str)), "")


def _is_definition(shape: dict[str, Json]) -> bool:
    # Small models repeat a tool's definition instead of calling it: it carries a description or a schema.
    schema = shape.get("parameters")
    if isinstance(schema, dict) and schema.get("type") == "object" and "properties" in schema:
        return True
    return not CALL_KEYS.issuperset(shape)
