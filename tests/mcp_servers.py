"""Real MCP servers for tests: installed once into the cache, started like any other.

`python tests/mcp_servers.py` installs all of them (CI does). Nothing here is part of the package.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from llm_tuner.tools.servers import ServerConfig, network

NODE = {
    "@modelcontextprotocol/server-filesystem": "2026.8.31",
    "@modelcontextprotocol/server-memory": "2026.8.31",
    "@modelcontextprotocol/server-sequential-thinking": "2026.8.31",
}
PYTHON = {
    "mcp-server-git": ("mcp-server-git==2026.10.19",),
    "mcp-server-time": ("mcp-server-time==2026.10.19",),
    "mcp-server-fetch": ("mcp-server-fetch==2026.10.24",),
    # The last release of sqlite imports names that mcp 2 no longer has.
    "mcp-server-sqlite": ("--with", "mcp<2", "mcp-server-sqlite==2025.4.25"),
}


class Unavailable(Exception):
    """This machine cannot have that server; the message says why. A test that needs it is skipped with it."""


def node_server(package: str, *args: str, env: dict[str, str] | None = None) -> ServerConfig:
    """A server from npm, installed into the cache on first use."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Unavailable(f"{package} needs Node.js and npm, which are not on the PATH")
    home = _cache() / "node" / f"{package.rpartition('/')[2]}-{NODE[package]}"
    if not home.is_dir():
        _npm_install(npm, f"{package}@{NODE[package]}", home)
    folder = home / "node_modules" / package
    (script,) = json.loads((folder / "package.json").read_text())["bin"].values()
    return ServerConfig(name=_name(package), command=node, args=(str(folder / script), *args), env=env or {})


def python_server(package: str, *args: str) -> ServerConfig:
    """A server from PyPI through `uvx`, in an environment of its own that uv caches."""
    return ServerConfig(name=_name(package), command="uvx", args=(*PYTHON[package], *args), env=network())


def _npm_install(npm: str, package: str, home: Path) -> None:
    """Into a folder beside `home`, then one rename: a killed install leaves nothing that looks whole."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, ignore_cleanup_errors=True) as scratch:
        made = Path(scratch) / "made"
        command = [npm, "install", "--prefix", str(made), "--no-audit", "--no-fund", "--ignore-scripts", package]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            raise Unavailable(f"npm could not install {package}: {done.stderr.strip()[-300:]}")
        if not home.is_dir():
            made.rename(home)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm-tuner" / "tools"


def _name(package: str) -> str:
    return package.rpartition("server-")[2]


def main() -> None:
    for package in NODE:
        print(package, node_server(package).args[0])
    for package in PYTHON:
        command = python_server(package, "--help").argv()
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            sys.exit(f"{package}: {done.stderr.strip()[-300:]}")
        print(package, "ready")


if __name__ == "__main__":
    main()
