"""Direct preference optimisation (Rafailov et al. 2023): of two answers to one prompt the right one becomes likelier.

The prompt is computed once for both answers, the catalogue once for many pairs. The reference is the model at the
start; its log-probabilities are computed once, before the first step, and kept in `reference.json`.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from llm_tuner.training.recipe import Recipe
from llm_tuner.types import DataError, EmptyData, Event, Pair, TrainingError, content_hash

if TYPE_CHECKING:
    from llm_tuner.training.learner import Learner
    from llm_tuner.training.packing import Unit


class DPO(Recipe):
    """Preference optimisation on pairs. `beta`: how dearly leaving the reference is paid for. `sft_weight`: this much
    of the chosen answers' own cross entropy a token is added (RPO, Pang et al. 2024), which keeps right answers likely.
    The learning rate is a tenth of SFT's: pairs push harder."""

    beta: float = Field(0.1, gt=0)
    sft_weight: float = Field(0.0, ge=0)
    learning_rate: float = Field(2e-5, gt=0)


def dpo(
    config: DPO, gguf: Path, pairs: Sequence[Pair], out: Path, *, held_out: Sequence[Pair] = (),
    start: Path | None = None,
) -> Generator[Event, None, dict[str, Any]]:  # fmt: skip
    """Trains an adapter into `out/adapter`, as sft does. `start`: the adapter to go on from, which is the reference.

    Raises EmptyData without pairs, DataError for a pair whose answers have two prompts.
    """
    if not pairs:
        raise EmptyData("There are no pairs to train on. Make some first: llm-tuner data pairs")
    for pair in pairs:
        if pair.chosen.prompt_ids != pair.rejected.prompt_ids:
            raise DataError(
                f"The pair of task {pair.chosen.task_id} has two prompts: both answers must follow the same."
            )
    from llm_tuner.training.course import course, finish, longest, opened, schedule
    from llm_tuner.training.packing import Unit

    def units(pairs: Sequence[Pair]) -> list[Unit]:
        return [Unit((p.chosen, p.rejected), weight=1.0, data=_key(p)) for p in pairs]

    steps, left_out = schedule(config, units(pairs))
    measured = (schedule(config, units(held_out), once=True)[0] or [[]])[0]
    learner = yield from opened(config, gguf, out, len(steps), start, longest(steps))
    reference: dict[str, list[float]] = {}
    yield from _reference(learner, [u for step in steps for u in step] + measured, out / "reference.json", reference)

    def loss(values: Any, pack: Any, members: Sequence[Unit]) -> tuple[Any, dict[str, float]]:
        return preference_loss(config, values, pack, [reference[unit.data] for unit in members])

    yield from course(learner, steps, loss, measured)
    return finish(learner, {"pairs": len(pairs), "pairs_left_out": left_out, **learner.curve[-1].measured})


def preference_loss(
    config: DPO, values: Any, pack: Any, reference: Sequence[Sequence[float]]
) -> tuple[Any, dict[str, float]]:
    """-ln sigmoid(beta * (how much likelier the chosen answer became - how much the rejected one)), summed over pairs.

    values: ln p of the pack's targets (k,). reference: ln p of the chosen and of the rejected answer, for each pair.
    Measures accuracy (the chosen one gained more), the margin, and both rewards.
    """
    import torch
    from torch.nn.functional import logsigmoid

    from llm_tuner.training.loss import sums_by_row

    sums = sums_by_row(values, pack, 2 * len(reference)).view(-1, 2)
    rewards = config.beta * (sums - torch.tensor(reference, dtype=sums.dtype, device=sums.device))
    margin = rewards[:, 0] - rewards[:, 1]
    total = -logsigmoid(margin).sum()
    if config.sft_weight:
        lengths = sums_by_row(torch.ones_like(values), pack, 2 * len(reference)).view(-1, 2)
        total = total - config.sft_weight * (sums[:, 0] / lengths[:, 0]).sum()
    measured = {
        "accuracy": float((margin > 0).sum()),
        "margin": float(margin.detach().sum()),
        "chosen_reward": float(rewards[:, 0].detach().sum()),
        "rejected_reward": float(rewards[:, 1].detach().sum()),
    }
    return total, measured


def _reference(
    learner: Learner, units: Sequence[Unit], file: Path, into: dict[str, list[float]]
) -> Generator[Event, None, None]:
    """ln p of every pair's two answers under the model as it is now, or from `file` where that has them all."""
    from llm_tuner.store import write_atomic

    if file.exists():
        into.update(json.loads(file.read_text(encoding="utf-8")))
    if all(unit.data in into for unit in units):
        return
    if learner.resumed:
        raise TrainingError(f"{file} is gone or of other pairs, and the model has moved on. Start in a new folder.")
    todo = list({unit.data: unit for unit in units}.values())
    known = yield from learner.likelihoods(todo, "the reference's answers")
    into.clear()
    into.update({unit.data: [sum(row) for row in rows] for unit, rows in zip(todo, known, strict=True)})
    if learner.world.first:
        write_atomic(file, json.dumps(into))


def _key(pair: Pair) -> str:
    return content_hash([pair.chosen.prompt_ids, pair.chosen.completion_ids, pair.rejected.completion_ids])
