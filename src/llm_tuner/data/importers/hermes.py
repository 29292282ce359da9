"""Hermes function calling v1: ChatML turns with <tools>, <tool_call> and <tool_response>.

    {"conversations": [{"from": "system", "value": "... <tools> [{...}] </tools> ..."},
                       {"from": "human", "value": "..."},
                       {"from": "gpt", "value": "<tool_call>\\n{'arguments': {...}, 'name': '...'}\\n</tool_call>"},
                       {"from": "tool", "value": "<tool_response>\\n{...}\\n</tool_response>"}],
     "tools": "[{...}]", "category": "...", "task": "..."}

Calls and tools are JSON or Python literals. The system prompt says how to write calls: it is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from llm_tuner.data.examples import Example
from llm_tuner.data.importers.shapes import Row, Unreadable, call_of, parse_value, tool_message, tools_of, turns
from llm_tuner.types import Json, Message, ToolCall

NAME = "hermes"
SOURCE = "hermes-function-calling-v1"

_TOOLS = re.compile(r"<tools>\s*(.*?)\s*</tools>", re.DOTALL)
_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_RESPONSE = re.compile(r"<tool_response>\s*(.*?)\s*</tool_response>", re.DOTALL)
_THOUGHT = re.compile(r"<(think|scratch_pad)>.*?</\1>", re.DOTALL)


def recognises(row: Row) -> bool:
    conversation = row.get("conversations")
    if not isinstance(conversation, list) or not conversation or not isinstance(conversation[0], dict):
        return False
    opening = str(conversation[0].get("value", ""))
    return conversation[0].get("from") == "system" and ("<tools>" in opening or isinstance(row.get("tools"), str))


def examples(row: Row, source: str, licence: str) -> Iterator[Example]:
    conversation = row["conversations"]
    tools = tools_of(_tools(row.get("tools"), str(conversation[0].get("value"))))
    messages = (message for turn in conversation[1:] for message in _messages(turn))
    yield from turns(messages, tools, source=source, licence=licence)


def _tools(column: Json, system: str) -> Json:
    if isinstance(column, str) and column.strip() not in ("", "[]", "null"):
        return column
    found = [text for text in _TOOLS.findall(system) if text.startswith(("[", "{"))]
    if not found:
        return []
    text = found[0]
    try:
        value = parse_value(text)
    except ValueError:  # one object a line
        value = [parse_line(line) for line in text.splitlines() if line.strip()]
    return value if isinstance(value, list) else [value]


def parse_line(line: str) -> Json:
    try:
        return parse_value(line)
    except ValueError as error:
        raise Unreadable("broken_tool", f"the tools cannot be read: {error}") from None


def _messages(turn: Json) -> Iterator[Message]:
    who, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
    if not isinstance(text, str):
        raise Unreadable("broken_message", f"a turn without a text: {str(turn)[:80]}")
    if who in ("human", "user"):
        yield Message(role="user", text=text)
    elif who == "tool":
        yield from (tool_message(body) for body in _RESPONSE.findall(text) or [text.strip()])
    elif who in ("gpt", "assistant"):
        calls = tuple(_call(body) for body in _CALL.findall(text))
        if not calls and "<tool_call>" in text:
            raise Unreadable("broken_call", f"a call does not end: {text[:80]!r}")
        yield Message(role="assistant", text=_THOUGHT.sub("", _CALL.sub("", text)).strip(), tool_calls=calls)
    elif who == "system":
        yield Message(role="system", text=text)
    else:
        raise Unreadable("broken_message", f"a turn from {who!r}")


def _call(text: str) -> ToolCall:
    try:
        return call_of(parse_value(text))
    except Unreadable:
        raise
    except ValueError as error:
        raise Unreadable("broken_call", f"a call cannot be read: {error}") from None
