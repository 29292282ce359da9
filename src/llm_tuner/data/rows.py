"""Right attempts -> training rows, rendered and tokenised by the runtime that will serve the tuned model.

There is no second chat template and no second tokenizer that could differ by a byte: the prompt is what the server
makes of the conversation, and the completion is what the server's own template makes of the right answer (`masks`
proves it). One thing is ours: tags whose tokens the model cannot tell apart (models/vocabulary.py) are spelled in
ordinary tokens. The text stays the same, and servers read calls from the text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Generator, Mapping, Sequence

from llm_tuner.data.collect import usable
from llm_tuner.data.masks import differs_at, left_out, require_place_for_tools, row, spelled, turns
from llm_tuner.models.signatures import shown
from llm_tuner.types import Attempt, DataError, Event, Renderer, Row, Task

BENCHMARKS = frozenset({"bfcl"})
"""Sources that are never trained on."""


def build_rows(
    tasks: Sequence[Task], attempts: Sequence[Attempt], renderer: Renderer, indistinct: Collection[str] = ()
) -> Generator[Event, None, tuple[Row, ...]]:
    """One row for each answer of the assistant in each task's usable attempt (the first one counts), in the order of
    the tasks and of the turns. In completions the texts of `indistinct` never stand as the one token that they have in
    the vocabulary.

    Raises DataError for a task that must not be trained on (held-out side, or a benchmark's), and for an answer whose
    rendering cannot be proven (`masks.row`).
    """
    right: dict[str, Attempt] = {}
    for attempt in attempts:
        if usable(attempt) and attempt.messages:
            right.setdefault(attempt.task_id, attempt)
    chosen = [task for task in tasks if task.id in right]
    refuse_untrainable(chosen)
    offered = (shown(task.messages, task.tools, task.tags.get("rendering", "full"))[1] for task in chosen)
    require_place_for_tools(next(filter(None, offered), ()), renderer)
    rows: list[Row] = []
    lost: Counter[str] = Counter()
    cuts = spelled(indistinct, renderer)
    for number, task in enumerate(chosen, start=1):
        for turn in turns(task, right[task.id]):
            rows.append(row(task, turn, renderer, cuts))
            lost.update(left_out(turn, rows[-1]))
        said = "".join(f"; the template leaves out the {what} of {count} answers" for what, count in lost.items())
        yield Event(
            step="render",
            message=f"rows as the server renders them{said}",
            done=number,
            total=len(chosen),
            unit="task",
            data={"left_out": dict(lost)},
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


def parity(
    rows: Sequence[Row], tasks: Mapping[str, Task], attempts: Sequence[Attempt], renderer: Renderer
) -> list[str]:
    """Where a server's bytes or token ids differ from what was trained on: one sentence a difference, empty if none.

    Completions are compared as text: some of their tags are spelled on purpose.
    """
    right: dict[str, Attempt] = {}
    for attempt in attempts:
        if usable(attempt) and attempt.messages:
            right.setdefault(attempt.task_id, attempt)
    problems = []
    for trained in rows:
        task = tasks[trained.task_id]
        try:
            served = row(task, list(turns(task, right[task.id]))[trained.turn], renderer)
        except DataError as error:
            problems.append(str(error))
            continue
        said = difference(served.prompt, trained.prompt) or difference(served.completion, trained.completion)
        if said:
            problems.append(f"task {task.id}: {said}")
        elif served.prompt_ids != trained.prompt_ids:
            problems.append(f"task {task.id}: the same text becomes other token ids than were trained")
    return problems


def difference(served: str, trained: str) -> str:
    """What the first difference of two texts is, or "" where there is none."""
    if served == trained:
        return ""
    at = differs_at(served, trained)
    return (
        f"from character {at} on the server renders {served[at : at + 40]!r} "
        f"where {trained[at : at + 40]!r} was trained"
    )
