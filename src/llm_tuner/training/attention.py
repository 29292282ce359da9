"""Attention over a pack: each token sees its ancestors in the token tree, nothing else (packing.py).

No mask is made. Depth first, the descendants of a node are one run of queries and its tokens are one run of keys, so a
pack is a causal product for each node (small ones side by side) and a dense one of its descendants with it: exactly the
pairs that count. The parts of one query are joined by their log-sum-exp, and the backward pass of a part takes the
joined result, as in ring attention (Liu et al. 2023) and FlashAttention-2 (Dao 2023). On CUDA it is FlexAttention with
the same rule as a block mask. Layers with a sliding window, and devices without these kernels, take a dense mask.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from llm_tuner.training.packing import Node, Pack
from llm_tuner.types import TrainingError

ALONE = 384
"""Nodes of more tokens are not computed beside others."""

NAME = "llm_tuner_tree"
"""What transformers knows it as (`attn_implementation`)."""

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass
class Layout:
    """Who sees whom in one pack, on one device; made once a pack and given to the model as the keyword `layout`."""

    pack: Pack
    device: torch.device
    _masks: dict[int | str | None, Any] = field(default_factory=dict)

    @cached_property
    def own(self) -> list[tuple[Any, Any]]:
        """(places, kept): every node's own tokens, nodes of like lengths together, padded to the longest (n, m); `kept`
        says which places are no padding. A long node stands alone, as a slice. Padding comes after what it pads, so a
        causal product never looks at it."""
        out: list[tuple[Any, Any]] = []
        like: dict[int, list[Node]] = {}
        for node in self.pack.nodes:
            length = node.end - node.start
            if length > ALONE:
                out.append((slice(node.start, node.end), None))
            elif length:
                like.setdefault(length.bit_length(), []).append(node)
        for nodes in like.values():
            longest = max(node.end - node.start for node in nodes)
            steps = torch.arange(longest)[None]
            lengths = torch.tensor([node.end - node.start for node in nodes])[:, None]
            starts = torch.tensor([node.start for node in nodes])[:, None]
            out.append((starts + torch.minimum(steps, lengths - 1), steps < lengths))
        return out

    @cached_property
    def below(self) -> list[tuple[slice, slice]]:
        """(queries, keys): the descendants of each node, and its own tokens."""
        return [
            (slice(node.end, node.last), slice(node.start, node.end))
            for node in self.pack.nodes
            if node.last > node.end > node.start
        ]

    def mask(self, window: int | None) -> Any:
        """(L, L) bool: query (row) sees key (column). With a `window`, keys fewer than that many positions back."""
        if window not in self._masks:
            places = torch.arange(len(self.pack.ids), device=self.device)
            ends = torch.tensor(self.pack.ends, device=self.device)
            sees = (places[None, :] <= places[:, None]) & (places[:, None] < ends[None, :])
            if window is not None:
                positions = torch.tensor(self.pack.positions, device=self.device)
                sees &= positions[:, None] - positions[None, :] < window
            self._masks[window] = sees
        return self._masks[window]

    def blocks(self) -> Any:
        """The same rule as a FlexAttention block mask."""
        if "blocks" not in self._masks:
            from torch.nn.attention.flex_attention import create_block_mask

            ends = torch.tensor(self.pack.ends, device=self.device)

            def sees(b: Any, h: Any, q: Any, k: Any) -> Any:
                return (k <= q) & (q < ends[k])

            length = len(self.pack.ids)
            self._masks["blocks"] = create_block_mask(sees, None, None, length, length, device=str(self.device))
        return self._masks["blocks"]


class _TreeAttention(torch.autograd.Function):  # type: ignore[misc]
    """q (1, H, L, D), k and v (1, KV, L, D) -> (1, H, L, D), on a CPU."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, scale: float, layout: Layout) -> Any:
        q, k, v = (t[0].transpose(0, 1) for t in (q, k, v))  # (L, heads, D)
        joined = torch.empty(q.shape, dtype=torch.float32)
        weight = torch.empty(q.shape[:2])
        for places, kept in layout.own:
            part, lse = _forward(_batch(q, places), _batch(k, places), _batch(v, places), 0.0, True, scale=scale)
            _place(joined, places, kept, part.transpose(1, 2))
            _place(weight, places, kept, lse.transpose(1, 2))
        for queries, keys in layout.below:
            part, lse = (t[0].transpose(0, 1) for t in _forward(
                _batch(q, queries), _batch(k, keys), _batch(v, keys), 0.0, False, scale=scale
            ))  # fmt: skip
            before = weight[queries]
            together = torch.logaddexp(before, lse)
            joined[queries] *= (before - together).exp_()[..., None]
            joined[queries] += part * (lse - together).exp_()[..., None]
            weight[queries] = together
        out = joined.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, weight)
        ctx.scale, ctx.layout = scale, layout
        return out.transpose(0, 1)[None]

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        q, k, v, out, weight = ctx.saved_tensors
        g = outer[0][0].transpose(0, 1)
        slopes = [torch.empty(t.shape, dtype=torch.float32) for t in (q, k, v)]
        for places, kept in ctx.layout.own:
            lse = _batch(weight[..., None], places)[..., 0]
            outer_part = _batch(g, places)
            if kept is not None:  # padding is a query, too, and must teach its keys nothing
                outer_part = outer_part * kept[:, None, :, None]
            parts = _backward(
                outer_part, _batch(q, places), _batch(k, places), _batch(v, places), _batch(out, places), lse,
                0.0, True, scale=ctx.scale,
            )  # fmt: skip
            for slope, part in zip(slopes, parts, strict=True):
                _place(slope, places, kept, part.transpose(1, 2))
        for queries, keys in ctx.layout.below:
            lse = _batch(weight[..., None], queries)[..., 0]
            parts = _backward(
                _batch(g, queries), _batch(q, queries), _batch(k, keys), _batch(v, keys), _batch(out, queries), lse,
                0.0, False, scale=ctx.scale,
            )  # fmt: skip
            for slope, at, part in zip(slopes, (queries, keys, keys), parts, strict=True):
                slope[at] += part[0].transpose(0, 1)
        return *(slope.to(q.dtype).transpose(0, 1)[None] for slope in slopes), None, None


