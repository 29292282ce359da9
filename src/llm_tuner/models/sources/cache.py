"""The folder of fetched models: what is in it, what each file hashed to, who is writing it, whether there is room.

Not a downloader. The rule it protects: a finished file was verified once and is believed as long as its size and its
modification time stay the same; everything unfinished has another name.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from llm_tuner.types import DiskFull, UnknownModel, Value, content_hash

SPARE = 64 << 20
"""Bytes that stay free beside a download."""


class Record(Value):
    """What a verified file was: the note beside it. `size` in bytes, `mtime_ns` as the file system gives it."""

    name: str
    source: str
    path: str
    size: int
    mtime_ns: int
    sha256: str


class CachedModel(Value):
    """A fetched model. `name` is the catalogue's or the reference it came by; `size` in bytes."""

    name: str
    path: Path
    size: int
    sha256: str
    source: str


def cache_folder() -> Path:
    """Where fetched models live (XDG_CACHE_HOME is respected)."""
    from platformdirs import user_cache_path

    return user_cache_path("llm-tuner", False) / "models"


def installed(cache: Path | None = None) -> tuple[CachedModel, ...]:
    """The whole models of the cache, by name. Half-fetched files are not among them."""
    cache = cache or cache_folder()
    found = []
    for note in sorted(cache.glob("*.gguf.json")):
        path = note.with_suffix("")
        record = read_record(path, cache)
        if record and path.exists() and path.stat().st_size == record.size:
            item = CachedModel(
                name=record.name, path=path, size=record.size, sha256=record.sha256, source=record.source
            )
            found.append(item)
    return tuple(sorted(found, key=lambda item: (item.name, item.source)))


def remove(name: str, cache: Path | None = None) -> tuple[Path, ...]:
    """Deletes what `name` (a model's name, a reference or a file name) has in the cache, half-fetched files too, and
    says which files.

    Raises UnknownModel when there is nothing. Files used in place (file:, Ollama's store) are not ours to delete.
    """
    cache = cache or cache_folder()
    have = installed(cache)
    whole = [item.path for item in have if name in (item.name, item.source, item.path.name)]
    half = [path for path in cache.glob(f"{slug(name)}.*") if path.suffix in (".part", ".wheels")]
    if not whole and not half:
        names = ", ".join(dict.fromkeys(item.name for item in have)) or "nothing"
        raise UnknownModel(f'No model "{name}" in {cache} (found {len(have)}: {names}). Run: llm-tuner models list')
    for path in whole:
        path.unlink(missing_ok=True)
        _note(path, cache).unlink(missing_ok=True)
    for path in half:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return (*whole, *half)


def slug(name: str) -> str:
    """A model's name as the start of a file name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


# ------------------------------------------------------------------------------------------------------------ records


def read_record(path: Path, cache: Path) -> Record | None:
    """What is written about this file; None when nothing is, or when it cannot be read."""
    try:
        return Record.model_validate_json(_note(path, cache).read_bytes())
    except (OSError, ValueError):
        return None


def write_record(path: Path, cache: Path, *, name: str, source: str, sha256: str) -> None:
    """Notes that this file was verified just now."""
    stat = path.stat()
    record = Record(
        name=name, source=source, path=str(path), size=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=sha256
    )
    replace_text(_note(path, cache), record.model_dump_json(indent=1))


def unchanged(path: Path, record: Record) -> bool:
    """Whether the file is the one that the record speaks of, judged without reading it."""
    stat = path.stat()
    return (stat.st_size, stat.st_mtime_ns) == (record.size, record.mtime_ns)


def _note(path: Path, cache: Path) -> Path:
    if path.parent == cache:
        return path.with_name(path.name + ".json")
    return cache / "in-place" / f"{content_hash(str(path))}.json"


def replace_text(path: Path, text: str) -> None:
    """Writes a small file whole or not at all: a temporary file, fsync, one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with room_for(path.parent), temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------------------------------- room


@contextmanager
def room_for(folder: Path, needed: int = 0) -> Iterator[None]:
    """Raises DiskFull when `needed` bytes do not fit into `folder` now, or when the disk fills up meanwhile."""
    if needed:
        free = shutil.disk_usage(folder).free
        if free < needed + SPARE:
            raise DiskFull(
                f"{folder} needs {_size(needed + SPARE)} and has {_size(free)} free. "
                "Free some space (llm-tuner models rm NAME), or set XDG_CACHE_HOME to a bigger disk."
            )
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(
            f"The disk of {folder} is full. What was fetched so far is kept and the next try goes on from there: "
            "free some space (llm-tuner models rm NAME) and run it again."
        ) from error


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


# -------------------------------------------------------------------------------------------------------------- locks


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits until this process alone holds `path`. The system lets go when the process ends, however it ends."""
    while (held := try_lock(path)) is None:
        time.sleep(0.05)
    with held:
        yield


def try_lock(path: Path) -> IO[bytes] | None:
    """The lock as an open file (closing it lets go), or None while somebody else holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
