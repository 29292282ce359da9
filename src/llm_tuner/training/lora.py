"""LoRA on a base model: PEFT makes, loads and saves the adapter; its plain layers are computed here.

PEFT's own forward pass of a layer makes five large temporaries and keeps two of them for the backward pass. `_Linear`
adds the low-rank product into the result in place and keeps the layer's input, which its neighbours keep anyway: the
same values with less memory and time (docs/log.md). Layers with dropout and DoRA's stay PEFT's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llm_tuner.training.base import quiet
from llm_tuner.training.recipe import Recipe
from llm_tuner.types import TrainingError

ADAPTER = "default"  # PEFT's name for the only adapter of a model


def through(base: Any, x: Any) -> Any:
    """x (n, in) -> x W' + bias of a frozen layer, dense or in blocks (blocks.py), without autograd."""
    if hasattr(base, "product"):
        out = base.product(x)
        return out if base.bias is None else out.add_(base.bias)
    return x @ base.weight.T if base.bias is None else torch.addmm(base.bias, x, base.weight.T)


def back_through(base: Any, slope: Any) -> Any:
    """slope (n, out) -> slope W."""
    return base.product_back(slope) if hasattr(base, "product_back") else slope @ base.weight


class _Linear(torch.autograd.Function):  # type: ignore[misc]
    """x (n, in) -> x W' + bias + scale (x A') B', with A (r, in), B (out, r); W (out, in) and bias are `base`'s."""

    @staticmethod
    def forward(ctx: Any, x: Any, base: Any, a: Any, b: Any, scale: float) -> Any:
        a, b = a.to(x.dtype), b.to(x.dtype)
        narrow = x @ a.T
        out = through(base, x)
        out.addmm_(narrow, b.T, alpha=scale)
        ctx.save_for_backward(x, a, b, narrow)
        ctx.base, ctx.scale = base, scale
        return out

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        x, a, b, narrow = ctx.saved_tensors
        g = outer[0]
        down = g @ b * ctx.scale
        slope_x = None
        if ctx.needs_input_grad[0]:
            slope_x = back_through(ctx.base, g)
            slope_x.addmm_(down, a)
        return slope_x, None, (down.T @ x).float(), (g.T @ narrow * ctx.scale).float(), None


def with_lora(model: Any, config: Recipe, start: Path | None = None) -> Any:
    """The model with a LoRA adapter: a fresh one (B = 0, so the first step starts at the base model), or that of the
    folder `start`, whose rank and layers then count.

    Raises TrainingError for layers that the architecture has not, an adapter of another base, and options whose result
    could not be exported exactly.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    if start is not None:
        _refuse_foreign(model, start)
        with quiet():
            adapted = PeftModel.from_pretrained(model, str(start), is_trainable=True)
    else:
        _refuse_unknown(model, config.target_modules)
        if config.variant == "pissa" and next(model.parameters()).dtype != torch.float32:
            raise TrainingError(
                "PiSSA takes the adapter out of the base's weights, and in bfloat16 what is left would be rounded: the "
                "exported model would not be the trained one. Train with precision = float32, or variant = lora."
            )
        lora = LoraConfig(
            r=config.r, lora_alpha=config.alpha, lora_dropout=config.dropout, bias="none", task_type="CAUSAL_LM",
            target_modules=list(config.target_modules), use_rslora=config.variant == "rslora",
            use_dora=config.variant == "dora", init_lora_weights="pissa" if config.variant == "pissa" else True,
        )  # fmt: skip
        with quiet():
            adapted = get_peft_model(model, lora)
    compute_here(adapted)
    return adapted


def compute_here(model: Any) -> int:
    """Lets the plain LoRA layers of a PEFT model be computed by `_Linear`; returns how many are."""
    from peft.tuners.lora import Linear

    changed = 0
    for layer in model.modules():
        if not isinstance(layer, Linear) or layer.lora_variant:
            continue
        if type(layer.base_layer) is not torch.nn.Linear and not hasattr(layer.base_layer, "product_back"):
            continue
        if isinstance(layer.lora_dropout[ADAPTER], torch.nn.Identity):
            layer.forward = _computed(layer)
            changed += 1
    return changed


def _computed(layer: Any) -> Any:
    base, a, b, scale = layer.base_layer, layer.lora_A[ADAPTER], layer.lora_B[ADAPTER], layer.scaling[ADAPTER]
    plain = type(layer).forward

    def forward(x: Any, *args: Any, **kwargs: Any) -> Any:
        if layer.disable_adapters or layer.merged:
            return plain(layer, x, *args, **kwargs)
        flat = x.reshape(-1, x.shape[-1])
        return _Linear.apply(flat, base, a.weight, b.weight, scale).view(*x.shape[:-1], -1)

    return forward


def trained(model: Any) -> dict[str, Any]:
    """The trainable parameters by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def save_adapter(model: Any, folder: Path, initial: dict[str, Any] | None = None) -> None:
    """Writes PEFT's folder of the adapter. PiSSA's is written as the plain LoRA of twice the rank that it equals, whose
    base is the untouched one; `initial` are its weights before training."""
    with quiet():
        model.save_pretrained(str(folder))
    if initial is None:
        return
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if "lora_A" in name]:
        other = name.replace("lora_A", "lora_B")
        a0, b0 = (initial[n.replace(".weight", f".{ADAPTER}.weight")].cpu() for n in (name, other))
        tensors[name] = torch.cat([tensors[name], a0]).contiguous()
        tensors[other] = torch.cat([tensors[other], -b0], dim=1).contiguous()
    save_file(tensors, file)
    written = folder / "adapter_config.json"
    config = json.loads(written.read_text(encoding="utf-8"))
    config |= {"r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"], "init_lora_weights": True}
    written.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _refuse_unknown(model: Any, targets: Sequence[str]) -> None:
    linear = {name.rsplit(".", 1)[-1] for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    missing = [name for name in targets if name not in linear]
    if missing:
        raise TrainingError(
            f"{type(model).__name__} has no layers {', '.join(missing)} to adapt "
            f"(found: {', '.join(sorted(linear - {'lm_head'}))}). Set target_modules to some of these."
        )


def _refuse_foreign(model: Any, folder: Path) -> None:
    """An adapter whose layers are not this model's must not be loaded: PEFT would leave them out with a warning."""
    from safetensors import safe_open

    try:
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise TrainingError(f"{folder} holds no adapter to start from: {error}") from error
    weights = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    for name, shape in shapes.items():
        layer, _, half = name.removeprefix("base_model.model.").rpartition(".lora_")
        if half.startswith("magnitude"):
            continue
        wanted = weights.get(f"{layer}.weight")
        fits = wanted is not None and (shape[1] == wanted[1] if half.startswith("A") else shape[0] == wanted[0])
        if not fits:
            raise TrainingError(
                f"The adapter in {folder} belongs to another base: its {layer} has {half[0]} of shape "
                f"{tuple(shape)}, this model's weight is {wanted or 'missing'}. Start from an adapter of this base."
            )
