"""The search as a step: trainings and merges of a tiny model are real, what answers is a stand-in."""

from __future__ import annotations

import re
import shutil
from contextlib import contextmanager

import pytest
from template import Calls

pytest.importorskip("optuna")
pytest.importorskip("torch")

from llm_tuner.apps.settings import resolve_training
from llm_tuner.loop import Tune, train_step
from llm_tuner.loop.search import search_step
from llm_tuner.models.runtimes import Served
from llm_tuner.scoring import gold_attempt, score
from llm_tuner.store import Store, read_jsonl, write_jsonl
from llm_tuner.store.suite import Suite, save
from llm_tuner.training.search import Space, split
from llm_tuner.training.sft import SFT
from llm_tuner.types import (
    ExactCalls,
    Message,
    NoCall,
    Reply,
    Row,
    Search,
    Task,
    ToolCall,
    ToolSpec,
)

ADD = ToolSpec(name="add", parameters={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})


def task(n, split="train"):
    expect = NoCall(reply="no") if n % 4 == 3 else ExactCalls(calls=(ToolCall(name="add", arguments={"a": n}, id="c"),))
    category = "no_call" if n % 4 == 3 else "single"
    asked = (Message(role="user", text=f"add {n}"),)
    return Task(messages=asked, tools=(ADD,), expect=expect, category=category, split=split)


def reference(one):
    attempt = gold_attempt(one)
    return attempt.model_copy(update={"backend": "reference", "verdict": score(one, attempt)})


TASKS = tuple(task(n) for n in range(24))


class Model(Calls):
    """Right where the number is even."""

    name = "model"

    def __init__(self, runtime, served):
        self._runtime, self._served = runtime, served

    def chat(self, messages, tools=(), options=None):
        n = int(re.findall(r"\d+", messages[0].text)[0])
        self._runtime.ask(n, self._served)
        call = ToolCall(name="add", arguments={"a": n + n % 2}, id="c")
        return Reply(message=Message(role="assistant", tool_calls=(call,)))


class Runtime:
    kind = "embedded"

    def __init__(self, die_at=None):
        self.asked, self.files, self.die_at = [], [], die_at

    def identity(self):
        return {"runtime": self.kind}

    def ask(self, n, served):
        self.asked.append(n)
        if len(self.asked) == self.die_at:
            raise KeyboardInterrupt
        if served.gguf not in self.files:
            assert served.gguf.read_bytes()[:4] == b"GGUF"
            self.files.append(served.gguf)

    @contextmanager
    def open(self, served, *, adapters=(), slots=1, context=None):
        yield Model(self, served)


def drain(steps, seen=None):
    try:
        while True:
            event = next(steps)
            if seen is not None:
                seen.append(event)
    except StopIteration as stop:
        return stop.value


@pytest.fixture
def places(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr("llm_tuner.loop.steps.indistinct_tokens", lambda gguf: frozenset())
    store = Store(tmp_path / "runs")
    with store.write("collect", {}, {"base": "base-hash"}) as folder:
        save(Suite(name="train", tasks=TASKS), folder.path / "train.jsonl")
        attempts = [reference(one) for one in TASKS]
        write_jsonl(folder.path / "reference-train.jsonl", attempts)
        folder.outputs.update(train="train.jsonl")
        folder.outputs["held-out"] = "no-such-file.jsonl"  # opening it would fail
    return store, folder.run, Served(reference="stock", gguf=tiny, sha256="base-hash")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    import importlib.util
    from pathlib import Path

    spec = importlib.util.spec_from_file_location("tiny_gguf", Path(__file__).parent / "training" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


CONFIG = Tune(
    sft=SFT(r=4, alpha=8, batch=4, accumulation=2, precision="float32", learning_rate=1e-3),
    search=Space(r=(2, 4), epochs=(1.0, 1.5), learning_rate=(1e-4, 1e-2)),
)


def test_trials_are_trained_served_and_judged_on_a_part_of_the_training_side(places):
    store, collected, stock = places
    runtime, seen = Runtime(), []
    run = drain(search_step(CONFIG, store, runtime, stock, collected, trials=2), seen)
    trained, judged = split(TASKS)
    numbers = {int(one.request.split()[1]) for one in judged}
    assert set(runtime.asked) == numbers
    assert len(runtime.files) == 2
    assert not any(path.exists() for path in runtime.files)
    found = Search.model_validate_json((store.folder(run) / "search.json").read_text())
    right = sum(one.category == "single" and int(one.request.split()[1]) % 2 == 0 for one in judged)
    assert [trial.accuracy for trial in found.trials] == [pytest.approx(right / len(judged))] * 2
    assert found.trials[0].settings == {
        "r": 4, "alpha": 8, "learning_rate": 1e-3, "epochs": 1.0, "keep_no_call": 1.0,
    }  # fmt: skip
    assert (found.tasks, found.rows) == (len(judged), len(trained))
    assert all(trial.losses for trial in found.trials)
    for name in ("search.html", "search.ja.html", "search.md", "search.ja.md"):
        text = (store.folder(run) / name).read_text()
        assert "learning_rate" in text
        assert f"{right / len(judged):.3f}" in text
    again = drain(search_step(CONFIG, store, Runtime(die_at=1), stock, collected, trials=2))
    assert again == run


def test_an_interrupted_search_asks_only_for_what_is_missing_and_more_trials_take_up_the_old_ones(places):
    store, collected, stock = places
    count = len(split(TASKS)[1])
    runtime, seen = Runtime(die_at=count + 2), []
    with pytest.raises(KeyboardInterrupt):
        drain(search_step(CONFIG, store, runtime, stock, collected, trials=2))
    runtime = Runtime()
    run = drain(search_step(CONFIG, store, runtime, stock, collected, trials=2), seen)
    assert len(runtime.asked) == count - 1
    assert not any(event.data.get("loss") for event in seen), "the adapter was there"
    more = Runtime()
    longer = drain(search_step(CONFIG, store, more, stock, collected, trials=3))
    assert len(more.asked) == count
    states = [
        [trial.state for trial in Search.model_validate_json((store.folder(r) / "search.json").read_text()).trials]
        for r in (run, longer)
    ]
    assert states == [["done", "failed", "done"], ["done", "failed", "done", "done"]]


def test_the_best_settings_train_the_next_model(places, tmp_path):
    store, collected, stock = places
    run = drain(search_step(CONFIG, store, Runtime(), stock, collected, trials=2))
    file = tmp_path / "best.toml"
    shutil.copy(store.folder(run) / run.outputs["best"], file)
    config = resolve_training(file, "sft", {}, {})
    best = run.metrics["best"]["settings"]
    assert config.sft.r == best["r"]
    assert config.sft.alpha == best["alpha"]
    assert config.sft.learning_rate == pytest.approx(best["learning_rate"], rel=1e-5)
    assert config.keep == {"no_call": pytest.approx(best["keep_no_call"], abs=1e-4)}
    fewer = config.model_copy(update={"keep": {"no_call": 0.4}})
    trained = drain(train_step(fewer, store, Runtime(), stock, collected))
    whole = drain(train_step(config.model_copy(update={"keep": {}}), store, Runtime(), stock, collected))
    assert trained.metrics["rows"] < whole.metrics["rows"] == 24
    assert len(read_jsonl(store.folder(trained) / "rows.jsonl", Row)) == 24
