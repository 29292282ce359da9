"""A stdio server inside bubblewrap: the system read-only, one folder writable, no network but its own loopback.

Not a promise about servers that are reached by URL: they run elsewhere. The rule it protects: what a server is told to
do for an example can change nothing but the box. Where bubblewrap is missing or not allowed, `available` says so and
the caller decides.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from llm_tuner.tools.servers import ServerConfig
from llm_tuner.types import SetupError

_PROBE_SECONDS = 20
_SERVE = '"$0" -m http.server 80 --bind 127.0.0.1 --directory "$1" >/dev/null 2>&1 & shift; exec "$@"'
"""Serves a folder on port 80 of the sandbox's own loopback, then becomes the server."""


@cache
def available() -> str:
    """The version of a bubblewrap that works here; empty where there is none."""
    program = shutil.which("bwrap")
    if program is None:
        return ""
    try:
        subprocess.run(
            [program, *_walls(Path("/")), "--", "true"], check=True, capture_output=True, timeout=_PROBE_SECONDS
        )
        said = subprocess.run(
            [program, "--version"], check=True, capture_output=True, text=True, timeout=_PROBE_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.strip()


def sandboxed(server: ServerConfig, box: Path, pages: Path | None = None, hosts: Sequence[str] = ()) -> ServerConfig:
    """The same server, started inside bubblewrap with `box` as the only writable folder besides an empty /var/tmp.

    With `pages` that folder is served inside as http://HOST/ for each of `hosts`. Servers of other transports are
    returned as they are. Raises SetupError without bubblewrap.
    """
    if server.transport != "stdio":
        return server
    program = shutil.which("bwrap")
    if program is None:
        raise SetupError("There is no command bwrap. Install the package bubblewrap, or go on without a sandbox.")
    inner = list(server.argv())
    walls = [*_walls(box), "--chdir", str(server.cwd or box)]
    if pages is not None:
        names = pages.with_name(pages.name + ".hosts")
        names.write_text("127.0.0.1 localhost " + " ".join(hosts) + "\n", encoding="utf-8")
        walls += ["--ro-bind", str(pages), str(pages), "--ro-bind", str(names), "/etc/hosts"]
        walls += ["--cap-add", "CAP_NET_BIND_SERVICE"]
        inner = ["/bin/sh", "-c", _SERVE, sys.executable, str(pages), *inner]
    return server.model_copy(update={"command": program, "args": (*walls, "--", *inner)})


def _walls(box: Path) -> list[str]:
    writable = [] if box == Path("/") else ["--tmpfs", "/var/tmp", "--setenv", "TMPDIR", "/var/tmp"]
    writable += [] if box == Path("/") else ["--bind", str(box), str(box)]
    return [
        *("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", *writable),
        *("--unshare-net", "--unshare-pid", "--unshare-ipc", "--die-with-parent", "--new-session"),
    ]
