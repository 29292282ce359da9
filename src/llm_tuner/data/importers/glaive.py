"""Glaive function calling v2: two texts.

    {"system": "SYSTEM: You are a helpful assistant with access to the following functions ... -\\n{...}",
     "chat": "USER: ...\\n\\n\\nASSISTANT: <functioncall> {\\"name\\": ..., \\"arguments\\": '{...}'}
              <|endoftext|>\\n\\n\\n
              FUNCTION RESPONSE: {...}\\n\\n\\nASSISTANT: ... <|endoftext|>"}

The arguments stand as JSON between single quotes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from llm_tuner.data.examples import Example
from llm_tuner.data.importers.shapes import Row, Unreadable, call_of, parse_json, tool_message, tools_of, turns
from llm_tuner.types import Json, Message

NAME = "glaive"
SOURCE = "glaive-function-calling-v2"

_TURN = re.compile(r"(?:^|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):[ \t]*")
_CALL = "<functioncall>"
_QUOTED = re.compile(r"""^(\{.*"arguments"\s*:\s*)'(.*)'(\s*\}\s*)$""", re.DOTALL)
_END = "<|endoftext|>"


def recognises(row: Row) -> bool:
    return isinstance(row.get("chat"), str) and str(row.get("system", "")).lstrip().startswith("SYSTEM:")


def examples(row: Row, source: str, licence: str) -> Iterator[Example]:
    tools = tools_of(list(_objects(row["system"])))
    yield from turns(_messages(row["chat"]), tools, source=source, licence=licence)


def _messages(chat: str) -> Iterator[Message]:
    pieces = _TURN.split(chat)
    for role, text in zip(pieces[1::2], pieces[2::2], strict=True):
        text = text.replace(_END, "").strip()
        if role == "USER":
            yield Message(role="user", text=text)
        elif role == "FUNCTION RESPONSE":
            yield tool_message(text)
        elif _CALL in text:
            said, _, call = text.partition(_CALL)
            yield Message(role="assistant", text=said.strip(), tool_calls=(call_of(_call(call.strip())),))
        else:
            yield Message(role="assistant", text=text)


def _call(text: str) -> Json:
    quoted = _QUOTED.match(text)
    try:
        if not quoted:
            return parse_json(text)
        inner = quoted.group(2)
        arguments = parse_json(inner if _is_json(inner) else inner.replace("\\'", "'"))
        return parse_json(quoted.group(1) + json.dumps(arguments) + quoted.group(3))
    except ValueError as error:
        raise Unreadable("broken_call", f"a call cannot be read ({error}): {text[:120]}") from None


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def _objects(text: str) -> Iterator[Json]:
    """The JSON objects of the system text, one function each."""
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            raise Unreadable("broken_tool", f"a function cannot be read: {text[at : at + 80]!r}") from None
        yield value
        at = text.find("{", end)
