"""Mistakes made out of a right answer, for tasks at which the model itself made none.

Not a judge, and no model's words: these are the ways in which models go wrong, tried one after the other. The rule it
protects: a mistake is only what `scoring.score` calls wrong, for the very reason that it was made for; everything else
is dropped.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from llm_tuner.data.catalogues import nearest, vectors
from llm_tuner.data.schema_values import Unfillable, by_schema
from llm_tuner.data.wording import DECLINE
from llm_tuner.models import dialects
from llm_tuner.scoring import score
from llm_tuner.scoring.schema import fits, property_of, required
from llm_tuner.types import Attempt, Json, Message, Reason, Task, ToolCall, ToolSpec, by_name, canonical_json

_TRIES = 8
"""So many answers are tried for a reason; a task that is wrong for none of them has no such mistake."""

Known = Mapping[tuple[str, str], Sequence[Json]]
"""The values that right answers give, by tool and parameter: a wrong value is best one that is right elsewhere."""


class Mistake(NamedTuple):
    """A wrong answer and what is wrong with it."""

    answer: Message
    reason: Reason


class _Case(NamedTuple):
    task: Task
    right: tuple[ToolCall, ...]
    known: Known
    rng: random.Random


def known_values(answers: Iterable[Message]) -> Known:
    """What right answers pass to each parameter, each value once."""
    found: dict[tuple[str, str], dict[str, Json]] = defaultdict(dict)
    for answer in answers:
        for call in answer.tool_calls:
            for name, value in call.arguments.items():
                found[call.name, name][canonical_json(value)] = value
    return {place: tuple(values.values()) for place, values in found.items()}


def mistakes(task: Task, right: Message, known: Known, rng: random.Random) -> list[Mistake]:
    """One mistake for each reason for which one can be made of this right answer."""
    case = _Case(task, right.tool_calls, known, rng)
    found = []
    for reason, make in _MAKERS.items():
        for answer in islice(make(case), _TRIES):
            answer = dialects.read(answer, task.tools)
            verdict = score(task, Attempt(task_id=task.id, backend="made", messages=(answer,)))
            if not verdict.ok and verdict.reason == reason:
                found.append(Mistake(answer, reason))
                break
    return found


# ---------------------------------------------------------------------------------------------- the selection is wrong


def _wrong_tool(case: _Case) -> Iterator[Message]:
    """A look-alike is called: the most similar other tools, with arguments that fit their schemas."""
    tools = by_name(case.task.tools)
    for place, call in _shuffled(case):
        if call.name not in tools:
            continue
        for other in nearest(tools[call.name], case.task.tools, vectors(case.task.tools)):
            yield from _replaced(case, place, _call(other, call.arguments, case))


def _unwanted_call(case: _Case) -> Iterator[Message]:
    """The tool whose words are most like the request's is called where none was wanted."""
    if case.right:
        return
    asked = ToolSpec(name="", description=case.task.request)
    for tool in nearest(asked, case.task.tools, vectors([asked, *case.task.tools])):
        call = _call(tool, {}, case)
        if call is not None:
            yield Message(role="assistant", tool_calls=(call,))


def _wrong_count(case: _Case) -> Iterator[Message]:
    """One of several calls is missing."""
    if len(case.right) > 1:
        for place, _ in _shuffled(case):
            yield _calls(case.right[:place] + case.right[place + 1 :])


def _no_call(case: _Case) -> Iterator[Message]:
    """Words instead of a call: the refusal that is right where no tool fits."""
    if case.right:
        yield Message(role="assistant", text=DECLINE.get(case.task.language, DECLINE["en"]))


def _call_as_text(case: _Case) -> Iterator[Message]:
    """The right calls as text, in the ```json blocks of a stock model."""
    if case.right:
        written = ({"name": call.name, "arguments": call.arguments} for call in case.right)
        blocks = (f"```json\n{json.dumps(call, indent=2, ensure_ascii=False)}\n```" for call in written)
        yield Message(role="assistant", text="\n".join(blocks))


# --------------------------------------------------------------------------------------------- the arguments are wrong


def _missing_parameter(case: _Case) -> Iterator[Message]:
    for place, call, name in _arguments(case):
        yield from _changed(case, place, {key: value for key, value in call.arguments.items() if key != name})


