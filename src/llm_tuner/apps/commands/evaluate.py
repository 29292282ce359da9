"""`llm-tuner eval`: a suite, or BFCL, asked of a model as it is served."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_tuner.apps.console import Json, drive, out, table

if TYPE_CHECKING:
    from llm_tuner.evaluation.target import Target
    from llm_tuner.types import Report

app = typer.Typer(help="Measure a model as served: on a suite file, or on BFCL.", no_args_is_help=True)

DEFAULT_MODEL = "qwen2.5-coder:0.5b"

Model = Annotated[
    str,
    typer.Option(
        "--model", help=f"A known model, NAME:stable, a .gguf path. Default {DEFAULT_MODEL}.", show_default=False
    ),
]
Ollama = Annotated[str, typer.Option("--ollama", help="A model of the Ollama server.")]
BaseUrl = Annotated[str, typer.Option("--base-url", help="MODEL is served by this OpenAI-compatible URL.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for the attempts and report.json, .md, .html.")]


def _target(model: str, ollama: str, base_url: str) -> Target:
    from llm_tuner.evaluation.target import Target

    return Target(model=model or ("" if ollama else DEFAULT_MODEL), ollama=ollama, base_url=base_url)


@app.command()
def suite(
    file: Annotated[Path, typer.Argument(help="A suite file, as `data collect` writes it.")],
    model: Model = "",
    ollama: Ollama = "",
    base_url: BaseUrl = "",
    out_folder: Out = None,
    json: Json = False,
) -> None:
    """Ask every task of a suite; report selection, parameters, native format, latency, with intervals.

    With --out a measurement that was killed goes on where it stopped.

    Example: llm-tuner eval suite held-out.jsonl --model demo:stable --out report
    """
    from llm_tuner.evaluation.suite import load
    from llm_tuner.evaluation.target import evaluate

    tasks = load(file)
    report = drive(evaluate(_target(model, ollama, base_url), tasks, out=out_folder))
    _show([report], json)


@app.command()
def bfcl(
    model: Model = "",
    ollama: Ollama = "",
    base_url: BaseUrl = "",
    categories: Annotated[
        str, typer.Option(help="Comma-separated BFCL categories.")
    ] = "simple_python,multiple,parallel,parallel_multiple,irrelevance",
    limit: Annotated[int | None, typer.Option(min=1, help="Tasks of each category, a seeded sample.")] = None,
    out_folder: Out = None,
    json: Json = False,
) -> None:
    """The Berkeley Function Calling Leaderboard (v4 data, Python categories), by its own rules.

    Example: llm-tuner eval bfcl --model demo:stable --categories simple_python,irrelevance --limit 50
    """
    from llm_tuner.evaluation import bfcl as benchmark
    from llm_tuner.evaluation.target import evaluate

    reports = []
    for category in filter(None, map(str.strip, categories.split(","))):
        drive(benchmark.fetch())
        tasks = benchmark.load(category, limit)
        folder = out_folder / category if out_folder else None
        target = _target(model, ollama, base_url)
        reports.append(drive(evaluate(target, tasks, rules="bfcl", out=folder)))
    _show(reports, json)


def _show(reports: list[Report], json: bool) -> None:
    document: list[dict[str, Any]] = [report.model_dump(mode="json", exclude={"verdicts"}) for report in reports]

    def text() -> str:
        rows = []
        for report in reports:
            for key, rate in report.rates.items():
                if rate.value is not None and rate.low is not None and rate.high is not None:
                    interval = f"{rate.low * 100:.1f}-{rate.high * 100:.1f}"
                    rows.append([report.suite, key, f"{rate.value * 100:.1f} %", interval, f"{rate.k}/{rate.n}"])
            rows.append(
                [report.suite, "latency p50", f"{report.latency.p50_ms or 0:.0f} ms", "", str(report.latency.n)]
            )
        return table(rows, ["suite", "rate", "value", "95 % interval", "of"])

    out(document, json, text)
