"""The machine as operations: how busy it is and was, which models fit it, and as what."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from llm_tuner.operations import Operation
from llm_tuner.types import Event, Json, ModelError

if TYPE_CHECKING:
    from llm_tuner.models.resources import Snapshot

GATEWAY = "http://127.0.0.1:11535"

Host = Annotated[str, Field(description="Ollama server; OLLAMA_HOST when empty.")]
Memory = Annotated[float, Field(ge=0, description="Another machine's memory in GB; 0: this one's.")]
GpuMemory = Annotated[float, Field(ge=-1, description="Another machine's GPU memory in GB; -1: this one's, 0: none.")]


def resources(host: Host = "") -> dict[str, Json]:
    """How busy this machine is now: CPU, memory, disk, GPUs, the memory of each model that is served, tokens a second,
    and what should worry.

    Example: llm-tuner top --json
    """
    from llm_tuner.store.readings import Readings

    found = reading(host)
    Readings().add(values(found))
    return found


def reading(host: str = "", seconds: float = 0.2, before: dict[str, float] | None = None) -> dict[str, Any]:
    """One reading; `seconds` as in resources.snapshot. `before` carries a gateway's counters to the next reading."""
    from llm_tuner.models.resources import snapshot, warnings

    now: Snapshot = snapshot(seconds=seconds)
    return {
        "time": time.time(),
        **now.model_dump(mode="json"),
        "ollama": _ollama(host),
        "tokens_per_s": _speed(before if before is not None else {}),
        "warnings": list(warnings(now)),
    }


def values(found: dict[str, Any]) -> dict[str, float | None]:
    """What of a reading is kept over time."""
    kept: dict[str, float | None] = {
        "cpu": found["cpu"],
        "memory": found["memory_used"],
        "disk_free": found["disk_free"],
        "served": sum(one["memory"] for one in found["served"]),
        "tokens_per_s": found["tokens_per_s"],
    }
    for number, card in enumerate(found["gpus"]):
        kept |= {f"gpu{number}": card["utilisation"], f"gpu{number}_memory": card["memory_used"]}
    return kept


def resource_history(
    hours: Annotated[float, Field(gt=0, le=720, description="How far back.")] = 24,
    points: Annotated[int, Field(ge=2, le=2000, description="At most so many of each.")] = 300,
) -> dict[str, Json]:
    """How busy this machine was: CPU, memory, disk, GPUs, tokens a second over time, as `top` and the dashboard read.

    Example: llm-tuner resources --hours 6 --json
    """
    from llm_tuner.store.readings import Readings

    return {"hours": hours, "series": dict(Readings().since(hours * 3600, points))}


def models_advise(
    window: Annotated[int, Field(ge=512, description="Tokens that the coordinator must hold.")] = 32768,
    memory: Memory = 0,
    gpu_memory: GpuMemory = -1,
) -> dict[str, Json]:
    """Which models this machine should serve as coordinator, worker and fallback, and why not the others.

    Example: llm-tuner models advise --window 32768
    """
    from llm_tuner.models.advice import advise, this_machine

    machine = this_machine(round(memory * 1e9) or None, None if gpu_memory < 0 else round(gpu_memory * 1e9))
    return advise(machine, window).model_dump(mode="json")


def models_fit(
    model: Annotated[str, Field(description="A name of the catalogue, a fetched or tuned model, or a .gguf path.")],
    ctx: Annotated[int, Field(ge=256, description="Window in tokens.")] = 8192,
    quantisation: Annotated[str, Field(description="Of a catalogue's model: Q4_K_M, Q8_0, ...")] = "",
    slots: Annotated[int, Field(ge=1, description="Conversations at a time.")] = 1,
    measure: Annotated[bool, Field(description="Load it, and say what it really takes.")] = False,
    memory: Memory = 0,
    gpu_memory: GpuMemory = -1,
) -> Generator[Event, None, dict[str, Json]]:
    """Whether a model fits this machine with a window: weights, KV cache, buffers; fits, tight, or no.

    Example: llm-tuner models fit qwen2.5-coder:7b --ctx 32768
    """
    from llm_tuner.models.advice import fit, this_machine

    gguf = None if quantisation else _file(model)
    machine = this_machine(round(memory * 1e9) or None, None if gpu_memory < 0 else round(gpu_memory * 1e9))
    found = fit(model, ctx, machine, quantisation=quantisation, slots=slots, gguf=gguf)
    document: dict[str, Json] = found.model_dump(mode="json")
    if measure:
        from llm_tuner.evaluation.target import Target, locate

        gguf = gguf or (yield from locate(Target(model=model))).gguf
        if gguf is None:
            raise ModelError(f"{model} has no file here to load. Run: llm-tuner models pull {model}")
        yield Event(step="measure", message=f"loading {gguf.name} with {ctx} tokens")
        document["measured"] = taken = _taken(gguf, ctx, slots)
        document["off"] = round(found.total / taken - 1, 4)
    return document


def _taken(gguf: Path, window: int, slots: int) -> int:
    """Bytes in memory of the embedded runtime's process after it has read a prompt."""
    import psutil

    from llm_tuner.models.llamacpp import Embedded
    from llm_tuner.types import ChatOptions, Message

    others = set(psutil.Process().children())
    with Embedded(gguf, context=window, slots=slots) as model:
        (child,) = set(psutil.Process().children()) - others
        words = "word " * min(1000, window // 4)
        model.chat([Message(role="user", text=words)], (), ChatOptions(max_tokens=1))
        return int(child.memory_info().rss)


def _file(model: str) -> Path | None:
    """Its file where it is here already: nothing is fetched to answer a question."""
    from llm_tuner.models.sources import installed
    from llm_tuner.models.versions import Versions

    if model.endswith(".gguf"):
        return Path(model)
    for cached in installed():
        if cached.name == model:
            return cached.path
    versions = Versions()
    return versions.path(model) if model.partition(":")[0] in versions.names() else None


def _ollama(host: str) -> list[dict[str, Json]] | None:
    """What Ollama says it has in memory; None where none answers at once."""
    from llm_tuner.models.ollama import OllamaServer

    server = OllamaServer(host or None, timeout=1)
    try:
        keep = ("name", "size", "size_vram", "context_length")
        return [{key: model.get(key) for key in keep} for model in server.running()]
    except ModelError:
        return None
    finally:
        server.close()


def _speed(before: dict[str, float]) -> float | None:
    """Tokens a second that this machine's gateway generated since the last reading; None without a gateway or a reading
    before."""
    import httpx2

    from llm_tuner.models.https import trust

    try:
        text = httpx2.get(f"{GATEWAY}/metrics", timeout=0.3, verify=trust(GATEWAY), trust_env=False).text
    except httpx2.HTTPError:
        before.clear()
        return None
    total = sum(
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith("llm_tuner_tokens_total") and 'kind="completion"' in line
    )
    now, last = time.monotonic(), dict(before)
    before.update(time=now, tokens=total)
    if "time" not in last or now <= last["time"]:
        return None
    return round((total - last["tokens"]) / (now - last["time"]), 1)


OPERATIONS = (
    Operation("resources", resources, ("top",), "CPU・メモリー・ディスク・GPU とモデルごとの使用量を示します。"),
    Operation("resource_history", resource_history, ("resources",), "資源の使用量の推移を示します。"),
    Operation("models_advise", models_advise, ("models", "advise"), "このマシンに合うモデル構成を理由つきで薦めます。"),
    Operation("models_fit", models_fit, ("models", "fit"), "モデルとウィンドウがこのマシンに収まるかを判定します。"),
)
