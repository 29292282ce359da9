"""BFCL's rules: the verdicts of the Berkeley Function Calling Leaderboard (Patil et al., ICML 2025).

Written from the behaviour of bfcl-eval 2026.3.23 (`eval_checker/ast_eval/ast_checker.py` and, for relevance,
`eval_checker/eval_runner.py`), its leniencies and quirks included: strings are folded, types are checked one level
deep, several calls are paired by first fit. The rule it protects: right or wrong is what the official checker says, on
every pair on which that one comes to a verdict (tests/evaluation/bfcl_agreement.py). Where it stops with an error
instead, the call is wrong here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llm_tuner.scoring import source_text
from llm_tuner.scoring.schema import property_of, required
from llm_tuner.scoring.verdicts import ALL_RIGHT, Wanted, arguments_credit, failed, show
from llm_tuner.types import AllowedCall, Json, Reason, ToolCall, ToolSpec, Verdict

_KINDS: dict[str, type] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "array": list,
    "object": dict,
}
_SCALARS = frozenset((str, int, float, bool))

Wrong = tuple[Reason, str, Json, Sequence[Json]]
"""What is wrong with a call's first wrong argument, in the order in which the official checker looks: its name, its
value (None of a missing one), the allowed values (none for one that was not expected)."""


def decoded(made: Sequence[ToolCall]) -> Sequence[ToolCall]:
    """The calls as the official decoders see them: all of them, or none where one cannot be read."""
    return () if any(call.error for call in made) else made


def judge(tools: Mapping[str, ToolSpec], wanted: Sequence[Wanted], made: Sequence[ToolCall], ordered: bool) -> Verdict:
    """Judge the arguments of calls whose selection is right.

    Each wanted call in turn takes the first of the calls left over that fits it; in an ordered task its own place is
    all that is left over.
    """
    if len(wanted) == 1:  # by far the most: there is nothing to pair
        name = wanted[0].name
        wrong = _wrong(tools[name], wanted[0], made[0])
        return ALL_RIGHT if wrong is None else _refused(name, wrong, arguments_credit(0, 1))
    left = list(made)
    for at, want in enumerate(wanted):
        name, first = want.name, None
        for place, call in enumerate(made[at : at + 1] if ordered else left):
            if call.name != name:
                continue
            wrong = _wrong(tools[name], want, call)
            if wrong is None:
                if not ordered:
                    del left[place]
                break
            first = first or wrong
        else:
            assert first is not None  # the names are the same multiset, and every name took a call of that name
            return _refused(name, first, arguments_credit(at, len(wanted)))
    return ALL_RIGHT


def _refused(tool: str, wrong: Wrong, credit: float) -> Verdict:
    reason, name, value, options = wrong
    if reason == "unexpected_parameter":
        detail = f'{tool}: "{name}" was not expected, got {show(value)}.'
    else:
        found = "missing" if reason == "missing_parameter" else show(value)
        detail = f'{tool}: "{name}" is {found}, expected one of {show(options)}.'
    return failed(reason, detail, credit, selection_ok=True)


def _allowed(want: Wanted) -> tuple[Mapping[str, list[Json]], Mapping[str, tuple[str, ...]]]:
    """The allowed values of the arguments, and the types of those that are source text."""
    if isinstance(want, AllowedCall):
        return want.arguments, want.source_types
    return {name: [_noted(value)] for name, value in want.arguments.items()}, {}


def _noted(value: Json) -> Json:
    """A literal value in BFCL's notation."""
    if isinstance(value, dict):
        return {key: [item] for key, item in value.items()}
    return [_noted(item) if isinstance(item, dict) else item for item in value] if isinstance(value, list) else value


def _wrong(tool: ToolSpec, want: Wanted, call: ToolCall) -> Wrong | None:
    allowed, types = _allowed(want)
    made, parameters = call.arguments, tool.parameters
    known = parameters.get("properties")
    known = known if isinstance(known, dict) else {}
    for name in required(parameters):
        if name not in made:
            return "missing_parameter", name, None, allowed.get(name, ())
    for name, value in made.items():
        options = allowed.get(name)
        if options is None or name not in known:
            return "unexpected_parameter", name, value, ()
        if name in types:
            reason = _source_fault(types[name], value, options)
        else:
            schema = known[name]
            plain = isinstance(schema, dict) and "$ref" not in schema
            reason = _value_fault(schema if plain else property_of(parameters, name), value, options)
        if reason is not None:
            return reason, name, value, options
    if made.keys() != allowed.keys():
        for name, options in allowed.items():
            if name not in made and "" not in options:
                return "missing_parameter", name, None, options
    return None


