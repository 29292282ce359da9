"""Charts and tables in the coordinates and numbers that the templates print. Nothing is counted or drawn here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from llm_tuner.evaluation.counts import BROKEN, NO_ANSWER, NOTHING, SEVERAL, UNKNOWN
from llm_tuner.evaluation.details import Bar
from llm_tuner.types import Report, Search, Trial

if TYPE_CHECKING:
    from llm_tuner.evaluation.compare import Change
    from llm_tuner.evaluation.latency import Load, Spread

Curve = Sequence[tuple[int, float]]

_MATRIX = 24  # tools; a bigger table cannot be read
_PAIRS = 20
_SPECIAL = (NOTHING, UNKNOWN, SEVERAL, BROKEN, NO_ANSWER)


def points(share: float) -> str:
    """A difference of shares, in points with its sign."""
    return f"{share * 100:+.1f}"


def number(value: float | None) -> str:
    """Three digits, or whole thousands; a dash for nothing."""
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


class Plot(NamedTuple):
    """A curve in the picture's coordinates, 0..1 from the left and from the top, with the ends of its axes."""

    points: list[tuple[float, float]]
    first: int
    last: int
    low: float
    high: float


def plotted(curve: Curve) -> Plot:
    """The curve of (step, loss), scaled to its own ends."""
    steps, losses = [step for step, _ in curve], [loss for _, loss in curve]
    first, last, low, high = min(steps), max(steps), min(losses), max(losses)
    width, height = (last - first) or 1, (high - low) or 1
    return Plot([((step - first) / width, (high - loss) / height) for step, loss in curve], first, last, low, high)


class Cell(NamedTuple):
    name: str
    n: int
    share: float
    right: bool


class Line(NamedTuple):
    number: int
    name: str
    cells: list[Cell]


class Column(NamedTuple):
    name: str
    short: str
    number: int = 0


class Confusion(NamedTuple):
    """Wanted tools (rows) by called tools (columns); `pairs` are the most frequent confusions."""

    columns: list[Column]
    rows: list[Line]
    left_out: int
    pairs: list[tuple[str, str, int]]


def confusion_table(counts: dict[str, dict[str, int]], words: dict[str, str]) -> Confusion | None:
    """The table of the tools that are wanted most, where tools are wanted more than once; else the pairs alone."""
    wrong = [(wanted, called, n) for wanted, row in counts.items() for called, n in row.items() if called != wanted]
    pairs = sorted(wrong, key=lambda pair: (-pair[2], pair[:2]))[:_PAIRS]
    if sum(sum(row.values()) for row in counts.values()) < 2 * len(counts):
        return Confusion([], [], 0, pairs) if pairs else None
    names = list(counts)[:_MATRIX]
    columns = [Column(name, str(place), place) for place, name in enumerate(names, 1)]
    columns += [Column(name, name.strip("()")) for name in _SPECIAL if any(name in counts[wanted] for wanted in names)]
    known = {column.name for column in columns}
    rest = {wanted: sum(n for called, n in counts[wanted].items() if called not in known) for wanted in names}
    if any(rest.values()):
        columns.append(Column("", words["other"]))
    rows = [Line(place, name, _cells(name, counts[name], rest[name], columns)) for place, name in enumerate(names, 1)]
    return Confusion(columns, rows, len(counts) - len(names), pairs)


def _cells(wanted: str, row: dict[str, int], rest: int, columns: Sequence[Column]) -> list[Cell]:
    total = sum(row.values())
    seen = [(column, row.get(column.name, 0) if column.name else rest) for column in columns]
    return [Cell(column.name, n, 0.15 + 0.6 * n / total, column.name == wanted) for column, n in seen]


class Histogram(NamedTuple):
    """A histogram in the picture's coordinates: bars (x, width, height, title), ticks and marks (x, label)."""

    bins: list[tuple[float, float, float, str]]
    ticks: list[tuple[float, str]]
    marks: list[tuple[float, str]]
    most: int


