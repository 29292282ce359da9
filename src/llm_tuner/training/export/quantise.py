"""A matrix -> its bytes in a GGML type, by ggml's own quantiser.

Not the choice of the type (mix.py). The rule that it protects: rounding happens once, from float32; a value that the
type cannot hold is an error.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_tuner.types import MissingExtra, TrainingError

Matrix = NDArray[np.float32]

PLAIN = {"F32": np.float32, "F16": np.float16}
"""Types whose bytes NumPy can read as numbers."""

LARGEST_F16 = 65504.0


def dequantised(data: Any, kind: Any) -> Matrix:
    """A GGUF tensor's values in float32, (rows, columns)."""
    import gguf

    values: Matrix = gguf.dequantize(data, kind).astype(np.float32)
    return values


def quantise(weight: Matrix, kind: Any) -> bytes:
    """The bytes of a (rows, columns) matrix in a GGML type: K-quants too, no importance matrix. F32, F16 and BF16 are
    plain casts. TrainingError for values that are not finite, or too large for F16."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    largest = float(np.abs(weight).max())
    if not largest <= (LARGEST_F16 if kind == kinds.F16 else np.finfo(np.float32).max):
        raise TrainingError(
            f"A tuned weight has the value {largest}, which {kind.name} cannot hold: the training diverged. Train "
            "with a lower learning rate."
        )
    if kind == kinds.F32:
        return weight.astype(np.float32).tobytes()
    if kind in (kinds.F16, kinds.BF16):
        return bytes(gguf.quantize(weight, kind).tobytes())
    weight = np.ascontiguousarray(weight, dtype=np.float32)
    rows, columns = weight.shape
    block, size = gguf.GGML_QUANT_SIZES[kind]
    out = np.empty((rows, columns // block * size), dtype=np.uint8)
    quantise_chunk = _ggml()

    def quantised(first: int, end: int) -> int:
        source, target = weight[first:end], out[first:end]
        return int(quantise_chunk(int(kind), source.ctypes.data, target.ctypes.data, 0, len(source), columns, None))

    written = _in_parts(quantised, rows)
    if written != out.nbytes:
        raise TrainingError(f"ggml wrote {written} bytes of {kind.name} where {out.nbytes} were expected.")
    return out.tobytes()


def _in_parts(work: Callable[[int, int], int], rows: int) -> int:
    """The sum of `work(first, end)` over parts of the rows, a thread each: rows are quantised one by one, so the bytes
    are the same however they are dealt."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    step = max(64, -(-rows // threads))
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(lambda first: work(first, min(first + step, rows)), range(0, rows, step)))


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
    ggml = ctypes.CDLL(str(library))
    quantise_chunk = ggml.ggml_quantize_chunk
    quantise_chunk.restype = ctypes.c_size_t
    quantise_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    return quantise_chunk
