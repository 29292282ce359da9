"""A trained adapter as matrices under the names and in the row order of the base's GGUF.

Not a merge, and not the training's own view of it: PEFT's folder is read as it is, without torch. The rule that it
protects: an option or a tensor that is not understood to the last bit is an error, never passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_tuner.types import TrainingError

Matrix = NDArray[np.float32]

ARCHITECTURES = ("gemma3", "llama", "qwen2", "qwen3")
"""Those whose weights are known to lie in the GGUF as in transformers, `llama`'s queries and keys apart (`_rows`)."""

UNDERSTOOD = frozenset(
    {
        "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "init_lora_weights", "bias",
        "peft_type", "fan_in_fan_out",
    }
)  # fmt: skip
"""Options of an adapter_config.json that are read here."""

WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version",
        "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_config",
        "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config",
        "qalora_group_size", "ensure_weight_tying",
    }
)  # fmt: skip
"""Options that say how an adapter was made or where it sits, which its tensors show themselves."""

STARTS_AT_THE_BASE = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
"""Values of init_lora_weights that leave the base's weights as they are. All others move a part of them (PiSSA, OLoRA,
CorDA, LoRA-GA, LoftQ: peft/tuners/lora/layer.py), so that their matrices fit a base that is in no file."""

_KEY = re.compile(r"base_model\.model\.(?P<layer>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_magnitude_vector)")


@dataclass(frozen=True)
class Delta:
    """What an adapter does to one weight W (out, in): W + scale * b a, with a (r, in) and b (out, r).

    With a `magnitude` (out,) every row of the sum then has that length (DoRA: Liu et al. 2024, as PEFT 0.21 merges it,
    peft/tuners/lora/variants.py).
    """

    a: Matrix
    b: Matrix
    scale: float
    magnitude: Matrix | None = None

    @property
    def r(self) -> int:
        return len(self.a)

    def applied(self, weight: Matrix) -> Matrix:
        """The tuned weight, of the same shape. TrainingError where the shapes do not fit."""
        if weight.shape != (len(self.b), self.a.shape[1]):
            raise TrainingError(
                f"An adapter of {len(self.b)} x {self.a.shape[1]} does not fit a weight of {weight.shape}: it belongs "
                "to another model. Give the base that it was trained on."
            )
        tuned: Matrix = weight + np.float32(self.scale) * (self.b @ self.a)
        if self.magnitude is None:
            return tuned
        lengths: Matrix = self.magnitude / np.linalg.norm(tuned, axis=1)
        tuned *= lengths[:, None]
        return tuned


class Adapter:
    """A PEFT adapter read from its folder: `deltas` by GGUF tensor name. `base` is the base's GGUFReader.

    Raises TrainingError for what cannot be exported exactly, for a damaged folder and for another model's adapter.
    """

    def __init__(self, folder: Path, base: Any) -> None:
        self.config = read_config(folder)
        refuse_inexact(self.config)
        self._base = base
        self.deltas = self._deltas(_layers(folder))
        missing = sorted(self.deltas.keys() - {tensor.name for tensor in base.tensors})
        if missing:
            tied = " (its output is its embedding, tied)" if missing == ["output.weight"] else ""
            raise TrainingError(
                f"The base has no tensor {missing[0]}{tied}: the adapter belongs to another model, or it was trained "
                "on a layer that this one does not have. Give its own base, or train without that layer."
            )

    @property
    def plain(self) -> bool:
        """Whether it is W + scale * b a alone, which is all that an adapter file can say."""
        return all(delta.magnitude is None for delta in self.deltas.values())

    @cached_property
    def architecture(self) -> str:
        """The base's, as GGUF names it."""
        name = str(self._base.fields["general.architecture"].contents())
        if name not in ARCHITECTURES:
            raise TrainingError(
                f"Cannot export an adapter of the architecture {name}: how its weights lie in a GGUF is not known here "
                f"(known: {', '.join(ARCHITECTURES)}). Use the PEFT folder with transformers."
            )
        return name

    def _deltas(self, layers: Mapping[str, Mapping[str, Matrix]]) -> dict[str, Delta]:
        import gguf

        blocks = int(self._base.fields[f"{self.architecture}.block_count"].contents())
        known = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}
        names = gguf.get_tensor_name_map(known[self.architecture], blocks)
        deltas: dict[str, Delta] = {}
        for layer, parts in layers.items():
            name = names.get_name(layer + ".weight", try_suffixes=(".weight",))
            if name is None:
                raise TrainingError(
                    f"The adapter's layer {layer} has no counterpart in the GGUF ({self.architecture}): it belongs to "
                    "another model. Give the base that it was trained on."
                )
            deltas[name] = self._delta(layer, name, parts)
        return deltas

    def _delta(self, layer: str, name: str, parts: Mapping[str, Matrix]) -> Delta:
        a, b = parts["lora_A.weight"], parts["lora_B.weight"]
        magnitude = parts.get("lora_magnitude_vector")
        return Delta(
            a=a,
            b=self._rows(b, name),
            scale=scale(self.config, layer, len(a)),
            magnitude=None if magnitude is None else self._rows(magnitude.reshape(-1, 1), name)[:, 0],
        )

    def _rows(self, rows: Matrix, name: str) -> Matrix:
        """llama.cpp stores the query and key rows of the `llama` architecture interleaved for its rotary embedding
        (convert_hf_to_gguf.py, LlamaModel.permute); what is by row must follow. Other architectures keep the order."""
        if self.architecture != "llama" or not name.endswith(("attn_q.weight", "attn_k.weight")):
            return rows
        key = "head_count" if "attn_q" in name else "head_count_kv"
        heads = int(self._base.fields[f"llama.attention.{key}"].contents())
        out, columns = rows.shape
        return rows.reshape(heads, 2, out // heads // 2, columns).swapaxes(1, 2).reshape(out, columns)


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's adapter_config.json. TrainingError where there is none that can be read."""
    path = folder / "adapter_config.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(
            f"{folder} is no PEFT adapter: {path.name} cannot be read ({error}). Give the adapter folder of a run."
        ) from error


