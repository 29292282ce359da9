"""Wilson, McNemar and Newcombe against published numbers, definitions and simulation."""

from __future__ import annotations

import random

import pytest

from llm_tuner.evaluation.intervals import mcnemar, newcombe, paired, rate
from llm_tuner.types import DataError, Report, Verdict


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson(k: int, n: int, low: float, high: float) -> None:
    got = rate(k, n)
    assert (got.low, got.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    mirrored = rate(n - k, n)
    assert mirrored.high == pytest.approx(1 - low, abs=5e-5)


def test_a_rate_of_nothing_has_no_value() -> None:
    assert rate(0, 0).model_dump() == {"k": 0, "n": 0, "value": None, "low": None, "high": None}


def test_impossible_rates_are_refused() -> None:
    with pytest.raises(ValueError, match="3 of 2"):
        rate(3, 2)


@pytest.mark.parametrize(("gained", "lost", "p"), [(0, 0, 1.0), (5, 5, 1.0), (6, 0, 0.03125), (9, 1, 22 / 1024)])
def test_mcnemar(gained: int, lost: int, p: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(p)
    assert mcnemar(lost, gained) == pytest.approx(p)


def test_mcnemar_of_many_changes_does_not_overflow() -> None:
    assert 0 <= mcnemar(4000, 1000) < 1e-300
    assert mcnemar(2500, 2500) == 1.0


def test_newcombe_mirrors_and_contains_the_difference() -> None:
    low, high = newcombe(both=36, gained=2, lost=12, neither=0)
    assert low < -0.2 < high < 0
    assert newcombe(both=36, gained=12, lost=2, neither=0) == (pytest.approx(-high), pytest.approx(-low))
    assert newcombe(both=10, gained=0, lost=0, neither=0)[0] <= 0


def test_newcombe_covers_the_true_difference_about_95_times_in_100() -> None:
    draw, covered, runs = random.Random(7), 0, 600
    for _ in range(runs):
        # Four kinds of task: right twice 40 %, gained 25 %, lost 10 %, wrong twice 25 %: the true difference is 0.15.
        kinds = draw.choices(("both", "gained", "lost", "neither"), (40, 25, 10, 25), k=60)
        low, high = newcombe(*(kinds.count(kind) for kind in ("both", "gained", "lost", "neither")))
        covered += low <= 0.15 <= high
    assert 0.92 <= covered / runs <= 0.985


def report(name: str, right: dict[str, bool]) -> Report:
    verdicts = {
        task: Verdict(ok=ok, selection_ok=True, parameters_ok=ok, score=float(ok), reason="ok" if ok else "wrong_value")
        for task, ok in right.items()
    }
    return Report(suite="s", suite_hash="h", backend=name, n=len(right), rates={}, verdicts=verdicts)


def test_paired_counts_common_tasks_only() -> None:
    before = report("old", {"a": True, "b": False, "c": False, "d": True, "only-before": True})
    after = report("new", {"a": True, "b": True, "c": False, "d": False, "only-after": True})
    got = paired(before, after)
    assert (got.n, got.both, got.gained, got.lost, got.neither) == (4, 1, 1, 1, 1)
    assert (got.before, got.after, got.difference, got.p) == (0.5, 0.5, 0.0, 1.0)
    assert paired(before, after, "selection").both == 4
    assert paired(before, after, tasks=["b", "only-after"]).gained == 1


def test_reports_without_a_common_task_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="none of the same task"):
        paired(report("old", {"a": True}), report("new", {"b": True}))