def bars(bins: Sequence[Bar], report: Report) -> Histogram:
    """The histogram on a logarithmic axis, with the report's median and 95th percentile marked."""
    low, high, most = math.log(bins[0].low), math.log(bins[-1].high), max(b.n for b in bins)

    def x(ms: float) -> float:
        return 60 + 750 * min(1.0, max(0.0, (math.log(ms) - low) / (high - low)))

    drawn = [
        (x(b.low) + 0.5, x(b.high) - x(b.low) - 1, 136 * b.n / most, f"{number(b.low)}–{number(b.high)} ms: {b.n}")
        for b in bins
    ]
    known = (("p50", report.latency.p50_ms), ("p95", report.latency.p95_ms))
    ticks = [(x(b.low), number(b.low)) for b in bins[::4]] + [(810, number(bins[-1].high))]
    return Histogram(drawn, ticks, [(x(ms), label) for label, ms in known if ms], most)


def differences(changes: Sequence[Change], words: dict[str, str]) -> dict[str, Any]:
    """Each metric's difference with its interval, in the picture's coordinates; zero is marked."""
    ends = [0.0, *(end for change in changes for end in (change.low, change.high))]
    reach = max(0.05, max(map(abs, ends)))

    def x(share: float) -> float:
        return 490 + 190 * share / reach

    rows = [
        {
            "y": 14 + 26 * place,
            "label": words[change.metric],
            "low": x(change.low),
            "high": x(change.high),
            "at": x(change.difference),
            "kind": "worse" if change.regression else "better" if change.low > 0 else "same",
            "change": change,
        }
        for place, change in enumerate(changes)
    ]
    ticks = [(x(share), points(share)) for share in (-reach, 0.0, reach)]
    return {"rows": rows, "ticks": ticks, "zero": x(0), "height": 26 * len(rows) + 24}


class SpreadLine(NamedTuple):
    """One load's percentiles in the picture's coordinates."""

    y: int
    load: Load
    at: list[float]
    spread: Spread


class Spreads(NamedTuple):
    """The spreads of some loads on one axis that begins at 0; `ticks` are (x, label in ms)."""

    rows: list[SpreadLine]
    ticks: list[tuple[float, str]]
    height: int


def spreads(loads: Sequence[Load], of: Literal["first_token", "total"]) -> Spreads | None:
    """Median, 95th and 99th percentile of each load, in milliseconds; None where no load has them."""
    found = [
        (load, getattr(load, of), [getattr(load, of).p50, getattr(load, of).p95, getattr(load, of).p99])
        for load in loads
    ]
    known = [(load, spread, ends) for load, spread, ends in found if None not in ends]
    if not known:
        return None
    most = max(ends[-1] for _, _, ends in known) or 1.0
    rows = [
        SpreadLine(14 + 26 * place, load, [160 + 500 * ms / most for ms in ends], spread)
        for place, (load, spread, ends) in enumerate(known)
    ]
    ticks = [(160.0 + 125.0 * part, number(most * part / 4)) for part in range(5)]
    return Spreads(rows, ticks, 26 * len(rows) + 24)


class Dot(NamedTuple):
    """A trial in the picture's coordinates; one without an accuracy lies on the axis."""

    x: float
    y: float
    trial: Trial


class Trials(NamedTuple):
    """The trials in their order from the left, the accuracy from `low` to `high` upwards; `best` goes from trial to
    trial through the best so far (x, y)."""

    dots: list[Dot]
    best: list[tuple[float, float]]
    low: float
    high: float


def tried(search: Search) -> Trials | None:
    """The picture of a search; None where no trial was finished."""
    known = [trial.accuracy for trial in search.trials if trial.accuracy is not None]
    if not known:
        return None
    low, high = min(known), max(known)
    step = 730 / max(1, len(search.trials) - 1)

    def y(accuracy: float) -> float:
        return 20 + 160 * (high - accuracy) / ((high - low) or 1)

    dots = [
        Dot(70 + step * place, 200.0 if trial.accuracy is None else y(trial.accuracy), trial)
        for place, trial in enumerate(search.trials)
    ]
    best: list[tuple[float, float]] = []
    for dot in dots:
        if dot.trial.accuracy is not None:
            best.append((dot.x, min(dot.y, best[-1][1]) if best else dot.y))
    return Trials(dots, best, low, high)


def weighed(importance: dict[str, float]) -> list[tuple[int, str, float, float]]:
    """Bars of what the settings matter, the most first: (y, name, width, share)."""
    rows = sorted(importance.items(), key=lambda item: -item[1])
    return [(26 * place, name, 500 * share, share) for place, (name, share) in enumerate(rows)]
