"""Catalogues for tasks: which tools are offered together, under which names, in which order.

Not the requests. The rule it protects: a catalogue of a side holds only tools that this side may see, and a tool that
is offered under another name is still called by its own.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llm_tuner.store.scrub import looks_random
from llm_tuner.types import Json, ToolCall, ToolSpec

Vector = Mapping[str, float]


@dataclass(frozen=True)
class Renaming:
    """A tool's other name, and those of its parameters, by the original names."""

    name: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    def spec(self, tool: ToolSpec) -> ToolSpec:
        """The tool as it is offered: the same description and schema under other names."""
        schema = dict(tool.parameters)
        if isinstance(schema.get("properties"), dict):
            schema["properties"] = {self.parameters.get(k, k): v for k, v in schema["properties"].items()}
        if isinstance(schema.get("required"), list):
            schema["required"] = [self.parameters.get(k, k) for k in schema["required"]]
        return ToolSpec(name=self.name, description=tool.description, parameters=schema, server=tool.server)

    def call(self, call: ToolCall) -> ToolCall:
        arguments = {self.parameters.get(key, key): value for key, value in call.arguments.items()}
        return call.model_copy(update={"name": self.name, "arguments": arguments})


# ------------------------------------------------------------------------------------------------------ likeness


def vectors(tools: Sequence[ToolSpec]) -> dict[str, Vector]:
    """Each tool's words by weight (tf-idf, length 1), by name: those of its name count three times."""
    words = {tool.name: _words(tool) for tool in tools}
    found_in = Counter(word for counts in words.values() for word in counts)
    out: dict[str, Vector] = {}
    for name, counts in words.items():
        weights = {w: n * math.log((1 + len(tools)) / found_in[w]) for w, n in counts.items()}
        length = math.sqrt(sum(x * x for x in weights.values())) or 1.0
        out[name] = {word: x / length for word, x in weights.items()}
    return out


def likeness(a: Vector, b: Vector) -> float:
    """Cosine of two weighted bags of words, 0 to 1."""
    return sum(x * b[word] for word, x in a.items() if word in b)


def nearest(tool: ToolSpec, others: Sequence[ToolSpec], weights: Mapping[str, Vector]) -> list[ToolSpec]:
    """The other tools, the most alike first."""
    own = weights[tool.name]
    rest = [other for other in others if other.name != tool.name]
    return sorted(rest, key=lambda other: (-likeness(own, weights[other.name]), other.name))


def _words(tool: ToolSpec) -> Counter[str]:
    name = _split(tool.name)
    return Counter(name * 3 + _split(tool.description[:300]) + _split(tool.server))


def _split(text: str) -> list[str]:
    return [
        w.rstrip("s") for w in re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", text).lower()) if len(w) > 2
    ]


# ------------------------------------------------------------------------------------------------------- renaming

_SYNONYMS = {
    "get": "obtain",
    "read": "load",
    "list": "enumerate",
    "create": "make",
    "delete": "drop",
    "search": "find",
    "write": "store",
    "move": "relocate",
    "add": "append",
    "update": "change",
    "file": "document",
    "files": "documents",
    "directory": "folder",
    "repository": "project",
    "repositories": "projects",
    "issue": "ticket",
    "issues": "tickets",
    "pull_request": "merge_request",
    "branch": "line",
    "commit": "record",
    "commits": "records",
    "message": "note",
    "channel": "room",
    "channels": "rooms",
    "user": "member",
    "users": "members",
    "entities": "nodes",
    "status": "state",
    "diff": "changes",
    "fetch": "download",
    "show": "display",
    "convert": "translate",
    "current": "present",
    "log": "history",
    "path": "location",
    "paths": "locations",
    "content": "body",
    "query": "terms",
    "timezone": "zone",
    "repo": "project",
    "owner": "account",
    "title": "headline",
    "limit": "maximum",
    "names": "titles",
    "text": "words",
    "url": "address",
}


