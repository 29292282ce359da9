"""The strict rules: arguments compared as JSON values, several calls paired by best assignment.

Not BFCL's rules (bfcl.py). The rule it protects: leaving an argument out and passing its default mean the same, and
nothing else is forgiven but white space around a string, Unicode form, and 1 for 1.0.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llm_tuner.scoring.schema import fits, property_of, same_as_left_out
from llm_tuner.scoring.verdicts import ALL_RIGHT, Fault, Wanted, arguments_credit, failed, gravest, show
from llm_tuner.types import Json, Reason, ToolCall, ToolSpec, Verdict


class Sheet(NamedTuple):
    """One made call held against one wanted call: its faults, and the share (0..1) of its arguments that are right."""

    faults: tuple[Fault, ...]
    share: float


def judge(tools: Mapping[str, ToolSpec], wanted: Sequence[Wanted], made: Sequence[ToolCall], ordered: bool) -> Verdict:
    """Judge the arguments of calls whose selection is right."""
    sheets = [[_sheet(tools, want, call) for call in made] for want in wanted]
    free = [sheets[i][j] for i, j in enumerate(_best_assignment([[s.share for s in row] for row in sheets]))]
    fixed = [row[i] for i, row in enumerate(sheets)] if ordered else free
    faults = [fault for sheet in fixed for fault in sheet.faults]
    if not faults:
        return ALL_RIGHT
    credit = arguments_credit(sum(sheet.share for sheet in fixed), len(wanted))
    if not any(sheet.faults for sheet in free):
        return failed("wrong_order", "The calls are right but not in this order.", credit, selection_ok=True)
    return failed(*faults[gravest(fault.reason for fault in faults)], credit, selection_ok=True)


def _sheet(tools: Mapping[str, ToolSpec], want: Wanted, call: ToolCall) -> Sheet:
    if want.name != call.name:
        # A share below any that a same-named call can have keeps calls of different tools from being paired.
        return Sheet((), -1e6)
    names = list(dict.fromkeys([*want.arguments, *call.arguments]))
    tool = tools[want.name]
    faults = tuple(fault for name in names if (fault := _fault(tool, want, call, name)) is not None)
    return Sheet(faults, 1.0 if not faults else max(0.0, 1.0 - len(faults) / max(len(names), 1)))


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


def _fault(tool: ToolSpec, want: Wanted, call: ToolCall, name: str) -> Fault | None:
    silent = same_as_left_out(tool.parameters, name)
    where = f'{call.name}: "{name}"'
    if name not in want.arguments:
        if any(_same(call.arguments[name], value) for value in silent):
            return None
        return Fault("unexpected_parameter", f"{where} was not expected, got {show(call.arguments[name])}.")
    expected = want.arguments[name]
    literal = isinstance(want, ToolCall)
    options = [expected] if literal else list(expected)
    may_be_left_out = not literal and any(option == "" for option in options)
    if name not in call.arguments:
        if may_be_left_out or any(_meets(value, option, literal) for value in silent for option in options):
            return None
        return Fault("missing_parameter", f"{where} is missing, expected {show(expected)}.")
    value = call.arguments[name]
    if any(_meets(value, option, literal) for option in options):
        return None
    if may_be_left_out and any(_same(value, other) for other in silent):
        return None
    schema = property_of(tool.parameters, name)
    reason: Reason = "wrong_value" if fits(value, schema, tool.parameters) else "wrong_type"
    return Fault(reason, f"{where} is {show(value)}, expected {'' if literal else 'one of '}{show(expected)}.")


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
    if is_notation(option) and isinstance(value, dict):
        return _keys_meet(value, option)
    if isinstance(option, list) and isinstance(value, list) and any(is_notation(item) for item in option):
        return len(value) == len(option) and all(_meets(v, o, False) for v, o in zip(value, option, strict=True))
    return _same(value, option)


def is_notation(option: Json) -> bool:
    """Whether an object holds a list of allowed values per key."""
    return isinstance(option, dict) and all(isinstance(values, list) for values in option.values())


def _keys_meet(value: Mapping[str, Json], option: Mapping[str, list[Json]]) -> bool:
    left_out = option.keys() - value.keys()
    return all("" in option[key] for key in left_out) and all(
        key in option and any(_same(item, allowed) for allowed in option[key]) for key, item in value.items()
    )
