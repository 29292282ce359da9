"""`llm-tuner train`: fine-tuning on a collect run by one of three methods, and export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from llm_tuner.apps.commands.tune import RuntimeName
from llm_tuner.apps.console import Json, drive, out

if TYPE_CHECKING:
    pass

METHODS = ("sft", "dpo", "grpo")


def train(
    method: Annotated[str, typer.Option(help="sft, dpo or grpo.")] = "sft",
    start: Annotated[
        str,
        typer.Option(
            "--from", help='The training run to go on from: its id, "last", or "base". Default: base in sft, else last.'
        ),
    ] = "",
    collect: Annotated[str, typer.Option(help='A collect run: its id, or "last".')] = "last",
    config: Annotated[Path | None, typer.Option(help="A TOML file with the fields of the step (docs/tune.md).")] = None,
    base: Annotated[str | None, typer.Option(help="Base model: trained on, and merged into.")] = None,
    hub: Annotated[str | None, typer.Option(help="grpo: the hub that was collected from.")] = None,
    execute: Annotated[
        bool | None, typer.Option("--execute/--no-execute", help="grpo: really call the servers, if collecting did.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(min=0.01, help="sft and dpo.")] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="grpo: how often the model tries tasks.")] = None,
    tasks: Annotated[int | None, typer.Option(min=1, help="grpo: tasks in an iteration.")] = None,
    group: Annotated[int | None, typer.Option(min=2, help="grpo: how often each is tried.")] = None,
    turns: Annotated[int | None, typer.Option(min=1, help="grpo: answers in a try, with results between.")] = None,
    beta: Annotated[float | None, typer.Option(min=0.0, help="dpo: the price of leaving the start.")] = None,
    own: Annotated[int | None, typer.Option(min=0, help="dpo: training tasks that the model tries itself.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0)] = None,
    r: Annotated[int | None, typer.Option(min=1, help="LoRA rank.")] = None,
    alpha: Annotated[int | None, typer.Option(min=1, help="LoRA alpha.")] = None,
    memory: Annotated[str | None, typer.Option(help='What training may take, such as "8GB".')] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="sft and dpo: processes on this machine, one for each GPU.")
    ] = None,
    out_folder: Annotated[Path | None, typer.Option("--copy-to", help="Also copy model.gguf here.")] = None,
    runtime: RuntimeName = "embedded",
    json: Json = False,
) -> None:
    """Fine-tune on a collect run's tasks and write the merged GGUF and the adapter GGUF.

    sft learns the accepted answers. dpo lets the model of --from try tasks and prefers right answers to wrong ones;
    grpo lets it try each task several times, with tools that really run, and rewards what the judge scores higher
    (docs/feedback.md). A run that was killed goes on from its last checkpoint when called again with the same options.

    Example: llm-tuner train --method dpo --from last
    """
    import shutil

    from llm_tuner import loop
    from llm_tuner.apps.settings import resolve_training
    from llm_tuner.loop.feedback import BASE, find_start
    from llm_tuner.models.runtimes import open_runtime
    from llm_tuner.store import Store
    from llm_tuner.types import SetupError

    if method not in METHODS:
        raise SetupError(f'No method "{method}". Choose {", ".join(METHODS)}.')
    store = Store()
    collected = loop.find_run(store, "collect", collect)
    recipe: dict[str, Any] = {
        "epochs": epochs, "iterations": iterations, "tasks": tasks, "group": group, "turns": turns, "beta": beta,
        "learning_rate": learning_rate, "r": r, "alpha": alpha, "seed": seed, "memory": memory,
    }  # fmt: skip
    if own is not None and method != "dpo":
        raise SetupError("--own is of dpo alone: in it the model tries tasks before there are pairs.")
    settings = resolve_training(
        config,
        method,
        recipe,
        {"base": base, "hub": hub, "execute": execute, "processes": processes, "pairing": {"own_attempts": own}},
    )
    serving = open_runtime(runtime)
    stock = drive(loop.stock_step(settings, serving))
    begun = find_start(store, start or (BASE if method == "sft" else "last"), stock)
    run = drive(loop.method_step(cast("loop.Method", method), settings, store, serving, stock, collected, begun))
    folder = store.folder(run)
    if out_folder is not None:
        out_folder.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / "model.gguf", out_folder / "model.gguf")
    document = {
        "run": run.id,
        "method": method,
        "from": begun.id if begun else BASE,
        "folder": str(folder),
        "model": str(folder / "model.gguf"),
        "metrics": run.metrics,
    }
    if "pairs" in run.inputs:
        paired = next(one for one in store.runs("pairs") if one.id == run.inputs["pairs"])
        document["pairs"] = {"run": paired.id, **paired.metrics}
    out(document, json, lambda: _text(document))


def _text(document: dict[str, Any]) -> str:
    lines = [document["model"], f"method: {document['method']}, from {document['from']}"]
    for title, facts in (("pairs", document.get("pairs", {})), ("", document["metrics"])):
        lines += [f"{title + ' ' if title else ''}{key}: {value}" for key, value in facts.items() if key != "rollouts"]
    for number, summary in enumerate(document["metrics"].get("rollouts", [])):
        lines.append(
            f"iteration {number}: mean reward {summary['reward']}, {summary['with_signal']} of {summary['groups']} "
            "groups with signal"
        )
    return "\n".join(lines)
