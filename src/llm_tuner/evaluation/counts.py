"""What a report counts beside verdicts: schema-valid calls, confused tools, tokens, and the parts of a suite.

Not a judge: nothing here decides whether an answer is right. The rule it protects: each number is one function of tasks
and attempts, and can be counted again from the files.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

from jsonschema.exceptions import ValidationError
from jsonschema.validators import Draft202012Validator, validator_for
from referencing import Registry

from llm_tuner.scoring import made_calls
from llm_tuner.types import AnyCall, Attempt, NoCall, Task, Tokens, ToolCall, ToolSpec, by_name

NOTHING, SEVERAL, BROKEN, UNKNOWN, NO_ANSWER = "(nothing)", "(several)", "(broken)", "(unknown)", "(no answer)"
"""Columns of the confusion table that are no tools. What a model invents as a name is counted, not kept."""

_MOST_COUNTS = 12  # more different numbers of tools are put into ranges
_RANGES = (1, 2, 4, 8, 16, 32, 64, 128)


def schema_valid(task: Task, attempt: Attempt) -> bool:
    """Whether the answer calls (lenient reading), and every call can be read, names an offered tool and has arguments
    that its JSON Schema accepts."""
    tools, calls = by_name(task.tools), made_calls(attempt, "lenient")
    return bool(calls) and all(fits_schema(tools.get(call.name), call) for call in calls)


def fits_schema(tool: ToolSpec | None, call: ToolCall) -> bool:
    """Whether the call's arguments are what the tool's JSON Schema asks for (draft 2020-12 unless it names another).

    A schema that is itself unusable (an unknown type, a reference that leads nowhere) is not the model's fault and
    accepts everything. Nothing is loaded over the network.
    """
    if tool is None or call.error:
        return False
    kind = validator_for(tool.parameters, default=Draft202012Validator)
    try:
        kind(tool.parameters, registry=Registry()).validate(call.arguments)
    except ValidationError:
        return False
    except Exception:  # the library raises many kinds for a schema that is no schema
        return True
    return True


def confusion(pairs: Iterable[tuple[Task, Attempt]]) -> dict[str, dict[str, int]]:
    """Wanted tool -> called tool -> tasks, over the tasks that want exactly one call; the most wanted tool first."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for task, attempt in pairs:
        if isinstance(task.expect, AnyCall | NoCall) or len(task.expect.calls) != 1:
            continue
        counts[task.expect.calls[0].name][_called(task, attempt)] += 1
    order = sorted(counts, key=lambda name: (-counts[name].total(), name))
    return {name: dict(counts[name].most_common()) for name in order}


def _called(task: Task, attempt: Attempt) -> str:
    calls = made_calls(attempt, "lenient")
    if attempt.error:
        return NO_ANSWER
    if len(calls) != 1:
        return SEVERAL if calls else NOTHING
    if calls[0].error:
        return BROKEN
    return calls[0].name if calls[0].name in by_name(task.tools) else UNKNOWN


def tokens(attempts: Iterable[Attempt]) -> Tokens:
    """Of the attempts that got an answer and whose runtime counted."""
    usages = [a.usage for a in attempts if not a.error and (a.usage.prompt_tokens or a.usage.completion_tokens)]
    return Tokens(
        n=len(usages),
        prompt_p50=median(u.prompt_tokens for u in usages) if usages else None,
        completion_p50=median(u.completion_tokens for u in usages) if usages else None,
        prompt=sum(u.prompt_tokens for u in usages),
        cached=sum(u.cached_tokens for u in usages),
        completion=sum(u.completion_tokens for u in usages),
    )


def servers_of(task: Task) -> str:
    """The servers of the wanted tools, joined by "+"; empty where none is known or no call is wanted."""
    tools = by_name(task.tools)
    return "+".join(sorted({tools[n].server for n in tools_of(task) if n in tools and tools[n].server}))


def tools_of(task: Task) -> tuple[str, ...]:
    """The names of the wanted tools, each once, in their order."""
    if isinstance(task.expect, AnyCall | NoCall):
        return ()
    return tuple(dict.fromkeys(call.name for call in task.expect.calls))


def offered(tasks: Sequence[Task]) -> dict[int, str]:
    """Number of tools offered -> the name of its group: the number itself, or a range where there are many numbers."""
    numbers = sorted({len(task.tools) for task in tasks})
    return {n: str(n) if len(numbers) <= _MOST_COUNTS else _range(n) for n in numbers}


def _range(number: int) -> str:
    low = max((start for start in _RANGES if start <= number), default=0)
    high = next((start - 1 for start in _RANGES if start > number), None)
    return "0" if not low else f"{low}+" if high is None else str(low) if high == low else f"{low}-{high}"
