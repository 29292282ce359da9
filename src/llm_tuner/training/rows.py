"""Reading training rows, and choosing among them. Making them is not training's work: `llm_tuner.data.rows` does, with
the serving runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from llm_tuner.store import read_jsonl
from llm_tuner.types import EmptyData, Row, content_hash


def read_rows(path: Path) -> tuple[Row, ...]:
    """All rows of a JSONL file. DataError names the line that is malformed, EmptyData says that there is none."""
    rows = tuple(read_jsonl(path, Row))
    if not rows:
        raise EmptyData(f"{path} holds no training rows. Collect some first: llm-tuner data collect")
    return rows


def mixed(rows: Sequence[Row], categories: Mapping[str, str], keep: Mapping[str, float]) -> tuple[Row, ...]:
    """Of each category in `keep` that share (0..1) of its tasks with all of their rows, the others whole. `categories`
    is by task id. The same rows every time, and a smaller share is part of a bigger one."""
    return tuple(row for row in rows if hash_place("mix", row.task_id) < keep.get(categories.get(row.task_id, ""), 1.0))


def hash_place(*what: str) -> float:
    """0 <= place < 1, the same for the same words."""
    return int(content_hash(list(what)), 16) / 16**16
