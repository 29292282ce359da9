"""Which models this machine can serve, and as what: weights, KV cache, buffers against memory and GPUs.

A calculation, which `models fit --measure` holds against what the runtime really takes. The rule it protects: what is
called a fit has room to spare, and where a size is not known from the file it is said to be estimated.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from llm_tuner.models.catalogue import KnownModel, find
from llm_tuner.models.kv_cache import KvCache
from llm_tuner.types import SetupError, Value

Verdict = Literal["fits", "tight", "no"]

BITS = {"F16": 16.0, "Q8_0": 8.5, "Q6_K": 6.6, "Q5_K_M": 5.7, "Q4_K_M": 4.9, "Q4_0": 4.6, "Q3_K_M": 3.9}
"""Bits a weight takes in whole files of models of some billions of weights; small ones have more (their embeddings)."""

BASE, A_WORD, A_CHANNEL = 48 << 20, 340, 6144
"""Bytes of the runtime's own process, for each entry of the vocabulary, for each channel of the feed-forward layers.
Fitted to xllamacpp's server with 135M, 0.5B and 1.5B models (docs/resources.md)."""

REPACKED = 0.56
"""Share of a Q4_K_M file that llama.cpp keeps a second time on a CPU with vector instructions, in another order."""

EASY, MOST = 0.7, 0.92
"""Shares of the memory that is free: up to which it fits, and up to which it is tight."""

CORES_A_BILLION = 1.2
"""Without a GPU, fewer cores a billion of weights make an agent wait for minutes: reading is what costs."""


class Card(Value):
    """A GPU: bytes in all and free."""

    name: str
    memory: int
    free: int


class Machine(Value):
    """What decides: usable cores, features of the CPU (avx2, avx512f, amx_bf16, ...), bytes of memory in all and
    available, bytes free on disk, GPUs."""

    cores: int
    features: tuple[str, ...] = ()
    memory: int
    available: int
    disk_free: int
    gpus: tuple[Card, ...] = ()


class Fit(Value):
    """Whether a model with a window fits, in bytes. `estimated`: the weights' size is not that of a known file.
    `where` is "gpu", "memory", or "" where it does not fit."""

    model: str
    quantisation: str
    window: int
    slots: int
    weights: int
    cache: int
    buffers: int
    repacked: int
    total: int
    estimated: bool
    verdict: Verdict
    where: str
    beyond_trained: bool


class Part(Value):
    """A model in a role, and why."""

    role: str
    fit: Fit
    en: str
    ja: str


class Advice(Value):
    """A composition that is in memory at once. `rejected` says what was not taken and why; `toml` is for the gateway
    (docs/gateway.md)."""

    machine: Machine
    parts: tuple[Part, ...]
    total: int
    rejected: tuple[str, ...]
    sentences: tuple[str, ...]
    sentences_ja: tuple[str, ...]
    toml: str


COMPOSITIONS = (
    ("qwen2.5-coder:7b", "qwen2.5-coder:1.5b", "deepseek-coder:1.3b"),
    ("qwen2.5-coder:7b", "qwen2.5-coder:1.5b", "qwen2.5-coder:0.5b"),
    ("qwen2.5-coder:7b", "qwen2.5-coder:0.5b", "qwen2.5-coder:0.5b"),
    ("qwen2.5-coder:1.5b", "qwen2.5-coder:1.5b", "deepseek-coder:1.3b"),
    ("qwen2.5-coder:1.5b", "qwen2.5-coder:1.5b", "qwen2.5-coder:0.5b"),
    ("qwen2.5-coder:1.5b", "qwen2.5-coder:0.5b", "qwen2.5-coder:0.5b"),
    ("qwen2.5-coder:0.5b", "qwen2.5-coder:0.5b", "qwen2.5-coder:0.5b"),
)
"""Coordinator, worker, fallback, the best first."""

ROLES = ("coordinator", "worker", "fallback")
WORKER_WINDOW = 8192


