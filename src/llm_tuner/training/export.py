"""Adapter -> GGUF: merged into the base (for every runtime), or as a small adapter file (for llama.cpp).

Not a converter: the merged file has every key of the base (tokenizer, chat template) and every tensor; those that were
adapted become quantise(dequantise(W) + scale * B A), in 8 bits at least, the others are the base's own bytes. So only
what was trained differs, and what was trained is really in the file.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
from collections.abc import Generator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_tuner.types import DiskFull, Event, MissingExtra, TrainingError

Matrix = NDArray[np.float32]


class Adapter:
    """A PEFT LoRA adapter read from its folder: by GGUF tensor name the pair A (r, in), B (out, r), and `scale`."""

    def __init__(self, folder: Path, base: Any) -> None:
        from safetensors.numpy import load_file

        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        refuse_inexact(config)
        self.r = int(config["r"])
        self.alpha = float(config["lora_alpha"])
        self.scale = self.alpha / self.r
        self.pairs = _pairs(load_file(folder / "adapter_model.safetensors"), base)


def refuse_inexact(config: Mapping[str, Any]) -> None:
    """Options whose merge or GGUF form would not be exact here are errors, not silently wrong weights."""
    for option in ("use_dora", "use_rslora", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias"):
        if config.get(option):
            raise TrainingError(
                f"Cannot export an adapter trained with {option} = {config[option]!r}: train without it."
            )
    if config.get("bias", "none") != "none":
        raise TrainingError("Cannot export an adapter with trained biases: train with bias = none.")


def _pairs(tensors: Mapping[str, Matrix], base: Any) -> dict[str, tuple[Matrix, Matrix]]:
    import gguf

    architecture = str(base.fields["general.architecture"].contents())
    blocks = int(base.fields[f"{architecture}.block_count"].contents())
    known = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(known[architecture], blocks)
    pairs: dict[str, tuple[Matrix, Matrix]] = {}
    for key, a in tensors.items():
        found = re.fullmatch(r"base_model\.model\.(.+)\.lora_A\.weight", key)
        if found is None:
            continue
        b = tensors[key.replace("lora_A", "lora_B")]
        name = names.get_name(found[1] + ".weight", try_suffixes=(".weight",))
        if name is None:
            raise TrainingError(f"The adapter's layer {found[1]} has no counterpart in the GGUF ({architecture}).")
        pairs[name] = (a.astype(np.float32), _rows(b.astype(np.float32), name, architecture, base))
    if not pairs:
        raise TrainingError("The adapter holds no LoRA weights: nothing was trained.")
    return pairs


def _rows(b: Matrix, name: str, architecture: str, base: Any) -> Matrix:
    """llama.cpp stores the query and key rows of the `llama` architecture interleaved for its rotary embedding
    (convert_hf_to_gguf.py, LlamaModel.permute); B's rows must follow. Other architectures keep the order."""
    if architecture != "llama" or not name.endswith(("attn_q.weight", "attn_k.weight")):
        return b
    key = "head_count" if "attn_q" in name else "head_count_kv"
    heads = int(base.fields[f"llama.attention.{key}"].contents())
    out, r = b.shape
    return b.reshape(heads, 2, out // heads // 2, r).swapaxes(1, 2).reshape(out, r)


def merge(base: Path, adapter: Path, out: Path) -> Generator[Event, None, str]:
    """Writes the merged GGUF to `out` and returns its SHA-256. `out` appears only when whole."""
    import gguf

    reader = gguf.GGUFReader(base)
    lora = Adapter(adapter, reader)
    missing = lora.pairs.keys() - {tensor.name for tensor in reader.tensors}
    if missing:
        raise TrainingError(f"{base.name} has no tensor {sorted(missing)[0]}: the adapter belongs to another model.")
    _require_space(out, 2 * base.stat().st_size)
    partial = out.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, str(reader.fields["general.architecture"].contents()))
    _copy_metadata(reader, writer)
    done = 0
    for tensor in reader.tensors:
        kind, data = tensor.tensor_type, tensor.data
        if tensor.name in lora.pairs:
            a, b = lora.pairs[tensor.name]
            weight = gguf.dequantize(data, kind).astype(np.float32) + lora.scale * (b @ a)
            kind = fine_enough(kind)
            rows = np.frombuffer(quantise(weight, kind), dtype=np.uint8).reshape(len(weight), -1)
            data = rows.view(_PLAIN[kind.name]) if kind.name in _PLAIN else rows
            done += 1
            yield Event(step="export", message=tensor.name, done=done, total=len(lora.pairs), unit="tensor")
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, out)
    with out.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_PLAIN = {"F32": np.float32, "F16": np.float16}


