"""The gateway over HTTP, with the official clients of both APIs."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
import uvicorn

from llm_tuner.apps.gateway import Gateway, Settings
from llm_tuner.serving.request import ChatRequest, End, Text
from llm_tuner.serving.roles import Role, Roles
from llm_tuner.serving.scripted import ScriptedUpstream
from llm_tuner.serving.service import Outcome, Service
from llm_tuner.types import ModelError, PromptTooLong

TOOL = {
    "type": "function",
    "function": {
        "name": "read_file",
        "description": "Read a file.",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
    },
}
CALL = 'Reading.\n```json\n{"name": "read_file", "arguments": {"path": "日本.txt"}}\n```'
ASK: dict[str, Any] = {"model": "worker", "messages": [{"role": "user", "content": "Read 日本.txt"}]}


class Kept:
    """Records in memory."""

    def __init__(self) -> None:
        self.exchanges: list[tuple[str, ChatRequest, Outcome]] = []
        self.marks: list[tuple[str, bool]] = []
        self.lost = 0
        self.closed = False

    def new_id(self) -> str:
        return f"{len(self.exchanges):04d}"

    def keep(self, id_: str, request: ChatRequest, outcome: Outcome) -> None:
        self.exchanges.append((id_, request, outcome))

    def feedback(self, id_: str, right: bool, note: str = "") -> None:
        self.marks.append((id_, right))

    def close(self) -> None:
        self.closed = True


@contextmanager
def serving(upstream: Any, token: str = "", **more: Any) -> Iterator[tuple[str, Kept]]:
    records = Kept()
    roles = Roles([Role("worker", upstream, at_once=64, also=("qwen2.5-coder:0.5b",))])
    gateway = Gateway(Service(roles), Settings(token=token, **more), records)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(gateway.app, log_level="error", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", records
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


def post(url: str, body: Any, **headers: str) -> httpx2.Response:
    return httpx2.post(url, json=body, headers=headers, timeout=30, trust_env=False)


# ---------------------------------------------------------------------------------------------------- official clients


def test_the_openai_package_gets_calls_whole_and_streamed() -> None:
    openai = pytest.importorskip("openai")
    with (
        serving(ScriptedUpstream(CALL)) as (url, records),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client,
    ):
        whole = client.chat.completions.create(**ASK, tools=[TOOL])
        (call,) = whole.choices[0].message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("read_file", {"path": "日本.txt"})
        assert whole.choices[0].finish_reason == "tool_calls"
        assert whole.choices[0].message.content.strip() == "Reading."
        assert [model.id for model in client.models.list()] == ["worker", "qwen2.5-coder:0.5b"]
        streamed = client.chat.completions.create(
            **ASK, tools=[TOOL], stream=True, stream_options={"include_usage": True}
        )
        text, calls, finish, usage = "", [], "", None
        for chunk in streamed:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                calls += choice.delta.tool_calls or []
                finish = choice.finish_reason or finish
        assert (text.strip(), finish, calls[0].function.name) == ("Reading.", "tool_calls", "read_file")
        assert usage is not None
        with pytest.raises(openai.NotFoundError, match="found 2"):
            client.chat.completions.create(model="other", messages=ASK["messages"])
    assert [outcome.calls[0].name for _, _, outcome in records.exchanges[:2]] == ["read_file", "read_file"]


def test_the_ollama_package_gets_calls_whole_and_streamed() -> None:
    ollama = pytest.importorskip("ollama")
    with serving(ScriptedUpstream(CALL)) as (url, _):
        client = ollama.Client(host=url)
        whole = client.chat(**ASK, tools=[TOOL])
        (call,) = whole.message.tool_calls
        assert (call.function.name, call.function.arguments) == ("read_file", {"path": "日本.txt"})
        assert whole.done
        parts = list(client.chat(**ASK, tools=[TOOL], stream=True))
        assert "".join(part.message.content or "" for part in parts).strip() == "Reading."
        assert next(c for part in parts for c in part.message.tool_calls or ()).function.name == "read_file"
        assert parts[-1].done_reason == "stop"
        assert "Reading." in client.generate(model="worker", prompt="Read").response
        assert [model.model for model in client.list().models] == ["worker", "qwen2.5-coder:0.5b"]
        assert "tools" in (client.show("worker").capabilities or [])
        assert client.ps().models[0].model == "worker"
        with pytest.raises(ollama.ResponseError, match="No model"):
            client.chat(model="other", messages=ASK["messages"])
        client._client.close()


# ------------------------------------------------------------------------------------------------------------- answers


def test_the_head_says_who_served_and_why_and_what_was_mended() -> None:
    with serving(ScriptedUpstream(CALL)) as (url, records):
        answer = post(f"{url}/v1/chat/completions", ASK | {"tools": [TOOL]})
        assert answer.headers["x-llm-tuner-served-by"] == "worker (scripted)"
        assert answer.headers["x-llm-tuner-why"] == "asked for worker"
        assert answer.headers["x-llm-tuner-repairs"] == "lifted: 1 written as text"
        assert answer.headers["x-llm-tuner-tools"] == "1 of 1, full"
        assert answer.headers["x-llm-tuner-id"] == answer.json()["id"]
        marked = post(f"{url}/v1/feedback", {"id": answer.json()["id"], "right": False})
        assert marked.json()["right"] is False
    assert records.marks == [(records.exchanges[0][0], False)]
    assert records.closed


def test_an_exchange_that_must_not_be_recorded_is_not() -> None:
    with serving(ScriptedUpstream("Hi.")) as (url, records):
        assert post(f"{url}/v1/chat/completions", ASK, **{"x-llm-tuner-record": "off"}).status_code == 200
        assert records.exchanges == []


def test_a_stream_that_breaks_off_says_so_in_the_stream() -> None:
    broken = ScriptedUpstream([Text("Half "), ModelError("llama.cpp broke off")])
    with serving(broken) as (url, records):
        answer = post(f"{url}/v1/chat/completions", ASK | {"stream": True})
        assert answer.status_code == 200
        assert "Half" in answer.text
        last = [line for line in answer.text.splitlines() if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["message"] == "llama.cpp broke off"
        told = post(f"{url}/api/chat", ASK)
        assert json.loads(told.text.splitlines()[-1]) == {"error": "llama.cpp broke off"}
    assert records.exchanges[0][2].error == "llama.cpp broke off"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (PromptTooLong("too long"), 400, "context_length_exceeded"),
        (ModelError("bad"), 502, None),
        (ZeroDivisionError("secret detail"), 500, None),
    ],
)
def test_an_error_before_the_first_word_is_a_status(error: Exception, status: int, code: str | None) -> None:
    with serving(ScriptedUpstream(error)) as (url, _):
        for stream in (False, True):
            answer = post(f"{url}/v1/chat/completions", ASK | {"stream": stream})
            assert answer.status_code == status
            body = json.loads(answer.text.removeprefix("data: "))
            assert body["error"]["code"] == code
            assert "secret" not in answer.text


def test_a_client_that_goes_away_ends_the_asking() -> None:
    upstream = ScriptedUpstream("word " * 2000)
    upstream.pause = lambda: asyncio.sleep(0.01)
    with serving(upstream) as (url, records):
        with httpx2.stream(
            "POST", f"{url}/v1/chat/completions", json=ASK | {"stream": True}, trust_env=False
        ) as answer:
            next(answer.iter_lines())
        until = time.monotonic() + 5
        while not records.exchanges and time.monotonic() < until:
            time.sleep(0.02)
        assert upstream.closed == 1
        assert records.exchanges[0][2].error == "the client went away"
        assert post(f"{url}/v1/chat/completions", ASK | {"messages": []}).status_code == 400


def test_two_hundred_streams_at_once() -> None:
    upstream = ScriptedUpstream("one two three four")
    upstream.pause = lambda: asyncio.sleep(0.02)

    async def one(client: httpx2.AsyncClient, url: str) -> str:
        async with client.stream("POST", f"{url}/v1/chat/completions", json=ASK | {"stream": True}) as answer:
            return "".join([line async for line in answer.aiter_lines()])

    async def all_of(url: str) -> list[str]:
        async with httpx2.AsyncClient(
            timeout=60, limits=httpx2.Limits(max_connections=None), trust_env=False
        ) as client:
            return await asyncio.gather(*(one(client, url) for _ in range(200)))

    with serving(upstream) as (url, records):
        told = asyncio.run(all_of(url))
    assert all(text.endswith("data: [DONE]") for text in told)
    assert len(records.exchanges) == 200


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "no JSON"),
        (b"[]", 400, "must be a JSON object"),
        (b"\xff\xfe", 400, "not UTF-8"),
        (b'{"messages": []}', 400, "empty"),
        (b'{"messages": "hi"}', 400, "must be a list"),
        (b'{"messages": [{"role": "robot", "content": "x"}]}', 400, "must be system, user"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', 400, "text only"),
        (b'{"messages": [{"role": "user", "content": "x"}], "n": 2}', 400, "one answer"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', 400, "no JSON"),
        (b'{"messages": [{"role": "user", "content": "x"}], "tool_choice": "required"}', 400, "no tools"),
        (b'{"messages": [{"role": "user", "content": "x"}], "tool_choice": 7}', 400, "none of auto"),
        (b'{"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]}', 400, "function"),
        (b"[" * 100_000, 400, "nested too deeply"),
        (b'"' + b"x" * (10 << 20) + b'"', 413, "MiB"),
    ],
)
def test_bad_bodies_are_refused_by_name(body: bytes, status: int, words: str) -> None:
    with serving(ScriptedUpstream("Hi.")) as (url, _):
        answer = httpx2.post(f"{url}/v1/chat/completions", content=body, trust_env=False, timeout=30)
        assert (answer.status_code, words in answer.json()["error"]["message"]) == (status, True), answer.text[:300]
        assert post(f"{url}/v1/chat/completions", ASK).status_code == 200


def test_two_tools_of_one_name_and_two_hundred_tools() -> None:
    with serving(ScriptedUpstream("Hi.")) as (url, _):
        twice = post(f"{url}/v1/chat/completions", ASK | {"tools": [TOOL, TOOL]})
        assert (twice.status_code, "Two tools" in twice.text) == (400, True)
        many = [{"type": "function", "function": TOOL["function"] | {"name": f"tool_{n}"}} for n in range(200)]
        assert post(f"{url}/v1/chat/completions", ASK | {"tools": many}).status_code == 200


def test_half_a_character_does_no_harm() -> None:
    with serving(ScriptedUpstream([Text("a \ud83d b"), End()])) as (url, _):
        body = json.dumps(ASK | {"messages": [{"role": "user", "content": "\ud83d"}]}).encode()
        answer = httpx2.post(f"{url}/v1/chat/completions", content=body, trust_env=False)
        assert answer.json()["choices"][0]["message"]["content"] == "a ? b"


# -------------------------------------------------------------------------------------------------------------- guards


def test_a_token_is_asked_for() -> None:
    with serving(ScriptedUpstream("Hi."), token="0123456789abcdef") as (url, _):
        assert post(f"{url}/v1/chat/completions", ASK).status_code == 401
        assert post(f"{url}/v1/chat/completions", ASK, authorization="Bearer wrong").status_code == 401
        assert post(f"{url}/v1/chat/completions", ASK, authorization="Bearer 0123456789abcdef").status_code == 200
        assert httpx2.get(f"{url}/healthz", trust_env=False).json() == {"ok": True, "roles": {"worker": "ready"}}
        assert httpx2.get(f"{url}/metrics", trust_env=False).status_code == 401


def test_a_page_of_another_origin_and_a_foreign_name_are_refused() -> None:
    with serving(ScriptedUpstream("Hi.")) as (url, _):
        assert post(f"{url}/v1/chat/completions", ASK, origin="https://evil.example").status_code == 403
        assert post(f"{url}/v1/chat/completions", ASK, host="evil.example").status_code == 403
        assert post(f"{url}/v1/chat/completions", ASK, origin="http://localhost:3000").status_code == 200


def test_what_was_counted_can_be_read() -> None:
    with serving(ScriptedUpstream(CALL)) as (url, _):
        post(f"{url}/v1/chat/completions", ASK | {"tools": [TOOL]})
        text = httpx2.get(f"{url}/metrics", trust_env=False).text
    assert 'llm_tuner_requests_total{api="openai",role="worker",status="200"} 1.0' in text
    assert 'llm_tuner_repairs_total{kind="lifted"} 1.0' in text
    assert "llm_tuner_records_lost 0.0" in text


def test_beyond_this_machine_a_token_must_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_tuner.apps.gateway.running import bound
    from llm_tuner.types import SetupError

    monkeypatch.delenv("LLM_TUNER_TOKEN", raising=False)
    with pytest.raises(SetupError, match="LLM_TUNER_TOKEN"), bound("0.0.0.0", 0):
        pass
    with bound("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match="another --port"), bound("127.0.0.1", port):
            pass
