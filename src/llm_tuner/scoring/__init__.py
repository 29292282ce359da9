"""The one judge: `score(task, attempt) -> Verdict`. Pure; it never sees a model's name.

Not a benchmark and not a parser: it reads the calls that a backend surfaced (or a dialect lifted) and compares them
with what the task expects. The data filter, DPO pairs, the GRPO reward, the evaluation and the gate all call it.

The rule it protects: a verdict is ok exactly when selection and parameters are both ok, and only then its score is 1.0.

Two sets of rules. `strict` (strict.py) compares arguments as JSON values and is what your own tools are judged by.
`bfcl` (bfcl.py, source_text.py) gives the verdicts of the Berkeley Function Calling Leaderboard, its leniencies and
quirks included, so that numbers can be compared with published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from llm_tuner.scoring import bfcl, strict
from llm_tuner.scoring.gold import gold_attempt
from llm_tuner.scoring.verdicts import (
    CALL_AS_TEXT_CREDIT,
    Judge,
    failed,
    names_of,
    passed,
    selection_credit,
    selection_fault,
)
from llm_tuner.types import (
    AnyCall,
    Attempt,
    Message,
    NoCall,
    Task,
    ToolCall,
    ToolSpec,
    Verdict,
    by_name,
)

__all__ = ["Reading", "Rules", "answer", "gold_attempt", "made_calls", "score", "wants_call"]

Rules = Literal["strict", "bfcl"]
Reading = Literal["native", "lenient"]


def score(task: Task, attempt: Attempt, *, rules: Rules = "strict", reading: Reading = "native") -> Verdict:
    """Judge the calls of the attempt's first assistant message.

    `reading="native"` counts only what the runtime surfaced; `"lenient"` takes calls written as text where there is no
    native one. Selection is the multiset of names (their sequence, too, where the task is ordered); parameters are
    judged only where the selection is right. Calls are matched to expectations by best assignment under the strict
    rules and by first fit under BFCL's, so order is free unless the task says otherwise (first fit can still reject a
    right set for its order, as the original does). An answer that fails still earns less than 1: right selection 0.5
    and up to 0.4 for the share of right arguments (under BFCL's rules, of right calls); wrong selection up to 0.2 for
    the right count and for names that exist.

    Where no call is wanted, the strict rules count a call that was written as text as unwanted under both readings.
    BFCL's take the reading at its word: under the native one text is no call, and calls of which one cannot be read
    are none either.
    """
    if attempt.error:
        return failed("backend_error", attempt.error)
    message = answer(attempt)
    native = message.tool_calls if message is not None else ()
    lenient = native if native or message is None else message.text_calls
    made = native if reading == "native" else lenient
    expect = task.expect
    if (expect.kind == "allowed" or expect.kind == "exact") and expect.calls:
        if lenient and not made:
            return _judge_text(lenient)
        tools, wanted, ordered = by_name(task.tools), expect.calls, expect.ordered
        fault = selection_fault(wanted, made, tools, ordered)
        if fault is not None:
            return failed(*fault, selection_credit(wanted, made, tools))
        return _JUDGES[rules](tools, wanted, made, ordered)
    if expect.kind == "any":
        return _judge_any(made, task.tools, offered=rules == "strict") if made or not lenient else _judge_text(lenient)
    return _judge_silence(lenient if rules == "strict" else bfcl.decoded(made))


def wants_call(task: Task) -> bool:
    """Whether a right answer calls a tool."""
    if isinstance(task.expect, AnyCall):
        return True
    return not isinstance(task.expect, NoCall) and bool(task.expect.calls)


def answer(attempt: Attempt) -> Message | None:
    """The first assistant message that the attempt produced: the one that is judged."""
    for message in attempt.messages:
        if message.role == "assistant":
            return message
    return None


def made_calls(attempt: Attempt, reading: Reading = "native") -> tuple[ToolCall, ...]:
    """The calls of the judged message under a reading; empty where there is no message."""
    message = answer(attempt)
    if message is None:
        return ()
    return message.tool_calls if reading == "native" else message.tool_calls or message.text_calls


_JUDGES: dict[Rules, Judge] = {"strict": strict.judge, "bfcl": bfcl.judge}


def _judge_text(lenient: Sequence[ToolCall]) -> Verdict:
    detail = f"The call was written as text ({names_of(lenient)}); the runtime surfaced none."
    return failed("call_as_text", detail, CALL_AS_TEXT_CREDIT)


def _judge_silence(made: Sequence[ToolCall]) -> Verdict:
    if made:
        return failed("unwanted_call", f"No call was wanted, but {names_of(made)} was called.")
    return passed("Rightly called nothing.")


def _judge_any(made: Sequence[ToolCall], offer: Sequence[ToolSpec], *, offered: bool) -> Verdict:
    if not made:
        return failed("no_call", "Expected a call; nothing was called.")
    broken = next((call for call in made if call.error), None)
    if broken is not None:
        return failed("broken_call", f"A call could not be read: {broken.error}")
    tools = by_name(offer)
    unknown = next((call.name for call in made if call.name not in tools), None) if offered else None
    if unknown is not None:
        return failed("unknown_tool", f'"{unknown}" was not offered; expected any of {", ".join(tools)}.')
    return passed(f"{names_of(made)}: a call, as wanted.")
