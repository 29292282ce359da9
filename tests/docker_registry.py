"""A real registry on loopback for tests: Debian's `docker-registry`, on PATH or unpacked into the cache."""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

_CONFIG = """version: 0.1
log: {{level: error}}
storage:
  filesystem: {{rootdirectory: {folder}}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}"}}
"""


def binary() -> Path | None:
    """The registry's program; None where there is none and no Debian to take it from."""
    for name in ("docker-registry", "registry"):
        if found := shutil.which(name):
            return Path(found)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm-tuner" / "tools" / "docker-registry"
    program = home / "usr" / "bin" / "docker-registry"
    if program.is_file():
        return program
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return None
    with tempfile.TemporaryDirectory() as folder:
        for command in (["apt-get", "download", "docker-registry"], ["apt-get", "update", "-qq"]) * 2:
            subprocess.run(command, cwd=folder, capture_output=True, check=False)
            if packages := list(Path(folder).glob("*.deb")):
                subprocess.run(["dpkg-deb", "-x", str(packages[0]), str(home)], check=True)
                return program
    return None


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, str]]:
    """Serve blobs below `folder`; yields host:port to push to and host:port to pull from, which sends whoever wants a
    blob elsewhere, as registries in front of a store do: Ollama 0.24 follows no other. Raises FileNotFoundError where
    there is no program."""
    program = binary()
    if program is None:
        raise FileNotFoundError("no docker-registry, and no Debian package to take it from")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yml"
    config.write_text(_CONFIG.format(folder=folder, port=port))
    process = subprocess.Popen(
        [str(program), "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    try:
        until = time.monotonic() + 20
        while True:
            try:
                httpx2.get(f"http://127.0.0.1:{port}/v2/", timeout=2, trust_env=False).raise_for_status()
                break
            except httpx2.HTTPError:
                if time.monotonic() > until or process.poll() is not None:
                    raise
                time.sleep(0.05)
        # Another host name: Ollama takes a redirect within one host for no redirect.
        with _front(f"http://localhost:{port}") as front:
            yield f"127.0.0.1:{port}", front
    finally:
        process.kill()
        process.wait()


@contextmanager
def _front(registry: str) -> Iterator[str]:
    class Front(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "/blobs/" in self.path:
                self.send_response(307)
                self.send_header("location", registry + self.path)
                self.send_header("content-length", "0")
                self.end_headers()
                return
            self._passed_on("GET")

        def do_HEAD(self) -> None:
            self._passed_on("HEAD")

        def _passed_on(self, method: str) -> None:
            headers = {"accept": self.headers.get("accept", "*/*")}
            answer = httpx2.request(method, registry + self.path, headers=headers, timeout=20, trust_env=False)
            self.send_response(answer.status_code)
            for name in ("content-type", "content-length", "docker-content-digest"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Front)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
