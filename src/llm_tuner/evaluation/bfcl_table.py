"""BFCL's results of one model as a Markdown table: a line a category and a group, both readings side by side.

Nothing is counted here (measure.py, leaderboard.py). The rule it protects: a number never stands without its interval
and how many entries it is of.
"""

from __future__ import annotations

from collections.abc import Sequence

from llm_tuner.evaluation.leaderboard import SIZES, Leaderboard, Score, of_reports
from llm_tuner.types import Rate, Report

_HEAD = (
    "| category | entries | native | lenient | native calls | right tool (lenient) | p50 ms | tokens out |\n"
    "|---|---|---|---|---|---|---|---|\n"
)


def table(reports: Sequence[Report]) -> str:
    """A line for each report (one category each), then the groups that were measured whole.

    `native`, `lenient`: right answers under the two readings, in percent with the 95 % interval. `native calls`: of the
    entries that want a call, those in which the runtime surfaced one. `right tool (lenient)`: of the same entries.
    """
    lines = [_line(report) for report in reports]
    native, lenient = of_reports(reports), of_reports(reports, "lenient")
    lines += [_group(name, native, lenient) for name in native.groups if _known(name, native, lenient)]
    return _HEAD + "\n".join(lines) + "\n"


def _line(report: Report) -> str:
    name = report.suite.removeprefix("bfcl:")
    of = f"{report.n} of {SIZES[name]}" if name in SIZES else str(report.n)
    rates = report.rates
    cells = [name, of, percent(rates["ok"]), percent(rates["ok_lenient"])]
    cells += [percent(rates["native_rate"]), percent(rates["selection_lenient"])]
    cells += [_number(report.latency.p50_ms), _number(report.tokens.completion_p50)]
    return f"| {' | '.join(cells)} |"


def _group(name: str, native: Leaderboard, lenient: Leaderboard) -> str:
    readings = [percent(native.groups[name]), percent(lenient.groups[name])]
    return f"| **{name}** | | {' | '.join(f'**{reading}**' for reading in readings)} | | | | |"


def _known(name: str, *boards: Leaderboard) -> bool:
    return all(board.groups[name].value is not None for board in boards)


def percent(found: Rate | Score) -> str:
    """A rate or a score with its interval, in percent; a dash for nothing."""
    if found.value is None or found.low is None or found.high is None:
        return "–"
    return f"{found.value * 100:.1f} ({found.low * 100:.1f}-{found.high * 100:.1f})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