# ------------------------------------------------------------------------------------------------------------- values


def _source_fault(written: tuple[str, ...], value: Json, allowed: list[Json]) -> Reason | None:
    kinds = source_text.kinds_of(written)
    if kinds is None or type(value) is not str:
        return "wrong_type"
    kind, inner = kinds
    return _fault(kind, inner, source_text.read(value, written), allowed)


def _value_fault(schema: Mapping[str, Json], value: Json, allowed: list[Json]) -> Reason | None:
    said = schema.get("type")
    kind = _KINDS.get(said, str) if type(said) is str else _kind(schema)
    if type(value) is kind and kind in _SCALARS and value in allowed:
        return None
    items = schema.get("items") if kind is list else None
    if kind is float and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            return "wrong_type"
    return _fault(kind, _kind(items) if isinstance(items, dict) else None, value, allowed)


def _kind(schema: Mapping[str, Json]) -> type:
    kind = schema.get("type")
    if type(kind) is list:
        kind = next((k for k in kind if k != "null"), "string")
    return _KINDS.get(kind, str) if type(kind) is str else str


def _fault(kind: type, inner: type | None, value: Json, allowed: list[Json]) -> Reason | None:
    """Types first, one level deep; then values, with strings folded.

    Where the allowed values have another type than the schema (the name of a variable, say), the value may have that
    type, too, and is then compared as it stands.
    """
    listed = _type_of_first(allowed)
    if type(value) is kind:
        if inner is not None and not _items_fit(value, allowed, inner):
            return "wrong_type"
        as_it_stands = listed is not None and listed is not kind
    elif listed is not None and type(value) is listed:
        as_it_stands = True
    else:
        return "wrong_type"
    right = value in allowed if as_it_stands else _is_allowed(value, allowed, inner)
    return None if right else "wrong_value"


def _type_of_first(allowed: Sequence[Json]) -> type | None:
    for option in allowed:
        if option != "":
            return type(option)
    return None


def _items_fit(value: Json, allowed: Sequence[Json], inner: type) -> bool:
    # An option that is no list (the "" of an optional argument) puts no condition on the items: so does the original.
    kinds = set(map(type, value))
    return True in [not isinstance(option, list) or kinds <= {inner, _type_of_first(option)} for option in allowed]


def _is_allowed(value: Json, allowed: Sequence[Json], inner: type | None) -> bool:
    if isinstance(value, str):
        return value in allowed or _fold(value) in [_fold(option) for option in allowed if isinstance(option, str)]
    if isinstance(value, dict):
        return any(_object_fits(value, option) for option in allowed)
    if isinstance(value, list) and inner is dict:
        return any(_objects_fit(value, option) for option in allowed)
    if isinstance(value, list):
        return _folded(value) in [_folded(option) for option in allowed if _is_sequence(option)]
    return value in allowed


def _is_sequence(option: Json) -> bool:
    # The original goes through a string letter by letter, so that "" stands for the empty list.
    return isinstance(option, (list, str))


def _object_fits(value: Json, option: Json) -> bool:
    if not isinstance(value, dict) or not isinstance(option, dict):
        return False
    for key, item in value.items():
        if key not in option:
            return False
        folded = _fold(item) if isinstance(item, str) else item
        if folded not in _folded(_options(option[key])):
            return False
    return all("" in _options(values) for key, values in option.items() if key not in value)


def _options(values: Json) -> Sequence[Json]:
    return values if _is_sequence(values) else [values]


def _objects_fit(value: list[Json], option: Json) -> bool:
    return (
        _is_sequence(option)
        and len(value) == len(option)
        and all(_object_fits(item, wanted) for item, wanted in zip(value, option, strict=True))
    )


def _folded(values: Sequence[Json]) -> list[Json]:
    return [_fold(value) if isinstance(value, str) else value for value in values]


def _fold(text: str) -> str:
    # One replacement after the other: a third of the time that a regular expression or a table takes.
    bare = text.replace(" ", "").replace(",", "").replace(".", "").replace("/", "")
    bare = bare.replace("-", "").replace("_", "").replace("*", "").replace("^", "")
    return bare.lower().replace("'", '"')
