"""The one judge: `score(task, attempt) -> Verdict`. Pure; it never sees a model's name.

Not a benchmark and not a parser: it reads the calls that a backend surfaced (or a dialect lifted) and compares them
with what the task expects. The data filter, DPO pairs, the GRPO reward, the evaluation and the gate all call it.

The rule it protects: a verdict is ok exactly when selection and parameters are both ok, and only then its score is 1.0.

Two sets of rules. `strict` compares arguments as JSON values and is what your own tools are judged by. `bfcl` follows
the Python AST check of the Berkeley Function Calling Leaderboard (Patil et al., ICML 2025; package bfcl-eval
2026.3.23, `eval_checker/ast_eval/ast_checker.py`), its leniencies and quirks included, so that numbers can be compared
with published ones. One difference is meant: parallel calls are paired by best assignment, where the original takes the
first fit and so can reject a right set of calls for its order.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from llm_tuner.types import (
    AllowedCall,
    AllowedCalls,
    Attempt,
    ExactCalls,
    Json,
    Message,
    NoCall,
    Reason,
    Task,
    ToolCall,
    ToolSpec,
    Verdict,
    by_name,
)

Rules = Literal["strict", "bfcl"]
Reading = Literal["native", "lenient"]

Wanted = ToolCall | AllowedCall


class Fault(NamedTuple):
    """What is wrong with one argument of one call."""

    reason: Reason
    detail: str


class Sheet(NamedTuple):
    """One made call held against one wanted call: its faults, and the share (0..1) of its arguments that are right."""

    faults: tuple[Fault, ...]
    share: float


Check = Callable[[ToolSpec, Wanted, ToolCall], Sheet]

# A reader fixes the first thing first: a missing argument before a wrong one, a wrong type before a wrong value.
_GRAVITY: tuple[Reason, ...] = ("missing_parameter", "unexpected_parameter", "wrong_type", "wrong_value")

_CALL_AS_TEXT_CREDIT = 0.05
_COUNT_CREDIT = 0.1
_OFFERED_CREDIT = 0.1
_SELECTION_CREDIT = 0.5
_ARGUMENTS_CREDIT = 0.4


# ------------------------------------------------------------------------------------------------------ the questions


def score(task: Task, attempt: Attempt, *, rules: Rules = "strict", reading: Reading = "native") -> Verdict:
    """Judge the calls of the attempt's first assistant message.

    `reading="native"` counts only what the runtime surfaced; `"lenient"` takes calls written as text where there is no
    native one. Selection is the multiset of names (their sequence, too, where the task is ordered); parameters are
    judged only where the selection is right. Calls are matched to expectations by best assignment, so order is free
    unless the task says otherwise. An answer that fails still earns less than 1: right selection 0.5 and up to 0.4 for
    the share of right arguments; wrong selection up to 0.2 for the right count and for names that exist.
    """
    if attempt.error:
        return _failed("backend_error", attempt.error)
    native, lenient = made_calls(attempt, "native"), made_calls(attempt, "lenient")
    if not wants_call(task):
        return _judge_silence(lenient)
    if reading == "native" and lenient and not native:
        names = ", ".join(call.name or "?" for call in lenient)
        detail = f"The call was written as text ({names}); the runtime surfaced none."
        return _failed("call_as_text", detail, _CALL_AS_TEXT_CREDIT)
    return _judge_calls(task, native if reading == "native" else lenient, _RULES[rules])


def wants_call(task: Task) -> bool:
    """Whether a right answer calls a tool."""
    return not isinstance(task.expect, NoCall) and bool(task.expect.calls)


def answer(attempt: Attempt) -> Message | None:
    """The first assistant message that the attempt produced: the one that is judged."""
    return next((m for m in attempt.messages if m.role == "assistant"), None)


def made_calls(attempt: Attempt, reading: Reading = "native") -> tuple[ToolCall, ...]:
    """The calls of the judged message under a reading; empty where there is no message."""
    message = answer(attempt)
    if message is None:
        return ()
    return message.tool_calls if reading == "native" else message.tool_calls or message.text_calls


def gold_attempt(task: Task) -> Attempt:
    """What a perfect model would answer: the first allowed values as native calls, or the reply text for NoCall.

    An argument whose first allowed value is `""` is left out, unless the schema requires it.
    """
    if isinstance(task.expect, NoCall):
        return Attempt(task_id=task.id, backend="gold", messages=(Message(role="assistant", text=task.expect.reply),))
    tools = by_name(task.tools)
    wanted: Sequence[Wanted] = task.expect.calls
    calls = tuple(
        ToolCall(name=want.name, arguments=_gold_arguments(tools.get(want.name), want), id=f"call_{i}")
        for i, want in enumerate(wanted)
    )
    return Attempt(task_id=task.id, backend="gold", messages=(Message(role="assistant", tool_calls=calls),))


# ----------------------------------------------------------------------------------------------------------- verdicts


def _failed(reason: Reason, detail: str, credit: float = 0.0, *, selection_ok: bool = False) -> Verdict:
    return Verdict(ok=False, selection_ok=selection_ok, parameters_ok=False, score=credit, reason=reason, detail=detail)


def _passed(detail: str) -> Verdict:
    return Verdict(ok=True, selection_ok=True, parameters_ok=True, score=1.0, reason="ok", detail=detail)


def _judge_silence(made: Sequence[ToolCall]) -> Verdict:
    if made:
        names = ", ".join(call.name or "?" for call in made)
        return _failed("unwanted_call", f"No call was wanted, but {names} was called.")
    return _passed("Rightly called nothing.")


def _judge_calls(task: Task, made: Sequence[ToolCall], check: Check) -> Verdict:
    assert isinstance(task.expect, ExactCalls | AllowedCalls)
    wanted, tools = task.expect.calls, by_name(task.tools)
    selection = _selection_fault(wanted, made, tools, task.expect.ordered)
    if selection is not None:
        return _failed(*selection, _selection_credit(wanted, made, tools))
    sheets = [[_sheet(tools, check, want, call) for call in made] for want in wanted]
    free = [sheets[i][j] for i, j in enumerate(_best_assignment([[s.share for s in row] for row in sheets]))]
    fixed = [row[i] for i, row in enumerate(sheets)] if task.expect.ordered else free
    faults = sorted((f for sheet in fixed for f in sheet.faults), key=lambda f: _GRAVITY.index(f.reason))
    if not faults:
        return _passed(f"{', '.join(call.name for call in made)}: right tool, right arguments.")
    credit = _SELECTION_CREDIT + _ARGUMENTS_CREDIT * sum(s.share for s in fixed) / len(fixed)
    if not any(s.faults for s in free):
        return _failed("wrong_order", "The calls are right but not in this order.", credit, selection_ok=True)
    return _failed(faults[0].reason, faults[0].detail, credit, selection_ok=True)


def _selection_fault(
    wanted: Sequence[Wanted], made: Sequence[ToolCall], tools: Mapping[str, ToolSpec], ordered: bool
) -> Fault | None:
    want_names, made_names = [w.name for w in wanted], [m.name for m in made]
    if not made:
        return Fault("no_call", f"Expected {', '.join(want_names)}; nothing was called.")
    broken = next((call for call in made if call.error), None)
    if broken is not None:
        return Fault("broken_call", f"A call could not be read: {broken.error}")
    unknown = next((name for name in made_names if name not in tools), None)
    if unknown is not None:
        return Fault("unknown_tool", f'"{unknown}" was not offered; expected {", ".join(want_names)}.')
    if len(made) != len(wanted):
        return Fault("wrong_count", f"Expected {len(wanted)} calls ({', '.join(want_names)}), got {len(made)}.")
    if Counter(want_names) != Counter(made_names):
        return Fault("wrong_tool", f"Expected {', '.join(want_names)}, got {', '.join(made_names)}.")
    if ordered and want_names != made_names:
        return Fault("wrong_order", f"Expected the order {', '.join(want_names)}, got {', '.join(made_names)}.")
    return None


def _selection_credit(wanted: Sequence[Wanted], made: Sequence[ToolCall], tools: Mapping[str, ToolSpec]) -> float:
    if not made or any(call.error for call in made):
        return 0.0
    count = _COUNT_CREDIT if len(made) == len(wanted) else 0.0
    return count + _OFFERED_CREDIT * sum(call.name in tools for call in made) / len(made)


def _sheet(tools: Mapping[str, ToolSpec], check: Check, want: Wanted, call: ToolCall) -> Sheet:
    # A share below any that a same-named call can have keeps calls of different tools from being paired.
    return check(tools[want.name], want, call) if want.name == call.name else Sheet((), -1e6)


def _best_assignment(gain: Sequence[Sequence[float]]) -> list[int]:
    """Row -> column with the greatest total gain, for a square matrix: the Hungarian method in O(n^3) with potentials
    (Kuhn 1955; Munkres 1957)."""
    n = len(gain)
    row_price, column_price = [0.0] * (n + 1), [0.0] * (n + 1)
    row_of, way = [0] * (n + 1), [0] * (n + 1)
    for row in range(1, n + 1):
        row_of[0], column = row, 0
        slack, used = [float("inf")] * (n + 1), [False] * (n + 1)
        while row_of[column] != 0:
            used[column], here, step, following = True, row_of[column], float("inf"), 0
            for j in range(1, n + 1):
                if used[j]:
                    continue
                reduced = -gain[here - 1][j - 1] - row_price[here] - column_price[j]
                if reduced < slack[j]:
                    slack[j], way[j] = reduced, column
                if slack[j] < step:
                    step, following = slack[j], j
            for j in range(n + 1):
                if used[j]:
                    row_price[row_of[j]] += step
                    column_price[j] -= step
                else:
                    slack[j] -= step
            column = following
        while column:
            row_of[column], column = row_of[way[column]], way[column]
    out = [0] * n
    for column in range(1, n + 1):
        out[row_of[column] - 1] = column - 1
    return out


def _show(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:79] + "…"


def _tally(faults: Sequence[Fault], names: int) -> Sheet:
    return Sheet(tuple(faults), 1.0 if not faults else max(0.0, 1.0 - len(faults) / max(names, 1)))


# -------------------------------------------------------------------------------------------------------- strict rules


def _check_strictly(tool: ToolSpec, want: Wanted, call: ToolCall) -> Sheet:
    names = list(dict.fromkeys([*want.arguments, *call.arguments]))
    faults = [fault for name in names if (fault := _strict_fault(tool, want, call, name)) is not None]
    return _tally(faults, len(names))


def _strict_fault(tool: ToolSpec, want: Wanted, call: ToolCall, name: str) -> Fault | None:
    silent = _same_as_left_out(tool.parameters, name)
    where = f'{call.name}: "{name}"'
    if name not in want.arguments:
        if any(_same(call.arguments[name], value) for value in silent):
            return None
        return Fault("unexpected_parameter", f"{where} was not expected, got {_show(call.arguments[name])}.")
    expected = want.arguments[name]
    literal = isinstance(want, ToolCall)
    options = [expected] if literal else list(expected)
    may_be_left_out = not literal and any(option == "" for option in options)
    if name not in call.arguments:
        if may_be_left_out or any(_meets(value, option, literal) for value in silent for option in options):
            return None
        return Fault("missing_parameter", f"{where} is missing, expected {_show(expected)}.")
    value = call.arguments[name]
    if any(_meets(value, option, literal) for option in options):
        return None
    if may_be_left_out and any(_same(value, other) for other in silent):
        return None
    schema = _property(tool.parameters, name)
    reason: Reason = "wrong_value" if _fits(value, schema, tool.parameters) else "wrong_type"
    return Fault(reason, f"{where} is {_show(value)}, expected {'' if literal else 'one of '}{_show(expected)}.")


def _same(a: Json, b: Json) -> bool:
    """Equality of JSON values: 1 == 1.0, True != 1, strings after NFC and without outer white space."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, str) and isinstance(b, str):
        return unicodedata.normalize("NFC", a).strip() == unicodedata.normalize("NFC", b).strip()
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(a == b)


