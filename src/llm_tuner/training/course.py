"""From a recipe's units to a trained adapter: the flow that SFT and DPO share, and GRPO's parts of it.

Not the maths: losses are the recipes', a step is the learner's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_tuner.store import write_atomic
from llm_tuner.training.base import choose_precision, give_memory_back, load_base, map_large_tensors, require_torch
from llm_tuner.training.packing import Unit, pack, plan, without_too_long
from llm_tuner.training.recipe import Recipe
from llm_tuner.types import EmptyData, Event, TrainingInterrupted

if TYPE_CHECKING:  # torch is imported when training starts
    from llm_tuner.training.learner import Learner, Loss


def schedule(config: Recipe, units: Sequence[Unit], once: bool = False) -> tuple[list[list[Unit]], int]:
    """The optimizer steps of all epochs, and how many units were left out for their length. `once`: all in one step."""
    fits = without_too_long(units, config.max_seq_length, config.too_long == "drop")
    if once:
        return ([fits] if fits else []), len(units) - len(fits)
    if not fits:
        raise EmptyData("There is nothing to train on. Collect some first: llm-tuner data collect")
    steps: list[list[Unit]] = []
    for epoch in range(math.ceil(config.epochs)):
        one = plan(fits, units_a_step=config.units_a_step, seed=f"{config.seed}:{epoch}")
        left = min(1.0, config.epochs - epoch)
        steps.extend(one[: max(1, round(len(one) * left))])
    return steps, len(units) - len(fits)


def longest(steps: Sequence[Sequence[Unit]]) -> int:
    """Tokens of the longest pack that cannot be made shorter: of one unit, what its rows share counted once."""
    return max((len(pack(unit.rows).ids) for units in steps for unit in units), default=0)


def opened(
    config: Recipe, gguf: Path, out: Path, total: int, start: Path | None, longest: int = 0
) -> Generator[Event, None, Learner]:
    """The base with its adapter, ready for the first step that is not done yet. `longest` is the pack, in tokens, that
    `memory` must have room for."""
    require_torch()
    from transformers import set_seed

    from llm_tuner.training import devices
    from llm_tuner.training.lean import lean
    from llm_tuner.training.learner import Learner
    from llm_tuner.training.lora import with_lora

    world = devices.world()
    if config.memory:
        config = yield from _within_memory(config, gguf, world.device.type, longest)
    dtype = choose_precision(config.precision)
    yield Event(step="train", message=f"loading {gguf.name} to train in {str(dtype).removeprefix('torch.')}")
    set_seed(config.seed)
    if config.weights == "blocks":
        from llm_tuner.training.blocks import load_blocks as load
    else:
        load = load_base
    model = with_lora(load(gguf, dtype, world.device), config, start)
    lean(model)
    if config.gradient_checkpointing:
        model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    learner = Learner(model, config, out, total, world)
    if learner.resumed:
        yield Event(step="train", message=f"going on after step {learner.resumed}", done=learner.resumed, total=total)
    return learner


def _within_memory(config: Recipe, gguf: Path, device: str, longest: int) -> Generator[Event, None, Recipe]:
    """The recipe as `memory` has it. A GPU computes in bfloat16 unless told otherwise, a CPU in float32 if it fits."""
    from llm_tuner.training.memory import derive

    if device == "cuda" and config.precision == "auto":
        config = config.model_copy(update={"precision": "bfloat16"})
    chosen = derive(config.memory, gguf, config, longest)
    for sentence in chosen.sentences:
        yield Event(step="train", message=sentence, data={"estimate": chosen.estimate.model_dump()})
    map_large_tensors()
    applied: Recipe = chosen.applied(config)
    return applied


def course(
    learner: Learner, steps: Sequence[Sequence[Unit]], loss: Loss, held_out: Sequence[Unit]
) -> Generator[Event, None, None]:
    """The steps that are not done yet. Closing the generator, or Ctrl-C, keeps the last finished step."""
    with kept(learner):
        for units in steps[learner.done :]:
            yield from learner.step(units, loss)
            if (yield from learner.held_out(held_out, loss)):
                yield Event(step="train", message="the held-out loss has stopped falling", done=learner.done)
                break


@contextmanager
def kept(learner: Learner) -> Iterator[None]:
    """Inside, whatever ends the training leaves a checkpoint of the last finished step."""
    try:
        yield
    except KeyboardInterrupt:
        learner.save()
        raise TrainingInterrupted("Training was interrupted; a checkpoint is saved. Run the command again.") from None
    except BaseException:  # closed by the caller, or an error: what was learned so far is not lost
        learner.save()
        raise


def finish(learner: Learner, extra: dict[str, Any]) -> dict[str, Any]:
    """Writes the adapter and the metrics, and gives the model's memory back: it is measured in another process."""
    curve, config = learner.curve, learner.config
    frozen = (weight for weight in learner.model.parameters() if not weight.requires_grad)
    base = next(weight for weight in frozen if weight.is_floating_point())
    metrics = {
        **extra,
        "steps": learner.done,
        "first_loss": curve[0].loss,
        "last_loss": curve[-1].loss,
        "held_out_loss": learner.best[0] if learner.best else None,
        "best_step": learner.best[1] if learner.best else None,
        "tokens_computed": sum(point.tokens for point in curve),
        "prefix_sharing": round(sum(p.row_tokens for p in curve) / max(1, sum(p.tokens for p in curve)), 2),
        "train_seconds": round(sum(point.seconds for point in curve), 1),
        "pack_tokens": learner.pack_tokens,
        "precision": str(base.dtype).removeprefix("torch."),
        "device": learner.world.device.type,
        "processes": learner.world.size,
        "epochs": config.epochs,
    }
    if learner.world.first:
        write_atomic(learner.out / "metrics.json", json.dumps(metrics, indent=1))
    learner.finish()
    learner.model = learner.optimizer = None
    learner.weights = {}
    give_memory_back()
    return metrics
