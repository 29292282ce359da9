"""`llm-tuner eval`: a suite, or BFCL, asked of a model as it is served; calls that were made elsewhere, judged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_tuner.apps.console import Json, drive, ndjson, note, out, table
from llm_tuner.types import ModelError

if TYPE_CHECKING:
    from llm_tuner.evaluation.leaderboard import Leaderboard
    from llm_tuner.evaluation.score_file import Totals
    from llm_tuner.evaluation.target import Target
    from llm_tuner.types import Report

app = typer.Typer(
    help="Measure a model as served: on a suite file, or on BFCL; or judge recorded calls.", no_args_is_help=True
)

DEFAULT_MODEL = "qwen2.5-coder:0.5b"
MOST_NOTES = 20
"""So many rows that cannot be judged are named one by one."""

CATEGORIES_HELP = (
    "BFCL categories (simple_python, ...) or groups, with commas: all, non_live, live, python, non_python, "
    "hallucination; `eval bfcl` knows multi_turn, too."
)

Model = Annotated[
    str,
    typer.Option(
        "--model", help=f"A known model, NAME:stable, a .gguf path. Default {DEFAULT_MODEL}.", show_default=False
    ),
]
Ollama = Annotated[str, typer.Option("--ollama", help="A model of the Ollama server.")]
BaseUrl = Annotated[str, typer.Option("--base-url", help="MODEL is served by this OpenAI-compatible URL.")]
Context = Annotated[int, typer.Option("--context", min=512, help="Window of the model, in tokens.")]
Threads = Annotated[int, typer.Option("--threads", min=0, help="Of the embedded runtime; 0: every core.")]
Parallel = Annotated[
    int, typer.Option("--parallel", min=1, help="Requests at a time (single-turn); times include waiting.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for the attempts and report.json, .md, .html.")]


def _target(
    model: str, ollama: str, base_url: str, *, context: int = 8192, threads: int = 0, at_a_time: int = 1
) -> Target:
    from llm_tuner.evaluation.target import Target

    return Target(
        model=model or ("" if ollama else DEFAULT_MODEL),
        ollama=ollama,
        base_url=base_url,
        context=context,
        threads=threads,
        at_a_time=at_a_time,
    )


@app.command()
def suite(
    file: Annotated[Path, typer.Argument(help="A suite file, as `data collect` writes it.")],
    model: Model = "",
    ollama: Ollama = "",
    base_url: BaseUrl = "",
    context: Context = 8192,
    threads: Threads = 0,
    parallel: Parallel = 1,
    out_folder: Out = None,
    json: Json = False,
) -> None:
    """Ask every task of a suite; report selection, parameters, native format, latency, with intervals.

    With --out a measurement that was killed goes on where it stopped.

    Example: llm-tuner eval suite held-out.jsonl --model demo:stable --out report
    """
    from llm_tuner.evaluation.target import evaluate
    from llm_tuner.store.suite import load

    tasks = load(file)
    target = _target(model, ollama, base_url, context=context, threads=threads, at_a_time=parallel)
    report = drive(evaluate(target, tasks, out=out_folder))
    _show([report], json)
    _none_answered([report])


@app.command()
def score(
    file: Annotated[Path, typer.Argument(help="JSONL rows, a result file of the official harness, or a folder.")],
    categories: Annotated[str, typer.Option(help=CATEGORIES_HELP)] = "all",
    json: Annotated[bool, typer.Option("--json", help="NDJSON: a verdict a row, the totals last.")] = False,
) -> None:
    """Judge calls that a model made elsewhere on BFCL's single-turn tasks, by its own rules. No model is asked.

    A row is {"id", "category", "calls": [{"name", "arguments"}]}, one JSON object a line, or a row of the official
    result/ files as function-calling handlers write them. With --json: {"id", "ok", "reason", "detail"} for every row,
    in the order of the file, then {"totals"}. Rows that cannot be judged (malformed_line, unknown_category, unknown_id,
    duplicate_id) have a verdict, too, are in no rate, and make the exit code 30.

    Example: llm-tuner eval score answers.jsonl --categories non_live --json
    """
    from llm_tuner.evaluation import bfcl as benchmark
    from llm_tuner.evaluation.score_file import score_file
    from llm_tuner.types import DataError, EmptyData

    verdicts = score_file(file, categories)
    drive(benchmark.fetch())
    unread = 0
    while True:
        try:
            verdict = next(verdicts)
        except StopIteration as end:
            totals: Totals = end.value
            break
        if json:
            print(ndjson(verdict.document()))
        elif not verdict.category:
            unread += 1
            if unread <= MOST_NOTES:
                note(f"{verdict.reason}: {verdict.detail}")
    print(ndjson(totals.document()) if json else _totals(totals))
    if not totals.rows:
        note(f"{file} holds no row.")
        raise typer.Exit(EmptyData.exit_code)
    if totals.bad:
        why = ", ".join(f"{n} {reason}" for reason, n in totals.bad.items())
        note(f"{sum(totals.bad.values())} of {totals.rows} rows could not be judged: {why}.")
        raise typer.Exit(DataError.exit_code)


def _totals(totals: Totals) -> str:
    scores = totals.scores
    rows = [
        [name, *_interval(rate.value, rate.low, rate.high), f"{rate.k}/{rate.n}", f"of {totals.sizes[name]}"]
        for name, rate in scores.categories.items()
    ]
    rows += _groups(scores)
    text = table(rows, ["score", "value", "95 % interval", "right", "entries"])
    left_out = f", {totals.left_out} of other categories" if totals.left_out else ""
    return f"{text}\n{totals.judged} of {totals.rows} rows judged, {totals.right} right{left_out}.\n{_overall(scores)}"


@app.command()
def bfcl(
    model: Model = "",
    ollama: Ollama = "",
    base_url: BaseUrl = "",
    categories: Annotated[str, typer.Option(help=CATEGORIES_HELP)] = "non_live",
    limit: Annotated[int | None, typer.Option(min=1, help="Tasks of each category, a seeded sample.")] = None,
    seed: Annotated[int, typer.Option(help="Which tasks --limit takes.")] = 0,
    context: Context = 8192,
    threads: Threads = 0,
    parallel: Parallel = 1,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of one answer.")] = 1024,
    lenient: Annotated[bool, typer.Option(help="Multi-turn: calls written as text are carried out, too.")] = False,
    out_folder: Out = None,
    json: Json = False,
) -> None:
    """The Berkeley Function Calling Leaderboard (v4 data, its 13 single-turn categories), by its own rules.

    The scores of its groups follow the categories, in two columns: calls as the runtime surfaced them (native), and
    with calls written as text counted (lenient). web_search and memory are not run; what they weigh is said.
    multi_turn (multi_turn_base, _miss_func, _miss_param, _long_context) runs whole conversations on the benchmark's own
    environment, in a process of its own.

    Example: llm-tuner eval bfcl --model demo:stable --categories simple_python,hallucination --limit 50
    """
    from llm_tuner.evaluation.benchmark import evaluate_categories

    steps = evaluate_categories(
        _target(model, ollama, base_url, context=context, threads=threads, at_a_time=parallel),
        categories,
        limit,
        seed=seed,
        reading="lenient" if lenient else "native",
        out=out_folder,
        max_tokens=max_tokens,
    )
    reports = drive(steps)
    print_benchmark(reports, json)
    _none_answered(reports)


def print_benchmark(reports: Sequence[Report], json: bool) -> None:
    """The rates of each category, then the scores of the groups and over all, in both readings."""
    from llm_tuner.evaluation.leaderboard import of_reports

    scores = {"native": of_reports(reports), "lenient": of_reports(reports, "lenient")}
    if json:
        documents = [report.model_dump(mode="json", exclude={"verdicts"}) for report in reports]
        dumped = {reading: held.model_dump(mode="json") for reading, held in scores.items()}
        out({"reports": documents, "scores": dumped}, json, str)
        return
    _show(reports, json)
    for reading, held in scores.items():
        print(f"\n{table(_groups(held), [reading, 'value', '95 % interval', '', ''])}\n{_overall(held)}")


def _none_answered(reports: Sequence[Report]) -> None:
    """Exit code 10 where not one request was answered: nothing was measured of the model."""
    if reports and all(report.reasons.get("backend_error") == report.n for report in reports):
        first = next(verdict.detail for report in reports for verdict in report.verdicts.values())
        note(f"Not one request was answered. The first error: {first}")
        raise typer.Exit(ModelError.exit_code)


def _groups(scores: Leaderboard) -> list[list[str]]:
    return [
        [f"= {name}", *_interval(score.value, score.low, score.high), "", f"weighs {score.weight:.0%}"]
        for name, score in scores.groups.items()
        if score.value is not None
    ]


def _overall(scores: Leaderboard) -> str:
    measured = ""
    if scores.measured.value is not None:
        measured = f"Over the {scores.measured_weight:.0%} of the weights that were measured: "
        measured += " ".join(_interval(scores.measured.value, scores.measured.low, scores.measured.high)) + ". "
    lines = [f"{measured}As the leaderboard counts, the rest as 0: {scores.overall.official * 100:.2f} %."]
    return "\n".join([*lines, *(f"  {name}: {why}" for name, why in scores.not_measured.items())])


def _interval(value: float | None, low: float | None, high: float | None) -> list[str]:
    if value is None or low is None or high is None:
        return ["–", ""]
    return [f"{value * 100:.2f} %", f"{low * 100:.1f}-{high * 100:.1f}"]


def _show(reports: Sequence[Report], json: bool) -> None:
    document: list[dict[str, Any]] = [report.model_dump(mode="json", exclude={"verdicts"}) for report in reports]

    def text() -> str:
        from llm_tuner.evaluation.summary import summary

        rows = []
        for report in reports:
            for key, rate in report.rates.items():
                if rate.value is not None and rate.low is not None and rate.high is not None:
                    interval = f"{rate.low * 100:.1f}-{rate.high * 100:.1f}"
                    rows.append([report.suite, key, f"{rate.value * 100:.1f} %", interval, f"{rate.k}/{rate.n}"])
            took = f"{report.latency.p50_ms:.0f} ms" if report.latency.p50_ms is not None else "–"
            rows.append([report.suite, "latency p50", took, "", str(report.latency.n)])
            if failed := report.reasons.get("backend_error", 0):
                rows.append([report.suite, "requests that failed", str(failed), "", f"{failed}/{report.n}"])
        said = "\n".join(filter(None, map(summary, reports)))
        return f"{table(rows, ['suite', 'rate', 'value', '95 % interval', 'of'])}\n{said}"

    out(document, json, text)