def _meets(value: Json, option: Json, literal: bool) -> bool:
    """Whether a value is an allowed one. In AllowedCall an object (alone or in a list) holds a list of allowed values
    per key, `""` among them: the key may be left out. That is BFCL's notation, one level deep."""
    if literal:
        return _same(value, option)
    if _is_notation(option) and isinstance(value, dict):
        return _keys_meet(value, option)
    if isinstance(option, list) and isinstance(value, list) and any(_is_notation(item) for item in option):
        return len(value) == len(option) and all(_meets(v, o, False) for v, o in zip(value, option, strict=True))
    return _same(value, option)


def _is_notation(option: Json) -> bool:
    return isinstance(option, dict) and all(isinstance(values, list) for values in option.values())


def _keys_meet(value: Mapping[str, Json], option: Mapping[str, list[Json]]) -> bool:
    left_out = option.keys() - value.keys()
    return all("" in option[key] for key in left_out) and all(
        key in option and any(_same(item, allowed) for allowed in option[key]) for key, item in value.items()
    )


# -------------------------------------------------------------------------------------------------------- JSON Schema


def _same_as_left_out(parameters: Mapping[str, Json], name: str) -> list[Json]:
    """Values that mean the same as leaving the argument out: the schema's default, and null where null is allowed and
    nothing else is the default. A required argument has none."""
    schema = _property(parameters, name)
    if name in _required(parameters) or not schema:
        return []
    if "default" in schema:
        return [schema["default"]]
    return [None] if _declared(schema) and _fits(None, schema, parameters) else []


