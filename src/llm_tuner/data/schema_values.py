"""Values for any JSON Schema: what a request of a tool without a wording gives.

Not a validator. The rule it protects: a schema from the wild (`$ref`, recursion, `anyOf`, no properties at all) gives a
value or says why not, in bounded time.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping

from llm_tuner.data.wording import side_of
from llm_tuner.types import Json, Side

_DEPTH = 6
_WORDS = (
    "alpha",
    "harbor",
    "lantern",
    "meadow",
    "onyx",
    "pepper",
    "quartz",
    "ripple",
    "saffron",
    "timber",
    "umber",
    "violet",
    "willow",
    "yonder",
    "zephyr",
    "anchor",
    "birch",
    "cobalt",
    "dune",
    "ember",
    "fjord",
    "grove",
    "hollow",
    "island",
)


class Unfillable(Exception):
    """No value could be made for this schema; the message says where."""


def by_schema(parameters: Mapping[str, Json], side: Side, rng: random.Random, optional: float = 0.0) -> dict[str, Json]:
    """A value for every required parameter, and with this probability for one of the optional ones that are no list
    and no object. Raises Unfillable."""
    properties = parameters.get("properties")
    wanted = parameters.get("required")
    if not isinstance(properties, dict):
        return {}
    names = [str(name) for name in wanted] if isinstance(wanted, list) else []
    plain = [name for name, schema in properties.items() if name not in names and _plain(schema)]
    if optional and plain and rng.random() < optional:
        names.append(rng.choice(plain))
    return {name: _value(name, properties.get(name, {}), parameters, side, rng, 0) for name in names}


def _plain(schema: Json) -> bool:
    return isinstance(schema, dict) and schema.get("type") in ("string", "integer", "number", "boolean")


def _value(name: str, schema: Json, root: Mapping[str, Json], side: Side, rng: random.Random, depth: int) -> Json:
    if depth > _DEPTH:
        raise Unfillable(f"the schema of `{name}` contains itself without an end")
    if not isinstance(schema, dict):
        return _word(name, side, rng)
    if "$ref" in schema:
        return _value(name, _referred(name, schema["$ref"], root), root, side, rng, depth + 1)
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return _value(
                name, {**schema[key][0]} if isinstance(schema[key][0], dict) else {}, root, side, rng, depth + 1
            )
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return rng.choice(schema["enum"])
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind in ("integer", "number"):
        return _number(schema, kind, side, rng)
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "null":
        return None
    if kind == "array":
        length = max(1, int(schema.get("minItems", 1)))
        return [_value(name, schema.get("items", {}), root, side, rng, depth + 1) for _ in range(length)]
    if kind == "object":
        inner = schema.get("properties") or {}
        return {key: _value(key, inner.get(key, {}), root, side, rng, depth + 1) for key in schema.get("required", [])}
    return _text(name, schema, side, rng)


def _referred(name: str, reference: Json, root: Mapping[str, Json]) -> Json:
    if not isinstance(reference, str) or not reference.startswith("#/"):
        raise Unfillable(f"the schema of `{name}` refers to {reference!r}, which is not in it")
    found: Json = root
    for part in reference[2:].split("/"):
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    if found is None:
        raise Unfillable(f"the schema of `{name}` refers to {reference!r}, which is not there")
    return found


def _number(schema: Mapping[str, Json], kind: str, side: Side, rng: random.Random) -> Json:
    low, high = schema.get("minimum"), schema.get("maximum")
    low = low if low is not None else (1 if high is None or high >= 1 else high - 50)
    top = math.floor(low + 50 if high is None else min(high, low + 50))
    every = range(math.ceil(low), max(math.ceil(low), top) + 1)
    value = rng.choice(side_of(every, side) if len(every) >= 8 else every)
    step = schema.get("multipleOf")
    return value - value % step if isinstance(step, int) and step > 1 and value - value % step >= low else value


_FORMATS = {
    "date": "2026-0{n}-1{n}",
    "date-time": "2026-0{n}-1{n}T09:3{n}:00Z",
    "email": "{w}@example.org",
    "time": "0{n}:30:00Z",
    "uri": "https://example.org/{w}",
    "url": "https://example.org/{w}",
    "ipv4": "192.0.2.{n}",
    "hostname": "{w}.example.org",
    "uuid": "0000000{n}-0000-4000-8000-00000000000{n}",
}


_BY_NAME: tuple[tuple[frozenset[str], str], ...] = tuple(
    (frozenset(names.split()), pattern)
    for names, pattern in (
        ("url uri urls link href website endpoint", "https://example.org/{w}/{v}"),
        ("email mail recipient recipients to cc", "{w}.{v}@example.org"),
        ("file filename filepath filenames files", "{w}-{m}.txt"),
        ("path paths", "{w}/{v}-{m}.txt"),
        ("dir directory folder cwd workspace", "{w}/{v}"),
        ("date day since until deadline start end", "2026-0{n}-1{n}"),
        ("time", "0{n}:30"),
        ("query search keyword keywords topic term q", "{w} {v}"),
        ("title subject name label heading displayname", "{W} {v} {m}"),
        (
            "text content body message description comment note notes summary reason",
            "The {w} is {m} metres from the {v}",
        ),
        ("prompt question instruction task goal", "Compare the {w} with the {v}"),
        ("city location place address region", "{P}"),
        ("user username author assignee owner", "{w}.{v}"),
        ("tag tags category", "{w}"),
        ("color colour", "#{m}{m}{m}"),
        ("symbol ticker", "{S}"),
    )
)
"""What a text looks like, by the last word of its parameter's name. {w}, {v}: words; {m}, {n}: numbers of two digits
and of one; {P}: a place; {S}: a stock's symbol."""

_PLACES = (
    "Kyoto",
    "Lisbon",
    "Oslo",
    "Nairobi",
    "Quito",
    "Sapporo",
    "Tallinn",
    "Toronto",
    "Hanoi",
    "Porto",
    "Kobe",
    "Lima",
)


def _text(name: str, schema: Mapping[str, Json], side: Side, rng: random.Random) -> str:
    word = str(rng.choice(side_of(_WORDS, side)))
    pattern = _FORMATS.get(str(schema.get("format", "")))
    if pattern is not None:
        return pattern.format(w=word, n=rng.choice(side_of(range(1, 9), side)))
    last = name_words(name)[-1:]
    pattern = next((pattern for names, pattern in _BY_NAME if names.issuperset(last) and last), None)
    text = _word(name, side, rng) if pattern is None else _filled(pattern, word, side, rng)
    return text[: int(schema["maxLength"])] if isinstance(schema.get("maxLength"), int) else text


def _filled(pattern: str, word: str, side: Side, rng: random.Random) -> str:
    other = rng.choice([one for one in side_of(_WORDS, side) if one != word])
    return pattern.format(
        w=word, W=word.capitalize(), v=other, S=other[:4].upper(), P=rng.choice(side_of(_PLACES, side)),
        m=rng.choice(side_of(range(10, 100), side)), n=rng.choice(side_of(range(1, 9), side)),
    )  # fmt: skip


def name_words(name: str) -> list[str]:
    """The words of a name in snake_case, kebab-case or camelCase, in small letters."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def _word(name: str, side: Side, rng: random.Random) -> str:
    return f"{rng.choice(side_of(_WORDS, side))}-{rng.choice(side_of(range(10, 100), side))}"
