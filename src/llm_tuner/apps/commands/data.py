"""`llm-tuner data`: make tasks and attempts, look at them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_tuner.apps.commands.synthesize import synthesize
from llm_tuner.apps.commands.tune import RuntimeName, open_runtime
from llm_tuner.apps.console import Json, drive, out, table

if TYPE_CHECKING:
    from llm_tuner.types import Task

app = typer.Typer(help="Data: collect tasks and attempts from a hub, show them.", no_args_is_help=True)
app.command("synthesize")(synthesize)


@app.command()
def collect(
    hub: Annotated[str, typer.Option(help='An mcpServers JSON file, or "demo".')] = "demo",
    base: Annotated[str, typer.Option(help="Model whose own attempts are collected too.")] = "qwen2.5-coder:0.5b",
    tasks: Annotated[int, typer.Option(min=1, help="Training tasks to make.")] = 160,
    own: Annotated[int, typer.Option(min=0, help="How many of them the model itself tries.")] = 16,
    execute: Annotated[bool, typer.Option("--execute/--no-execute", help="Really call the servers.")] = True,
    runtime: RuntimeName = "embedded",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no result.")] = False,
    json: Json = False,
) -> None:
    """Make tasks from a hub's schemas, try every reference answer on the servers, keep what they accept.

    Example: llm-tuner data collect --tasks 100 --own 0
    """
    from llm_tuner import loop
    from llm_tuner.store import Store

    default = loop.Tune()
    config = loop.Tune(
        hub=hub,
        base=base,
        execute=execute,
        own_attempts=own,
        train=default.train.model_copy(update={"tasks": tasks, "catalogues": max(1, tasks // 16)}),
    )
    store = Store()
    stock = drive(loop.stock_step(config, open_runtime(runtime)))
    run = drive(loop.collect_step(config, store, open_runtime(runtime), stock))
    folder = store.folder(run)
    rows = [[name, str(counts["made"]), str(counts["accepted"])] for name, counts in run.metrics.items()]
    document = {"run": run.id, "folder": str(folder), "counts": run.metrics}
    if not quiet:
        out(document, json, lambda: table(rows, ["suite", "made", "accepted"]) + f"\n{folder}")


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A suite file (train.jsonl, held-out.jsonl, ...).")],
    limit: Annotated[int, typer.Option(min=1)] = 10,
    json: Json = False,
) -> None:
    """The tasks of a suite file: request, tools offered, what a right answer calls.

    Example: llm-tuner data show held-out.jsonl --limit 3
    """
    from llm_tuner.store.suite import load

    suite = load(file)
    shown = suite.tasks[:limit]
    rows = [[t.category, t.language, str(len(t.tools)), t.request[:60], _expected(t)] for t in shown]
    document = [t.model_dump(mode="json", exclude_defaults=True) | {"id": t.id} for t in shown]
    head = ["category", "lang", "tools", "request", "expected"]
    out(document, json, lambda: table(rows, head) + f"\n{len(shown)} of {len(suite.tasks)} tasks, hash {suite.hash}")


def _expected(task: Task) -> str:
    if task.expect.kind == "any":
        return "any call"
    calls = getattr(task.expect, "calls", ())
    return ", ".join(f"{call.name}({', '.join(call.arguments)})" for call in calls) or "no call"
