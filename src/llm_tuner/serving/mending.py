"""A call held against its tool's schema, and mended where nothing is lost by it.

Not a judge of what was wanted (scoring is). The rule it protects: a value is changed only into one that says the very
same thing ("5" into 5 where a number is wanted), every change is told, and what cannot be mended stays as it was
written, with what is wrong with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry

from llm_tuner.models.dialects.shapes import ARGUMENT_KEYS
from llm_tuner.serving.request import Repair
from llm_tuner.types import Json, ToolCall, ToolSpec, canonical_json

ROUNDS = 32
"""Faults of one call that are looked at: each may be mended, and the next one shows."""

_MISSING = object()


class Mended(NamedTuple):
    """A call after mending. `fault` says what is still wrong; "": it fits its tool's schema."""

    call: ToolCall
    repairs: tuple[Repair, ...]
    fault: str


def mend(call: ToolCall, tools: Sequence[ToolSpec]) -> Mended:
    """The call under a name that is on offer and with values of the types that are wanted, as far as that is lossless.

    A name may differ in case, in `-`, `_`, `.` and in a prefix that says the server; values may be numbers, booleans or
    JSON written as text, texts written as numbers, and null for what may be left out. Arguments may be a list, in the
    order of the parameters or around the one object, where only one of both fits the schema.
    """
    repairs: list[Repair] = []
    if call.error:
        listed = _listed(call, tools)
        if listed is None:
            return Mended(call, (), f"The call could not be read: {call.error}.")
        call = listed
        repairs.append(Repair(kind="coerced", detail="the arguments were a list"))
    tool = next((tool for tool in tools if tool.name == call.name), None)
    if tool is None:
        near = [tool for tool in tools if _alike(tool.name, call.name)]
        if len(near) != 1:
            names = ", ".join(tool.name for tool in tools[:40])
            return Mended(call, (), f"There is no tool `{call.name}`. The tools are: {names}.")
        tool = near[0]
        repairs.append(Repair(kind="renamed", detail=f"`{call.name}` is `{tool.name}`"))
        call = call.model_copy(update={"name": tool.name})
    arguments, changes, fault = _fitted(call.arguments, tool)
    repairs += changes
    if changes:
        call = call.model_copy(update={"arguments": arguments})
    return Mended(call, tuple(repairs), fault)


def _listed(call: ToolCall, tools: Sequence[ToolSpec]) -> ToolCall | None:
    """The call whose arguments are a list, with the only arguments that it can mean; None where there are none, or two
    that fit."""
    tool = next((tool for tool in tools if tool.name == call.name), None)
    try:
        read = json.loads(call.raw, parse_constant=_no)
    except (ValueError, RecursionError):
        return None
    values = next((read[key] for key in ARGUMENT_KEYS if key in read), None) if isinstance(read, dict) else read
    if tool is None or not isinstance(values, list) or not values:
        return None
    properties = tool.parameters.get("properties")
    names = list(properties) if isinstance(properties, dict) else []
    meant: list[dict[str, Json]] = []
    if len(values) <= len(names):
        meant.append(dict(zip(names, values, strict=False)))
    if len(values) == 1 and isinstance(values[0], dict):
        meant.append(values[0])
    validator = _validator(canonical_json(tool.parameters))
    fit = [one for one in meant if set(one) <= set(names) and _first(validator, one) is None]
    return call.model_copy(update={"arguments": fit[0], "error": ""}) if len(fit) == 1 else None


def _alike(name: str, written: str) -> bool:
    wanted, given = _bare(name), _bare(written)
    return wanted == given or given.endswith(f"__{wanted}") or wanted.endswith(f"__{given}")


def _bare(name: str) -> str:
    return re.sub(r"[-.:/ ]", "_", name).casefold()


