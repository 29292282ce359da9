"""Which tool servers of a hub answer, and with which tools: asked all at once, within a time, and remembered.

Not the hub (tools/hub.py), and no measurement reads what is remembered. The rule it protects: looking at a hub is
quick and harmless: servers start in an empty throw-away folder, a slow or broken one is named and holds up no other,
and what one said minutes ago is shown as that.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llm_tuner.types import SetupError, ToolSpec, Value, content_hash

if TYPE_CHECKING:
    from llm_tuner.tools.hub import Hub
    from llm_tuner.tools.servers import ServerConfig

REMEMBERED = 300
"""Seconds for which an answer is shown again without asking: a start takes seconds, and a page is looked at often."""

State = Literal["connected", "slow", "failed"]


class Listed(Value):
    """One server as it answered. `seconds` until its tools were listed, `asked` in seconds since 1970; `tools` of a
    slow one are those it had the last time. `why` says what failed."""

    name: str
    address: str
    state: State
    tools: tuple[ToolSpec, ...] = ()
    seconds: float
    asked: float
    why: str = ""


class _Hub(Value):
    servers: tuple[Listed, ...]


def hub_file(given: str = "") -> str:
    """The hub that is meant: the one given, else LLM_TUNER_HUB; "" where there is none. Never a file that happens to
    lie in the folder: its commands would be run without anybody having said so."""
    return given or os.environ.get("LLM_TUNER_HUB", "")


def tools_of(hub: str) -> tuple[ToolSpec, ...]:
    """The hub's tools: from its servers, every one of which must answer, or out of a list of them."""
    from llm_tuner.loop import Tune, workshop
    from llm_tuner.tools.recorded import read_list

    if (recorded := read_list(hub)) is not None:
        return recorded
    with workshop(Tune(hub=hub)) as (tools, _):
        return tools.specs()


def listed(hub: str, *, wait: float = 10, fresh: bool = False) -> tuple[Listed, ...]:
    """Every server of a hub file (or "demo"), in its order. Each has `wait` seconds to answer; answers of all that are
    younger than REMEMBERED are given again unless `fresh`. Raises SetupError for a file that cannot be read."""
    file = _file(hub)
    known = {server.name: server for server in _remembered(file)}
    now = time.time()
    if known and not fresh and all(_good(server, now, wait) for server in known.values()):
        return tuple(known.values())
    found = tuple(_asked(hub, wait, known, now))
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    with suppress(OSError):  # what cannot be remembered is asked again
        part.write_text(_Hub(servers=found).model_dump_json(), encoding="utf-8")
        os.replace(part, file)
    return found


def _good(server: Listed, now: float, wait: float) -> bool:
    """Young enough, and not slow by a shorter wait than this one."""
    return now - server.asked < REMEMBERED and not (server.state == "slow" and server.seconds < wait)


def _asked(hub: str, wait: float, known: dict[str, Listed], now: float) -> list[Listed]:
    from llm_tuner.data.box import demo_box, empty_box
    from llm_tuner.tools.hub import Hub
    from llm_tuner.tools.servers import demo_servers, load

    with demo_box() if hub == "demo" else empty_box() as box:
        servers = demo_servers(box.path) if hub == "demo" else [s.filled(box=box.path) for s in load(Path(hub))]
        running = Hub(servers, cwd=box.path, start_timeout=wait)
        try:
            running.start(strict=False)
            return [_of(server, running, known.get(server.name), now) for server in servers]
        finally:
            running.close()


def _of(server: ServerConfig, running: Hub, before: Listed | None, now: float) -> Listed:
    why, slow = running.failures.get(server.name, ""), server.name in running.slow
    tools = tuple(spec for spec in running.specs() if spec.server == server.name)
    return Listed(
        name=server.name,
        address=server.address,
        state="slow" if slow else "failed" if why else "connected",
        tools=tools or (before.tools if before and slow else ()),
        seconds=round(running.seconds[server.name], 3),
        asked=now,
        why=why,
    )


def _file(hub: str) -> Path:
    from platformdirs import user_cache_path

    try:
        text = hub if hub == "demo" else Path(hub).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(
            f'Cannot read the hub file {hub}: {error}. Give an mcpServers JSON file, or "demo".'
        ) from error
    return user_cache_path("llm-tuner", False) / "hubs" / f"{content_hash([str(Path(hub).absolute()), text])}.json"


def _remembered(file: Path) -> tuple[Listed, ...]:
    try:
        return _Hub.model_validate_json(file.read_bytes()).servers
    except (OSError, ValueError):
        return ()
