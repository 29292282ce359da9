"""BFCL v4's category, group and overall scores from counts of right answers. Pure arithmetic.

Not a ranking and not a judge. Written from the behaviour of bfcl-eval 2026.3.23 (`eval_checker/eval_runner_helper.py`,
`generate_leaderboard_csv`). The rule it protects: nothing that was not measured is dropped in silence. Each score says
which of its parts are missing and what they weigh; `official` is what the leaderboard would show, which counts what is
missing as 0.

A group's interval adds up those of its parts by Zou and Donner's method of variance estimates recovery (2008,
Statistics in Medicine 27:1693-1702), from Wilson intervals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from llm_tuner.evaluation.bfcl import GROUPS, NOT_RUN
from llm_tuner.evaluation.intervals import rate
from llm_tuner.scoring import Reading
from llm_tuner.types import Rate, Report, Value

SIZES: dict[str, int] = {
    "simple_python": 400,
    "simple_java": 100,
    "simple_javascript": 50,
    "multiple": 200,
    "parallel": 200,
    "parallel_multiple": 200,
    "irrelevance": 240,
    "live_simple": 258,
    "live_multiple": 1053,
    "live_parallel": 16,
    "live_parallel_multiple": 24,
    "live_irrelevance": 884,
    "live_relevance": 16,
}
"""Entries of each single-turn category in the pinned version."""

WEIGHTS: dict[str, float] = {"non_live": 0.1, "live": 0.1, "irrelevance": 0.1, "multi_turn": 0.3, "agentic": 0.4}
"""Shares of the overall score."""

_MULTI_TURN = ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context")
_WEB_SEARCH = ("web_search_base", "web_search_no_snippet")
_MEMORY = ("memory_kv", "memory_vector", "memory_rec_sum")
_LIVE = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")


class Score(Value):
    """A score (0..1) with its 95 % interval; all None where a part of it was not measured: `missing` names the
    categories. `official` counts those as 0. `weight` is the share of the overall score (0: shown, not counted)."""

    value: float | None
    low: float | None
    high: float | None
    official: float
    weight: float = 0.0
    missing: tuple[str, ...] = ()


class Leaderboard(Value):
    """All scores of one model. `overall.official` is the leaderboard's overall score.

    `measured` is the weighted mean of the groups that were measured whole, `measured_weight` (0..1) what these weigh;
    `not_measured` says of every other group what it weighs and what is missing.
    """

    categories: dict[str, Rate]
    groups: dict[str, Score]
    overall: Score
    measured: Score
    measured_weight: float
    not_measured: dict[str, str]


def leaderboard(counts: Mapping[str, tuple[int, int]]) -> Leaderboard:
    """The scores of a model that got `right` of `n` entries right, by category. Categories may be left out.

    Live categories weigh by their size in the data set, so that a sample of each estimates the same score.
    """
    leaves = {name: _leaf(name, *counts.get(name, (0, 0))) for name in _all_categories()}

    def mean(*names: str) -> Score:
        return combined([(1.0, leaves[name]) for name in names])

    simple = mean("simple_python", "simple_java", "simple_javascript")
    groups = {
        "simple": simple,
        "non_live": combined(
            [(1.0, part) for part in (simple, *map(mean, ("multiple", "parallel", "parallel_multiple")))]
        ),
        "live": combined([(float(SIZES[name]), leaves[name]) for name in _LIVE]),
        "irrelevance": mean("irrelevance", "live_irrelevance"),
        "relevance": leaves["live_relevance"],
        "multi_turn": mean(*_MULTI_TURN),
        "agentic": combined([(1.0, mean(*_WEB_SEARCH)), (1.0, mean(*_MEMORY))]),
    }
    groups = {name: score.model_copy(update={"weight": WEIGHTS.get(name, 0.0)}) for name, score in groups.items()}
    whole = [(weight, groups[name]) for name, weight in WEIGHTS.items() if not groups[name].missing]
    return Leaderboard(
        categories={name: rate(*counts[name]) for name in _all_categories() if name in counts},
        groups=groups,
        overall=combined([(weight, groups[name]) for name, weight in WEIGHTS.items()]).model_copy(
            update={"weight": 1.0}
        ),
        measured=combined(whole),
        measured_weight=round(sum(weight for weight, _ in whole), 6),
        not_measured={name: _why(name, groups[name]) for name in WEIGHTS if groups[name].missing},
    )


def of_reports(reports: Iterable[Report], reading: Reading = "native") -> Leaderboard:
    """The scores of BFCL reports, one category a report or several."""
    name = "ok" if reading == "native" else "ok_lenient"
    counts: dict[str, tuple[int, int]] = {}
    for report in reports:
        for category, rates in report.groups.get("category", {}).items():
            right, n = counts.get(category, (0, 0))
            counts[category] = right + rates[name].k, n + rates[name].n
    return leaderboard(counts)


def combined(parts: Sequence[tuple[float, Score]]) -> Score:
    """The weighted mean of scores; the weights need not sum to 1. Nothing of nothing is not measured."""
    total = sum(weight for weight, _ in parts)
    shares = [(weight / total, score) for weight, score in parts] if total else []
    official = sum(share * score.official for share, score in shares)
    missing = tuple(dict.fromkeys(name for _, score in shares for name in score.missing))
    if missing or not shares:
        return Score(value=None, low=None, high=None, official=official, missing=missing)
    value = sum(share * (score.value or 0.0) for share, score in shares)
    down = math.sqrt(sum((share * ((score.value or 0.0) - (score.low or 0.0))) ** 2 for share, score in shares))
    up = math.sqrt(sum((share * ((score.high or 0.0) - (score.value or 0.0))) ** 2 for share, score in shares))
    return Score(value=value, low=max(0.0, value - down), high=min(1.0, value + up), official=official)


def _leaf(name: str, right: int, n: int) -> Score:
    found = rate(right, n)
    missing = () if n else (name,)
    return Score(value=found.value, low=found.low, high=found.high, official=found.value or 0.0, missing=missing)


def _all_categories() -> tuple[str, ...]:
    return (*GROUPS["all"], *_MULTI_TURN, *_WEB_SEARCH, *_MEMORY)


def _why(name: str, score: Score) -> str:
    reasons = [f"{kind}: {why}" for kind, why in NOT_RUN.items() if any(m.startswith(kind) for m in score.missing)]
    because = f" ({'; '.join(reasons)})" if reasons else ""
    return f"{score.weight:.0%} of the overall score; not measured: {', '.join(score.missing)}{because}."