def _required(parameters: Mapping[str, Json]) -> Sequence[str]:
    return parameters.get("required") or ()


def _declared(schema: Mapping[str, Json]) -> bool:
    return any(word in schema for word in ("type", "anyOf", "oneOf", "allOf"))


def _property(parameters: Mapping[str, Json], name: str) -> Mapping[str, Json]:
    properties = parameters.get("properties")
    found = properties.get(name) if isinstance(properties, dict) else None
    return _resolved(found, parameters)


def _resolved(schema: Json, root: Mapping[str, Json]) -> Mapping[str, Json]:
    """The schema with its local `$ref` followed; words beside `$ref` win. An unreadable one allows everything."""
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


def _fits(value: Json, schema: Json, root: Mapping[str, Json], depth: int = 0) -> bool:
    """Whether the value has the type that the schema asks for (types only, not ranges, formats or enums)."""
    words = _resolved(schema, root)
    if depth > 32:  # a schema that contains itself without a step into the value
        return True
    kinds = words.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is_kind(value, kind) for kind in kinds):
        return False
    for word in ("anyOf", "oneOf"):
        if word in words and not any(_fits(value, part, root, depth + 1) for part in words[word]):
            return False
    if not all(_fits(value, part, root, depth + 1) for part in words.get("allOf", ())):
        return False
    if isinstance(value, list) and isinstance(words.get("items"), dict):
        return all(_fits(item, words["items"], root, depth + 1) for item in value)
    if isinstance(value, dict) and isinstance(words.get("properties"), dict):
        return all(_fits(value[k], part, root, depth + 1) for k, part in words["properties"].items() if k in value)
    return True