def renamed(tool: ToolSpec, taken: set[str], rng: random.Random) -> Renaming:
    """A neutral name (`tool_41`, `arg_2`) or one of synonyms; never one that is taken."""
    properties = list(tool.parameters.get("properties") or {})
    if rng.random() < 0.5:
        name = _free(f"{rng.choice(('tool', 'fn', 'action', 'op'))}_{rng.randrange(10, 100)}", taken, rng)
        order = rng.sample(range(1, len(properties) + 1), len(properties))
        return Renaming(name, {old: f"arg_{number}" for old, number in zip(properties, order, strict=True)})
    name = _free(_synonym(tool.name), taken, rng)
    other = {old: _synonym(old) for old in properties}
    if len(set(other.values())) < len(other):
        other = {}
    return Renaming(name, other)


def _free(name: str, taken: set[str], rng: random.Random) -> str:
    """The name, or the name and a number: a small one where a larger would make it look like somebody's key."""
    while name in taken:
        number = rng.randrange(2, 100)
        numbered = f"{name}_{number}"
        name = f"{name}_{2 + number % 8}" if looks_random(numbered) else numbered
    taken.add(name)
    return name


def _synonym(name: str) -> str:
    name = name.replace("pull_request", "merge_request")
    return "_".join(_SYNONYMS.get(part, part) for part in name.split("_"))


# ----------------------------------------------------------------------------------------------------- a catalogue


@dataclass(frozen=True)
class Catalogue:
    """Tools offered together: `own`, as the hub has them, in the order shown, and the `renamings` by their own names.

    `seed_tool` is the one that the others were chosen to be like; `rendering`: how the definitions are to stand in the
    prompt (models/signatures.py).
    """

    own: tuple[ToolSpec, ...]
    seed_tool: str
    rendering: str = "full"
    renamings: Mapping[str, Renaming] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool.name for tool in self.own)

    @property
    def shown(self) -> tuple[ToolSpec, ...]:
        return tuple(self.renamings[t.name].spec(t) if t.name in self.renamings else t for t in self.own)

    def shown_call(self, call: ToolCall) -> ToolCall:
        """The call under the names that this catalogue shows."""
        renaming = self.renamings.get(call.name)
        return renaming.call(call) if renaming else call

    def tags(self) -> dict[str, str]:
        if not self.renamings:
            return {}
        tools = {own: other.name for own, other in self.renamings.items()}
        parameters: dict[str, Json] = {own: dict(other.parameters) for own, other in self.renamings.items()}
        return {
            "renamed": json.dumps(tools, sort_keys=True),
            "renamed_parameters": json.dumps(parameters, sort_keys=True),
        }


def deal(
    seed_tool: ToolSpec,
    size: int,
    tools: Sequence[ToolSpec],
    weights: Mapping[str, Vector],
    rng: random.Random,
    *,
    wanted: Sequence[str] = (),
    rivals: Mapping[str, frozenset[str]] | None = None,
    mask: bool = False,
    rendering: str = "full",
) -> Catalogue:
    """`size` tools around one: those that are `wanted` besides, its look-alikes, then any others, in any order.

    `rivals` of the seed tool are left out, unless every tool is asked for.
    """
    kept_out = (rivals or {}).get(seed_tool.name, frozenset()) if size < len(tools) else frozenset()
    chosen = {seed_tool.name: seed_tool}
    others = [tool for tool in tools if tool.name not in kept_out]
    for tool in others:
        if tool.name in wanted and len(chosen) < size:
            chosen.setdefault(tool.name, tool)
    alike = nearest(seed_tool, others, weights)
    for tool in alike[: max(0, (size - len(chosen) + 1) // 2)]:
        chosen.setdefault(tool.name, tool)
    rest = [tool for tool in others if tool.name not in chosen]
    for tool in rng.sample(rest, max(0, min(len(rest), size - len(chosen)))):
        chosen[tool.name] = tool
    own = rng.sample(list(chosen.values()), len(chosen))
    taken = set(chosen)
    renamings = {tool.name: renamed(tool, taken, rng) for tool in own} if mask else {}
    return Catalogue(tuple(own), seed_tool.name, rendering, renamings)
