"""Many MCP servers as one Toolbox: start, list, call, time out, restart once, stop.

One synchronous surface; the only event loop runs in a thread inside. It judges nothing and keeps nothing. The rule it
protects: whatever a server does, `call` returns, in bounded time and memory, and the other servers do not notice.
"""

from __future__ import annotations

import atexit
import difflib
import logging
import re
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import anyio
from anyio.from_thread import BlockingPortal
from jsonschema import Draft202012Validator
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry

from llm_tuner.tools.link import RESTARTS, Link, content_text
from llm_tuner.tools.servers import ServerConfig
from llm_tuner.types import Json, ServerStartError, SetupError, ToolCall, ToolError, ToolResult, ToolSpec

# What the SDK logs, a result or a failure already says; without a handler Python would print it to the terminal.
logging.getLogger("mcp").addHandler(logging.NullHandler())


class Hub:
    """A Toolbox over MCP servers; `with Hub(servers) as hub: hub.call(...)`. Calls may come from any thread.

    `start_timeout` and `call_timeout` are seconds; a result is cut to `max_result_bytes` of UTF-8. `cwd` is the folder
    of the stdio servers that do not name one. `validate=False` sends arguments that do not fit the tool's schema. A
    server that ends gets `restarts` new starts.
    The catalogue is what the servers listed at the start: a measurement must not see it change.
    """

    def __init__(
        self,
        servers: Sequence[ServerConfig],
        *,
        cwd: str | Path | None = None,
        start_timeout: float = 60,
        call_timeout: float = 30,
        max_result_bytes: int = 200_000,
        validate: bool = True,
        restarts: int = RESTARTS,
    ) -> None:
        twice = [name for name, count in Counter(server.name for server in servers).items() if count > 1]
        if twice:
            raise SetupError(f"Two MCP servers have the name {twice[0]!r}. Rename one of them.")
        self.servers = tuple(servers)
        self._cwd = None if cwd is None else Path(cwd)
        self._start_timeout, self._call_timeout = start_timeout, call_timeout
        self._max_result_bytes, self._validate, self._restarts = max_result_bytes, validate, restarts
        self._links: dict[str, Link] = {}
        self._routes: dict[str, _Route] = {}
        self._portal: BlockingPortal | None = None
        self._thread: threading.Thread | None = None

    @property
    def failures(self) -> dict[str, str]:
        """Why each server that does not answer is down, by its name."""
        return {name: link.failure for name, link in self._links.items() if link.failure}

    @property
    def slow(self) -> frozenset[str]:
        """Those of the failures that only had too little time."""
        return frozenset(name for name, link in self._links.items() if link.failure and link.slow)

    @property
    def seconds(self) -> dict[str, float]:
        """What the last start of each server took, until its tools were listed."""
        return {name: link.seconds for name, link in self._links.items()}

    def specs(self) -> tuple[ToolSpec, ...]:
        """The tools of all servers, in their order. A name that two servers share is `server__tool` for both."""
        return tuple(route.spec for route in self._routes.values())

    def call(self, call: ToolCall) -> ToolResult:
        """The tool's answer. Whatever goes wrong is a result with `is_error` that says why.

        Raises ToolError only where the hub is not started.
        """
        portal = self._running()
        if call.error:
            return _failed(call, f"The call could not be read: {call.error}")
        if (route := self._routes.get(call.name)) is None:
            return _failed(call, self._unknown(call.name))
        if self._validate and (fault := _schema_fault(route, call.arguments)):
            return _failed(call, fault)
        answer = portal.call(self._links[route.spec.server].call, route.tool, call.arguments, self._call_timeout)
        if isinstance(answer, str):
            return _failed(call, answer)
        text = _cut(content_text(answer), self._max_result_bytes)
        return ToolResult(call_id=call.id, content=text, is_error=bool(answer.is_error))

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name, self._routes, n=3)
        return f"There is no tool `{name}`." + (f" Near names: {', '.join(near)}." if near else "")

    # --------------------------------------------------------------------------------------------------- start, close

    def start(self, strict: bool = True) -> Self:
        """Starts all servers at the same time.

        With `strict` one that does not start raises ServerStartError and stops the others; without, `failures` has it.
        """
        if self._portal is not None:
            raise ToolError("The hub is started already.")
        ready: Future[BlockingPortal] = Future()
        # A daemon thread, closed at exit: a hub that nobody closed must not keep the interpreter from ending.
        self._thread = threading.Thread(target=anyio.run, args=(self._serve, ready), name="mcp hub", daemon=True)
        self._thread.start()
        self._portal = ready.result()
        atexit.register(self.close)
        try:
            self._portal.call(self._start_all)
            if strict and self.failures:
                raise ServerStartError(self._start_words())
        except BaseException:
            self.close()
            raise
        self._routes = _routes([link.specs for link in self._links.values() if not link.failure])
        return self

    def close(self) -> None:
        """Stops every server; when it returns their processes are gone. At most about 5 s. Twice is harmless."""
        portal, thread = self._portal, self._thread
        self._portal = self._thread = None
        if portal is None or thread is None:
            return
        atexit.unregister(self.close)
        portal.call(self._stop_all)
        portal.call(portal.stop)
        thread.join()

    def __enter__(self) -> Self:
        return self if self._portal is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _serve(self, ready: Future[BlockingPortal]) -> None:
        async with anyio.create_task_group() as tasks, BlockingPortal() as portal:
            self._links = {s.name: Link(s, tasks, self._cwd, self._start_timeout, self._restarts) for s in self.servers}
            ready.set_result(portal)
            await portal.sleep_until_stopped()

    async def _start_all(self) -> None:
        async with anyio.create_task_group() as tasks:
            for link in self._links.values():
                tasks.start_soon(link.start)

    async def _stop_all(self) -> None:
        async with anyio.create_task_group() as tasks:
            for link in self._links.values():
                tasks.start_soon(link.stop)

    def _running(self) -> BlockingPortal:
        if self._portal is None:
            raise ToolError("The hub is not started. Use it as `with Hub(servers) as hub: ...`.")
        return self._portal

    def _start_words(self) -> str:
        return "\n".join(
            f'The MCP server "{server.name}" did not start: {self.failures[server.name]}\n'
            f"{'Command' if server.transport == 'stdio' else 'URL'}: {server.address}\n"
            f"{_advice(server)}"
            for server in self.servers
            if server.name in self.failures
        )