def _is_kind(value: Json, kind: str) -> bool:
    if kind in ("integer", "number"):
        if isinstance(value, float):
            return kind == "number" or value.is_integer()
        return isinstance(value, int) and not isinstance(value, bool)
    kinds: dict[str, type] = {"string": str, "boolean": bool, "array": list, "object": dict, "null": type(None)}
    return kind not in kinds or isinstance(value, kinds[kind])


# ---------------------------------------------------------------------------------------------------------- BFCL rules

_PYTHON: dict[str, type] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "array": list,
    "object": dict,
}
_FOLDED_AWAY = re.compile(r"[ ,./\-_*^]")


def _check_like_bfcl(tool: ToolSpec, want: Wanted, call: ToolCall) -> Sheet:
    allowed = want.arguments if isinstance(want, AllowedCall) else {k: [_noted(v)] for k, v in want.arguments.items()}
    names = list(dict.fromkeys([*_required(tool.parameters), *allowed, *call.arguments]))
    faults = [fault for name in names if (fault := _bfcl_fault(tool, allowed, call, name)) is not None]
    return _tally(faults, len(names))


def _noted(value: Json) -> Json:
    """A literal value in BFCL's notation."""
    if isinstance(value, dict):
        return {key: [item] for key, item in value.items()}
    return [_noted(item) if isinstance(item, dict) else item for item in value] if isinstance(value, list) else value


def _bfcl_fault(tool: ToolSpec, allowed: Mapping[str, list[Json]], call: ToolCall, name: str) -> Fault | None:
    properties = tool.parameters.get("properties", {})
    where = f'{call.name}: "{name}"'
    if name not in call.arguments:
        options = allowed.get(name, [])
        if name not in _required(tool.parameters) and "" in options:
            return None
        return Fault("missing_parameter", f"{where} is missing, expected one of {_show(options)}.")
    value = call.arguments[name]
    if name not in properties or name not in allowed:
        return Fault("unexpected_parameter", f"{where} was not expected, got {_show(value)}.")
    reason = _bfcl_value_fault(_property(tool.parameters, name), value, allowed[name])
    if reason is None:
        return None
    return Fault(reason, f"{where} is {_show(value)}, expected one of {_show(allowed[name])}.")


