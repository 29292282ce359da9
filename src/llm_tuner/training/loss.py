"""ln p of the target tokens of a pack: what every recipe's loss is made of.

The vocabulary is the widest thing in a small model: 600 targets of 151,936 logits are 182 MB in bfloat16, and the plain
functions keep several float32 copies just when all activations are alive. Here the logits are kept once, in their own
precision, and the backward pass overwrites them with their gradient, a few targets at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from llm_tuner.training.attention import Layout
from llm_tuner.training.packing import Pack

CHUNK = 32
"""Targets at a time: 20 MB of float32 for a vocabulary of 151,936."""


class _TargetLogProbabilities(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, logits: Any, targets: Any) -> Any:
        total = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
        out = torch.empty_like(total)
        for at, part in _chunks(logits):
            out[at] = part.gather(1, targets[at, None])[:, 0]
            top = part.amax(-1, keepdim=True)
            total[at] = part.sub_(top).exp_().sum(-1).log_() + top[:, 0]
        ctx.save_for_backward(targets, total)
        ctx.logits = logits.detach()  # overwritten below, so it must not count as saved for another backward pass
        return out - total

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        targets, total = ctx.saved_tensors
        logits, ctx.logits = ctx.logits, None
        if logits is None:
            raise RuntimeError("The logits were overwritten by the first backward pass; compute them again.")
        for at, part in _chunks(logits):
            g = outer[0][at, None]
            part.sub_(total[at, None]).exp_().mul_(-g).scatter_add_(1, targets[at, None], g)
            logits[at] = part
        return logits, None


def _chunks(logits: Any) -> Iterator[tuple[slice, Any]]:
    """(slice, those logits in float32), in memory that the next chunk uses again."""
    held = torch.empty(min(CHUNK, len(logits)), logits.shape[1], dtype=torch.float32, device=logits.device)
    for start in range(0, len(logits), CHUNK):
        at = slice(start, min(start + CHUNK, len(logits)))
        yield at, held[: at.stop - at.start].copy_(logits[at])


def target_log_probabilities(logits: Any, targets: Any) -> Any:
    """ln p (k, float32, nats) of `targets` (k) under `logits` (k, vocabulary). The backward pass may run once: it
    writes over the logits."""
    return _TargetLogProbabilities.apply(logits, targets)


def log_probabilities(model: Any, pack: Pack, device: Any) -> Any:
    """ln p of each target of the pack (k, float32, nats), in the pack's order. One forward pass over the whole pack;
    logits are computed at the positions that predict, nowhere else."""
    outputs = model(
        input_ids=torch.tensor([pack.ids], device=device),
        position_ids=torch.tensor([pack.positions], device=device),
        logits_to_keep=torch.tensor(pack.predicts, device=device),
        layout=Layout(pack, torch.device(device)),
        use_cache=False,
    )
    return target_log_probabilities(outputs.logits.flatten(0, 1), torch.tensor(pack.targets, device=device))


def sums_by_row(values: Any, pack: Pack, rows: int) -> Any:
    """The sum over each row's targets (rows,)."""
    owners = torch.tensor(pack.owners, device=values.device)
    return torch.zeros(rows, dtype=values.dtype, device=values.device).index_add(0, owners, values)
