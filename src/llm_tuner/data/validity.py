"""Whether an example is valid: the form of its task, and its calls against the schemas of the tools that it offers.

Not the judge (scoring: right or wrong) and not a server (that is the last word where one is at hand). The rule it
protects: what leaves this stage has only calls that its own tools' schemas allow, to the last enum and range.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from llm_tuner.data.examples import Example, Item, Stage, each, refused
from llm_tuner.scoring import score
from llm_tuner.store.handwritten import look_through
from llm_tuner.types import AnyCall, Json, NoCall, ToolCall, ToolSpec, by_name, canonical_json


def check_form() -> Stage:
    """A stage that refuses examples whose answer does not fit the schemas, or is not right for its own task."""
    return each(_checked)


def _checked(example: Example) -> Item:
    for reason, detail in faults(example):
        return refused(example, "format", reason, detail)
    return example


def faults(example: Example) -> Iterator[tuple[str, str]]:
    """What is wrong with the example: a short word and a sentence each."""
    task, attempt = example
    tools = by_name(task.tools)
    for call in calls_of(example):
        if call.name not in tools:
            yield "unknown_tool", f"{call.name} is not offered (offered: {', '.join(tools) or 'none'})"[:300]
        elif fault := schema_fault(tools[call.name], call.arguments):
            yield fault
    try:
        look_through(task)
    except ValueError as error:
        yield "bad_task", str(error)
    if attempt.task_id != task.id:
        yield "other_task", f"the attempt is at task {attempt.task_id}"
    elif attempt.verdict is None or not attempt.verdict.ok:
        said = attempt.verdict.detail if attempt.verdict else "it was not judged"
        yield "not_right", f"the answer is not right for its own task: {said}"
    elif not (verdict := score(task, attempt)).ok:
        yield "not_right", f"the answer was judged right, and is not: {verdict.detail}"


def calls_of(example: Example) -> list[ToolCall]:
    """The calls that are to be learned: of the answer, and of the expectation where it is exact."""
    calls = list(example.answer.tool_calls)
    expect = example.task.expect
    if not isinstance(expect, AnyCall | NoCall) and expect.kind == "exact":
        calls += [call for call in expect.calls if not _among(call, calls)]
    return calls


def _among(call: ToolCall, calls: Sequence[ToolCall]) -> bool:
    return any(call.name == other.name and call.arguments == other.arguments for other in calls)


def schema_fault(tool: ToolSpec, arguments: dict[str, Json]) -> tuple[str, str] | None:
    """What the tool's schema has against these arguments; nothing where it allows them, or is itself unreadable."""
    validator = _validator(canonical_json(tool.parameters))
    if validator is None:
        return "bad_schema", f"{tool.name}'s own schema is no JSON Schema"
    try:
        error = next(validator.iter_errors(arguments), None)
    except Exception as failure:  # a $ref without a target, a pattern that is none: whatever strangers wrote
        return "bad_schema", f"{tool.name}'s own schema cannot be followed: {str(failure)[:160]}"
    if error is None:
        return _undeclared(tool, arguments)
    where = ".".join(map(str, error.absolute_path)) or "the arguments"
    word = {"required": "missing_parameter", "type": "wrong_type", "enum": "wrong_value", "anyOf": "wrong_type"}
    return word.get(str(error.validator), "wrong_value"), f"{tool.name}: {where}: {error.message}"[:300]


def _undeclared(tool: ToolSpec, arguments: dict[str, Json]) -> tuple[str, str] | None:
    """An argument that the tool does not have. JSON Schema lets it pass where nothing forbids it; a server does not."""
    known = tool.parameters.get("properties")
    if (
        not isinstance(known, dict)
        or tool.parameters.get("additionalProperties")
        or "patternProperties" in tool.parameters
    ):
        return None
    strange = next((name for name in arguments if name not in known), None)
    if strange is None or "$ref" in tool.parameters or "allOf" in tool.parameters:
        return None
    return "unexpected_parameter", f"{tool.name} has no parameter {strange} (it has: {', '.join(known) or 'none'})"[
        :300
    ]


_NESTED = re.compile(r"\([^()]*[+*}][^()]*\)[+*{]")
"""A repeated group that repeats inside, `(a+)+`: a short text can keep Python's matcher busy for years."""


@lru_cache(4096)
def _validator(schema: str) -> Any:
    """A validator that asks no address for a `$ref` and tries no pattern that may not end: schemas are strangers'."""
    from jsonschema import SchemaError, validators
    from referencing import Registry

    words = json.loads(schema)
    known = validators.validator_for(words, default=validators.Draft202012Validator)
    try:
        known.check_schema(words)
    except (SchemaError, RecursionError):
        return None
    extend: Any = validators.extend
    return extend(known, {"pattern": _pattern, "patternProperties": None})(words, registry=Registry())


def _pattern(_: Any, pattern: str, value: Json, schema: Json) -> Iterator[Any]:
    from jsonschema import ValidationError

    if isinstance(value, str) and not _NESTED.search(pattern) and not re.search(pattern, value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")
