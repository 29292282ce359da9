"""ToolACE: a system prompt with the tools as JSON, and turns with calls as `[Name(a=1), Other(b="x")]`.

    {"system": "You are an expert in composing functions. ... that you can invoke:\\n[{...}]. \\nShould you decide ...",
     "conversations": [{"from": "user", "value": "..."},
                       {"from": "assistant", "value": "[Get Weather(city=\\"Oslo\\")]"},
                       {"from": "tool", "value": "[{\\"name\\": ..., \\"results\\": {...}}]"}]}

The system prompt says how to write calls, which is the template's business: it is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from llm_tuner.data.examples import Example
from llm_tuner.data.importers.shapes import (
    Row,
    Unreadable,
    parse_json,
    parse_value,
    spelled,
    tool_message,
    tools_of,
    turns,
)
from llm_tuner.types import Json, Message, ToolCall

NAME = "toolace"
SOURCE = "ToolACE"

_INVITES = "functions in JSON format that you can invoke"
_NAME = re.compile(r"[^\[\](){},=\"'\n]+")
_WORDS = {"true": True, "false": False, "null": None, "none": None}


def recognises(row: Row) -> bool:
    return isinstance(row.get("conversations"), list) and _INVITES in str(row.get("system", ""))


def examples(row: Row, source: str, licence: str) -> Iterator[Example]:
    tools = tools_of(_tools(row["system"]))
    yield from turns(_messages(row["conversations"]), tools, source=source, licence=licence)


def _tools(system: str) -> Json:
    at = system.find("[{", system.find(_INVITES))
    if at < 0:
        return []
    try:
        return json.JSONDecoder().raw_decode(system, at)[0]
    except (ValueError, RecursionError) as error:
        raise Unreadable("broken_tool", f"the tools cannot be read: {error}") from None


def _messages(conversation: list[Json]) -> Iterator[Message]:
    made: tuple[ToolCall, ...] = ()
    for turn in conversation:
        who, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if not isinstance(text, str):
            raise Unreadable("broken_message", f"a turn without a text: {str(turn)[:80]}")
        if who == "user":
            yield Message(role="user", text=text)
        elif who == "tool":
            yield from _results(text, len(made))
        elif who == "assistant":
            made = calls(text) if text.lstrip().startswith("[") else ()
            yield Message(role="assistant", text="" if made else text, tool_calls=made)
        else:
            raise Unreadable("broken_message", f"a turn from {who!r}")


def _results(text: str, called: int) -> Iterator[Message]:
    """One message a call where the text is a list of as many results."""
    try:
        value = parse_json(text)
    except ValueError:
        value = None
    if isinstance(value, list) and len(value) == called > 1:
        yield from map(tool_message, value)
    else:
        yield tool_message(text)


def calls(text: str) -> tuple[ToolCall, ...]:
    """`[Name(a=1), Other()]`; a text in brackets that opens no call is none. Raises Unreadable for half a call."""
    text = text.strip()
    made: list[ToolCall] = []
    at = 1
    while True:
        while text[at : at + 1] in (" ", ",", "\n", ";"):
            at += 1
        if text[at : at + 1] in ("]", ""):
            break
        name = _NAME.match(text, at)
        if not name or text[name.end() : name.end() + 1] != "(":
            if made:
                raise Unreadable("broken_call", f"a call cannot be read: {text[at : at + 80]!r}")
            return ()
        at = _closing(text, name.end())
        made.append(ToolCall(name=spelled(name.group()), arguments=_arguments(text[name.end() + 1 : at - 1])))
    return tuple(made)


def _closing(text: str, at: int) -> int:
    """The place after the bracket that closes the one at `at`; brackets in strings do not count."""
    depth, quote = 0, ""
    for place in range(at, len(text)):
        letter = text[place]
        if quote:
            if letter == quote and not _escaped(text, place):
                quote = ""
        elif letter in "\"'":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
            if depth == 0:
                return place + 1
    raise Unreadable("broken_call", f"a call does not end: {text[at - 40 if at > 40 else 0 : at + 40]!r}")


def _escaped(text: str, place: int) -> bool:
    slashes = 0
    while place > slashes and text[place - 1 - slashes] == "\\":
        slashes += 1
    return slashes % 2 == 1


def _arguments(text: str) -> dict[str, Json]:
    out: dict[str, Json] = {}
    for part in _parts(text):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise Unreadable("broken_call", f"an argument without a name: {part[:80]!r}")
        out[name.strip()] = _value(value.strip())
    return out


def _value(text: str) -> Json:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return parse_value(text)
    except ValueError:
        raise Unreadable("broken_call", f"a value cannot be read: {text[:80]!r}") from None


def _parts(text: str) -> list[str]:
    """Split at the commas outside of brackets and strings."""
    parts, at, start = [], 0, 0
    while at < len(text):
        letter = text[at]
        if letter in "([{":
            at = _closing(text, at)
            continue
        if letter in "\"'":
            end = at + 1
            while end < len(text) and (text[end] != letter or _escaped(text, end)):
                end += 1
            at = end
        elif letter == ",":
            parts.append(text[start:at])
            start = at + 1
        at += 1
    return [part for part in (*parts, text[start:]) if part.strip()]
