"""Run folders (the truth) and one SQLite index over them (derived, deletable).

A step writes into a partial folder whose name is the hash of what it does; when it is done, `run.json` is written last
and the folder is renamed. So a killed step is found again and resumes, a finished one is found again and reused, and a
half run never looks whole. Not a database of attempts: those are JSONL files inside the run folders.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import psutil
from platformdirs import user_data_path
from pydantic import BaseModel, ValidationError

from llm_tuner.types import DataError, DiskFull, Json, Run, SetupError, content_hash

M = TypeVar("M", bound=BaseModel)

FORMAT = 2
"""Raise it when a step's output changes its meaning: older runs are then not reused."""


@dataclass
class RunFolder:
    """A run being written. Put files under `path`, facts into `outputs` and `metrics`."""

    path: Path
    kind: str
    key: str
    resumed: bool
    outputs: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Json] = field(default_factory=dict)
    run: Run | None = None


class Store:
    """All runs below one folder (default: XDG data home, llm-tuner/runs)."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or user_data_path("llm-tuner") / "runs"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SetupError(f"Cannot make the folder {self.root}: {error.strerror}. Set XDG_DATA_HOME.") from error

    def folder(self, run: Run) -> Path:
        return self.root / run.id

    def find(self, kind: str, config: Mapping[str, Json], inputs: Mapping[str, str]) -> Run | None:
        """The newest finished run of this kind with this very config and these inputs."""
        key = run_key(kind, config, inputs)
        return next((run for run in self.runs(kind) if run.key == key), None)

    def runs(self, kind: str | None = None) -> list[Run]:
        """Finished runs, newest first."""
        with closing(self._index()) as index:
            rows = index.execute("SELECT json FROM runs WHERE ?1 IS NULL OR kind = ?1 ORDER BY id DESC", (kind,))
            return [Run.model_validate_json(text) for (text,) in rows]

    @contextmanager
    def write(
        self, kind: str, config: Mapping[str, Json], inputs: Mapping[str, str], *, seed: int = 0
    ) -> Iterator[RunFolder]:
        """A partial folder to write into; on success it becomes a run, on failure it stays for the next try.

        Raises SetupError when another living process writes the same run, DiskFull when the disk is full.
        """
        key = run_key(kind, config, inputs)
        path = self.root / f".partial-{kind}-{key}"
        resumed = path.exists()
        path.mkdir(exist_ok=True)
        started, clock = datetime.now(UTC), time.monotonic()
        with alone(path / ".lock"), disk_full_named(path):
            folder = RunFolder(path, kind, key, resumed)
            yield folder
            run = Run(
                id=f"{started:%Y%m%dT%H%M%S}-{kind}-{key[:8]}",
                kind=kind,
                key=key,
                config=dict(config),
                inputs=dict(inputs),
                outputs=folder.outputs,
                metrics=folder.metrics,
                versions=versions(),
                seed=seed,
                started=started.isoformat(timespec="seconds"),
                finished=datetime.now(UTC).isoformat(timespec="seconds"),
                seconds=round(time.monotonic() - clock, 2),
            )
            write_atomic(path / "run.json", run.model_dump_json(indent=2))
        os.replace(path, self.folder(run))
        folder.path, folder.run = self.folder(run), run

    def _index(self) -> sqlite3.Connection:
        try:
            return self._synced()
        except sqlite3.DatabaseError:
            for path in self.root.glob("index.sqlite*"):
                path.unlink()
            return self._synced()

    def _synced(self) -> sqlite3.Connection:
        index = sqlite3.connect(self.root / "index.sqlite", timeout=30)
        index.execute("PRAGMA journal_mode=WAL")
        with index:
            index.execute("CREATE TABLE IF NOT EXISTS runs (id TEXT PRIMARY KEY, kind TEXT, key TEXT, json TEXT)")
            known = {row[0] for row in index.execute("SELECT id FROM runs")}
            found = {path.parent.name: path for path in self.root.glob("[!.]*/run.json")}
            index.executemany("DELETE FROM runs WHERE id = ?", [(name,) for name in known - found.keys()])
            for name in found.keys() - known:
                run = _read_run(found[name])
                index.execute(
                    "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?)", (name, run.kind, run.key, run.model_dump_json())
                )
        return index


def _read_run(path: Path) -> Run:
    try:
        return Run.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise DataError(
            f"{path} is not a run of this version: {error.errors()[0]['msg']}. Move the folder away."
        ) from error


def run_key(kind: str, config: Mapping[str, Json], inputs: Mapping[str, str]) -> str:
    """What makes two runs the same work: kind, config, inputs (by hash or run id)."""
    return content_hash([FORMAT, kind, dict(config), dict(inputs)])


def versions() -> dict[str, str]:
    """Versions of what decides a result, of those that are installed."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("llm-tuner", "xllamacpp", "torch", "transformers", "peft", "gguf", "mcp"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """One living process works on what lies beside this lock; the lock of a dead one is taken over. Raises SetupError
    where another one lives."""
    owner = _living(path)
    if owner and owner != os.getpid():
        raise SetupError(f"Process {owner} is already working on this ({path.parent}). Wait for it or stop it.")
    path.write_text(f"{os.getpid()} {psutil.Process().create_time()}")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _living(lock: Path) -> int:
    """The process that wrote the lock, 0 if it is gone. The start time tells it from a later one of the same number."""
    try:
        pid, started = lock.read_text().split()
        return int(pid) if psutil.Process(int(pid)).create_time() == float(started) else 0
    except (FileNotFoundError, ValueError, psutil.Error):
        return 0


@contextmanager
def disk_full_named(path: Path) -> Iterator[None]:
    """A full disk becomes a DiskFull that says which disk and what to do; what is written so far stays."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(
            f"No space left while writing {path}. Nothing finished is lost. Make room (llm-tuner status shows what "
            "uses it) or set XDG_DATA_HOME to another disk, then run the same command again: it resumes."
        ) from error


