"""Rounds by themselves: when they run, what they learn from, how they end, and that only one watch works.

The round itself is replaced here; tests/test_round.py runs a real one with data of its own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from llm_tuner.data.dataset import read_examples
from llm_tuner.loop import Tune
from llm_tuner.loop import watch as watching
from llm_tuner.loop.own_data import recorded_step
from llm_tuner.loop.watch import Machine, Watch, watch
from llm_tuner.models.resources import Snapshot
from llm_tuner.serving.exchanges import Recorder
from llm_tuner.store import Store
from llm_tuner.store.scrub import Scrubber
from llm_tuner.types import EmptyData, Event, Message, SetupError
from recording import asked, call, calling, heard, user

REQUESTS = (
    "What does the manual of the pump say about its pressure?",
    "Open the diary of our trip to Hokkaido, please.",
    "メモ帳の買い物リストを読んでください",
    "Show me which licences the vendored code has",
    "昨日の会議の議事録には何と書いてありますか",
)


def record(journal: Path, *numbers: int) -> None:
    """One right example a number: a call, whose result a later request carries."""
    recorder = Recorder(journal, Scrubber("test"))
    for number in numbers:
        said = [user(REQUESTS[number - 1])]
        one = calling(call("read_file", f"x{number}", path=f"{number}.txt"))
        recorder.record(asked(*said, answer=one))
        said += [one, heard(f"text {number}", f"x{number}")]
        recorder.record(asked(*said, answer=Message(role="assistant", text=f"It says {number}.")))
    recorder.close()


class World:
    """Time and load as a test says. `minutes` is popped at each look, the last one stays."""

    def __init__(self, *minutes: int, cpu: float = 0, used: int = 0) -> None:
        self.waits = 0
        self._minutes, self._now = (
            list(minutes),
            Snapshot(cpu=cpu, memory_used=used, memory_total=16 << 30, disk_free=1),
        )

    @property
    def machine(self) -> Machine:
        return Machine(self._minute, lambda: self._now, self._wait)

    def _minute(self) -> int:
        return self._minutes.pop(0) if len(self._minutes) > 1 else self._minutes[0]

    def _wait(self, _: float) -> None:
        self.waits += 1
        if self.waits > 5:
            raise KeyboardInterrupt


class Round:
    """Stands for `loop.tune`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, promote: bool = True) -> None:
        self.configs: list[Tune] = []
        self.promoting: list[bool] = []
        self.closed = 0
        self._promote = promote
        monkeypatch.setattr(watching, "tune", self)

    def __call__(self, config: Tune, *_: object, promote: bool) -> Generator[Event, None, Any]:
        self.configs.append(config)
        self.promoting.append(promote)
        try:
            yield Event(step="collect", message="one")
            yield Event(step="train", message="two")
        except GeneratorExit:
            self.closed += 1
            raise

        class Outcome:
            class decision:
                promote = self._promote
                sentences = ("Because.",)

        return Outcome()


def run(steps: Generator[Event, None, Any]) -> tuple[Any, list[str]]:
    said = []
    try:
        while True:
            said.append(next(steps).message)
    except StopIteration as end:
        return end.value, said


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def look(store: Store, journal: Path, world: World, **rules: Any) -> tuple[Any, list[str]]:
    chosen = Watch(**{"least": 2, "quiet": ""} | rules)
    return run(watch(Tune(), chosen, store, None, journal, once=True, machine=world.machine))  # type: ignore[arg-type]


def test_a_round_runs_when_enough_is_new_and_not_again_until_there_is_more(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds, journal = Round(monkeypatch), tmp_path / "journal"
    record(journal, 1)
    outcome, said = look(store, journal, World(0))
    assert (outcome, rounds.configs) == (None, [])
    assert said[-1] == "1 new examples of 2 that a round wants"
    record(journal, 2, 3)
    outcome, said = look(store, journal, World(0))
    assert outcome.decision.promote
    assert said[-1] == "the round is done: promoted. Because."
    (folder,) = rounds.configs[0].data
    requests = {example.task.request for example in read_examples(folder)}
    assert requests == set(REQUESTS[:3])
    assert look(store, journal, World(0))[1][-1] == "0 new examples of 2 that a round wants"
    record(journal, 4, 5)
    assert look(store, journal, World(0))[0] is not None
    assert len(rounds.configs) == 2


def test_a_refused_round_is_told_and_not_repeated(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = Round(monkeypatch, promote=False)
    record(tmp_path / "journal", 1, 2)
    assert look(store, tmp_path / "journal", World(0))[1][-1] == "the round is done: refused. Because."
    assert look(store, tmp_path / "journal", World(0))[0] is None
    assert len(rounds.configs) == 1


def test_without_promotion_what_passed_waits(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Round(monkeypatch)
    record(tmp_path / "journal", 1, 2)
    assert "waits" in look(store, tmp_path / "journal", World(0), promote=False)[1][-1]
    assert rounds.promoting == [False]


def test_quiet_hours_load_and_memory_hold_a_round_back(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = Round(monkeypatch)
    record(tmp_path / "journal", 1, 2)
    for world, rules, words in (
        (World(12 * 60), {"quiet": "01:00-06:00"}, "quiet hours"),
        (World(0, cpu=80), {}, "busy (80 %"),
        (World(0, used=12 << 30), {}, "4.0 of 6.0 GiB"),
    ):
        outcome, said = look(store, tmp_path / "journal", world, **rules)
        assert outcome is None
        assert words in said[-1]
    assert rounds.configs == []


def test_quiet_hours_may_go_over_midnight_and_are_checked() -> None:
    night = Watch(quiet="22:30-06:00")
    assert [night.is_quiet(m) for m in (22 * 60 + 29, 22 * 60 + 30, 0, 5 * 60 + 59, 6 * 60)] == [
        False, True, True, True, False,
    ]  # fmt: skip
    assert Watch(quiet="").is_quiet(720)
    with pytest.raises(SetupError, match="01:00-06:00"):
        Watch(quiet="late")


def test_a_round_stops_with_the_quiet_hours_and_goes_on_in_the_next(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = Round(monkeypatch)
    record(tmp_path / "journal", 1, 2)
    world = World(5 * 60, 7 * 60, 7 * 60, 2 * 60)
    steps = watch(
        Tune(), Watch(least=2, quiet="01:00-06:00"), store, None, tmp_path / "journal", machine=world.machine  # type: ignore[arg-type]
    )  # fmt: skip
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        said.extend(event.message for event in steps)
    assert rounds.closed == 1
    first = said.index("the quiet hours are over: the round goes on in the next ones")
    waited = said.index("waiting for the quiet hours (01:00-06:00)")
    done = said.index("the round is done: promoted. Because.")
    assert first < waited < done
    assert rounds.configs[0] == rounds.configs[1]


def test_no_journal_and_one_without_an_example(store: Store, tmp_path: Path) -> None:
    with pytest.raises(EmptyData, match="serve gateway"):
        run(recorded_step(store, tmp_path / "nowhere"))
    outcome, said = look(store, tmp_path / "nowhere", World(0))
    assert outcome is None
    assert "serve gateway" in said[-1]


def test_only_one_watch_works(store: Store, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from llm_tuner.store import alone\n"
        "with alone(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    )
    lock = store.root / "watch-tuned.lock"
    other = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(SetupError, match=f"Process {other.pid} is already working"):
            look(store, tmp_path / "journal", World(0))
    finally:
        other.kill()
        other.wait()
        other.stdout.close()  # type: ignore[union-attr]
    assert look(store, tmp_path / "journal", World(0))[0] is None
