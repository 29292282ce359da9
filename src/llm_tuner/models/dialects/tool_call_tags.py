"""Calls between `<tool_call>` and `</tool_call>` (Qwen, Hermes): one or more in a block, the last block may be open.

The tags say that a call is meant, so every name counts, offered or not, and what cannot be read is a broken call.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llm_tuner.models.dialects.shapes import broken, calls_in, values_at
from llm_tuner.types import ToolCall, ToolSpec

START = "<tool_call>"
END = "</tool_call>"

_FENCE = re.compile(r"\s*```\w*\s*")


def parse(text: str, tools: Sequence[ToolSpec]) -> tuple[ToolCall, ...]:
    """The calls of every block, in order."""
    calls: list[ToolCall] = []
    at = text.find(START)
    while at >= 0:
        block = at + len(START)
        fence = _FENCE.match(text, block)
        values, end = values_at(text, fence.end() if fence else block)
        # Looked for after the JSON: an argument may contain the closing tag.
        close, following = text.find(END, end), text.find(START, end)
        stop = min((mark for mark in (close, following) if mark >= 0), default=len(text))
        for value, raw in values:
            calls += calls_in(value, raw, None)
        rest = text[end:stop].strip().strip("`").strip()
        if not values or rest.startswith(("{", "[")):
            calls.append(broken(rest))
        at = text.find(START, stop)
    return tuple(calls)
