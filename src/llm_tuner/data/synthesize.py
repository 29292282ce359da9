"""Tasks from the schemas of a hub: requests in English and Japanese, each with the call that answers it.

A *catalogue* is the set of tools that a task offers. Many tasks share one catalogue, as the requests of one agent do;
that is also what lets training run its tokens once. The two sides share no request: held-out tasks use other words,
other values and other catalogues, and the `unseen` tools never stand in a training task at all.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from llm_tuner.data.paraphrases import CLOSINGS, MORE_OUT_OF_REACH, MORE_SMALL_TALK, OPENINGS
from llm_tuner.data.wording import (
    DECLINE,
    JOINS,
    OUT_OF_REACH,
    SMALL_TALK,
    WORDINGS,
    Sample,
    Wording,
    side_of,
)
from llm_tuner.types import (
    DataError,
    ExactCalls,
    Expectation,
    Json,
    Message,
    NoCall,
    Side,
    Task,
    ToolCall,
    ToolSpec,
    Value,
    by_name,
    canonical_json,
)


class Mix(Value):
    """What to make. Shares are of all tasks, the rest are single calls. `sizes`: fewest and most tools offered.

    `catalogue_chars` bounds a catalogue's definitions (about four characters a token): a longer one makes training rows
    that hardly fit `max_seq_length`.
    """

    tasks: int = Field(360, ge=1)
    catalogues: int = Field(12, ge=1)
    sizes: tuple[int, int] = (3, 8)
    catalogue_chars: int = Field(3600, ge=200)
    several: float = Field(0.15, ge=0, le=1)
    no_call: float = Field(0.25, ge=0, le=1)
    languages: tuple[Literal["en", "ja"], ...] = Field(("en", "ja"), min_length=1)
    unseen: tuple[str, ...] = ()
    whole_hub: bool = False
    seed: int = 0

    @model_validator(mode="after")
    def _possible(self) -> Mix:
        if not 1 <= self.sizes[0] <= self.sizes[1]:
            raise ValueError(f"sizes must be [fewest, most] with 1 <= fewest <= most, found {list(self.sizes)}")
        if self.several + self.no_call > 1:
            raise ValueError(f"the shares several and no_call add up to {self.several + self.no_call:g}, more than 1")
        return self


FRAMED = 0.2
"""Share of training requests with an opening or a closing."""

Ask = tuple[str, tuple[ToolCall, ...]]
"""A request and the calls that it wants."""


def synthesize(specs: Sequence[ToolSpec], mix: Mix, side: Side, *, pages: str = "") -> tuple[Task, ...]:
    """`mix.tasks` tasks over these tools for one side. Same arguments, same tasks.

    `pages` replaces `{base}` in URLs. With `mix.whole_hub` one of the catalogues is the whole hub. Raises DataError
    when there are too few tools or too few distinct requests.
    """
    tools = [tool for tool in specs if tool.name not in mix.unseen]
    if not tools:
        raise DataError(f"No tools to make tasks from ({len(specs)} found, {len(mix.unseen)} kept as unseen).")
    rng = random.Random(f"{mix.seed}:{side}")
    catalogues = _catalogues(tools, mix, rng)
    if mix.whole_hub:
        catalogues[0] = tuple(specs)
    return _fill(catalogues, tools, mix, side, rng, pages)


def synthesize_unseen(specs: Sequence[ToolSpec], mix: Mix, *, pages: str = "") -> tuple[Task, ...]:
    """Held-out single calls of the tools in `mix.unseen`, offered among known tools: here one sees what transfers."""
    rng = random.Random(f"{mix.seed}:unseen")
    known = by_name(specs)
    unseen = [known[name] for name in mix.unseen if name in known]
    others = [tool for tool in specs if tool.name not in mix.unseen]
    if not unseen:
        return ()
    catalogue = _shuffled([*unseen, *rng.sample(others, min(4, len(others)))], rng)
    single = mix.model_copy(update={"several": 0.0, "no_call": 0.0})
    return _fill([catalogue], unseen, single, "held-out", rng, pages)


def _catalogues(tools: Sequence[ToolSpec], mix: Mix, rng: random.Random) -> list[tuple[ToolSpec, ...]]:
    """Tools are dealt like cards, so that every tool is offered about equally often."""
    deck: list[ToolSpec] = []
    made = []
    for number in range(mix.catalogues):
        low, high = mix.sizes
        size = min(len(tools), low + number % (high - low + 1))
        hand: list[ToolSpec] = []
        room = mix.catalogue_chars
        while len(hand) < size:
            if not deck:
                deck = list(_shuffled(tools, rng))
            card = deck.pop()
            if card in hand:
                continue
            room -= len(canonical_json(card.openai()))
            if hand and room < 0:
                deck.append(card)
                break
            hand.append(card)
        made.append(tuple(hand))
    return made


def _shuffled(tools: Sequence[ToolSpec], rng: random.Random) -> tuple[ToolSpec, ...]:
    return tuple(rng.sample(list(tools), len(tools)))


def _fill(
    catalogues: Sequence[tuple[ToolSpec, ...]],
    targets: Sequence[ToolSpec],
    mix: Mix,
    side: Side,
    rng: random.Random,
    pages: str,
) -> tuple[Task, ...]:
    made: dict[tuple[str, int], Task] = {}
    categories = _categories(mix, rng)
    tries = 0
    while len(made) < mix.tasks:
        tries += 1
        if tries > mix.tasks * 50:
            raise DataError(
                f"{mix.tasks} {side} tasks were wanted; {len(targets)} tools gave {len(made)} distinct ones. "
                "Ask for fewer tasks or more catalogues."
            )
        number = len(made) % len(catalogues)
        language = mix.languages[(len(made) // len(catalogues)) % len(mix.languages)]
        task = _task(catalogues[number], targets, categories[len(made)], side, language, rng, pages)
        made.setdefault((task.request, number), task)
    return tuple(made.values())


def _categories(mix: Mix, rng: random.Random) -> list[str]:
    """What each task is to be, in the very shares of the mix."""
    no_call, several = round(mix.tasks * mix.no_call), round(mix.tasks * mix.several)
    every = ["no_call"] * no_call + ["several"] * several
    every += ["single"] * (mix.tasks - len(every))
    rng.shuffle(every)
    return every


def _task(
    catalogue: tuple[ToolSpec, ...],
    targets: Sequence[ToolSpec],
    category: str,
    side: Side,
    language: str,
    rng: random.Random,
    pages: str,
) -> Task:
    offered = [tool for tool in catalogue if tool in targets]
    expect: Expectation
    if category == "no_call" or not offered:
        category, (request, reply) = "no_call", _no_call(catalogue, targets, side, language, rng)
        expect = NoCall(reply=reply)
    elif category == "several" and len(offered) > 1:
        (first, a), (second, b) = (_ask(tool, side, language, rng) for tool in rng.choices(offered, k=2))
        joins = JOINS[language]
        join = joins[-1] if side == "held-out" else rng.choice(joins[:-1])
        request, expect = join.format(a=first, b=second), ExactCalls(calls=(*a, *b))
    else:
        category = "single"
        request, calls = _ask(rng.choice(offered), side, language, rng)
        expect = ExactCalls(calls=calls)
    return Task(
        messages=(Message(role="user", text=request.replace("{base}", pages)),),
        tools=catalogue,
        expect=_with_base(expect, pages),
        category=category,
        source="synthetic",
        licence="Apache-2.0",
        language=language,
        split=side,
        tags={"tools_offered": str(len(catalogue))},
    )


def _with_base(expect: Expectation, pages: str) -> Expectation:
    if not isinstance(expect, ExactCalls):
        return expect
    calls = []
    for call in expect.calls:
        filled = {k: v.replace("{base}", pages) if isinstance(v, str) else v for k, v in call.arguments.items()}
        calls.append(call.model_copy(update={"arguments": filled}))
    return expect.model_copy(update={"calls": tuple(calls)})


def _ask(tool: ToolSpec, side: Side, language: str, rng: random.Random) -> Ask:
    wordings = WORDINGS.get(tool.name)
    if wordings is None or not set(wordings[0].values) <= set(tool.parameters.get("properties", {})):
        return _ask_by_schema(tool, side, language, rng)
    wording: Wording = rng.choice(list(wordings))
    samples = {name: sampler(rng, side) for name, sampler in wording.values.items()}
    while len(samples) > 1 and _repeats(samples):
        samples = {name: sampler(rng, side) for name, sampler in wording.values.items()}
    said = {name: getattr(sample, language) for name, sample in samples.items()}
    request = _framed(rng.choice(wording.templates(language, side)).format(**said), side, language, rng)
    arguments = {**{name: sample.value for name, sample in samples.items()}, **wording.constants}
    return request, (ToolCall(name=tool.name, arguments=arguments),)


def _framed(request: str, side: Side, language: str, rng: random.Random) -> str:
    """Now and then a training request gets a word before or after it."""
    if side == "held-out" or rng.random() >= FRAMED:
        return request
    if rng.random() < 0.5:
        return rng.choice(OPENINGS[language]) + request
    return request + rng.choice(CLOSINGS[language])


def _repeats(samples: dict[str, Sample]) -> bool:
    """The same place twice, as in "from Tokyo to Tokyo"."""
    values = [str(sample.value) for sample in samples.values()]
    return len(set(values)) < len(values)


_PLAIN = {
    ("en", "train"): ("Please do this: {what}{given}", "I want the following. {what}{given}", "{what}{given}, please."),
    ("en", "held-out"): ("Could you help me with this? {what}{given}",),
    ("ja", "train"): (
        "次のことをしてください: {what}{given}",
        "{what}{given} をお願いします。",
        "以下を実行して。{what}{given}",
    ),
    ("ja", "held-out"): ("これを手伝ってもらえますか？ {what}{given}",),
}
"""Requests for tools without a wording of their own."""


def _ask_by_schema(tool: ToolSpec, side: Side, language: str, rng: random.Random) -> Ask:
    """A request for any tool: what it does in its own words, and each required value by its name."""
    properties = tool.parameters.get("properties", {})
    values = {name: _value(name, properties.get(name, {}), side, rng) for name in tool.parameters.get("required", [])}
    what = (tool.description.strip() or tool.name).splitlines()[0].rstrip(". ")
    given = ", ".join(f"{name} = {value}" for name, value in values.items())
    given = f" ({given})" if given else ""
    request = rng.choice(_PLAIN[language, side]).replace("{what}", what).replace("{given}", given)
    return request, (ToolCall(name=tool.name, arguments=values),)


def _value(name: str, schema: dict[str, Json], side: Side, rng: random.Random) -> Json:
    """A value that the schema allows: an enum member, a number in range, a word for text. Numbers and words of the two
    sides differ; a closed set (an enum, a boolean, a short range) is shared."""
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return _value(name, schema[key][0], side, rng)
    if "enum" in schema:
        return rng.choice(schema["enum"])
    kind = schema.get("type", "string")
    if isinstance(kind, list):
        kind = kind[0]
    if kind in ("integer", "number"):
        low, high = _bounds(schema)
        value = rng.choice(side_of(range(low, high + 1), side) if high - low >= 8 else range(low, high + 1))
        return value if kind == "integer" or value == high else value + 0.5
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "array":
        return [_value(name, schema.get("items", {}), side, rng) for _ in range(max(1, int(schema.get("minItems", 1))))]
    if kind == "object":
        wanted = schema.get("required", [])
        return {key: _value(key, schema.get("properties", {}).get(key, {}), side, rng) for key in wanted}
    return f"{name}-{rng.choice(side_of(range(10, 1000), side))}"


def _bounds(schema: dict[str, Json]) -> tuple[int, int]:
    """A small range of whole numbers inside the schema's own, near zero or its lower bound."""
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None:
        low = 1 if high is None or high >= 1 else high - 50
    high = low + 50 if high is None else min(high, low + 50)
    return math.ceil(low), max(math.ceil(low), math.floor(high))


