"""One dial: how much memory training may take -> the settings of a recipe that stay within it.

Not a measurement and not a limit that the system enforces: an estimate by parts, from the shapes in the GGUF alone,
before anything is loaded. Its constants were measured (docs/log.md) and err upwards. The rule it protects: what is
learned stays the same. Derived are only settings that decide where numbers are kept and how many are computed at once,
never rank, rate or batch; of those that fit, the fastest are chosen.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llm_tuner.training.recipe import Recipe
from llm_tuner.types import CorruptModel, SetupError, Value

UNITS = {"": 1, "B": 1, **{f"{prefix}B": 1000**n for n, prefix in enumerate("KMGT", 1)}}
UNITS |= {f"{prefix}IB": 1024**n for n, prefix in enumerate("KMGT", 1)}

PACKS = (4096, 2048, 1024, 512)
"""Tokens computed at once, the fastest first."""

IN_BLOCKS = ("llama", "qwen2", "qwen3", "gemma3")
"""Architectures whose weights can stay in blocks (blocks.py)."""

PLAIN = ("F32", "F16", "BF16")


class Estimate(Value):
    """What training takes at its peak, in bytes, by part."""

    weights: int
    adapter: int
    activations: int
    logits: int
    process: int

    @property
    def total(self) -> int:
        return sum(self.model_dump().values())


class Chosen(Value):
    """The settings that fit, what they are estimated to take, and both as sentences."""

    weights: Literal["dense", "blocks"]
    precision: Literal["float32", "bfloat16"]
    gradient_checkpointing: bool
    pack_tokens: int
    estimate: Estimate
    sentences: tuple[str, ...]

    def applied(self, config: Recipe) -> Any:
        """The recipe with these settings: its checkpoints belong to them."""
        fields = self.model_dump(include={"weights", "precision", "gradient_checkpointing", "pack_tokens"})
        return config.model_copy(update=fields)


class Shape(NamedTuple):
    """What of a model decides the memory. Widths are in numbers a token; `adapted` is the sum of (in + out) over all
    layers that LoRA adapts; `plain` numbers stay dense where the others stay in `blocks` bytes; `largest` is that of
    the tensors with the most."""

    architecture: str
    layers: int
    width: int
    query: int
    key: int
    inner: int
    vocabulary: int
    parameters: int
    adapted: int
    plain: int
    blocks: int
    largest: int


def parsed(budget: str) -> int:
    """Bytes of "8GB", "6.5 GiB", "900 MB". Raises SetupError with an example."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", budget)
    unit = UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or float(found[1]) <= 0:
        raise SetupError(f'memory = "{budget}" is no amount of memory. Write it like "8GB" or "6.5 GiB".')
    return int(float(found[1]) * unit)


def derive(budget: str, gguf: Path, config: Recipe | None = None, longest: int = 0) -> Chosen:
    """The fastest settings whose estimate stays within `budget`, for this model and this recipe's rank.

    Preferred: dense weights to blocks, everything kept to gradient checkpointing, long packs to short ones, down to 512
    tokens; below that other settings are tried first. A row longer than that has a pack of its own: the estimate is of
    the `longest` (in tokens; 0: not known). Raises SetupError for a budget that cannot be read or in
    which nothing fits, with what would be needed, and CorruptModel for a file that cannot be read.
    """
    config = config or Recipe()
    limit, shape = parsed(budget), read_shape(gguf, config.target_modules)
    tried = [(settings, _estimated(shape, config.r, settings, longest)) for settings in _settings(shape, config)]
    for (weights, precision, checkpointing, tokens), taken in tried:
        if taken.total <= limit:
            return Chosen(
                weights=weights, precision=precision, gradient_checkpointing=checkpointing, pack_tokens=tokens,
                estimate=taken, sentences=_told(budget, weights, precision, checkpointing, tokens, longest, taken),
            )  # fmt: skip
    (_, _, _, tokens), least = min(tried, key=lambda one: one[1].total)
    shorter = "leave out the longest rows (max_seq_length), " if longest > tokens else ""
    raise SetupError(
        f"{gguf.name} cannot be trained in {budget}: at least {_size(least.total)} are needed "
        f"({_parts(least, max(tokens, longest))}). "
        f'Set memory = "{least.total / 1e9 + 0.05:.1f}GB" or more, {shorter}or take a smaller base.'
    )


