"""A bench: one box with the servers that work in it. Several benches let a build call several servers at once.

Not a judge. The rule it protects: what was done for one example is undone before the next, and no path of this machine
reaches a task: the box is shown as SHOWN_ROOT.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from llm_tuner.data.hub_box import HubBox, hub_box
from llm_tuner.data.values import pool
from llm_tuner.data.wordings import servers as worded_servers
from llm_tuner.tools.hub import Hub
from llm_tuner.tools.sandbox import available, sandboxed
from llm_tuner.tools.servers import ServerConfig
from llm_tuner.types import Json, ToolCall, ToolResult, ToolSpec, Value, canonical_json

SHOWN_ROOT = "/home/dev/work"
"""How the box's path stands in tasks."""

RESULT_BYTES = 20_000
START_SECONDS = 120.0
RESTARTS = 100
"""One call that ends a server must not cost all the others."""


class Limits(Value):
    """Seconds that a call may take, bytes of a result that are kept."""

    call_seconds: float = 20
    result_bytes: int = RESULT_BYTES


class Bench(NamedTuple):
    """A box and its hub."""

    box: HubBox
    hub: Hub

    def specs(self) -> tuple[ToolSpec, ...]:
        """The tools, without a path of this machine in them."""
        return tuple(_spec(tool, str(self.box.path)) for tool in self.hub.specs())

    def call(self, call: ToolCall) -> ToolResult:
        """Really makes the call, in the box."""
        root = str(self.box.path)
        real = call.model_copy(update={"arguments": _replaced(call.arguments, SHOWN_ROOT, root)})
        result = self.hub.call(real)
        return result.model_copy(update={"content": result.content.replace(root, SHOWN_ROOT)})


@contextmanager
def bench(
    configs: Sequence[ServerConfig], only: frozenset[str] | None = None, limits: Limits | None = None
) -> Iterator[Bench]:
    """A fresh box with these servers (only those of the given names) started in it, inside bubblewrap where it works.

    Raises ServerStartError where one does not start.
    """
    limits = limits or Limits()
    with hub_box() as box:
        servers = [_placed(config, box) for config in configs if only is None or config.name in only]
        hub = Hub(
            servers,
            cwd=box.path,
            start_timeout=START_SECONDS,
            call_timeout=limits.call_seconds,
            max_result_bytes=limits.result_bytes,
            restarts=RESTARTS,
        )
        with hub:
            yield Bench(box, hub)


def lists_only(configs: Sequence[ServerConfig], named: Sequence[str]) -> frozenset[str]:
    """Servers that cannot be called here: those that are named, those known to need the network, and a reader of web
    pages where there is no sandbox to serve pages in."""
    known = {server.server for server in worded_servers() if not server.offline or (server.pages and not available())}
    return frozenset(config.name for config in configs if config.name in known or config.name in named)


def _placed(config: ServerConfig, box: HubBox) -> ServerConfig:
    config = config.filled(box=box.path)
    if not available():
        return config
    reads_pages = {server.server for server in worded_servers() if server.pages}
    web: Path | None = box.web if config.name in reads_pages else None
    return sandboxed(config, box.path, web, [str(host) for host in pool("host")])


def _spec(tool: ToolSpec, root: str) -> ToolSpec:
    if root not in tool.description and root not in canonical_json(tool.parameters):
        return tool
    parameters = _replaced(tool.parameters, root, SHOWN_ROOT)
    return tool.model_copy(update={"description": tool.description.replace(root, SHOWN_ROOT), "parameters": parameters})


def _replaced(value: Json, old: str, new: str) -> Json:
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, list):
        return [_replaced(inner, old, new) for inner in value]
    if isinstance(value, dict):
        return {key: _replaced(inner, old, new) for key, inner in value.items()}
    return value
