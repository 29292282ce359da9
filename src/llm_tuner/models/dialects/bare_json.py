"""Calls as plain JSON: the whole text, its head or its tail is an object, an array, or several objects.

JSON in the middle of prose is talk about a call, not a call. Only calls of offered tools count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llm_tuner.models.dialects import tool_call_tags
from llm_tuner.models.dialects.shapes import broken, calls_in, names, opens_call, values_at
from llm_tuner.types import ToolCall, ToolSpec

START = "{"
END = "}"

# A run of brackets is tried once, from its first: trying each would make a model that repeats "[" cost the square.
_START = re.compile(r"[{\[][\s{\[]*")


def parse(text: str, tools: Sequence[ToolSpec]) -> tuple[ToolCall, ...]:
    """The calls at the head or at the tail of the text."""
    offered = names(tools)
    # Qwen sometimes closes a tag that it never opened.
    text = text.strip().removesuffix(tool_call_tags.END).rstrip()
    start = _START.search(text)
    while start:
        at = start.start()
        values, end = values_at(text, at)
        rest = text[end:].lstrip(" \t\r\n,;")
        calls = [call for value, raw in values for call in calls_in(value, raw, offered)]
        if name := opens_call(rest, 0):
            return (*calls, broken(rest)) if name in offered else tuple(calls)
        if values and (not rest or (at == 0 and calls)):
            return tuple(calls)
        start = _START.search(text, max(end, start.end()))
    return ()
