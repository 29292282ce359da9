"""Toucan-1.5M: trajectories on real MCP servers, with messages and tools as JSON texts.

    {"uuid": "...", "subset_name": "...", "question": "...", "target_tools": "...",
     "messages": "[{\\"role\\": \\"assistant\\", \\"function_call\\": {\\"name\\": ..., \\"arguments\\": ...}}, ...]",
     "available_tools": "[{\\"type\\": \\"function\\", ...}]"}

The SFT part calls its column `tools` and writes a call as a message of the role `tool_call` whose content is a literal
`{'name': ..., 'arguments': '{...}'}`, a result as `tool_response`. A system message that only declares the tools again
is left out.
"""

from __future__ import annotations

from collections.abc import Iterator

from llm_tuner.data.examples import Example
from llm_tuner.data.importers.shapes import (
    Row,
    Unreadable,
    call_of,
    openai_message,
    parse_json,
    parse_value,
    text_of,
    tool_message,
    tools_of,
    turns,
)
from llm_tuner.types import Json, Message

NAME = "toucan"
SOURCE = "Toucan-1.5M"


def recognises(row: Row) -> bool:
    has_tools = isinstance(row.get("available_tools", row.get("tools")), str)
    return isinstance(row.get("messages"), str) and has_tools and bool({"uuid", "subset_name", "question"} & row.keys())


def examples(row: Row, source: str, licence: str) -> Iterator[Example]:
    try:
        bodies = parse_json(row["messages"])
    except ValueError as error:
        raise Unreadable("broken_message", f"the messages are no JSON: {error}") from None
    if not isinstance(bodies, list):
        raise Unreadable("broken_message", "the messages are no list")
    tools = tools_of(row.get("available_tools", row.get("tools")))
    messages = (message for body in bodies if (message := _message(body)) is not None)
    yield from turns(messages, tools, source=source, licence=licence)


def _message(body: Json) -> Message | None:
    role = body.get("role") if isinstance(body, dict) else None
    if role == "tool_call":
        try:
            value = parse_value(text_of(body.get("content")))
        except ValueError as error:
            raise Unreadable("broken_call", f"a call cannot be read: {error}") from None
        return Message(role="assistant", tool_calls=(call_of(value),))
    if role == "tool_response":
        return tool_message(text_of(body.get("content")))
    if role == "system" and "tool_declare" in text_of(body.get("content")):
        return None
    return openai_message(body)
