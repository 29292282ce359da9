"""A journal: a folder of files of lines, `DAY.START.jsonl`, each written by one living process.

What the lines say is not known here. The rule it protects: what is in a file is whole. What cannot be written whole is
not there, half a line of a killed process is cut off at the next start, and no two processes write one file.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from llm_tuner.models.sources.cache import try_lock
from llm_tuner.types import SetupError

HEADER = b'{"journal":1}\n'
"""The first line of every file."""

_KNOWN_PARTS = 1 << 16


class Journal:
    """The files. All but `sync` is called by one thread at a time.

    Files of days more than `retention_days` ago are deleted, and the oldest where all together would have more than
    `max_bytes`; never one that a process still writes. Raises SetupError where the folder cannot be made.
    """

    def __init__(self, folder: Path, retention_days: int, max_bytes: int) -> None:
        self._folder, self._retention = folder, retention_days
        self._room, self._file_bytes = max_bytes, max(1, max_bytes // 8)
        self._file: File | None = None
        self._lock = threading.Lock()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SetupError(
                f"Cannot make the folder {folder} for what is recorded: {error.strerror}. Choose another."
            ) from error
        for path in journal_files(folder):
            _mend(path)
        self.tidy()

    def file(self) -> File:
        """The file to write into now: a new one each day, and when one grows big or is gone. Raises OSError."""
        today, file = _today(), self._file
        if file is None or not file.good(today, self._file_bytes):
            self.close()
            self.tidy()
            with self._lock:
                self._file = file = File(self._folder, today)
        return file

    def tidy(self) -> None:
        """Deletes what is too old, and the oldest of what is too much."""
        oldest = str(date.fromisoformat(_today()) - timedelta(days=self._retention))
        with suppress(OSError):  # another process may tidy at the same time
            files = [(path, path.stat().st_size) for path in journal_files(self._folder)]
            total = sum(size for _, size in files)
            for path, size in files:
                if (path.name[:10] < oldest or total > self._room - self._file_bytes) and not _held(path):
                    path.unlink()
                    total -= size

    def sync(self) -> None:
        """Puts on the disk what was written. Raises OSError."""
        with self._lock:
            copy = os.dup(self._file.fd) if self._file is not None else None
        if copy is not None:
            try:
                os.fsync(copy)
            finally:
                os.close(copy)

    def close(self) -> None:
        with suppress(OSError):
            self.sync()
        with self._lock:
            file, self._file = self._file, None
        if file is not None:
            file.close()


class File:
    """One file, open and locked while its process lives. `parts`: the numbers of what later lines need not repeat."""

    def __init__(self, folder: Path, day: str) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / f"{day}.{datetime.now(UTC):%H%M%S.%f}.{os.urandom(3).hex()}.jsonl"
        lock = try_lock(path)
        if lock is None:
            raise OSError(f"{path.name} is locked by another process")
        self._lock, self.fd, self.day = lock, lock.fileno(), day
        self.parts: dict[bytes, int] = {}
        self._size, self._next, self._torn = 0, 0, False
        try:
            path.chmod(0o600)
            self.append(HEADER)
        except OSError:
            lock.close()
            path.unlink(missing_ok=True)
            raise

    def good(self, today: str, most: int) -> bool:
        """Whether to go on in this file: of today, not full, not torn, and still there."""
        return self.day == today and self._size < most and not self._torn and os.fstat(self.fd).st_nlink > 0

    def number(self) -> int:
        """The number of the next part."""
        if len(self.parts) >= _KNOWN_PARTS:
            self.parts.clear()  # what was forgotten is written again
        self._next += 1
        return self._next - 1

    def append(self, data: bytes) -> None:
        """Whole, or not at all (OSError)."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self.fd, rest) :]
        except OSError:
            try:
                os.ftruncate(self.fd, self._size)
            except OSError:
                self._torn = True
            raise
        self._size += len(data)

    def close(self) -> None:
        self._lock.close()


def journal_files(where: Path) -> list[Path]:
    """The files of a journal, the oldest first; of one file itself. None where it is no journal."""
    found = sorted(where.glob("*.jsonl")) if where.is_dir() else [where]
    return [path for path in found if _begins(path)]


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The whole lines of one file, with their numbers from 1 on."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield number, line


def _begins(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(HEADER)) == HEADER
    except OSError:
        return False


def _today() -> str:
    return str(datetime.now(UTC).date())


def _held(path: Path) -> bool:
    """Whether a living process writes this file."""
    lock = try_lock(path)
    if lock is not None:
        lock.close()
    return lock is None


def _mend(path: Path) -> None:
    """Cuts off the half line that a killed process left."""
    with suppress(OSError), path.open("r+b") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - (1 << 16))
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size and not _held(path):
            file.truncate(end)
