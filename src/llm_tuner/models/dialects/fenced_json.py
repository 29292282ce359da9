"""Calls in Markdown code fences, ```json above all (Qwen2.5-Coder): an object, an array or several objects a fence.

Prose may stand around the fences. Only calls of offered tools count: a model that may write code writes JSON too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llm_tuner.models.dialects.shapes import broken, calls_in, names, opens_call, values_at
from llm_tuner.types import ToolCall, ToolSpec

START = "```json"
END = "```"

_OPEN = re.compile(r"```[\w-]*\s*")


def parse(text: str, tools: Sequence[ToolSpec]) -> tuple[ToolCall, ...]:
    """The calls of every fence, in order. The last fence may be open."""
    offered = names(tools)
    calls: list[ToolCall] = []
    fence = _OPEN.search(text)
    while fence:
        values, end = values_at(text, fence.end())
        # Looked for after the JSON: an argument may contain a fence (a file's text).
        close = text.find(END, end)
        stop = close if close >= 0 else len(text)
        for value, raw in values:
            calls += calls_in(value, raw, offered)
        rest = text[end:stop].strip()
        if opens_call(rest, 0) in offered:
            calls.append(broken(rest))
        fence = _OPEN.search(text, stop + len(END))
    return tuple(calls)
