"""Importers: the formats that people have. Each is a module with `NAME`, `SOURCE`, `recognises(row)` and
`examples(row, source, licence)`.

An importer reads one row and judges nothing: whether a call fits its tool is for later stages to say. It raises
`Unreadable` for what it cannot read, after yielding the turns before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Protocol

from llm_tuner.data.examples import Example, Item
from llm_tuner.data.importers import (
    gateway,
    glaive,
    hermes,
    ollama_chat,
    openai_chat,
    own,
    toolace,
    toucan,
    trl,
    when2call,
    xlam,
)
from llm_tuner.data.importers.benchmarks import benchmark_of
from llm_tuner.data.importers.shapes import Row, Unreadable
from llm_tuner.data.licences import licence_of
from llm_tuner.data.rejections import Rejection
from llm_tuner.types import DataError, SetupError


class Importer(Protocol):
    """What every module of a format has."""

    @property
    def NAME(self) -> str: ...

    @property
    def SOURCE(self) -> str: ...

    def recognises(self, row: Row) -> bool: ...

    def examples(self, row: Row, source: str, licence: str) -> Iterator[Example]: ...


IMPORTERS: tuple[Importer, ...] = (
    own, gateway, glaive, xlam, toolace, hermes, when2call, toucan, ollama_chat, openai_chat, trl,
)  # fmt: skip
"""In order of how surely a row is recognised."""


def named(name: str) -> Importer:
    """Raises SetupError for a name that is none."""
    for importer in IMPORTERS:
        if name == importer.NAME:
            return importer
    raise SetupError(f'No format "{name}" (found {", ".join(i.NAME for i in IMPORTERS)}).')


def recognise(rows: Sequence[Row], file: str) -> Importer:
    """The format in which most of these first rows can be read. Raises DataError for a benchmark or no known format."""
    for row in rows:
        if found := benchmark_of(row):
            raise DataError(f"{file} holds rows of {found}: a benchmark must not be trained on. Leave this file out.")
    counts = Counter({importer.NAME: sum(map(importer.recognises, rows)) for importer in IMPORTERS})
    counts = +counts  # where two recognise as many, the first in the table
    if not counts:
        keys = ", ".join(sorted(rows[0])) if rows else "no row that can be read"
        known = ", ".join(i.NAME for i in IMPORTERS)
        raise DataError(f"{file} is in no known format (found: {keys}). Known: {known}. --format names one.")
    return named(counts.most_common(1)[0][0])


def read_row(importer: Importer, row: Row, place: str, licence: str = "") -> Iterator[Item]:
    """The examples of one row, and a rejection where (from where on) it cannot be read. `place` is its file and line;
    `licence` counts where the format has none of its own."""
    if found := benchmark_of(row):
        yield Rejection(stage="overlap", reason="benchmark", detail=f"a row of {found}", source=place)
        return
    if not importer.recognises(row):
        yield Rejection(
            stage="read", reason="another_format", detail=f"not {importer.NAME}: {_keys(row)}", source=place
        )
        return
    declared = row.get("license") or row.get("licence")
    licence = declared if isinstance(declared, str) else licence_of(importer.SOURCE) or licence
    try:
        for example in importer.examples(row, importer.SOURCE, licence):
            task = example.task.model_copy(update={"tags": {**example.task.tags, "row": place}})
            yield Example(task, example.attempt)
    except Unreadable as error:
        yield Rejection(stage="read", reason=error.reason, detail=str(error), source=place)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        detail = f"{type(error).__name__}: {str(error)[:160]}"
        yield Rejection(stage="read", reason="broken_row", detail=detail, source=place)


def _keys(row: Row) -> str:
    return ", ".join(sorted(map(str, row)))[:120]


__all__ = ["IMPORTERS", "Importer", "Unreadable", "named", "read_row", "recognise"]
