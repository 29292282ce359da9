"""A data set as one file in TRL's conversational form: JSON lines, or Parquet.

Not the form itself (conversational.py). In Parquet every message, tool and extra is a JSON value of Arrow's own JSON
type (a text underneath): a struct would give every row the properties of all tools of the set, as nulls. The rule it
protects: the file appears whole or not at all, and comes back through `data import` as the same tasks."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from llm_tuner.data.conversational import COLUMN, row_of
from llm_tuner.data.dataset import SIDES, read_examples
from llm_tuner.data.examples import Example
from llm_tuner.store import disk_full_named
from llm_tuner.types import Event, Json, MissingExtra, SetupError

_BATCH = 512


def export(folder: Path, out: Path, sides: Sequence[str] = ("train",)) -> Generator[Event, None, int]:
    """Writes the examples of these sides to `out` (.jsonl or .parquet) and returns how many. Raises SetupError for
    another ending, MissingExtra for Parquet without pyarrow, DataError where `folder` is no data set."""
    if strange := [side for side in sides if side not in SIDES]:
        raise SetupError(f'No side "{strange[0]}" (found {", ".join(SIDES)}).')
    if out.suffix not in (".jsonl", ".parquet"):
        raise SetupError(f"Cannot export to {out.name}: name a file that ends in .jsonl or .parquet.")
    examples = read_examples(folder, *sides)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    with disk_full_named(out):
        count = yield from (_jsonl if out.suffix == ".jsonl" else _parquet)(part, examples)
        part.replace(out)
    return count


def _jsonl(path: Path, examples: Iterator[Example]) -> Generator[Event, None, int]:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, example in enumerate(examples, start=1):
            file.write(_text(row_of(example)) + "\n")
            if count % _BATCH == 0:
                yield Event(step="export", message=f"{count} rows")
    return count


def _parquet(path: Path, examples: Iterator[Example]) -> Generator[Event, None, int]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingExtra(
            "Parquet needs pyarrow, which is not installed. Run: pip install 'llm-tuner[parquet]'; or export to .jsonl."
        ) from None
    value = arrow.json_(arrow.string())
    schema = arrow.schema([("messages", arrow.list_(value)), ("tools", arrow.list_(value)), (COLUMN, value)])
    count = 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while rows := [row_of(example) for example in islice(examples, _BATCH)]:
            writer.write_table(
                arrow.Table.from_arrays([_column(arrow, rows, field) for field in schema], schema=schema)
            )
            count += len(rows)
            yield Event(step="export", message=f"{count} rows")
    return count


def _column(arrow: Any, rows: list[dict[str, Json]], field: Any) -> Any:
    plain = arrow.list_(arrow.string()) if field.name != COLUMN else arrow.string()
    cells = [row[field.name] for row in rows]
    texts = [[_text(item) for item in cell] if field.name != COLUMN else _text(cell) for cell in cells]
    return arrow.array(texts, type=plain).cast(field.type)


def _text(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
