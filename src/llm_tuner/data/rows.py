"""Right attempts -> training rows, rendered and tokenised by the runtime that will serve the tuned model.

There is no second chat template and no second tokenizer that could differ by a byte: the prompt is what the server
makes of the task, and the completion is what the server's own template makes of the right answer. One thing is ours:
tags whose tokens the model cannot tell apart (models/vocabulary.py) are spelled in ordinary tokens. The text stays the
same, and servers read calls from the text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Generator, Mapping, Sequence

from llm_tuner.data.collect import usable
from llm_tuner.models.signatures import shown
from llm_tuner.types import Attempt, DataError, Event, Message, Renderer, Row, Task

BENCHMARKS = frozenset({"bfcl"})
"""Sources that are never trained on."""


def build_rows(
    tasks: Sequence[Task], attempts: Sequence[Attempt], renderer: Renderer, indistinct: Collection[str] = ()
) -> Generator[Event, None, tuple[Row, ...]]:
    """One row for each task that has a usable attempt (the first one counts), in the order of the tasks. In completions
    the texts of `indistinct` never stand as the one token that they have in the vocabulary.

    Raises DataError for a task that must not be trained on: held-out side, or a benchmark's.
    """
    right: dict[str, Attempt] = {}
    for attempt in attempts:
        if usable(attempt) and attempt.messages:
            right.setdefault(attempt.task_id, attempt)
    chosen = [task for task in tasks if task.id in right]
    refuse_untrainable(chosen)
    rows = []
    spelling = Spelling(renderer, indistinct)
    for number, task in enumerate(chosen, start=1):
        rows.append(row(task, right[task.id].messages[0], renderer, spelling))
        yield Event(
            step="render", message="rows as the server renders them", done=number, total=len(chosen), unit="row"
        )
    return tuple(rows)


def refuse_untrainable(tasks: Sequence[Task]) -> None:
    """Held-out and benchmark tasks measure; once trained on they measure nothing."""
    for task in tasks:
        if task.source in BENCHMARKS:
            raise DataError(f"Task {task.id} comes from the benchmark {task.source}: it must not be trained on.")
        if task.side == "held-out":
            raise DataError(
                f"Task {task.id} is on the held-out side: it must not be trained on ({task.request[:60]!r})."
            )


class Spelling:
    """Token ids of completions, in which the texts of `indistinct` never stand as the one token that they have in the
    vocabulary but in the tokens of their letters."""

    def __init__(self, renderer: Renderer, indistinct: Collection[str] = ()) -> None:
        self._renderer = renderer
        self._cuts = {tag: _cut(tag, renderer) for tag in indistinct if len(tag) > 1}

    def ids(self, completion: str) -> tuple[int, ...]:
        return tuple(token for piece in _pieces(completion, self._cuts) for token in self._renderer.tokenize(piece))


def row(task: Task, answer: Message, renderer: Renderer, spelling: Spelling, earlier: Sequence[Message] = ()) -> Row:
    """An answer to a task as a row: what the template makes of it, minus the prompt. `earlier` are the turns between
    the task's messages and this one: the model's calls and the tools' results.

    Raises DataError where the template does not continue its own prompt.
    """
    messages, tools = shown((*task.messages, *earlier), task.tools, task.tags.get("rendering", "full"))
    prompt = renderer.render(messages, tools)
    whole = renderer.render((*messages, answer.model_copy(update={"text_calls": ()})), tools, False)
    if not whole.startswith(prompt):
        raise DataError(
            f"The chat template does not continue its own prompt (task {task.id}): after {prompt[-40:]!r} the answer "
            f"renders as {whole[len(prompt) - 40 :][:80]!r}. This model's template cannot be trained on as it is."
        )
    completion = whole[len(prompt) :].rstrip()
    return Row(
        task_id=task.id,
        prompt=prompt,
        completion=completion,
        prompt_ids=tuple(renderer.tokenize(prompt)),
        completion_ids=spelling.ids(completion),
    )


def _cut(tag: str, renderer: Renderer) -> int:
    """Where to cut a tag so that its two parts have as few tokens as possible, and as late as possible: then the tokens
    are those that the same letters have in ordinary text."""
    places = range(len(tag) - 1, 0, -1)
    return min(places, key=lambda at: len(renderer.tokenize(tag[:at])) + len(renderer.tokenize(tag[at:])))


def _pieces(text: str, cuts: Mapping[str, int]) -> list[str]:
    """`text`, cut inside each of these tags."""
    if not cuts:
        return [text]
    pieces = [""]
    for part in re.split(f"({'|'.join(map(re.escape, sorted(cuts, key=len, reverse=True)))})", text):
        at = cuts.get(part, 0)
        pieces[-1] += part[:at] if at else part
        if at:
            pieces.append(part[at:])
    return pieces


def parity(rows: Sequence[Row], tasks: Mapping[str, Task], renderer: Renderer) -> list[str]:
    """Where a server's bytes or token ids differ from what was trained on: one sentence a difference, empty if none."""
    problems = []
    for row in rows:
        task = tasks[row.task_id]
        prompt = renderer.render(*shown(task.messages, task.tools, task.tags.get("rendering", "full")))
        if prompt != row.prompt:
            at = next(
                (i for i, (a, b) in enumerate(zip(prompt, row.prompt, strict=False)) if a != b),
                min(len(prompt), len(row.prompt)),
            )
            problems.append(
                f"task {task.id}: from character {at} on the server renders {prompt[at : at + 40]!r} "
                f"where {row.prompt[at : at + 40]!r} was trained"
            )
        elif tuple(renderer.tokenize(prompt)) != row.prompt_ids:
            problems.append(f"task {task.id}: the same text becomes other token ids than were trained")
    return problems
