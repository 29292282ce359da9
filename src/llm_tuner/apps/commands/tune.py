"""`llm-tuner demo` and `llm-tuner tune`: the whole loop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_tuner.apps.console import Json, drive, note, out

if TYPE_CHECKING:
    from llm_tuner.loop import Outcome, Tune
    from llm_tuner.types import Report

RuntimeName = Annotated[str, typer.Option("--runtime", help="Where the model is served: embedded or ollama.")]


def demo(json: Json = False, runtime: RuntimeName = "embedded") -> None:
    """The whole loop on a real 0.5B model and four real tool servers, on a laptop CPU.

    Downloads Qwen2.5-Coder-0.5B (491 MB) once, measures it as served, collects examples on the servers git, time,
    fetch and sqlite, trains, installs, measures again, and promotes or refuses. A second run reuses what it can.

    Example: llm-tuner demo --json
    """
    from llm_tuner.loop import Tune

    _run(Tune(name="demo"), runtime, json)


def tune(
    json: Json = False,
    runtime: RuntimeName = "embedded",
    config: Annotated[Path | None, typer.Option(help="A TOML file with the fields of the step (docs/tune.md).")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the tuned model.")] = None,
    base: Annotated[str | None, typer.Option(help="Base model: a name of `models list`, or a source.")] = None,
    hub: Annotated[str | None, typer.Option(help='An mcpServers JSON file, or "demo".')] = None,
    execute: Annotated[
        bool | None, typer.Option("--execute/--no-execute", help="Really call the servers, inside a throw-away folder.")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="A data set to learn from too, as `data import` wrote it. Repeatable.")
    ] = None,
) -> None:
    """One round of the loop on your own tool servers.

    With --execute the calls run for real: use it for servers that stay inside the folder they are started in.
    Flags win over the environment (LLM_TUNER_NAME, LLM_TUNER_BASE, LLM_TUNER_HUB), which wins over the file.

    Example: llm-tuner tune --hub .mcp.json --name mine --no-execute
    """
    from llm_tuner.apps.settings import resolve

    flags = {"name": name, "base": base, "hub": hub, "execute": execute, "data": data or None}
    _run(resolve(config, flags), runtime, json)


def _run(config: Tune, runtime: str, json: bool) -> None:
    from llm_tuner import loop
    from llm_tuner.models.runtimes import open_runtime
    from llm_tuner.operations.rounds import summary
    from llm_tuner.store import Store
    from llm_tuner.types import GATE_REFUSED

    outcome = drive(loop.tune(config, Store(), open_runtime(runtime)))
    out(summary(outcome), json, lambda: _text(outcome))
    if not outcome.decision.promote:
        raise typer.Exit(GATE_REFUSED)


def _text(outcome: Outcome) -> str:
    from llm_tuner.apps.console import table

    rows = []
    for label, before, after in (
        ("held-out requests", outcome.before, outcome.after),
        ("tools never trained", outcome.unseen_before, outcome.unseen_after),
    ):
        if before is None or after is None:
            continue
        for key in ("native_rate", "selection", "parameters", "no_call"):
            if after.rates[key].n:
                rows.append([label, key, _rate(before, key), _rate(after, key), str(after.rates[key].n)])
    lines = [table(rows, ["suite", "rate", "before", "after", "n"]), ""]
    lines += [f"[{'ok' if check.passed else 'NO'}] {check.sentence}" for check in outcome.decision.checks]
    lines += ["", f"{'Promoted' if outcome.decision.promote else 'Not promoted'}: {outcome.stable}"]
    lines += [f"{name}: {path}" for name, path in outcome.files.items()]
    note(f"Took {outcome.minutes} minutes.")
    return "\n".join(lines)


def _rate(report: Report, key: str) -> str:
    rate = report.rates[key]
    if rate.value is None or rate.low is None or rate.high is None:
        return "-"
    return f"{rate.value * 100:5.1f} % ({rate.low * 100:.0f}-{rate.high * 100:.0f})"
