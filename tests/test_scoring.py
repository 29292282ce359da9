"""The judge: strict rules argument by argument, selection, order, credit, gold answers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from llm_tuner.scoring import Rules, gold_attempt, made_calls, score, wants_call
from llm_tuner.types import (
    AllowedCall,
    AllowedCalls,
    AnyCall,
    Attempt,
    ExactCalls,
    Expectation,
    Message,
    NoCall,
    Task,
    ToolCall,
    ToolSpec,
)

WEATHER = ToolSpec(
    name="weather",
    parameters={
        "type": "object",
        "$defs": {"Place": {"type": "object", "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}}}},
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer", "default": 3},
            "unit": {"type": "string", "enum": ["c", "f"], "default": "c"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "hidden": {"type": ["boolean", "null"], "default": None},
            "tags": {"type": "array", "items": {"type": "string"}},
            "place": {"$ref": "#/$defs/Place"},
        },
        "required": ["city"],
    },
)
RULES: tuple[Rules, ...] = ("strict", "bfcl")
CLOCK = ToolSpec(name="clock", parameters={"type": "object", "properties": {"zone": {"type": "string"}}})


def call(name: str, /, **arguments: Any) -> ToolCall:
    return ToolCall(name=name, arguments=arguments)


def task(expect: Expectation, *tools: ToolSpec) -> Task:
    return Task(messages=(Message(role="user", text="?"),), tools=tools or (WEATHER, CLOCK), expect=expect)


def exact(*calls: ToolCall, ordered: bool = False) -> Task:
    return task(ExactCalls(calls=calls, ordered=ordered))


def tried(*calls: ToolCall, text_calls: tuple[ToolCall, ...] = (), error: str = "") -> Attempt:
    message = Message(role="assistant", tool_calls=calls, text_calls=text_calls)
    return Attempt(task_id="t", backend="b", messages=(message,), error=error)


# Each row: the expected arguments, the made ones, the reason.
ARGUMENTS = [
    ({"city": "Kyoto"}, {"city": "Kyoto"}, "ok"),
    ({"city": "Kyoto"}, {"city": " Kyoto\n"}, "ok"),
    ({"city": "Kyoto"}, {"city": "kyoto"}, "wrong_value"),
    ({"city": "\u304c"}, {"city": "\u304b\u3099"}, "ok"),  # NFC and NFD
    ({"city": "Kyoto"}, {"city": 5}, "wrong_type"),
    ({"city": "Kyoto"}, {}, "missing_parameter"),
    ({"city": "K"}, {"city": "K", "days": 3}, "ok"),  # the default, passed
    ({"city": "K"}, {"city": "K", "days": 4}, "unexpected_parameter"),
    ({"city": "K", "days": 3}, {"city": "K"}, "ok"),  # the default, left out
    ({"city": "K", "days": 4}, {"city": "K"}, "missing_parameter"),
    ({"city": "K", "days": 4}, {"city": "K", "days": 4.0}, "ok"),
    ({"city": "K", "days": 1}, {"city": "K", "days": True}, "wrong_type"),
    ({"city": "K", "days": 4}, {"city": "K", "days": "4"}, "wrong_type"),
    ({"city": "K", "days": 4}, {"city": "K", "days": 4.5}, "wrong_type"),
    ({"city": "K", "days": 4}, {"city": "K", "days": 5}, "wrong_value"),
    ({"city": "K"}, {"city": "K", "note": None}, "ok"),  # optional and nullable
    ({"city": "K", "note": None}, {"city": "K"}, "ok"),
    ({"city": "K", "note": "x"}, {"city": "K", "note": None}, "wrong_value"),
    ({"city": "K"}, {"city": "K", "hidden": None}, "ok"),
    ({"city": "K"}, {"city": "K", "unit": None}, "unexpected_parameter"),  # optional, not nullable
    ({"city": "K"}, {"city": "K", "zip": 1}, "unexpected_parameter"),  # not in the schema
    ({"city": "K", "tags": ["a", "b"]}, {"city": "K", "tags": ["a", "b"]}, "ok"),
    ({"city": "K", "tags": ["a", "b"]}, {"city": "K", "tags": ["b", "a"]}, "wrong_value"),
    ({"city": "K", "tags": ["a"]}, {"city": "K", "tags": [1]}, "wrong_type"),
    ({"city": "K", "tags": ["a"]}, {"city": "K", "tags": "a"}, "wrong_type"),
    ({"city": "K", "place": {"lat": 1, "lon": 2}}, {"city": "K", "place": {"lon": 2.0, "lat": 1.0}}, "ok"),
    ({"city": "K", "place": {"lat": 1}}, {"city": "K", "place": {"lat": 1, "lon": 2}}, "wrong_value"),
    ({"city": "K", "place": {"lat": 1}}, {"city": "K", "place": {"lat": "1"}}, "wrong_type"),
]


@pytest.mark.parametrize(("wanted", "made", "reason"), ARGUMENTS)
def test_strict_arguments(wanted: dict[str, Any], made: dict[str, Any], reason: str) -> None:
    verdict = score(exact(call("weather", **wanted)), tried(call("weather", **made)))
    assert verdict.reason == reason, verdict
    assert verdict.selection_ok
    assert verdict.ok == verdict.parameters_ok == (reason == "ok") == (verdict.score == 1.0)
    assert verdict.detail


def test_the_type_is_blamed_before_the_value_and_the_missing_before_both() -> None:
    wanted = exact(call("weather", city="K", days=4, unit="f"))
    assert score(wanted, tried(call("weather", city="X", days="4", unit="f"))).reason == "wrong_type"
    assert score(wanted, tried(call("weather", city="X", days="4"))).reason == "missing_parameter"


SELECTION = [
    ((), "no_call"),
    ((call("sunset"),), "unknown_tool"),
    ((call("clock"),), "wrong_tool"),
    ((call("weather", city="K"), call("weather", city="K")), "wrong_count"),
    ((ToolCall(name="weather", error="broken JSON", raw="{"),), "broken_call"),
]


@pytest.mark.parametrize(("made", "reason"), SELECTION)
def test_selection(made: tuple[ToolCall, ...], reason: str) -> None:
    verdict = score(exact(call("weather", city="K")), tried(*made))
    assert verdict.reason == reason
    assert not verdict.selection_ok
    assert not verdict.parameters_ok
    assert verdict.score <= 0.2


def test_a_call_written_as_text_counts_only_when_read_leniently() -> None:
    wanted, attempt = exact(call("weather", city="K")), tried(text_calls=(call("weather", city="K"),))
    assert score(wanted, attempt).reason == "call_as_text"
    assert not score(wanted, attempt).selection_ok
    assert score(wanted, attempt, reading="lenient").ok
    assert made_calls(attempt) == ()


def test_native_calls_hide_text_calls() -> None:
    attempt = tried(call("weather", city="K"), text_calls=(call("clock"),))
    assert score(exact(call("weather", city="K")), attempt, reading="lenient").ok


def test_no_call() -> None:
    silent = task(NoCall(reply="No tool fits."))
    assert not wants_call(silent)
    assert score(silent, tried()).ok
    for attempt in (tried(call("clock")), tried(text_calls=(call("clock"),))):
        verdict = score(silent, attempt)
        assert (verdict.reason, verdict.score) == ("unwanted_call", 0.0)


def test_an_attempt_that_failed() -> None:
    verdict = score(task(NoCall()), tried(error="timed out"))
    assert (verdict.reason, verdict.detail, verdict.score) == ("backend_error", "timed out", 0.0)


def test_bfcl_takes_the_reading_at_its_word_where_no_call_is_wanted() -> None:
    silent, in_text = task(NoCall()), tried(text_calls=(call("clock"),))
    assert score(silent, in_text, rules="bfcl").ok
    assert score(silent, in_text, rules="bfcl", reading="lenient").reason == "unwanted_call"
    assert not score(silent, tried(call("clock")), rules="bfcl").ok
    half = tried(call("clock"), ToolCall(name="clock", error="broken JSON"))
    assert score(silent, half, rules="bfcl").ok  # the official decoder gives up, and then there is no call
    assert not score(silent, half).ok


def test_any_call() -> None:
    wanted = task(AnyCall())
    assert wants_call(wanted)
    for rules in RULES:
        assert score(wanted, tried(call("clock")), rules=rules).ok
        assert score(wanted, tried(), rules=rules).reason == "no_call"
        assert score(wanted, tried(ToolCall(name="clock", error="broken")), rules=rules).reason == "broken_call"
        assert score(wanted, tried(text_calls=(call("clock"),)), rules=rules).reason == "call_as_text"
    assert score(wanted, tried(call("sunset"))).reason == "unknown_tool"
    assert score(wanted, tried(call("sunset")), rules="bfcl").ok


def test_no_message_is_no_call() -> None:
    assert score(exact(call("clock")), Attempt(task_id="t", backend="b")).reason == "no_call"


def test_only_the_first_assistant_message_is_judged() -> None:
    right, wrong = call("clock", zone="JST"), call("clock", zone="UTC")
    messages = tuple(Message(role="assistant", tool_calls=(c,)) for c in (wrong, right))
    attempt = Attempt(task_id="t", backend="b", messages=messages)
    assert score(exact(right), attempt).reason == "wrong_value"


def test_several_calls_in_any_order_unless_ordered() -> None:
    a, b, c = call("clock", zone="A"), call("clock", zone="B"), call("weather", city="K")
    for made in itertools.permutations((a, b, c)):
        assert score(exact(a, b, c), tried(*made)).ok
        ordered = score(exact(a, b, c, ordered=True), tried(*made))
        assert ordered.ok == (made == (a, b, c))
        assert ordered.ok or ordered.reason == "wrong_order"
    swapped = score(exact(a, b, ordered=True), tried(b, a))
    assert (swapped.selection_ok, swapped.parameters_ok) == (True, False)


def test_calls_are_paired_so_that_most_arguments_are_right() -> None:
    wanted = exact(call("weather", city="A", days=1), call("weather", city="B", days=2))
    verdict = score(wanted, tried(call("weather", city="B", days=2), call("weather", city="A", days=9)))
    assert verdict.reason == "wrong_value"
    assert verdict.score == pytest.approx(0.5 + 0.4 * 0.75)


def test_bfcl_pairs_by_first_fit() -> None:
    wide = AllowedCall(name="clock", arguments={"zone": ["A", "B"]})
    narrow = AllowedCall(name="clock", arguments={"zone": ["A"]})
    a, b = call("clock", zone="A"), call("clock", zone="B")
    wanted = task(AllowedCalls(calls=(wide, narrow)))
    assert score(wanted, tried(b, a), rules="bfcl").ok
    refused = score(wanted, tried(a, b), rules="bfcl")  # the wide one takes A, and B does not fit the narrow one
    assert (refused.reason, refused.selection_ok) == ("wrong_value", True)
    assert 0.5 < refused.score < 1.0
    assert score(wanted, tried(a, b)).ok
    assert score(task(AllowedCalls(calls=(narrow, wide))), tried(a, b), rules="bfcl").ok
    ordered = task(AllowedCalls(calls=(narrow, wide), ordered=True))
    assert score(ordered, tried(a, b), rules="bfcl").ok
    assert not score(ordered, tried(b, a), rules="bfcl").ok


def test_many_calls_are_paired_quickly() -> None:
    calls = [call("clock", zone=str(i)) for i in range(40)]
    assert score(exact(*calls), tried(*reversed(calls))).ok


def test_credit_grows_with_what_is_right() -> None:
    wanted = exact(call("weather", city="K", days=4))
    attempts = [
        tried(),
        tried(text_calls=(call("weather", city="K", days=4),)),
        tried(call("sunset"), call("sunset")),
        tried(call("sunset")),
        tried(call("clock")),
        tried(call("weather", city="X", days=5)),
        tried(call("weather", city="K", days=5)),
        tried(call("weather", city="K", days=4)),
    ]
    credits = [score(wanted, attempt).score for attempt in attempts]
    assert credits[0] == 0.0
    assert credits[-1] == 1.0
    assert max(credits[:5]) <= 0.2 < credits[5] < credits[6] < 1.0


ALLOWED = AllowedCall(
    name="weather",
    arguments={"city": ["Kyoto", "京都"], "days": [1, 2, ""], "place": [{"lat": [1.0], "lon": [2.0, ""]}, ""]},
)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"city": "京都", "days": 2}, "ok"),
        ({"city": "Kyoto"}, "ok"),
        ({"city": "Kyoto", "days": 3}, "ok"),  # the schema's default means left out, and it may be left out
        ({"city": "Kyoto", "days": 4}, "wrong_value"),
        ({"city": "Kyoto", "place": {"lat": 1}}, "ok"),
        ({"city": "Kyoto", "place": {"lat": 1, "lon": 3}}, "wrong_value"),
        ({"city": "Kyoto", "place": {"lon": 2}}, "wrong_value"),
        ({"days": 1}, "missing_parameter"),
        ({"city": "Kyoto", "unit": "f"}, "unexpected_parameter"),
    ],
)
def test_allowed_values(made: dict[str, Any], reason: str) -> None:
    assert score(task(AllowedCalls(calls=(ALLOWED,))), tried(call("weather", **made))).reason == reason


def test_schemas_from_the_wild_do_not_crash_the_judge() -> None:
    loop = {"$ref": "#/$defs/A"}
    wild: list[Any] = [
        {},
        {"type": "object"},
        {"type": "object", "properties": {"x": True}},
        {"type": "object", "properties": {"x": {"$ref": "#/$defs/none"}}, "required": None},
        {"type": "object", "properties": {"x": {"$ref": "other.json"}}},
        {"type": "object", "properties": {"x": loop}, "$defs": {"A": {"$ref": "#/$defs/A"}}},
        {"type": "object", "properties": {"x": loop}, "$defs": {"A": {"anyOf": [loop]}}},
        {"type": "object", "properties": {"x": {"type": "date"}}},
        {"type": "object", "properties": {"x": {"type": {"a": 1}}}, "required": True},
        {"type": "object", "properties": ["x"], "required": "x"},
    ]
    for parameters in wild:
        tool = ToolSpec(name="t", parameters=parameters)
        wanted = task(ExactCalls(calls=(call("t", x=1),)), tool)
        for rules in RULES:
            score(wanted, tried(call("t", x=[1])), rules=rules)
        assert score(wanted, tried(call("t", x=1))).ok
        assert score(wanted, tried(call("t", x="1"))).reason == "wrong_value"


@pytest.mark.parametrize(
    "expect",
    [
        NoCall(reply="Nothing to call."),
        AnyCall(),
        ExactCalls(calls=(call("weather", city="K", tags=["a"]), call("clock"))),
        ExactCalls(calls=(call("clock", zone="B"), call("clock", zone="A")), ordered=True),
        ExactCalls(calls=(call("weather", city=""),)),
        AllowedCalls(calls=(ALLOWED, ALLOWED)),
    ],
)
def test_gold_answers_score_one(expect: Expectation) -> None:
    wanted = task(expect)
    gold = gold_attempt(wanted)
    assert gold.task_id == wanted.id
    assert score(wanted, gold).score == 1.0
    if isinstance(expect, NoCall):
        assert gold.messages[0].text == expect.reply


def test_gold_keeps_the_arguments_of_a_tool_that_is_not_offered() -> None:
    wanted = task(AllowedCalls(calls=(AllowedCall(name="gone", arguments={"x": [1]}),)))
    assert gold_attempt(wanted).messages[0].tool_calls[0].arguments == {"x": 1}


def test_half_a_character_does_not_stop_the_judge() -> None:
    for rules in RULES:
        verdict = score(exact(call("weather", city="K")), tried(call("weather", city="\ud83d")), rules=rules)
        assert verdict.reason == "wrong_value"
        assert "?" in verdict.detail


def test_a_number_beyond_every_float_is_a_wrong_type_for_bfcl() -> None:
    tool = ToolSpec(name="t", parameters={"type": "object", "properties": {"x": {"type": "number"}}})
    wanted = task(AllowedCalls(calls=(AllowedCall(name="t", arguments={"x": [1.0]}),)), tool)
    assert score(wanted, tried(call("t", x=10**400)), rules="bfcl").reason == "wrong_type"
    assert score(wanted, tried(call("t", x=1)), rules="bfcl").ok
