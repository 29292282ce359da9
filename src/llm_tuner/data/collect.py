"""Attempts from tasks: a backend answers, its calls run for real in the box, the judge decides, everything is kept.

A reference answer goes the same road as a model's: it counts only when it fits the schema and the server really
accepted it. Nothing becomes a training example by assumption.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from llm_tuner.scoring import gold_attempt, score
from llm_tuner.store import append_jsonl, resume_jsonl
from llm_tuner.types import GREEDY, Attempt, Backend, ChatOptions, Event, Message, ModelError, Task, Toolbox, ToolCall

REFERENCE = "reference"
"""The name under which reference answers are kept."""


def collect(
    tasks: Sequence[Task],
    toolbox: Toolbox | None,
    out: Path,
    *,
    backend: Backend | None = None,
    options: ChatOptions = GREEDY,
    restore: Callable[[], None] = lambda: None,
) -> Generator[Event, None, list[Attempt]]:
    """One judged attempt a task, appended to the JSONL file `out` as it is made; those already there are kept.

    Without a `backend` the reference answers are tried. Without a `toolbox` calls are not executed (then an attempt is
    verified by its schema only). `restore` puts the box back after each task.
    """
    who = backend.name if backend else REFERENCE
    kept = resume_jsonl(out, Attempt)
    done = {attempt.task_id: attempt for attempt in kept if attempt.backend == who}
    accepted = sum(usable(a) for a in done.values())
    for number, task in enumerate(tasks, start=1):
        if task.id not in done:
            attempt = _attempt(task, backend, options)
            attempt = _execute(task, attempt, toolbox)
            restore()
            append_jsonl(out, attempt)
            done[task.id] = attempt
            accepted += usable(attempt)
        yield Event(
            step="collect", message=f"{who}: {accepted} accepted", done=number, total=len(tasks), unit="task"
        )  # fmt: skip
    return [done[task.id] for task in tasks if task.id in done]


def usable(attempt: Attempt) -> bool:
    """Right by the judge, and every executed call was accepted by its server."""
    return attempt.verdict is not None and attempt.verdict.ok and not any(r.is_error for r in attempt.results)


def _attempt(task: Task, backend: Backend | None, options: ChatOptions) -> Attempt:
    if backend is None:
        return gold_attempt(task).model_copy(update={"backend": REFERENCE})
    try:
        reply = backend.chat(task.messages, task.tools, options)
    except ModelError as error:
        return Attempt(task_id=task.id, backend=backend.name, error=str(error))
    return Attempt(
        task_id=task.id, backend=backend.name, messages=(reply.message,), usage=reply.usage, timing=reply.timing
    )


def _execute(task: Task, attempt: Attempt, toolbox: Toolbox | None) -> Attempt:
    calls = _calls(attempt.messages)
    results = tuple(toolbox.call(call) for call in calls) if toolbox else ()
    return attempt.model_copy(update={"results": results, "verdict": score(task, attempt)})


def _calls(messages: Sequence[Message]) -> tuple[ToolCall, ...]:
    """Native calls, or those that were written as text: what a user's agent would have run."""
    return tuple(call for m in messages for call in (m.tool_calls or m.text_calls) if not call.error)
