"""What the backward pass needs is kept, what is cheap to compute again is not: half the memory of a token.

A gated block (Llama, Qwen, Gemma) keeps four wide tensors for the backward pass: gate, up, the activated gate, their
product. Two are enough. A norm keeps its input in float32, twice; its input alone is enough. The values are the same,
only the forward pass of an activation, a product and a norm is done a second time, which costs less than the memory
traffic it saves (docs/log.md). Not a rewrite of any model: blocks of another make stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from llm_tuner.training.lora import ADAPTER, back_through, through


class _GatedDown(torch.autograd.Function):  # type: ignore[misc]
    """act(gate) * up -> base, A, B as in lora._Linear. gate and up (n, inner) -> (n, out)."""

    @staticmethod
    def forward(ctx: Any, gate: Any, up: Any, act: Any, base: Any, a: Any, b: Any, scale: float) -> Any:
        a, b = a.to(gate.dtype), b.to(gate.dtype)
        inner = act(gate).mul_(up)
        narrow = inner @ a.T
        out = through(base, inner)
        out.addmm_(narrow, b.T, alpha=scale)
        ctx.save_for_backward(gate, up, a, b, narrow)
        ctx.act, ctx.base, ctx.scale = act, base, scale
        return out

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        gate, up, a, b, narrow = ctx.saved_tensors
        g = outer[0]
        down = g @ b * ctx.scale
        slope = back_through(ctx.base, g)
        slope.addmm_(down, a)
        with torch.enable_grad():
            gate = gate.detach().requires_grad_()
            activated = ctx.act(gate)
        with torch.no_grad():
            slope_a = (down.T @ (activated * up)).float()
            slope_up = slope * activated
            slope.mul_(up)
        (slope_gate,) = torch.autograd.grad(activated, gate, slope)
        return slope_gate, slope_up, None, None, slope_a, (g.T @ narrow * ctx.scale).float(), None


def lean(model: Any) -> int:
    """Lets the gated blocks and the norms of a model with LoRA keep less; returns how many modules do."""
    changed = 0
    for name, module in model.named_modules():
        if all(hasattr(module, part) for part in ("gate_proj", "up_proj", "down_proj", "act_fn")):
            down = module.down_proj
            if "forward" in vars(down) and vars(type(module)).get("forward") is not None:
                module.forward = _gated(module)
                changed += 1
        elif type(module).__name__.endswith("RMSNorm") and not name.endswith("model.norm"):
            module.forward = _again(module)
            changed += 1
    return changed


def _gated(block: Any) -> Any:
    plain = type(block).forward
    down = block.down_proj
    base, a, b, scale = down.base_layer, down.lora_A[ADAPTER], down.lora_B[ADAPTER], down.scaling[ADAPTER]

    def forward(x: Any, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled() or down.disable_adapters or down.merged:
            return plain(block, x, *args, **kwargs)
        gate, up = (t.reshape(-1, t.shape[-1]) for t in (block.gate_proj(x), block.up_proj(x)))
        out = _GatedDown.apply(gate, up, block.act_fn, base, a.weight, b.weight, scale)
        return out.view(*x.shape[:-1], -1)

    return forward


def _again(norm: Any) -> Any:
    plain = type(norm).forward

    def forward(x: Any) -> Any:
        if not torch.is_grad_enabled() or not x.requires_grad:
            return plain(norm, x)
        return checkpoint(plain, norm, x, use_reentrant=False, preserve_rng_state=False)

    return forward
