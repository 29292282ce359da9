"""What both sets of rules share: faults, credit, and the check of the selection. Not a judge of arguments."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from pydantic import TypeAdapter
from pydantic_core import to_json

from llm_tuner.types import AllowedCall, Json, Reason, ToolCall, ToolSpec, Verdict

Wanted = ToolCall | AllowedCall

CALL_AS_TEXT_CREDIT = 0.05
_COUNT_CREDIT = 0.1
_OFFERED_CREDIT = 0.1
_SELECTION_CREDIT = 0.5
_ARGUMENTS_CREDIT = 0.4

# A reader fixes the first thing first: a missing argument before a wrong one, a wrong type before a wrong value.
_GRAVITY: tuple[Reason, ...] = ("missing_parameter", "unexpected_parameter", "wrong_type", "wrong_value")


class Fault(NamedTuple):
    """What is wrong with one argument of one call, or with the selection."""

    reason: Reason
    detail: str


class Judge(Protocol):
    """Judges the arguments of calls whose selection is right."""

    def __call__(
        self, tools: Mapping[str, ToolSpec], wanted: Sequence[Wanted], made: Sequence[ToolCall], ordered: bool
    ) -> Verdict: ...


# The schema's own validator: the same as Verdict() in less than two thirds of the time, which counts in a judgement.
_validated: Callable[[dict[str, Json]], Verdict] = TypeAdapter(Verdict).validator.validate_python


def failed(reason: Reason, detail: str, credit: float = 0.0, *, selection_ok: bool = False) -> Verdict:
    return _validated(
        {
            "ok": False,
            "selection_ok": selection_ok,
            "parameters_ok": False,
            "score": credit,
            "reason": reason,
            "detail": detail,
        }
    )


def passed(detail: str) -> Verdict:
    return Verdict(ok=True, selection_ok=True, parameters_ok=True, score=1.0, reason="ok", detail=detail)


ALL_RIGHT = passed("Right tool, right arguments.")


def arguments_credit(right: float, wanted: int) -> float:
    """What a right selection of `wanted` calls earns, so many (0..wanted) of which are right."""
    return _SELECTION_CREDIT + _ARGUMENTS_CREDIT * right / wanted


def gravest(reasons: Iterable[Reason]) -> int:
    """The place of the reason that is told first."""
    places = [_GRAVITY.index(reason) for reason in reasons]
    return places.index(min(places))


def names_of(calls: Iterable[Wanted]) -> str:
    return ", ".join([call.name or "?" for call in calls])


def show(value: Json) -> str:
    """A value as JSON, cut to 80 characters. Half a character, which JSON text can hold, becomes a question mark."""
    try:
        text = to_json(value, inf_nan_mode="constants").decode()
    except ValueError:
        text = _shown_anyway(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _shown_anyway(value: Json) -> str:
    try:
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()
    except RecursionError:
        return "a value nested too deep to show"


def selection_fault(
    wanted: Sequence[Wanted], made: Sequence[ToolCall], tools: Mapping[str, ToolSpec], ordered: bool
) -> Fault | None:
    if len(made) == len(wanted) == 1 and made[0].name == wanted[0].name in tools and not made[0].error:
        return None
    if not made:
        return Fault("no_call", f"Expected {names_of(wanted)}; nothing was called.")
    for call in made:
        if call.error:
            return Fault("broken_call", f"A call could not be read: {call.error}")
    for call in made:
        if call.name not in tools:
            return Fault("unknown_tool", f'"{call.name}" was not offered; expected {names_of(wanted)}.')
    if len(made) != len(wanted):
        return Fault("wrong_count", f"Expected {len(wanted)} calls ({names_of(wanted)}), got {len(made)}.")
    want_names, made_names = [want.name for want in wanted], [call.name for call in made]
    if want_names == made_names:
        return None
    if sorted(want_names) != sorted(made_names):
        return Fault("wrong_tool", f"Expected {names_of(wanted)}, got {names_of(made)}.")
    if ordered:
        return Fault("wrong_order", f"Expected the order {names_of(wanted)}, got {names_of(made)}.")
    return None


def selection_credit(wanted: Sequence[Wanted], made: Sequence[ToolCall], tools: Mapping[str, ToolSpec]) -> float:
    if not made or any(call.error for call in made):
        return 0.0
    count = _COUNT_CREDIT if len(made) == len(wanted) else 0.0
    return count + _OFFERED_CREDIT * sum(call.name in tools for call in made) / len(made)
