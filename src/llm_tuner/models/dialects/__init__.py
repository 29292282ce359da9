"""Dialects: the ways models write calls as text. Each is a module with `START`, `END` and `parse(text, tools)`.

A dialect reads what the runtime surfaced as plain text, so that one can tell "the model did not call" from "the stack
did not see the call". It never changes what the runtime surfaced and never repairs JSON.
"""

from __future__ import annotations

from collections.abc import Sequence

from llm_tuner.models.dialects import bare_json, fenced_json, tool_call_tags
from llm_tuner.types import Message, ToolSpec

DIALECTS = (tool_call_tags, fenced_json, bare_json)
"""In reading order, the most explicit first. The first that finds a call decides."""


def read(message: Message, tools: Sequence[ToolSpec]) -> Message:
    """The message with `text_calls` filled by the first dialect that finds any; as it was where the runtime surfaced
    calls itself."""
    if message.role != "assistant" or message.tool_calls or not message.text:
        return message
    for dialect in DIALECTS:
        if calls := dialect.parse(message.text, tools):
            return message.model_copy(update={"text_calls": calls})
    return message


__all__ = ["DIALECTS", "bare_json", "fenced_json", "read", "tool_call_tags"]