def _unexpected_parameter(case: _Case) -> Iterator[Message]:
    """A parameter that nobody asked for: one that the tool has, then one of another tool, then one of nobody's."""
    for place, call in _shuffled(case):
        tool = by_name(case.task.tools).get(call.name)
        if tool is None:
            continue
        own = case.rng.sample(sorted(_properties(tool)), len(_properties(tool)))
        others = [(other, name) for other in case.task.tools for name in sorted(_properties(other))]
        case.rng.shuffle(others)
        for owner, name in [*((tool, name) for name in own), *others]:
            if name not in call.arguments and (value := _made(owner, name, case)) is not None:
                yield from _changed(case, place, {**call.arguments, name: value})
        yield from _changed(case, place, {**call.arguments, "format": "json"})


def _wrong_value(case: _Case) -> Iterator[Message]:
    """Another value of the right type: one that is right elsewhere, another of an enumeration, a neighbour."""
    for place, call, name in _arguments(case):
        for value in _others(case, call, name):
            yield from _changed(case, place, {**call.arguments, name: value})


def _wrong_type(case: _Case) -> Iterator[Message]:
    for place, call, name in _arguments(case):
        yield from _changed(case, place, {**call.arguments, name: _of_another_type(call.arguments[name])})


_MAKERS: Mapping[Reason, Callable[[_Case], Iterator[Message]]] = {
    "wrong_tool": _wrong_tool,
    "unwanted_call": _unwanted_call,
    "wrong_count": _wrong_count,
    "no_call": _no_call,
    "call_as_text": _call_as_text,
    "missing_parameter": _missing_parameter,
    "unexpected_parameter": _unexpected_parameter,
    "wrong_value": _wrong_value,
    "wrong_type": _wrong_type,
}


# --------------------------------------------------------------------------------------------------------------- parts


def _shuffled(case: _Case) -> list[tuple[int, ToolCall]]:
    places = list(enumerate(case.right))
    case.rng.shuffle(places)
    return places


def _arguments(case: _Case) -> list[tuple[int, ToolCall, str]]:
    """Every argument of every right call, in random order, required ones first."""
    tools = by_name(case.task.tools)
    found = [(place, call, name) for place, call in _shuffled(case) for name in call.arguments if call.name in tools]
    case.rng.shuffle(found)
    return sorted(found, key=lambda one: one[2] not in required(tools[one[1].name].parameters))


def _calls(calls: Sequence[ToolCall]) -> Message:
    return Message(role="assistant", tool_calls=tuple(calls))


def _replaced(case: _Case, place: int, call: ToolCall | None) -> Iterator[Message]:
    if call is not None:
        call = call.model_copy(update={"id": case.right[place].id})
        yield _calls((*case.right[:place], call, *case.right[place + 1 :]))


def _changed(case: _Case, place: int, arguments: dict[str, Json]) -> Iterator[Message]:
    yield from _replaced(case, place, case.right[place].model_copy(update={"arguments": arguments, "raw": ""}))


def _call(tool: ToolSpec, given: Mapping[str, Json], case: _Case) -> ToolCall | None:
    """A call whose arguments fit the schema: values given under the same name, values known to be right for the
    parameter, made ones. None where the schema gives none."""
    arguments: dict[str, Json] = {}
    for name in map(str, required(tool.parameters)):
        schema = property_of(tool.parameters, name)
        value = given[name] if name in given and fits(given[name], schema, tool.parameters) else None
        value = _made(tool, name, case) if value is None else value
        if value is None:
            return None
        arguments[name] = value
    return ToolCall(name=tool.name, arguments=arguments, id="call_0")


def _made(tool: ToolSpec, name: str, case: _Case) -> Json:
    """A value for a parameter; None where none can be made."""
    if known := case.known.get((tool.name, name)):
        return case.rng.choice(known)
    try:
        return by_schema({**tool.parameters, "required": [name]}, "train", case.rng).get(name)
    except Unfillable:
        return None


def _others(case: _Case, call: ToolCall, name: str) -> Iterator[Json]:
    value = call.arguments[name]
    known = [other for other in case.known.get((call.name, name), ()) if other != value]
    yield from case.rng.sample(known, min(2, len(known)))
    tool = by_name(case.task.tools)[call.name]
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield value + case.rng.choice((1, 2, 10))
    if (other := _made(tool, name, case)) is not None:
        yield other


def _of_another_type(value: Json) -> Json:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return canonical_json(value[0]) if len(value) == 1 else canonical_json(value)
    return canonical_json(value)


def _properties(tool: ToolSpec) -> Mapping[str, Json]:
    found = tool.parameters.get("properties")
    return found if isinstance(found, dict) else {}
