"""What the judge reads out of a tool's JSON Schema: required names, properties, types, values that mean left out.

Not a validator: ranges, formats and enumerations are not looked at. The rule it protects: a schema from the wild never
stops the judge; what cannot be read allows everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llm_tuner.types import Json


def same_as_left_out(parameters: Mapping[str, Json], name: str) -> list[Json]:
    """Values that mean the same as leaving the argument out: the schema's default, and null where null is allowed and
    nothing else is the default. A required argument has none."""
    schema = property_of(parameters, name)
    if name in required(parameters) or not schema:
        return []
    if "default" in schema:
        return [schema["default"]]
    return [None] if _declared(schema) and fits(None, schema, parameters) else []


def required(parameters: Mapping[str, Json]) -> Sequence[str]:
    names = parameters.get("required")
    return names if isinstance(names, (list, tuple)) else ()


def property_of(parameters: Mapping[str, Json], name: str) -> Mapping[str, Json]:
    """The schema of one argument; empty where there is none."""
    properties = parameters.get("properties")
    found = properties.get(name) if isinstance(properties, dict) else None
    return _resolved(found, parameters)


def fits(value: Json, schema: Json, root: Mapping[str, Json], depth: int = 0) -> bool:
    """Whether the value has the type that the schema asks for (types only, not ranges, formats or enums)."""
    words = _resolved(schema, root)
    if depth > 32:  # a schema that contains itself without a step into the value
        return True
    kinds = words.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is_kind(value, kind) for kind in kinds):
        return False
    for word in ("anyOf", "oneOf"):
        if word in words and not any(fits(value, part, root, depth + 1) for part in words[word]):
            return False
    if not all(fits(value, part, root, depth + 1) for part in words.get("allOf", ())):
        return False
    if isinstance(value, list) and isinstance(words.get("items"), dict):
        return all(fits(item, words["items"], root, depth + 1) for item in value)
    if isinstance(value, dict) and isinstance(words.get("properties"), dict):
        return all(fits(value[k], part, root, depth + 1) for k, part in words["properties"].items() if k in value)
    return True


def _declared(schema: Mapping[str, Json]) -> bool:
    return any(word in schema for word in ("type", "anyOf", "oneOf", "allOf"))


def _resolved(schema: Json, root: Mapping[str, Json]) -> Mapping[str, Json]:
    """The schema with its local `$ref` followed; words beside `$ref` win. An unreadable one allows everything."""
    if isinstance(schema, dict) and "$ref" not in schema:
        return schema
    words: dict[str, Json] = {}
    for _ in range(16):  # a chain longer than this is a loop
        if not isinstance(schema, dict):
            return words
        words = {**schema, **words}
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return words
        schema = root
        for part in reference[2:].split("/"):
            schema = schema.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(schema, dict) else None
    return words


def _is_kind(value: Json, kind: str) -> bool:
    if kind in ("integer", "number"):
        if isinstance(value, float):
            return kind == "number" or value.is_integer()
        return isinstance(value, int) and not isinstance(value, bool)
    kinds: dict[str, type] = {"string": str, "boolean": bool, "array": list, "object": dict, "null": type(None)}
    return kind not in kinds or isinstance(value, kinds[kind])
