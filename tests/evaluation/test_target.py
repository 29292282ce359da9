"""Naming a model to measure: every way to say it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from llm_tuner.evaluation import target
from llm_tuner.evaluation.target import Located, Target, evaluate, locate, opened
from llm_tuner.store.suite import Suite
from llm_tuner.types import (
    GREEDY,
    ChatOptions,
    Event,
    Message,
    NoCall,
    Reply,
    SetupError,
    Task,
    ToolSpec,
)

SUITE = Suite(name="s", tasks=(Task(messages=(Message(role="user", text="hi"),), tools=(), expect=NoCall()),))


def result(steps: Generator[Event, None, Any]) -> Any:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


class Silent:
    name = "silent"

    def chat(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), options: ChatOptions = GREEDY) -> Reply:
        return Reply(message=Message(role="assistant", text="Hello."))


@contextmanager
def silent(located: Located) -> Iterator[Silent]:
    yield Silent()


@pytest.mark.parametrize(
    "asked", [Target(), Target(model="a", ollama="b"), Target(base_url="http://x"), Target(ollama="a", base_url="b")]
)
def test_a_target_says_one_thing(asked: Target) -> None:
    with pytest.raises(SetupError, match="--ollama"):
        result(locate(asked))


def test_servers_need_no_file() -> None:
    for asked in (Target(ollama="qwen3:4b"), Target(base_url="http://127.0.0.1:1/v1", model="any")):
        located = result(locate(asked))
        assert (located.gguf, located.sha256) == (None, "")
        with opened(located) as backend:
            assert backend.name == (asked.ollama or asked.model)


def test_an_installed_version_goes_before_fetching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = target.Versions(tmp_path / "versions")
    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    installed = versions.install("mine", tmp_path / "a.gguf", {})
    monkeypatch.setattr(target, "Versions", lambda: versions)
    located = result(locate(Target(model="mine:candidate")))
    assert located.sha256 == installed.sha256
    assert located.gguf == versions.path("mine:candidate")


def test_anything_else_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"abc")

    def fetched(reference: str) -> Generator[Event, None, Path]:
        yield Event(step="fetch", message=reference)
        return path

    monkeypatch.setattr(target, "fetch", fetched)
    located = result(locate(Target(model="qwen2.5-coder:0.5b")))
    assert located.gguf == path
    assert located.sha256.startswith("ba7816bf")


def test_evaluate_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "opened", silent)
    report = result(evaluate(Target(ollama="any"), SUITE, out=tmp_path))
    assert report.rates["no_call"].value == 1.0
    assert report.machine["cores"]
    names = {"attempts.jsonl", "report.json", "report.md", "report.html", "measured.json", "suite.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == names
