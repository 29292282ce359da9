"""BFCL's group and overall scores."""

from __future__ import annotations

import pytest

from llm_tuner.evaluation.bfcl import GROUPS
from llm_tuner.evaluation.intervals import rate
from llm_tuner.evaluation.leaderboard import SIZES, combined, leaderboard, of_reports
from llm_tuner.types import Report

HALF = {name: (n // 2, n) for name, n in SIZES.items()}


def test_groups_are_weighted_as_the_leaderboard_weighs_them() -> None:
    counts = HALF | {
        "simple_python": (400, 400),
        "simple_java": (0, 100),
        "simple_javascript": (25, 50),
        "multiple": (200, 200),
        "live_simple": (258, 258),
        "live_multiple": (0, 1053),
        "irrelevance": (240, 240),
        "live_irrelevance": (0, 884),
    }
    board = leaderboard(counts)
    assert board.groups["simple"].value == pytest.approx(0.5)
    assert board.groups["non_live"].value == pytest.approx((0.5 + 1.0 + 0.5 + 0.5) / 4)
    assert board.groups["live"].value == pytest.approx((258 + 8 + 12) / (258 + 1053 + 16 + 24))
    assert board.groups["irrelevance"].value == pytest.approx(0.5)  # of the two, not of the 1,124 entries
    assert board.groups["relevance"].value == pytest.approx(0.5)
    assert board.groups["relevance"].weight == 0.0
    parts = [board.groups[name].value or 0.0 for name in ("non_live", "live", "irrelevance")]
    assert board.overall.official == pytest.approx(sum(parts) / 10)
    assert board.measured.value == pytest.approx(sum(parts) / 3)
    assert board.measured_weight == pytest.approx(0.3)


def test_what_was_not_measured_is_said_with_its_weight() -> None:
    board = leaderboard({name: HALF[name] for name in GROUPS["non_live"]})
    assert board.groups["non_live"].value is not None
    assert board.groups["live"].value is None
    assert board.groups["live"].missing == ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
    assert board.groups["irrelevance"].missing == ("live_irrelevance",)
    assert board.groups["irrelevance"].official == pytest.approx(0.25)
    assert board.overall.value is None
    assert "40%" in board.not_measured["agentic"]
    assert "search service" in board.not_measured["agentic"]
    assert "30%" in board.not_measured["multi_turn"]
    assert set(board.not_measured) == {"live", "irrelevance", "multi_turn", "agentic"}
    assert board.measured_weight == pytest.approx(0.1)


def test_all_categories_make_a_whole() -> None:
    others = ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context")
    others += ("web_search_base", "web_search_no_snippet", "memory_kv", "memory_vector", "memory_rec_sum")
    board = leaderboard(HALF | dict.fromkeys(others, (100, 100)))
    assert board.overall.value == pytest.approx(0.5 * 0.3 + 0.7, abs=1e-3)
    assert board.overall.value == pytest.approx(board.overall.official)
    assert not board.not_measured
    assert board.measured.value == pytest.approx(board.overall.value)
    assert (board.measured.low, board.measured.high) == pytest.approx((board.overall.low, board.overall.high))


def test_an_interval_of_one_part_is_its_own_and_of_many_is_narrower() -> None:
    one, board = rate(50, 100), leaderboard({"multiple": (50, 100), "parallel": (50, 100)})
    single = leaderboard({"live_relevance": (8, 16)}).groups["relevance"]
    assert (single.low, single.high) == (rate(8, 16).low, rate(8, 16).high)
    whole = leaderboard(HALF).groups["non_live"]
    assert one.low is not None
    assert whole.low is not None
    assert one.low < whole.low < 0.5
    assert board.categories["multiple"] == one
    assert combined([]).value is None
    full = leaderboard({name: (n, n) for name, n in SIZES.items()}).groups["live"]
    assert (full.value, full.high) == (1.0, 1.0)
    assert full.low is not None
    assert 0.99 < full.low < 1.0


def test_nothing_is_nothing() -> None:
    board = leaderboard({})
    assert (board.measured.value, board.measured_weight, board.overall.official) == (None, 0, 0)
    assert not board.categories


def test_reports_are_added_up_by_category() -> None:
    def report(category: str, right: int, lenient: int) -> Report:
        rates = {"ok": rate(right, 10), "ok_lenient": rate(lenient, 10)}
        groups = {"category": {category: rates}}
        return Report(suite=category, suite_hash="h", backend="b", n=10, rates=rates, groups=groups)

    reports = [report("multiple", 2, 8), report("parallel", 5, 5)]
    assert of_reports(reports).categories["multiple"].k == 2
    assert of_reports(reports, "lenient").categories["multiple"].k == 8
