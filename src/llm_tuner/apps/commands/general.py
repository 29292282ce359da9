"""`llm-tuner eval general`: did tuning for calls cost the rest?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llm_tuner.apps.commands.evaluate import DEFAULT_MODEL, BaseUrl, Model, Ollama, Out
from llm_tuner.apps.console import Json, drive, out, table

if TYPE_CHECKING:
    from llm_tuner.types import Estimate, Report


def general(
    model: Model = "",
    ollama: Ollama = "",
    base_url: BaseUrl = "",
    threads: Annotated[int, typer.Option(min=0, help="Of the embedded runtime; 0 takes every core.")] = 0,
    out_folder: Out = None,
    json: Json = False,
) -> None:
    """Forty short questions about code, each with one exact answer, and the perplexity of a fixed text. No tools.

    Nothing a model writes is executed. The perplexity needs the embedded runtime: other servers do not say how probable
    a given text is. Compare two models by both: llm-tuner eval compare FOLDER FOLDER.

    Example: llm-tuner eval general --model demo:stable --out general
    """
    from llm_tuner.evaluation.general import general as asked
    from llm_tuner.evaluation.target import Target

    named = model or ("" if ollama else DEFAULT_MODEL)
    report = drive(asked(Target(model=named, ollama=ollama, base_url=base_url, threads=threads), out=out_folder))
    out(report.model_dump(mode="json", exclude={"verdicts"}), json, lambda: _general(report))


def _general(report: Report) -> str:
    rate = report.rates["ok"]
    low, high = (rate.low or 0) * 100, (rate.high or 0) * 100
    lines = [f"{report.backend}: {rate.k} of {rate.n} right (95 % interval {low:.0f} to {high:.0f} %)"]
    found = report.perplexity
    if found is None or found.why:
        return "\n".join([*lines, f"perplexity: {found.why if found else 'not measured'}"])
    rows = [
        [kind, *_estimate(bits, 3), *_estimate(found.perplexity[kind], 1)] for kind, bits in found.bits_per_byte.items()
    ]
    head = ["passages", "bits/byte", "95 % interval", "perplexity", "95 % interval"]
    return "\n".join([*lines, table(rows, head), f"text {found.text}"])


def _estimate(found: Estimate, digits: int) -> list[str]:
    return [f"{found.value:.{digits}f}", f"{found.low:.{digits}f} to {found.high:.{digits}f}"]
