"""Preferences from attempts: at the same task a right answer against a wrong one, rendered by the serving runtime.

Not a trainer and not a judge. The rule it protects: what is chosen is right and what is rejected is wrong by the one
judge; no reason of being wrong dominates; and the model's own mistakes come before made ones (data/mistakes.py).
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from typing import NamedTuple

from pydantic import Field

from llm_tuner.data.collect import REFERENCE, usable
from llm_tuner.data.masks import Turn, row, spelled
from llm_tuner.data.mistakes import Known, known_values, mistakes
from llm_tuner.data.rows import refuse_untrainable
from llm_tuner.scoring import answer, score
from llm_tuner.types import Attempt, DataError, EmptyData, Event, Json, Message, Pair, Reason, Renderer, Task, Value


class Pairing(Value):
    """How answers are paired. `per_task` pairs of a task at most; no reason has more than the share `most` of all pairs
    (an equal share where there are too few reasons). `made`: mistakes are made where the model has none to offer. The
    model tries `own_attempts` training tasks itself before."""

    per_task: int = Field(1, ge=1)
    most: float = Field(0.3, gt=0, le=1)
    made: bool = True
    own_attempts: int = Field(96, ge=0)
    seed: int = 0


class Preference(NamedTuple):
    """A task with a right and a wrong answer, not rendered yet. `itself`: the model made the mistake."""

    task: Task
    right: Message
    wrong: Message
    reason: Reason
    itself: bool


class Paired(NamedTuple):
    """The pairs, and how many there are of each reason and origin, and what was left out and why."""

    pairs: tuple[Pair, ...]
    counts: dict[str, Json]


def build_pairs(
    config: Pairing,
    tasks: Sequence[Task],
    attempts: Sequence[Attempt],
    renderer: Renderer,
    indistinct: Collection[str] = (),
) -> Generator[Event, None, Paired]:
    """Pairs in the order of the tasks. The reference's answer is chosen where it is right, else the model's own.
    `indistinct` as in rows.py, in the same way for both answers.

    Raises EmptyData where there is no right answer, or no wrong one; DataError for tasks that must not be trained on.
    """
    chosen, left_out = prefer(config, tasks, attempts)
    refuse_untrainable([one.task for one in chosen])
    cuts = spelled(indistinct, renderer)
    pairs = []
    for number, one in enumerate(chosen, start=1):
        right = row(one.task, Turn(0, one.task.messages, one.right), renderer, cuts)
        try:
            wrong = row(one.task, Turn(0, one.task.messages, one.wrong), renderer, cuts)
        except DataError:  # the template cannot write this answer; it can write the right one
            wrong = right
        if right.completion_ids == wrong.completion_ids:
            left_out["rendered alike"] += 1
        else:
            origin = "itself" if one.itself else "made"
            pairs.append(Pair(chosen=right, rejected=wrong, reason=one.reason, origin=origin))
        yield Event(step="pairs", message="rendering both answers", done=number, total=len(chosen), unit="pair")
    counts: dict[str, Json] = {
        "pairs": len(pairs),
        "tasks": len({pair.chosen.task_id for pair in pairs}),
        "reasons": dict(Counter(pair.reason for pair in pairs).most_common()),
        "origins": dict(Counter(pair.origin for pair in pairs).most_common()),
        "left_out": dict(left_out),
    }
    return Paired(tuple(pairs), counts)


def prefer(
    config: Pairing, tasks: Sequence[Task], attempts: Sequence[Attempt]
) -> tuple[list[Preference], Counter[str]]:
    """Which answers are held against each other, in the order of the tasks, and what was left out. The same attempts
    and seed give the same."""
    right, wrong, left_out = _judged(tasks, attempts)
    if not right:
        raise EmptyData(
            f"None of the {len(attempts)} attempts at {len(tasks)} tasks is right, so there is nothing to prefer. "
            "Collect reference answers that the servers accept: llm-tuner data collect"
        )
    known = known_values(right.values())
    order = [task for task in {task.id: task for task in tasks}.values() if task.id in right]
    random.Random(config.seed).shuffle(order)
    cap = max(1, int(config.most * config.per_task * len(order)))
    taken: Counter[Reason] = Counter()
    found: list[Preference] = []
    for task in order:
        offered = _offered(config, task, right[task.id], wrong[task.id], known, taken)
        mine = [one for one in offered if taken[one.reason] < cap][: config.per_task]
        taken.update(one.reason for one in mine)
        found += mine
        left_out["no wrong answer"] += not offered
        left_out["of a reason that has enough"] += bool(offered) and not mine
    if not found:
        raise EmptyData(
            f"None of the {len(attempts)} attempts is a wrong answer that can be rejected"
            + (", and no mistake could be made." if config.made else ". Let mistakes be made (made = true).")
        )
    kept = _balanced(config, found)
    left_out["of a reason that has enough"] += len(found) - len(kept)
    place = {task.id: number for number, task in enumerate(tasks)}
    return sorted(kept, key=lambda one: place[one.task.id]), +left_out


def _judged(
    tasks: Sequence[Task], attempts: Sequence[Attempt]
) -> tuple[dict[str, Message], dict[str, list[tuple[Message, Reason]]], Counter[str]]:
    """The right answer and the wrong ones of each task. An answer that the judge calls right and a server refused is
    neither."""
    by_id = {task.id: task for task in tasks}
    right: dict[str, Message] = {}
    wrong: dict[str, list[tuple[Message, Reason]]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    for attempt in sorted(attempts, key=lambda attempt: attempt.backend != REFERENCE):
        said, task = answer(attempt), by_id.get(attempt.task_id)
        if said is None or task is None or attempt.error:
            continue
        verdict = score(task, attempt)
        if verdict.ok and usable(attempt.model_copy(update={"verdict": verdict})):
            right.setdefault(task.id, said)
        elif attempt.backend == REFERENCE or verdict.ok:
            continue
        elif any(call.error for call in said.tool_calls):  # its bytes are not known: the runtime gave us its pieces
            left_out["a call that cannot be written again"] += 1
        elif said not in [known for known, _ in wrong[task.id]]:
            wrong[task.id].append((said, verdict.reason))
    return right, wrong, left_out


def _offered(
    config: Pairing,
    task: Task,
    right: Message,
    own: Sequence[tuple[Message, Reason]],
    known: Known,
    taken: Mapping[Reason, int],
) -> list[Preference]:
    """What a task has to offer, the best first: the model's own mistakes, then made ones of the rarest reason."""
    rng = random.Random(f"{config.seed}:{task.id}")
    offered = [Preference(task, right, said, reason, True) for said, reason in own]
    if config.made:
        made = mistakes(task, right, known, rng)
        rng.shuffle(made)
        made.sort(key=lambda one: taken[one.reason])
        offered += [Preference(task, right, one.answer, one.reason, False) for one in made]
    return offered


def _balanced(config: Pairing, found: Sequence[Preference]) -> list[Preference]:
    """As many as possible without a reason above its share; of a reason with too many the made ones go first."""
    by_reason: dict[Reason, list[Preference]] = defaultdict(list)
    for one in found:
        by_reason[one.reason].append(one)
    share = max(config.most, 1 / len(by_reason))
    sizes = [len(group) for group in by_reason.values()]
    cap = max(size for size in range(1, max(sizes) + 1) if size <= max(1.0, share * sum(min(size, n) for n in sizes)))
    return list(_first(by_reason, cap))


def _first(by_reason: Mapping[Reason, Sequence[Preference]], cap: int) -> Iterator[Preference]:
    for group in by_reason.values():
        yield from sorted(group, key=lambda one: not one.itself)[:cap]
