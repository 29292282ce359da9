"""The MCP server, asked by a real MCP client: over memory, over stdio, over HTTP."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from contextlib import closing
from typing import Annotated, Any

import anyio
import httpx2
import pytest
import uvicorn
from mcp import Client, MCPError, StdioServerParameters
from pydantic import Field

from llm_tuner.apps.mcp_face import http_app, server
from llm_tuner.operations import Change, Operation
from llm_tuner.operations.table import OPERATIONS
from llm_tuner.types import Event, UnknownModel

steps_made: list[int] = []
closed: list[int] = []


def add(first: Annotated[int, Field(description="A number.")], second: int = 2) -> dict[str, int]:
    """Add two numbers.

    Example: llm-tuner add 1
    """
    return {"sum": first + second}


def names() -> list[str]:
    """Names."""
    raise UnknownModel("No model here. Pull one.")


def count(until: int, seconds: float = 0) -> Generator[Event, None, int]:
    """Count slowly."""
    try:
        for number in range(1, until + 1):
            steps_made.append(number)
            time.sleep(seconds)
            yield Event(step="count", message="counting", done=number, total=until)
    except GeneratorExit:
        closed.append(steps_made[-1])
        raise
    return until


def remove(name: str, confirm: bool = False) -> Change:
    """Remove something."""
    return Change(done=confirm, sentences=(f"{name} {'went' if confirm else 'would go'}.",))


TABLE = (
    Operation("add", add, ("add",), "足す"),
    Operation("names", names, ("names",), "名前"),
    Operation("count", count, ("count",), "数える"),
    Operation("remove", remove, ("remove",), "消す", "destroys"),
)


def asked(talk: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with Client(server(TABLE)) as client:
            await talk(client)

    asyncio.run(main())


def test_tools_are_described_with_their_effect_and_in_both_languages() -> None:
    async def talk(client: Client) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert list(tools) == ["add", "names", "count", "remove"]
        assert tools["add"].input_schema["properties"]["first"]["description"] == "A number."
        assert tools["add"].input_schema["required"] == ["first"]
        assert "足す" in (tools["add"].description or "")
        assert "Example" not in (tools["add"].description or "")
        for name, destroys in (("add", False), ("remove", True)):
            hints = tools[name].annotations
            assert hints is not None
            assert (hints.read_only_hint, hints.destructive_hint) == (not destroys, destroys)

    asked(talk)


def test_results_errors_and_plans() -> None:
    async def talk(client: Client) -> None:
        right = await client.call_tool("add", {"first": 1})
        assert (right.is_error, right.structured_content) == (False, {"sum": 3})
        wrong = await client.call_tool("add", {"first": "x", "third": 1})
        assert wrong.is_error
        assert "first" in wrong.content[0].text  # type: ignore[union-attr]
        told = await client.call_tool("names", {})
        assert told.is_error
        assert told.content[0].text == "UnknownModel: No model here. Pull one."  # type: ignore[union-attr]
        nothing = await client.call_tool("subtract", {})
        assert nothing.is_error
        plan = await client.call_tool("remove", {"name": "a"})
        assert plan.structured_content == {"done": False, "sentences": ["a would go."], "facts": {}}
        done = await client.call_tool("remove", {"name": "a", "confirm": True})
        assert done.structured_content is not None
        assert done.structured_content["done"] is True

    asked(talk)


def test_a_long_one_tells_its_progress() -> None:
    told: list[tuple[float, str | None]] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        told.append((done, message))

    async def talk(client: Client) -> None:
        result = await client.call_tool("count", {"until": 3}, progress_callback=progress)
        assert result.structured_content == {"result": 3}

    asked(talk)
    assert told == [(1, "count: counting 1/3"), (2, "count: counting 2/3"), (3, "count: counting 3/3")]


def test_a_cancelled_one_stops_and_keeps_what_it_had() -> None:
    steps_made.clear()
    closed.clear()

    async def talk(client: Client) -> None:
        with anyio.move_on_after(0.4):
            await client.call_tool("count", {"until": 1000, "seconds": 0.05})
        made = len(steps_made)
        assert 2 <= made < 100
        with anyio.fail_after(5):
            while not closed:
                await anyio.sleep(0.02)
        await anyio.sleep(0.2)
        assert len(steps_made) <= made + 2
        assert (await client.call_tool("add", {"first": 5})).structured_content == {"sum": 7}

    asked(talk)


def test_over_stdio_with_the_real_table() -> None:
    async def main() -> None:
        parameters = StdioServerParameters(command=sys.executable, args=["-m", "llm_tuner", "serve", "mcp"])
        async with Client(parameters) as client:
            tools = {tool.name for tool in (await client.list_tools()).tools}
            assert tools == {operation.name for operation in OPERATIONS}
            assert {"ollama_list_models", "ollama_generate", "ollama_code", "status", "tune"} <= tools
            wrong = await client.call_tool("compare", {"before": "nowhere", "after": "nowhere"})
            assert wrong.is_error
            assert "nowhere" in wrong.content[0].text  # type: ignore[union-attr]

    asyncio.run(main())


@pytest.mark.parametrize("token", ["", "a-token-of-some-length"])
def test_over_http_only_for_those_who_may(token: str) -> None:
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"
        web = uvicorn.Server(uvicorn.Config(http_app(TABLE, token), log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=lambda: asyncio.run(web.serve([listening])), daemon=True)
        thread.start()
        while not web.started:
            time.sleep(0.01)
        try:
            if token:
                for headers in ({}, {"authorization": "Bearer wrong"}):
                    assert httpx2.post(url, json={}, headers=headers, trust_env=False).status_code == 401
                with pytest.raises((MCPError, httpx2.HTTPError, ExceptionGroup)):
                    asyncio.run(_added(url))
            else:
                for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"origin": "http://["}):
                    assert httpx2.post(url, json={}, headers=headers, trust_env=False).status_code == 403
                assert asyncio.run(_added(url)) == {"sum": 3}
        finally:
            web.should_exit = True
            thread.join(10)


async def _added(url: str) -> Any:
    async with Client(url) as client:
        return (await client.call_tool("add", {"first": 1})).structured_content
