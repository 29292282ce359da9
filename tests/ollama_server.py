"""A real Ollama server for tests and CI, built from its Go module where none is given.

`python tests/ollama_server.py` builds it (about 6 minutes on 2 cores) and prints its path. Where a server comes from,
in this order: LLM_TUNER_OLLAMA, the cache, a build. This is the last release that carries its C++ in the module, so Go
and a C++ compiler are all it takes: no root, no download outside Go's module proxy.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VERSION = "0.24.0"

# Go leaves folders called "vendor" out of a module, and with them three headers. These modules carry the same ones.
HEADERS = {
    "github.com/ollama/ollama@v0.9.0": {
        "llama/llama.cpp/common/json.hpp": "nlohmann/json.hpp",
        "llama/llama.cpp/common/stb_image.h": "stb/stb_image.h",
    },
    "github.com/gen2brain/malgo@v0.11.24": {"miniaudio.h": "miniaudio/miniaudio.h"},
}


def cache(version: str = VERSION) -> Path:
    """Where the built server of this version is kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "llm-tuner" / "tools" / f"ollama-{version}"


def binary() -> Path | None:
    """The server to test with; None where there is none and no Go to build it with."""
    if given := os.environ.get("LLM_TUNER_OLLAMA"):
        if not Path(given).is_file():
            raise FileNotFoundError(f"LLM_TUNER_OLLAMA names {given}, and there is no such file.")
        return Path(given)
    built = cache() / "ollama"
    if built.is_file():
        return built
    return build() if shutil.which("go") and (shutil.which("c++") or shutil.which("g++")) else None


def build() -> Path:
    """Build the server into the cache and return its path. Go's own output (the packages as they pass) is shown."""
    folder = cache()
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    include = _headers(folder / "include")
    flags = f"-O3 -I{include}"
    if platform.machine() in ("x86_64", "AMD64"):
        flags += " -march=x86-64-v3"
    environment = {**os.environ, "GOBIN": str(partial), "CGO_CFLAGS": flags, "CGO_CXXFLAGS": flags}
    version = f"-ldflags=-X=github.com/ollama/ollama/version.Version={VERSION}"
    command = ["go", "install", "-v", version, f"github.com/ollama/ollama@v{VERSION}"]
    # Standard output stays the caller's: Go's list of packages goes to standard error.
    subprocess.run(command, env=environment, check=True)
    os.replace(partial / "ollama", folder / "ollama")
    partial.rmdir()
    return folder / "ollama"


def _headers(include: Path) -> Path:
    for module, files in HEADERS.items():
        answer = subprocess.run(["go", "mod", "download", "-json", module], check=True, capture_output=True, text=True)
        source = Path(json.loads(answer.stdout)["Dir"])
        for path, name in files.items():
            target = include / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, target)
    # The single-file json.hpp declares what json_fwd.hpp would.
    (include / "nlohmann" / "json_fwd.hpp").write_text('#include "json.hpp"\n')
    return include


@contextmanager
def serve(folder: Path, program: Path | None = None) -> Iterator[str]:
    """Run `ollama serve` on a free loopback port with its models under `folder`; yields the base URL."""
    program = program or binary()
    if program is None:
        raise FileNotFoundError("No Ollama server, and no Go with a C++ compiler to build one. Set LLM_TUNER_OLLAMA.")
    host = f"127.0.0.1:{_free_port()}"
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "HOME": str(folder),
        "OLLAMA_HOST": host,
        "OLLAMA_MODELS": str(folder / "models"),
        "OLLAMA_NOPRUNE": "1",
    }
    log = folder / "serve.log"
    with log.open("wb") as out:
        process = subprocess.Popen([str(program), "serve"], env=environment, stdout=out, stderr=subprocess.STDOUT)
        try:
            _wait(f"http://{host}", process, log)
            yield f"http://{host}"
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _wait(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 60) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        try:
            with opener.open(f"{url}/api/version", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"ollama serve did not answer at {url}:\n{log.read_text(errors='replace')[-2000:]}")


if __name__ == "__main__":
    print(build() if "--again" in sys.argv else binary())
