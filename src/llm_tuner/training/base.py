"""The base model for training: the dequantised weights of the very GGUF that is served.

Not a download and not a converter: the file is already there. Training on another copy of the weights (the publisher's
16-bit ones) would tune a model that nobody serves.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import struct
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from llm_tuner.training.recipe import Precision
from llm_tuner.types import CorruptModel, MissingExtra


def require_torch() -> Any:
    """torch, or the sentence that says how to get it."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is first imported, which torch does
    try:
        import torch
    except ImportError as error:
        raise MissingExtra(
            "Training needs PyTorch, which is not installed. Run: pip install 'llm-tuner[train]'"
        ) from error
    return torch


def choose_precision(wanted: Precision) -> Any:
    """The torch dtype to train in. "auto" takes bfloat16 on a GPU that has it, and on a CPU only where a bfloat16
    product is measured to be faster than a float32 one (with AVX512-BF16 or AMX it is, without them it is slower)."""
    torch = require_torch()
    if wanted != "auto":
        return getattr(torch, wanted)
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if _seconds(torch.bfloat16) < _seconds(torch.float32) else torch.float32


def _seconds(dtype: Any) -> float:
    torch = require_torch()
    a = torch.ones(512, 1024, dtype=dtype)
    b = torch.ones(1024, 1024, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return best


@contextmanager
def one_precision(model: Any) -> Iterator[None]:
    """Inside, adapter layers that PEFT computes do so in the base's precision; their weights stay float32, which small
    updates need. Those that lora.py computes do so anyway.

    PEFT would turn every layer's input into float32 and keep it for the backward pass: about 1 MB a token in a 0.5B,
    and a quarter of the time (docs/log.md). Autocast turns the small weights instead; without its cache, which would
    keep them from before the optimizer's step.
    """
    torch = require_torch()
    from peft.tuners.lora import LoraLayer

    base = next(weight for weight in model.parameters() if weight.is_floating_point() and not weight.requires_grad)
    theirs = any(isinstance(layer, LoraLayer) and "forward" not in vars(layer) for layer in model.modules())
    if base.dtype == torch.float32 or not theirs:
        yield
        return
    from peft.helpers import disable_input_dtype_casting

    with torch.autocast(base.device.type, base.dtype, cache_enabled=False), disable_input_dtype_casting(model):
        yield


def give_memory_back() -> None:
    """Returns what was freed to the system: Python's garbage first, then the heap's free pages (malloc_trim(3))."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def map_large_tensors() -> None:
    """Every tensor of 1 MiB or more gets pages of its own, which go back when it does (mallopt(3)).

    glibc raises that bound to 32 MiB as a program runs: tensors then share a heap whose holes are not given back. In a
    step of 2,048 tokens of a 135M that is 1.3 GB of 2.9 (docs/log.md).
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD


def load_base(gguf: Path, dtype: Any, device: Any = "cpu") -> Any:
    """A transformers causal model with the GGUF's weights, dequantised to `dtype`, on `device`, that attends as packs
    want it (attention.py).

    Raises CorruptModel when the file cannot be read as a model of a known architecture.
    """
    require_torch()
    try:
        with quiet():
            from transformers import AutoModelForCausalLM, GgufConfig

            from llm_tuner.training import attention

            attention.register()
            model = AutoModelForCausalLM.from_pretrained(
                str(gguf.parent),
                gguf_file=gguf.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=dtype,
                attn_implementation=attention.NAME,
            )
    except (ValueError, OSError, KeyError, RuntimeError, struct.error) as error:
        raise CorruptModel(f"Cannot load {gguf} for training: {error}") from error
    model.config.use_cache = False
    return model.to(device)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the libraries' own progress bars and notices off the terminal: progress is ours to report."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers import modeling_gguf_pytorch_utils as gguf_reader
    from transformers.utils import logging as hf_logging

    bar = gguf_reader.tqdm  # not one of those that disable_progress_bar() reaches
    gguf_reader.tqdm = partial(bar, disable=True)
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.getLogger("gguf").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        gguf_reader.tqdm = bar
        hf_logging.set_verbosity(level)
