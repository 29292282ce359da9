"""The loop: the only place that knows the order of the steps, the gate, promotion and rollback.

Each step reads finished runs and writes one new one (store.py); a step that was done with the same inputs is not done
again. `decide` is pure: two reports and rules in, a decision with sentences out. What comes after a first training,
preferences and reinforcement, is in feedback.py.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from llm_tuner.data.box import Box, demo_box, empty_box
from llm_tuner.data.collect import collect, usable
from llm_tuner.data.dataset import file_hash
from llm_tuner.data.pairs import Pairing
from llm_tuner.data.rows import build_rows, parity, refuse_untrainable
from llm_tuner.data.synthesize import Mix, synthesize, synthesize_unseen
from llm_tuner.evaluation.intervals import paired
from llm_tuner.evaluation.measure import measure
from llm_tuner.evaluation.render import failures, to_html, to_markdown
from llm_tuner.evaluation.wording import Language
from llm_tuner.loop import own_data
from llm_tuner.models.chat_template import chat_template
from llm_tuner.models.resources import machine
from llm_tuner.models.runtimes import Runtime, Served
from llm_tuner.models.sources import fetch
from llm_tuner.models.sources.weights import sha256_of
from llm_tuner.models.vocabulary import indistinct_tokens
from llm_tuner.store import RunFolder, Store, read_json, read_jsonl, write_atomic, write_jsonl
from llm_tuner.store.suite import Suite
from llm_tuner.store.suite import load as load_suite
from llm_tuner.store.suite import save as save_suite
from llm_tuner.tools.hub import Hub
from llm_tuner.tools.servers import demo_servers, load
from llm_tuner.training.dpo import DPO
from llm_tuner.training.export import adapter_gguf, merge
from llm_tuner.training.grpo import GRPO
from llm_tuner.training.launch import Job, launched
from llm_tuner.training.rows import mixed, read_rows
from llm_tuner.training.search import Space
from llm_tuner.training.sft import SFT, Curve, sft
from llm_tuner.types import (
    Attempt,
    Check,
    DataError,
    Decision,
    EmptyData,
    Event,
    Json,
    Report,
    Run,
    SetupError,
    Task,
    TemplateMismatch,
    Value,
    canonical_json,
    content_hash,
)

BESIDE = ("unseen", own_data.SUITE)
"""Suites besides the held-out one: a candidate that is worse on them is refused, none is promoted for them."""

DEMO_UNSEEN = ("git_show", "git_create_branch", "describe_table")
"""Tools of the demo's hub that stand in no training task: what transfers to new tools is measured on them."""


class Rules(Value):
    """What a candidate must show to be promoted. Rates are 0..1, `slowdown` is median latency over the incumbent's.

    Selection and parameters must rise by `min_gain` or more; where that is 0 or less, no change is enough as long as
    the 95 % interval of the difference lies above -`margin`.
    """

    min_native: float = Field(0.95, ge=0, le=1)
    min_gain: float = Field(0.0, ge=-1, le=1)
    margin: float = Field(0.1, ge=0, le=1)
    slowdown: float = Field(1.5, gt=0)


