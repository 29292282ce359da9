"""`llm-tuner search`: which settings train best on a collect run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llm_tuner.apps.commands.tune import RuntimeName
from llm_tuner.apps.console import Json, drive, out


def search(
    trials: Annotated[int, typer.Option(min=1, help="Trials to finish, pruned ones among them.")] = 12,
    collect: Annotated[str, typer.Option(help='A collect run: its id, or "last".')] = "last",
    config: Annotated[Path | None, typer.Option(help="A TOML file with [sft] and [search] (docs/search.md).")] = None,
    base: Annotated[str | None, typer.Option(help="Base model: trained on, and merged into.")] = None,
    memory: Annotated[str | None, typer.Option(help="What training may take, such as 8GB.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    runtime: RuntimeName = "embedded",
    json: Json = False,
) -> None:
    """Search rank, alpha, learning rate, epochs and the share of no-call rows for the highest tool accuracy.

    Each trial is trained, merged, served, and judged on tasks that are cut out of the training side; the held-out suite
    is never searched on. Trials whose loss on judging tasks lies above the median are stopped early. Ctrl-C keeps what
    is done, and the same command goes on. The best settings are written as best.toml, for llm-tuner train --config.

    Example: llm-tuner search --trials 12 --collect last --base qwen2.5-coder:0.5b --json
    """
    from llm_tuner import loop
    from llm_tuner.apps.settings import resolve_training
    from llm_tuner.loop.search import search_step
    from llm_tuner.models.runtimes import open_runtime
    from llm_tuner.store import Store

    store = Store()
    collected = loop.find_run(store, "collect", collect)
    settings = resolve_training(config, "sft", {"memory": memory, "seed": seed}, {"base": base})
    serving = open_runtime(runtime)
    stock = drive(loop.stock_step(settings, serving))
    run = drive(search_step(settings, store, serving, stock, collected, trials=trials))
    folder = store.folder(run)
    document = {
        "run": run.id,
        **run.metrics,
        "files": {name: str(folder / file) for name, file in run.outputs.items()},
    }
    out(document, json, lambda: _text(document))


def _text(document: dict[str, Any]) -> str:
    best, files = document["best"], document["files"]
    lines = [f"{document['trials']} trials, {document['pruned']} of them pruned"]
    if best:
        lines.append(
            f"best: trial {best['number']}, {best['accuracy']:.3f} of {document['judging_tasks']} judging tasks"
        )
        lines += [f"  {name}: {value:.4g}" for name, value in best["settings"].items()]
    lines += [f"{name} matters {share:.0%}" for name, share in document["importance"].items()]
    return "\n".join([*lines, files["search.html"], f"llm-tuner train --config {files['best']}"])
