"""What comes after a first training: the model of a run tries tasks, and its adapter learns from that.

The training itself is a stand-in here (tests/training has the maths); runs, resuming and what training is given are
real. One test at the end has every part real, on the smallest model.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from template import Calls

from llm_tuner.loop import Tune, feedback, hub_hash
from llm_tuner.loop.feedback import dpo_step, find_start, grpo_step, pairs_step
from llm_tuner.models.runtimes import EmbeddedRuntime, Served
from llm_tuner.models.versions import Versions
from llm_tuner.scoring import gold_attempt
from llm_tuner.store import Store, read_jsonl, write_jsonl
from llm_tuner.store.suite import Suite, save
from llm_tuner.training.grpo import GRPO
from llm_tuner.types import (
    DataError,
    ExactCalls,
    Message,
    Pair,
    Reply,
    Rollout,
    SetupError,
    Task,
    ToolCall,
    ToolSpec,
    Written,
)

ADD = ToolSpec(name="add", parameters={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
STOCK = Served(reference="stock", gguf=Path("base.gguf"), sha256="base-hash")


def task(n, split="train", text=""):
    call = ToolCall(name="add", arguments={"a": n}, id="c")
    asked = (Message(role="user", text=text or f"add {n}"),)
    return Task(messages=asked, tools=(ADD,), expect=ExactCalls(calls=(call,)), split=split)


TASKS = tuple(task(n) for n in range(12))


def reference(one):
    return gold_attempt(one).model_copy(update={"backend": "reference"})


def drain(steps, seen=None):
    try:
        while True:
            event = next(steps)
            if seen is not None:
                seen.append(event)
    except StopIteration as stop:
        return stop.value


class Model(Calls):
    """Every second answer is wrong: by seed where one is given, else by what is asked."""

    name = "model"

    def chat(self, messages, tools=(), options=None):
        n = int(messages[0].text.split()[1])
        wrong = (options.seed if options.on_policy else n) % 2
        call = ToolCall(name="add", arguments={"a": n + wrong}, id="c")
        written = Written(text=str(n), ids=(1, n, 2)) if options.on_policy else None
        return Reply(message=Message(role="assistant", tool_calls=(call,)), written=written)


class Forks(Model):
    def fork(self, messages, tools, count):
        return [self] * count


class Runtime:
    """Opens the model above, and keeps with what."""

    kind = "embedded"

    def __init__(self):
        self.opened = []

    def identity(self):
        return {"runtime": self.kind}

    @contextmanager
    def open(self, served, *, adapters=(), slots=1, context=None):
        self.opened.append((served.reference, tuple(path.read_text() for path in adapters), slots, context))
        yield Forks()


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A store with a collect run and a training run on it; training and export replaced by writers of small files."""
    store = Store(tmp_path / "runs")
    with store.write("collect", {"hub": hub_hash("demo"), "execute": False}, {"base": "base-hash"}) as folder:
        save(Suite(name="train", tasks=TASKS), folder.path / "train.jsonl")
        write_jsonl(
            folder.path / "reference-train.jsonl",
            [reference(one) for one in TASKS],
        )
        folder.outputs["train"] = "train.jsonl"
    with store.write("train", {}, {"base": "base-hash"}) as trained:
        write_adapter(trained.path, "sft")
        trained.outputs["adapter"] = "adapter"
    monkeypatch.setattr(feedback, "adapter_gguf", copy_adapter)
    monkeypatch.setattr(feedback, "export", lambda base, folder: iter(()))
    monkeypatch.setattr(feedback, "indistinct_tokens", lambda gguf: frozenset())
    return store, Runtime(), folder.run, trained.run


def write_adapter(folder, text):
    (folder / "adapter").mkdir(parents=True, exist_ok=True)
    (folder / "adapter" / "weights").write_text(text)
    (folder / "metrics.json").write_text('{"steps": 1}')


