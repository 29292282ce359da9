"""Ollama's /api/chat: the request with what it answered, whole or as the chunks of a stream.

    {"request": {"model": "...", "messages": [...], "tools": [...]},
     "response": {"model": "...", "message": {"role": "assistant", "tool_calls": [{"function": {"name": "...",
                  "arguments": {...}}}]}, "done": true}}

Arguments are objects; results name their tool (`tool_name`) and no call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llm_tuner.data.examples import Example
from llm_tuner.data.importers.shapes import Row, Unreadable, openai_message, text_of, tools_of, turns
from llm_tuner.types import Json

NAME = "ollama"
SOURCE = "ollama-log"


def recognises(row: Row) -> bool:
    request, response = row.get("request"), row.get("response")
    if not isinstance(request, Mapping) or not isinstance(request.get("messages"), list):
        return False
    chunks = response if isinstance(response, list) else [response]
    return bool(chunks) and all(isinstance(chunk, Mapping) and "done" in chunk for chunk in chunks)


def examples(row: Row, source: str, licence: str) -> Iterator[Example]:
    asked = row["request"]["messages"]
    answer = _whole(row["response"])
    messages = map(openai_message, [*asked, answer])
    tools = tools_of(row["request"].get("tools") or [])
    yield from turns(messages, tools, source=source, licence=licence, silent=range(len(asked)))


def _whole(response: Json) -> dict[str, Json]:
    chunks = response if isinstance(response, list) else [response]
    if not chunks or not chunks[-1].get("done"):
        raise Unreadable("cut_off", "the stream ended before it was done")
    if chunks[-1].get("done_reason") == "length":
        raise Unreadable("cut_off", "the answer was cut off at the token limit")
    messages: list[dict[str, Any]] = [chunk.get("message") or {} for chunk in chunks]
    return {
        "role": "assistant",
        "content": "".join(text_of(message.get("content")) for message in messages),
        "thinking": "".join(str(message.get("thinking") or "") for message in messages),
        "tool_calls": [call for message in messages for call in message.get("tool_calls") or ()],
    }
