"""What every command shares: one JSON document on stdout, everything else on stderr, errors with an exit code.

Not a place for work. NO_COLOR and a terminal that is none are respected: then progress is plain lines, seldom.
"""

from __future__ import annotations

import json as json_text
import sys
import time
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from llm_tuner.types import Event

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else there.")]

QUIET_SECONDS = 10
"""At most one plain progress line in this time, where there is no terminal."""


def out(document: Mapping[str, Any] | list[Any], json: bool, text: Callable[[], str]) -> None:
    """The result: as JSON, or as text for people."""
    print(json_text.dumps(document, ensure_ascii=False, indent=2, default=str) if json else text())


def page(text: str) -> str:
    """Shows a long text in the reader's pager, where there is a terminal; then nothing is left to print."""
    if not sys.stdout.isatty():
        return text
    from rich.console import Console

    console = Console()
    with console.pager():
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    return ""


def ndjson(document: Mapping[str, Any]) -> str:
    """One line of a stream of JSON documents, in ASCII: nothing in it can break the line or the stream's encoding."""
    return json_text.dumps(document, default=str)


def note(text: str) -> None:
    """A line for people, on stderr."""
    print(text, file=sys.stderr, flush=True)


def drive(steps: Generator[Event, None, T]) -> T:
    """Runs a long step, shows its events on stderr, returns its result. Ctrl-C closes the step: it saves its work."""
    show = _Bars() if sys.stderr.isatty() else _Lines()
    try:
        while True:
            show.event(next(steps))
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        show.close()
        steps.close()


def table(rows: list[list[str]], head: list[str]) -> str:
    """Plain columns, aligned; wide (CJK) characters count double."""
    from rich.cells import cell_len

    widths = [max(cell_len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: list[str]) -> str:
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join(line(row) for row in [head, *rows])


class _Lines:
    """Progress without a terminal: a line when a step begins or ends, and now and then between."""

    def __init__(self) -> None:
        self._step = ""
        self._shown = 0.0

    def event(self, event: Event) -> None:
        now = time.monotonic()
        ended = event.total > 0 and event.done >= event.total
        if event.step != self._step or ended or not event.total or now - self._shown > QUIET_SECONDS:
            note(f"{event.step}: {_words(event)}")
            self._step, self._shown = event.step, now

    def close(self) -> None:
        return


class _Bars:
    """Progress on a terminal: one bar a step, with rate and time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.fields[step]:>9}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=Console(stderr=True),
        )
        self._progress.start()
        self._tasks: dict[str, Any] = {}

    def event(self, event: Event) -> None:
        if event.step not in self._tasks:
            self._tasks[event.step] = self._progress.add_task("", step=event.step, total=event.total or None)
        self._progress.update(
            self._tasks[event.step],
            completed=event.done,
            total=event.total or None,
            description=_words(event),
        )

    def close(self) -> None:
        self._progress.stop()


def _words(event: Event) -> str:
    if not event.total:
        return event.message
    if event.unit in ("B", "bytes"):
        return f"{event.done / 1e6:.0f} of {event.total / 1e6:.0f} MB  {event.message}"
    return f"{event.done:.0f} of {event.total:.0f} {event.unit}  {event.message}".rstrip()
