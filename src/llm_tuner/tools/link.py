"""One MCP server as the hub holds it: connected, down, or connected once more.

Runs inside the hub's event loop and nowhere else. The rule it protects: what happens to this server is a text here and
an exception nowhere, so that it cannot reach another server.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx2
from anyio.abc import TaskGroup
from mcp import Client, MCPError, types
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from pydantic import ValidationError

from llm_tuner.tools.pipe import GRACE_SECONDS, Pipe
from llm_tuner.tools.servers import ServerConfig
from llm_tuner.types import Json, SetupError, ToolSpec

RESTARTS = 1
"""A server that crashed gets this many new starts in the life of a hub, unless the hub says otherwise."""

_MAX_PAGES = 100
_HTTP_TIMEOUT = httpx2.Timeout(30, read=300)  # as the SDK: a server may hold a stream open for minutes
_STDERR_LINES = 8
_BROKEN = (anyio.ClosedResourceError, anyio.BrokenResourceError, httpx2.TransportError)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass
class _Run:
    """One connection from start to end; a restart makes a new one, so that no late word reaches it."""

    client: Client | None = None
    pipe: Pipe | None = None
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    settled: anyio.Event = field(default_factory=anyio.Event)
    stop: anyio.Event = field(default_factory=anyio.Event)
    over: anyio.Event = field(default_factory=anyio.Event)


class Link:
    """The life of one server. `failure` is empty while it answers; `seconds` is what its last start took, `slow` that
    it did not answer in the time it had."""

    def __init__(
        self,
        config: ServerConfig,
        tasks: TaskGroup,
        cwd: Path | None,
        start_timeout: float,
        restarts: int = RESTARTS,
    ) -> None:
        self.config = config
        self.specs: tuple[ToolSpec, ...] = ()
        self.failure = ""
        self.seconds, self.slow = 0.0, False
        self._tasks, self._cwd, self._start_timeout = tasks, cwd, start_timeout
        self._restarts = restarts
        self._dismissed = False
        self._starting = anyio.Lock()
        self._run = _Run()  # the one before the first: it is over
        self._run.settled.set()
        self._run.over.set()

    async def start(self) -> None:
        """Returns when the server answers or has failed: at most `start_timeout` and the time to stop it later."""
        if self._dismissed:
            return
        self._run = run = _Run()
        self._tasks.start_soon(self._live, run, name=f"mcp {self.config.name}")
        await run.settled.wait()

    async def stop(self) -> None:
        """Returns when the connection is closed and the process gone."""
        self._restarts, self._dismissed = 0, True
        run = self._run
        run.stop.set()
        if not run.settled.is_set():
            run.scope.cancel()
        await run.over.wait()

    async def call(self, tool: str, arguments: dict[str, Json], timeout: float) -> types.CallToolResult | str:
        """The server's answer, or a sentence that says why there is none."""
        run = await self._revived()
        if run.client is None:
            return f'The server "{self.config.name}" is down: {self.failure or "the hub was closed"}'
        try:
            with anyio.fail_after(timeout):
                return await run.client.call_tool(tool, arguments)
        except TimeoutError:
            return f"`{tool}` did not answer within {timeout:g} s.{self._noise(run)}"
        except Exception as error:
            return await self._explained(run, tool, _leaf(error))

    async def _revived(self) -> _Run:
        async with self._starting:
            if self._run.client is None and self._restarts > 0:
                self._restarts -= 1
                await self._run.over.wait()
                await self.start()
            return self._run

    async def _explained(self, run: _Run, tool: str, reason: BaseException) -> str:
        if not self._is_gone(run, reason):
            return self.config.redacted(f"`{tool}` failed: {_words(reason)}{self._noise(run)}")
        run.stop.set()
        with anyio.move_on_after(5 * GRACE_SECONDS):
            await run.over.wait()
        why = self.failure or "the hub was closed"
        return f'The server "{self.config.name}" ended during `{tool}`: {why}'

    def _is_gone(self, run: _Run, reason: BaseException) -> bool:
        if run.stop.is_set() or isinstance(reason, _BROKEN):
            return True
        # Over HTTP there is no process to watch: that the other side is gone shows in these refusals only.
        return (
            self.config.transport != "stdio"
            and isinstance(reason, MCPError)
            and reason.error.message in ("Connection closed", "Session terminated")
        )

    def _noise(self, run: _Run) -> str:
        if run.pipe is None or not run.pipe.noise:
            return ""
        last = self.config.redacted(_CONTROL.sub(" ", run.pipe.last_noise))
        return f" It wrote {run.pipe.noise} lines that are not JSON-RPC, the last one: {last}"

    # ------------------------------------------------------------------------------------------------------- its life

    async def _live(self, run: _Run) -> None:
        """The task of one run: connect, list the tools, stay until told or until the server ends."""
        failure, begun = "", anyio.current_time()
        run.scope.deadline = begun + self._start_timeout
        with run.scope:
            try:
                async with Client(self._transport(run)) as client:
                    self.specs = tuple([spec async for spec in self._listed(client)])
                    run.scope.deadline = float("inf")
                    self.seconds = anyio.current_time() - begun
                    run.client, self.failure = client, ""
                    run.settled.set()
                    await run.stop.wait()
                    run.client = None
                    run.scope.deadline = anyio.current_time() + 5 * GRACE_SECONDS
            except Exception as error:
                failure = _words(_leaf(error))
        if run.scope.cancelled_caught and not run.settled.is_set():
            failure = f"it did not answer within {self._start_timeout:g} s.{self._noise(run)}"
            self.seconds, self.slow = self._start_timeout, True
        if not self._dismissed:
            self.failure = self._account(run, failure)
        run.client = None
        run.settled.set()
        run.over.set()

    def _account(self, run: _Run, failure: str) -> str:
        """Why it ended, with its last words."""
        if run.pipe is None:
            return self.config.redacted(failure or "the connection was closed")
        lines = _CONTROL.sub("", run.pipe.stderr).strip().splitlines()[-_STDERR_LINES:]
        said = "\n  ".join(["\nIts last lines on stderr:", *lines]) if lines else ""
        return self.config.redacted(f"{run.pipe.end or failure}{said}")

    @asynccontextmanager
    async def _transport(self, run: _Run) -> AsyncIterator[Any]:
        config = self.config
        async with AsyncExitStack() as stack:
            if config.transport == "stdio":
                run.pipe = Pipe(config, self._cwd, run.stop)
                yield await stack.enter_async_context(run.pipe.connected())
            elif config.transport == "sse":
                yield await stack.enter_async_context(sse_client(config.url, headers=config.headers))
            else:
                http = httpx2.AsyncClient(headers=config.headers, timeout=_HTTP_TIMEOUT)
                await stack.enter_async_context(http)
                yield await stack.enter_async_context(streamable_http_client(config.url, http_client=http))

    async def _listed(self, client: Client) -> AsyncIterator[ToolSpec]:
        cursor = None
        for _ in range(_MAX_PAGES):
            page = await client.list_tools(cursor=cursor)
            for tool in page.tools:
                yield ToolSpec(
                    name=tool.name,
                    description=tool.description or "",
                    parameters=tool.input_schema,
                    server=self.config.name,
                )
            if (cursor := page.next_cursor) is None:
                return


def content_text(result: types.CallToolResult) -> str:
    """All content blocks as one text; the structured content as JSON where there is no text."""
    blocks = list(_block_texts(result))
    if not any(isinstance(block, types.TextContent) for block in result.content) and result.structured_content:
        blocks.insert(0, json.dumps(result.structured_content, ensure_ascii=False))
    return "\n".join(blocks)


def _block_texts(result: types.CallToolResult) -> Iterator[str]:
    for block in result.content:
        if isinstance(block, types.TextContent):
            yield block.text
        elif isinstance(block, types.ResourceLink):
            yield f"[{block.name}: {block.uri}]"
        elif isinstance(block, types.EmbeddedResource):
            inner = block.resource
            yield inner.text if isinstance(inner, types.TextResourceContents) else f"[{inner.mime_type}: {inner.uri}]"
        else:
            yield f"[{block.type}, {block.mime_type}, {len(block.data) * 3 // 4} bytes]"


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _words(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        return f"the server's answer does not follow the protocol ({error.error_count()} faults in {error.title})"
    if isinstance(error, (SetupError, MCPError)):
        return str(error)[:500]
    return f"{type(error).__name__}: {error}"[:500]