def copy_adapter(base, adapter, out):
    out.write_text((adapter / "weights").read_text())
    return out


def test_pairs_are_made_of_what_the_model_of_the_start_does(places):
    store, runtime, collected, trained = places
    seen = []
    config = Tune(pairing={"own_attempts": 6, "most": 0.5})
    run = drain(pairs_step(config, store, runtime, STOCK, collected, trained), seen)
    assert runtime.opened == [("stock", ("sft",), 1, None)]
    pairs = read_jsonl(store.folder(run) / run.outputs["pairs"], Pair)
    assert len(pairs) == run.metrics["pairs"] > 8
    assert run.metrics["own"]["made"] == 6
    wrong = 6 - run.metrics["own"]["right"]
    assert run.metrics["origins"]["itself"] == wrong > 0
    assert run.inputs["start"] == trained.id
    assert not list(store.folder(run).glob("policy*"))
    again = drain(pairs_step(config, store, runtime, STOCK, collected, trained), seen)
    assert again.id == run.id
    assert seen[-1].data == {"reused": run.id}
    assert len(runtime.opened) == 1
    other = drain(pairs_step(config, store, runtime, STOCK, collected, None))
    assert runtime.opened[1] == ("stock", (), 1, None)
    assert other.inputs["start"] == "base"


def test_dpo_goes_on_from_the_adapter_of_the_start_and_is_found_again(places, monkeypatch):
    store, runtime, collected, trained = places
    asked = []

    def stand_in(config, gguf, pairs, out, *, held_out=(), start=None):
        asked.append((gguf, len(pairs), start.joinpath("weights").read_text()))
        yield from ()
        write_adapter(out, "dpo")

    monkeypatch.setattr(feedback, "dpo", stand_in)
    config = Tune(pairing={"own_attempts": 0})
    paired = drain(pairs_step(config, store, runtime, STOCK, collected, trained))
    time.sleep(1.1)  # the names of runs hold seconds, and the newest one is looked for below
    run = drain(dpo_step(config, store, runtime, STOCK, paired, trained))
    assert asked == [(STOCK.gguf, paired.metrics["pairs"], "sft")]
    assert (run.kind, run.inputs["pairs"], run.inputs["start"]) == ("dpo", paired.id, trained.id)
    assert run.metrics["steps"] == 1
    assert drain(dpo_step(config, store, runtime, STOCK, paired, trained)).id == run.id
    assert len(asked) == 1
    assert find_start(store, "last", STOCK).id == run.id
    assert find_start(store, trained.id, STOCK).id == trained.id
    assert find_start(store, "base", STOCK) is None
    with pytest.raises(DataError, match=r'No training run "x" on this base \(found: .*-dpo-'):
        find_start(store, "x", STOCK)
    with pytest.raises(DataError, match="found: none"):
        find_start(store, "last", STOCK.model_copy(update={"sha256": "another"}))


def learning(iterations, die_at=None):
    """A stand-in for grpo: each iteration's adapter has its number; it is killed before it learns from `die_at`."""
    given = []

    def stand_in(config, gguf, roll_out, out, *, start=None):
        for iteration in range(iterations):
            write_adapter(out / "now", f"{start.joinpath('weights').read_text()}+{iteration}")
            rollouts = yield from roll_out(iteration, out / "now" / "adapter")
            given.append(rollouts)
            if iteration == die_at:
                raise KeyboardInterrupt
        write_adapter(out, "grpo")

    return stand_in, given