Settings = tuple[Literal["dense", "blocks"], Literal["float32", "bfloat16"], bool, int]


def _settings(shape: Shape, config: Recipe) -> Iterator[Settings]:
    """All that may be chosen, the best first: what the recipe already does to save memory stays, what its variant of
    LoRA cannot do is left out."""
    plain = config.variant in ("lora", "rslora")
    for weights, checkpointing, precision, tokens in product(
        ("dense", "blocks"), (False, True), ("float32", "bfloat16"), PACKS
    ):
        if weights == "blocks" and (shape.architecture not in IN_BLOCKS or not plain):
            continue
        if config.precision not in ("auto", precision) or (precision == "bfloat16" and config.variant == "pissa"):
            continue
        if tokens > max(config.pack_tokens, PACKS[-1]):
            continue
        if (config.weights == "blocks" and weights == "dense") or (config.gradient_checkpointing and not checkpointing):
            continue
        yield weights, precision, checkpointing, tokens  # type: ignore[misc]


# -------------------------------------------------------------------------------------------------------- the estimate


def read_shape(gguf: Path, targets: tuple[str, ...]) -> Shape:
    """The widths of a model, from its file's metadata and the shapes of its tensors. Raises CorruptModel."""
    import gguf as ggml

    try:
        reader = ggml.GGUFReader(gguf)
        architecture = str(reader.fields["general.architecture"].contents())

        def field(name: str) -> int | None:
            found = reader.fields.get(f"{architecture}.{name}")
            return None if found is None else int(found.contents())

        layers, width, heads = field("block_count"), field("embedding_length"), field("attention.head_count")
        if not layers or not width or not heads:
            raise KeyError("block_count, embedding_length or attention.head_count")
        head = field("attention.key_length") or width // heads
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        inner = int(tensors["blk.0.ffn_up.weight"].shape[1])
        vocabulary = int(tensors["token_embd.weight"].shape[1])
    except (ValueError, OSError, KeyError, IndexError, struct.error) as error:
        raise CorruptModel(f"Cannot read the shape of {gguf}: {error}") from error
    names = {GGUF_NAMES[target] for target in targets if target in GGUF_NAMES}
    adapted = sum(int(t.shape[0] + t.shape[1]) for name, t in tensors.items() if _layer(name) in names)
    in_blocks = [t for t in tensors.values() if len(t.shape) == 2 and t.tensor_type.name not in PLAIN]
    dense = [t for t in tensors.values() if len(t.shape) != 2 or t.tensor_type.name in PLAIN]
    return Shape(
        architecture=architecture, layers=layers, width=width, query=heads * head,
        key=(field("attention.head_count_kv") or heads) * head, inner=inner, vocabulary=vocabulary,
        parameters=sum(int(t.n_elements) for t in tensors.values()), adapted=adapted,
        plain=sum(int(t.n_elements) for t in dense), blocks=sum(int(t.n_bytes) for t in in_blocks),
        largest=max(int(t.n_elements) for t in tensors.values()),
    )  # fmt: skip


GGUF_NAMES = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip
"""transformers' names of a block's linear layers, and a GGUF's."""


def _layer(name: str) -> str:
    """ "blk.3.attn_q.weight" -> "attn_q"."""
    parts = name.split(".")
    return parts[2] if parts[0] == "blk" and parts[-1] == "weight" else ""


PROCESS = 760_000_000
"""Python with torch, transformers and PEFT loaded."""

