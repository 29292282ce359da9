"""Reading training rows. Making them is not training's work: `llm_tuner.data.rows` does, with the serving runtime."""

from __future__ import annotations

from pathlib import Path

from llm_tuner.store import read_jsonl
from llm_tuner.types import EmptyData, Row


def read_rows(path: Path) -> tuple[Row, ...]:
    """All rows of a JSONL file. DataError names the line that is malformed, EmptyData says that there is none."""
    rows = tuple(read_jsonl(path, Row))
    if not rows:
        raise EmptyData(f"{path} holds no training rows. Collect some first: llm-tuner data collect")
    return rows
