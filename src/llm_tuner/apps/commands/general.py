"""`llm-tuner eval general`: did tuning for calls cost the rest?"""

from __future__ import annotations

from typing import Annotated

import typer

from llm_tuner.apps.commands.evaluate import DEFAULT_MODEL, BaseUrl, Model, Ollama, Out
from llm_tuner.apps.console import Json, drive, out


def general(
    model: Model = "",
    ollama: Ollama = "",
    base_url: BaseUrl = "",
    threads: Annotated[int, typer.Option(min=0, help="Of the embedded runtime; 0 takes every core.")] = 0,
    out_folder: Out = None,
    json: Json = False,
) -> None:
    """Forty short questions about code, without tools, each with one exact answer. Nothing a model writes is executed.

    Compare two models by it: llm-tuner eval compare FOLDER FOLDER.

    Example: llm-tuner eval general --model demo:stable --out general
    """
    from llm_tuner.evaluation.general import general as asked
    from llm_tuner.evaluation.target import Target

    named = model or ("" if ollama else DEFAULT_MODEL)
    report = drive(asked(Target(model=named, ollama=ollama, base_url=base_url, threads=threads), out=out_folder))
    rate = report.rates["ok"]

    def text() -> str:
        low, high = (rate.low or 0) * 100, (rate.high or 0) * 100
        return f"{report.backend}: {rate.k} of {rate.n} right (95 % interval {low:.0f} to {high:.0f} %)"

    out(report.model_dump(mode="json", exclude={"verdicts"}), json, text)