def test_grpo_rolls_out_with_the_adapter_of_the_moment_and_goes_on_after_a_kill(places, monkeypatch):
    store, runtime, collected, trained = places
    config = Tune(grpo=GRPO(iterations=3, tasks=5, group=4, turns=2, max_seq_length=100), answer_tokens=20)
    killed, first = learning(3, die_at=1)
    monkeypatch.setattr(feedback, "grpo", killed)
    with pytest.raises(KeyboardInterrupt):
        drain(grpo_step(config, store, runtime, STOCK, collected, trained))
    assert runtime.opened == [("stock", ("sft+0",), 4, 120), ("stock", ("sft+1",), 4, 120)]
    whole, given = learning(3)
    monkeypatch.setattr(feedback, "grpo", whole)
    run = drain(grpo_step(config, store, runtime, STOCK, collected, trained))
    assert [opened[1] for opened in runtime.opened] == [("sft+0",), ("sft+1",), ("sft+2",)]
    assert given[:2] == first
    assert all(len(rollouts) == 5 * 4 for rollouts in given)
    tried = [{rollout.task_id for rollout in rollouts} for rollouts in given]
    assert len(tried[0] | tried[1]) == 10  # others until all had their turn
    assert len(tried[0] | tried[1] | tried[2]) == 12
    assert {rollout.reward for rollout in given[0]} == {0.5, 1.0}
    assert [summary["with_signal"] for summary in run.metrics["rollouts"]] == [5, 5, 5]
    assert (run.kind, run.outputs["adapter"]) == ("grpo", "adapter")
    assert drain(grpo_step(config, store, runtime, STOCK, collected, trained)).id == run.id
    assert len(given) == 3


def test_tools_run_only_if_they_did_when_the_run_collected_and_only_those_of_its_hub(places, tmp_path, monkeypatch):
    store, runtime, _, trained = places
    hub = tmp_path / "mcp.json"
    hub.write_text('{"mcpServers": {}}')
    with store.write("collect", {"hub": hub_hash(str(hub)), "execute": True}, {"base": "base-hash"}) as folder:
        save(Suite(name="train", tasks=TASKS), folder.path / "train.jsonl")
        write_jsonl(folder.path / "reference-train.jsonl", [gold_attempt(one) for one in TASKS])
        folder.outputs["train"] = "train.jsonl"
    with pytest.raises(SetupError, match="collected from another hub than demo"):
        drain(grpo_step(Tune(), store, runtime, STOCK, folder.run, trained))
    started = []

    @contextmanager
    def workshop(config):
        started.append(config.hub)
        yield Adding(), Box()

    whole, _ = learning(2)
    monkeypatch.setattr(feedback, "grpo", whole)
    monkeypatch.setattr(feedback, "workshop", workshop)
    config = Tune(hub=str(hub), grpo=GRPO(iterations=2, tasks=2, group=2, turns=2))
    run = drain(grpo_step(config, store, runtime, STOCK, folder.run, trained))
    assert started == [str(hub)]  # once for all iterations
    assert run.metrics["rollouts"][0]["turns"] == 2.0


class Adding:
    def specs(self):
        return (ADD,)

    def call(self, call):
        from llm_tuner.types import ToolResult

        return ToolResult(content="added")


class Box:
    def restore(self):
        return


def test_a_runtime_without_adapters_gets_a_merged_model(places, monkeypatch):
    store, _, collected, trained = places

    class Ollama(Runtime):
        kind = "ollama"

        def install(self, name, gguf, lineage):
            yield from ()
            return Served(reference=f"{name}:candidate", gguf=gguf, sha256=gguf.read_text())

    def merge(base, adapter, out):
        yield from ()
        out.write_text(f"merged {adapter.joinpath('weights').read_text()}")

    monkeypatch.setattr(feedback, "merge", merge)
    runtime = Ollama()
    drain(pairs_step(Tune(name="mine", pairing={"own_attempts": 1}), store, runtime, STOCK, collected, trained))
    assert runtime.opened == [("mine-policy:candidate", (), 1, None)]