def write_atomic(path: Path, text: str) -> None:
    """The file has the old text or the new one, never half of it."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def append_jsonl(path: Path, value: BaseModel) -> None:
    """One more line, flushed: what a killed step had finished is there afterwards."""
    with path.open("a", encoding="utf-8") as file:
        file.write(value.model_dump_json(exclude_defaults=True) + "\n")


def write_jsonl(path: Path, values: Iterable[BaseModel]) -> None:
    write_atomic(path, "".join(value.model_dump_json(exclude_defaults=True) + "\n" for value in values))


def read_jsonl(path: Path, kind: type[M], *, partial: bool = False) -> list[M]:
    """All values of a JSONL file. DataError names the line; with `partial` a half-written last line is passed over."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error
    return list(_values(path, lines, kind, partial))


def resume_jsonl(path: Path, kind: type[M]) -> list[M]:
    """What an earlier, perhaps killed step left of a JSONL file to go on with: none if there is no file. A half-written
    last line is cut off, so that the next one can be appended. DataError names any other line that is wrong."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return []
    values = read_jsonl(path, kind, partial=True)
    write_jsonl(path, values)
    return values


def scan_jsonl(path: Path, kind: type[M]) -> Iterator[tuple[int, M]]:
    """As `resume_jsonl`, but one value after the other, each with the byte at which its line begins: however long the
    file is, one line of it is in memory."""
    if not path.exists():
        return
    end, whole = 0, True
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    value = kind.model_validate_json(line)
                except ValidationError as error:
                    if file.read(1):
                        raise _wrong_line(path, number, error) from error
                    break
                yield end, value
            end, whole = end + len(line), line.endswith(b"\n")
    if end < path.stat().st_size:
        os.truncate(path, end)
    if not whole:
        with path.open("ab") as file:
            file.write(b"\n")


def _values(path: Path, lines: list[bytes], kind: type[M], partial: bool) -> Generator[M, None, None]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield kind.model_validate_json(line)
        except ValidationError as error:
            if partial and number == len(lines):
                return
            raise _wrong_line(path, number, error) from error


def _wrong_line(path: Path, number: int, error: ValidationError) -> DataError:
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"]))
    return DataError(f"{path}, line {number}: {where + ': ' if where else ''}{problem['msg']}.")


def read_json(path: Path) -> Json:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read {path}: {error}") from error