class Tune(Value):
    """One round of the loop. `hub` is "demo" or the path of an mcpServers JSON file; `execute` false keeps collecting
    from calling the servers (calls are then verified by their schema only); `seed_folder` is copied into the box.
    `pairing`, `dpo`, `grpo` are of what comes after a first training (feedback.py). An answer in a rollout has
    `answer_tokens` tokens at most; `groups_at_a_time` groups are asked at once where no prompt can be forked. With
    `rollouts_url` a vLLM server there, which serves the same base, is asked instead of the runtime. SFT and DPO run in
    `processes` processes on this machine. `keep`: by category, the share of the training tasks that sft trains on (all
    where none is named). `search`: between what to search. `data`: folders of data sets (recorded traffic, imports)
    whose training side is learned too; `recorded_tasks` of their held-out side are a suite of their own.

    A table given in part (`{"sft": {"epochs": 2}}`) changes this class's default of it, not the table's own: a round of
    a few hundred rows wants smaller steps and a higher rate than SFT's defaults (docs/log.md, 2026-11-23)."""

    name: str = Field("tuned", pattern=r"^[A-Za-z0-9][\w.-]*$")
    base: str = "qwen2.5-coder:0.5b"
    hub: str = "demo"
    execute: bool = True
    seed_folder: Path | None = None
    data: tuple[Path, ...] = ()
    recorded_tasks: int = Field(96, ge=0)
    train: Mix = Mix(tasks=480, catalogues=30, sizes=(3, 7), catalogue_chars=2800, no_call=0.17)
    held_out: Mix = Mix(tasks=96, catalogues=4, sizes=(4, 8), catalogue_chars=40_000, whole_hub=True, seed=2)
    unseen_tasks: int = Field(24, ge=0)
    own_attempts: int = Field(16, ge=0)
    sft: SFT = SFT(batch=1, learning_rate=5e-4)
    rules: Rules = Rules()
    pairing: Pairing = Pairing()
    dpo: DPO = DPO()
    grpo: GRPO = GRPO()
    answer_tokens: int = Field(192, ge=1)
    groups_at_a_time: int = Field(2, ge=1)
    rollouts_url: str = ""
    processes: int = Field(1, ge=1)
    keep: dict[str, float] = Field(default_factory=dict)
    search: Space = Space()

    @model_validator(mode="before")
    @classmethod
    def _tables_in_part(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        defaults = {name: field.default for name, field in cls.model_fields.items() if isinstance(field.default, Value)}
        tables = {name: value for name, value in data.items() if isinstance(value, dict) and name in defaults}
        return data | {name: defaults[name].model_dump() | table for name, table in tables.items()}


class Outcome(Value):
    """What a round of the loop ends with. Paths are absolute; `unseen` reports are None without unseen tools."""

    before: Report
    after: Report
    unseen_before: Report | None = None
    unseen_after: Report | None = None
    decision: Decision
    stable: str
    minutes: float
    files: dict[str, str]


def tune(config: Tune, store: Store, runtime: Runtime, *, promote: bool = True) -> Generator[Event, None, Outcome]:
    """Collect, measure, train, export, install, measure again, decide; then promote, or leave what serves. Without
    `promote` a candidate that passed waits for somebody who promotes it."""
    clock = time.monotonic()
    hub_hash(config.hub)  # a missing file is told before anything is fetched
    stock = yield from stock_step(config, runtime)
    incumbent = runtime.stable(config.name) or stock
    collected = yield from collect_step(config, store, runtime, stock)
    before = yield from evaluate_step(store, runtime, incumbent, collected)
    trained = yield from train_step(config, store, runtime, stock, collected)
    lineage = _lineage(config, store, stock, collected, trained)
    done = _promoted_before(store, config, trained)
    if done is not None and incumbent != stock:
        yield Event(step="promote", message=f"this round is done: {done.id}", data={"reused": done.id})
        return _outcome(store, done, incumbent.reference, clock)
    candidate = yield from runtime.install(config.name, store.folder(trained) / "model.gguf", lineage)
    yield from parity_step(store, runtime, candidate, collected, trained)
    after = yield from evaluate_step(store, runtime, candidate, collected)
    beside = [name for name in BESIDE if name in before.outputs and name in after.outputs]
    others = {name: (report(store, before, name), report(store, after, name)) for name in beside}
    decision = decide(report(store, before), report(store, after), config.rules, others)
    runtime.note(candidate, _measured(store, after, decision))
    suite = load_suite(store.folder(collected) / collected.outputs["held-out"])
    written = promote_step(store, config, suite, before, after, trained, decision)
    stable = incumbent.reference
    if decision.promote and promote:
        stable = f"{config.name}:stable = {runtime.promote(config.name)}"
    return _outcome(store, written, stable, clock)


def _lineage(config: Tune, store: Store, stock: Served, collected: Run, trained: Run) -> dict[str, Json]:
    """Where a version comes from: enough to make it again, and to say how it differs from another."""
    rows = store.folder(trained) / trained.outputs["rows"]
    return {
        "base": stock.sha256,
        "runs": [collected.id, trained.id],
        "metrics": trained.metrics,
        "config": config.model_dump(mode="json"),
        "data": {"examples": collected.metrics, "hub": collected.config["hub"], "rows": file_hash(rows)[:16]},
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


def _outcome(store: Store, promoted: Run, stable: str, clock: float) -> Outcome:
    runs = {run.id: run for run in store.runs("evaluate")}
    before, after = runs[promoted.inputs["before"]], runs[promoted.inputs["after"]]
    unseen = "unseen" in after.outputs and "unseen" in before.outputs
    return Outcome(
        before=report(store, before),
        after=report(store, after),
        unseen_before=report(store, before, "unseen") if unseen else None,
        unseen_after=report(store, after, "unseen") if unseen else None,
        decision=Decision.model_validate(promoted.config["decision"]),
        stable=stable,
        minutes=round((time.monotonic() - clock) / 60, 1),
        files={name: str(store.folder(promoted) / name) for name in promoted.outputs},
    )


# --------------------------------------------------------------------------------------------------------- the steps


@contextmanager
def workshop(config: Tune) -> Iterator[tuple[Hub, Box]]:
    """The hub's servers, started inside a throw-away box."""
    if config.seed_folder is not None and (config.hub == "demo" or not config.seed_folder.is_dir()):
        raise SetupError(
            f"{config.seed_folder} cannot be copied into the box: it must be a folder, and not for the demo."
        )
    if config.hub == "demo":
        with demo_box() as box, Hub(demo_servers(box.path), cwd=box.path) as hub:
            yield hub, box
        return
    with empty_box(config.seed_folder) as box:
        servers = [server.filled(box=box.path) for server in load(Path(config.hub))]
        with Hub(servers, cwd=box.path) as hub:
            yield hub, box


def stock_step(config: Tune, runtime: Runtime) -> Generator[Event, None, Served]:
    """The untuned base: fetched, verified, and known to the runtime."""
    gguf = yield from fetch(config.base)
    sha256 = yield from sha256_of(gguf)
    return (yield from runtime.stock(config.name, gguf, sha256))


def hub_hash(hub: str) -> str:
    """What identifies a hub in a run: "demo", or the hash of its file. The file itself may hold secrets."""
    if hub == "demo":
        return hub
    try:
        return content_hash(Path(hub).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(
            f'Cannot read the hub file {hub}: {error}. Give an mcpServers JSON file, or "demo".'
        ) from error


def collect_step(config: Tune, store: Store, runtime: Runtime, stock: Served) -> Generator[Event, None, Run]:
    """Tasks of both sides from the hub, every reference answer tried on the real servers, and the stock model's own
    attempts at a sample of the training tasks."""
    yield Event(step="collect", message="starting the tool servers")
    with workshop(config) as (hub, box):
        key: dict[str, Json] = {
            **config.model_dump(mode="json", include={"train", "held_out", "unseen_tasks", "own_attempts", "execute"}),
            "hub": hub_hash(config.hub),
            "tools": _tools_hash(hub, box),
            "seed_folder": str(config.seed_folder or ""),
        }
        if config.data:
            key |= {"data": own_data.data_hash(config.data), "recorded_tasks": config.recorded_tasks}
        inputs = {"base": stock.sha256, **runtime.identity()}
        done = store.find("collect", key, inputs)
        if done is not None:
            yield Event(step="collect", message=f"reusing {done.id}", data={"reused": done.id})
            return done
        with store.write("collect", key, inputs) as folder:
            yield from _collect(config, runtime, stock, hub, box, folder)
    assert folder.run is not None
    return folder.run


def _tools_hash(hub: Hub, box: Box) -> str:
    """The tools as the servers describe them now: a hub file stays the same when a server is updated."""
    return content_hash(canonical_json([spec.openai() for spec in hub.specs()]).replace(str(box.path), "{box}"))


def _collect(
    config: Tune, runtime: Runtime, stock: Served, hub: Hub, box: Box, folder: RunFolder
) -> Generator[Event, None, None]:
    toolbox = hub if config.execute else None
    for name, tasks in _suites(config, hub, box).items():
        attempts = yield from collect(tasks, toolbox, folder.path / f"reference-{name}.jsonl", restore=box.restore)
        kept = [task for task, attempt in zip(tasks, attempts, strict=True) if usable(attempt)]
        folder.metrics[name] = {"made": len(tasks), "accepted": len(kept)}
        if kept:
            save_suite(Suite(name=name, tasks=tuple(kept)), folder.path / f"{name}.jsonl")
            folder.outputs[name] = f"{name}.jsonl"
    if "train" not in folder.outputs or "held-out" not in folder.outputs:
        raise EmptyData(
            f"The servers accepted no reference answer ({folder.metrics}). Look at reference-train.jsonl in "
            f"{folder.path}; with --no-execute calls are checked by their schema only."
        )
    sample = _sample(load_suite(folder.path / "train.jsonl").tasks, config.own_attempts)
    if config.data:
        own_data.add(config.data, config.recorded_tasks, folder)
    if sample:
        with runtime.open(stock) as model:
            own = yield from collect(sample, toolbox, folder.path / "own.jsonl", backend=model, restore=box.restore)
        folder.metrics["own"] = {"made": len(own), "accepted": sum(map(usable, own))}


def _sample(tasks: Sequence[Task], count: int) -> list[Task]:
    """Tasks of as few catalogues as possible: a server keeps the tokens of one catalogue in its prompt cache."""
    by_catalogue: dict[tuple[str, ...], list[Task]] = {}
    for task in tasks:
        by_catalogue.setdefault(tuple(tool.fingerprint for tool in task.tools), []).append(task)
    return [task for group in by_catalogue.values() for task in group][:count]


def _suites(config: Tune, hub: Hub, box: Box) -> dict[str, tuple[Task, ...]]:
    specs = hub.specs()
    unseen = config.train.unseen or (DEMO_UNSEEN if config.hub == "demo" else ())
    train, held_out = (mix.model_copy(update={"unseen": unseen}) for mix in (config.train, config.held_out))
    suites = {
        "train": synthesize(specs, train, "train", pages=box.pages),
        "held-out": synthesize(specs, held_out, "held-out", pages=box.pages),
    }
    if unseen and config.unseen_tasks:
        mix = held_out.model_copy(update={"tasks": config.unseen_tasks})
        suites["unseen"] = synthesize_unseen(specs, mix, pages=box.pages)
    trained = {" ".join(task.request.split()).casefold() for task in suites["train"]}
    return {
        name: tasks
        if name == "train"
        else tuple(t for t in tasks if " ".join(t.request.split()).casefold() not in trained)
        for name, tasks in suites.items()
    }


def evaluate_step(store: Store, runtime: Runtime, served: Served, collected: Run) -> Generator[Event, None, Run]:
    """The held-out and the unseen-tools suite, asked of a model as it is served."""
    suites = {
        name: load_suite(store.folder(collected) / collected.outputs[name])
        for name in ("held-out", *BESIDE)
        if name in collected.outputs
    }
    inputs = {name: suite.hash for name, suite in suites.items()} | {"model": served.sha256, **runtime.identity()}
    done = store.find("evaluate", {}, inputs)
    if done is not None:
        yield Event(step="evaluate", message=f"reusing {done.id}", data={"reused": done.id})
        return done
    with store.write("evaluate", {}, inputs) as folder, runtime.open(served) as model:
        for name, suite in suites.items():
            out = folder.path / name
            out.mkdir(exist_ok=True)
            save_suite(suite, out / "suite.jsonl")
            result, _ = yield from measure(suite, model, out=out, machine=machine(), sha256=served.sha256)
            write_atomic(out / "report.json", result.model_dump_json(indent=1))
            folder.outputs[name] = f"{name}/report.json"
            folder.metrics[name] = {key: rate.value for key, rate in result.rates.items()}
    assert folder.run is not None
    return folder.run


def train_step(
    config: Tune, store: Store, runtime: Runtime, stock: Served, collected: Run, start: Run | None = None
) -> Generator[Event, None, Run]:
    """Rows as the runtime renders them, SFT (from the adapter of the run `start`, if any), the merged model and the
    adapter as GGUF files."""
    inputs = {"collect": collected.id, "base": stock.sha256, **runtime.identity()}
    if start is not None:
        inputs["start"] = start.id
    key: dict[str, Json] = config.sft.model_dump(mode="json")
    if config.keep:
        key["keep"] = dict(config.keep)
    done = store.find("train", key, inputs)
    if done is not None:
        yield Event(step="train", message=f"reusing {done.id}", data={"reused": done.id})
        return done
    with store.write("train", key, inputs, seed=config.sft.seed) as folder:
        rows_file = folder.path / "rows.jsonl"
        if not rows_file.exists():
            yield from render_rows(store, runtime, stock, collected, rows_file)
        if not (folder.path / "adapter").exists():
            adapter = store.folder(start) / "adapter" if start is not None else None
            rows = mixed(read_rows(rows_file), _categories(store, collected), config.keep)
            if config.processes > 1:
                write_jsonl(folder.path / "trained-rows.jsonl", rows)
                job = Job(
                    recipe="sft", config=config.sft.model_dump(mode="json"), gguf=stock.gguf,
                    rows=folder.path / "trained-rows.jsonl", out=folder.path, start=adapter,
                )  # fmt: skip
                yield from launched(job, config.processes)
            else:
                yield from sft(config.sft, stock.gguf, rows, folder.path, start=adapter)
        folder.metrics.update(read_json(folder.path / "metrics.json"))
        yield from export(stock.gguf, folder.path)
        folder.outputs.update(
            adapter="adapter", adapter_gguf="adapter.gguf", model="model.gguf", curve="curve.jsonl", rows="rows.jsonl"
        )
    assert folder.run is not None
    return folder.run


def render_rows(
    store: Store, runtime: Runtime, stock: Served, collected: Run, out: Path
) -> Generator[Event, None, None]:
    """Writes the training rows of a collect run. Raises DataError for tasks that must not be trained on."""
    source = store.folder(collected)
    tasks = load_suite(source / collected.outputs["train"]).tasks
    refuse_untrainable(tasks)
    attempts = read_jsonl(source / "reference-train.jsonl", Attempt)
    with runtime.open(stock) as model:
        rows = yield from build_rows(tasks, attempts, model, indistinct_tokens(stock.gguf))
    write_jsonl(out, rows)


def _categories(store: Store, collected: Run) -> dict[str, str]:
    suite = load_suite(store.folder(collected) / collected.outputs["train"])
    return {task.id: task.category for task in suite.tasks}


def export(base: Path, folder: Path) -> Generator[Event, None, str]:
    """`folder/adapter` -> `folder/model.gguf` (merged, returns its SHA-256) and `folder/adapter.gguf`."""
    adapter_gguf(base, folder / "adapter", folder / "adapter.gguf")
    return (yield from merge(base, folder / "adapter", folder / "model.gguf"))


def parity_step(
    store: Store, runtime: Runtime, candidate: Served, collected: Run, trained: Run, sample: int = 24
) -> Generator[Event, None, None]:
    """Stops with TemplateMismatch unless the installed candidate renders and tokenises what was trained on."""
    rows = read_rows(store.folder(trained) / "rows.jsonl")
    rows = rows[:: max(1, len(rows) // sample)]
    source = store.folder(collected)
    tasks = {task.id: task for task in load_suite(source / collected.outputs["train"]).tasks}
    attempts = read_jsonl(source / "reference-train.jsonl", Attempt)
    with runtime.open(candidate) as model:
        problems = parity(rows, tasks, attempts, model)
    if problems:
        raise TemplateMismatch(
            f"{candidate.reference} does not render what it was trained on ({len(problems)} of {len(rows)} rows): "
            f"{problems[0]}. The model that served before still serves."
        )
    yield Event(
        step="parity", message="the server renders the bytes that were trained", done=len(rows), total=len(rows)
    )


def promote_step(
    store: Store, config: Tune, suite: Suite, before: Run, after: Run, trained: Run, decision: Decision
) -> Run:
    """Writes the decision and the reports that people read."""
    inputs = {"before": before.id, "after": after.id, "train": trained.id}
    key: dict[str, Json] = {
        "name": config.name,
        "rules": config.rules.model_dump(),
        "decision": decision.model_dump(mode="json"),
    }
    done = store.find("promote", key, inputs)
    if done is not None:
        return done
    with store.write("promote", key, inputs) as folder:
        write_atomic(folder.path / "decision.json", decision.model_dump_json(indent=1))
        reports = report(store, before), report(store, after)
        failed = failures(suite, read_jsonl(store.folder(after) / "held-out" / "attempts.jsonl", Attempt))
        curve = loss_curve(store, trained)
        languages: tuple[tuple[Language, str], ...] = (("en", "report"), ("ja", "report.ja"))
        for language, name in languages:
            for suffix, render in ((".md", to_markdown), (".html", to_html)):
                text = render(*reports, decision, curve=curve, failures=failed, language=language)
                write_atomic(folder.path / (name + suffix), text)
                folder.outputs[name + suffix] = name + suffix
        folder.outputs["decision.json"] = "decision.json"
    assert folder.run is not None
    return folder.run


def find_run(store: Store, kind: str, which: str) -> Run:
    """A finished run by its id, or the newest of its kind for "last". Raises DataError with what there is."""
    runs = store.runs(kind)
    for run in runs:
        if which in ("last", run.id):
            return run
    found = ", ".join(run.id for run in runs[:5]) or "none"
    raise DataError(f'No {kind} run "{which}" (found: {found}). Run: llm-tuner data collect')


def report(store: Store, run: Run, suite: str = "held-out") -> Report:
    """A report that an evaluate run wrote."""
    return Report.model_validate_json((store.folder(run) / run.outputs[suite]).read_text(encoding="utf-8"))


def loss_curve(store: Store, trained: Run) -> list[tuple[int, float]]:
    points: Sequence[Curve] = read_jsonl(store.folder(trained) / "curve.jsonl", Curve)
    return [(point.step, point.loss) for point in points]


# ----------------------------------------------------------------------------------------------------------- the gate


def decide(
    before: Report, after: Report, rules: Rules, others: Mapping[str, tuple[Report, Report]] | None = None
) -> Decision:
    """Promote only if every rule holds. Compared are the same tasks, one by one; on the `others` (before and after, by
    suite) no rate may fall beyond chance."""
    checks = [*_checks(before, after, rules), *(_not_worse(name, *pair) for name, pair in (others or {}).items())]
    return Decision(promote=all(check.passed for check in checks), checks=tuple(checks))


def _not_worse(suite: str, before: Report, after: Report) -> Check:
    changes = {metric: paired(before, after, metric) for metric in ("selection", "parameters")}
    worse = [
        f"{metric} of the suite {suite} fell from {_percent(change.before)} to {_percent(change.after)}"
        for metric, change in changes.items()
        if change.n and change.high < 0
    ]
    old, new = before.rates["no_call"], after.rates["no_call"]
    if new.high is not None and old.low is not None and new.high < old.low:
        worse.append(f"no call where none fits fell from {_percent(old.value)} to {_percent(new.value)} in {suite}")
    said = "; ".join(worse) if worse else f"Nothing of the suite {suite} got worse beyond chance ({after.n} tasks)"
    return Check(rule=f"{suite} not worse", passed=not worse, sentence=f"{said}.")


def _checks(before: Report, after: Report, rules: Rules) -> Iterator[Check]:
    native = after.rates["native_rate"]
    yield Check(
        rule="native",
        passed=native.value is not None and native.value >= rules.min_native,
        sentence=f"The runtime surfaced calls in {_percent(native.value)} of the requests that want one "
        f"(at least {_percent(rules.min_native)} are asked for).",
    )
    for metric in ("selection", "parameters"):
        change = paired(before, after, metric)
        enough = change.difference >= rules.min_gain and change.low > (0 if rules.min_gain > 0 else -rules.margin)
        yield Check(
            rule=metric,
            passed=enough,
            sentence=f"{metric.capitalize()} went from {_percent(change.before)} to {_percent(change.after)} of "
            f"{change.n} tasks: {change.difference * 100:+.1f} points (95 % interval {change.low * 100:+.1f} to "
            f"{change.high * 100:+.1f}, McNemar p = {change.p:.2g}).",
        )
    yield from _groups_not_worse(before, after)
    yield _latency(before, after, rules)


def _groups_not_worse(before: Report, after: Report) -> Iterator[Check]:
    """No category, language or no-call rate may fall beyond chance: the intervals may not lie apart."""
    worse = []
    for dimension in ("category", "language"):
        for value, rates in after.groups.get(dimension, {}).items():
            old = before.groups.get(dimension, {}).get(value, {}).get("ok")
            new = rates["ok"]
            if old and new.high is not None and old.low is not None and new.high < old.low:
                worse.append(f"{dimension} {value} fell from {_percent(old.value)} to {_percent(new.value)}")
    old, new = before.rates["no_call"], after.rates["no_call"]
    if new.high is not None and old.low is not None and new.high < old.low:
        worse.append(
            f"requests that want no call were left alone in {_percent(new.value)}, before {_percent(old.value)}"
        )
    yield Check(
        rule="no part worse",
        passed=not worse,
        sentence="No category or language got worse beyond chance." if not worse else "; ".join(worse) + ".",
    )


def _latency(before: Report, after: Report, rules: Rules) -> Check:
    old, new = before.latency.p50_ms, after.latency.p50_ms
    if not old or not new:
        return Check(rule="latency", passed=True, sentence="Latency was not measured on both sides.")
    return Check(
        rule="latency",
        passed=new <= old * rules.slowdown,
        sentence=f"The median request takes {new:.0f} ms, before {old:.0f} ms (allowed: {rules.slowdown:g} times).",
    )


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value * 100:.1f} %"
