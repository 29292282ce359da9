"""The search as a step: each trial is trained, merged, served by the runtime, and judged on judging tasks.

Not the search itself (training/search.py) and no recipe: a trial is `sft` with other settings on part of the rows. The
rule it protects: the tasks that judge are cut out of the training side. The held-out suite is not even opened here; it
measures what is trained with the settings that were found (`llm-tuner train --config best.toml`), once.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Mapping, Sequence
from math import ceil
from pathlib import Path

from llm_tuner.data.rows import refuse_untrainable
from llm_tuner.evaluation.measure import measure
from llm_tuner.evaluation.render import write_search
from llm_tuner.loop.config import Tune
from llm_tuner.loop.steps import render_rows
from llm_tuner.models.resources import machine
from llm_tuner.models.runtimes import Runtime, Served
from llm_tuner.store import RunFolder, Store, write_atomic
from llm_tuner.store.suite import Suite
from llm_tuner.store.suite import load as load_suite
from llm_tuner.training.export import merge
from llm_tuner.training.rows import mixed, read_rows
from llm_tuner.training.search import KEEP, MARKS, require_optuna, search, split
from llm_tuner.training.sft import SFT, sft
from llm_tuner.types import Event, Json, Report, Row, Run, Search, Task, content_hash

LOSS_ROWS = 48
"""Rows whose loss is measured during a trial, of as few catalogues as possible: four looks are not to cost an epoch."""


def search_step(
    config: Tune, store: Store, runtime: Runtime, stock: Served, collected: Run, *, trials: int = 12
) -> Generator[Event, None, Run]:
    """Searches in `config.search` from `config.sft` on; the run holds all trials, a page about them and `best.toml`.

    A search that was killed goes on, its trial in the middle from its last checkpoint. One with more `trials` than a
    finished one begins with the trials of that. Raises MissingExtra without Optuna, DataError for too few tasks.
    """
    require_optuna()
    inputs = {"collect": collected.id, "base": stock.sha256, **runtime.identity()}
    same: dict[str, Json] = {**config.model_dump(mode="json", include={"sft", "search"})}
    key = same | {"trials": trials}
    done = store.find("search", key, inputs)
    if done is not None:
        yield Event(step="search", message=f"reusing {done.id}", data={"reused": done.id})
        return done
    tasks = load_suite(store.folder(collected) / collected.outputs["train"]).tasks
    refuse_untrainable(tasks)
    trained, judged = split(tasks)
    categories = {task.id: task.category for task in tasks}
    keep = {name: least for name, least in config.search.keep.items() if name in categories.values()}
    space = config.search.model_copy(update={"keep": keep})
    with store.write("search", key, inputs, seed=config.sft.seed) as folder:
        _take_up(store, folder, same, inputs)
        rows_file = folder.path / "rows.jsonl"
        if not rows_file.exists():
            yield from render_rows(store, runtime, stock, collected, rows_file)
        rows = read_rows(rows_file)
        trying = _Trying(config, runtime, stock, folder.path / "trials", trained, judged, rows)
        result = yield from search(
            space, trying.evaluate, folder.path, trials=trials, seed=config.sft.seed,
            inputs={"inputs": dict(inputs), "sft": config.sft.model_dump(mode="json")},
            first=config.sft.model_dump(include={"r", "alpha", "learning_rate", "epochs"}),
        )  # fmt: skip
        _tell(folder, result.model_copy(update={"tasks": len(judged), "rows": len(trying.rows)}))
    assert folder.run is not None
    return folder.run


class _Trying:
    """How a trial is tried: trained on some rows, judged by other tasks."""

    def __init__(
        self, config: Tune, runtime: Runtime, stock: Served, out: Path, trained: Sequence[Task],
        judged: Sequence[Task], rows: Sequence[Row],
    ) -> None:  # fmt: skip
        self._config, self._runtime, self._stock, self._out = config, runtime, stock, out
        self._categories = {task.id: task.category for task in trained}
        self._suite = Suite(name="judging", tasks=tuple(judged))
        judging = {task.id for task in judged}
        self.rows = [row for row in rows if row.task_id in self._categories]
        own = sorted((row for row in rows if row.task_id in judging), key=lambda row: row.prompt_ids)
        self._held_out = own[:LOSS_ROWS]

    def evaluate(self, settings: Mapping[str, float]) -> Generator[Event, None, float]:
        """The accuracy (0..1) of what these settings train: judging tasks that are right natively, as served."""
        out = self._out / content_hash(dict(settings))
        out.mkdir(parents=True, exist_ok=True)
        found = out / "report.json"
        if not found.exists():
            write_atomic(found, (yield from self._report(settings, out)).model_dump_json(indent=1))
        _drop_weights(out)
        return Report.model_validate_json(found.read_text(encoding="utf-8")).rates["ok"].value or 0.0

    def _report(self, settings: Mapping[str, float], out: Path) -> Generator[Event, None, Report]:
        if not (out / "adapter").exists():
            keep = {name.removeprefix(KEEP): share for name, share in settings.items() if name.startswith(KEEP)}
            rows = mixed(self.rows, self._categories, keep)
            yield from sft(self._recipe(settings, len(rows)), self._stock.gguf, rows, out, held_out=self._held_out)
        merged = out / "model.gguf"
        sha256 = yield from merge(self._stock.gguf, out / "adapter", merged)
        served = Served(reference="trial", gguf=merged, sha256=sha256)
        if self._runtime.kind != "embedded":  # which serves a file from where it lies
            served = yield from self._runtime.install(f"{self._config.name}-search", merged, {})
        with self._runtime.open(served) as model:
            report, _ = yield from measure(self._suite, model, out=out, machine=machine(), sha256=served.sha256)
        return report

    def _recipe(self, settings: Mapping[str, float], rows: int) -> SFT:
        sft = self._config.sft.model_dump() | {k: v for k, v in settings.items() if not k.startswith(KEEP)}
        steps = ceil(rows * settings["epochs"] / self._config.sft.units_a_step)
        return SFT.model_validate(sft | {"evaluate_every": max(1, steps // MARKS)})


def _drop_weights(out: Path) -> None:
    """A trial leaves its curve, its answers and its report; weights of a part of the rows are of no further use."""
    (out / "model.gguf").unlink(missing_ok=True)
    for name in ("adapter", "checkpoints"):
        shutil.rmtree(out / name, ignore_errors=True)


def _take_up(store: Store, folder: RunFolder, same: Mapping[str, Json], inputs: Mapping[str, str]) -> None:
    """The trials of a finished search of the same, that wanted fewer."""
    journal = folder.path / "study.journal"
    for run in store.runs("search"):
        if not journal.exists() and run.inputs == inputs and all(run.config.get(k) == v for k, v in same.items()):
            shutil.copytree(store.folder(run) / "trials", folder.path / "trials", dirs_exist_ok=True)
            shutil.copy2(store.folder(run) / "study.journal", journal)


def _tell(folder: RunFolder, result: Search) -> None:
    for out in (folder.path / "trials").iterdir():
        _drop_weights(out)
    for path in write_search(folder.path, result):
        folder.outputs[path.name] = path.name
    folder.outputs["study"] = "study.journal"
    write_atomic(folder.path / "best.toml", _toml(result))
    folder.outputs["best"] = "best.toml"
    best = next((trial for trial in result.trials if trial.number == result.best), None)
    folder.metrics.update(
        trials=len(result.trials),
        pruned=sum(trial.state == "pruned" for trial in result.trials),
        best=best.model_dump(mode="json", include={"number", "settings", "accuracy"}) if best else None,
        importance=dict(result.importance),
        judging_tasks=result.tasks,
    )


def _toml(result: Search) -> str:
    """The best settings as a file for `llm-tuner train --config` and `tune --config`."""
    best = next((trial for trial in result.trials if trial.number == result.best), None)
    if best is None or best.accuracy is None:
        return "# No trial was finished.\n"
    lines = [
        f"# Trial {best.number}, the best of {len(result.trials)}: {best.accuracy:.3f} of {result.tasks} judging",
        "# tasks, which were cut out of the training side. The held-out suite took no part.",
        "[sft]",
    ]
    lines += [f"{name} = {_number(value)}" for name, value in best.settings.items() if not name.startswith(KEEP)]
    kept = [f"{name.removeprefix(KEEP)} = {v:.4g}" for name, v in best.settings.items() if name.startswith(KEEP)]
    return "\n".join([*lines, *(["", "[keep]", *kept] if kept else []), ""])


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.6g}"
