"""ln p of the target tokens of a pack: what every recipe's loss is made of.

The vocabulary is the widest thing in a small model: 600 targets of 151,936 logits are 182 MB in bfloat16, and the plain
functions keep several float32 copies just when all activations are alive. Here the logits are kept once, in their own
precision, and the backward pass overwrites them with their gradient, a few targets at a time.
"""

from __future__ import annotations

from typing import Any

import torch

from llm_tuner.training.attention import Layout
from llm_tuner.training.packing import Pack

CHUNK = 64
"""Targets at a time: 39 MB of float32 for a vocabulary of 151,936."""


class _TargetLogProbabilities(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, logits: Any, targets: Any) -> Any:
        total = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
        out = torch.empty_like(total)
        for start in range(0, len(targets), CHUNK):
            part = logits[start : start + CHUNK].float()
            total[start : start + CHUNK] = part.logsumexp(-1)
            out[start : start + CHUNK] = part.gather(1, targets[start : start + CHUNK, None])[:, 0]
        ctx.save_for_backward(targets, total)
        ctx.logits = logits.detach()  # overwritten below, so it must not count as saved for another backward pass
        return out - total

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        targets, total = ctx.saved_tensors
        logits, ctx.logits = ctx.logits, None
        if logits is None:
            raise RuntimeError("The logits were overwritten by the first backward pass; compute them again.")
        for start in range(0, len(targets), CHUNK):
            g = outer[0][start : start + CHUNK, None]
            slope = (logits[start : start + CHUNK].float() - total[start : start + CHUNK, None]).exp_().mul_(-g)
            slope.scatter_add_(1, targets[start : start + CHUNK, None], g)
            logits[start : start + CHUNK] = slope
        return logits, None


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
    return target_log_probabilities(outputs.logits[0], torch.tensor(pack.targets, device=device))


def sums_by_row(values: Any, pack: Pack, rows: int) -> Any:
    """The sum over each row's targets (rows,)."""
    owners = torch.tensor(pack.owners, device=values.device)
    return torch.zeros(rows, dtype=values.dtype, device=values.device).index_add(0, owners, values)
