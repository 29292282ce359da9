"""Rounds out of recorded traffic, by themselves: when enough new examples lie in the journal, in quiet hours, while the
machine is idle.

Not a scheduler: one process that looks, works, and looks again; a cron line with `once` does the same. The rule it
protects: nothing is promoted past the gate, what serves is touched last, and the process may be killed at any moment: a
round goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, ValidationError, field_validator

from llm_tuner.data.dataset import read_examples
from llm_tuner.data.overlap import Reference
from llm_tuner.loop.config import Tune
from llm_tuner.loop.own_data import SET, recorded_step
from llm_tuner.loop.round import Outcome, tune
from llm_tuner.models.resources import Snapshot, snapshot
from llm_tuner.models.runtimes import Runtime
from llm_tuner.store import Store, alone, write_atomic
from llm_tuner.types import EmptyData, Event, Run, SetupError, Value


class Watch(Value):
    """When a round is run. `least` examples must be new since the last round; `quiet` is "HH:MM-HH:MM" of local time,
    also over midnight, or "" for always; at the start the CPU must be at most `cpu` percent busy and `memory` bytes be
    available; it is looked every `every` seconds. Without `promote` what passed the gate waits as the candidate."""

    least: int = Field(50, ge=1)
    quiet: str = "01:00-06:00"
    cpu: float = Field(50, gt=0, le=100)
    memory: int = Field(6 << 30, ge=0)
    every: float = Field(600, gt=0)
    promote: bool = True

    @field_validator("quiet")
    @classmethod
    def _hours(cls, text: str) -> str:
        if text:
            _span(text)
        return text

    def is_quiet(self, minutes: int) -> bool:
        """Whether this minute of the day lies in the quiet hours."""
        if not self.quiet:
            return True
        begin, end = _span(self.quiet)
        return begin <= minutes < end if begin <= end else minutes >= begin or minutes < end


class Machine(NamedTuple):
    """What a watch asks of the world outside; replaced in tests. `minutes` is the local minute of the day."""

    minutes: Callable[[], int]
    reading: Callable[[], Snapshot]
    sleep: Callable[[float], None]


def _now() -> int:
    now = datetime.now()
    return now.hour * 60 + now.minute


HERE = Machine(_now, snapshot, time.sleep)


class _Last(Value):
    """The last round's data, and how it ended."""

    run: str
    when: str
    promoted: bool


def watch(
    config: Tune,
    rules: Watch,
    store: Store,
    runtime: Runtime,
    journal: Path,
    *,
    once: bool = False,
    references: dict[str, list[Reference]] | None = None,
    machine: Machine = HERE,
) -> Generator[Event, None, Outcome | None]:
    """Looks, and runs a round when it is time. With `once` it returns after the first look (None where it was not time)
    or the round that followed; without it goes on until it is closed. Raises SetupError where another watch runs."""
    state = store.root / f"watch-{config.name}.json"
    with alone(state.with_suffix(".lock")):
        while True:
            why = _not_now(rules, machine)
            if not why:
                recorded, why = yield from _enough(rules, store, state, journal, references)
            if not why:
                outcome = yield from _round(config, rules, store, runtime, recorded, state, machine)
                if once:
                    return outcome
                continue
            yield Event(step="watch", message=why)
            if once:
                return None
            machine.sleep(rules.every)


def _not_now(rules: Watch, machine: Machine) -> str:
    if not rules.is_quiet(machine.minutes()):
        return f"waiting for the quiet hours ({rules.quiet})"
    now = machine.reading()
    if now.cpu > rules.cpu:
        return f"the machine is busy ({now.cpu:.0f} % of its CPU, allowed {rules.cpu:.0f})"
    if (free := now.memory_total - now.memory_used) < rules.memory:
        return f"too little memory is free ({free / 2**30:.1f} of {rules.memory / 2**30:.1f} GiB)"
    return ""


def _enough(
    rules: Watch, store: Store, state: Path, journal: Path, references: dict[str, list[Reference]] | None
) -> Generator[Event, None, tuple[Run, str]]:
    try:
        recorded = yield from recorded_step(store, journal, references)
    except EmptyData as error:
        return None, str(error)  # type: ignore[return-value]
    fresh = len(_ids(store, recorded) - _ids_of_last(store, state))
    why = f"{fresh} new examples of {rules.least} that a round wants" if fresh < rules.least else ""
    return recorded, why


def _round(
    config: Tune, rules: Watch, store: Store, runtime: Runtime, recorded: Run, state: Path, machine: Machine
) -> Generator[Event, None, Outcome | None]:
    """One round; None where the quiet hours ended before it did. It then goes on in the next ones."""
    data = (*config.data, store.folder(recorded) / SET)
    steps = tune(config.model_copy(update={"data": data}), store, runtime, promote=rules.promote)
    try:
        while True:
            yield next(steps)
            if not rules.is_quiet(machine.minutes()):
                yield Event(step="watch", message="the quiet hours are over: the round goes on in the next ones")
                return None
    except StopIteration as end:
        outcome: Outcome = end.value
    finally:
        steps.close()
    promoted = outcome.decision.promote and rules.promote
    when = datetime.now(UTC).isoformat(timespec="seconds")
    write_atomic(state, _Last(run=recorded.id, when=when, promoted=promoted).model_dump_json())
    ended = "promoted" if promoted else "passed the gate and waits" if outcome.decision.promote else "refused"
    yield Event(step="watch", message=f"the round is done: {ended}. {' '.join(outcome.decision.sentences)}")
    return outcome


def _ids(store: Store, recorded: Run) -> set[str]:
    return {example.task.id for example in read_examples(store.folder(recorded) / SET, *_sides(store, recorded))}


def _sides(store: Store, recorded: Run) -> Iterator[str]:
    return (side for side in ("train", "held-out") if (store.folder(recorded) / SET / f"{side}.jsonl").is_file())


def _ids_of_last(store: Store, state: Path) -> set[str]:
    try:
        last = _Last.model_validate_json(state.read_bytes())
    except (OSError, ValidationError):
        return set()
    run = next((run for run in store.runs("recorded") if run.id == last.run), None)
    return _ids(store, run) if run is not None else set()


def _span(text: str) -> tuple[int, int]:
    """Minutes of the day of "HH:MM-HH:MM". Raises SetupError."""
    try:
        begin, end = (datetime.strptime(part.strip(), "%H:%M") for part in text.split("-"))
    except ValueError as error:
        raise SetupError(f'Quiet hours are written like "01:00-06:00", found "{text}".') from error
    return begin.hour * 60 + begin.minute, end.hour * 60 + end.minute
