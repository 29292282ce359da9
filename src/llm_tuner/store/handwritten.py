"""The shorthands of a suite file that a person writes (docs/suite.md), and what such a person gets wrong.

Not the file format (suite.py) and no task of its own: a line is rewritten into the long form, and the finished task is
looked through. The rule it protects: a slip of the pen is named with its line, and never becomes a task that no model
can get right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from llm_tuner.types import AnyCall, Json, Message, NoCall, Task, ToolResult, ToolSpec, by_name


def long_form(line: Mapping[str, Json]) -> dict[str, Json]:
    """A task line with `request`, `system`, `id`, `ordered` and a short `expect` as the long form that Task reads.

    Raises ValueError where the shorthands contradict each other.
    """
    out = dict(line)
    if "request" in out:
        if "messages" in out:
            raise ValueError('"request" and "messages" both say what is asked: keep one of them')
        out["messages"] = [{"role": "user", "text": out.pop("request")}]
    if "system" in out:
        out["messages"] = [{"role": "system", "text": out.pop("system")}, *out.get("messages", [])]
    if "id" in out:
        out["tags"] = {**out.get("tags", {}), "id": str(out.pop("id"))}
    if "expect" in out:
        out["expect"] = _expectation(out["expect"], out.pop("ordered", False))
    return out


def tool(body: Json) -> ToolSpec:
    """A tool as ToolSpec's own fields, in OpenAI's wrapping, or with MCP's `inputSchema`."""
    if isinstance(body, dict) and isinstance(body.get("function"), dict):
        body = body["function"]
    if isinstance(body, dict) and "inputSchema" in body:
        body = {**body, "parameters": body["inputSchema"]}
        del body["inputSchema"]
    return ToolSpec.model_validate(body)


def linked(task: Task) -> Task:
    """The task with ids on the calls of its history, and each tool message tied to the call that it answers: the
    oldest one without an answer, unless it names another. Raises ValueError for a result without a call."""
    numbers, waiting, messages = count(1), list[str](), list[Message]()
    for message in task.messages:
        if message.role == "assistant":
            calls = tuple(
                call.model_copy(update={"id": call.id or f"call_{next(numbers)}"}) for call in message.tool_calls
            )
            waiting += [call.id for call in calls]
            messages.append(message.model_copy(update={"tool_calls": calls}))
        elif message.role == "tool":
            result = message.result or ToolResult(content=message.text)
            if not waiting or (result.call_id and result.call_id not in waiting):
                raise ValueError(f"a tool's result ({result.content[:60]!r}) answers no call of the messages before it")
            waiting.remove(answered := result.call_id or waiting[0])
            result = result.model_copy(update={"call_id": answered})
            messages.append(message.model_copy(update={"text": "", "result": result}))
        else:
            messages.append(message)
    return task.model_copy(update={"messages": tuple(messages)})


def look_through(task: Task) -> None:
    """Raises ValueError for a task that no model can get right: nothing is asked, an expected tool is not offered, an
    expected argument is not one of the tool's, a required one is not expected."""
    if not task.messages or task.messages[-1].role not in ("user", "tool"):
        raise ValueError("the messages must end with the user's or a tool's: there is nothing to answer otherwise")
    names = [spec.name for spec in task.tools]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f'the tool "{sorted(twice)[0]}" is offered twice')
    if isinstance(task.expect, AnyCall | NoCall):
        return
    tools = by_name(task.tools)
    for call in task.expect.calls:
        if call.name not in tools:
            offered = ", ".join(names) or "none"
            raise ValueError(f'expect: the tool "{call.name}" is not offered (offered: {offered})')
        _arguments(tools[call.name].parameters, call.name, call.arguments)


def _arguments(schema: Mapping[str, Json], name: str, given: Mapping[str, Json]) -> None:
    known = schema.get("properties")
    if not isinstance(known, dict) or schema.get("additionalProperties") or "patternProperties" in schema:
        return
    if strange := [key for key in given if key not in known]:
        raise ValueError(f'expect: "{name}" has no argument "{strange[0]}" (it has: {", ".join(known) or "none"})')
    if missing := [key for key in schema.get("required") or () if key not in given]:
        raise ValueError(f'expect: "{name}" requires the argument "{missing[0]}", which is not expected')


def _expectation(expect: Json, ordered: Json) -> Json:
    if expect is None or expect in ("none", []):
        return {"kind": "none"}
    if isinstance(expect, dict) and "name" in expect:
        expect = [expect]
    if not isinstance(expect, list):
        return expect
    if any(not isinstance(call, dict) or "name" not in call for call in expect):
        raise ValueError('expect: every call needs a "name", as in [{"name": "clock", "arguments": {"zone": "JST"}}]')
    if any("allowed" in call for call in expect):
        return {"kind": "allowed", "calls": [_allowed(call) for call in expect], "ordered": ordered}
    return {"kind": "exact", "calls": expect, "ordered": ordered}


def _allowed(call: Mapping[str, Any]) -> dict[str, Json]:
    fixed, allowed = call.get("arguments", {}), call.get("allowed", {})
    if both := [name for name in allowed if name in fixed]:
        raise ValueError(f'expect: "{both[0]}" stands in "arguments" and in "allowed": keep one of them')
    rest = {key: value for key, value in call.items() if key != "allowed"}
    return {**rest, "arguments": {**{name: [_literal(value)] for name, value in fixed.items()}, **allowed}}


def _literal(value: Json) -> Json:
    """The value in the notation of allowed values, where an object holds a list of values for each key."""
    if isinstance(value, dict):
        return {key: [item] for key, item in value.items()}
    return [_literal(item) if isinstance(item, dict) else item for item in value] if isinstance(value, list) else value


def chosen(tools: Sequence[Json], catalogue: Mapping[str, ToolSpec]) -> tuple[ToolSpec, ...]:
    """A task's `tools`: names out of the file's catalogue, or tools written in place. Raises ValueError for a name that
    is not in it."""
    out = []
    for one in tools:
        if isinstance(one, str) and one not in catalogue:
            known = ", ".join(catalogue) or "none: the header has no tools"
            raise ValueError(f'tools: "{one}" is not in the file\'s catalogue (there: {known})')
        out.append(catalogue[one] if isinstance(one, str) else tool(one))
    return tuple(out)
