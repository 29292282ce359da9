"""What a data set from a hub is to hold: how many of what kind, in which language, of which tool, in which catalogue.

Nothing is worded and nothing is called here. The rule it protects: the plan follows from the settings, the tools and
the seed alone, so that a build that was killed goes on with the very same plan, and the shares are exact.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self, TypeVar, get_args

from pydantic import Field, model_validator

from llm_tuner.data.catalogues import Catalogue, Vector, deal, likeness, vectors
from llm_tuner.data.wordings import Language, Recipe, ToolWording, recipes, wording_of, wordings
from llm_tuner.types import DataError, Side, ToolSpec, Value

Kind = Literal["single", "look_alike", "several", "sequence", "follow_up", "missing", "irrelevant", "error"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Rendering = Literal["auto", "full", "compressed", "compact"]

SHARES: Mapping[Kind, float] = {
    "single": 0.26,
    "look_alike": 0.2,
    "several": 0.12,
    "sequence": 0.09,
    "follow_up": 0.08,
    "missing": 0.08,
    "irrelevant": 0.11,
    "error": 0.06,
}
LANGUAGE_SHARES: Mapping[Language, float] = {"en": 0.5, "ja": 0.38, "mixed": 0.12}

T = TypeVar("T")


class HubMix(Value):
    """What to make of a hub. Shares are of all tasks and are made to add up to 1.

    `sizes`: how many tools a catalogue offers, one after the other; a number above the hub's own means all of them.
    `unseen_tools`, `unseen_servers`: what stands on the held-out side only; None chooses some tools and one server.
    `masked`: the share of catalogues whose tools have other names.
    """

    count: int = Field(1500, ge=1)
    seed: int = 0
    held_out: float = Field(0.2, ge=0, le=0.9)
    kinds: dict[Kind, float] = Field(default_factory=lambda: dict(SHARES))
    languages: dict[Language, float] = Field(default_factory=lambda: dict(LANGUAGE_SHARES))
    sizes: tuple[int, ...] = Field((5, 8, 3, 12, 6, 24, 9, 4, 73, 7, 16, 1, 10, 36), min_length=1)
    masked: float = Field(0.15, ge=0, le=1)
    rendering: Rendering = "auto"
    catalogue_tasks: int = Field(12, ge=1)
    unseen_tools: tuple[str, ...] | None = None
    unseen_servers: tuple[str, ...] | None = None
    list_only: tuple[str, ...] = ()
    execute: bool = True

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for name, shares in (("kinds", self.kinds), ("languages", self.languages)):
            if min(shares.values(), default=0) < 0 or sum(shares.values()) <= 0:
                raise ValueError(f"the shares of {name} must be 0 or more, and some above 0, found {dict(shares)}")
        if min(self.sizes) < 1:
            raise ValueError(f"a catalogue offers at least one tool, found sizes {list(self.sizes)}")
        return self


@dataclass(frozen=True)
class Slot:
    """The place of one task in the data set: everything about it but its words and values."""

    number: int
    side: Side
    kind: Kind
    language: Language
    catalogue: Catalogue
    target: str


@dataclass(frozen=True)
class Plan:
    """The slots in order, and the tools that only the held-out side sees."""

    slots: tuple[Slot, ...]
    unseen: frozenset[str]
    unseen_servers: tuple[str, ...]
    tools: Mapping[str, ToolSpec]

    def tools_of(self, side: Side) -> Mapping[str, ToolSpec]:
        """What requests of a side may be about, also where they are to be declined."""
        return {n: t for n, t in self.tools.items() if side == "held-out" or n not in self.unseen}


def plan(specs: Sequence[ToolSpec], mix: HubMix, callable_tools: frozenset[str]) -> Plan:
    """The plan of a data set over these tools. Kinds whose history holds a result are made of `callable_tools` only.

    Raises DataError where there is no tool to make tasks of.
    """
    if not specs:
        raise DataError("The hub lists no tool. Run: llm-tuner tools list --hub FILE")
    rng = random.Random(f"{mix.seed}:plan")
    servers = _unseen_servers(specs, mix, rng)
    unseen = _unseen_tools(specs, servers, mix, rng)
    seen = [tool for tool in specs if tool.name not in unseen]
    if not seen:
        raise DataError(f"All {len(specs)} tools are kept for the held-out side. Leave some for training.")
    weights = vectors(specs)
    held_out = round(mix.count * mix.held_out)
    slots: list[Slot] = []
    sides: tuple[tuple[Side, int, Sequence[ToolSpec]], ...] = (
        ("train", mix.count - held_out, seen),
        ("held-out", held_out, specs),
    )
    for side, count, tools in sides:
        slots += _side(side, count, len(slots), tools, unseen, weights, mix, callable_tools)
    return Plan(tuple(slots), frozenset(unseen), servers, {tool.name: tool for tool in specs})


def _unseen_servers(specs: Sequence[ToolSpec], mix: HubMix, rng: random.Random) -> tuple[str, ...]:
    """The servers asked for; else one small one of a hub of at least four."""
    sizes = Counter(tool.server for tool in specs)
    if mix.unseen_servers is not None:
        unknown = sorted(set(mix.unseen_servers) - set(sizes))
        if unknown:
            raise DataError(f"No server {unknown[0]!r} in the hub (found: {', '.join(sizes)}).")
        return mix.unseen_servers
    small = sorted(name for name, size in sizes.items() if size * 12 <= len(specs))
    return (rng.choice(small),) if len(sizes) >= 4 and small and mix.held_out else ()


def _unseen_tools(specs: Sequence[ToolSpec], servers: Sequence[str], mix: HubMix, rng: random.Random) -> set[str]:
    unseen = {tool.name for tool in specs if tool.server in servers}
    if mix.unseen_tools is not None:
        unknown = sorted(set(mix.unseen_tools) - {tool.name for tool in specs})
        if unknown:
            raise DataError(f"No tool {unknown[0]!r} in the hub. Run: llm-tuner tools list --hub FILE")
        return unseen | set(mix.unseen_tools)
    if not mix.held_out:
        return unseen
    needed = {name for recipe in recipes() for name in recipe.tools}
    rest = [tool.name for tool in specs if tool.name not in unseen and tool.name not in needed]
    return unseen | set(rng.sample(rest, len(rest) // 12))


def _side(
    side: Side,
    count: int,
    first: int,
    tools: Sequence[ToolSpec],
    unseen: set[str],
    weights: Mapping[str, Vector],
    mix: HubMix,
    callable_tools: frozenset[str],
) -> list[Slot]:
    rng = random.Random(f"{mix.seed}:plan:{side}")
    catalogues = list(_catalogues(count, tools, unseen, weights, rng, mix))
    places = [index for index in range(len(catalogues)) for _ in range(mix.catalogue_tasks)][:count]
    kinds = _assigned(dict(Counter(_exact(mix.kinds, count, rng))), places, catalogues, callable_tools, rng)
    languages = _exact(mix.languages, count, rng)
    asked: Counter[str] = Counter()
    slots = []
    for number, (place, kind, language) in enumerate(zip(places, kinds, languages, strict=True)):
        catalogue = catalogues[place]
        target = _target(kind, catalogue, asked, unseen if side == "held-out" else set(), weights, callable_tools, rng)
        asked[target] += kind in ("single", "look_alike", "several", "follow_up")
        slots.append(Slot(first + number, side, kind, language, catalogue, target))
    return slots


def _catalogues(
    count: int,
    tools: Sequence[ToolSpec],
    unseen: set[str],
    weights: Mapping[str, Vector],
    rng: random.Random,
    mix: HubMix,
) -> Iterator[Catalogue]:
    """Around each tool in turn, so that every one is offered among its look-alikes."""
    rivals = {name: frozenset(wording.rivals) for name, wording in wordings().items()}
    names = {tool.name for tool in tools}
    usable = [recipe for recipe in recipes() if set(recipe.tools) <= names]
    seeds: list[ToolSpec] = []
    for number in range(-(-count // mix.catalogue_tasks)):
        if not seeds:
            seeds = rng.sample(list(tools), len(tools))
            seeds.sort(key=lambda tool: tool.name in unseen)  # taken from the end: the unseen first
        size = min(len(tools), mix.sizes[number % len(mix.sizes)])
        wanted = [n for fails in (False, True) for n in _recipe_tools(usable, fails, rng)] if size >= 6 else []
        yield deal(
            seeds.pop(), size, tools, weights, rng, wanted=wanted, rivals=rivals, mask=rng.random() < mix.masked,
            rendering=_rendering(mix.rendering, size, rng),
        )  # fmt: skip


def _recipe_tools(usable: Sequence[Recipe], fails: bool, rng: random.Random) -> Sequence[str]:
    fitting = [recipe for recipe in usable if recipe.fails is fails]
    return rng.choice(fitting).tools if fitting else ()


def _rendering(wanted: Rendering, size: int, rng: random.Random) -> str:
    """Long catalogues only fit a small window as signatures; short ones are shown in every form."""
    if wanted != "auto":
        return wanted
    if size > 20:
        return "compact"
    if size > 8:
        return rng.choice(("compressed", "compact"))
    return rng.choice(("full", "full", "compressed", "compact"))


def _exact(shares: Mapping[T, float], count: int, rng: random.Random) -> list[T]:
    """`count` items in these very shares (largest remainders), shuffled."""
    total = sum(shares.values())
    exact = {item: count * share / total for item, share in shares.items()}
    made = {item: int(n) for item, n in exact.items()}
    by_rest = sorted(exact, key=lambda item: made[item] - exact[item])
    for item in by_rest[: count - sum(made.values())]:
        made[item] += 1
    every = [item for item, n in made.items() for _ in range(n)]
    rng.shuffle(every)
    return every


def _assigned(
    wanted: dict[Kind, int],
    places: Sequence[int],
    catalogues: Sequence[Catalogue],
    callable_tools: frozenset[str],
    rng: random.Random,
) -> list[Kind]:
    """A kind for each place: the kinds that few catalogues can have choose first; what fits nowhere becomes single."""
    kinds: dict[int, Kind] = {}
    can = [possible_kinds(catalogue, callable_tools) for catalogue in catalogues]
    order: tuple[Kind, ...] = (
        "sequence", "error", "look_alike", "missing", "follow_up", "several", "irrelevant", "single",
    )  # fmt: skip
    for kind in order:
        free = [i for i in range(len(places)) if i not in kinds and kind in can[places[i]]]
        for index in rng.sample(free, min(len(free), wanted.get(kind, 0))):
            kinds[index] = kind
    return [kinds.get(i, "single") for i in range(len(places))]


def possible_kinds(catalogue: Catalogue, callable_tools: frozenset[str]) -> set[Kind]:
    kinds: set[Kind] = {"single", "irrelevant"}
    found = {tool.name: wording_of(tool) for tool in catalogue.own}
    if any(found.values()):
        kinds.add("several")
    if any(repeatable(wording) for name, wording in found.items() if name in callable_tools):
        kinds.add("follow_up")
    if any(wording and wording.missing for wording in found.values()):
        kinds.add("missing")
    if len(found) >= 3:
        kinds.add("look_alike")
    for recipe in recipes():
        if set(recipe.tools) <= catalogue.names and recipe.first.tool in callable_tools:
            kinds.add("error" if recipe.fails else "sequence")
    return kinds


def repeatable(wording: ToolWording | None) -> bool:
    """Whether a user may ask for this tool's way once more with another value."""
    return wording is not None and not wording.volatile and any(way.say and not way.arguments for way in wording.ways)


def _target(
    kind: Kind,
    catalogue: Catalogue,
    asked: Counter[str],
    favoured: set[str],
    weights: Mapping[str, Vector],
    callable_tools: frozenset[str],
    rng: random.Random,
) -> str:
    """The tool that was asked for least so far, of those that the kind allows."""
    names = [tool.name for tool in catalogue.own]
    if kind == "look_alike":
        own = weights[catalogue.seed_tool]
        names = sorted(names, key=lambda name: -likeness(own, weights[name]))[: max(2, len(names) // 2)]
    elif kind == "missing":
        found = {t.name: wording_of(t) for t in catalogue.own}
        names = [name for name, wording in found.items() if wording and wording.missing]
    elif kind == "follow_up":
        names = [t.name for t in catalogue.own if t.name in callable_tools and repeatable(wording_of(t))]
    names = [name for name in names if not _ambiguous(name, catalogue)] or names
    return min(names, key=lambda name: (asked[name] - 2 * (name in favoured), rng.random()))


def _ambiguous(name: str, catalogue: Catalogue) -> bool:
    wording = wordings().get(name)
    return wording is not None and bool(set(wording.rivals) & catalogue.names)
