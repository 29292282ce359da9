"""What can be done here, each thing once: the terminal, the MCP server and the dashboard offer these, and no others.

An operation is a function of plain keyword arguments. The rule it protects: what destroys something says first what
would go, and does it only when it is asked again with `confirm`; so no face can forget to ask.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from llm_tuner.types import Event, Json, SetupError, Value

Effect = Literal["reads", "changes", "destroys"]

_RESULT: TypeAdapter[Any] = TypeAdapter(Any)


class Change(Value):
    """What an operation that destroys did, or (`done` false) would do: sentences for people, facts for programs. Where
    there is nothing to do it is done at once."""

    done: bool
    sentences: tuple[str, ...]
    facts: dict[str, Json] = Field(default_factory=dict)


@dataclass(frozen=True)
class Operation:
    """`run` takes keyword arguments, each with a type and a `Field(description=...)`, and returns a value that is or
    becomes JSON; a long one is a generator of Events that returns it. Its docstring's first sentence is the English
    summary, `ja` the Japanese one. `command` is how the terminal says it: ("ollama", "pull").

    One that destroys has an argument `confirm: bool = False` and returns a Change.
    """

    name: str
    run: Callable[..., Any]
    command: tuple[str, ...]
    ja: str
    effect: Effect = "reads"

    @property
    def long(self) -> bool:
        """Whether it tells of its progress, and may be stopped."""
        return inspect.isgeneratorfunction(self.run)

    @property
    def summary(self) -> str:
        return inspect.getdoc(self.run).partition("\n\n")[0].replace("\n", " ")  # type: ignore[union-attr]

    @property
    def help(self) -> str:
        """The whole docstring."""
        return inspect.getdoc(self.run) or ""

    @cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The arguments, with their annotations resolved (Annotated kept)."""
        hints = get_type_hints(self.run, include_extras=True)
        found = inspect.signature(self.run).parameters
        return {name: one.replace(annotation=hints[name]) for name, one in found.items()}

    @cached_property
    def arguments(self) -> type[BaseModel]:
        """A model of the arguments: it validates them, and `model_json_schema()` describes them."""
        fields: dict[str, Any] = {
            name: (one.annotation, ... if one.default is inspect.Parameter.empty else one.default)
            for name, one in self.parameters.items()
        }
        return create_model(self.name, __config__=ConfigDict(extra="forbid"), **fields)


def amount(size: float | None) -> str:
    """Bytes as people read them: 1.23 GB, 45 MB; "?" where nobody knows."""
    if size is None:
        return "?"
    return (
        f"{size / 1e9:.2f} GB"
        if size >= 1e9
        else f"{size / 1e6:.0f} MB"
        if size >= 1e6 or not size
        else f"{size / 1e3:.1f} kB"
    )


def perform(operation: Operation, arguments: Mapping[str, Any]) -> Generator[Event, None, Json]:
    """Does it: events of a long one, and its result as JSON. Raises SetupError for arguments that it does not take, and
    what the operation raises. Closing the generator stops a long one; what it finished is kept."""
    try:
        given = operation.arguments.model_validate(dict(arguments))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        known = ", ".join(operation.parameters) or "none"
        raise SetupError(f"{operation.name}: {where}: {problem['msg']}. It takes: {known}.") from error
    result = operation.run(**{name: getattr(given, name) for name in operation.parameters})
    if operation.long:
        result = yield from result
    return _RESULT.dump_python(result, mode="json")
