"""The sentence that a report comes to."""

from __future__ import annotations

import pytest

from llm_tuner.evaluation.intervals import rate
from llm_tuner.evaluation.summary import summary
from llm_tuner.evaluation.wording import Language
from llm_tuner.types import Latency, Report


def report(selection: int, lenient: int, latency: float | None = 310.4) -> Report:
    return Report(
        suite="s",
        suite_hash="",
        backend="mine:stable",
        n=120,
        rates={
            "ok": rate(90, 120),
            "selection": rate(selection, 100),
            "parameters": rate(selection - 5, 100),
            "selection_lenient": rate(lenient, 100),
            "parameters_lenient": rate(lenient - 5, 100),
            "no_call": rate(18, 20),
        },
        latency=Latency(n=120, p50_ms=latency),
    )


def test_rates_are_said_with_intervals_and_numbers() -> None:
    assert summary(report(93, 93)) == (
        "mine:stable, as served here, selects the right tool in 93.0 % (86–97) of 100 requests, gets the arguments "
        "right, too, in 88.0 % (80–93), calls nothing in 90.0 % (70–97) of 20 requests that want no tool, and answers "
        "in 310 ms (median)."
    )


def test_calls_in_text_are_told_apart() -> None:
    assert summary(report(5, 80)).endswith(
        "Calls that it wrote as text, and that the runtime did not surface, would make it 80.0 % (71–87), with the "
        "right arguments 75.0 % (66–82)."
    )


@pytest.mark.parametrize(("language", "word"), [("en", "as served here"), ("ja", "依頼")])
def test_both_languages_say_the_same_numbers(language: Language, word: str) -> None:
    text = summary(report(93, 93), language)
    assert word in text
    assert all(number in text for number in ("93.0 %", "88.0 %", "90.0 %", "310"))


def test_a_report_that_is_not_about_calls_has_none() -> None:
    assert summary(Report(suite="general", suite_hash="", backend="b", n=1, rates={"ok": rate(1, 1)})) == ""


def test_failed_requests_are_told_apart_from_wrong_answers() -> None:
    failed = report(5, 5).model_copy(update={"reasons": {"backend_error": 12, "ok": 108}})
    assert summary(failed).endswith("12 of 120 requests failed and count as wrong: that is the runtime's doing.")
    assert "12 件" in summary(failed, "ja")
    assert "failed" not in summary(report(5, 5))
