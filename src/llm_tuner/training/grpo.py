"""Group relative policy optimisation (Shao et al. 2024, DeepSeekMath): the model tries each task several times, as it
is served; what scored above its group's mean becomes likelier, what scored below less likely.

Tries come from `roll_out`, which the loop gives: training reaches no model server and no tool. The reward is the
judge's score. Groups in which all tries scored alike say nothing and are left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from llm_tuner.training.recipe import Recipe
from llm_tuner.types import Event, Rollout

if TYPE_CHECKING:
    from llm_tuner.training.learner import Learner
    from llm_tuner.training.packing import Unit

RollOut = Callable[[int, Path], Generator[Event, None, Sequence[Rollout]]]
"""(iteration 0.., folder of the adapter as it is now) -> rollouts made with that adapter."""


class GRPO(Recipe):
    """Reinforcement on rollouts. Each of `iterations` rolls `tasks` tasks out `group` times with the adapter of that
    moment and learns from them in `updates` optimizer steps. `kl`: the price of leaving the model of the start (k3
    estimator, Schulman 2020). `clip`: how far a token's probability may move from that of the rollout (PPO, Schulman et
    al. 2017); it matters from the second update on. `scaled`: advantages are divided by their group's deviation;
    without it a group of nearly equal rewards does not count as much as a clear one (Dr. GRPO, Liu et al. 2025)."""

    iterations: int = Field(8, ge=1)
    tasks: int = Field(8, ge=1)
    group: int = Field(8, ge=2)
    updates: int = Field(1, ge=1)
    turns: int = Field(4, ge=1)
    temperature: float = Field(1.0, gt=0)
    kl: float = Field(0.04, ge=0)
    clip: float = Field(0.2, gt=0, lt=1)
    scaled: bool = True
    learning_rate: float = Field(2e-5, gt=0)
    checkpoint_every: int = Field(1, ge=1)


@dataclass(frozen=True)
class Share:
    """What a rollout's row needs for its loss: the advantage, and ln p of its tokens under the reference (empty without
    KL) and under the model that rolled out (empty where that is the present one)."""

    advantage: float
    reference: tuple[float, ...] = ()
    old: tuple[float, ...] = ()


def grpo(
    config: GRPO, gguf: Path, roll_out: RollOut, out: Path, *, start: Path | None = None
) -> Generator[Event, None, dict[str, Any]]:
    """Trains an adapter into `out/adapter`, as sft does. `start`: the adapter to go on from, which is the reference.

    A killed run goes on at the iteration that was not finished; its rollouts are `roll_out`'s to keep.
    """
    from llm_tuner.training.course import finish, kept, opened
    from llm_tuner.training.lora import save_adapter

    learner = yield from opened(config, gguf, out, config.iterations * config.updates, start)
    first = yield from _first_weights(learner, out / "first.safetensors")
    seen: list[dict[str, float]] = []
    with kept(learner):
        for iteration in range(learner.done // config.updates, config.iterations):
            policy = out / "policy"
            if learner.world.first:
                save_adapter(learner.model, policy, learner.initial)
            learner.world.wait()
            rollouts = yield from roll_out(iteration, policy)
            units, told = advantages(config, rollouts)
            seen.append(told)
            yield Event(
                step="train", message=f"reward {told['reward']:.3f}, {told['signal']:.0%} of groups say something",
                done=iteration, total=config.iterations, unit="iteration", data={**told},
            )  # fmt: skip
            if not units:
                for _ in range(config.updates):
                    learner.skip(told)
                continue
            units = yield from _compared(config, learner, units, first)
            for _ in range(learner.done % config.updates, config.updates):
                point = yield from learner.step(units, lambda v, p, u: policy_loss(config, v, u))
                learner.curve[-1] = point.model_copy(update={"measured": {**told, **point.measured}})
    return finish(learner, {"iterations": config.iterations, **(seen[-1] if seen else {})})


def advantages(config: GRPO, rollouts: Sequence[Rollout]) -> tuple[list[Unit], dict[str, float]]:
    """A unit for each row of the rollouts whose groups say something, with the rollout's advantage; and the mean
    reward, the share of groups with signal, the share of rollouts left out for their length."""
    from llm_tuner.training.packing import Unit

    groups: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.task_id, []).append(rollout)
    units: list[Unit] = []
    signal = long = 0
    for group in groups.values():
        rewards = [rollout.reward for rollout in group]
        mean, spread = statistics.fmean(rewards), statistics.pstdev(rewards)
        if spread < 1e-6:
            continue
        signal += 1
        for rollout in group:
            if any(row.length > config.max_seq_length for row in rollout.rows):
                long += 1
                continue
            advantage = (rollout.reward - mean) / (spread if config.scaled else 1.0)
            units.extend(Unit((row,), weight=len(row.completion_ids), data=Share(advantage)) for row in rollout.rows)
    rewards = [rollout.reward for rollout in rollouts]
    return units, {
        "reward": statistics.fmean(rewards) if rewards else 0.0,
        "signal": signal / len(groups) if groups else 0.0,
        "too_long": long / len(rollouts) if rollouts else 0.0,
    }


def policy_loss(config: GRPO, values: Any, units: Sequence[Unit]) -> tuple[Any, dict[str, float]]:
    """The clipped policy gradient plus the KL to the reference, summed over tokens. values: ln p of the units' target
    tokens, row by row."""
    import torch

    def spread(of: str) -> Any:
        rows = [getattr(unit.data, of) for unit in units]
        return torch.tensor([x for row in rows for x in row], dtype=values.dtype, device=values.device)

    lengths = torch.tensor([len(unit.rows[0].completion_ids) for unit in units], device=values.device)
    advantage = torch.tensor([unit.data.advantage for unit in units], dtype=values.dtype, device=values.device)
    advantage = advantage.repeat_interleave(lengths)
    old = spread("old") if units[0].data.old else values.detach()
    ratio = (values - old).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - config.clip, 1 + config.clip) * advantage)
    total = -gain.sum()
    measured = {"clipped": float(((ratio - 1).abs() > config.clip).sum())}
    if config.kl:
        behind = spread("reference") - values
        kl = (behind.exp() - behind - 1).sum()
        total = total + config.kl * kl
        measured["kl"] = float(kl.detach())
    return total, measured


def _compared(
    config: GRPO, learner: Learner, units: Sequence[Unit], first: dict[str, Any]
) -> Generator[Event, None, list[Unit]]:
    """The units with the log-probabilities that their loss compares with."""
    from dataclasses import replace

    references: Sequence[Any] = [((),)] * len(units)
    olds: Sequence[Any] = references
    if config.kl:
        with learner.as_at_the_start(first):
            references = yield from learner.likelihoods(units, "the reference's view")
    if config.updates > 1:
        olds = yield from learner.likelihoods(units, "the policy's view")
    return [
        replace(unit, data=Share(unit.data.advantage, tuple(reference[0]), tuple(old[0])))
        for unit, reference, old in zip(units, references, olds, strict=True)
    ]


def _first_weights(learner: Learner, file: Path) -> Generator[Event, None, dict[str, Any]]:
    """The adapter as it was before the first step, kept in `file` for a run that goes on."""
    from safetensors.torch import load_file, save_file

    if not learner.resumed or not file.exists():
        tensors = {name: weight.detach().cpu().clone() for name, weight in learner.weights.items()}
        if learner.world.first:
            save_file(tensors, file)
        return tensors
    yield Event(step="train", message="the reference is that of the first start")
    return dict(load_file(file))
