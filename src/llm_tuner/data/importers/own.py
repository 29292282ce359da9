"""This project's own suites and data sets: a task with the attempt that answered it (reading.py puts them together).

    {"task": <Task>, "attempt": <Attempt> or None}

A task without a right attempt answers itself: its expectation is the reference.
"""

from __future__ import annotations

from collections.abc import Iterator

from llm_tuner.data.examples import REFERENCE, Example
from llm_tuner.data.importers.shapes import Row, Unreadable
from llm_tuner.scoring import gold_attempt, score
from llm_tuner.types import Attempt, Task

NAME = "own"
SOURCE = "own"


def recognises(row: Row) -> bool:
    return isinstance(row.get("task"), Task)


def examples(row: Row, source: str, licence: str) -> Iterator[Example]:
    task: Task = row["task"]
    attempt: Attempt | None = row.get("attempt")
    if task.expect.kind == "any":
        raise Unreadable("no_answer", "any call would be right: there is nothing to learn")
    if attempt is None or attempt.verdict is None or not attempt.verdict.ok or not attempt.messages:
        attempt = gold_attempt(task).model_copy(update={"backend": REFERENCE})
        attempt = attempt.model_copy(update={"verdict": score(task, attempt)})
    task = task.model_copy(update={"source": task.source or source, "licence": task.licence or licence})
    yield Example(task, attempt)
