"""After a first training: what the model does itself is judged, and it learns from that by preferences (DPO) or by
reinforcement (GRPO).

Not the maths (training) and no rules of their own about what is right (scoring). The rule it protects: the model that
tries is the one in training, as the runtime serves it; training itself never reaches a server.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from pathlib import Path

from llm_tuner.data.collect import collect
from llm_tuner.data.pairs import build_pairs
from llm_tuner.data.rollouts import Rollouts, roll_out
from llm_tuner.data.rows import refuse_untrainable
from llm_tuner.loop.config import Tune
from llm_tuner.loop.steps import export, hub_hash, workshop
from llm_tuner.models.openai_compatible import OpenAICompatible
from llm_tuner.models.runtimes import Runtime, Served
from llm_tuner.models.vocabulary import indistinct_tokens
from llm_tuner.store import RunFolder, Store, read_json, read_jsonl, write_atomic, write_jsonl
from llm_tuner.store.suite import load as load_suite
from llm_tuner.training.dpo import dpo
from llm_tuner.training.export import adapter_gguf, merge
from llm_tuner.training.grpo import grpo
from llm_tuner.training.launch import Job, launched
from llm_tuner.types import (
    Attempt,
    Backend,
    DataError,
    Event,
    Json,
    Pair,
    Renderer,
    Rollout,
    Run,
    SetupError,
    Task,
    Toolbox,
    canonical_json,
)

BASE = "base"
"""Instead of a run: the untuned base model."""


def find_start(store: Store, which: str, stock: Served) -> Run | None:
    """The run whose adapter is gone on from: by its id, the newest one on this base for "last", None for "base".

    Raises DataError with what there is.
    """
    if which == BASE:
        return None
    runs = [run for run in store.runs() if "adapter" in run.outputs and run.inputs.get("base") == stock.sha256]
    for run in runs:
        if which in ("last", run.id):
            return run
    found = ", ".join(run.id for run in runs[:5]) or "none"
    raise DataError(
        f'No training run "{which}" on this base (found: {found}). Train one first: llm-tuner train; or start from the '
        f"base itself: --from {BASE}"
    )


def pairs_step(
    config: Tune, store: Store, runtime: Runtime, stock: Served, collected: Run, start: Run | None = None
) -> Generator[Event, None, Run]:
    """The model of the run `start` (else the base) tries some training tasks; its mistakes, and made ones where it has
    none, become pairs."""
    inputs = _inputs(runtime, stock, start) | {"collect": collected.id}
    key: dict[str, Json] = config.pairing.model_dump(mode="json")
    done = store.find("pairs", key, inputs)
    if done is not None:
        yield Event(step="pairs", message=f"reusing {done.id}", data={"reused": done.id})
        return done
    tasks, references = _training_tasks(store, collected)
    with store.write("pairs", key, inputs, seed=config.pairing.seed) as folder:
        policy, adapters = yield from _policy(config, runtime, stock, _adapter(store, start), folder.path)
        sample = by_catalogue(_sampled(tasks, config.pairing.own_attempts, config.pairing.seed))
        with runtime.open(policy, adapters=adapters) as model:
            own = yield from collect(sample, None, folder.path / "own.jsonl", backend=model)
            attempts = [*references, *_stocks_own(store, collected, start), *own]
            tags = indistinct_tokens(stock.gguf)
            pairs, counts = yield from build_pairs(config.pairing, tasks, attempts, model, tags)
        _drop_policies(folder.path)
        write_jsonl(folder.path / "pairs.jsonl", pairs)
        folder.metrics.update(counts)
        folder.metrics["own"] = {"made": len(own), "right": sum(bool(a.verdict and a.verdict.ok) for a in own)}
        folder.outputs.update(pairs="pairs.jsonl", own="own.jsonl")
    assert folder.run is not None
    return folder.run


def dpo_step(
    config: Tune, store: Store, runtime: Runtime, stock: Served, paired: Run, start: Run | None = None
) -> Generator[Event, None, Run]:
    """Preference optimisation on a pairs run, from the adapter of the run `start`; adapter and merged model as GGUF."""
    inputs = _inputs(runtime, stock, start) | {"pairs": paired.id}
    key: dict[str, Json] = config.dpo.model_dump(mode="json")
    done = store.find("dpo", key, inputs)
    if done is not None:
        yield Event(step="train", message=f"reusing {done.id}", data={"reused": done.id})
        return done
    with store.write("dpo", key, inputs, seed=config.dpo.seed) as folder:
        if not (folder.path / "adapter").exists():
            file = store.folder(paired) / paired.outputs["pairs"]
            if config.processes > 1:
                job = Job(
                    recipe="dpo", config=config.dpo.model_dump(mode="json"), gguf=stock.gguf, rows=file,
                    out=folder.path, start=_adapter(store, start),
                )  # fmt: skip
                yield from launched(job, config.processes)
            else:
                yield from dpo(
                    config.dpo, stock.gguf, read_jsonl(file, Pair), folder.path, start=_adapter(store, start)
                )
        yield from _finished(stock, folder)
    assert folder.run is not None
    return folder.run


def grpo_step(
    config: Tune, store: Store, runtime: Runtime, stock: Served, collected: Run, start: Run | None = None
) -> Generator[Event, None, Run]:
    """Reinforcement on the training tasks, from the adapter of the run `start`: each iteration the runtime serves the
    adapter of that moment and tries tasks, with tools that really run where they did when the run collected."""
    inputs = _inputs(runtime, stock, start) | {"collect": collected.id}
    config = config.model_copy(update={"execute": config.execute and bool(collected.config.get("execute", True))})
    settings = config.model_dump(mode="json", include={"answer_tokens", "execute", "rollouts_url"})
    key: dict[str, Json] = {**config.grpo.model_dump(mode="json"), **settings}
    refuse_other_hub(config, collected)
    done = store.find("grpo", key, inputs)
    if done is not None:
        yield Event(step="train", message=f"reusing {done.id}", data={"reused": done.id})
        return done
    tasks, _ = _training_tasks(store, collected)
    with store.write("grpo", key, inputs, seed=config.grpo.seed) as folder:
        if not (folder.path / "adapter").exists():
            with ExitStack() as stack:
                tries = _Tries(config, runtime, stock, tasks, folder.path / "rollouts", stack)
                yield from grpo(config.grpo, stock.gguf, tries.roll_out, folder.path, start=_adapter(store, start))
        yield from _finished(stock, folder)
        folder.outputs["rollouts"] = "rollouts"
        summaries = [read_json(path) for path in sorted((folder.path / "rollouts").glob("*/summary.json"))]
        folder.metrics["rollouts"] = summaries
    assert folder.run is not None
    return folder.run


def refuse_other_hub(config: Tune, collected: Run) -> None:
    """Tasks can be tried only with the tools that they were made for. Raises SetupError."""
    if config.execute and config.grpo.turns > 1 and collected.config.get("hub", "demo") != hub_hash(config.hub):
        raise SetupError(
            f"{collected.id} was collected from another hub than {config.hub}. Name that one (--hub), choose another "
            "collect run (--collect), or try tasks without tools (--no-execute)."
        )


class _Tries:
    """The rollouts of the iterations: each in a folder of its own, which a killed run finds again."""

    def __init__(
        self, config: Tune, runtime: Runtime, stock: Served, tasks: Sequence[Task], out: Path, stack: ExitStack
    ) -> None:
        self._config, self._runtime, self._stock, self._out = config, runtime, stock, out
        self._tasks = _sampled(tasks, len(tasks), config.grpo.seed)
        self._tags = indistinct_tokens(stock.gguf)
        self._stack = stack
        self._workshop: tuple[Toolbox, Callable[[], None]] | None = None

    def roll_out(self, iteration: int, adapter: Path) -> Generator[Event, None, Sequence[Rollout]]:
        """The tasks of this iteration, tried by the model with this adapter."""
        folder = self._out / f"{iteration:03d}"
        if (folder / "summary.json").exists():
            yield Event(step="rollouts", message=f"those of iteration {iteration} are there")
            return tuple(read_jsonl(folder / "rollouts.jsonl", Rollout))
        folder.mkdir(parents=True, exist_ok=True)
        config, grpo = self._config, self._config.grpo
        settings = Rollouts(
            group=grpo.group,
            turns=grpo.turns,
            temperature=grpo.temperature,
            max_tokens=config.answer_tokens,
            groups_at_a_time=config.groups_at_a_time,
            seed=grpo.seed + iteration,
        )
        toolbox, restore = self._tools() if config.execute and grpo.turns > 1 else (None, _nothing)
        with ExitStack() as stack:
            backend, renderer = yield from self._served(iteration, adapter, folder, stack)
            rollouts, summary = yield from roll_out(
                settings,
                by_catalogue(self._of(iteration)),
                backend,
                renderer,
                folder / "rollouts.jsonl",
                toolbox=toolbox,
                restore=restore,
                indistinct=self._tags,
            )
        _drop_policies(folder)
        write_atomic(folder / "summary.json", canonical_json(summary))
        return rollouts

    def _served(
        self, iteration: int, adapter: Path, folder: Path, stack: ExitStack
    ) -> Generator[Event, None, tuple[Backend, Renderer]]:
        """What answers, and what shows its prompts: the same model, unless another server rolls out."""
        config, slots = self._config, self._config.grpo.group
        if config.rollouts_url:
            server = OpenAICompatible(config.name, config.rollouts_url)
            stack.callback(server.close)
            policy = stack.enter_context(server.with_adapter(f"{config.name}-policy-{iteration}", adapter))
            yield Event(step="rollouts", message=f"{policy.name} at {server.url}")
            return policy, stack.enter_context(self._runtime.open(self._stock))
        served, adapters = yield from _policy(config, self._runtime, self._stock, adapter, folder)
        # A longer conversation than a row may be is of no use to training.
        window = config.grpo.max_seq_length + config.answer_tokens
        model = stack.enter_context(self._runtime.open(served, adapters=adapters, slots=slots, context=window))
        return model, model

    def _of(self, iteration: int) -> list[Task]:
        """Each iteration has other tasks until all had their turn."""
        count = min(self._config.grpo.tasks, len(self._tasks))
        return [self._tasks[(iteration * count + n) % len(self._tasks)] for n in range(count)]

    def _tools(self) -> tuple[Toolbox, Callable[[], None]]:
        """The hub in its box, started for the first iteration that needs it and kept for all."""
        if self._workshop is None:
            hub, box = self._stack.enter_context(workshop(self._config))
            self._workshop = hub, box.restore
        return self._workshop


def _nothing() -> None:
    return


def _inputs(runtime: Runtime, stock: Served, start: Run | None) -> dict[str, str]:
    return {"base": stock.sha256, "start": start.id if start is not None else BASE, **runtime.identity()}


def _adapter(store: Store, start: Run | None) -> Path | None:
    return store.folder(start) / start.outputs["adapter"] if start is not None else None


def _training_tasks(store: Store, collected: Run) -> tuple[Sequence[Task], list[Attempt]]:
    """The training tasks of a collect run and their reference attempts. Raises DataError for what must not be trained
    on."""
    source = store.folder(collected)
    tasks = load_suite(source / collected.outputs["train"]).tasks
    refuse_untrainable(tasks)
    return tasks, read_jsonl(source / "reference-train.jsonl", Attempt)


def _stocks_own(store: Store, collected: Run, start: Run | None) -> list[Attempt]:
    """What the untuned base tried when the run collected, where the base is what is gone on from."""
    file = store.folder(collected) / "own.jsonl"
    return read_jsonl(file, Attempt) if start is None and file.exists() else []


def _sampled(tasks: Sequence[Task], count: int, seed: int) -> list[Task]:
    return random.Random(seed).sample(list(tasks), min(count, len(tasks)))


def by_catalogue(tasks: Sequence[Task]) -> list[Task]:
    """Tasks of one catalogue one after the other: a server keeps its tokens in the prompt cache."""
    return sorted(tasks, key=lambda task: [tool.fingerprint for tool in task.tools])


def _policy(
    config: Tune, runtime: Runtime, stock: Served, adapter: Path | None, work: Path
) -> Generator[Event, None, tuple[Served, tuple[Path, ...]]]:
    """What the runtime is to open for base and adapter: llama.cpp takes the adapter beside the base; into any other
    runtime a merged model is installed, under a name of its own."""
    if adapter is None:
        return stock, ()
    if runtime.kind == "embedded":
        return stock, (adapter_gguf(stock.gguf, adapter, work / "policy-adapter.gguf"),)
    merged = work / "policy.gguf"
    yield from merge(stock.gguf, adapter, merged)
    return (yield from runtime.install(f"{config.name}-policy", merged, {})), ()


def _drop_policies(work: Path) -> None:
    for path in work.glob("policy*.gguf"):
        path.unlink()


def _finished(stock: Served, folder: RunFolder) -> Generator[Event, None, None]:
    folder.metrics.update(read_json(folder.path / "metrics.json"))
    yield from export(stock.gguf, folder.path)
    folder.outputs.update(adapter="adapter", adapter_gguf="adapter.gguf", model="model.gguf", curve="curve.jsonl")
