"""The steps of a round. Each reads finished runs and writes one new one (store); a step that was done with the same
inputs is not done again, and one that was killed goes on.

Not the order of them (round.py), and what comes after a first training is in feedback.py.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llm_tuner.data.box import Box, demo_box, empty_box
from llm_tuner.data.collect import collect, usable
from llm_tuner.data.rows import build_rows, parity, refuse_untrainable
from llm_tuner.data.synthesize import synthesize, synthesize_unseen
from llm_tuner.evaluation import general
from llm_tuner.evaluation.measure import measure
from llm_tuner.evaluation.perplexity import measure_perplexity, passages, text_hash
from llm_tuner.evaluation.render import failures, to_html, to_markdown
from llm_tuner.evaluation.wording import Language
from llm_tuner.loop import own_data
from llm_tuner.loop.config import Tune
from llm_tuner.models.llamacpp import Embedded
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
from llm_tuner.training.export import adapter_gguf, merge
from llm_tuner.training.launch import Job, launched
from llm_tuner.training.rows import mixed, read_rows
from llm_tuner.training.sft import Curve, sft
from llm_tuner.types import (
    Attempt,
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
    canonical_json,
    content_hash,
)

BESIDE = ("unseen", own_data.SUITE)
"""Suites besides the held-out one: a candidate that is worse on them is refused, none is promoted for them."""

DEMO_UNSEEN = ("git_show", "git_create_branch", "describe_table")
"""Tools of the demo's hub that stand in no training task: what transfers to new tools is measured on them."""


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


def general_step(store: Store, runtime: Runtime, served: Served) -> Generator[Event, None, Run]:
    """What a model still can without tools: the questions as it is served, the fixed text where the runtime or, instead
    of it, the embedded one on the same file gives probabilities."""
    inputs = {"questions": general.questions().hash, "text": text_hash(passages()), "model": served.sha256}
    inputs |= runtime.identity()
    done = store.find("general", {}, inputs)
    if done is not None:
        yield Event(step="general", message=f"reusing {done.id}", data={"reused": done.id})
        return done
    with store.write("general", {}, inputs) as folder:
        with runtime.open(served) as model:
            found = yield from general.ask(model, out=folder.path, sha256=served.sha256)
        if found.perplexity is not None and not found.perplexity.passages:
            with Embedded(served.gguf, name=served.reference, context=2048) as file:
                perplexity = yield from measure_perplexity(file, out=folder.path)
            found = found.model_copy(update={"perplexity": perplexity})
        write_atomic(folder.path / "report.json", found.model_dump_json(indent=1))
        folder.outputs["general"] = "report.json"
        folder.metrics["ok"] = found.rates["ok"].value
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
