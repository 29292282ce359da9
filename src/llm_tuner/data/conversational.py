"""TRL's conversational form (`messages`, `tools`), both ways, without loss.

Not a file (export.py writes those). Arguments are objects, as chat templates want them. What the form cannot say (the
expectation, where it is not just the answer; source, licence, side; a message that the form would change) stands in one
more column. The rule it protects: what was exported comes back as the same task, under the same id.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from llm_tuner.data.examples import Example
from llm_tuner.types import (
    Attempt,
    ExactCalls,
    Expectation,
    Json,
    Message,
    NoCall,
    Task,
    ToolCall,
    ToolResult,
    ToolSpec,
)

COLUMN = "llm_tuner"
_EXPECTATION: TypeAdapter[Expectation] = TypeAdapter(Expectation)


def row_of(example: Example) -> dict[str, Json]:
    """The example as a row: the conversation with its answer, the tools, and the column of ours."""
    task, attempt = example
    messages = [*task.messages, *attempt.messages]
    rows = [_outgoing(message) for message in messages]
    tools = [tool.openai() for tool in task.tools]
    ours: dict[str, Json] = {
        "task": task.model_dump(mode="json", exclude_defaults=True, exclude={"messages", "tools", "expect"}),
        "attempt": attempt.model_dump(mode="json", exclude_defaults=True, exclude={"messages"}),
        "answers": len(attempt.messages),
    }
    if task.expect != _expected(attempt.messages):
        ours["expect"] = task.expect.model_dump(mode="json")
    if odd := {str(i): _dump(m) for i, m in enumerate(messages) if _incoming(rows[i]) != m}:
        ours["messages"] = odd
    if strange := {str(i): t.model_dump(mode="json") for i, t in enumerate(task.tools) if _unwrapped(tools[i]) != t}:
        ours["tools"] = strange
    return {"messages": rows, "tools": tools, COLUMN: ours}


def example_of(row: Mapping[str, Any]) -> Example:
    """The example that `row_of` made this row of. Raises ValueError, KeyError or TypeError for anything else."""
    ours = row[COLUMN]
    odd, strange = ours.get("messages", {}), ours.get("tools", {})
    messages = tuple(
        Message.model_validate(odd[str(i)]) if str(i) in odd else _incoming(body)
        for i, body in enumerate(row["messages"])
    )
    tools = tuple(
        ToolSpec.model_validate(strange[str(i)]) if str(i) in strange else _unwrapped(body)
        for i, body in enumerate(row["tools"])
    )
    cut = len(messages) - ours["answers"]
    expect = _EXPECTATION.validate_python(ours["expect"]) if "expect" in ours else _expected(messages[cut:])
    task = Task.model_validate({**ours["task"], "messages": messages[:cut], "tools": tools, "expect": expect})
    attempt = Attempt.model_validate({**ours["attempt"], "messages": messages[cut:]})
    return Example(task, attempt)


def _expected(answers: tuple[Message, ...]) -> Expectation:
    """What an answer by itself is right for."""
    answer = answers[0] if answers else Message(role="assistant")
    if answer.tool_calls:
        return ExactCalls(calls=tuple(ToolCall(name=c.name, arguments=c.arguments) for c in answer.tool_calls))
    return NoCall(reply=answer.text)


def _dump(message: Message) -> Json:
    return message.model_dump(mode="json", exclude_defaults=True) | {"role": message.role}


def _outgoing(message: Message) -> dict[str, Json]:
    if message.role == "tool":
        result = message.result or ToolResult(content=message.text)
        return {"role": "tool", "content": result.content, "tool_call_id": result.call_id}
    body: dict[str, Json] = {"role": message.role, "content": message.text}
    if message.thinking:
        body["reasoning_content"] = message.thinking
    if message.tool_calls:
        body["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return body


def _incoming(body: Mapping[str, Any]) -> Message:
    if body["role"] == "tool":
        return Message(role="tool", result=ToolResult(call_id=body["tool_call_id"], content=body["content"]))
    calls = tuple(
        ToolCall(name=call["function"]["name"], arguments=call["function"]["arguments"], id=call["id"])
        for call in body.get("tool_calls") or ()
    )
    return Message(
        role=body["role"], text=body["content"], thinking=body.get("reasoning_content") or "", tool_calls=calls
    )


def _unwrapped(body: Mapping[str, Any]) -> ToolSpec:
    return ToolSpec(**body["function"])
