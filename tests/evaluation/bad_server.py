"""A model server on loopback that answers as badly as a request asks it to: of OpenAI's API, and of Ollama's.

Not a mock of a client: bytes go over a socket. How to answer is the first word of the last message; `asked` keeps the
requests in the order in which they came.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DEEP = json.loads('{"zone": ' * 400 + "1" + "}" * 400)
# By the first word: what the model says (text, the arguments of its call or None) ...
SAID: dict[str, tuple[str, Any]] = {
    "right": ("", {"zone": "JST"}),
    "babble": ("\x00\x1b[2J{{{]]\x7f \ud83d ```json\n{", None),
    "text-half": ('{"name": "clock", "arguments": {"zone": "\\ud83d"}}', None),
    "broken": ("", '{"zone": '),
    "listed": ("", "[1]"),
    "halves": ("", {"zone": "\ud83d", "\ud83d": 1}),
    "deep": ("", DEEP),
}
# ... or what the server sends in the place of an answer.
SHAPES: dict[str, Any] = {
    "number": 5,
    "nothing": {},
    "list": [1],
    "empty": {"choices": [], "message": None},
    "odd-message": {"choices": [{"message": "hello"}], "message": "hello"},
    "odd-text": {"choices": [{"message": {"content": 5}}], "message": {"content": 5}},
    "odd-calls": {"choices": [{"message": {"tool_calls": "clock"}}], "message": {"tool_calls": "clock"}},
    "odd-usage": {
        "choices": [{"message": {"content": "x"}}],
        "usage": {"prompt_tokens": "many"},
        "message": {"content": "x"},
        "eval_count": "many",
    },
}


class BadServer(ThreadingHTTPServer):
    """`delay` is seconds before every answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.asked: list[str] = []
        self.closing = threading.Event()
        self.delay = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """Nothing: clients that go away are what is tested."""


@contextmanager
def serving() -> Iterator[BadServer]:
    server = BadServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()


class _Answer(BaseHTTPRequestHandler):
    server: BadServer

    def do_GET(self) -> None:
        self._whole(json.dumps({"version": "0.24.0"}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        request = body["messages"][-1]["content"]
        self.server.asked.append(request)
        time.sleep(self.server.delay)
        word = request.split()[0]
        if word in SAID:
            self._whole(self._answer(*SAID[word]))
        elif word in SHAPES:
            self._whole(json.dumps(SHAPES[word]).encode())
        elif word == "endless":
            most = body["max_tokens"] if "max_tokens" in body else body["options"]["num_predict"]
            self._whole(self._answer("and " * most, None, finish="length", tokens=most))
        else:
            acts: dict[str, Callable[[], None]] = {
                "garbage": lambda: self._whole(b"\x00\xff\xfe{[<" * 50),
                "zipped": lambda: self._whole(b"no gzip at all", encoding="gzip"),
                "http-500": lambda: self._whole(b'{"error": {"message": "out of memory"}}', 500),
                "http-500-page": lambda: self._whole(b"<html>\xff", 500),
                "half": lambda: self._whole(self._answer(*SAID["right"])[:40]),
                "closes": lambda: self._cut(self._answer(*SAID["right"])),
                "hangs-up": lambda: self.connection.close(),
                "silent": lambda: self._endlessly(b"", 0.05, headers=False),
                "drips": lambda: self._endlessly(b" ", 0.05),
                "floods": lambda: self._endlessly(b"x" * 65536, 0.0),
            }
            acts[word]()

    def _answer(self, text: str, arguments: Any, finish: str = "stop", tokens: int = 3) -> bytes:
        call = {"function": {"name": "clock", "arguments": arguments}}
        message = {"role": "assistant", "content": text, "tool_calls": [] if arguments is None else [call]}
        if self.path.startswith("/api/"):
            return json.dumps({"message": message, "done_reason": finish, "eval_count": tokens}).encode()
        if isinstance(arguments, dict):
            call["function"]["arguments"] = json.dumps(arguments)
        choice = {"message": message, "finish_reason": finish}
        return json.dumps({"choices": [choice], "usage": {"completion_tokens": tokens}}).encode()

    def _whole(self, payload: bytes, status: int = 200, encoding: str = "") -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(payload)))
        if encoding:
            self.send_header("content-encoding", encoding)
        self.end_headers()
        self.wfile.write(payload)

    def _cut(self, payload: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload[: len(payload) // 2])
        self.close_connection = True

    def _endlessly(self, piece: bytes, pause: float, *, headers: bool = True) -> None:
        if headers:
            self.send_response(200)
            self.end_headers()
        self.close_connection = True
        while not self.server.closing.wait(pause):
            self.wfile.write(piece)
            self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass
