"""Curves in the coordinates that the templates print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 640, 200
LEFT, TOP, RIGHT, BOTTOM = 52, 10, 10, 24
MOST = 800
"""Points of one line; of more, every so-many-th is drawn."""


class Line(NamedTuple):
    """One line: its name, the points as SVG wants them, and the last value."""

    name: str
    points: str
    last: str
    at: tuple[float, float]


class Chart(NamedTuple):
    """`ticks` are (y, label) of the values, `ends` the labels of the first and last x."""

    lines: list[Line]
    ticks: list[tuple[float, str]]
    ends: tuple[str, str]
    width: int = WIDTH
    height: int = HEIGHT


def chart(
    series: Mapping[str, Sequence[tuple[float, float]]], ends: tuple[str, str], zero: bool = False
) -> Chart | None:
    """The curves of (x, value) on one pair of axes; None where there is nothing to draw."""
    kept = {name: list(points)[:: max(1, len(points) // MOST)] for name, points in series.items() if points}
    if not kept:
        return None
    xs = [x for points in kept.values() for x, _ in points]
    ys = [y for points in kept.values() for _, y in points]
    low, high = min(0.0, *ys) if zero else min(ys), max(ys)
    if high == low:
        low, high = (low - abs(low) * 0.1, high + abs(high) * 0.1) if high else (0.0, 1.0)
    first, span = min(xs), (max(xs) - min(xs)) or 1

    def place(x: float, y: float) -> tuple[float, float]:
        across, down = (x - first) / span, (high - y) / (high - low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), TOP + down * (HEIGHT - TOP - BOTTOM)

    lines = []
    for name, points in kept.items():
        placed = [place(x, y) for x, y in points]
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        lines.append(Line(name, text, number(points[-1][1]), placed[-1]))
    steps = [low + (high - low) * part / 4 for part in range(5)]
    return Chart(lines, [(place(first, value)[1], number(value)) for value in steps], ends)


def number(value: float) -> str:
    """Three digits that tell something."""
    if value == 0:
        return "0"
    if abs(value) >= 1e9:
        return f"{value / 1e9:.1f}G"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.1f}M"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