def fine_enough(kind: Any) -> Any:
    """The type in which a merged tensor is stored: its own where that has 8 bits or more, else Q8_0.

    The base's values lie exactly on the grid of their own type, so a LoRA delta under half a step rounds back to the
    base value every time: quantised in its own 5 bits a trained model was the stock one again (docs/log.md).
    """
    import gguf

    kinds = gguf.GGMLQuantizationType
    return kind if kind in (kinds.F32, kinds.F16, kinds.BF16, kinds.Q8_0) else kinds.Q8_0


def _copy_metadata(reader: Any, writer: Any) -> None:
    """Every key and value of the base, tokenizer and chat template too; the writer adds the architecture itself."""
    import gguf

    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=inner)


def adapter_gguf(base: Path, adapter: Path, out: Path) -> Path:
    """Writes the adapter alone as a LoRA GGUF (llama.cpp: llama-adapter.cpp), float16, to load beside the base."""
    import gguf

    reader = gguf.GGUFReader(base)
    lora = Adapter(adapter, reader)
    partial = out.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, str(reader.fields["general.architecture"].contents()))
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, lora.alpha)
    for name, (a, b) in lora.pairs.items():
        writer.add_tensor(f"{name}.lora_a", a.astype(np.float16))
        writer.add_tensor(f"{name}.lora_b", b.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, out)
    return out


def quantise(weight: Matrix, kind: Any) -> bytes:
    """The bytes of a (rows, columns) matrix in a GGML type, by ggml's own quantiser: K-quants too, no importance
    matrix. F32, F16 and BF16 are plain casts."""
    import gguf

    if kind == gguf.GGMLQuantizationType.F32:
        return weight.astype(np.float32).tobytes()
    if kind in (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16):
        return bytes(gguf.quantize(weight, kind).tobytes())
    weight = np.ascontiguousarray(weight, dtype=np.float32)
    rows, columns = weight.shape
    block, size = gguf.GGML_QUANT_SIZES[kind]
    out = np.empty(rows * columns // block * size, dtype=np.uint8)
    written = _ggml()(int(kind), weight.ctypes.data, out.ctypes.data, 0, rows, columns, None)
    if written != out.nbytes:
        raise TrainingError(f"ggml wrote {written} bytes of {kind.name} where {out.nbytes} were expected.")
    return out.tobytes()


@cache
def _ggml() -> Any:
    """ggml_quantize_chunk (ggml.h), as exported by the llama.cpp library inside xllamacpp."""
    try:
        import xllamacpp
    except ImportError as error:
        raise MissingExtra(
            "Quantising needs llama.cpp's library (xllamacpp). Run: pip install 'llm-tuner[train]'"
        ) from error
    library = next(Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"), None) or next(
        Path(xllamacpp.__file__).parent.glob("xllamacpp*.pyd")
    )
    quantise_chunk = ctypes.CDLL(str(library)).ggml_quantize_chunk
    quantise_chunk.restype = ctypes.c_size_t
    quantise_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    return quantise_chunk


def _require_space(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise DiskFull(
            f"The merged model needs {needed / 1e9:.2f} GB in {out.parent}, but {free / 1e9:.2f} GB are free. "
            "Make room (llm-tuner models rm) or set XDG_DATA_HOME to another disk."
        )
