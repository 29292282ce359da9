"""Readings of the machine over time: one SQLite file, thinned with age. Derived from nothing, and deletable.

Every reading of the last day, then the mean of each ten minutes for a month. Whoever reads the machine anyway (top, the
dashboard) adds what it read; nothing runs to fill it.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from platformdirs import user_data_path

DAY, MONTH = 86_400, 30 * 86_400
STEP = 600
"""Seconds that one point stands for, of what is older than a day."""


class Readings:
    """The readings below `folder` (default: the data home). Values by name; None ones are not kept."""

    def __init__(self, folder: Path | None = None) -> None:
        self._file = (folder or user_data_path("llm-tuner")) / "readings.sqlite"

    def add(self, values: Mapping[str, float | None], now: float | None = None) -> None:
        """One reading. A file that cannot be written costs the reading and nothing else."""
        when = time.time() if now is None else now
        rows = [(when, name, value) for name, value in values.items() if value is not None]
        try:
            with self._open() as base, base:
                base.executemany("INSERT OR REPLACE INTO readings VALUES (?, ?, ?)", rows)
                self._thin(base, when)
        except (sqlite3.Error, OSError):
            return

    def since(self, seconds: float, points: int = 300, now: float | None = None) -> dict[str, list[list[float]]]:
        """[time, value] pairs of the last so many seconds by name, oldest first, at most `points` of each."""
        end = time.time() if now is None else now
        width = max(seconds / points, 1e-9)
        query = (
            "SELECT name, MIN(time), AVG(value) FROM readings WHERE time >= ? AND time <= ? "
            "GROUP BY name, CAST((time - ?) / ? AS INTEGER) ORDER BY name, time"
        )
        found: dict[str, list[list[float]]] = {}
        begin = end - seconds
        try:
            with self._open() as base:
                for name, when, value in base.execute(query, (begin, end, begin, width)):
                    found.setdefault(name, []).append([when, value])
        except (sqlite3.Error, OSError):
            return {}
        return found

    def _thin(self, base: sqlite3.Connection, now: float) -> None:
        last = base.execute("SELECT value FROM thinned").fetchone()
        if last is not None and now - last[0] < STEP:
            return
        base.execute("DELETE FROM readings WHERE time < ?", (now - MONTH,))
        edge = (now - DAY) // STEP * STEP
        old = base.execute(
            "SELECT name, CAST(time / ? AS INTEGER) * ?, AVG(value) FROM readings WHERE time < ? GROUP BY 1, 2",
            (STEP, STEP, edge),
        ).fetchall()
        base.execute("DELETE FROM readings WHERE time < ?", (edge,))
        base.executemany("INSERT OR REPLACE INTO readings VALUES (?, ?, ?)", [(when, n, v) for n, when, v in old])
        base.execute("DELETE FROM thinned")
        base.execute("INSERT INTO thinned VALUES (?)", (now,))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._file, timeout=5)) as base:
            base.execute("PRAGMA journal_mode=WAL")
            base.execute(
                "CREATE TABLE IF NOT EXISTS readings (time REAL, name TEXT, value REAL, PRIMARY KEY (name, time))"
            )
            base.execute("CREATE TABLE IF NOT EXISTS thinned (value REAL)")
            yield base
