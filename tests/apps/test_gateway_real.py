"""The gateway in front of real servers: the same request that a stock server leaves as text comes back as a call."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import uvicorn

from llm_tuner.apps.gateway import Gateway
from llm_tuner.apps.gateway.app import Records
from llm_tuner.apps.gateway.opening import RoleSettings, opened
from llm_tuner.apps.gateway.recording import recording
from llm_tuner.models.ollama import OllamaServer
from llm_tuner.models.ollama_templates import GO_TEMPLATES
from llm_tuner.serving.service import Service

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the current weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
    {
        "type": "function",
        "function": {
            "name": "read_file",
            "description": "Read a text file.",
            "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
        },
    },
]
ASK: dict[str, Any] = {
    "model": "worker",
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    "tools": TOOLS,
    "temperature": 0,
    "max_tokens": 128,
}


@contextmanager
def gateway(settings: RoleSettings, records: Records | None = None, **service: Any) -> Iterator[str]:
    with ExitStack() as stack:
        steps = opened({"worker": settings}, stack)
        try:
            while True:
                next(steps)
        except StopIteration as stop:
            roles = stop.value
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        app = Gateway(Service(roles, **service), records=records).app
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


def chat(url: str, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    answer = httpx2.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=300, trust_env=False)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["choices"][0])


def called(choice: dict[str, Any]) -> tuple[str, Any]:
    call = choice["message"]["tool_calls"][0]["function"]
    return call["name"], json.loads(call["arguments"])


@pytest.mark.weights
def test_the_embedded_model_calls_free_held_and_required(qwen_gguf: Path) -> None:
    with gateway(RoleSettings(model=str(qwen_gguf), window=2048)) as url:
        free = chat(url, ASK)
        assert called(free) == ("get_weather", {"city": "Paris"})
        assert free["finish_reason"] == "tool_calls"
        held = chat(url, ASK, **{"x-llm-tuner-constrain": "on"})
        assert called(held) == ("get_weather", {"city": "Paris"})
        talk = {"messages": [{"role": "user", "content": "Say hello in one word."}]}
        words = chat(url, ASK | talk | {"tool_choice": "none"})
        assert words["message"]["content"]
        assert "tool_calls" not in words["message"]
        forced = chat(url, ASK | talk | {"tool_choice": {"type": "function", "function": {"name": "read_file"}}})
        assert called(forced)[0] == "read_file"
        assert isinstance(called(forced)[1]["path"], str)
        long = ASK | {"messages": [{"role": "user", "content": "word " * 4000}]}
        refused = httpx2.post(f"{url}/v1/chat/completions", json=long, timeout=60, trust_env=False)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.weights
def test_what_was_read_once_is_not_read_again_after_a_restart(
    qwen_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))

    def cached(url: str, city: str, tools: list[Any] = TOOLS) -> int:
        body = ASK | {"messages": [{"role": "user", "content": f"What is the weather in {city}?"}], "tools": tools}
        answer = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=300, trust_env=False).json()
        assert called(answer["choices"][0])[1] == {"city": city}
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    settings = RoleSettings(model=str(qwen_gguf), window=2048)
    with gateway(settings) as url:  # nothing is kept: no state either
        cached(url, "Paris")
        cached(url, "Lima")
    assert list(tmp_path.rglob("*.state")) == []
    with recording(1, tmp_path / "kept") as records, gateway(settings, records) as url:
        assert cached(url, "Paris") == 0
        common = cached(url, "Lima")
        assert common > 150
        kept = common - 8  # without the words that both requests begin with
        assert cached(url, "Oslo", TOOLS[:1]) < kept  # another tool set takes the only slot,
        assert kept <= cached(url, "Rome") < common  # and gives it back as it was
    with recording(1, tmp_path / "kept") as records, gateway(settings, records) as url:
        assert kept <= cached(url, "Bern") < common


@pytest.mark.weights
def test_a_model_that_dies_in_the_middle_of_an_answer_is_told_and_comes_back(qwen_gguf: Path, tmp_path: Path) -> None:
    body = ASK | {"messages": [{"role": "user", "content": "Count from 1 to 500."}], "stream": True, "max_tokens": 900}
    del body["tools"]
    others = set(psutil.Process().children())
    with gateway(RoleSettings(model=str(qwen_gguf), window=2048)) as url:
        (child,) = set(psutil.Process().children()) - others
        lines = []
        with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=300, trust_env=False) as answer:
            for line in filter(None, answer.iter_lines()):
                lines.append(line)
                if len(lines) == 3:
                    child.kill()
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["type"] in (
            "upstream_error",
            "upstream_unavailable",
        )
        assert called(chat(url, ASK)) == ("get_weather", {"city": "Paris"})


@pytest.mark.weights
@pytest.mark.ollama
def test_ollama_behind_the_gateway_surfaces_what_it_alone_leaves_as_text(
    ollama_url: str, qwen_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", ollama_url)
    server = OllamaServer(ollama_url)
    for _ in server.create("gateway-test", qwen_gguf, template=GO_TEMPLATES["Qwen2.5"]):
        pass
    try:
        body = {"model": "gateway-test", "messages": ASK["messages"], "tools": TOOLS, "stream": False}
        body["options"] = {"temperature": 0, "num_predict": 128, "num_ctx": 2048}
        alone = httpx2.post(f"{ollama_url}/api/chat", json=body, timeout=300, trust_env=False).json()["message"]
        assert "get_weather" in alone["content"]
        assert not alone.get("tool_calls")
        with gateway(RoleSettings(ollama="gateway-test", window=2048)) as url:
            told = httpx2.post(f"{url}/api/chat", json=body | {"model": "worker"}, timeout=300, trust_env=False).json()
            assert told["message"]["tool_calls"][0]["function"]["name"] == "get_weather"
            assert called(chat(url, ASK)) == ("get_weather", {"city": "Paris"})
            forced = chat(url, ASK | {"tool_choice": {"type": "function", "function": {"name": "read_file"}}})
            assert called(forced)[0] == "read_file"
    finally:
        server.delete("gateway-test")
        server.close()


@pytest.mark.weights
def test_roles_of_one_embedded_model_share_it(smol_gguf: Path) -> None:
    one = RoleSettings(model=str(smol_gguf), window=512)
    others = set(psutil.Process().children())
    with ExitStack() as stack:
        steps = opened({"coordinator": one.model_copy(update={"window": 1024}), "worker": one}, stack)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                made = end.value
                coordinator, worker = made.all
                break
        assert coordinator.upstream is worker.upstream
        assert coordinator.upstream.window == 1024
        assert len(set(psutil.Process().children()) - others) == 1
        asyncio.run(made.close())
