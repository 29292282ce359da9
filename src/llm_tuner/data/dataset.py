"""A data set is a folder: two suites, the reference attempts, what was rejected, how it was made, and a card.

    train.jsonl, held-out.jsonl   suites
    attempts.jsonl                the reference attempts of both, by task id
    rejected.jsonl                one Rejection a line
    data.json                     how it was made, and the hash of every file
    card.json, card.md, card.html for people

Not a run folder (store), and no rule of what comes in. The rule it protects: a data set that is being made lies in
`.partial` inside its folder and cannot be taken for a whole one; it goes on after a kill at the last commit, without a
row twice and without one lost; `data.json` is the last file to appear."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from llm_tuner.data.examples import Example
from llm_tuner.data.reading import AttemptFile
from llm_tuner.store import disk_full_named, long_suite, read_json, write_atomic
from llm_tuner.store.long_suite import SuiteWriter
from llm_tuner.store.suite import load
from llm_tuner.types import Attempt, DataError, Json, SetupError

SIDES = ("train", "held-out")
PARTIAL = ".partial"
MANIFEST = "data.json"
FORMAT = 1


class _Output(Protocol):
    @property
    def size(self) -> int: ...

    def fileno(self) -> int: ...

    def close(self) -> None: ...


class LineFile:
    """A JSONL file that grows; opened with a `size`, what stood behind it is cut off."""

    def __init__(self, path: Path, *, size: int = 0) -> None:
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(size)
        self._file.seek(size)

    @property
    def size(self) -> int:
        self._file.flush()
        return self._file.tell()

    def fileno(self) -> int:
        return self._file.fileno()

    def add(self, value: BaseModel) -> None:
        self._file.write(value.model_dump_json(exclude_defaults=True).encode() + b"\n")

    def close(self) -> None:
        self._file.close()


class PartialSet:
    """A data set in the making. Indexes, sizes of the files and the place in the input are committed together, in one
    SQLite transaction: whatever a killed process did after its last commit is undone when it is opened again."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.path = folder, folder / PARTIAL
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SetupError(f"Cannot make the folder {self.path}: {error.strerror}.") from error
        self._outputs: dict[str, _Output] = {}
        self.database = sqlite3.connect(self.path / "state.sqlite", isolation_level=None, timeout=2)
        try:
            self.database.execute("PRAGMA locking_mode=EXCLUSIVE")
            self.database.execute("PRAGMA journal_mode=WAL")
            self.database.execute("PRAGMA synchronous=NORMAL")
            self.database.execute("CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
            self.database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            self.database.close()
            raise SetupError(
                f"Another process is working on {self.folder} ({error}). Wait for it or stop it."
            ) from error
        self.database.execute(
            "CREATE TABLE IF NOT EXISTS ids (suite TEXT, id TEXT, PRIMARY KEY (suite, id)) WITHOUT ROWID"
        )
        self.resumed = self.fact("key") is not None
        if self.fact("key", key) != key:
            self.database.close()
            raise DataError(
                f"{self.path} belongs to another data set, not finished. Finish that one, or delete the folder."
            )
        self.set_fact("key", key)

    def fact(self, name: str, default: Any = None) -> Any:
        row = self.database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return default if row is None else json.loads(row[0])

    def set_fact(self, name: str, value: Json) -> None:
        self.database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def lines(self, name: str) -> LineFile:
        """The JSONL file of this name, at its last commit."""
        output = LineFile(self.path / name, size=self.fact(f"size:{name}", 0))
        self._outputs[name] = output
        return output

    def suite(self, name: str) -> SuiteWriter:
        """The suite `{name}.jsonl`, at its last commit."""
        file = f"{name}.jsonl"
        output = SuiteWriter(self.path / file, name, size=self.fact(f"size:{file}"))
        self._outputs[file] = output
        return output

    def count(self, suite: str, task_id: str) -> None:
        """Notes that this task was written to this suite."""
        self.database.execute("INSERT INTO ids VALUES (?, ?)", (suite, task_id))

    def ids(self, suite: str) -> Iterator[str]:
        """The ids of the suite's tasks, sorted."""
        for (task_id,) in self.database.execute("SELECT id FROM ids WHERE suite = ? ORDER BY id", (suite,)):
            yield task_id

    def commit(self, **facts: Json) -> None:
        """From here on a killed process goes on."""
        with disk_full_named(self.path):
            for name, output in self._outputs.items():
                self.set_fact(f"size:{name}", output.size)
                os.fsync(output.fileno())
        for name, value in facts.items():
            self.set_fact(name, value)
        self.database.execute("COMMIT")
        self.database.execute("BEGIN IMMEDIATE")

    def size_of(self, suite: str) -> int:
        """How many tasks the suite has."""
        row = self.database.execute("SELECT COUNT(*) FROM ids WHERE suite = ?", (suite,)).fetchone()
        return int(row[0])

    def forget(self, name: str) -> None:
        """This file is finished and closed: it is not committed any more."""
        self._outputs.pop(name, None)

    def close_files(self) -> None:
        for output in self._outputs.values():
            output.close()
        self._outputs.clear()

    def publish(self) -> None:
        """Moves the finished files into the data set's folder, `data.json` last, and removes the partial one."""
        self.database.close()
        names = [p.name for p in sorted(self.path.iterdir()) if p.suffix in (".jsonl", ".json", ".md", ".html")]
        for name in sorted(names, key=lambda name: name == MANIFEST):
            os.replace(self.path / name, self.folder / name)
        shutil.rmtree(self.path)

    def close(self) -> None:
        """Closes everything as it is; what was not committed is undone."""
        self.close_files()
        with contextlib.suppress(sqlite3.Error):
            self.database.close()


def manifest(folder: Path) -> dict[str, Any]:
    """How the data set was made. Raises DataError where there is none."""
    if not (folder / MANIFEST).is_file():
        unfinished = (
            " An import into it was not finished: the same command goes on." if (folder / PARTIAL).is_dir() else ""
        )
        raise DataError(f"{folder} is no data set: it has no {MANIFEST}.{unfinished}")
    found = read_json(folder / MANIFEST)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise DataError(f"{folder / MANIFEST} is not of the format {FORMAT} that this version reads.")
    return found


def hashes_of(facts: Mapping[str, Any]) -> dict[str, str]:
    """The hashes that data.json gives of the set's files; a set made from a hub has them under `files`."""
    found = facts.get("hashes") or facts.get("files")
    return found if isinstance(found, dict) else {}


def write_manifest(folder: Path, facts: Mapping[str, Json]) -> dict[str, Json]:
    """Writes data.json, with the hash of every other file of the set."""
    names = [p.name for p in sorted(folder.iterdir()) if p.suffix in (".jsonl", ".json", ".md", ".html")]
    hashes = {name: file_hash(folder / name) for name in names if name != MANIFEST}
    document = {"format": FORMAT, **facts, "hashes": hashes}
    write_atomic(folder / MANIFEST, json.dumps(document, ensure_ascii=False, indent=2) + "\n")
    return document


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_examples(folder: Path, *sides: str) -> Iterator[Example]:
    """The examples of these sides, one after the other; by default of both, in the order in which an import writes
    their attempts. Raises DataError for a task without an attempt."""
    with AttemptFile(folder / "attempts.jsonl") as attempts:
        for side in sides or SIDES[::-1]:
            path = folder / f"{side}.jsonl"
            for task in long_suite.read(path):
                attempt = attempts.get(task.id)
                if attempt is None:
                    raise DataError(f"{path}: the task {task.id} has no attempt in attempts.jsonl.")
                yield Example(task, attempt)


def open_examples(path: Path) -> Iterator[Example]:
    """The examples of a data set's folder, or of a suite's file, whose tasks may have no attempt. Raises DataError."""
    if path.is_dir():
        sides = [side for side in SIDES if (path / f"{side}.jsonl").is_file()]
        if not sides:
            raise DataError(f"{path} holds neither train.jsonl nor held-out.jsonl. Give a data set or a suite file.")
        yield from read_examples(path, *sides)
        return
    with AttemptFile(path.parent / "attempts.jsonl") as attempts:
        for task in load(path).tasks:
            yield Example(task, attempts.get(task.id) or Attempt(task_id=task.id, backend=""))


def chosen(
    examples: Iterable[Example], *, most: int, draw: bool = False, seed: int = 0, kind: str = "", language: str = ""
) -> list[Example]:
    """The first so many examples of this kind and language; with `draw` so many at random (a reservoir)."""
    rng, out, seen = random.Random(f"show:{seed}"), list[Example](), 0
    for example in examples:
        task = example.task
        if (kind and task.category != kind) or (language and task.language != language):
            continue
        if len(out) < most:
            out.append(example)
        elif not draw:
            break
        elif (place := rng.randrange(seen + 1)) < most:
            out[place] = example
        seen += 1
    if draw:
        rng.shuffle(out)
    return out
