"""An example: a task with the reference attempt that answers it. And stages: what a stream of them passes through.

Not a data set (that is a folder) and no rules of its own. The rule it protects: a stage turns an example into itself,
into a mended one, or into a Rejection; rejections pass through every later stage, so that nothing is lost on the way.
Stages are lazy and keep nothing back: when an item leaves the last one, everything before it has left, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

from llm_tuner.data import rejections
from llm_tuner.data.rejections import Rejection
from llm_tuner.types import Attempt, Json, Message, Task

REFERENCE = "reference"
"""The backend's name of attempts that no model of ours made."""

_SHOWN = 160


class Example(NamedTuple):
    """A task and the attempt that answers it; `attempt.task_id` is the task's id."""

    task: Task
    attempt: Attempt

    @property
    def answer(self) -> Message:
        """The assistant's message that is to be learned; empty where the attempt has none."""
        return self.attempt.messages[0] if self.attempt.messages else Message(role="assistant")


Item = Example | Rejection
Stage = Callable[[Iterable[Item]], Iterator[Item]]


def piped(items: Iterable[Item], *stages: Stage) -> Iterator[Item]:
    """The items after all stages, in order."""
    for stage in stages:
        items = stage(items)
    yield from items


def each(judge: Callable[[Example], Item]) -> Stage:
    """A stage out of a function on one example."""
    return partial(_each, judge)


def _each(judge: Callable[[Example], Item], items: Iterable[Item]) -> Iterator[Item]:
    for item in items:
        yield judge(item) if isinstance(item, Example) else item


def refused(example: Example, stage: rejections.Stage, reason: str, detail: str = "") -> Rejection:
    """The rejection of this example."""
    task = example.task
    return Rejection(
        stage=stage,
        reason=reason,
        detail=detail,
        source=task.tags.get("row", task.source),
        task_id=task.id,
        request=task.request[:_SHOWN],
    )


def changed(example: Example, **update: object) -> Example:
    """The example with these fields of its task replaced, and the attempt tied to the task's new id."""
    task = example.task.model_copy(update=update)
    task.__dict__.pop("id", None)  # a copy takes the cached hash along
    return Example(task, example.attempt.model_copy(update={"task_id": task.id}))


def user_texts(task: Task) -> list[str]:
    """What the user said, turn by turn."""
    return [message.text for message in task.messages if message.role == "user"]


def calls_wanted(task: Task) -> list[tuple[str, dict[str, Json]]]:
    """Name and arguments of every expected call; none where no call, or just any, is wanted."""
    return [(call.name, dict(call.arguments)) for call in getattr(task.expect, "calls", ())]
