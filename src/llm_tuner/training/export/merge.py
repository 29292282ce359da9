"""Base + adapter -> one merged GGUF, for every runtime.

Not a converter: the merged file has every key of the base (tokenizer, chat template) and every tensor. Those that were
adapted become quantise(tuned weight); of the others, those whose type stays keep the base's own bytes. So only what was
trained differs, and what was trained is really in the file. One tensor is in memory at a time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from llm_tuner.training.export.adapter import Adapter
from llm_tuner.training.export.mix import Format, file_type, mix
from llm_tuner.training.export.quantise import PLAIN, dequantised, quantise
from llm_tuner.types import DiskFull, Event, TrainingError


def merge(base: Path, adapter: Path, out: Path, kind: Format = "as_base") -> Generator[Event, None, str]:
    """Writes the merged GGUF to `out` and returns its SHA-256. `out` appears only when whole.

    Raises TrainingError for an adapter that cannot be merged exactly, DiskFull before anything is written.
    """
    import gguf

    reader = gguf.GGUFReader(base)
    lora = Adapter(adapter, reader)
    types = mix(reader, kind, lora.deltas.keys())
    require_space(out.parent, merged_size(reader, types))
    partial = out.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, lora.architecture)
    with closing(writer):
        copy_metadata(reader, writer, file_type(kind))
        for tensor in reader.tensors:
            _announce(writer, tensor, types[tensor.name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, tensor in enumerate(reader.tensors, start=1):
            try:
                writer.write_tensor_data(_data(tensor, types[tensor.name], lora))
            except TrainingError as error:
                raise TrainingError(f"{tensor.name}: {error}") from error
            yield Event(
                step="export", message=f"{kind} {tensor.name}", done=done, total=len(reader.tensors), unit="tensors"
            )
    os.replace(partial, out)
    with out.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def needed(base: Path, adapter: Path, kind: Format) -> int:
    """Bytes that `merge` would write. Raises what it would raise for the adapter, before anything is done."""
    import gguf

    reader = gguf.GGUFReader(base)
    return merged_size(reader, mix(reader, kind, Adapter(adapter, reader).deltas.keys()))


def merged_size(reader: Any, types: dict[str, Any]) -> int:
    """Bytes of a merged file, within the padding of its tensors."""
    rest = int(reader.data_offset)
    return rest + sum(_bytes(tensor, types[tensor.name]) + 32 for tensor in reader.tensors)


def _bytes(tensor: Any, kind: Any) -> int:
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[kind]
    return int(tensor.n_elements) // int(block) * int(size)


def _announce(writer: Any, tensor: Any, kind: Any) -> None:
    shape = [int(n) for n in reversed(tensor.shape)]  # GGUF has the columns first
    writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), _bytes(tensor, kind), raw_dtype=kind)


def _data(tensor: Any, kind: Any, lora: Adapter) -> Any:
    """The bytes of one tensor of the merged file, as an array."""
    delta = lora.deltas.get(tensor.name)
    if delta is None and kind == tensor.tensor_type:
        return np.ascontiguousarray(tensor.data)
    weight = dequantised(tensor.data, tensor.tensor_type)
    if delta is not None:
        weight = delta.applied(weight)
    data = np.frombuffer(quantise(weight, kind), dtype=np.uint8)
    return data.view(PLAIN[kind.name]) if kind.name in PLAIN else data


def copy_metadata(reader: Any, writer: Any, number: int | None = None) -> None:
    """Every key and value of the base, tokenizer and chat template too; the writer adds the architecture itself.
    `number` replaces the base's file type."""
    import gguf

    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        if number is not None and name in ("general.file_type", "general.quantization_version"):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    if number is not None:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_file_type(number)


def require_space(folder: Path, needed: int) -> None:
    """DiskFull unless `needed` bytes, and a tenth more, are free there."""
    free = shutil.disk_usage(folder).free
    if free < needed * 1.1:
        raise DiskFull(
            f"The export needs {needed * 1.1 / 1e9:.2f} GB in {folder}, but {free / 1e9:.2f} GB are free. "
            "Make room (llm-tuner models rm), or write to another disk."
        )
