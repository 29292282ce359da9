"""Rollouts: the model in training, as it is served, tries each task several times; tools really run; the judge rewards.

Not a trainer: it gives the rows and rewards that training weighs. The rule it protects: the reward is `scoring.score`,
the completion is what the model wrote token by token (or, where a runtime does not say it, the text tokenised again),
and no rollout sees what another one did to the box.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from llm_tuner.data import masks
from llm_tuner.data.rows import refuse_untrainable
from llm_tuner.models.signatures import shown
from llm_tuner.scoring import score
from llm_tuner.store import append_jsonl, resume_jsonl
from llm_tuner.tools.turns import Turn, converse, made_calls
from llm_tuner.types import (
    Attempt,
    Backend,
    ChatOptions,
    CorruptModel,
    EmptyData,
    Event,
    Forking,
    Json,
    Message,
    ModelError,
    Renderer,
    Reply,
    Rollout,
    Row,
    RuntimeUnavailable,
    SourceUnreachable,
    Task,
    Toolbox,
    ToolCall,
    ToolResult,
    ToolSpec,
    UnknownModel,
    Value,
)

_UNREACHABLE = (RuntimeUnavailable, SourceUnreachable, UnknownModel, CorruptModel)


class Rollouts(Value):
    """How a model tries tasks: `group` rollouts of a task, at most `turns` answers in each, `max_tokens` in an answer.
    `groups_at_a_time` is for servers that many may ask at once; a backend that forks has one group at a time."""

    group: int = Field(8, ge=2)
    turns: int = Field(2, ge=1)
    temperature: float = Field(1.0, gt=0)
    max_tokens: int = Field(192, ge=1)
    groups_at_a_time: int = Field(1, ge=1)
    seed: int = 0


class RolledOut(NamedTuple):
    """All rollouts, in the order of the tasks, and what there was in all."""

    rollouts: tuple[Rollout, ...]
    summary: dict[str, Json]


class _Tried(NamedTuple):
    """What became of a group: its rollouts, and why others failed."""

    rollouts: tuple[Rollout, ...]
    errors: tuple[str, ...]


def roll_out(
    config: Rollouts,
    tasks: Sequence[Task],
    backend: Backend,
    renderer: Renderer,
    out: Path,
    *,
    toolbox: Toolbox | None = None,
    restore: Callable[[], None] = lambda: None,
    indistinct: Collection[str] = (),
) -> Generator[Event, None, RolledOut]:
    """`config.group` rollouts of each task, appended to the JSONL file `out` group by group; those that are there
    already are kept. Groups in which every rollout has the same reward teach nothing: the summary counts them, and
    training leaves them out.

    `renderer` shows what the server makes of a conversation; with embedded llama.cpp it is the backend itself. Without
    a `toolbox` there are no results, and every rollout ends after one answer. `restore` puts the box back.

    Tasks whose catalogue stands in the system message alone ("compact") are left out: there no runtime surfaces a call.

    Raises EmptyData where there is no rollout at all, DataError for tasks that must not be trained on, ModelError where
    the backend cannot be reached. A rollout that fails otherwise is left out of its group and counted.
    """
    refuse_untrainable(tasks)
    every = {task.id: task for task in tasks}
    tasks = [task for task in every.values() if task.tags.get("rendering") != "compact"]
    kept: dict[str, list[Rollout]] = {task.id: [] for task in tasks}
    for rollout in resume_jsonl(out, Rollout):
        kept.setdefault(rollout.task_id, []).append(rollout)
    missing = [task for task in tasks if len(kept[task.id]) < config.group]
    tries = _Tries(config, backend, renderer, _Box(toolbox, restore), masks.spelled(indistinct, renderer))
    errors: Counter[str] = Counter()
    tokens, started = 0, time.monotonic()
    for number, (task, tried) in enumerate(tries.groups(missing, kept), start=len(tasks) - len(missing) + 1):
        for rollout in tried.rollouts:
            append_jsonl(out, rollout)
        kept[task.id] += tried.rollouts
        errors.update(tried.errors)
        tokens += sum(len(one.completion_ids) for rollout in tried.rollouts for one in rollout.rows)
        reward = sum(rollout.reward for rollout in kept[task.id]) / max(1, len(kept[task.id]))
        message = f"{config.group} tries at a task: mean reward {reward:.2f}"
        yield Event(step="rollouts", message=message, done=number, total=len(tasks), unit="group")
    summary = summarise([kept[task.id] for task in tasks])
    summary |= {"left_out": len(every) - len(tasks), "failed": dict(errors)}
    summary |= {"tokens_per_s": round(tokens / max(time.monotonic() - started, 1e-6), 1)}
    if not summary["rollouts"]:
        raise EmptyData(f"Not one rollout of {len(tasks)} tasks came to an end ({dict(errors) or 'no tasks'}).")
    yield Event(step="rollouts", message=_words(summary), done=len(tasks), total=len(tasks), unit="group", data=summary)
    return RolledOut(tuple(rollout for task in tasks for rollout in kept[task.id]), summary)


def teaches(group: Sequence[Rollout]) -> bool:
    """Whether a group has two different rewards: else the advantage of each rollout is zero."""
    return len({rollout.reward for rollout in group}) > 1


def summarise(groups: Sequence[Sequence[Rollout]]) -> dict[str, Json]:
    """Means over all rollouts, what the judge said, and which groups teach."""
    every = [rollout for group in groups for rollout in group]
    count = max(1, len(every))
    return {
        "groups": len(groups),
        "rollouts": len(every),
        "reward": round(sum(rollout.reward for rollout in every) / count, 4),
        "right": round(sum(rollout.reward == 1.0 for rollout in every) / count, 4),
        "with_signal": sum(map(teaches, groups)),
        "all_right": sum(bool(group) and all(rollout.reward == 1.0 for rollout in group) for group in groups),
        "turns": round(sum(len(rollout.rows) for rollout in every) / count, 2),
        "completion_tokens": sum(len(one.completion_ids) for rollout in every for one in rollout.rows),
        "reasons": dict(Counter(rollout.reason for rollout in every).most_common()),
    }


def _words(summary: dict[str, Json]) -> str:
    return (
        f"mean reward {summary['reward']}; {summary['with_signal']} of {summary['groups']} groups teach something; "
        f"{summary['tokens_per_s']} tokens/s"
    )


class _Box:
    """The toolbox as one rollout sees it: as if it had the box for itself.

    Rollouts of a group run at the same time and there is one box. So calls come one rollout at a time, and where
    another one was there in between, the box is restored and this rollout's earlier calls are made again.
    """

    def __init__(self, toolbox: Toolbox | None, restore: Callable[[], None]) -> None:
        self.toolbox, self._restore = toolbox, restore
        self._lock = threading.Lock()
        self._last: list[ToolCall] | None = None

    def run(self, earlier: list[ToolCall], calls: Sequence[ToolCall]) -> list[ToolResult]:
        """Makes the calls after the `earlier` ones of the same rollout (known by the identity of the list, which is
        added to)."""
        assert self.toolbox is not None
        with self._lock:
            if self._last is not earlier:
                self._restore()
                for call in earlier:
                    self.toolbox.call(call)
            self._last = earlier
            earlier += calls
            return [self.toolbox.call(call) for call in calls]

    def leave(self) -> None:
        """After the last call of all."""
        with self._lock:
            if self._last is not None:
                self._restore()
            self._last = None


class _Tries:
    """Tries at tasks, a group at once."""

    def __init__(
        self, config: Rollouts, backend: Backend, renderer: Renderer, box: _Box, cuts: Mapping[str, int]
    ) -> None:
        self._config, self._backend, self._renderer = config, backend, renderer
        self._box, self._cuts = box, cuts
        self._ids = lru_cache(64)(lambda prompt: tuple(renderer.tokenize(prompt)))  # a group shares its first prompt

    def groups(self, tasks: Sequence[Task], kept: dict[str, list[Rollout]]) -> Iterator[tuple[Task, _Tried]]:
        """The group of each task, in order, without those that are kept already. Closing the iterator, or Ctrl-C, waits
        for nothing: what is in flight is given up."""
        at_once = 1 if isinstance(self._backend, Forking) else self._config.groups_at_a_time
        groups, asking = ThreadPoolExecutor(at_once), ThreadPoolExecutor(at_once * self._config.group)
        waiting = iter(tasks)

        def start(number: int) -> list[tuple[Task, Future[_Tried]]]:
            return [
                (task, groups.submit(self._group, task, len(kept[task.id]), asking)) for task in islice(waiting, number)
            ]

        try:
            running = start(at_once)
            while running:
                task, future = running.pop(0)
                tried = future.result()
                running += start(1)
                yield task, tried
            self._box.leave()
        finally:
            for pool in (groups, asking):
                pool.shutdown(wait=False, cancel_futures=True)

    def _group(self, task: Task, there: int, asking: ThreadPoolExecutor) -> _Tried:
        count = self._config.group - there
        first = self._config.group + there if there else 0  # not a seed of those that are there
        messages, tools = self._shown(task)
        backends: Sequence[Backend] = [self._backend] * count
        try:
            if isinstance(self._backend, Forking):
                backends = self._backend.fork(messages, tools, count)
        except _UNREACHABLE:
            raise
        except ModelError as error:  # a prompt that does not fit
            return _Tried((), (_said(error),) * count)
        futures = [asking.submit(self._try, task, one, first + n) for n, one in enumerate(backends)]
        tried = [future.result() for future in futures]
        return _Tried(
            tuple(one for one in tried if isinstance(one, Rollout)),
            tuple(one for one in tried if isinstance(one, str)),
        )

    def _shown(self, task: Task) -> tuple[tuple[Message, ...], tuple[ToolSpec, ...]]:
        return shown(task.messages, task.tools, task.tags.get("rendering", "full"))

    def _try(self, task: Task, backend: Backend, number: int) -> Rollout | str:
        """One rollout, or why there is none."""
        config, earlier = self._config, list[ToolCall]()
        options = ChatOptions(
            temperature=config.temperature,
            max_tokens=config.max_tokens,
            seed=_seed(config.seed, task, number),
            on_policy=True,
        )
        limit = config.turns if self._box.toolbox is not None else 1
        messages, tools = self._shown(task)
        try:
            run = partial(self._box.run, earlier)
            turns = converse(backend, messages, tools, run, limit=limit, options=options)
            if any(turn.reply.written is None and not _whole(turn.reply) for turn in turns):
                return "The runtime does not say what was written, and it cannot be written again."
            verdict = score(task, Attempt(task_id=task.id, backend=backend.name, messages=(made_calls(turns),)))
            rows = tuple(self._row(task, turn) for turn in turns)
        except _UNREACHABLE:
            raise
        except ModelError as error:
            return _said(error)
        return Rollout(task_id=task.id, rows=rows, reward=verdict.score, reason=verdict.reason)

    def _row(self, task: Task, turn: Turn) -> Row:
        """A turn as a row. Its completion is what the runtime says it wrote; where it does not say it, what its own
        template makes of the answer, tokenised again: the same text, but perhaps not the same tokens."""
        written = turn.reply.written
        if written is None:
            before = (*task.messages, *turn.before)
            return masks.row(task, masks.Turn(0, before, turn.reply.message), self._renderer, self._cuts)
        messages, tools = self._shown(task)
        prompt = self._renderer.render((*messages, *turn.before), tools)
        return Row(
            task_id=task.id,
            prompt=prompt,
            completion=written.text,
            prompt_ids=self._ids(prompt),
            completion_ids=written.ids,
        )


def _whole(reply: Reply) -> bool:
    """Whether the message alone says what was written: no broken call, no end at the token limit."""
    return reply.finish != "length" and not any(call.error for call in reply.message.tool_calls)


def _seed(seed: int, task: Task, number: int) -> int:
    """Distinct for the rollouts of a task, the same in every run; below 2**31, which every server takes."""
    return (int(task.id[:8], 16) + 7919 * seed + number) % 2**31


def _said(error: Any) -> str:
    return f"{type(error).__name__}: {error}"[:200]
