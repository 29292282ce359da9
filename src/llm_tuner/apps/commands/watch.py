"""`llm-tuner watch`: rounds out of recorded traffic, by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_tuner.apps.commands.tune import RuntimeName
from llm_tuner.apps.console import Json, drive, out


def watch(
    config: Annotated[Path | None, typer.Option(help="A TOML file with the fields of a round (docs/tune.md).")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the tuned model.")] = None,
    base: Annotated[str | None, typer.Option(help="Base model: a name of `models list`, or a source.")] = None,
    hub: Annotated[str | None, typer.Option(help='An mcpServers JSON file, or "demo".')] = None,
    execute: Annotated[
        bool | None, typer.Option("--execute/--no-execute", help="Really call the servers, inside a throw-away folder.")
    ] = None,
    journal: Annotated[Path | None, typer.Option(help="Default: where `serve gateway` records.")] = None,
    least: Annotated[int, typer.Option(min=1, help="New judged examples that a round wants.")] = 50,
    quiet: Annotated[str, typer.Option(help='Hours in which rounds run, "" for always.')] = "01:00-06:00",
    cpu: Annotated[float, typer.Option(min=1, max=100, help="Percent of CPU in use at which none begins.")] = 50,
    memory_gb: Annotated[float, typer.Option(min=0, help="Free memory that a round wants, in GB.")] = 6,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two looks.")] = 600,
    promote: Annotated[
        bool, typer.Option("--promote/--report", help="What passed the gate serves, or waits as the candidate.")
    ] = True,
    once: Annotated[bool, typer.Option("--once", help="Look once, as a cron job.")] = False,
    runtime: RuntimeName = "embedded",
    json: Json = False,
) -> None:
    """Run a round when enough new judged exchanges lie in the journal, in quiet hours, while the machine is idle.

    Exchanges are judged by their tool results and by feedback. The gate decides as in `tune`: what serves is replaced
    only by what measured better on tasks that no exchange made, and not worse on held-out exchanges. It may be killed
    at any time; a round goes on where it stopped. Works at a low priority. Exit code 3 with --once where the gate
    refused.

    Example: llm-tuner watch --hub .mcp.json --name mine --no-execute --once
    """
    import os

    from platformdirs import user_data_path

    from llm_tuner.apps.commands.data_sets import references
    from llm_tuner.apps.settings import resolve
    from llm_tuner.loop.watch import Watch
    from llm_tuner.loop.watch import watch as watching
    from llm_tuner.models.runtimes import open_runtime
    from llm_tuner.operations.rounds import summary
    from llm_tuner.store import Store
    from llm_tuner.types import GATE_REFUSED

    round_ = resolve(config, {"name": name, "base": base, "hub": hub, "execute": execute})
    rules = Watch(least=least, quiet=quiet, cpu=cpu, memory=round(memory_gb * 1e9), every=every, promote=promote)
    if hasattr(os, "nice"):
        os.nice(10)
    steps = watching(
        round_,
        rules,
        Store(),
        open_runtime(runtime),
        journal or user_data_path("llm-tuner") / "exchanges",
        once=once,
        references=references(True),
    )
    outcome = drive(steps)
    document = {"round": summary(outcome) if outcome else None}
    out(document, json, lambda: "\n".join(outcome.decision.sentences) if outcome else "No round: see above.")
    if outcome and not outcome.decision.promote:
        raise typer.Exit(GATE_REFUSED)
