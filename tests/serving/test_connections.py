"""The connection to a server: one closed while it lay idle costs nothing; a server that always closes is an error."""

from __future__ import annotations

import asyncio
import json

import pytest

from llm_tuner.serving.upstreams import LlamaCppUpstream
from llm_tuner.types import ModelError


async def _asked(answers_on: int, times: int) -> int:
    """Asks so many times a server that closes each connection without a word, but for the n-th and later ones, which
    answer one request and are closed at the next. Returns the number of requests that it read."""
    connections = requests = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections, requests
        connections += 1
        answers = connections >= answers_on
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                requests += 1
                await reader.readexactly(len(json.dumps({"filename": "a"}, separators=(",", ":"))))
                if not answers:
                    return
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                answers = False
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    upstream = LlamaCppUpstream("m", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", window=1)
    try:
        for _ in range(times):
            await upstream._act(0, "save", "a")
        return requests
    finally:
        await upstream.close()
        server.close()


def test_a_connection_that_was_closed_while_idle_is_replaced() -> None:
    assert asyncio.run(_asked(answers_on=1, times=3)) == 5


def test_a_server_that_closes_every_connection_is_told() -> None:
    with pytest.raises(ModelError, match="broke off"):
        asyncio.run(_asked(answers_on=99, times=1))