def this_machine(memory: int | None = None, gpu_memory: int | None = None) -> Machine:
    """This machine now; `memory` and `gpu_memory` (bytes, 0 for none) stand for another one's."""
    import psutil

    from llm_tuner.models.resources import gpus, usable_cores

    found = psutil.virtual_memory()
    cards = tuple(Card(name=g.name, memory=g.memory_total, free=g.memory_total - g.memory_used) for g in gpus())
    if gpu_memory is not None:
        cards = (Card(name="given", memory=gpu_memory, free=gpu_memory),) if gpu_memory else ()
    home = Path.home()
    return Machine(
        cores=usable_cores(),
        features=_features(),
        memory=memory or found.total,
        available=memory or found.available,
        disk_free=shutil.disk_usage(home).free,
        gpus=cards,
    )


def fit(
    name: str, window: int, machine: Machine, *, quantisation: str = "", slots: int = 1, gguf: Path | None = None
) -> Fit:
    """Whether a model of the catalogue, or a file, fits with `slots` conversations of `window` tokens each."""
    if gguf is not None:
        return _of_file(name, gguf, window, slots, machine)
    known = find(name)
    wanted = (quantisation or known.quantisation).upper()
    if wanted not in BITS and wanted != known.quantisation:
        raise SetupError(f'No quantisation "{quantisation}". Choose one of {", ".join(BITS)}.')
    weights, estimated = _weights(known, wanted)
    buffers = _buffers(known.shape.vocabulary, known.shape.feed_forward)
    repacked = round(weights * REPACKED) if wanted == "Q4_K_M" and known.shape.width % 256 == 0 else 0
    return _judged(name, wanted, window, slots, weights, estimated, known.shape.cache(known.context), buffers,
                   repacked, machine)  # fmt: skip


def advise(machine: Machine, window: int = 32768) -> Advice:
    """The best composition that fits at once: all models in memory, the coordinator with the whole window."""
    rejected: list[str] = []
    for names in COMPOSITIONS:
        if why := _too_slow(names[0], machine):
            rejected.append(f"{' + '.join(dict.fromkeys(names))}: {why}")
            continue
        fits = _composed(names, window, machine)
        total = sum(one.total for one in {one.model: one for one in reversed(fits)}.values())
        room = _room(machine)
        if total <= room * EASY:
            return _advice(machine, fits, total, rejected)
        rejected.append(
            f"{' + '.join(dict.fromkeys(names))}: needs {_gb(total)} at once, {_gb(round(room * EASY))} may be used"
        )
    return Advice(
        machine=machine, parts=(), total=0, rejected=tuple(rejected),
        sentences=("No composition fits: free memory, or ask for a smaller window (--window 8192).",),
        sentences_ja=("収まる構成がありません。メモリーを空けるか、小さいウィンドウ (--window 8192) にしてください。",),
        toml="",
    )  # fmt: skip


def _composed(names: Sequence[str], window: int, machine: Machine) -> list[Fit]:
    """Who has two roles is in memory once, with a conversation for each and the larger window."""
    fits = []
    for name in names:
        roles = [role for role, other in zip(ROLES, names, strict=True) if other == name]
        own = min(window if "coordinator" in roles else WORKER_WINDOW, find(name).context)
        fits.append(fit(name, own, machine, slots=len(roles)))
    return fits


def _advice(machine: Machine, fits: Sequence[Fit], total: int, rejected: list[str]) -> Advice:
    parts = [Part(role=role, fit=one, **_reason(role, one)) for role, one in zip(ROLES, fits, strict=True)]
    where = "GPU" if machine.gpus else f"{machine.cores} cores"
    en = [
        f"{p.role}: {p.fit.model} {p.fit.quantisation}, {p.fit.window:,} tokens, {_gb(p.fit.total)} ({p.en})"
        for p in parts
    ]
    ja = [
        f"{p.role}: {p.fit.model} {p.fit.quantisation}、{p.fit.window:,} トークン、{_gb(p.fit.total)}({p.ja})"
        for p in parts
    ]
    en.append(f"Together {_gb(total)} of {_gb(_room(machine))} that are free ({where}).")
    ja.append(f"合計 {_gb(total)}、空き {_gb(_room(machine))}({where})。")
    toml = "\n".join(_role(part, machine) for part in parts)
    return Advice(machine=machine, parts=tuple(parts), total=total, rejected=tuple(rejected), sentences=tuple(en),
                  sentences_ja=tuple(ja), toml=toml)  # fmt: skip


