"""How people ask for the tools of well-known servers, as data: one TOML file a server, phrases and values beside it.

Not the demo's wording (wording.py, paraphrases.py), which its published numbers belong to. The rule it protects: a way
of asking names every value that its call needs, in every sentence of every language; a file that does not is refused.

A file holds, by tool, its *ways*: `say` (the values that the request gives, each with its spec of values.py),
sentences in `en`, `ja` and `mixed`, and `arguments` where they are not just the values by their names. `missing` holds
requests that leave one value out. `rivals` fit the same requests equally, so that they are never offered beside this
tool; `near` tools could serve in its absence. The last sentences of every list are kept for the held-out side.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from string import Formatter
from typing import Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from llm_tuner.types import DataError, Json, Side, ToolSpec, Value

Language = Literal["en", "ja", "mixed"]
LANGUAGES: tuple[Language, ...] = ("en", "ja", "mixed")
_NO_TOOLS = ("pools.toml", "phrases.toml", "recipes.toml")

V = TypeVar("V", bound=Value)


class Sentences(Value):
    """Request templates. `say`: the values that each of them names."""

    say: dict[str, str] = Field(default_factory=dict)
    en: tuple[str, ...] = Field(min_length=2)
    ja: tuple[str, ...] = Field(min_length=2)
    mixed: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for template in (*self.en, *self.ja, *self.mixed):
            if holes(template) != set(self.say):
                raise ValueError(f"{template!r} should name {sorted(self.say)}, names {sorted(holes(template))}")
        return self

    def of(self, language: str, side: Side) -> Sequence[str]:
        """The sentences that a side may use: the last two of six or more are held out, else the last one."""
        every = {"en": self.en, "ja": self.ja, "mixed": self.mixed}[language]
        return sided(every, side)


class Way(Sentences):
    """One way to use a tool."""

    arguments: dict[str, Json] | None = None

    def call_arguments(self, values: Mapping[str, Json]) -> dict[str, Json]:
        """The arguments of the call for these values."""
        if self.arguments is None:
            return dict(values)
        filled: dict[str, Json] = fill(self.arguments, values)
        return filled


class Lack(Sentences):
    """Requests that leave out the value `lacks`, which stands for the parameter of that name in the ways."""

    lacks: str
    ask_en: tuple[str, ...] = Field(min_length=1)
    ask_ja: tuple[str, ...] = Field(min_length=1)


class ToolWording(Value):
    """A tool's ways. The result of a `volatile` tool stands in no history: it differs each time,
    or it is too long."""

    rivals: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    volatile: bool = False
    ways: tuple[Way, ...] = Field(min_length=1)
    missing: tuple[Lack, ...] = ()


class ServerWording(Value):
    """What one server's file holds. `offline`: whether its tools can be called without a network; `pages`: whether they
    read web pages."""

    server: str
    offline: bool = True
    pages: bool = False
    tools: dict[str, ToolWording]


class Step(Value):
    """A call of a recipe; `{value}` in its arguments, `{found}` for what the first result gave."""

    tool: str
    arguments: dict[str, Json]


class Recipe(Sentences):
    """Two calls, the second of which depends on what the first one answered.

    `take` is a pattern with one group `found`, in which `{value}` stands for a said value; it must match the first
    result once. `fails`: the first result has to be an error, and `then` or the reply is what handles it.
    """

    name: str
    first: Step
    then: Step | None = None
    take: str = ""
    fails: bool = False
    reply_en: tuple[str, ...] = ()
    reply_ja: tuple[str, ...] = ()

    @property
    def tools(self) -> tuple[str, ...]:
        return (self.first.tool, *([self.then.tool] if self.then else []))


class Phrases(Value):
    """What people say around and beside requests, by language."""

    openings: dict[str, tuple[str, ...]]
    closings: dict[str, tuple[str, ...]]
    contexts: dict[str, tuple[str, ...]]
    joins: dict[str, tuple[str, ...]]
    follow_ups: dict[str, tuple[str, ...]]
    answered: dict[str, tuple[str, ...]]
    thanks: dict[str, tuple[tuple[str, str], ...]]
    declines: dict[str, tuple[str, ...]]
    small_talk: dict[str, tuple[tuple[str, str], ...]]
    out_of_reach: dict[str, tuple[str, ...]]


@cache
def servers() -> tuple[ServerWording, ...]:
    """Every server's file. Raises DataError with its name and what is wrong in it."""
    folder = resources.files("llm_tuner.data").joinpath("wordings")
    names = sorted(f.name for f in folder.iterdir() if f.name.endswith(".toml") and f.name not in _NO_TOOLS)
    return tuple(_read(name, ServerWording) for name in names)


@cache
def wordings() -> Mapping[str, ToolWording]:
    """Wordings by the tool's name."""
    return {name: wording for server in servers() for name, wording in server.tools.items()}


@cache
def phrases() -> Phrases:
    return _read("phrases.toml", Phrases)


@cache
def recipes() -> tuple[Recipe, ...]:
    return _read("recipes.toml", _Recipes).recipes


class _Recipes(Value):
    recipes: tuple[Recipe, ...]


def wording_of(tool: ToolSpec) -> ToolWording | None:
    """The wording that fits this very tool: its name is known, and so is every argument of the ways. A prefix that the
    hub put before the name (`server__tool`) does not count."""
    found = wordings().get(plain_name(tool))
    properties = tool.parameters.get("properties")
    known = set(properties) if isinstance(properties, dict) else set()
    if found is None or not all(set(way.arguments or way.say) <= known for way in found.ways):
        return None
    return found


def plain_name(tool: ToolSpec) -> str:
    """The name that the tool's server gave it."""
    prefix, _, rest = tool.name.partition("__")
    server = "".join(c if c.isalnum() or c in "_-" else "_" for c in tool.server)
    return rest if rest and prefix == server else tool.name


def sided(every: Sequence[str], side: Side) -> Sequence[str]:
    """The part of a list of sentences that a side may use."""
    kept = 2 if len(every) >= 6 else 1 if len(every) >= 2 else 0
    return every[-kept:] if side == "held-out" and kept else every[: len(every) - kept] if kept else every


def holes(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name}


def fill(shape: Json, values: Mapping[str, Json]) -> Json:
    """`shape` with every `{name}` replaced: by the value itself where it is the whole text, else by its words."""
    if isinstance(shape, dict):
        return {key: fill(inner, values) for key, inner in shape.items()}
    if isinstance(shape, list):
        return [fill(inner, values) for inner in shape]
    if not isinstance(shape, str):
        return shape
    for name, value in values.items():
        if shape == f"{{{name}}}":
            return value
        shape = shape.replace(f"{{{name}}}", str(value))
    return shape


def _read(name: str, kind: type[V]) -> V:
    text = resources.files("llm_tuner.data").joinpath(f"wordings/{name}").read_text(encoding="utf-8")
    try:
        return kind.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise DataError(f"wordings/{name} is wrong: {error}") from error