def _batch(tensor: Any, places: Any) -> Any:
    """Tokens of (L, heads, D) -> (n, heads, m, D): n nodes of m tokens by their places (n, m), or a slice as one."""
    taken = tensor[places]
    return (taken[None] if isinstance(places, slice) else taken).transpose(1, 2)


def _place(whole: Any, places: Any, kept: Any, part: Any) -> None:
    """Writes (n, m, ...) to where it came from, without the padding."""
    if isinstance(places, slice):
        whole[places] = part[0]
    else:
        whole[places[kept]] = part[kept].to(whole.dtype)


def attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, *, scaling: float | None = None,
    dropout: float = 0.0, sliding_window: int | None = None, layout: Layout | None = None, **kwargs: Any,
) -> tuple[Any, None]:  # fmt: skip
    """transformers' attention interface: query (1, H, L, D), key and value (1, KV, L, D) -> (1, L, H, D), None.

    Raises TrainingError for what it does not compute: dropout, soft caps, sinks, position biases.
    """
    special = [name for name in ("softcap", "s_aux", "sinks", "position_bias") if kwargs.get(name) is not None]
    if special or dropout:
        raise TrainingError(
            f"Attention with {', '.join(special) or 'dropout'} cannot be computed over packs: {type(module).__name__} "
            "cannot be trained here. Take another base model."
        )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if layout is None:  # a plain causal sequence: PEFT and transformers probe a model this way
        out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    elif sliding_window is not None and max(layout.pack.positions) >= sliding_window:
        out = _dense(query, key, value, layout.mask(sliding_window), scale)
    elif query.device.type == "cpu":
        out = _TreeAttention.apply(query, key, value, scale, layout)
    elif query.device.type == "cuda":
        out = _flex()(query, key, value, block_mask=layout.blocks(), scale=scale, enable_gqa=True)
    else:
        out = _dense(query, key, value, layout.mask(None), scale)
    return out.transpose(1, 2).contiguous(), None


def _dense(query: Any, key: Any, value: Any, sees: Any, scale: float) -> Any:
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=sees, scale=scale)


_compiled: list[Any] = []


def _flex() -> Any:
    if not _compiled:
        from torch.nn.attention.flex_attention import flex_attention

        _compiled.append(torch.compile(flex_attention, dynamic=True))
    return _compiled[0]


def register() -> None:
    """Makes transformers know this attention by NAME. It wants no mask of transformers' own."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
