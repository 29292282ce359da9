"""Which type each tensor has in each format of a merged file.

Not a quantiser. A K-quant such as Q4_K_M is a mix: some tensors get more bits than others. The rule that it protects:
the mix is llama.cpp's own, tensor by tensor (src/llama-quant.cpp, llama_tensor_get_type; the branches that a dense
model of the known architectures can reach, without importance matrix), so that a file called Q4_K_M is one.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Literal, get_args

from llm_tuner.training.export.adapter import ARCHITECTURES
from llm_tuner.types import TrainingError

Format = Literal["as_base", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16"]
"""Formats of a merged GGUF. "as_base": every tensor as in the base, the adapted ones in 8 bits at least."""

FORMATS: tuple[Format, ...] = get_args(Format)

BY_SIZE: tuple[Format, ...] = ("q4_k_s", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16")

_FILE_TYPES = {"f16": 1, "q8_0": 7, "q4_k_s": 14, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18}  # llama.h, llama_ftype
_DEFAULT = {"f16": "F16", "q8_0": "Q8_0", "q4_k_s": "Q4_K", "q4_k_m": "Q4_K", "q5_k_m": "Q5_K", "q6_k": "Q6_K"}
_SMALLER_BLOCKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def next_size(kind: Format) -> Format | None:
    """The format to take when this one loses what was trained; None when there is none larger."""
    if kind == "as_base":
        return "q8_0"
    place = BY_SIZE.index(kind) + 1
    return BY_SIZE[place] if place < len(BY_SIZE) else None


def file_type(kind: Format) -> int | None:
    """llama.cpp's number for the format (general.file_type); None where the base's own stays."""
    return _FILE_TYPES.get(kind)


def mix(base: Any, kind: Format, adapted: Collection[str]) -> dict[str, Any]:
    """GGML type by tensor name, for the tensors of a GGUFReader; `adapted` names those that an adapter changes.

    TrainingError for a model whose mix is not known here.
    """
    if kind == "as_base":
        return {t.name: fine_enough(t.tensor_type) if t.name in adapted else t.tensor_type for t in base.tensors}
    import gguf

    architecture = str(base.fields["general.architecture"].contents())
    if architecture not in ARCHITECTURES or f"{architecture}.expert_count" in base.fields:
        raise TrainingError(
            f"The mix of {kind.upper()} is not known here for this model ({architecture}; known: dense models of "
            f"{', '.join(ARCHITECTURES)}). Export as_base and use llama.cpp's llama-quantize."
        )
    choice = _Choice(base, architecture, kind)
    types = {}
    for tensor in sorted(base.tensors, key=lambda tensor: _block(tensor.name)):
        name = choice.of(tensor)
        types[tensor.name] = tensor.tensor_type if name is None else gguf.GGMLQuantizationType[name]
    return types


def fine_enough(kind: Any) -> Any:
    """The type in which a merged tensor is stored: its own where that has 8 bits or more, else Q8_0.

    The base's values lie exactly on the grid of their own type, so a LoRA delta under half a step rounds back to the
    base value every time: quantised in its own 5 bits a trained model was the stock one again (docs/log.md).
    """
    import gguf

    kinds = gguf.GGMLQuantizationType
    return kind if kind in (kinds.F32, kinds.F16, kinds.BF16, kinds.Q8_0) else kinds.Q8_0


class _Choice:
    """llama.cpp's choice for one tensor after the other, in the order of the blocks: which of the values and which of
    the projections down it is, decides."""

    def __init__(self, base: Any, architecture: str, kind: Format) -> None:
        self.kind = kind
        self.tied = all(tensor.name != "output.weight" for tensor in base.tensors)
        self.blocks = int(base.fields[f"{architecture}.block_count"].contents())
        self.values = sum(tensor.name.endswith("attn_v.weight") for tensor in base.tensors)
        heads, kv = (
            int(base.fields[f"{architecture}.attention.{key}"].contents()) for key in ("head_count", "head_count_kv")
        )
        # llama.cpp calls this size 70B, and is generous with its few values (llama-quant.cpp).
        self.few_values = self.blocks == 80 and (architecture == "qwen2" or (architecture == "llama" and heads != kv))
        self._value = self._down = 0

    def of(self, tensor: Any) -> str | None:
        """The type's name; None where llama.cpp leaves the tensor as it is."""
        name = tensor.name
        if len(tensor.shape) < 2 or not name.endswith("weight") or name.endswith("_norm.weight"):
            return None
        if self.kind == "f16":
            return "F16"
        columns = int(tensor.shape[0])
        return _fitting(self._wanted(name, columns), columns)

    def _wanted(self, name: str, columns: int) -> str:
        default = _DEFAULT[self.kind]
        if name == "output.weight" or (self.tied and name == "token_embd.weight"):
            return "Q8_0" if default == "Q8_0" or columns % 256 else "Q6_K"
        if name.endswith("attn_v.weight"):
            self._value += 1
            return self._of_values(self._value - 1, default)
        if "ffn_down" in name:
            self._down += 1
            return self._of_down(self._down - 1, default)
        return default

    def _of_values(self, place: int, default: str) -> str:
        if self.kind in ("q4_k_m", "q5_k_m") and _more_bits(place, self.values):
            default = "Q6_K"
        elif self.kind == "q4_k_s" and place < 4:
            default = "Q5_K"
        return "Q5_K" if self.few_values and default == "Q4_K" else default

    def _of_down(self, place: int, default: str) -> str:
        if self.kind in ("q4_k_m", "q5_k_m") and _more_bits(place, self.blocks):
            return "Q6_K"
        return "Q5_K" if self.kind == "q4_k_s" and place < self.blocks // 8 else default


def _more_bits(place: int, count: int) -> bool:
    """The first eighth, the last eighth, and every third between (use_more_bits)."""
    return place < count // 8 or place >= 7 * count // 8 or (place - count // 8) % 3 == 2


def _fitting(name: str, columns: int) -> str:
    """The type itself, or the one with smaller blocks where rows do not divide into its own (tensor_type_fallback)."""
    import gguf

    for fits in (name, _SMALLER_BLOCKS.get(name, "F16")):
        if columns % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[fits]][0] == 0:
            return fits
    return "F16"


def _block(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1
