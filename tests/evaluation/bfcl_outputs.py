"""What models wrote, as rows: files of `llm-tuner eval score`, or the folder of an evaluation of BFCL. No verdicts but
those that the evaluation gave.

An evaluation (`llm-tuner eval bfcl --out FOLDER`) keeps attempts.jsonl and suite.jsonl, a folder for each category. An
attempt becomes a row of its native calls and, where it has calls that were only written as text, a second one of those:
what the official handlers would have recorded had the runtime surfaced them. `ok` is the evaluation's verdict under
that reading. The rule it protects: a call that could not be read stays one; an attempt without an answer is no row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_tuner.evaluation import score_file
from llm_tuner.evaluation.attempts import ATTEMPTS
from llm_tuner.scoring import Reading, made_calls, score
from llm_tuner.store import read_jsonl
from llm_tuner.store.suite import load
from llm_tuner.types import Attempt, DataError, Task, ToolCall

SUITE = "suite.jsonl"


def written_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, of a folder of files, or of an evaluation's folder. DataError where there are none."""
    attempts = sorted(path.rglob(ATTEMPTS)) if path.is_dir() else []
    if not attempts:
        yield from (json.loads(text) for _, text in score_file.lines_of(path))
        return
    finished = [found.parent for found in attempts if (found.parent / SUITE).is_file()]
    if not finished:
        raise DataError(f"No evaluation below {path} is finished: {ATTEMPTS} stands there without {SUITE}.")
    for folder in finished:
        yield from evaluation_rows(folder)


def evaluation_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of one suite's attempts, in their order."""
    tasks = {task.id: task for task in load(folder / SUITE).tasks}
    for attempt in read_jsonl(folder / ATTEMPTS, Attempt, partial=True):
        task = tasks.get(attempt.task_id)
        if task is None or attempt.error:
            continue
        yield _row(task, attempt, "native")
        if made_calls(attempt, "lenient") != made_calls(attempt):
            yield _row(task, attempt, "lenient")


def _row(task: Task, attempt: Attempt, reading: Reading) -> dict[str, Any]:
    calls = [{"name": call.name, "arguments": _arguments(call)} for call in made_calls(attempt, reading)]
    ok = score(task, attempt, rules="bfcl", reading=reading).ok
    return {"id": task.tags["id"], "category": task.category, "reading": reading, "calls": calls, "ok": ok}


def _arguments(call: ToolCall) -> str:
    """The text of the arguments, as the official handlers record it."""
    if not call.error:
        return json.dumps(call.arguments)
    try:
        return "" if isinstance(json.loads(call.raw), dict) else call.raw
    except (ValueError, RecursionError):
        return call.raw