def _role(part: Part, machine: Machine) -> str:
    lines = [f"[roles.{part.role}]", f'model = "{part.fit.model}"', f"window = {part.fit.window}"]
    if part.role == "worker" and machine.cores >= 8:
        lines.append("at_once = 2")
    return "\n".join(lines)


def _reason(role: str, one: Fit) -> dict[str, str]:
    shared = one.slots > 1
    if role == "coordinator":
        return {"en": "plans, and reads long conversations", "ja": "計画と長い会話を担当"}
    if role == "worker":
        return {"en": "in memory once for two roles" if shared else "quick, for most calls",
                "ja": "二つの役割で一つを共有" if shared else "速く、呼び出しの大半を担当"}  # fmt: skip
    return {"en": "answers when the others fail", "ja": "ほかが失敗したときに応答"}


def _too_slow(name: str, machine: Machine) -> str:
    billions = find(name).parameters / 1e9
    if machine.gpus or billions < 2 or machine.cores >= billions * CORES_A_BILLION:
        return ""
    return f"too slow on {machine.cores} cores without a GPU (a coordinator reads thousands of tokens)"


def _weights(known: KnownModel, wanted: str) -> tuple[int, bool]:
    if known.size is not None and wanted == known.quantisation:
        return known.size, False
    return round(known.parameters * BITS[wanted] / 8), True


def _buffers(vocabulary: int, feed_forward: int) -> int:
    return BASE + A_WORD * vocabulary + A_CHANNEL * feed_forward


def _judged(
    name: str, quantisation: str, window: int, slots: int, weights: int, estimated: bool, cache: KvCache, buffers: int,
    repacked: int, machine: Machine,
) -> Fit:  # fmt: skip
    kept = cache.bytes(window) * slots
    on_gpu = weights + kept + buffers
    total = on_gpu + repacked
    free = max((card.free for card in machine.gpus), default=0)
    verdict: Verdict = "no"
    where = ""
    for place, needs, room in (("gpu", on_gpu, free), ("memory", total, machine.available)):
        if needs <= room * MOST:
            where, verdict = place, "fits" if needs <= room * EASY else "tight"
            break
    return Fit(
        model=name, quantisation=quantisation, window=window, slots=slots, weights=weights, cache=kept,
        buffers=buffers, repacked=0 if where == "gpu" else repacked, total=on_gpu if where == "gpu" else total,
        estimated=estimated, verdict=verdict, where=where, beyond_trained=0 < cache.trained < window,
    )  # fmt: skip


def _of_file(name: str, gguf: Path, window: int, slots: int, machine: Machine) -> Fit:
    """As `fit`, from what the file says. Raises CorruptModel for a file that says nothing."""
    import gguf as ggml

    from llm_tuner.models.kv_cache import read_kv_cache

    cache = read_kv_cache(gguf)
    reader = ggml.GGUFReader(gguf)
    architecture = str(reader.fields["general.architecture"].contents())
    wide = reader.fields.get(f"{architecture}.feed_forward_length")
    words = reader.fields.get("tokenizer.ggml.tokens")
    four = sum(
        int(tensor.n_bytes)
        for tensor in reader.tensors
        if tensor.tensor_type.name in ("Q4_K", "Q4_0") and tensor.name != "token_embd.weight"
    )
    channels = wide.contents() if wide else 0
    buffers = _buffers(len(words.data) if words else 0, max(channels) if isinstance(channels, list) else channels)
    size = gguf.stat().st_size
    return _judged(name, "file", window, slots, size, False, cache, buffers, four, machine)


def _room(machine: Machine) -> int:
    return max((card.free for card in machine.gpus), default=0) or machine.available


def _features() -> tuple[str, ...]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    known = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd", "sve")
    return tuple(flag for flag in known if flag in flags)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
