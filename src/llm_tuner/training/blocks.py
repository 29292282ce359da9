"""The base model with its weights left in the GGUF's own blocks: a frozen matrix takes 4 to 8 bits a weight, and each
use of it unpacks a piece by ggml's own function.

Not a quantiser and not an approximation: the values are, bit for bit, those of the dequantised model, so what is
trained is still the model that is served. NF4 would round those values a second time. Loading never holds a dense copy
of a matrix. Only the memory differs: about the file's size, where float32 takes four bytes a weight.
"""

from __future__ import annotations

import ctypes
import re
import struct
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from llm_tuner.training.base import quiet
from llm_tuner.types import CorruptModel, MissingExtra, SetupError

PIECE = 1 << 23
"""Weights unpacked at a time: 32 MB of float32, the same piece of memory for every layer."""

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
"""Whose tensors this module knows how to put into transformers' modules: names, order of rows, offset of norms."""

_scratch = threading.local()


class _Product(torch.autograd.Function):  # type: ignore[misc]
    """x W^T where W exists a piece at a time; nothing is kept for the backward pass but the blocks themselves."""

    @staticmethod
    def forward(ctx: Any, x: Any, layer: BlockLinear) -> Any:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        return ctx.layer.product_back(outer[0]), None


class BlockLinear(nn.Linear):  # type: ignore[misc]
    """A frozen linear layer. `weight` is uint8 (out features, bytes a row) of the GGML type `kind`; it computes in
    `compute`. It is an nn.Linear to those that ask, as PEFT does."""

    def __init__(self, blocks: Any, kind: Any, in_features: int, compute: Any, bias: Any = None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, len(blocks)
        self.kind, self.compute = kind, compute
        self.weight = nn.Parameter(blocks, requires_grad=False)
        self.bias = bias

    def forward(self, x: Any) -> Any:
        flat = x.reshape(-1, self.in_features).to(self.compute)
        out = _Product.apply(flat, self)
        if self.bias is not None:
            out = out + self.bias
        return out.reshape(*x.shape[:-1], self.out_features)

    def product(self, x: Any) -> Any:
        """x (n, in) W^T, without the bias and without autograd."""
        out = x.new_empty(len(x), self.out_features)
        for start, weight in self.pieces(x.dtype):
            torch.mm(x, weight.T, out=out[:, start : start + len(weight)])
        return out

    def product_back(self, slope: Any) -> Any:
        """slope (n, out) W."""
        back = slope.new_zeros(len(slope), self.in_features)
        for start, weight in self.pieces(slope.dtype):
            back.addmm_(slope[:, start : start + len(weight)], weight)
        return back

    def pieces(self, dtype: Any) -> Iterator[tuple[int, Any]]:
        """(first row, rows of the weight in `dtype`), over all rows. A piece is overwritten by the next one."""
        step = max(1, PIECE // self.in_features)
        for start in range(0, self.out_features, step):
            yield start, unpack(self.weight[start : start + step], self.kind, self.in_features, dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, kind={self.kind.name}"


class BlockEmbedding(nn.Embedding):  # type: ignore[misc]
    """A frozen embedding: of its blocks only the rows that are asked for are unpacked."""

    def __init__(self, blocks: Any, kind: Any, width: int, compute: Any, scale: Any = None) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = len(blocks), width
        self.padding_idx = None
        self.kind, self.compute, self.scale = kind, compute, scale
        self.weight = nn.Parameter(blocks, requires_grad=False)

    def forward(self, ids: Any) -> Any:
        rows = unpack(self.weight[ids.reshape(-1)], self.kind, self.embedding_dim, self.compute).clone()
        rows = rows.reshape(*ids.shape, self.embedding_dim)
        return rows if self.scale is None else rows * self.scale.to(rows.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, kind={self.kind.name}"


def unpack(blocks: Any, kind: Any, columns: int, dtype: Any) -> Any:
    """Rows of uint8 blocks -> (rows, columns) in `dtype`. On the CPU into memory that the next call uses again."""
    if blocks.is_cuda:
        return _unpack_on_gpu(blocks, kind, columns, dtype)
    blocks = blocks.contiguous()
    count = len(blocks) * columns
    out = _memory(torch.float32, count)
    _unpacker(kind.name)(blocks.data_ptr(), out.data_ptr(), count)
    if dtype != torch.float32:
        out = _memory(dtype, count).copy_(out)
    return out.reshape(-1, columns)


def _memory(dtype: Any, count: int) -> Any:
    """Scratch of this thread: mapping 32 MB anew for every layer would cost more than the unpacking."""
    held = getattr(_scratch, str(dtype), None)
    if held is None or len(held) < count:
        held = torch.empty(max(count, PIECE), dtype=dtype)
        setattr(_scratch, str(dtype), held)
    return held[:count]


def _unpack_on_gpu(blocks: Any, kind: Any, columns: int, dtype: Any) -> Any:
    """transformers' unpacking in torch operations, and here the two older types that it lacks."""
    from transformers.integrations.gguf.dequant import GGML_BLOCK, dequantize

    if kind.name in ("Q5_0", "Q5_1"):
        return unpack_five_bits(blocks, kind.name, dtype).reshape(-1, columns)
    if int(kind) not in GGML_BLOCK:
        raise SetupError(f"Weights of type {kind.name} cannot be unpacked on this GPU. Train with precision bfloat16.")
    return dequantize(blocks.reshape(-1), int(kind), dtype).reshape(-1, columns)


def unpack_five_bits(blocks: Any, name: str, dtype: Any) -> Any:
    """Q5_0 and Q5_1 in torch operations (ggml-quants.c, dequantize_row_q5_0): 32 weights have a scale, for Q5_1 a
    minimum too, 32 high bits and 16 bytes of low nibbles."""
    head = 2 if name == "Q5_0" else 4
    block = blocks.reshape(-1, head + 20)
    scale = block[:, :2].contiguous().view(torch.float16).to(dtype)
    places = torch.arange(8, device=block.device, dtype=torch.uint8)
    high = ((block[:, head : head + 4, None] >> places) & 1).reshape(-1, 32)
    low = torch.cat([block[:, head + 4 :] & 0xF, block[:, head + 4 :] >> 4], dim=1)
    value = (low | (high << 4)).to(dtype)
    if name == "Q5_0":
        return (value - 16) * scale
    return value * scale + block[:, 2:4].contiguous().view(torch.float16).to(dtype)


@cache
def _unpacker(name: str) -> Any:
    """ggml's dequantize_row function of a type (ggml-quants.h), from the llama.cpp library inside xllamacpp."""
    try:
        import xllamacpp
    except ImportError as error:
        raise MissingExtra("Unpacking needs llama.cpp's library. Run: pip install 'llm-tuner[train]'") from error
    folder = Path(xllamacpp.__file__).parent
    library = ctypes.CDLL(str(next(path for end in ("so", "pyd") for path in folder.glob(f"xllamacpp*.{end}"))))
    try:
        function = getattr(library, "dequantize_row_" + re.sub("_k$", "_K", name.lower()))
    except AttributeError as error:
        raise SetupError(
            f"This llama.cpp cannot unpack weights of type {name}. Train with precision float32 or bfloat16."
        ) from error
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return function


# ------------------------------------------------------------------------------------------------------------- loading


def load_blocks(gguf: Path, dtype: Any, device: Any = "cpu") -> Any:
    """A transformers causal model that computes in `dtype` and holds the GGUF's matrices as blocks, on `device`.

    The same values as `base.load_base` gives. Raises SetupError for an architecture that is not in ARCHITECTURES, and
    CorruptModel when the file cannot be read.
    """
    import gguf as ggml

    try:
        reader = ggml.GGUFReader(gguf)
        architecture = str(reader.fields["general.architecture"].contents())
        if architecture not in ARCHITECTURES:
            raise SetupError(
                f"{gguf.name} is a {architecture} model; weights stay in their blocks for {', '.join(ARCHITECTURES)}. "
                "Train it with precision float32 or bfloat16."
            )
        model = _empty(gguf, dtype)
        _fill(model, reader, architecture, dtype)
    except (ValueError, OSError, KeyError, IndexError, RuntimeError, struct.error) as error:
        raise CorruptModel(f"Cannot load {gguf} for training: {error}") from error
    model.config.use_cache = False
    model.train()
    return model.to(device)


def _empty(gguf: Path, dtype: Any) -> Any:
    """The model's modules with no memory behind their parameters; buffers (rotary tables) are real."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    from llm_tuner.training import attention

    attention.register()
    with quiet():
        config = AutoConfig.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        with init_empty_weights(include_buffers=False):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention.NAME)


def _fill(model: Any, reader: Any, architecture: str, dtype: Any) -> None:
    import gguf as ggml

    known = {value: key for key, value in ggml.MODEL_ARCH_NAMES.items()}
    names = ggml.get_tensor_name_map(known[architecture], int(reader.fields[f"{architecture}.block_count"].contents()))
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def tensor(path: str) -> Any:
        found = names.get_name(path, try_suffixes=(".weight", ".bias"))
        if found not in tensors:
            raise KeyError(f"no tensor for {path} ({found})")
        return tensors[found]

    heads = {
        "q_proj": int(reader.fields[f"{architecture}.attention.head_count"].contents()),
        "k_proj": int(reader.fields[f"{architecture}.attention.head_count_kv"].contents()),
    }
    tied = model.config.tie_word_embeddings
    for path, module in list(model.named_modules()):
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        if tied and path == "lm_head":
            path = "model.embed_tokens"
        order = heads.get(path.rsplit(".", 1)[-1]) if architecture == "llama" else None
        offset = 1.0 if architecture == "gemma3" and path.endswith("norm") else 0.0
        dense = {
            name: nn.Parameter(_dense(tensor(f"{path}.{name}"), dtype, order, offset), requires_grad=False)
            for name in own
            if name != "weight" or not _in_blocks(tensor(f"{path}.weight"), module)
        }
        if "weight" in dense:
            for name, parameter in dense.items():
                setattr(module, name, parameter)
            continue
        weight = tensor(f"{path}.weight")
        blocks = torch.from_numpy(_in_order(np.array(weight.data), order))
        kind = weight.tensor_type
        if isinstance(module, nn.Embedding):
            scale = getattr(module, "embed_scale", None)
            new: Any = BlockEmbedding(blocks, kind, module.embedding_dim, dtype, scale)
        else:
            if tied and module is model.get_output_embeddings():
                blocks = model.get_input_embeddings().weight.data
            new = BlockLinear(blocks, kind, module.in_features, dtype, dense.get("bias"))
        model.set_submodule(next(p for p, m in model.named_modules() if m is module), new)


def _in_blocks(tensor: Any, module: Any) -> bool:
    plain = tensor.tensor_type.name in ("F32", "F16", "BF16")
    return isinstance(module, nn.Linear | nn.Embedding) and not plain


def _dense(tensor: Any, dtype: Any, order: int | None, offset: float) -> Any:
    import gguf as ggml

    value = ggml.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    return torch.from_numpy(_in_order(value, order) - np.float32(offset)).to(dtype)


def _in_order(rows: Any, heads: int | None) -> Any:
    """The rows as transformers wants them: llama.cpp interleaves the query and key rows of `llama` for its rotary
    embedding (convert_hf_to_gguf.py, LlamaModel.permute). Blocks run along a row, so they move whole."""
    if heads is None:
        return rows
    half = len(rows) // heads // 2
    return np.ascontiguousarray(rows.reshape(heads, half, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape))