def test_another_server_rolls_out_where_one_is_named(places, monkeypatch):
    store, runtime, collected, trained = places
    loaded = []

    class Server(Model):
        def __init__(self, name, url=""):
            self.name, self.url = name, url

        @contextmanager
        def with_adapter(self, name, folder):
            loaded.append((name, folder.joinpath("weights").read_text()))
            yield Server(name, self.url)

        def close(self):
            return

    whole, given = learning(2)
    monkeypatch.setattr(feedback, "grpo", whole)
    monkeypatch.setattr(feedback, "OpenAICompatible", Server)
    config = Tune(name="mine", rollouts_url="http://there/v1", grpo=GRPO(iterations=2, tasks=3, group=2))
    drain(grpo_step(config, store, runtime, STOCK, collected, trained))
    assert loaded == [("mine-policy-0", "sft+0"), ("mine-policy-1", "sft+1")]
    assert [len(rollouts) for rollouts in given] == [6, 6]
    assert runtime.opened == [("stock", (), 1, None)] * 2  # it shows the prompts


def test_held_out_tasks_are_refused_before_anything_is_asked(places):
    store, runtime, _, trained = places
    with store.write("collect", {}, {"base": "base-hash"}) as folder:
        save(Suite(name="train", tasks=(task(1, "held-out"),)), folder.path / "train.jsonl")
        write_jsonl(folder.path / "reference-train.jsonl", [])
        folder.outputs["train"] = "train.jsonl"
    for step in (pairs_step, grpo_step):
        with pytest.raises(DataError, match="held-out side"):
            drain(step(Tune(execute=False), store, runtime, STOCK, folder.run, trained))
    assert runtime.opened == []


@pytest.mark.weights
@pytest.mark.timeout(1800)
def test_with_every_part_real_a_model_learns_from_its_own_tries_and_then_shows_its_mistakes(tmp_path, qwen_gguf):
    """The served 0.5B tries two tasks, learns once, and is served again with what it learned to make pairs."""
    pytest.importorskip("torch")
    store, runtime = Store(tmp_path / "runs"), EmbeddedRuntime(Versions(tmp_path / "models"), context=1024)
    stock = Served(reference="stock", gguf=qwen_gguf, sha256="base-hash")
    vague = [task(n, text=f"{n}, please: the function, or just explain it?") for n in (3, 5)]
    with store.write("collect", {"hub": hub_hash("demo"), "execute": False}, {"base": "base-hash"}) as folder:
        save(Suite(name="train", tasks=tuple(vague)), folder.path / "train.jsonl")
        write_jsonl(folder.path / "reference-train.jsonl", [reference(one) for one in vague])
        folder.outputs["train"] = "train.jsonl"
    recipe = GRPO(
        iterations=1, tasks=2, group=4, turns=1, temperature=1.2, precision="float32", r=4, alpha=8, max_seq_length=400
    )
    config = Tune(grpo=recipe, answer_tokens=40, pairing={"own_attempts": 2})
    learned = drain(grpo_step(config, store, runtime, stock, folder.run))
    root = store.folder(learned)
    rollouts = read_jsonl(root / "rollouts" / "000" / "rollouts.jsonl", Rollout)
    assert len(rollouts) == 8
    assert len({rollout.rows[0].completion_ids for rollout in rollouts}) > 2
    assert learned.metrics["rollouts"][0]["with_signal"] > 0  # some write the call as text, some no call at all
    assert len({rollout.rows[0].prompt_ids for rollout in rollouts}) == 2
    assert not list(root.glob("rollouts/*/policy*"))
    assert (root / "model.gguf").stat().st_size > qwen_gguf.stat().st_size
    assert learned.metrics["rollouts"][0]["rollouts"] == 8
    assert learned.metrics["steps"] == 1
    paired = drain(pairs_step(config, store, runtime, stock, folder.run, learned))
    pairs = read_jsonl(store.folder(paired) / "pairs.jsonl", Pair)
    assert {pair.chosen.task_id for pair in pairs} <= {one.id for one in vague}
    assert all(pair.chosen.prompt_ids == pair.rejected.prompt_ids for pair in pairs)
    assert all(pair.chosen.completion.startswith("<tool_call>") for pair in pairs)
    assert paired.metrics["own"]["made"] == 2
