"""`llm-tuner eval compare`: two measurements of the same tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llm_tuner.apps.console import Json, out, table

if TYPE_CHECKING:
    from llm_tuner.evaluation.compare import Comparison


def compare(
    before: Annotated[
        str, typer.Argument(help="An --out folder, a report.json, an evaluate run's id, last, previous.")
    ],
    after: Annotated[str, typer.Argument(help="The same, of what is held against it.")],
    only: Annotated[str, typer.Option("--suite", help="Only this suite (its folder: held-out, simple_python).")] = "",
    reading: Annotated[
        Literal["native", "lenient"], typer.Option(help="Which tasks count as flipped; lenient: calls in text count.")
    ] = "native",
    language: Annotated[Literal["en", "ja"], typer.Option(help="Of the pages.")] = "en",
    out_folder: Annotated[Path | None, typer.Option("--out", help="Folder for compare.json, .md and .html.")] = None,
    json: Json = False,
) -> None:
    """Two measurements task by task: what changed and how surely, which tasks flipped, what broke.

    Exit code 3 when a metric, or the bits a byte of the general check's text, is worse beyond its 95 % interval.

    Example: llm-tuner eval compare stock-report tuned-report --out comparison
    """
    from llm_tuner.evaluation.compare import compare as compared
    from llm_tuner.evaluation.compare import open_parts
    from llm_tuner.evaluation.render import write_comparison
    from llm_tuner.types import GATE_REFUSED

    found = compared(open_parts(before, only=only), open_parts(after, only=only), reading=reading)
    if out_folder:
        write_comparison(out_folder, found, language)
    document = found.model_dump(mode="json") | {"regressions": list(found.worse)}
    out(document, json, lambda: _comparison(found))
    if found.worse:
        raise typer.Exit(GATE_REFUSED)


def _comparison(found: Comparison) -> str:
    rows = [
        [
            change.metric,
            f"{change.before * 100:.1f} %",
            f"{change.after * 100:.1f} %",
            f"{change.difference * 100:+.1f}",
            f"{change.low * 100:+.1f} to {change.high * 100:+.1f}",
            str(change.gained),
            str(change.lost),
            f"{change.p:.2g}",
            "worse" if change.regression else "",
        ]
        for change in found.changes
    ]
    head = ["metric", "before", "after", "points", "95 % interval", "gained", "lost", "p", ""]
    parts = [f"{found.common} tasks in common", table(rows, head)]
    for title, counts in (("broke", found.broke), ("mended", found.mended)):
        for by, values in counts.items():
            most = ", ".join(f"{value} {n}" for value, n in list(values.items())[:8])
            parts.append(f"{title} by {by}: {most}")
    if found.texts:
        parts += ["bits per byte of the fixed text, lower is better", _texts(found)]
    if found.times.ratio:
        times = f"{found.times.before_p50_ms:.0f} -> {found.times.after_p50_ms:.0f} ms"
        parts.append(f"latency p50: {times} (x {found.times.ratio:.2f}, {found.times.n} tasks)")
    return "\n".join([*parts, *found.notes])


def _texts(found: Comparison) -> str:
    rows = [
        [
            change.kind,
            f"{change.before:.3f}",
            f"{change.after:.3f}",
            f"{change.difference:+.4f}",
            f"{change.low:+.4f} to {change.high:+.4f}",
            f"{(change.ratio - 1) * 100:+.2f} %",
            "worse" if change.regression else "",
        ]
        for change in found.texts
    ]
    return table(rows, ["passages", "before", "after", "difference", "95 % interval", "", ""])
