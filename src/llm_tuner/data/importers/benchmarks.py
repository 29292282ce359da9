"""What is recognised as a benchmark's row, and refused: once trained on, a benchmark measures nothing."""

from __future__ import annotations

from collections.abc import Mapping

from llm_tuner.data.importers.shapes import Row
from llm_tuner.data.rows import BENCHMARKS
from llm_tuner.types import Task


def benchmark_of(row: Row) -> str:
    """The benchmark's name, or nothing."""
    if "question" in row and "function" in row and isinstance(row["question"], list):
        return "BFCL"
    if "ground_truth" in row and "id" in row:
        return "BFCL"
    if "correct_answer" in row and "answers" in row and "tools" in row:
        return "When2Call (its test set, made of BFCL)"
    task = row.get("task")
    named = task.source if isinstance(task, Task) else task.get("source") if isinstance(task, Mapping) else ""
    return str(named).upper() if named in BENCHMARKS else ""
