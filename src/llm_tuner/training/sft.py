"""Supervised fine-tuning: the loss is the cross entropy of the completions' tokens. Read it top to bottom."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from llm_tuner.training.recipe import LINEAR_LAYERS, Curve, Recipe
from llm_tuner.types import Event, Row

__all__ = ["LINEAR_LAYERS", "SFT", "Curve", "sft"]


class SFT(Recipe):
    """Supervised fine-tuning on rows. The mission's defaults."""


def sft(
    config: SFT, gguf: Path, rows: Sequence[Row], out: Path, *, held_out: Sequence[Row] = (), start: Path | None = None
) -> Generator[Event, None, dict[str, Any]]:
    """Trains an adapter on the GGUF's weights into `out/adapter`, and writes `out/curve.jsonl` and `out/metrics.json`;
    returns the metrics. `start`: the folder of an adapter to go on from. `held_out`: rows whose loss is measured.

    A run killed in the middle goes on from `out/checkpoints` when called again with the same arguments. Raises
    DataError for rows that do not fit, TrainingError for what cannot be trained, TrainingInterrupted on Ctrl-C.
    """
    from llm_tuner.training.course import course, finish, longest, opened, schedule
    from llm_tuner.training.packing import Unit

    def units(rows: Sequence[Row]) -> list[Unit]:
        return [Unit((row,), weight=len(row.completion_ids)) for row in rows]

    steps, left_out = schedule(config, units(rows))
    learner = yield from opened(config, gguf, out, len(steps), start, longest(steps))
    measured, _ = schedule(config, units(held_out), once=True)
    yield from course(learner, steps, completion_loss, measured[0] if measured else [])
    return finish(learner, {"rows": len(rows), "rows_left_out": left_out})


def completion_loss(values: Any, pack: Any, units: Any) -> tuple[Any, dict[str, float]]:
    """Cross entropy (nats), summed over target tokens: each token counts alike, however long its row is."""
    return -values.sum(), {}
