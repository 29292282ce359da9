"""The order of a round's methods, what serves after each, several rounds, and what fits into a time.

Training, measuring and the runtime are replaced here; tests/test_round.py runs a round with every part real.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from llm_tuner.evaluation.measure import tally
from llm_tuner.loop import Outcome, Tune, rounds, tune
from llm_tuner.loop.planning import FEWEST_MEASURED, FEWEST_TRAINED, plan, seconds_of
from llm_tuner.models.runtimes import Served
from llm_tuner.scoring import gold_attempt, score
from llm_tuner.store import RunFolder, Store, append_jsonl, write_atomic
from llm_tuner.store.suite import Suite, save
from llm_tuner.types import Attempt, Event, ExactCalls, Json, Message, Run, SetupError, Task, ToolCall, ToolSpec

MODULE = "llm_tuner.loop.round"
TOOLS = tuple(ToolSpec(name=name, parameters={"type": "object", "properties": {"x": {}}}) for name in ("a", "b"))
SUITE = Suite(
    name="held-out",
    tasks=tuple(
        Task(
            messages=(Message(role="user", text=f"request {number}"),),
            tools=TOOLS,
            expect=ExactCalls(calls=(ToolCall(name="a", arguments={"x": number}),)),
            category="single",
            language="en",
        )
        for number in range(60)
    ),
)


def drain(steps: Generator[Event, None, Any]) -> Any:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


class Runtime:
    """Keeps aliases as a runtime does; a model's hash is the text of its file."""

    kind = "embedded"

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self.moves: list[str] = []

    def identity(self) -> dict[str, str]:
        return {"runtime": "embedded", "context": "8192"}

    def stable(self, name: str) -> Served | None:
        tag = self.tags.get("stable")
        return Served(reference=f"{name}:stable", gguf=Path("x"), sha256=tag) if tag else None

    def install(self, name: str, gguf: Path, lineage: dict[str, Json]) -> Generator[Event, None, Served]:
        yield Event(step="install")
        self.tags["candidate"] = gguf.read_text()
        self.moves.append(f"install {gguf.read_text()}")
        return Served(reference=f"{name}:candidate", gguf=gguf, sha256=gguf.read_text())

    def aliases(self, name: str) -> dict[str, str]:
        return self.tags

    def note(self, served: Served, measured: dict[str, Json]) -> None:
        return

    def promote(self, name: str) -> str:
        self.tags["stable"] = self.tags.pop("candidate")
        self.moves.append(f"promote {self.tags['stable']}")
        return self.tags["stable"]


