"""Ollama from day to day, on a real server, its real disk and a real registry on loopback: moved tags, broken
transfers, missing blobs, what a removal frees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import docker_registry
import ollama_server
from llm_tuner.models.ollama import OllamaServer
from llm_tuner.models.ollama_registry import located
from llm_tuner.models.ollama_store import OllamaStore
from llm_tuner.operations import perform
from llm_tuner.operations.ollama import _insecure, fenced
from llm_tuner.operations.table import find
from llm_tuner.types import ModelError, RuntimeUnavailable, SourceUnreachable, UnknownModel


class World(NamedTuple):
    """A server of our own, its store, and a registry with its files."""

    server: OllamaServer
    store: Path
    push: str
    pull: str
    files: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, smol_gguf: Path) -> Iterator[World]:
    program = ollama_server.binary()
    if program is None or docker_registry.binary() is None:
        pytest.skip("no Ollama server, or no registry, can be had here")
    root = tmp_path_factory.mktemp("world")
    with docker_registry.serve(root / "registry") as hosts, ollama_server.serve(root / "ollama", program) as url:
        server = OllamaServer(url)
        list(server.create("smol:1", smol_gguf, template="{{ .Prompt }}"))
        yield World(server, root / "ollama" / "models", *hosts, root / "registry")
        server.close()


@pytest.fixture(autouse=True)
def here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "world" in request.fixturenames:
        world: World = request.getfixturevalue("world")
        monkeypatch.setenv("OLLAMA_MODELS", str(world.store))
        monkeypatch.setenv("OLLAMA_HOST", world.server.url)


def do(operation: str, /, **arguments: Any) -> Any:
    steps = perform(find(operation), arguments)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def published(world: World, name: str, gguf: Path, template: str) -> str:
    """A model in the registry, and no longer here; returns the name to pull it by."""
    tag = f"{world.push}/test/{name}:1"
    list(world.server.create(tag, gguf, template=template))
    list(world.server.push(tag, insecure=True))
    world.server.delete(tag)
    return f"{world.pull}/test/{name}:1"


@pytest.mark.ollama
@pytest.mark.weights
def test_listing_says_what_the_server_and_the_disk_say(world: World) -> None:
    (one,) = [m for m in do("ollama_list_models")["models"] if m["name"] == "smol:1"]
    (stored,) = [m for m in OllamaStore().models() if m.name == "smol:1"]
    assert (one["digest"], one["size"], one["trouble"]) == (stored.digest, stored.size, [])
    dead = do("ollama_list_models", host="127.0.0.1:9")
    assert dead["server"] is None
    assert "127.0.0.1:9" in dead["why"]
    assert one["digest"] in {m["digest"] for m in dead["models"]}
    with pytest.raises(RuntimeUnavailable):
        do("ollama_list_models", host="192.0.2.1:9")  # another machine's disk is not ours


@pytest.mark.ollama
@pytest.mark.weights
def test_showing_loading_copying_unloading(world: World) -> None:
    shown = do("ollama_show", name="smol:1")
    assert shown["context_length"] == 8192
    assert shown["place_for_tools"] is False
    assert [m["name"] for m in do("ollama_load", name="smol:1", keep_alive="5m")["models"]] == ["smol:1"]
    assert do("ollama_ps")["models"][0]["size"] > 50e6
    assert any(m["loaded"] for m in do("ollama_list_models")["models"] if m["name"] == "smol:1")
    with pytest.raises(ModelError, match=r"in memory.*--force"):
        do("ollama_remove", name="smol:1")
    assert do("ollama_unload", name="smol:1")["models"] == []
    do("ollama_copy", source="smol:1", destination="worker:stable")
    with pytest.raises(ModelError, match="serves as stable"):
        do("ollama_remove", name="worker:stable")
    assert do("ollama_remove", name="worker:stable", force=True, confirm=True)["done"]


@pytest.mark.ollama
@pytest.mark.weights
def test_a_removal_says_what_it_frees(world: World, smol_gguf: Path) -> None:
    do("ollama_copy", source="smol:1", destination="second:1")
    plan = do("ollama_remove", name="second:1")
    assert (plan["done"], plan["facts"]["bytes"], plan["facts"]["shared_with"]) == (False, 0, ["smol:1"])
    assert plan["facts"]["shared"] > smol_gguf.stat().st_size
    list(world.server.create("other:1", smol_gguf, template="A longer template: {{ .Prompt }}"))
    freed = do("ollama_remove", name="other:1", confirm=True)["facts"]["bytes"]
    assert 30 < freed < 10_000  # its template and configuration; the weights stay
    do("ollama_remove", name="second:1", confirm=True)
    assert "second:1" not in [m["name"] for m in do("ollama_list_models")["models"]]
    with pytest.raises(UnknownModel, match="smol:1"):
        do("ollama_remove", name="second:1")


@pytest.mark.ollama
@pytest.mark.weights
def test_pulling_counts_bytes_stops_and_goes_on(world: World, smol_gguf: Path) -> None:
    tag = published(world, "pulled", smol_gguf, "P {{ .Prompt }}")
    hidden = world.store / "blobs-elsewhere"
    (world.store / "blobs").rename(hidden)  # so that there is something to fetch
    (world.store / "blobs").mkdir()
    try:
        steps = world.server.pull(tag, insecure=True)
        first = next(step for step in steps if step.total >= smol_gguf.stat().st_size)
        steps.close()
        assert first.unit == "bytes"
        assert tag not in [m["name"] for m in world.server.models()]
        digest = do("ollama_pull", name=tag)["digest"]
        assert digest == OllamaStore().model(tag).digest
        assert OllamaStore().model(tag).trouble == ()
        world.server.delete(tag)
    finally:
        for blob in hidden.iterdir():
            blob.replace(world.store / "blobs" / blob.name)
        hidden.rmdir()


@pytest.mark.ollama
@pytest.mark.weights
def test_an_update_fetches_what_moved_and_says_what_changed(world: World, smol_gguf: Path) -> None:
    tag = published(world, "moving", smol_gguf, "One {{ .Prompt }}")
    do("ollama_pull", name=tag)
    assert do("ollama_update", name=tag)["models"] == [{"name": tag, "state": "current", "changes": []}]
    kept = f"kept{os.getpid()}:1"
    do("ollama_copy", source=tag, destination=kept)
    published(world, "moving", smol_gguf, "Two, which is longer: {{ .Prompt }}")
    do("ollama_copy", source=kept, destination=tag)  # here it is still the old one
    checked = do("ollama_update", name=tag, check=True)["models"][0]
    assert checked["state"] == "moved"
    assert [change["kind"] for change in checked["changes"]] == ["template"]
    assert do("ollama_show", name=tag)["template"] == "One {{ .Prompt }}"
    updated = do("ollama_update", name=tag)["models"][0]
    assert (updated["state"], updated["changes"]) == ("updated", checked["changes"])
    assert do("ollama_show", name=tag)["template"] == "Two, which is longer: {{ .Prompt }}"
    assert do("ollama_update", name=tag, check=True)["models"][0]["state"] == "current"
    for name in (tag, kept):
        world.server.delete(name)


@pytest.mark.ollama
@pytest.mark.weights
def test_a_broken_registry_is_told_and_what_is_here_stays(world: World, smol_gguf: Path) -> None:
    tag = published(world, "broken", smol_gguf, "B {{ .Prompt }}")
    do("ollama_pull", name=tag)
    digest = do("ollama_show", name=tag)["template"]
    layer = next(layer for layer in OllamaStore().model(tag).layers if layer.kind == "template")
    hexes = layer.digest.removeprefix("sha256:")
    (blob,) = world.files.glob(f"docker/registry/v2/blobs/sha256/*/{hexes}/data")
    content = blob.read_bytes()
    (world.store / "blobs" / layer.digest.replace(":", "-")).unlink()
    try:
        trouble = [m["trouble"] for m in do("ollama_list_models")["models"] if m["name"] == tag]
        assert trouble
        assert "template is missing" in trouble[0][0]
        blob.write_bytes(content[:-3] + b"xyz")  # what comes over the wire is not what the manifest names
        with pytest.raises(ModelError, match="not what its manifest names"):
            do("ollama_pull", name=tag)
        blob.unlink()
        with pytest.raises(ModelError):
            do("ollama_pull", name=tag)
        with pytest.raises(UnknownModel):
            do("ollama_pull", name=f"{world.pull}/test/nobody:1")
        assert do("ollama_show", name="smol:1")["template"] == "{{ .Prompt }}"
    finally:
        blob.write_bytes(content)
    do("ollama_pull", name=tag)
    assert do("ollama_show", name=tag)["template"] == digest
    world.server.delete(tag)
    with pytest.raises(SourceUnreachable, match="cannot reach the registry"):
        do("ollama_pull", name="127.0.0.1:9/a/b:1")
    with pytest.raises(UnknownModel):
        do("ollama_update", name="nobody")
    assert do("ollama_update", name="smol:1")["models"][0]["state"] in ("unknown", "made here")


@pytest.mark.ollama
@pytest.mark.weights
def test_text_code_and_a_chat_in_the_terminal(world: World, qwen_gguf: Path) -> None:
    from llm_tuner.models.ollama_templates import GO_TEMPLATES

    list(world.server.create("qwen2.5-coder:0.5b", qwen_gguf, template=GO_TEMPLATES["Qwen2.5"]))
    answer = do("ollama_generate", model="qwen2.5-coder:0.5b", prompt="Say hello.", max_tokens=20)
    assert answer["text"]
    assert 0 < answer["completion_tokens"] <= 20
    assert answer["tokens_per_s"] > 0
    with pytest.raises(ModelError, match="context"):
        do("ollama_generate", model="qwen2.5-coder:0.5b", prompt="word " * 600, context=256, max_tokens=5)
    code = do("ollama_code", task="Write a function add(a, b) that returns their sum.", max_tokens=120)
    assert code["model"] == "qwen2.5-coder:0.5b"
    assert "def add" in code["code"]
    assert "```" not in code["code"]
    script = Path(__file__).parents[1] / "tools" / "nasty" / "good.py"
    hub = world.store.parent / "hub.json"
    hub.write_text(json.dumps({"mcpServers": {"good": {"command": sys.executable, "args": [str(script)]}}}))
    command = [sys.executable, "-m", "llm_tuner", "ollama", "run", "qwen2.5-coder:0.5b"]
    done = subprocess.run([*command, "--hub", str(hub), "--yes"], input="Call the tool echo with the text hello.",
                          capture_output=True, text=True, timeout=240)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "echo {" in done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Here:\n```python\nx = 1\n```\nand\n```\ny\n```", "x = 1\n\ny"),
        ("x = 1\n", "x = 1"),
        ("```js\nlet a;", "let a;"),
        ("```c++\nint a;\n```", "int a;"),
    ],
)
def test_the_code_of_an_answer(text: str, code: str) -> None:
    assert fenced(text) == code


def test_where_a_name_lies() -> None:
    assert located("qwen2.5-coder:7b") == ("registry.ollama.ai", "library/qwen2.5-coder", "7b")
    assert located("someone/model") == ("registry.ollama.ai", "someone/model", "latest")
    assert located("http://127.0.0.1:5000/space/model:1") == ("127.0.0.1:5000", "space/model", "1")


def test_plain_http_is_for_this_machine_alone_unless_allowed() -> None:
    for name, given, plain in (
        ("127.0.0.1:5000/a/b", False, True),
        ("localhost:5000/a/b", False, True),
        ("127.evil.example/a/b", False, False),
        ("localhost.evil.example/a/b", False, False),
        ("qwen2.5-coder:7b", False, False),
        ("registry.example/a/b", True, True),
    ):
        assert _insecure(name, given) is plain, name


def test_a_store_with_damage_is_read(tmp_path: Path) -> None:
    place = tmp_path / "manifests" / "registry.ollama.ai"
    (place / "library" / "bad").mkdir(parents=True)
    (place / "library" / "bad" / "latest").write_text("{")
    (place / "me" / "short").mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:aa", "size": 10}
    config = {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": "sha256:bb", "size": 2}
    (place / "me" / "short" / "q4").write_text(json.dumps({"schemaVersion": 2, "config": config, "layers": [layer]}))
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "sha256-aa").write_bytes(b"12345")
    (tmp_path / "blobs" / "sha256-cc-partial").write_bytes(b"1")
    bad, short = OllamaStore(tmp_path).models()
    assert (bad.name, len(bad.trouble)) == ("bad:latest", 1)
    assert (short.name, short.size) == ("me/short:q4", 12)
    assert [words.partition(" (")[0] for words in short.trouble] == [
        "the blob of its config is missing", "the blob of its model has 5 of 10 bytes",
    ]  # fmt: skip
    assert [path.name for path in OllamaStore(tmp_path).leftovers()] == ["sha256-cc-partial"]
    with pytest.raises(UnknownModel, match="me/short:q4"):
        OllamaStore(tmp_path).model("nobody")
