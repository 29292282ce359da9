"""One small round of the loop with every part real: weights, llama.cpp, tool servers, training, Ollama."""

import time

import pytest

from llm_tuner.data.dataset import write_manifest
from llm_tuner.data.synthesize import Mix
from llm_tuner.loop import Tune, find_run, tune
from llm_tuner.models.runtimes import EmbeddedRuntime, OllamaRuntime, Served
from llm_tuner.models.versions import Versions
from llm_tuner.scoring import gold_attempt, score
from llm_tuner.store import Store, append_jsonl
from llm_tuner.store.suite import Suite, load, save
from llm_tuner.training.sft import SFT
from llm_tuner.types import ExactCalls, Message, Task, TemplateMismatch, ToolCall, ToolSpec, UnknownModel

pytest.importorskip("torch")

CONFIG = Tune(
    name="small",
    train=Mix(
        tasks=24,
        catalogues=2,
        sizes=(3, 3),
        several=0.0,
        no_call=0.1,
        unseen=("git_show", "fetch", "git_log", "git_branch"),
    ),
    held_out=Mix(tasks=10, catalogues=1, sizes=(3, 3), several=0.0),
    unseen_tasks=2,
    own_attempts=2,
    sft=SFT(epochs=2, batch=1, accumulation=6, learning_rate=5e-4),
)

pytestmark = [pytest.mark.weights, pytest.mark.servers]


def drain(steps, seen=None):
    try:
        while True:
            event = next(steps)
            if seen is not None:
                seen.append(event)
    except StopIteration as stop:
        return stop.value


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("round")
    return Store(root / "runs"), EmbeddedRuntime(Versions(root / "models"), context=4096)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The round, with a data set of one's own: two examples to learn, two to measure."""
    folder = tmp_path_factory.mktemp("own")
    tools = tuple(
        ToolSpec(name=name, parameters={"type": "object", "properties": {"city": {"type": "string"}}})
        for name in ("get_weather", "get_map")
    )
    for split, cities in (("train", ("Paris", "Lima")), ("held-out", ("Oslo", "Bern"))):
        tasks = []
        for city in cities:
            call = ToolCall(name="get_weather", arguments={"city": city})
            asked = Message(role="user", text=f"What is the weather like in {city}?")
            expect = ExactCalls(calls=(call,))
            task = Task(messages=(asked,), tools=tools, expect=expect, category="single", language="en", split=split)
            attempt = gold_attempt(task)
            append_jsonl(folder / "attempts.jsonl", attempt.model_copy(update={"verdict": score(task, attempt)}))
            tasks.append(task)
        save(Suite(name=split, tasks=tuple(tasks)), folder / f"{split}.jsonl")
    write_manifest(folder, {})
    return CONFIG.model_copy(update={"data": (folder,)})


@pytest.fixture(scope="module")
def outcome(places, config):
    return drain(tune(config, *places))


@pytest.mark.timeout(1500)
def test_the_stock_model_calls_nothing_natively_and_the_tuned_one_does(outcome):
    assert outcome.before.rates["native_rate"].value == 0.0
    assert outcome.after.rates["native_rate"].value > 0.3  # 24 rows are not enough for more, on any machine
    assert outcome.before.n == outcome.after.n == 10
    assert outcome.before.verdicts.keys() == outcome.after.verdicts.keys()
    assert outcome.before.model_sha256 != outcome.after.model_sha256


def test_every_step_left_a_run_and_lineage_leads_back_to_the_data(outcome, places):
    store, runtime = places
    kinds = [run.kind for run in store.runs()]
    assert set(kinds) - {"general"} == {"collect", "evaluate", "promote", "train"}
    assert kinds.count("evaluate") == 2
    # General skill is asked of a candidate that all other rules speak for: of the stock model, and of the candidate.
    others = [check.passed for check in outcome.decision.checks if not check.rule.startswith("general")]
    assert kinds.count("general") == (2 if all(others) else 0)
    version = runtime.versions.history("small")[-1]
    assert version.lineage["runs"] == [find_run(store, "collect", "last").id, find_run(store, "train", "last").id]
    collected = find_run(store, "collect", "last")
    assert collected.metrics["train"] == {"made": 24, "accepted": 24}
    for name in ("report.html", "report.md", "report.ja.html", "decision.json"):
        assert outcome.files[name]
    html = (store.folder(find_run(store, "promote", "last")) / "report.html").read_text()
    assert "<svg" in html
    assert "http://" not in html.split("<body")[0]


