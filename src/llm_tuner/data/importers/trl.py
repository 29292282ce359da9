"""TRL's conversational form: messages and tools, arguments as objects; what `data export` writes.

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "tool_calls": [{"type": "function",
     "function": {"name": "...", "arguments": {...}}}]}], "tools": [{"type": "function", "function": {...}}]}

A row of ours has one more column, `llm_tuner`, with what the form cannot say (conversational.py): it comes back as it
was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from llm_tuner.data import conversational
from llm_tuner.data.examples import Example
from llm_tuner.data.importers.shapes import Row, Unreadable, openai_message, tools_of, turns

NAME = "trl"
SOURCE = "trl"


def recognises(row: Row) -> bool:
    if conversational.COLUMN in row:
        return True
    return isinstance(row.get("messages"), list) and isinstance(row.get("tools"), list | str)


def examples(row: Row, source: str, licence: str) -> Iterator[Example]:
    if conversational.COLUMN in row:
        try:
            yield conversational.example_of(row)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise Unreadable("broken_row", f"not a row of an export of this version: {str(error)[:120]}") from None
        return
    messages = row["messages"]
    messages = json.loads(messages) if isinstance(messages, str) else messages
    yield from turns(map(openai_message, messages), tools_of(row["tools"]), source=source, licence=licence)
