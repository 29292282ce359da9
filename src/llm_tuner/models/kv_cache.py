"""How much memory a context window takes: the KV cache, from what a GGUF says about itself.

Not a measurement. The rule it protects: the formula is llama.cpp's own for full attention, so that it is exact where a
model has nothing else (Qwen, Llama, Mistral), and never too little where it has (sliding windows, shared values).
"""

from __future__ import annotations

import struct
from pathlib import Path

from llm_tuner.types import CorruptModel, SetupError, Value

BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32,
         "q4_0": 18 / 32}  # fmt: skip
"""Bytes of one number by the type of the cache (llama.cpp's `--cache-type-k`, `--cache-type-v`); f16 is the default."""

CELLS = 256
"""llama.cpp makes room for a multiple of so many tokens."""


class KvCache(Value):
    """What of a model decides the size of its cache. `heads` are the key-value heads of each layer, 0 where a layer
    keeps no keys (recurrent ones); `key` and `value` are numbers a head and token; `trained` is the longest context
    that the model was trained on, 0 where the file does not say."""

    heads: tuple[int, ...]
    key: int
    value: int
    trained: int = 0

    def bytes(self, window: int, kind: str = "f16") -> int:
        """Of one conversation with a window of so many tokens: cells x (sum of heads) x (key + value) numbers.

        Raises SetupError for a type that caches do not have.
        """
        if kind not in BYTES:
            raise SetupError(f"A KV cache has no type {kind!r}. Choose one of {', '.join(BYTES)}.")
        cells = -(-window // CELLS) * CELLS
        return round(cells * sum(self.heads) * (self.key + self.value) * BYTES[kind])


def read_kv_cache(gguf: Path) -> KvCache:
    """Reads `block_count`, `attention.head_count_kv`, `attention.key_length` and `attention.value_length` of the file's
    architecture; what a file leaves out follows from the number of heads and the width, as in llama.cpp. Raises
    CorruptModel where they are missing or make no sense."""
    import gguf as ggml

    try:
        fields = ggml.GGUFReader(gguf).fields
        architecture = str(fields["general.architecture"].contents())

        def field(name: str) -> int | list[int] | None:
            found = fields.get(f"{architecture}.{name}")
            return None if found is None else found.contents()

        layers, every = field("block_count"), field("attention.head_count")
        if not isinstance(layers, int) or layers < 1 or every is None:
            raise ValueError(f"{architecture}.block_count is {layers}, attention.head_count is {every}")
        kept = field("attention.head_count_kv")
        heads = _by_layer(every if kept is None else kept, layers)
        width, most = field("embedding_length"), max(_by_layer(every, layers))
        usual = int(width) // most if isinstance(width, int) and most else 0
        key, value, trained = field("attention.key_length"), field("attention.value_length"), field("context_length")
        found = KvCache(
            heads=heads,
            key=key if isinstance(key, int) else usual,
            value=value if isinstance(value, int) else usual,
            trained=trained if isinstance(trained, int) else 0,
        )
        if min(heads) < 0 or found.key < 1 or found.value < 1:
            raise ValueError(f"{found}")
    except (ValueError, OSError, KeyError, IndexError, TypeError, struct.error) as error:
        raise CorruptModel(f"Cannot read the size of the KV cache of {gguf}: {error}. Fetch the file again.") from error
    return found


def _by_layer(said: int | list[int], layers: int) -> tuple[int, ...]:
    """One number a layer; a file says one for all, or a list."""
    if isinstance(said, int):
        return (said,) * layers
    if len(said) != layers:
        raise ValueError(f"{len(said)} numbers of heads for {layers} layers")
    return tuple(int(one) for one in said)
