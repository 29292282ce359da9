"""Numbers, times and JSON as pages show them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from llm_tuner.evaluation.details import cut

DASH = "–"


def percent(value: float | None) -> str:
    return DASH if value is None else f"{value * 100:.1f} %"


def value_of(value: float | None, unit: str) -> str:
    return DASH if value is None else percent(value) if unit == "share" else f"{value:,.0f} {unit}"


def size(count: float | None) -> str:
    if count is None:
        return DASH
    for unit, big in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= big:
            return f"{count / big:.1f} {unit}"
    return f"{count:.0f} B"


def milliseconds(value: float | None) -> str:
    if value is None:
        return DASH
    return f"{value / 1000:,.1f} s" if value >= 10_000 else f"{value:,.0f} ms"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def when(time: str | float) -> str:
    """In this machine's time zone, to the minute; what is no time stays as it is."""
    if not time:
        return DASH
    try:
        moment = datetime.fromtimestamp(time, UTC) if isinstance(time, int | float) else datetime.fromisoformat(time)
    except (ValueError, OverflowError, OSError):
        return str(time)
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def pretty(value: Any) -> str:
    return cut(
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1, default=str), 20_000
    )


def plain(value: Any) -> str:
    """A value of a table: short, on one line."""
    if value is None or value == "":
        return DASH
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bool | int | str):
        return str(value)
    if isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
        return ", ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False, default=str)


def thousands(value: int | float | None) -> str:
    return DASH if value is None else f"{value:,.0f}"


FILTERS: dict[str, Any] = {
    "percent": percent,
    "value_of": value_of,
    "size": size,
    "ms": milliseconds,
    "duration": duration,
    "when": when,
    "pretty": pretty,
    "plain": plain,
    "n": thousands,
    "cut": cut,
}