def _bfcl_value_fault(schema: Mapping[str, Json], value: Json, allowed: list[Json]) -> Reason | None:
    """Types first, one level deep; then values, with strings folded.

    Where the allowed values have another type than the schema (the name of a variable, say), the value may have that
    type, too, and is then compared as it stands.
    """
    kind = _python_type(schema)
    inner = _python_type(schema["items"]) if kind is list and isinstance(schema.get("items"), dict) else None
    if kind is float and type(value) is int:
        value = float(value)
    listed = _type_of_first(allowed)
    if type(value) is kind:
        if inner is not None and not any(_items_fit(value, option, inner) for option in allowed):
            return "wrong_type"
        as_it_stands = listed is not None and listed is not kind
    elif listed is not None and type(value) is listed:
        as_it_stands = True
    else:
        return "wrong_type"
    right = value in allowed if as_it_stands else _is_allowed(value, allowed, inner)
    return None if right else "wrong_value"


def _python_type(schema: Mapping[str, Json]) -> type:
    kind = schema.get("type", "string")
    kind = next((k for k in kind if k != "null"), "string") if isinstance(kind, list) else kind
    return _PYTHON.get(kind, str)


def _type_of_first(allowed: Sequence[Json]) -> type | None:
    return next((type(option) for option in allowed if option != ""), None)


def _items_fit(value: Json, option: Json, inner: type) -> bool:
    # An option that is no list (the "" of an optional argument) puts no condition on the items: so does the original.
    return not isinstance(option, list) or all(type(item) in (inner, _type_of_first(option)) for item in value)


def _is_allowed(value: Json, allowed: Sequence[Json], inner: type | None) -> bool:
    if isinstance(value, dict):
        return any(_bfcl_object(value, option) for option in allowed)
    if isinstance(value, list) and inner is dict:
        return any(_bfcl_objects(value, option) for option in allowed)
    if isinstance(value, list):
        folded = [_folded(item) for item in value]
        return any(folded == [_folded(o) for o in option] for option in allowed if _is_list_option(option))
    if isinstance(value, str):
        return any(_folded(value) == _folded(option) for option in allowed if isinstance(option, str))
    return value in allowed


def _is_list_option(option: Json) -> bool:
    # "" stands for the empty list here: the original iterates over it.
    return isinstance(option, list) or option == ""


def _bfcl_object(value: Json, option: Json) -> bool:
    if not isinstance(value, dict) or not isinstance(option, dict):
        return False
    left_out = option.keys() - value.keys()
    return all("" in option[key] for key in left_out) and all(
        key in option and _folded(item) in [_folded(o) for o in option[key]] for key, item in value.items()
    )


def _bfcl_objects(value: list[Json], option: Json) -> bool:
    return (
        _is_list_option(option)
        and len(value) == len(option)
        and all(_bfcl_object(item, wanted) for item, wanted in zip(value, option, strict=True))
    )


def _folded(value: Json) -> Json:
    return _FOLDED_AWAY.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value


_RULES: dict[Rules, Check] = {"strict": _check_strictly, "bfcl": _check_like_bfcl}


# -------------------------------------------------------------------------------------------------------- gold answers


def _gold_arguments(tool: ToolSpec | None, want: Wanted) -> dict[str, Json]:
    if isinstance(want, ToolCall):
        return dict(want.arguments)
    parameters = tool.parameters if tool is not None else {}
    required, known = _required(parameters), parameters.get("properties", want.arguments)
    return {
        name: _gold_value(options, required=name in required)
        for name, options in want.arguments.items()
        if name in known and options and (name in required or options[0] != "")
    }


def _gold_value(options: Sequence[Json], *, required: bool) -> Json:
    chosen = next((option for option in options if option != ""), "") if required else options[0]
    return [_unnoted(item) for item in chosen] if isinstance(chosen, list) else _unnoted(chosen)


def _unnoted(option: Json) -> Json:
    """A literal value from BFCL's notation: the first allowed value of every key that is not left out."""
    if not _is_notation(option):
        return option
    return {key: options[0] for key, options in option.items() if options and options[0] != ""}