class World:
    """Steps that take no time. `right` is how many of 60 tasks a model answers right, by its method and round."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch, **right: int) -> None:
        self.store, self.runtime, self.right = store, Runtime(), {"stock": 10, **right}
        self.collected: list[Tune] = []
        self.asked_general: list[str] = []
        self.starts: list[str] = []
        for step in ("stock_step", "collect_step", "evaluate_step", "general_step", "parity_step", "method_step"):
            monkeypatch.setattr(f"{MODULE}.{step}", getattr(self, step))
        monkeypatch.setattr(f"{MODULE}.chat_template", lambda gguf: "template")

    def stock_step(self, config: Tune, runtime: Any) -> Generator[Event, None, Served]:
        yield Event(step="stock")
        return Served(reference="stock", gguf=Path("x"), sha256="stock")

    def collect_step(self, config: Tune, *_: object) -> Generator[Event, None, Run]:
        self.collected.append(config)
        return (yield from self._once("collect", {"seed": config.train.seed, "hub": "demo"}, {}, self._collect))

    def _collect(self, folder: RunFolder) -> None:
        save(SUITE, folder.path / "held-out.jsonl")
        folder.outputs["held-out"] = "held-out.jsonl"

    def evaluate_step(self, store: Store, runtime: Any, served: Served, _: Run) -> Generator[Event, None, Run]:
        def measure(folder: RunFolder) -> None:
            (folder.path / "held-out").mkdir(exist_ok=True)
            attempts = []
            for number, task in enumerate(SUITE.tasks):
                attempt = gold_attempt(task)
                if number >= self.right[served.sha256]:
                    wrong = Message(role="assistant", tool_calls=(ToolCall(name="b"),))
                    attempt = Attempt(task_id=task.id, backend="m", messages=(wrong,))
                attempts.append(attempt.model_copy(update={"verdict": score(task, attempt)}))
                append_jsonl(folder.path / "held-out" / "attempts.jsonl", attempts[-1])
            found = tally(SUITE, attempts, backend=served.sha256)
            write_atomic(folder.path / "held-out" / "report.json", found.model_dump_json())
            folder.outputs["held-out"] = "held-out/report.json"

        return (yield from self._once("evaluate", {}, {"model": served.sha256}, measure))

    def general_step(self, store: Store, runtime: Any, served: Served) -> Generator[Event, None, Run]:
        self.asked_general.append(served.sha256)
        return (yield from self._once("general", {}, {"model": served.sha256}, self._general))

    def _general(self, folder: RunFolder) -> None:
        found = tally(SUITE, [gold_attempt(task) for task in SUITE.tasks], backend="m")
        write_atomic(folder.path / "report.json", found.model_dump_json())
        folder.outputs["general"] = "report.json"

    def parity_step(self, *_: object) -> Generator[Event, None, None]:
        yield Event(step="parity")

    def method_step(
        self, method: str, config: Tune, store: Store, runtime: Any, stock: Served, collected: Run, start: Run | None
    ) -> Generator[Event, None, Run]:
        name = f"{method}{len(self.starts)}" if config.train.seed else method

        def train(folder: RunFolder) -> None:
            (folder.path / "model.gguf").write_text(method if not config.train.seed else f"{method}2")
            (folder.path / "rows.jsonl").write_text(name)
            (folder.path / "curve.jsonl").write_text("")
            folder.outputs.update(model="model.gguf", adapter="adapter", rows="rows.jsonl")

        self.starts.append(start.kind if start else "base")
        inputs = {"collect": collected.id, "start": start.id if start else "base"}
        return (yield from self._once(method, {"seed": config.train.seed}, inputs, train))

    def _once(self, kind: str, key: dict[str, Json], inputs: dict[str, str], work: Any) -> Generator[Event, None, Run]:
        yield Event(step=kind)
        if (done := self.store.find(kind, key, inputs)) is None:
            with self.store.write(kind, key, inputs) as folder:
                work(folder)
            done = folder.run
        assert done is not None
        return done

    def round(self, **changes: Any) -> Outcome:
        promote = changes.pop("promote", True)
        found: Outcome = drain(tune(Tune(name="m", **changes), self.store, self.runtime, promote=promote))  # type: ignore[arg-type]
        return found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def test_each_method_goes_on_from_the_one_before_and_the_better_one_serves(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(store, monkeypatch, sft=40, dpo=55, grpo=50)
    found = world.round(methods=("sft", "dpo", "grpo"))
    assert world.starts == ["base", "sft", "dpo"]
    assert world.runtime.moves == ["install sft", "promote sft", "install dpo", "promote dpo", "install grpo"]
    assert [(one.method, one.decision.promote) for one in found.stages] == [
        ("sft", True),
        ("dpo", True),
        ("grpo", False),
    ]
    assert (found.before.backend, found.after.backend) == ("stock", "dpo")
    assert found.stable == "m:stable = dpo"
    assert found.decision.promote


def test_a_later_method_that_makes_it_worse_leaves_the_first_serving(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(store, monkeypatch, sft=50, dpo=20)
    found = world.round(methods=("sft", "dpo"))
    assert world.runtime.tags["stable"] == "sft"
    assert found.after.backend == "sft"


def test_asked_for_again_it_ends_the_same_and_promotes_nothing_twice(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(store, monkeypatch, sft=50, dpo=20)
    first = world.round(methods=("sft", "dpo"))
    again = world.round(methods=("sft", "dpo"))
    assert (again.before, again.after, again.decision, again.stages) == (
        first.before,
        first.after,
        first.decision,
        first.stages,
    )
    assert world.runtime.moves.count("promote sft") == 1
    assert world.runtime.tags["stable"] == "sft"


def test_without_promoting_the_best_that_passed_waits(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(store, monkeypatch, sft=50, dpo=20)
    found = world.round(methods=("sft", "dpo"), promote=False)
    assert world.runtime.tags == {"candidate": "sft"}
    assert found.decision.promote
    assert found.stable == "stock"


def test_general_skill_is_asked_of_a_candidate_that_passed_and_of_the_base(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(store, monkeypatch, sft=50, dpo=20)
    world.round(methods=("sft", "dpo"))
    assert world.asked_general == ["stock", "sft"]
    world.round(methods=("sft", "dpo"), general=False)
    assert world.asked_general == ["stock", "sft"]


def test_a_second_round_has_other_tasks_and_goes_on_from_what_was_promoted(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(store, monkeypatch, sft=40, sft2=55)
    found = drain(rounds(Tune(name="m"), 2, store, world.runtime, tmp_path / "nothing"))  # type: ignore[arg-type]
    assert [config.train.seed for config in world.collected] == [0, 100]
    assert {config.held_out.seed for config in world.collected} == {2}
    assert world.starts == ["base", "sft"]
    assert [one.after.backend for one in found] == ["sft", "sft2"]
    assert world.runtime.tags["stable"] == "sft2"


def test_a_round_that_was_refused_is_not_gone_on_from(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(store, monkeypatch, sft=5, sft2=55)
    found = drain(rounds(Tune(name="m"), 2, store, world.runtime, tmp_path / "nothing"))  # type: ignore[arg-type]
    assert [one.decision.promote for one in found] == [False, True]
    assert world.starts == ["base", "base"]


# ------------------------------------------------------------------------------------------------------- what fits


@pytest.fixture
def planned(store: Store, monkeypatch: pytest.MonkeyPatch) -> Any:
    def stock_step(config: Tune, runtime: Any) -> Generator[Event, None, Served]:
        yield Event(step="stock")
        return Served(reference="stock", gguf=Path("x"), sha256="stock")

    monkeypatch.setattr("llm_tuner.loop.planning.stock_step", stock_step)
    monkeypatch.setattr("llm_tuner.loop.planning._probe", lambda runtime, stock: 1.0)

    def planned(minutes: float, **changes: Any) -> Any:
        said: list[str] = []
        steps = plan(Tune(name="m", **changes), minutes * 60, store, Runtime())  # type: ignore[arg-type]
        while True:
            try:
                said.append(next(steps).message)
            except StopIteration as end:
                return *end.value, said

    return planned


def test_a_round_that_fits_is_left_as_it_is(planned: Any) -> None:
    config, found, said = planned(300, methods=("sft", "dpo"))
    assert config == Tune(name="m", methods=("sft", "dpo"))
    assert found.share == 1
    assert found.seconds <= 300 * 60
    assert "of 300 minutes (estimated from one short request)" in said[-1]


def test_later_methods_are_left_out_first_then_tasks(planned: Any) -> None:
    whole = planned(1000, methods=("sft", "dpo", "grpo"))[1].seconds / 60
    config, _, said = planned(whole - 1, methods=("sft", "dpo", "grpo"))
    assert config.methods == ("sft", "dpo")
    assert "Without grpo: no time for it." in said
    config, found, said = planned(25, methods=("sft", "dpo", "grpo"))
    assert config.methods == ("sft",)
    assert found.share < 1
    assert FEWEST_TRAINED <= config.train.tasks < 480
    assert FEWEST_MEASURED <= config.held_out.tasks < 96
    assert config.train.catalogues < 30
    assert any(f"{config.train.tasks} training tasks instead of 480" in sentence for sentence in said)


def test_a_time_in_which_nothing_sensible_fits_is_refused_with_the_time_it_takes(planned: Any) -> None:
    with pytest.raises(SetupError, match=r"The smallest round \(120 training tasks, 48 measured\) takes about \d+ min"):
        planned(5)


def test_what_runs_took_here_is_believed_over_an_estimate(planned: Any, store: Store) -> None:
    with store.write("train", {"epochs": 2.0}, {"base": "stock", **Runtime().identity()}) as folder:
        folder.metrics.update(train_seconds=96_000, rows=480)
    _, found, _ = planned(100_000)
    assert found.steps["sft"] > 480 * 100
    assert {"train"} <= set(found.measured)
    with store.write("train", {}, {"base": "another", **Runtime().identity()}) as folder:
        folder.metrics.update(train_seconds=1, rows=480)
    assert planned(100_000)[1].steps["sft"] == found.steps["sft"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("1.5 hours", 5400), ("45 min", 2700)]
)
def test_budgets_are_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "2", "two hours", "0m", "-2h"])
def test_what_is_no_budget_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SetupError, match='written like "2h"'):
        seconds_of(text)