def _no_call(
    catalogue: Sequence[ToolSpec], targets: Sequence[ToolSpec], side: Side, language: str, rng: random.Random
) -> tuple[str, str]:
    """A request that no offered tool can serve, and a right answer: small talk, another world, or a tool that is known
    elsewhere but not offered here (the hardest, since it looks like the others: training has twice as many)."""
    absent = [tool for tool in targets if not _served_by(tool, catalogue) and tool.name in WORDINGS]
    training = side == "train"
    kinds = ["small talk", "other world", *(["absent tool"] * (2 if training else 1) if absent else ())]
    kind = rng.choice(kinds)
    if kind == "small talk":
        return rng.choice([*side_of(SMALL_TALK[language], side), *(MORE_SMALL_TALK[language] if training else ())])
    if kind == "other world":
        more = MORE_OUT_OF_REACH[language] if training else ()
        return rng.choice([*side_of(OUT_OF_REACH[language], side), *more]), DECLINE[language]
    request, _ = _ask(rng.choice(absent), side, language, rng)
    return request, DECLINE[language]


_COULD_ALSO = {
    "list_tables": {"read_query"}, "describe_table": {"read_query"}, "create_table": {"write_query"},
    "git_log": {"git_show"}, "git_show": {"git_log", "git_diff"}, "git_diff_unstaged": {"git_status", "git_diff"},
    "git_diff_staged": {"git_status", "git_diff"}, "git_status": {"git_diff_unstaged", "git_diff_staged"},
    "git_diff": {"git_show"},
}  # fmt: skip
"""Tools that could serve another tool's request in some reading; such a request is no test of "nothing fits"."""


def _served_by(tool: ToolSpec, catalogue: Sequence[ToolSpec]) -> bool:
    names = {offered.name for offered in catalogue}
    return tool.name in names or bool(_COULD_ALSO.get(tool.name, set()) & names)
