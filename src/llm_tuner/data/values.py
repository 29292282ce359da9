"""Values that requests give and calls carry: drawn from large pools, as each side may.

Not a generator of requests. The rule it protects: a value of training never stands on the held-out side, except where
the set is closed (an enum, a clock). A *spec* names how to draw: a pool (`repo`), `int 1 20`, `list repo-changed`,
`clock`, `date`, `hex 40`, `stamp` (a Slack time stamp).
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources

from llm_tuner.data.wording import Sample, side_of
from llm_tuner.types import DataError, Json, Side

JA_VALUES = 0.6
"""How often a Japanese request takes a Japanese value where there is one."""

_HOLE = re.compile(r"\{([a-z-]+)\}")


@cache
def tables() -> Mapping[str, Mapping[str, Sequence[Json]]]:
    """`pools`, `composed` and `closed` of wordings/pools.toml."""
    text = resources.files("llm_tuner.data").joinpath("wordings/pools.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def pool(name: str, side: Side | None = None) -> list[Json]:
    """The plain values of a pool; with a side only those that it may use."""
    items: Sequence[Json] = tables()["pools"][name]
    values = [item[0] if isinstance(item, list) else item for item in items]
    return values if side is None else side_of(values, side)


def draw(spec: str, rng: random.Random, side: Side, language: str) -> Sample:
    """A value for this spec. Raises DataError for a spec that nothing answers to."""
    word, *numbers = spec.split()
    if word == "int":
        return _plain(_number(int(numbers[0]), int(numbers[1]), rng, side))
    if word == "list":
        return _list(numbers[0], rng, side, language)
    if word == "hex":
        return _plain(_hex(rng, side, int(numbers[0])))
    if word in _MADE:
        return _plain(_MADE[word](rng, side))
    closed = tables()["closed"].get(word)
    if closed is not None:
        return _sample(rng.choice(closed))
    if word in tables()["composed"]:
        return _plain(_composed(word, rng, side, language))
    return _sample(_pick(word, rng, side, language))


def _pick(name: str, rng: random.Random, side: Side, language: str) -> Json:
    pools = tables()["pools"]
    if language == "ja" and f"{name}-ja" in pools and rng.random() < JA_VALUES:
        name = f"{name}-ja"
    if name not in pools:
        raise DataError(f'No pool of values is called "{name}". Add it to data/wordings/pools.toml.')
    return rng.choice(side_of(pools[name], side))


def _composed(name: str, rng: random.Random, side: Side, language: str) -> str:
    if name == "commit" and language == "ja" and rng.random() < JA_VALUES:
        return str(_pick("commit-ja", rng, side, language))
    template = str(rng.choice(tables()["composed"][name]))
    return _HOLE.sub(lambda hole: str(draw(hole[1], rng, side, language).value), template)


def _list(name: str, rng: random.Random, side: Side, language: str) -> Sample:
    """Two or three different values, said one after the other."""
    found: dict[str, Sample] = {}
    for _ in range(40):
        sample = draw(name, rng, side, language)
        found.setdefault(str(sample.value), sample)
        if len(found) == 3:
            break
    chosen = list(found.values())[: rng.choice((2, 2, 3))]
    en, ja = [s.en for s in chosen], [s.ja for s in chosen]
    said = ", ".join(en[:-1]) + f" and {en[-1]}" if len(en) > 1 else en[0]
    return Sample([s.value for s in chosen], said, " と ".join(ja) if len(ja) < 3 else "、".join(ja))


def _number(low: int, high: int, rng: random.Random, side: Side) -> int:
    every = range(low, high + 1)
    return rng.choice(side_of(every, side) if len(every) >= 8 else every)


def _clock(rng: random.Random, side: Side) -> str:
    return f"{rng.randrange(24):02d}:{rng.choice(side_of(range(0, 60, 5), side)):02d}"


def _date(rng: random.Random, side: Side) -> str:
    return f"2026-{rng.randrange(1, 11):02d}-{rng.choice(side_of(range(1, 29), side)):02d}"


def _hex(rng: random.Random, side: Side, digits: int) -> str:
    # The first digit tells the sides apart.
    return rng.choice("048c" if side == "held-out" else "12356789abdef") + "".join(
        rng.choice("0123456789abcdef") for _ in range(digits - 1)
    )


def _stamp(rng: random.Random, side: Side) -> str:
    return f"17{rng.randrange(60, 80)}{rng.randrange(10**6):06d}.{_number(1000, 999999, rng, side):06d}"


_MADE: Mapping[str, Callable[[random.Random, Side], str]] = {"clock": _clock, "date": _date, "stamp": _stamp}


def _plain(value: Json) -> Sample:
    return Sample(value, str(value), str(value))


def _sample(item: Json) -> Sample:
    return Sample(*item) if isinstance(item, list) else _plain(item)
