"""One round of the loop, and several: the order of the steps, the gate, promotion and what it ends with.

The rule it protects: at every moment what serves is the best that passed the gate, so that a round which is killed, or
whose later methods make nothing better, loses nothing.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from pathlib import Path

from llm_tuner.data.dataset import file_hash
from llm_tuner.data.overlap import Reference
from llm_tuner.loop import feedback, own_data
from llm_tuner.loop.config import Method, Tune
from llm_tuner.loop.gate import decide
from llm_tuner.loop.steps import (
    BESIDE,
    collect_step,
    evaluate_step,
    general_step,
    hub_hash,
    parity_step,
    promote_step,
    report,
    stock_step,
    train_step,
)
from llm_tuner.models.chat_template import chat_template
from llm_tuner.models.runtimes import Runtime, Served
from llm_tuner.store import Store
from llm_tuner.store.suite import load as load_suite
from llm_tuner.types import Decision, EmptyData, Event, Json, Report, Run, Value, content_hash

SEEDS = 100
"""How far apart the seeds of two rounds' training tasks are; those of one round's suites are closer."""


class Stage(Value):
    """What one method of a round made, and what the gate said of it. `train` is the run's id."""

    method: Method
    train: str
    decision: Decision


class Outcome(Value):
    """What a round of the loop ends with. Paths are absolute; `unseen` reports are None without unseen tools.

    `before` is what served when the round was decided first, `after` and `decision` are of the last candidate that
    passed, or of the last one where none did. `stages` are all of them, by method.
    """

    before: Report
    after: Report
    unseen_before: Report | None = None
    unseen_after: Report | None = None
    decision: Decision
    stages: tuple[Stage, ...] = ()
    stable: str
    minutes: float
    files: dict[str, str]


def tune(
    config: Tune, store: Store, runtime: Runtime, *, promote: bool = True, start: Run | None = None
) -> Generator[Event, None, Outcome]:
    """Collect, measure; then for each method: train, export, install, measure, decide, and promote or leave what
    serves. A later method goes on from the one before it and is held against the best until then.

    Without `promote` the best candidate that passed waits for somebody who promotes it. The first method goes on from
    the adapter of `start`, where that is given.
    """
    clock = time.monotonic()
    hub_hash(config.hub)  # a missing file is told before anything is fetched
    stock = yield from stock_step(config, runtime)
    incumbent = runtime.stable(config.name) or stock
    collected = yield from collect_step(config, store, runtime, stock)
    best = yield from evaluate_step(store, runtime, incumbent, collected)
    written: list[tuple[Method, Run]] = []
    first, passed, waiting = start, None, None
    for method in config.methods:
        start = yield from method_step(method, config, store, runtime, stock, collected, start)
        first = start if method == "sft" else first
        assert first is not None
        done = _promoted_before(store, config, start)
        if done is not None and incumbent != stock:
            yield Event(step="promote", message=f"this was promoted before: {done.id}", data={"reused": done.id})
            written.append((method, done))
            continue
        lineage = _lineage(config, store, stock, collected, start)
        file = store.folder(start) / "model.gguf"
        waiting = yield from runtime.install(config.name, file, lineage)
        yield from parity_step(store, runtime, waiting, collected, first)
        after = yield from evaluate_step(store, runtime, waiting, collected)
        decision = yield from _decided(config, store, runtime, stock, waiting, best, after)
        runtime.note(waiting, _measured(store, after, decision))
        suite = load_suite(store.folder(collected) / collected.outputs["held-out"])
        written.append((method, promote_step(store, config, suite, best, after, start, decision)))
        if decision.promote:
            best, passed = after, (file, lineage)
            if promote:
                runtime.promote(config.name)
        elif passed is not None and not promote:
            yield from runtime.install(config.name, *passed)
    serving = f"{config.name}:stable" if runtime.stable(config.name) else "stock"
    version = runtime.aliases(config.name).get("stable")
    return _outcome(store, written, f"{serving} = {version}" if version else serving, clock)


def rounds(
    config: Tune,
    count: int,
    store: Store,
    runtime: Runtime,
    journal: Path,
    *,
    references: dict[str, list[Reference]] | None = None,
) -> Generator[Event, None, tuple[Outcome, ...]]:
    """Several rounds, each with training tasks of its own and with what lies in the journal by then, going on from the
    adapter that was promoted last. The held-out tasks stay the same."""
    outcomes: list[Outcome] = []
    start: Run | None = None
    for number in range(count):
        yield Event(step="round", message=f"round {number + 1} of {count}", done=number, total=count, unit="rounds")
        data = config.data
        try:
            recorded = yield from own_data.recorded_step(store, journal, references)
            data = (*data, store.folder(recorded) / own_data.SET)
        except EmptyData as error:
            yield Event(step="recorded", message=str(error))
        train = config.train.model_copy(update={"seed": config.train.seed + SEEDS * number})
        settings = config.model_copy(update={"data": data, "train": train})
        outcome = yield from tune(settings, store, runtime, start=start)
        outcomes.append(outcome)
        for stage in outcome.stages:
            if stage.decision.promote:
                start = next(run for run in store.runs() if run.id == stage.train)
    return tuple(outcomes)


