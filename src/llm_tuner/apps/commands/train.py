"""`llm-tuner train`: LoRA SFT on a file of rows, or on a collect run, and export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_tuner.apps.commands.tune import RuntimeName, open_runtime
from llm_tuner.apps.console import Json, drive, out


def train(
    collect: Annotated[str, typer.Option(help='A collect run: its id, or "last".')] = "last",
    base: Annotated[str, typer.Option(help="Base model: trained on, and merged into.")] = "qwen2.5-coder:0.5b",
    epochs: Annotated[float, typer.Option(min=0.01)] = 1.0,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 2e-4,
    r: Annotated[int, typer.Option(min=1, help="LoRA rank.")] = 16,
    alpha: Annotated[int, typer.Option(min=1, help="LoRA alpha.")] = 32,
    seed: Annotated[int, typer.Option()] = 0,
    out_folder: Annotated[Path | None, typer.Option("--copy-to", help="Also copy model.gguf here.")] = None,
    runtime: RuntimeName = "embedded",
    json: Json = False,
) -> None:
    """Fine-tune on a collect run's accepted answers and write the merged GGUF and the adapter GGUF.

    A run that was killed goes on from its last checkpoint when called again with the same options.

    Example: llm-tuner train --collect last --epochs 1
    """
    import shutil

    from llm_tuner import loop
    from llm_tuner.store import Store
    from llm_tuner.training.sft import SFT

    store = Store()
    collected = loop.find_run(store, "collect", collect)
    sft = SFT(r=r, alpha=alpha, epochs=epochs, learning_rate=learning_rate, seed=seed)
    config = loop.Tune(base=base, sft=sft)
    serving = open_runtime(runtime)
    stock = drive(loop.stock_step(config, serving))
    run = drive(loop.train_step(config, store, serving, stock, collected))
    folder = store.folder(run)
    if out_folder is not None:
        out_folder.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / "model.gguf", out_folder / "model.gguf")
    document = {"run": run.id, "folder": str(folder), "model": str(folder / "model.gguf"), "metrics": run.metrics}
    out(document, json, lambda: f"{folder / 'model.gguf'}\n" + "\n".join(f"{k}: {v}" for k, v in run.metrics.items()))
