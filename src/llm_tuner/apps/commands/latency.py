"""`llm-tuner eval latency`: how long a model as served takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llm_tuner.apps.commands.evaluate import DEFAULT_MODEL, BaseUrl, Model, Ollama
from llm_tuner.apps.console import Json, drive, out, table

if TYPE_CHECKING:
    from llm_tuner.evaluation.latency import LatencyReport, Spread


def latency(
    model: Model = "",
    ollama: Ollama = "",
    base_url: BaseUrl = "",
    concurrency: Annotated[str, typer.Option(help="Requests at a time, comma-separated.")] = "1",
    requests: Annotated[int, typer.Option(min=1, help="Requests of each kind.")] = 20,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 64,
    suite_file: Annotated[Path | None, typer.Option("--suite", help="Ask this suite's requests and tools.")] = None,
    context: Annotated[int, typer.Option(min=1, help="Window in tokens.")] = 8192,
    threads: Annotated[int, typer.Option(min=0, help="Of the embedded runtime; 0 takes every core.")] = 0,
    size: Annotated[float, typer.Option(min=0, help="Billions of weights, where the server does not say.")] = 0,
    gpu: Annotated[bool, typer.Option("--gpu", help="It runs on a GPU, where the server does not say.")] = False,
    targets: Annotated[str | None, typer.Option(help="Billions of weights = ms.", metavar="1.5=500,7=2000")] = None,
    language: Annotated[Literal["en", "ja"], typer.Option(help="Of the pages.")] = "en",
    out_folder: Annotated[Path | None, typer.Option("--out", help="Folder for latency.json, .md and .html.")] = None,
    json: Json = False,
) -> None:
    """Time to the first token and to the whole answer, cold and warm, one and several at a time, and tokens/s.

    The warm median of single requests is held against the target, on a GPU: 500 ms up to 1.5B, 2,000 ms up to 7B,
    unless --targets or LLM_TUNER_LATENCY_TARGETS says otherwise.

    Example: llm-tuner eval latency --model qwen2.5-coder:1.5b --concurrency 1,2,4 --requests 50
    """
    from llm_tuner.apps.settings import latency_targets
    from llm_tuner.evaluation.latency import default_workload, time_target, workload_of
    from llm_tuner.evaluation.render import write_latency
    from llm_tuner.evaluation.target import Target
    from llm_tuner.store.suite import load

    named = model or ("" if ollama else DEFAULT_MODEL)
    target = Target(model=named, ollama=ollama, base_url=base_url, context=context, threads=threads)
    report = drive(
        time_target(
            target,
            workload_of(load(suite_file)) if suite_file else default_workload(),
            concurrency=_numbers(concurrency),
            requests=requests,
            max_tokens=max_tokens,
            parameters=round(size * 1e9),
            gpu=gpu,
            targets_ms=latency_targets(targets),
        )
    )
    if out_folder:
        write_latency(out_folder, report, language)
    out(report.model_dump(mode="json"), json, lambda: _latency(report))


def _numbers(text: str) -> list[int]:
    from llm_tuner.types import SetupError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise SetupError(f'--concurrency takes whole numbers such as 1,2,4 (found "{text}").') from error


def _latency(report: LatencyReport) -> str:
    def ms(spread: Spread) -> str:
        values = (spread.p50, spread.p95, spread.p99)
        return " / ".join("-" if value is None else f"{value:.0f}" for value in values)

    rows = [
        [
            str(load.concurrency),
            load.prefix,
            f"{load.n}" + (f" ({load.errors} failed)" if load.errors else ""),
            ms(load.first_token),
            ms(load.total),
            "-" if load.per_token.p50 is None else f"{load.per_token.p50:.1f}",
            f"{load.tokens_per_s:.1f}",
            f"{load.prompt_tokens:.0f} ({load.cached_tokens:.0f} cached) + {load.completion_tokens:.0f}",
        ]
        for load in report.loads
    ]
    head = ["at a time", "prefix", "requests", "first token ms", "total ms", "ms/token", "tokens/s", "tokens"]
    goal = report.goal
    size = f"{report.parameters / 1e9:.2f}B" if report.parameters else "size not known"
    lines = [
        f"{report.backend}: {size} {report.quantisation}, {report.runtime} on {report.device}",
        ", ".join(f"{key} {value}" for key, value in report.machine.items()),
        table(rows, head),
        "p50 / p95 / p99; " + (f"target {goal.target_ms:.0f} ms: " if goal.target_ms else "target: ") + goal.verdict,
    ]
    return "\n".join(lines) + (f". {goal.why}" if goal.why else "")