def _advice(server: ServerConfig) -> str:
    if server.transport != "stdio":
        return "Check that the server runs, the URL and the headers."
    return "Run the command in a terminal to see what it wants: a package, an argument, a variable in its env."


class _Route(NamedTuple):
    """A tool under the name that a model sees, with the name that its server knows."""

    spec: ToolSpec
    tool: str
    validator: Validator


def _routes(catalogues: Sequence[Sequence[ToolSpec]]) -> dict[str, _Route]:
    owners: dict[str, set[str]] = {}
    for catalogue in catalogues:
        for spec in catalogue:
            owners.setdefault(spec.name, set()).add(spec.server)
    routes: dict[str, _Route] = {}
    for catalogue in catalogues:
        for spec in catalogue:
            shown = spec if len(owners[spec.name]) == 1 else _prefixed(spec)
            # A name listed twice means the first, as in types.by_name.
            routes.setdefault(shown.name, _Route(shown, spec.name, _validator(spec.parameters)))
    return routes


def _prefixed(spec: ToolSpec) -> ToolSpec:
    # Tool names are letters, digits, `_` and `-` in every chat API; a server's name can be any text.
    name = f"{re.sub(r'[^A-Za-z0-9_-]', '_', spec.server)}__{spec.name}"
    return ToolSpec(name=name, description=spec.description, parameters=spec.parameters, server=spec.server)


# ------------------------------------------------------------------------------------------------ arguments, results


def _validator(schema: dict[str, Json]) -> Validator:
    # An empty registry: a `$ref` in a server's schema must not make us fetch its URL.
    return validator_for(schema, Draft202012Validator)(schema, registry=Registry())


def _schema_fault(route: _Route, arguments: dict[str, Json]) -> str:
    """Why the arguments do not fit the tool's schema; empty where they do or where the schema itself is broken."""
    try:
        error = next(iter(route.validator.iter_errors(arguments)), None)
    except Exception:
        return ""  # a schema that cannot be used is the server's fault: it judges its arguments itself
    if error is None:
        return ""
    place = ".".join(map(str, error.absolute_path))
    return f"The arguments do not fit `{route.spec.name}`{f' at `{place}`' if place else ''}: {error.message[:500]}"


def _failed(call: ToolCall, why: str) -> ToolResult:
    return ToolResult(call_id=call.id, content=why, is_error=True)


def _cut(text: str, limit: int) -> str:
    data = text.encode()
    if len(data) <= limit:
        return text
    return f"{data[:limit].decode(errors='ignore')}\n[cut: these are the first {limit} of {len(data)} bytes]"
