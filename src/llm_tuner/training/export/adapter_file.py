"""The adapter alone as a LoRA GGUF, to load beside the base (llama.cpp: llama-adapter.cpp).

Not for what a LoRA file cannot say: it knows W + alpha / r * b a, with one alpha for all.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from llm_tuner.training.export.adapter import Adapter
from llm_tuner.types import TrainingError


def adapter_gguf(base: Path, adapter: Path, out: Path) -> Path:
    """Writes the adapter as float16. `out` appears only when whole. TrainingError for DoRA and what is not exact.

    llama.cpp multiplies b a with alpha / r, whatever PEFT did: so rsLoRA has alpha * sqrt(r) in the file, and where
    layers differ (alpha_pattern, rank_pattern) the difference is in b.
    """
    import gguf

    reader = gguf.GGUFReader(base)
    lora = Adapter(adapter, reader)
    if not lora.plain:
        raise TrainingError(
            "A DoRA adapter cannot be a file of its own: it also sets the length of each row, and llama.cpp's LoRA "
            "files can only add to a weight. Export a merged GGUF (q8_0, q4_k_m, ...), which is exact."
        )
    alphas = {name: delta.scale * delta.r for name, delta in lora.deltas.items()}
    alpha = next(iter(alphas.values()))
    partial = out.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, lora.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for name, delta in lora.deltas.items():
        writer.add_tensor(f"{name}.lora_a", delta.a.astype(np.float16))
        writer.add_tensor(f"{name}.lora_b", (delta.b * np.float32(alphas[name] / alpha)).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, out)
    return out