def refuse_inexact(config: Mapping[str, Any]) -> None:
    """Options whose merge or GGUF form would not be exact here are errors, not silently wrong weights."""
    if str(config.get("peft_type", "LORA")).upper() != "LORA":
        raise TrainingError(f"Cannot export a {config['peft_type']} adapter, only LoRA and its kin: train with LoRA.")
    start = config.get("init_lora_weights", True)
    if not any(start is value or (isinstance(value, str) and start == value) for value in STARTS_AT_THE_BASE):
        raise TrainingError(
            f"Cannot export an adapter that started with init_lora_weights = {start!r}: its matrices fit a base whose "
            "weights were changed at the start, and that base is in no file. Save it as a plain LoRA with "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...), which is exact, and export that."
        )
    if config.get("bias", "none") != "none":
        raise TrainingError("Cannot export an adapter with trained biases: train with bias = none.")
    if config.get("fan_in_fan_out"):
        raise TrainingError("Cannot export an adapter of Conv1D layers (fan_in_fan_out): train one of Linear layers.")
    for option in sorted(config.keys() - UNDERSTOOD - WITHOUT_EFFECT):
        if config[option]:
            raise TrainingError(
                f"Cannot export an adapter trained with {option} = {config[option]!r}: what it does to the weights "
                "cannot be written exactly here. Train without it, or use the PEFT folder with transformers."
            )


def scale(config: Mapping[str, Any], layer: str, r: int) -> float:
    """What PEFT multiplies b a with: alpha / r, and alpha / sqrt(r) for rsLoRA (Kalajdzievski 2023). A layer's own
    alpha comes from alpha_pattern, whose first key that ends the layer's name counts (peft/utils/other.py)."""
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    fits = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", layer))
    alpha = float(next(fits, config["lora_alpha"]))
    if alpha == 0:
        raise TrainingError(
            f"Cannot export an adapter whose alpha is 0 in {layer}: it does nothing there. Train again."
        )
    return float(alpha / np.sqrt(r)) if config.get("use_rslora") else alpha / r


def _layers(folder: Path) -> dict[str, dict[str, Matrix]]:
    """The adapter's tensors by layer and part, in float32."""
    layers: dict[str, dict[str, Matrix]] = {}
    for key, tensor in _tensors(folder / "adapter_model.safetensors").items():
        found = _KEY.fullmatch(key)
        if found is None:
            raise TrainingError(
                f"Cannot export this adapter: it holds {key}, which is no LoRA matrix of a linear layer. Train on "
                "linear layers only, without modules_to_save."
            )
        layers.setdefault(found["layer"], {})[found["part"]] = tensor
    if not layers:
        raise TrainingError("The adapter holds no LoRA weights: nothing was trained.")
    for layer, parts in layers.items():
        if not {"lora_A.weight", "lora_B.weight"} <= parts.keys():
            raise TrainingError(f"The adapter is damaged: {layer} has only {', '.join(parts)}. Train it again.")
        if not all(np.isfinite(tensor).all() for tensor in parts.values()):
            raise TrainingError(f"The adapter holds NaN or infinity in {layer}: the training failed. Train it again.")
    return layers


def _tensors(path: Path) -> dict[str, Matrix]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:  # NumPy has no bfloat16
            return {key: file.get_tensor(key).float().numpy() for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"Cannot read the adapter {path}: {error}. Give the adapter folder of a run.") from error
