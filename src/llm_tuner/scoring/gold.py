"""What a perfect model would answer. Not a judge; the tests hold the judge against it."""

from __future__ import annotations

from collections.abc import Sequence

from llm_tuner.scoring.schema import required
from llm_tuner.scoring.source_text import write
from llm_tuner.scoring.strict import is_notation
from llm_tuner.scoring.verdicts import Wanted
from llm_tuner.types import AnyCall, Attempt, Json, Message, NoCall, Task, ToolCall, ToolSpec, by_name


def gold_attempt(task: Task) -> Attempt:
    """What a perfect model would answer: the first allowed values as native calls, a call of the first tool without
    arguments for AnyCall, or the reply text for NoCall.

    An argument whose first allowed value is `""` is left out, unless the schema requires it. Arguments that have
    `source_types` are written as source text.
    """
    if isinstance(task.expect, NoCall):
        return _attempt(task, Message(role="assistant", text=task.expect.reply))
    if isinstance(task.expect, AnyCall):
        first = [ToolCall(name=tool.name, id="call_0") for tool in task.tools[:1]]
        return _attempt(task, Message(role="assistant", tool_calls=tuple(first)))
    tools = by_name(task.tools)
    wanted: Sequence[Wanted] = task.expect.calls
    calls = tuple(
        ToolCall(name=want.name, arguments=_arguments(tools.get(want.name), want), id=f"call_{i}")
        for i, want in enumerate(wanted)
    )
    return _attempt(task, Message(role="assistant", tool_calls=calls))


def _attempt(task: Task, message: Message) -> Attempt:
    return Attempt(task_id=task.id, backend="gold", messages=(message,))


def _arguments(tool: ToolSpec | None, want: Wanted) -> dict[str, Json]:
    if isinstance(want, ToolCall):
        return dict(want.arguments)
    parameters = tool.parameters if tool is not None else {}
    needed, known = required(parameters), parameters.get("properties", want.arguments)
    values = {
        name: _value(options, needed=name in needed)
        for name, options in want.arguments.items()
        if name in known and options and (name in needed or options[0] != "")
    }
    types = want.source_types
    return {name: write(value, types[name]) if name in types else value for name, value in values.items()}


def _value(options: Sequence[Json], *, needed: bool) -> Json:
    chosen = next((option for option in options if option != ""), "") if needed else options[0]
    return [_literal(item) for item in chosen] if isinstance(chosen, list) else _literal(chosen)


def _literal(option: Json) -> Json:
    """A literal value from BFCL's notation: the first allowed value of every key that is not left out."""
    if not is_notation(option):
        return option
    return {key: options[0] for key, options in option.items() if options and options[0] != ""}
