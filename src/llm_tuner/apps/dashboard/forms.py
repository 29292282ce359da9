"""An operation's arguments as fields of a form, out of their JSON schema."""

from __future__ import annotations

from typing import Any, NamedTuple

from llm_tuner.operations import Operation


class Field(NamedTuple):
    """`kind` is text, lines, number, whole, yes, or choice (of `choices`)."""

    name: str
    kind: str
    help: str
    required: bool
    default: str
    on: bool = False
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None


def fields(operation: Operation) -> list[Field]:
    """All but `confirm`, which the page asks for in its own way."""
    schema = operation.arguments.model_json_schema()
    wanted = schema.get("required", ())
    return [
        _field(name, one, name in wanted) for name, one in schema.get("properties", {}).items() if name != "confirm"
    ]


_KINDS = {"integer": "whole", "number": "number", "boolean": "yes", "array": "lines"}


def _field(name: str, schema: dict[str, Any], required: bool) -> Field:
    default = schema.get("default")
    choices = tuple(str(one) for one in schema.get("enum", ()))
    return Field(
        name=name,
        kind="choice" if choices else _KINDS.get(schema.get("type", ""), "text"),
        help=schema.get("description", ""),
        required=required,
        default="\n".join(map(str, default)) if isinstance(default, list) else "" if default is None else str(default),
        on=default is True,
        choices=choices,
        low=schema.get("minimum", schema.get("exclusiveMinimum")),
        high=schema.get("maximum"),
    )