def _fitted(arguments: dict[str, Json], tool: ToolSpec) -> tuple[dict[str, Json], list[Repair], str]:
    validator = _validator(canonical_json(tool.parameters))
    changes: list[Repair] = []
    for _ in range(ROUNDS):
        error = _first(validator, arguments)
        if error is None:
            return arguments, changes, ""
        mended = _without_fault(arguments, error, tool.parameters)
        if mended is None:
            break
        arguments, change = mended
        changes.append(change)
    place = ".".join(map(str, error.absolute_path)) if error is not None else ""
    words = error.message[:300] if error is not None else "too many faults"
    return arguments, changes, f"The arguments do not fit `{tool.name}`{f' at `{place}`' if place else ''}: {words}."


@lru_cache(1024)
def _validator(schema: str) -> Validator:
    # An empty registry: a `$ref` in a client's schema must not make us fetch its URL.
    parameters = json.loads(schema)
    return validator_for(parameters, Draft202012Validator)(parameters, registry=Registry())


def _first(validator: Validator, arguments: dict[str, Json]) -> Any:
    try:
        return next(iter(validator.iter_errors(arguments)), None)
    except Exception:
        return None  # a schema that cannot be used is its server's fault: it judges the arguments itself


def _without_fault(arguments: dict[str, Json], error: Any, schema: Json) -> tuple[dict[str, Json], Repair] | None:
    """The arguments with the value at fault said in the type that is wanted; None where that would change it."""
    path = list(error.absolute_path)
    kinds = _kinds(error)
    if not path or not kinds:
        return None
    where = ".".join(map(str, path))
    if error.instance is None and isinstance(path[-1], str) and _optional(schema, path):
        return _replaced(arguments, path, _MISSING), Repair(kind="dropped", detail=f"`{where}`: null is left out")
    for kind in kinds:
        value = _as(error.instance, kind)
        if value is not _MISSING:
            said = f"`{where}`: {_short(error.instance)} is {_short(value)}"
            return _replaced(arguments, path, value), Repair(kind="coerced", detail=said)
    return None


def _kinds(error: Any) -> list[str]:
    """The types that would have done at this place."""
    if error.validator == "type":
        wanted = error.validator_value
        return [wanted] if isinstance(wanted, str) else list(wanted)
    if error.validator in ("anyOf", "oneOf"):
        kinds = [part.get("type") for part in error.validator_value if isinstance(part, dict)]
        return [kind for kind in kinds if isinstance(kind, str) and kind != "null"]
    if error.validator == "enum":
        return list(dict.fromkeys("integer" if isinstance(one, int) else "string" for one in error.validator_value))
    return []


def _as(value: Json, kind: str) -> Any:
    """The value said as `kind`, if that says the very same; else _MISSING."""
    if isinstance(value, str) and kind in ("integer", "number", "boolean", "array", "object"):
        try:
            read = json.loads(value, parse_constant=_no)
        except (ValueError, RecursionError):
            return {"true": True, "false": False}.get(value.casefold(), _MISSING) if kind == "boolean" else _MISSING
        if kind in ("integer", "number") and json.dumps(read) != value.strip():
            return _MISSING  # "007" and "1e3" may be more than their number
        return read if _is(read, kind) else _as(read, kind) if isinstance(read, float) else _MISSING
    if isinstance(value, float) and kind == "integer" and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if kind == "string" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return json.dumps(value)
    return _MISSING


def _is(value: Json, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    kinds: dict[str, tuple[type, ...]] = {"integer": (int,), "number": (int, float)}
    kinds |= {"array": (list,), "object": (dict,)}
    return isinstance(value, kinds.get(kind, ()))


def _no(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _optional(schema: Json, path: Sequence[Any]) -> bool:
    """Whether the last step of the path may be left out, as far as plain `properties` and `items` tell."""
    for step in path[:-1]:
        if not isinstance(schema, dict):
            return False
        schema = schema.get("items") if isinstance(step, int) else (schema.get("properties") or {}).get(step)
    return isinstance(schema, dict) and path[-1] not in (schema.get("required") or ())


def _replaced(value: Any, path: Sequence[Any], new: Any) -> Any:
    step, *rest = path
    copy = list(value) if isinstance(value, list) else dict(value)
    if rest:
        copy[step] = _replaced(copy[step], rest, new)
    elif new is _MISSING:
        del copy[step]
    else:
        copy[step] = new
    return copy


def _short(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