def test_data_of_ones_own_is_learned_and_its_held_out_side_measured(outcome, places):
    store, _ = places
    collected = find_run(store, "collect", "last")
    assert collected.metrics["recorded"] == {"made": 4, "accepted": 2, "held_out": 2}
    rows = (store.folder(find_run(store, "train", "last")) / "rows.jsonl").read_text()
    assert "weather like in Lima" in rows
    assert "weather like in Oslo" not in rows
    (check,) = (check for check in outcome.decision.checks if check.rule == "recorded not worse")
    assert "2 tasks" in check.sentence or not check.passed


def test_the_gate_decides_what_serves(outcome, places):
    aliases = places[1].versions.aliases("small")
    assert ("stable" in aliases) == outcome.decision.promote
    assert ("candidate" in aliases) != outcome.decision.promote
    with pytest.raises(UnknownModel, match="no earlier stable"):
        places[1].rollback("small")


def test_a_second_run_reuses_everything_and_ends_the_same(outcome, places, config):
    seen = []
    start = time.monotonic()
    again = drain(tune(config, *places), seen)
    assert (again.before, again.after) == (outcome.before, outcome.after)
    assert again.decision == outcome.decision
    assert {event.step for event in seen if "reused" in event.data} >= {"collect", "train", "evaluate"}
    assert time.monotonic() - start < 90


def test_another_base_than_was_trained_on_is_caught_before_it_is_measured(outcome, places, smol_gguf):
    """The parity step: a model whose template differs from the rows is refused."""
    from llm_tuner.loop import parity_step

    store, runtime = places
    runs = find_run(store, "collect", "last"), find_run(store, "train", "last")
    other = Served(reference="other", gguf=smol_gguf, sha256="x")
    with pytest.raises(TemplateMismatch, match="does not render what it was trained on"):
        drain(parity_step(store, runtime, other, *runs))


@pytest.mark.ollama
@pytest.mark.timeout(1500)
def test_the_same_file_through_a_real_ollama_server(outcome, places, ollama_url):
    """Stock: no tool_calls. Tuned: tool_calls, of the right tool. Then promote twice and roll back, by tags."""
    store, _ = places
    trained = find_run(store, "train", "last")
    runtime = OllamaRuntime(ollama_url, context=4096)
    base = EmbeddedBase(store, trained)
    stock = drain(runtime.stock("small", base.gguf, base.sha256))
    tuned = drain(runtime.install("small", store.folder(trained) / "model.gguf", {}))
    suite = load(store.folder(find_run(store, "collect", "last")) / "train.jsonl")
    asked = [task for task in suite.tasks if isinstance(task.expect, ExactCalls)][:4]
    with runtime.open(stock) as model:
        assert [model.chat(task.messages, task.tools).message.tool_calls for task in asked] == [()] * 4
    with runtime.open(tuned) as model:
        made = [model.chat(task.messages, task.tools).message.tool_calls for task in asked]
    wanted = [task.expect.calls[0].name for task in asked]
    assert sum(bool(calls) and calls[0].name == name for calls, name in zip(made, wanted, strict=True)) >= 2
    first = runtime.promote("small")
    with pytest.raises(UnknownModel, match="no candidate"):
        runtime.promote("small")
    with pytest.raises(UnknownModel, match="no earlier stable"):
        runtime.rollback("small")
    drain(runtime.install("small", base.gguf, {}))
    second = runtime.promote("small")
    assert second != first
    assert runtime.rollback("small") == first


class EmbeddedBase:
    """The base file that a train run was made of."""

    def __init__(self, store, trained):
        from llm_tuner.models.sources import fetch

        self.gguf = drain(fetch(CONFIG.base))
        self.sha256 = trained.inputs["base"]
