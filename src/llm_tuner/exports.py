"""A trained run -> files in any format, each one measured as it is served before it is called done.

Not the formats themselves (training/export) and not the judge of them (evaluation/agreement.py): the order of the steps
between these rooms. The rule that it protects: a folder has its final name only when its file is whole and was held
against the trainer; one that lost what was trained is called so (`q4_k_m.refused`), and the next size up is made.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field

from llm_tuner.evaluation.agreement import Agreement, Tolerance, agree, serve
from llm_tuner.evaluation.intervals import METRICS
from llm_tuner.models.llamacpp import Embedded
from llm_tuner.models.ollama_templates import GO_TEMPLATES
from llm_tuner.models.sources.weights import sha256_of
from llm_tuner.store import Store, disk_full_named, read_jsonl, write_atomic
from llm_tuner.training.export.adapter import read_config, refuse_inexact
from llm_tuner.training.export.adapter_file import adapter_gguf
from llm_tuner.training.export.card import Lineage, Measured, card
from llm_tuner.training.export.huggingface import Weights, peft_folder, safetensors_folder
from llm_tuner.training.export.merge import merge, needed, require_space
from llm_tuner.training.export.mix import FORMATS, Format, next_size
from llm_tuner.training.export.modelfile import modelfile
from llm_tuner.training.predictions import predict, predict_folder
from llm_tuner.training.recipe import Precision
from llm_tuner.training.rows import read_rows
from llm_tuner.types import (
    DataError,
    Event,
    Json,
    Pair,
    Prediction,
    Report,
    Rollout,
    Row,
    Run,
    SetupError,
    Value,
    content_hash,
)

Kind = Literal["as_base", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16", "adapter", "peft", "safetensors"]
KINDS: tuple[Kind, ...] = get_args(Kind)

PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class Export(Value):
    """What to make. `rows`: how many rows trainer and served file are compared on, spread over the training rows, none
    for 0; `larger`: make the next size up of a file that is refused; `weights`: precision of the safetensors folder."""

    kinds: tuple[Kind, ...] = Field(("q4_k_m",), min_length=1)
    rows: int = Field(24, ge=0)
    larger: bool = True
    weights: Weights = "bfloat16"
    tolerance: Tolerance = Tolerance()


class Base(Value):
    """The GGUF that an adapter was trained on; `name`, `licence` and `repository` where the catalogue knows it."""

    gguf: Path
    sha256: str
    name: str
    licence: str = ""
    repository: str = ""


class Exported(Value):
    """One finished format. `size` is the bytes of its files, `seconds` what making them took, `sha256` by file name;
    `agreement` is None where nothing was measured, and `why` says so. `key` names what it was made of."""

    kind: Kind
    folder: str
    key: str
    size: int
    seconds: float
    sha256: dict[str, str]
    agreement: Agreement | None = None
    why: str = ""

    @property
    def refused(self) -> bool:
        return self.agreement is not None and self.agreement.refused


class Yardstick(Value):
    """What every file is held against: the rows, what the trainer foresees of them, and what the base as served."""

    rows: tuple[Row, ...]
    trainer: tuple[Prediction, ...]
    base: tuple[Prediction, ...]


def export(
    config: Export, store: Store, trained: Run, base: Base, out: Path
) -> Generator[Event, None, tuple[Exported, ...]]:
    """Makes each format in a folder of its own below `out`, and of a refused one the next size up.

    What is there whole is not made again; a killed call goes on. Raises SetupError for another base or a folder that
    holds another export, DiskFull before anything is written, TrainingError for what cannot be exported exactly.
    """
    adapter = _adapter(store, trained)
    _refuse_another_base(trained, base)
    refuse_inexact(read_config(adapter))
    out.mkdir(parents=True, exist_ok=True)
    waiting: list[Kind] = list(dict.fromkeys(config.kinds))
    yield from _room(config, waiting, store, trained, base, out)
    yardstick = yield from _yardstick(config, store, trained, base)
    done: list[Exported] = []
    with disk_full_named(out):
        while waiting:
            kind = waiting.pop(0)
            made = yield from _one(kind, config, store, trained, base, yardstick, out)
            done.append(made)
            larger = next_size(kind) if made.refused and kind in FORMATS else None
            if made.agreement is not None:
                yield Event(step="export", message=made.agreement.sentence, data={"refused": made.refused})
            if config.larger and larger and larger not in (*waiting, *(one.kind for one in done)):
                yield Event(step="export", message=f"{kind} is refused: making {larger} instead")
                waiting.append(larger)
    return tuple(done)


def find_trained(store: Store, which: str) -> Run:
    """A run that left an adapter, by its id, or the newest for "last". Raises DataError with what there is."""
    runs = [run for run in store.runs() if "adapter" in run.outputs]
    for run in runs:
        if which in ("last", run.id):
            return run
    found = ", ".join(run.id for run in runs[:5]) or "none"
    raise DataError(f'No run "{which}" with an adapter (found: {found}). Run: llm-tuner train')


# ---------------------------------------------------------------------------------------------------------- one format


def _one(
    kind: Kind, config: Export, store: Store, trained: Run, base: Base, yardstick: Yardstick | None, out: Path
) -> Generator[Event, None, Exported]:
    key = _key(kind, config, store, trained, base, yardstick)
    there = _finished(out, kind, key)
    if there is not None:
        yield Event(step="export", message=f"{kind} is there already", data={"reused": kind})
        return there
    folder = out / f".partial-{kind}-{key[:8]}"
    folder.mkdir(exist_ok=True)
    clock = time.monotonic()
    yield from _make(kind, config, store, trained, base, yardstick, folder)
    seconds = time.monotonic() - clock
    agreement, why = yield from _measured(kind, config, base, yardstick, folder)
    for path in folder.glob("*.jsonl"):
        path.unlink()
    sha256 = {}
    for path in sorted(folder.iterdir()):
        sha256[path.name] = yield from sha256_of(path)
    size = sum(path.stat().st_size for path in folder.iterdir())
    _write_beside(kind, store, trained, base, folder, sha256, agreement)
    refused = agreement is not None and agreement.refused
    target = out / (f"{kind}.refused" if refused else kind)
    made = Exported(
        kind=kind,
        folder=str(target),
        key=key,
        size=size,
        seconds=round(seconds, 1),
        sha256=sha256,
        agreement=agreement,
        why=why,
    )
    write_atomic(folder / "export.json", made.model_dump_json(indent=1) + "\n")
    os.replace(folder, target)
    return made


def _make(
    kind: Kind, config: Export, store: Store, trained: Run, base: Base, yardstick: Yardstick | None, folder: Path
) -> Generator[Event, None, None]:
    """The files of one format. A model.gguf that is there is whole: it was renamed last."""
    adapter = _adapter(store, trained)
    yield Event(step="export", message=f"making {kind}")
    if kind in FORMATS:
        if not (folder / "model.gguf").exists():
            yield from merge(base.gguf, adapter, folder / "model.gguf", _format(kind))
    elif kind == "adapter":
        adapter_gguf(base.gguf, adapter, folder / "adapter.gguf")
    elif kind == "peft":
        peft_folder(adapter, folder, base.repository or str(base.gguf))
    else:
        rows = yardstick.rows if yardstick is not None else ()
        safetensors_folder(base.gguf, adapter, folder, rows, config.weights)


def _format(kind: Kind) -> Format:
    return next(name for name in FORMATS if name == kind)


def _measured(
    kind: Kind, config: Export, base: Base, yardstick: Yardstick | None, folder: Path
) -> Generator[Event, None, tuple[Agreement | None, str]]:
    """The agreement of what was made, as it is served; or None and why it was not measured."""
    if kind == "peft":
        return None, "The PEFT folder holds the trainer's own matrices: there is nothing to compare."
    if yardstick is None:
        return None, "No rows to compare on: neither the run nor the one it began from kept any, or --rows is 0."
    file = folder / "served.jsonl"
    if kind == "safetensors":
        served = yield from predict_folder(folder, yardstick.rows, file)
    else:
        adapters = [folder / "adapter.gguf"] if kind == "adapter" else []
        model = base.gguf if kind == "adapter" else folder / "model.gguf"
        served = yield from _served(model, adapters, yardstick.rows, file)
    return agree(kind.upper(), yardstick.trainer, served, yardstick.base, config.tolerance), ""


def _served(
    gguf: Path, adapters: Sequence[Path], rows: Sequence[Row], file: Path
) -> Generator[Event, None, tuple[Prediction, ...]]:
    context = max(row.length for row in rows) + 16
    with Embedded(gguf, adapters=adapters, context=context) as model:
        return (yield from serve(model, rows, file))


def _write_beside(
    kind: Kind,
    store: Store,
    trained: Run,
    base: Base,
    folder: Path,
    sha256: dict[str, str],
    agreement: Agreement | None,
) -> None:
    """The card, and the Modelfile of a merged GGUF."""
    sentence = agreement.sentence if agreement is not None else ""
    write_atomic(folder / "README.md", card(lineage(store, trained, base), kind=kind, files=sha256, agreement=sentence))
    if kind in FORMATS:
        context = int(trained.inputs.get("context", 0))
        known = {content_hash(template): template for template in GO_TEMPLATES.values()}
        template = known.get(trained.inputs.get("template", ""), "")  # the one that Ollama was given, if any
        text = modelfile(folder / "model.gguf", context=context, template=template)
        write_atomic(folder / "Modelfile", text)


def _key(kind: Kind, config: Export, store: Store, trained: Run, base: Base, yardstick: Yardstick | None) -> str:
    rows = [row.fingerprint for row in yardstick.rows] if yardstick is not None else []
    settings = config.model_dump(mode="json", include={"tolerance", "weights"})
    return content_hash([kind, trained.id, base.sha256, rows, settings])


def _finished(out: Path, kind: Kind, key: str) -> Exported | None:
    """The export that is there whole. SetupError where the folder holds something else: it is not ours to delete."""
    for folder in (out / kind, out / f"{kind}.refused"):
        if not folder.exists():
            continue
        try:
            made = Exported.model_validate_json((folder / "export.json").read_text(encoding="utf-8"))
            whole = made.key == key and all((folder / name).exists() for name in made.sha256)
        except (OSError, ValueError):
            whole = False
        if not whole:
            raise SetupError(f"{folder} holds another export. Move it away, or give another --out.")
        return made
    return None


def _room(
    config: Export, kinds: Sequence[Kind], store: Store, trained: Run, base: Base, out: Path
) -> Generator[Event, None, None]:
    """DiskFull unless all formats that are not there yet have room."""
    adapter = _adapter(store, trained)
    total = 0
    for kind in kinds:
        if not (out / kind).exists():
            total += needed(base.gguf, adapter, _size_like(kind, config)) if kind not in ("adapter", "peft") else 0
    require_space(out, total)
    yield Event(step="export", message=f"at most {total / 1e6:.0f} MB will be written to {out}")


def _size_like(kind: Kind, config: Export) -> Format:
    """The format of a merged GGUF that is about as large (a safetensors folder in float32 is twice that)."""
    return "f16" if kind == "safetensors" else _format(kind)


# ------------------------------------------------------------------------------------------------------- the yardstick


def _yardstick(config: Export, store: Store, trained: Run, base: Base) -> Generator[Event, None, Yardstick | None]:
    """Trainer and base as served, asked once about the same rows: a run of its own, which every format reuses."""
    rows = _sample(store, trained, config.rows)
    if not rows:
        return None
    precision = str(trained.metrics.get("precision", "auto"))
    key: dict[str, Json] = {"rows": content_hash([row.fingerprint for row in rows]), "precision": precision}
    inputs = {"train": trained.id, "base": base.sha256}
    run = store.find("predict", key, inputs)
    if run is None:
        with store.write("predict", key, inputs) as folder:
            yield from _predictions(store, trained, base, rows, folder.path)
            folder.outputs.update(trainer="trainer.jsonl", base="base.jsonl")
        run = folder.run
        assert run is not None
    trainer, served = yield from _predictions(store, trained, base, rows, store.folder(run))
    return Yardstick(rows=tuple(rows), trainer=trainer, base=served)


def _predictions(
    store: Store, trained: Run, base: Base, rows: Sequence[Row], folder: Path
) -> Generator[Event, None, tuple[tuple[Prediction, ...], tuple[Prediction, ...]]]:
    precision: Precision = next((name for name in PRECISIONS if name == trained.metrics.get("precision")), "auto")
    trainer = yield from predict(
        base.gguf, _adapter(store, trained), rows, folder / "trainer.jsonl", precision=precision
    )
    file = folder / "base.jsonl"
    if file.exists() and len(file.read_bytes().splitlines()) == len(rows):
        return trainer, (yield from serve(_Asked(), rows, file))
    return trainer, (yield from _served(base.gguf, (), rows, file))


class _Asked:
    """Stands for a server that has been asked about every row: nothing is left to start one for."""

    def predict(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> tuple[list[float], list[int]]:
        raise DataError("The run's base.jsonl is of other rows. Delete the predict run and export again.")


def _sample(store: Store, trained: Run, count: int) -> list[Row]:
    """`count` rows spread over those that the run can be compared on."""
    rows = _rows_of(store, trained) if count else []
    return rows[:: max(1, len(rows) // max(1, count))][:count]


def _rows_of(store: Store, trained: Run) -> list[Row]:
    """The run's held-out rows, or those that it trained on: the right answers of its pairs; for a run of rollouts those
    of the run that it began from, or else its rewarded tries."""
    folder = store.folder(trained)
    for name in ("held_out_rows", "rows"):
        if name in trained.outputs:
            return list(read_rows(folder / trained.outputs[name]))
    before = {run.id: run for run in store.runs()}
    paired, start = (before.get(trained.inputs.get(name, "")) for name in ("pairs", "start"))
    rows: list[Row] = []
    if paired is not None:
        rows = [pair.chosen for pair in read_jsonl(store.folder(paired) / paired.outputs["pairs"], Pair)]
    elif start is not None:
        return _rows_of(store, start)
    elif "rollouts" in trained.outputs:
        files = sorted((folder / trained.outputs["rollouts"]).glob("*/rollouts.jsonl"))
        tries = [rollout for file in files for rollout in read_jsonl(file, Rollout)]
        rows = [row for rollout in tries if rollout.reward > 0 for row in rollout.rows]
    return list({row.fingerprint: row for row in rows}.values())


# --------------------------------------------------------------------------------------------------------- the lineage


def lineage(store: Store, trained: Run, base: Base) -> Lineage:
    """Where a trained run comes from, out of the records of its runs alone."""
    runs = {run.id: run for run in store.runs()}
    collected = runs.get(trained.inputs.get("collect", ""))
    promoted = next(
        (run for run in runs.values() if run.inputs.get("train") == trained.id and run.kind == "promote"), None
    )
    data = {}
    for name, counts in (collected.metrics if collected else {}).items():
        if isinstance(counts, dict) and isinstance(counts.get("accepted"), int):
            data[name] = int(counts["accepted"])
    named = {"collect": collected, trained.kind: trained, "promote": promoted}
    return Lineage(
        base=base.name,
        base_sha256=base.sha256,
        licence=base.licence,
        repository=base.repository,
        runs={kind: run.id for kind, run in named.items() if run is not None},
        data=data,
        settings=trained.config,
        metrics={name: value for name, value in trained.metrics.items() if isinstance(value, (int, float, str))},
        measured=tuple(_before_and_after(store, runs, promoted)) if promoted else (),
        versions=trained.versions,
    )


def _before_and_after(store: Store, runs: dict[str, Run], promoted: Run) -> list[Measured]:
    before, after = (runs.get(promoted.inputs.get(side, "")) for side in ("before", "after"))
    rows: list[Measured] = []
    if before is None or after is None:
        return rows
    for suite in before.outputs.keys() & after.outputs.keys():
        old, new = (
            Report.model_validate_json((store.folder(run) / run.outputs[suite]).read_text(encoding="utf-8"))
            for run in (before, after)
        )
        for metric in METRICS:
            if metric in new.rates and metric in old.rates and new.rates[metric].n:
                one, two = old.rates[metric], new.rates[metric]
                rows.append(Measured(suite=suite, rate=metric, before=one.value, after=two.value, n=two.n))
    return sorted(rows, key=lambda row: (row.suite, METRICS.index(row.rate)))


def _adapter(store: Store, trained: Run) -> Path:
    return store.folder(trained) / trained.outputs["adapter"]


def _refuse_another_base(trained: Run, base: Base) -> None:
    wanted = trained.inputs.get("base", base.sha256)
    if wanted != base.sha256:
        raise SetupError(
            f"{trained.id} was trained on a base with SHA-256 {wanted[:12]}..., but {base.gguf.name} has "
            f"{base.sha256[:12]}...: merged into it, the adapter would mean something else. Give its own base (--base)."
        )
