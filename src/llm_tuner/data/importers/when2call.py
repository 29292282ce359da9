"""When2Call's training sets: whether to call, to ask, or to decline. (Its test set is a benchmark: benchmarks.py.)

    {"tools": ["{...}", ...], "messages": [{"role": "user", ...}, {"role": "assistant",
     "content": "<TOOLCALL>[{\\"name\\": ..., \\"arguments\\": {...}}]</TOOLCALL>"}]}                    train_sft
    {"tools": ["{...}", ...], "messages": [{"role": "user", ...}], "chosen_response": {"role": "assistant", ...},
     "rejected_response": {...}}                                                                    train_pref

Each tool is a JSON text. Of a preference the chosen answer is taken; the rejected one is not kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from llm_tuner.data.examples import Example
from llm_tuner.data.importers.shapes import Row, Unreadable, calls_of, openai_message, parse_value, tools_of, turns
from llm_tuner.types import Message

NAME = "when2call"
SOURCE = "When2Call"

_CALL = re.compile(r"<TOOLCALL>\s*(.*?)\s*</TOOLCALL>", re.DOTALL)


def recognises(row: Row) -> bool:
    tools, messages = row.get("tools"), row.get("messages")
    if (
        not isinstance(tools, list)
        or not isinstance(messages, list)
        or not all(isinstance(tool, str) for tool in tools)
    ):
        return False
    return "chosen_response" in row or (bool(tools) and len(messages) > 1)


def examples(row: Row, source: str, licence: str) -> Iterator[Example]:
    bodies = [*row["messages"], *([row["chosen_response"]] if "chosen_response" in row else [])]
    messages = (_lifted(openai_message(body)) for body in bodies)
    yield from turns(messages, tools_of(row["tools"]), source=source, licence=licence)


def _lifted(message: Message) -> Message:
    """The assistant's calls out of its text."""
    if message.role != "assistant" or "<TOOLCALL>" not in message.text:
        return message
    found = _CALL.findall(message.text)
    if not found:
        raise Unreadable("broken_call", f"a call does not end: {message.text[:80]!r}")
    try:
        calls = tuple(call for body in found for call in calls_of(parse_value(body)))
    except Unreadable:
        raise
    except ValueError as error:
        raise Unreadable("broken_call", f"a call cannot be read: {error}") from None
    return message.model_copy(update={"text": _CALL.sub("", message.text).strip(), "tool_calls": calls})
