"""The card beside an exported model: what it is, what it was made of, how it was measured; English and Japanese.

Not a report. The rule that it protects: every number comes out of a run record; what no record says is not written.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field

from llm_tuner.types import Json, Value


class Measured(Value):
    """One rate before and after the training, as the evaluation measured it on `n` tasks."""

    suite: str
    rate: str
    before: float | None
    after: float | None
    n: int


class Lineage(Value):
    """Where an exported model comes from. `runs` by kind, `data` counts by name, `settings` of the training; `licence`
    and `repository` are the base's, "" where they are not known."""

    base: str
    base_sha256: str
    licence: str = ""
    repository: str = ""
    runs: dict[str, str] = Field(default_factory=dict)
    data: dict[str, int] = Field(default_factory=dict)
    settings: dict[str, Json] = Field(default_factory=dict)
    metrics: dict[str, Json] = Field(default_factory=dict)
    measured: tuple[Measured, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)


def card(lineage: Lineage, *, kind: str, files: dict[str, str], agreement: str = "") -> str:
    """The card of one exported format. `files`: SHA-256 by name; `agreement`: the sentence of what was measured."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("llm_tuner.training.export", "templates"),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_inert,
    )
    text = environment.get_template("card.md").render(
        lineage=lineage,
        kind=kind,
        files=files,
        agreement=agreement,
        licence=_licence(lineage.licence),
        library=_library(kind),
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def _inert(value: Any) -> Any:
    """Nothing that a record holds can start a table cell, a tag or a line of its own."""
    if not isinstance(value, str):
        return value
    return " ".join(value.split()).replace("|", "\\|").replace("<", "&lt;")


def _licence(name: str) -> str:
    """The hub's word for a licence."""
    return name.lower() if name in ("Apache-2.0", "MIT") else "other"


def _library(kind: str) -> str:
    return {"peft": "peft", "safetensors": "transformers"}.get(kind, "gguf")