def method_step(
    method: Method, config: Tune, store: Store, runtime: Runtime, stock: Served, collected: Run, start: Run | None
) -> Generator[Event, None, Run]:
    """One training of whatever method, from the adapter of the run `start` or from the base."""
    if method == "sft":
        return (yield from train_step(config, store, runtime, stock, collected, start))
    if method == "grpo":
        return (yield from feedback.grpo_step(config, store, runtime, stock, collected, start))
    paired = yield from feedback.pairs_step(config, store, runtime, stock, collected, start)
    return (yield from feedback.dpo_step(config, store, runtime, stock, paired, start))


def _decided(
    config: Tune, store: Store, runtime: Runtime, stock: Served, candidate: Served, before: Run, after: Run
) -> Generator[Event, None, Decision]:
    """The gate. General skill is asked about last, and only of a candidate that passes otherwise: it takes minutes."""
    beside = [name for name in BESIDE if name in before.outputs and name in after.outputs]
    others = {name: (report(store, before, name), report(store, after, name)) for name in beside}
    pair = report(store, before), report(store, after)
    decision = decide(*pair, config.rules, others)
    if not (decision.promote and config.general):
        return decision
    was = yield from general_step(store, runtime, stock)
    now = yield from general_step(store, runtime, candidate)
    general = report(store, was, "general"), report(store, now, "general")
    return decide(*pair, config.rules, others, general)


def _lineage(config: Tune, store: Store, stock: Served, collected: Run, trained: Run) -> dict[str, Json]:
    """Where a version comes from: enough to make it again, and to say how it differs from another."""
    runs = {run.id: run for run in store.runs()}
    chain = [trained]
    while (earlier := chain[0].inputs.get("pairs") or chain[0].inputs.get("start", feedback.BASE)) != feedback.BASE:
        chain.insert(0, runs[earlier])
    made_of = (
        store.folder(run) / run.outputs[name] for run in chain for name in ("rows", "pairs") if name in run.outputs
    )
    return {
        "base": stock.sha256,
        "runs": [collected.id, *(run.id for run in chain)],
        "metrics": trained.metrics,
        "config": config.model_dump(mode="json"),
        "data": {
            "examples": collected.metrics,
            "hub": collected.config["hub"],
            "rows": [file_hash(file)[:16] for file in made_of],
        },
        "template": content_hash(chat_template(stock.gguf)),
        "software": trained.versions,
    }


def _measured(store: Store, after: Run, decision: Decision) -> dict[str, Json]:
    found = report(store, after)
    keys = ("native_rate", "selection", "parameters", "no_call")
    return {
        "run": after.id,
        "rates": {key: [found.rates[key].value, found.rates[key].low, found.rates[key].high] for key in keys},
        "n": found.n,
        "latency_p50_ms": found.latency.p50_ms,
        "promote": decision.promote,
        "sentences": list(decision.sentences),
    }


def _promoted_before(store: Store, config: Tune, trained: Run) -> Run | None:
    """The decision that promoted this very training: asking for the round again must not compare it with itself."""
    for run in store.runs("promote"):
        same = run.inputs["train"] == trained.id and run.config["name"] == config.name
        if same and run.config["decision"]["promote"]:
            return run
    return None


def _outcome(store: Store, written: Sequence[tuple[Method, Run]], stable: str, clock: float) -> Outcome:
    stages = tuple(
        Stage(method=method, train=run.inputs["train"], decision=Decision.model_validate(run.config["decision"]))
        for method, run in written
    )
    promoted = [run for (_, run), stage in zip(written, stages, strict=True) if stage.decision.promote]
    chosen = (promoted or [run for _, run in written])[-1]
    runs = {run.id: run for run in store.runs("evaluate")}
    before, after = runs[written[0][1].inputs["before"]], runs[chosen.inputs["after"]]
    unseen = "unseen" in after.outputs and "unseen" in before.outputs
    return Outcome(
        before=report(store, before),
        after=report(store, after),
        unseen_before=report(store, before, "unseen") if unseen else None,
        unseen_after=report(store, after, "unseen") if unseen else None,
        decision=Decision.model_validate(chosen.config["decision"]),
        stages=stages,
        stable=stable,
        minutes=round((time.monotonic() - clock) / 60, 1),
        files={name: str(store.folder(chosen) / name) for name in chosen.outputs},
    )