TARGETS = 0.25
"""Share of a pack's tokens whose logits are computed. Tool calls behind a shared catalogue are fewer; rows of long
answers behind short prompts are more, and then this part is bigger."""

TOKEN_IN_LOADING = 2_800
"""Bytes that an entry of the vocabulary takes while the file is read (Python objects, given back afterwards). At that
time the pages of the file are in memory, too, and the biggest tensor in float32."""

PIECE = 1 << 23
"""Weights that are unpacked at a time where they stay in blocks (blocks.py)."""

CHUNK = 32
"""Targets whose logits are held in float32 at a time (loss.py)."""

MARGIN = 1.08
"""What the allocator wastes, and the small things that are not counted."""


def estimate(shape: Shape, r: int, weights: str, precision: str, checkpointing: bool, pack_tokens: int) -> Estimate:
    """Bytes at the peak of a step over one full pack, or of loading where that takes more.

    Kept for the backward pass of each layer and token are (lean.py, lora.py, attention.py): the inputs of both norms
    and what they give, queries, keys, values and what attention gives (twice), gate and up, and eight LoRA products;
    where weights stay in blocks, lean.py does not help, and the activated gate and its product with up are kept, too.
    With checkpointing a layer keeps its input, and one layer at a time the rest. On top comes the layer in whose
    backward pass the gradients are: about five times its inner width. An adapter's number takes 16 bytes: itself, its
    gradient and two moments in float32.
    """
    size = 4 if precision == "float32" else 2
    held = shape.parameters * size if weights == "dense" else shape.blocks + shape.plain * size + PIECE * (8 - size)
    gated = 2 if weights == "dense" else 4
    layer = 4 * shape.width + 3 * shape.query + 2 * shape.key + gated * shape.inner + 8 * r
    layers = shape.layers * shape.width + layer if checkpointing else shape.layers * layer
    working = 5 * shape.inner + 2 * shape.width
    targets = int(pack_tokens * TARGETS)
    adapter = 16 * r * shape.adapted
    activations = (layers + working) * size * pack_tokens
    logits = shape.vocabulary * (targets * size + CHUNK * 4)
    loading = shape.blocks + shape.plain * 4 + shape.largest * 4 + shape.vocabulary * TOKEN_IN_LOADING
    more = max(0, loading - adapter - activations - logits)
    return Estimate(
        weights=int(held * MARGIN), adapter=adapter, activations=int(activations * MARGIN),
        logits=int(logits * MARGIN), process=PROCESS + more,
    )  # fmt: skip


def _estimated(shape: Shape, r: int, settings: Settings, longest: int) -> Estimate:
    weights, precision, checkpointing, tokens = settings
    return estimate(shape, r, weights, precision, checkpointing, max(tokens, longest))


def _beyond(tokens: int, longest: int) -> str:
    if longest > tokens:
        return ", which the longest row takes"
    return "" if longest else f"; rows of more than {tokens} tokens take more"


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def _parts(taken: Estimate, tokens: int) -> str:
    return (
        f"weights {_size(taken.weights)}, adapter and optimizer {_size(taken.adapter)}, activations "
        f"{_size(taken.activations)} for {tokens} tokens, logits {_size(taken.logits)}, the process and loading "
        f"{_size(taken.process)}"
    )


def _told(
    budget: str, weights: str, precision: str, checkpointing: bool, tokens: int, longest: int, taken: Estimate
) -> tuple[str, ...]:
    where = "in the file's own blocks" if weights == "blocks" else f"dense in {precision}"
    most = max(tokens, longest)
    kept = "are computed again in the backward pass" if checkpointing else "are kept for the backward pass"
    return (
        f"memory {budget}: weights stay {where}, computed is in {precision}, activations {kept}, and {tokens} tokens "
        "are computed at once.",
        f"Estimated at the peak: {_size(taken.total)} ({_parts(taken, most)}){_beyond(tokens, longest)}.",
    )
