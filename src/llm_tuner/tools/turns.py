"""The turn loop: a backend answers, its calls are made, the results go back to it, until it calls nothing.

It judges nothing and keeps nothing. The rule it protects: a conversation ends, at the latest after `limit` answers, and
only what the runtime itself surfaced as calls is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from llm_tuner.types import (
    GREEDY,
    Backend,
    ChatOptions,
    Message,
    Reply,
    ToolCall,
    ToolResult,
    ToolSpec,
)

Run = Callable[[Sequence[ToolCall]], Sequence[ToolResult]]
"""Makes the calls of one answer, in order."""


class Turn(NamedTuple):
    """One answer; `before` is everything after the messages that the conversation began with."""

    before: tuple[Message, ...]
    reply: Reply
    results: tuple[ToolResult, ...] = ()


def converse(
    backend: Backend,
    messages: Sequence[Message],
    tools: Sequence[ToolSpec],
    run: Run,
    *,
    limit: int,
    options: ChatOptions = GREEDY,
) -> tuple[Turn, ...]:
    """The turns of one conversation, one at least. The calls of the last one that `limit` allows are not made. Raises
    what the backend raises (ModelError)."""
    turns: list[Turn] = []
    before: tuple[Message, ...] = ()
    while True:
        reply = backend.chat((*messages, *before), tools, options)
        calls = reply.message.tool_calls
        if not calls or len(turns) + 1 >= limit:
            return (*turns, Turn(before, reply))
        results = tuple(run(calls))
        turns.append(Turn(before, reply, results))
        heard = (
            Message(role="tool", result=result.model_copy(update={"call_id": call.id}))
            for call, result in zip(calls, results, strict=True)
        )
        before = (*before, reply.message, *heard)


def made_calls(turns: Sequence[Turn]) -> Message:
    """The conversation as one answer: all calls in the order in which they were made, and what was said last."""
    calls = tuple(call for turn in turns for call in turn.reply.message.tool_calls)
    return turns[-1].reply.message.model_copy(update={"tool_calls": calls})
