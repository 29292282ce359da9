"""Where every attempt, task and exchange stands in its file, and what pages count: SQLite, derived, deletable.

A page asks and gets what is known; reading goes on in one thread behind it, where the last one stopped. The rule it
protects: no request reads a whole file. Texts stay where they are: a page reads the lines that it shows.
"""

from __future__ import annotations

import json
import queue
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from llm_tuner.types import (
    AllowedCalls,
    Attempt,
    DataError,
    ExactCalls,
    Message,
    Report,
    Task,
    ToolSpec,
    canonical_json,
)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (id INTEGER PRIMARY KEY, path TEXT UNIQUE, kind TEXT, inode INT, size INT, mtime INT,
    done INT, error TEXT);
CREATE TABLE IF NOT EXISTS attempts (file INT, key TEXT, place INT, reason TEXT, tool TEXT, ms REAL,
    PRIMARY KEY (file, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS attempts_place ON attempts (file, place);
CREATE INDEX IF NOT EXISTS attempts_reason ON attempts (file, reason, place);
CREATE INDEX IF NOT EXISTS attempts_tool ON attempts (file, tool, reason, place);
CREATE TABLE IF NOT EXISTS tasks (file INT, key TEXT, place INT, catalogue TEXT, category TEXT, language TEXT,
    tool TEXT, request TEXT, PRIMARY KEY (file, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tasks_place ON tasks (file, place);
CREATE INDEX IF NOT EXISTS tasks_category ON tasks (file, category, place);
CREATE INDEX IF NOT EXISTS tasks_language ON tasks (file, language, place);
CREATE INDEX IF NOT EXISTS tasks_tool ON tasks (file, tool, place);
CREATE TABLE IF NOT EXISTS parts (file INT, key TEXT, place INT, PRIMARY KEY (file, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS documents (file INTEGER PRIMARY KEY, json TEXT);
CREATE TABLE IF NOT EXISTS exchanges (id TEXT PRIMARY KEY, file INT, place INT, time TEXT, model TEXT, role TEXT,
    state TEXT, why TEXT, tools TEXT, repairs TEXT, ms REAL, tokens INT) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS exchanges_id ON exchanges (id, state);
CREATE INDEX IF NOT EXISTS exchanges_file ON exchanges (file);
CREATE INDEX IF NOT EXISTS exchanges_state ON exchanges (state, id);
CREATE INDEX IF NOT EXISTS exchanges_why ON exchanges (why, state);
CREATE INDEX IF NOT EXISTS exchanges_model ON exchanges (role, model, ms);
CREATE INDEX IF NOT EXISTS exchanges_ms ON exchanges (ms);
CREATE TABLE IF NOT EXISTS calls (file INT, id TEXT, tool TEXT, state TEXT);
CREATE INDEX IF NOT EXISTS calls_tool ON calls (tool, state, id);
CREATE INDEX IF NOT EXISTS calls_file ON calls (file);
"""
_TABLES = ("attempts", "tasks", "parts", "documents", "exchanges", "calls")
_VERSION = 1
BATCH = 250
BREATH = 20
"""So many lines at a time, then pages go first: one interpreter runs both."""
RESTS = 10
"""A journal is read again from its beginning (an outcome may come late): at most a tenth of the time."""


@dataclass(frozen=True)
class Known:
    """A file as far as it is known: its number, how much of it was read, and why not more."""

    file: int
    share: float
    error: str = ""


class Index:
    """The index in `path`. `open` a file, then ask with `rows`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._local = threading.local()
        self._lock = threading.Lock()
        self._waiting: dict[str, threading.Event] = {}
        self._queue: queue.SimpleQueue[tuple[Path, str, threading.Event] | None] = queue.SimpleQueue()
        self._rest: dict[str, float] = {}
        self._worker: threading.Thread | None = None
        self._pages, self._hurry = 0, 0
        self._bases: list[sqlite3.Connection] = []
        self._ended = False
        try:
            self._create()
        except sqlite3.DatabaseError:
            for old in path.parent.glob(path.name + "*"):
                old.unlink()
            self._create()

    @contextmanager
    def page(self) -> Iterator[None]:
        """While a page is made, reading in the background waits."""
        with self._lock:
            self._pages += 1
        try:
            yield
        finally:
            with self._lock:
                self._pages -= 1

    def breathe(self) -> None:
        """A pause of the thread that reads: longer while pages are made, never without end."""
        if self._ended:
            raise _Ended
        for _ in range(100):
            time.sleep(0.0005)
            if not self._pages or self._hurry:
                return

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self.base().execute(query, values).fetchall()

    def open(self, path: Path, kind: str, wait: float = 0.05) -> Known:
        """What is known of a file of this kind (attempts, suite, report, journal). What is not, is read in the
        background; for a moment, `wait`, it is worth waiting."""
        known, fresh = self._known(path)
        if fresh or time.monotonic() < self._rest.get(str(path), 0):
            return known
        with self._lock:
            done = self._waiting.get(str(path))
            if done is None:
                done = self._waiting[str(path)] = threading.Event()
                self._queue.put((path, kind, done))
                if self._worker is None:
                    self._worker = threading.Thread(target=self._work, daemon=True, name="dashboard-index")
                    self._worker.start()
        self._hurry += 1  # who waits for the reading does not hold it up
        done.wait(wait)
        self._hurry -= 1
        return self._known(path)[0]

    def forget_missing(self, kind: str, there: Sequence[Path]) -> None:
        """Takes out the files of this kind that are gone."""
        names = {str(path) for path in there}
        gone = [id_ for id_, path in self.rows("SELECT id, path FROM files WHERE kind = ?", kind) if path not in names]
        base = self.base()
        with suppress(sqlite3.OperationalError), base:
            for id_ in gone:
                _empty(base, id_)
                base.execute("DELETE FROM files WHERE id = ?", (id_,))

    def close(self) -> None:
        """Ends the reading; what was read so far is kept."""
        self._ended = True
        self._queue.put(None)
        if self._worker is not None:
            self._worker.join(5)
        for base in self._bases:
            base.close()

    # ----------------------------------------------------------------------------------------------------------------

    def _create(self) -> None:
        with closing(sqlite3.connect(self._path, timeout=30)) as base:
            if base.execute("PRAGMA user_version").fetchone()[0] not in (0, _VERSION):
                raise sqlite3.DatabaseError("of another version")
            base.execute("PRAGMA journal_mode=WAL")
            base.executescript(_SCHEMA)
            base.execute(f"PRAGMA user_version = {_VERSION}")

    def base(self) -> sqlite3.Connection:
        base: sqlite3.Connection | None = getattr(self._local, "base", None)
        if base is None:
            base = self._local.base = sqlite3.connect(self._path, timeout=30, check_same_thread=False)
            self._bases.append(base)
            base.execute("PRAGMA synchronous=OFF")
            base.execute("PRAGMA cache_size=-32768")
        return base

    def _known(self, path: Path) -> tuple[Known, bool]:
        found = self.rows("SELECT id, inode, size, mtime, done, error FROM files WHERE path = ?", str(path))
        try:
            now = path.stat()
        except OSError as error:
            return Known(found[0][0] if found else 0, 1.0, error.strerror or str(error)), True
        if not found:
            return Known(0, 0.0), False
        id_, inode, size, mtime, done, error_ = found[0]
        fresh = (inode, size, mtime) == (now.st_ino, now.st_size, now.st_mtime_ns)
        return Known(id_, 1.0 if fresh else done / max(1, now.st_size), error_), fresh

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            path, kind, done = item
            clock = time.monotonic()
            try:
                self._read(path, kind)
            except _Ended:
                return
            except Exception as error:  # whatever stands in a file, the thread has to go on
                with suppress(sqlite3.Error), self.base() as base:
                    base.execute("UPDATE files SET error = ? WHERE path = ?", (f"{error}"[:300], str(path)))
            took = time.monotonic() - clock
            if kind == "journal":
                self._rest[str(path)] = time.monotonic() + took * RESTS
            with self._lock:
                del self._waiting[str(path)]
            done.set()

    def _read(self, path: Path, kind: str) -> None:
        """Goes on where the last reading stopped, from the beginning where the file is another one."""
        base, now = self.base(), path.stat()
        with base:
            base.execute(
                "INSERT OR IGNORE INTO files (path, kind, inode, size, mtime, done, error) "
                "VALUES (?, ?, 0, -1, 0, 0, '')",
                (str(path), kind),
            )
        ((id_, inode, done),) = self.rows("SELECT id, inode, done FROM files WHERE path = ?", str(path))
        again = inode != now.st_ino or now.st_size < done or kind in ("journal", "report")
        if again:
            done = 0
            if kind != "journal":
                with base:
                    _empty(base, id_)
        for after in _READERS[kind](self, id_, path, done):
            done = after
            with base:
                base.execute("UPDATE files SET inode = ?, done = ?, error = '' WHERE id = ?", (now.st_ino, done, id_))
        with base:
            base.execute(
                "UPDATE files SET inode = ?, size = ?, mtime = ?, done = ?, error = '' WHERE id = ?",
                (now.st_ino, now.st_size, now.st_mtime_ns, done, id_),
            )


class _Ended(Exception):
    """Nobody reads the index any more."""


def _empty(base: sqlite3.Connection, id_: int) -> None:
    for table in _TABLES:
        base.execute(f"DELETE FROM {table} WHERE file = ?", (id_,))


def _batches(path: Path, done: int) -> Iterator[tuple[list[tuple[int, bytes]], int]]:
    """Whole lines with their places, some at a time, and the place behind them."""
    batch: list[tuple[int, bytes]] = []
    with path.open("rb") as file:
        file.seek(done)
        for line in file:
            if not line.endswith(b"\n"):
                break
            batch.append((done, line))
            done += len(line)
            if len(batch) >= BATCH:
                yield batch, done
                batch = []
    yield batch, done


# ---------------------------------------------------------------------------------------------------------- the kinds


def _attempts(index: Index, id_: int, path: Path, done: int) -> Iterator[int]:
    for batch, after in _batches(path, done):
        rows = []
        for number, (place, line) in enumerate(batch):
            if number % BREATH == 0:
                index.breathe()
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                made = json.loads(line)
                reason = (made.get("verdict") or {}).get("reason", "" if not made.get("error") else "error")
                ms = (made.get("timing") or {}).get("total_ms", 0.0)
                rows.append((id_, made["task_id"], place, reason, _called(made), ms))
        with index.base() as base:
            base.executemany("INSERT OR REPLACE INTO attempts VALUES (?, ?, ?, ?, ?, ?)", rows)
        yield after


def _called(attempt: dict[str, Any]) -> str:
    for message in attempt.get("messages", ()):
        for call in (*message.get("tool_calls", ()), *message.get("text_calls", ())):
            return str(call.get("name", ""))[:200]
    return ""


def _suite(index: Index, id_: int, path: Path, done: int) -> Iterator[int]:
    """Tasks by their ids. A task's id is the hash of its content; the catalogue's part of that is made once."""
    tools: dict[str, ToolSpec] = {}
    catalogues: dict[str, str] = {}
    for batch, after in _batches(path, 0):  # tools stand before the tasks that have them, so from the beginning
        rows, parts = [], []
        for number, (place, line) in enumerate(batch):
            if number % BREATH == 0:
                index.breathe()
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                said = json.loads(line)
                if "messages" in said:
                    rows.append((id_, *_task(said, catalogues, place)))
                elif "catalogue" in said:
                    specs = [tools[key] for key in said["tools"]]
                    catalogues[said["catalogue"]] = canonical_json(
                        [[t.name, t.description, t.parameters] for t in specs]
                    )
                    parts.append((id_, "c" + said["catalogue"], place))
                elif "tool" in said:
                    tools[said["tool"]] = ToolSpec.model_validate(said["spec"])
                    parts.append((id_, "t" + said["tool"], place))
        with index.base() as base:
            base.executemany("INSERT OR REPLACE INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            base.executemany("INSERT OR REPLACE INTO parts VALUES (?, ?, ?)", parts)
        yield after


def _task(said: dict[str, Any], catalogues: dict[str, str], place: int) -> tuple[Any, ...]:
    bare = Task.model_validate({**said, "tools": ()})
    messages = canonical_json([m.model_dump(exclude_defaults=True) for m in bare.messages])
    text = f"[{messages},{catalogues[said['tools']]},{canonical_json(bare.expect.model_dump())}]"
    request = next((m.text for m in reversed(bare.messages) if m.role == "user"), "")
    calls = bare.expect.calls if isinstance(bare.expect, ExactCalls | AllowedCalls) else ()
    key = sha256(text.encode()).hexdigest()[:16]
    tool = calls[0].name if calls else ""
    return key, place, said["tools"], bare.category, bare.language, tool, request[:300]


def _report(index: Index, id_: int, path: Path, done: int) -> Iterator[int]:
    """Without its verdicts, which are as many as the tasks. SQLite leaves them out: it does not hold up pages."""
    text, base = path.read_bytes(), index.base()
    query = "SELECT json_remove(CAST(? AS TEXT), '$.verdicts', '$.lenient', '$.wanted', '$.confusion')"
    ((kept,),) = base.execute(query, (text,)).fetchall()
    found = Report.model_validate_json(kept)
    with base:
        base.execute("INSERT OR REPLACE INTO documents VALUES (?, ?)", (id_, found.model_dump_json()))
    yield len(text)


_PART = re.compile(rb'\{"n":(\d+),')
_EXCHANGE = re.compile(rb'\{"exchange":\{"id":"([^"\\]{1,80})"')


def _journal(index: Index, id_: int, path: Path, done: int) -> Iterator[int]:
    """All of it in one transaction: pages see the earlier reading until then."""
    from llm_tuner.serving.exchanges import read
    from llm_tuner.serving.outcomes import outcomes

    places, parts = dict[str, int](), []
    base, end = index.base(), 0
    for batch, after in _batches(path, 0):
        for place, line in batch:
            if found := _PART.match(line):
                parts.append((id_, found[1].decode(), place))
            elif found := _EXCHANGE.match(line):
                places[found[1].decode()] = place
        end = after
    rows, calls = [], []
    for number, (one, outcome) in enumerate(outcomes(read(path))):
        names = tuple(call.name[:200] for call in one.answer.tool_calls) if one.answer is not None else ()
        state = "error" if one.error else outcome.state
        why, route = (one.error or outcome.why)[:160], one.route.role
        repairs = ", ".join(dict.fromkeys(repair.kind for repair in one.repairs))
        where = (one.id, id_, places.get(one.id, -1), one.time, one.model, route)
        measured = (one.timing.total_ms, one.usage.completion_tokens)
        rows.append((*where, state, why, ", ".join(names)[:300], repairs, *measured))
        calls += [(id_, one.id, name, state) for name in names]
        if number % BREATH == 0:
            index.breathe()
    with base:
        _empty(base, id_)
        filled: tuple[tuple[str, list[Any]], ...] = (("parts", parts), ("exchanges", rows), ("calls", calls))
        for table, values in filled:
            marks = ", ".join("?" * len(values[0])) if values else ""
            for start in range(0, len(values), BATCH):
                some = values[start : start + BATCH]
                base.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", some)
                index.breathe()
    yield end


_READERS: dict[str, Callable[[Index, int, Path, int], Iterator[int]]] = {
    "attempts": _attempts,
    "suite": _suite,
    "report": _report,
    "journal": _journal,
}


# ------------------------------------------------------------------------------------------------------- single lines


def line(path: Path, place: int) -> Any:
    """The JSON of the line that begins at this byte. Raises DataError where there is none (the file changed)."""
    try:
        with path.open("rb") as file:
            file.seek(place)
            return json.loads(file.readline())
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name} changed while it was read. Load the page again.") from error


def attempt(index: Index, path: Path, key: str) -> Attempt | None:
    """The attempt at this task."""
    known = index.open(path, "attempts")
    found = index.rows("SELECT place FROM attempts WHERE file = ? AND key = ?", known.file, key)
    return Attempt.model_validate(line(path, found[0][0])) if found else None


def task(index: Index, path: Path, key: str) -> Task | None:
    """A suite's task with its tools, by its id."""
    known = index.open(path, "suite")
    found = index.rows("SELECT place, catalogue FROM tasks WHERE file = ? AND key = ?", known.file, key)
    if not found:
        return None

    @cache
    def part(key: str) -> Any:
        places = index.rows("SELECT place FROM parts WHERE file = ? AND key = ?", known.file, key)
        return line(path, places[0][0]) if places else {"tools": [], "spec": None}

    place, catalogue = found[0]
    specs = (part("t" + one)["spec"] for one in part("c" + catalogue)["tools"])
    return Task.model_validate({**line(path, place), "tools": tuple(ToolSpec.model_validate(s) for s in specs if s)})


def exchange(index: Index, id_: str) -> tuple[dict[str, Any], list[Message], list[str]] | None:
    """An exchange as it stands in its journal, its messages, and the names of the tools that were shown."""
    found = index.rows(
        "SELECT f.path, e.place, e.file FROM exchanges e JOIN files f ON f.id = e.file WHERE e.id = ?", id_
    )
    if not found or found[0][1] < 0:
        return None
    path, place, file = Path(found[0][0]), found[0][1], found[0][2]
    body = line(path, place)["exchange"]

    def part(number: int) -> Any:
        places = index.rows("SELECT place FROM parts WHERE file = ? AND key = ?", file, str(number))
        return line(path, places[0][0]) if places else {}

    messages = [Message.model_validate(part(number)["message"]) for number in body["messages"]]
    tools = [str(part(number).get("tool", {}).get("name", "?")) for number in body["tools"]]
    return body, messages, tools
