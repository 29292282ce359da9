"""MCP servers as their configuration names them: the `mcpServers` JSON that every client writes.

Reads and finds configurations; starts nothing (see hub.py). The rule it protects: a secret (an environment value, a
header, whatever `${VAR}` stood for) never reaches a repr or an error.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NoReturn
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field

from llm_tuner.types import Json, SetupError, Value

Transport = Literal["stdio", "http", "sse"]

_TRANSPORTS: Mapping[str, Transport] = {
    "stdio": "stdio",
    "http": "http",
    "streamable-http": "http",
    "streamableHttp": "http",
    "streamable_http": "http",
    "sse": "sse",
}
_SHORTEST_SECRET = 4
"""Shorter values ("1", "on") are no secrets, and masking them would make every message unreadable."""

# What a package runner needs to reach its index from behind a proxy or a private certificate authority.
_NETWORK = ("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "XDG_CACHE_HOME", "UV_CACHE_DIR", "UV_SYSTEM_CERTS")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


class ServerConfig(Value):
    """One MCP server: a command to start (stdio) or a URL to reach (http = streamable HTTP, sse)."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str
    command: str = ""
    args: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    cwd: str | None = None
    url: str = ""
    headers: dict[str, str] = Field(default_factory=dict)
    transport: Transport = "stdio"
    hidden: tuple[str, ...] = ()
    """Texts that must not be shown: what `${VAR}` stood for."""

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        yield "name", self.name
        yield "transport", self.transport
        yield "address", self.address

    @property
    def address(self) -> str:
        """The command line, or the URL without user and query: what may be shown."""
        if self.transport == "stdio":
            return self.redacted(" ".join((self.command, *self.args)))
        parts = urlsplit(self.url)
        return self.redacted(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")

    def redacted(self, text: str) -> str:
        """`text` with every environment value, header value, expanded variable and URL query replaced by `***`."""
        secrets = {*self.env.values(), *self.headers.values(), *self.hidden}
        secrets |= {value.rpartition(" ")[2] for value in self.headers.values()}  # the token of "Bearer ..."
        secrets |= {urlsplit(self.url).query, urlsplit(self.url).netloc.rpartition("@")[0]}
        for secret in sorted(secrets, key=len, reverse=True):
            if len(secret) >= _SHORTEST_SECRET:
                text = text.replace(secret, "***")
        return text

    def filled(self, **values: str | Path) -> ServerConfig:
        """Every `{key}` in command, args, env and cwd replaced by its value; other braces stay as they are."""

        def fill(text: str) -> str:
            for key, value in values.items():
                text = text.replace(f"{{{key}}}", str(value))
            return text

        changed = {
            "command": fill(self.command),
            "args": tuple(map(fill, self.args)),
            "env": {key: fill(value) for key, value in self.env.items()},
            "cwd": None if self.cwd is None else fill(self.cwd),
        }
        return self.model_copy(update=changed)

    def argv(self) -> tuple[str, ...]:
        """The command line to start. `uvx` that is not on the PATH is taken from the `uv` package.

        Raises SetupError where the command does not exist.
        """
        path = self.env.get("PATH", os.environ.get("PATH"))
        if (found := shutil.which(self.command, path=path)) is not None:
            return (found, *self.args)
        if self.command == "uvx" and (uv := _uv_of_package()) is not None:
            return (uv, "tool", "run", *self.args)
        raise SetupError(
            f"the command `{self.redacted(self.command)}` is not on the PATH. "
            f"{_INSTALL.get(self.command, 'Install it, or write its full path into the configuration.')}"
        )


_INSTALL = {
    "uvx": "Run: pip install uv",
    "uv": "Run: pip install uv",
    "npx": "Install Node.js: https://nodejs.org",
    "node": "Install Node.js: https://nodejs.org",
    "docker": "Install Docker: https://docs.docker.com/get-docker",
}


def _uv_of_package() -> str | None:
    try:
        import uv
    except ImportError:
        return None
    try:
        return str(uv.find_uv_bin())
    except FileNotFoundError:
        return None


# ------------------------------------------------------------------------------------------------------------ reading


def load(path: str | Path, *, cwd: Path | None = None) -> tuple[ServerConfig, ...]:
    """The servers of one configuration file, in its order, without the disabled ones.

    Knows the formats of Claude Desktop, Claude Code and Cursor (`mcpServers`) and VS Code (`servers`), with comments
    and trailing commas. `cwd` picks the project in Claude Code's `~/.claude.json`.
    Raises SetupError with file and line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SetupError(f"No MCP configuration at {path}. Write one, or give the path of an existing one.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"{path} could not be read as UTF-8 text ({type(error).__name__}).") from None
    page = _Page(path, text)
    entries = page.entries(cwd)
    if entries is None:
        page.fail('it has neither "mcpServers" nor "servers"', "Put the servers under one of these keys")
    return tuple(page.server(name, entry) for name, entry in entries.items() if not page.disabled(entry))


def discover(
    home: Path | None = None, cwd: Path | None = None, *, unreadable: dict[Path, str] | None = None
) -> dict[Path, tuple[ServerConfig, ...]]:
    """The configuration files of Claude Desktop, Claude Code, Cursor and VS Code that exist and name servers.

    Looks below `home` (yours) in the places of Linux, macOS and Windows, and in the project folder `cwd` (the current
    one). A file that cannot be read, or that wants a variable which is not set, goes into `unreadable` with the reason;
    where that is not given it raises SetupError.
    """
    home, cwd = home or Path.home(), cwd or Path.cwd()
    found = {}
    for path in _places(home, cwd):
        try:
            if path.is_file() and _Page(path, path.read_text(encoding="utf-8-sig", errors="replace")).entries(cwd):
                found[path] = load(path, cwd=cwd)
        except SetupError as error:
            if unreadable is None:
                raise
            unreadable[path] = str(error)
    return found


def demo_servers(box: Path) -> tuple[ServerConfig, ...]:
    """The demo's hub (hub_demo.json): git, time, fetch and sqlite through `uvx`, all at home in the folder `box`.

    They see the network settings of this process (proxy, certificates, uv's cache), which the first start needs.
    """
    text = resources.files("llm_tuner.tools").joinpath("hub_demo.json").read_text(encoding="utf-8")
    page = _Page(Path("hub_demo.json"), text)
    entries = page.entries(None) or {}
    servers = (page.server(name, entry).filled(box=box) for name, entry in entries.items())
    return tuple(s.model_copy(update={"env": {**network(), **s.env}}) for s in servers)


def network() -> dict[str, str]:
    """The variables of this process that a package runner (uvx, npx) needs to reach its index."""
    names = (*_NETWORK, *_PROXIES, *(name.lower() for name in _PROXIES))
    return {name: os.environ[name] for name in names if os.environ.get(name)}


def _places(home: Path, cwd: Path) -> Iterator[Path]:
    for settings in (home / ".config", home / "Library/Application Support", home / "AppData/Roaming"):
        yield settings / "Claude/claude_desktop_config.json"
        yield settings / "Code/User/mcp.json"
    yield home / ".claude.json"
    yield home / ".cursor/mcp.json"
    yield cwd / ".mcp.json"
    if cwd != home:
        yield cwd / ".cursor/mcp.json"
    yield cwd / ".vscode/mcp.json"


class _Page:
    """One configuration file while it is read: it knows where it is, so that an error can say it."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text
        try:
            self.data = json.loads(_plain_json(text))
        except json.JSONDecodeError as error:
            self._fail_at(error.lineno, f"not JSON: {error.msg}", "Correct this line")
        if not isinstance(self.data, dict):
            self.fail(f"it holds {_kind(self.data)}", 'Write an object: {"mcpServers": {...}}')

    def fail(self, found: str, advice: str, key: str = "") -> NoReturn:
        hit = re.search(rf"{re.escape(json.dumps(key, ensure_ascii=False))}\s*:", self.text) if key else None
        self._fail_at(self.text.count("\n", 0, hit.start()) + 1 if hit else 1, found, advice)

    def _fail_at(self, line: int, found: str, advice: str) -> NoReturn:
        raise SetupError(f"{self.path}, line {line}: {found}. {advice}.") from None

    def entries(self, cwd: Path | None) -> dict[str, Json] | None:
        """Server entries by name; None where the file has no place for any."""
        projects = self.data.get("projects")
        project = projects.get(str(cwd)) if isinstance(projects, dict) else None
        places = [self.data.get("mcpServers"), self.data.get("servers")]
        places += [project.get("mcpServers")] if isinstance(project, dict) else []
        entries: dict[str, Json] = {}
        for place in places:
            if place is not None and not isinstance(place, dict):
                self.fail(f"the servers are {_kind(place)}", 'Write an object: {"mcpServers": {"name": {...}}}')
            entries |= place or {}
        return entries if any(place is not None for place in places) else None

    @staticmethod
    def disabled(entry: Json) -> bool:
        return isinstance(entry, dict) and (entry.get("disabled") is True or entry.get("enabled") is False)

    def server(self, name: str, entry: Json) -> ServerConfig:
        if not isinstance(entry, dict):
            self.fail(f'server "{name}" is {_kind(entry)}', 'Write an object with "command" or "url"', name)
        self._check_kinds(name, entry)
        hidden: list[str] = []

        def expand(text: Json) -> str:
            return self._expanded(name, str(text), hidden)

        url = expand(entry.get("url") or entry.get("serverUrl") or "")
        return ServerConfig(
            name=name,
            command=expand(entry.get("command", "")),
            args=tuple(expand(arg) for arg in entry.get("args", [])),
            env={key: expand(value) for key, value in entry.get("env", {}).items() if value is not None},
            cwd=expand(entry["cwd"]) if entry.get("cwd") else None,
            url=url,
            headers={key: expand(value) for key, value in entry.get("headers", {}).items()},
            transport=self._transport(name, entry, url),
            hidden=tuple(hidden),
        )

    def _check_kinds(self, name: str, entry: dict[str, Json]) -> None:
        wanted: dict[str, tuple[type, str]] = {
            "command": (str, "a text"),
            "args": (list, "a list of texts"),
            "env": (dict, "an object of texts"),
            "cwd": (str, "a text"),
            "url": (str, "a text"),
            "headers": (dict, "an object of texts"),
        }
        for key, (kind, words) in wanted.items():
            value = entry.get(key)
            inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            if value is not None and not (
                isinstance(value, kind) and not any(isinstance(v, dict | list) for v in inner)
            ):
                self.fail(f'"{key}" of server "{name}" is {_kind(value)}', f"Write {words}", name)

    def _transport(self, name: str, entry: dict[str, Json], url: str) -> Transport:
        command, said = entry.get("command"), entry.get("type") or entry.get("transport")
        if bool(command) == bool(url):
            found = "both a command and a URL" if url else "neither a command nor a URL"
            self.fail(f'server "{name}" has {found}', 'Give "command" (and "args") or "url"', name)
        if said is None:
            return "stdio" if command else "sse" if urlsplit(url).path.rstrip("/").endswith("/sse") else "http"
        transport = _TRANSPORTS.get(said) if isinstance(said, str) else None
        if transport is None or (transport == "stdio") != bool(command):
            has = "command" if command else "url"
            self.fail(f'server "{name}" has a "{has}" and type {json.dumps(said)}', "Use stdio, http or sse", name)
        return transport

    def _expanded(self, name: str, text: str, hidden: list[str]) -> str:
        def value(match: re.Match[str]) -> str:
            kind, key, default = match["kind"], match["key"], match["default"]
            if kind is None and key in (own := self._own_variables()):
                return own[key]
            if kind == "input:":
                self.fail(
                    f'server "{name}" asks for the input "{key}", which only VS Code can ask for',
                    f"Write ${{env:NAME}} in place of ${{input:{key}}} and set that variable",
                    name,
                )
            # As in a shell, `:-` also replaces an empty value.
            found = os.environ.get(key) or default if default is not None else os.environ.get(key)
            if found is None:
                self.fail(f'server "{name}" needs the variable {key}, which is not set', f"Run: export {key}=...", name)
            hidden.append(found)
            return found

        return _VARIABLE.sub(value, text)

    def _own_variables(self) -> dict[str, str]:
        folder = self.path.absolute().parent
        workspace = folder.parent if folder.name in (".vscode", ".cursor") else folder
        names: dict[str, Callable[[], str | Path]] = {
            "workspaceFolder": lambda: workspace,
            "workspaceFolderBasename": lambda: workspace.name,
            "userHome": Path.home,
            "pathSeparator": lambda: os.sep,
        }
        return {name: str(value()) for name, value in names.items()}


_VARIABLE = re.compile(r"\$\{(?P<kind>env:|input:)?(?P<key>[A-Za-z_][A-Za-z0-9_-]*)(?::-(?P<default>[^}]*))?\}")
_COMMENT = re.compile(r'(?P<keep>"(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/', re.DOTALL)
_COMMA = re.compile(r'(?P<keep>"(?:\\.|[^"\\])*")|,(?=\s*[}\]])', re.DOTALL)


def _plain_json(text: str) -> str:
    """JSON with comments and trailing commas (VS Code writes both) as plain JSON, with the same line breaks."""

    def blank(match: re.Match[str]) -> str:
        return match["keep"] or "\n" * match[0].count("\n")

    return _COMMA.sub(blank, _COMMENT.sub(blank, text))


def _kind(value: Json) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
