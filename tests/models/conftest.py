"""One embedded model for the room, and a tiny HTTP server that says what it is told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llm_tuner.models.llamacpp import Embedded
from llm_tuner.types import Message, ToolCall, ToolResult, ToolSpec


@pytest.fixture(scope="session")
def qwen(qwen_gguf: Path) -> Iterator[Embedded]:
    with Embedded(qwen_gguf, name="qwen", context=1024) as embedded:
        yield embedded


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """A loopback server that answers every request of a path with what it was given: (status, body)."""
    servers: list[ThreadingHTTPServer] = []

    def start(**routes: tuple[int, str | dict[str, object]]) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                status, body = routes[self.path.rsplit("/", 1)[-1]]
                payload = (body if isinstance(body, str) else json.dumps(body)).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


WEATHER = ToolSpec(
    name="get_weather",
    description="The weather of a city",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "名前 of the city"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        },
        "required": ["city"],
    },
)

ASKED = (Message(role="user", text="東京とパリの天気は?"),)
CALLED = (
    *ASKED,
    Message(
        role="assistant",
        text="調べます。",
        tool_calls=(
            ToolCall(name="get_weather", arguments={"city": "東京", "unit": "celsius"}, id="1"),
            ToolCall(name="get_weather", arguments={"city": "パリ"}, id="2"),
        ),
    ),
)
ANSWERED = (
    *CALLED,
    Message(role="tool", result=ToolResult(call_id="1", content='{"sky": "晴れ"}')),
    Message(role="tool", result=ToolResult(call_id="2", content="雨 & 風")),
)
FINISHED = (*ANSWERED, Message(role="assistant", text="東京は晴れ、パリは雨です。"))


@pytest.fixture
def weather() -> ToolSpec:
    return WEATHER


@pytest.fixture
def conversations() -> dict[str, tuple[Message, ...]]:
    """One conversation at four points: asked, called (text and two calls), answered (two results), finished."""
    return {"asked": ASKED, "called": CALLED, "answered": ANSWERED, "finished": FINISHED}
