"""Real weights and a real Ollama server, provided once a session.

LLM_TUNER_TEST_QWEN and LLM_TUNER_TEST_SMOL may name GGUF files that are here already (Qwen2.5-Coder-0.5B-Instruct and
SmolLM2-135M-Instruct); otherwise they are fetched and cached on first use.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


def _weights(variable: str, reference: str) -> Path:
    if given := os.environ.get(variable):
        return Path(given)
    from llm_tuner.models.sources import fetch

    events = fetch(reference)
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value


@pytest.fixture(scope="session")
def qwen_gguf() -> Path:
    return _weights("LLM_TUNER_TEST_QWEN", "qwen2.5-coder:0.5b")


@pytest.fixture(scope="session")
def smol_gguf() -> Path:
    return _weights("LLM_TUNER_TEST_SMOL", "smollm2:135m")


@pytest.fixture(scope="session")
def ollama_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import ollama_server

    program = ollama_server.binary()
    if program is None:
        pytest.skip("no Ollama server, and no Go to build one")
    with ollama_server.serve(tmp_path_factory.mktemp("ollama"), program) as url:
        yield url
