import random

import jsonschema
import pytest

from llm_tuner.data.schema_values import Unfillable, by_schema

TEXT = {"type": "string"}
NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "required": ["next"]}


def schema(required=None, **properties):
    return {"type": "object", "properties": properties, "required": list(required or properties)}


def values(parameters, seed=0, side="train"):
    return by_schema(parameters, side, random.Random(seed))


@pytest.mark.parametrize(
    "parameters",
    [
        schema(who={"$ref": "#/$defs/name"}) | {"$defs": {"name": TEXT}},
        schema(n={"anyOf": [{"type": "integer", "minimum": 5, "maximum": 7}, {"type": "null"}]}),
        schema(when={"type": "string", "format": "date"}, mail={"type": "string", "format": "email"}),
        schema(kind={"enum": ["a", "b"]}, many={"type": "array", "items": TEXT, "minItems": 2}),
        schema(inner=schema(x={"type": "number"}, flag={"type": "boolean"})),
        schema(step={"type": "integer", "multipleOf": 5, "minimum": 5, "maximum": 20}, c={"const": 3}),
        {"type": "object"},
        {},
    ],
)
def test_a_value_fits(parameters):
    for seed in range(20):
        jsonschema.validate(values(parameters, seed), parameters)


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        (schema(node={"$ref": "#/$defs/node"}) | {"$defs": {"node": NODE}}, "without an end"),
        (schema(x={"$ref": "#/$defs/gone"}), "is not there"),
        (schema(x={"$ref": "https://example.org/x.json"}), "is not in it"),
    ],
)
def test_what_cannot_be_filled_says_why(parameters, why):
    with pytest.raises(Unfillable, match=why):
        values(parameters)


def test_words_of_the_sides_are_apart():
    found = [{values(schema(a=TEXT), seed, side)["a"] for seed in range(200)} for side in ("train", "held-out")]
    assert found[0]
    assert not found[0] & found[1]


def test_a_text_looks_like_what_its_name_says():
    found = values(
        schema(**dict.fromkeys(("page_url", "outputPath", "userEmail", "dueDate", "search-query", "id"), TEXT))
    )
    assert found["page_url"].startswith("https://example.org/")
    assert found["outputPath"].endswith(".txt")
    assert "@" in found["userEmail"]
    assert found["dueDate"].startswith("2026-0")
    assert " " in found["search-query"]
    assert "-" in found["id"]
    sides = [{values(schema(title=TEXT), seed, side)["title"] for seed in range(200)} for side in ("train", "held-out")]
    assert not sides[0] & sides[1]


def test_an_optional_value_is_given_sometimes():
    tool = schema(["a"], a=TEXT, limit={"type": "integer"}, tags={"type": "array"})
    given = [set(by_schema(tool, "train", random.Random(seed), 0.4)) for seed in range(200)]
    assert {"a"} in given
    assert {"a", "limit"} in given
    assert 50 < sum(len(one) == 2 for one in given) < 110
    assert not any("tags" in one for one in given)
