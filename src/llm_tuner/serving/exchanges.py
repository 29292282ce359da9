"""Exchanges: what a gateway was asked and what it answered, kept so that training examples can come of it.

Not a log of requests (no header, no address, no key is part of an exchange) and no judge (outcomes.py). The rules it
protects: what is written was scrubbed before; serving never waits for the disk and never fails with it; what is in the
journal survives the death of the process that wrote it.

A tool and a message are written once a file, however many exchanges have them, so that a file can be read, moved and
deleted without the others:

    {"n": 0, "tool": <ToolSpec>}
    {"n": 1, "message": <Message>}
    {"exchange": {..., "messages": [1], "tools": [0]}}
    {"feedback": <Feedback>}                      the last one about an exchange counts, in whatever file it stands
    {"lost": 12, "why": "No space left on device"}
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from pydantic import Field, ValidationError
from pydantic_core import to_json

from llm_tuner.models.dialects.shapes import printable
from llm_tuner.serving.journal import File, Journal, journal_files, lines
from llm_tuner.store.scrub import Scrubber
from llm_tuner.types import Json, Message, Timing, ToolCall, ToolSpec, Usage, Value

_SYNC_WITHIN = 0.04
"""Seconds after which what was written is safe from the machine's death, too."""
_WAITING = 4096
_WAITING_CHARACTERS = 128 << 20
"""So many exchanges, and so much text of theirs, may wait for the writer; what comes beyond is lost and counted."""
_TOOLS = 4096
_IDLE = 3600.0


# ---------------------------------------------------------------------------------------------------------- exchanges

_last = [0]
_one = threading.Lock()


def new_id() -> str:
    """A UUID of version 7 (RFC 9562) that is later, as a text too, than every one that this process made before."""
    now = time.time_ns() * 4096 // 1_000_000
    with _one:
        now = _last[0] = max(now, _last[0] + 1)
    drawn = int.from_bytes(os.urandom(8), "big")
    text = f"{(now >> 12 << 80) | 7 << 76 | (now & 0xFFF) << 64 | 1 << 63 | drawn >> 2:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


class Repair(Value):
    """One thing that the gateway changed or did about an answer: a word ("lifted", "coerced") and a sentence."""

    kind: str
    detail: str = ""


class Route(Value):
    """Who served: the role, the backend's name, and why it was that one."""

    role: str = ""
    backend: str = ""
    why: str = ""


class Try(Value):
    """What a backend wrote on the way to an answer and the client did not get so: the text that a call was lifted from,
    or an answer that was refused and asked for again. `message` is as the runtime surfaced it, before any repair."""

    backend: str
    message: Message
    why: str = ""


class Feedback(Value):
    """Somebody's word on an exchange. `calls` are those that would have been right; an empty tuple says that none would
    have been, None that nobody said."""

    exchange: str
    right: bool
    calls: tuple[ToolCall, ...] | None = None
    note: str = ""


class Exchange(Value):
    """A request and its answer. `model` is the one that was asked for; `tools` are those that the model was shown, in
    this `rendering` (glossary); `answer` is what the client got (None where there was none: then `error` says why).
    `tries` hold what models wrote instead, where it was repaired or refused. `tool_choice` is the client's: a call that
    was forced says nothing about a request. `feedback` comes with reading."""

    id: str = Field(default_factory=new_id)
    time: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))
    model: str = ""
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: str = "auto"
    rendering: str = "full"
    answer: Message | None = None
    finish: str = ""
    tries: tuple[Try, ...] = ()
    repairs: tuple[Repair, ...] = ()
    route: Route = Route()
    usage: Usage = Usage()
    timing: Timing = Timing()
    error: str = ""
    feedback: Feedback | None = None


# ---------------------------------------------------------------------------------------------------------- recording


class Recorder:
    """Writes exchanges into the journal `folder`. Every method may be called from any thread.

    What `record` is given is in the file (the system's: a killed process takes it along no more) when its future is
    done, usually within a millisecond; it is on the disk within 50 ms more. A disk that is full or gone costs what
    could not be written: `lost` counts it, `why` says what happened last, the journal says so too, and writing goes on
    when there is room. Files go as `Journal` says. Raises SetupError where the folder cannot be made.
    """

    def __init__(self, folder: Path, scrubber: Scrubber, *, retention_days: int = 30, max_bytes: int = 1 << 30) -> None:
        self.recorded, self.lost, self.why = 0, 0, ""
        self._journal, self._scrubber = Journal(folder, retention_days, max_bytes), scrubber
        self._queue: SimpleQueue[tuple[Exchange | Feedback | None, Future[bool], int]] = SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = self._characters = self._untold = 0
        self._tools: dict[int, tuple[ToolSpec, bytes]] = {}
        self._closed, self._written = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._write, self._sync)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """How many exchanges are not written yet."""
        return self._waiting

    def record(self, exchange: Exchange) -> Future[bool]:
        """Hands the exchange over and returns at once. The future says whether it was written; it never raises."""
        texts = (len(m.text) + (len(m.result.content) if m.result else 0) for m in exchange.messages)
        return self._hand(exchange, sum(texts))

    def feedback(
        self, exchange: str, right: bool, calls: Sequence[ToolCall] | None = None, note: str = ""
    ) -> Future[bool]:
        """Marks an exchange, by its id. The last word about it counts."""
        given = None if calls is None else tuple(calls)
        return self._hand(Feedback(exchange=exchange, right=right, calls=given, note=note), 0)

    def flush(self, timeout: float | None = None) -> bool:
        """Waits until everything handed over before is on the disk; False where that took longer (seconds)."""
        done: Future[bool] = Future()
        with self._lock:
            if self._closed.is_set():
                return True
            self._queue.put((None, done, 0))
        with suppress(TimeoutError):
            return done.result(timeout)
        return False

    def close(self, timeout: float | None = 10.0) -> None:
        """Writes what waits, then stops. What is handed over later is lost."""
        with self._lock:
            self._closed.set()
        self._queue.put((None, Future(), 0))
        self._written.set()
        for thread in self._threads:
            thread.join(timeout)
        if not any(thread.is_alive() for thread in self._threads):
            self._journal.close()

    def _hand(self, item: Exchange | Feedback, characters: int) -> Future[bool]:
        done: Future[bool] = Future()
        done.set_running_or_notify_cancel()  # nobody can take it back: the writer has to be able to say how it ended
        with self._lock:
            why = "the recorder is closed" if self._closed.is_set() else ""
            if self._waiting >= _WAITING or self._characters + characters > _WAITING_CHARACTERS:
                why = "the disk is too slow: too many exchanges wait to be written"
            if not why:
                self._waiting += 1
                self._characters += characters
                self._queue.put((item, done, characters))
                return done
        self._lose(why)
        done.set_result(False)
        return done

    def _lose(self, why: str) -> None:
        with self._lock:
            self.lost, self._untold, self.why = self.lost + 1, self._untold + 1, why

    def _write(self) -> None:
        while not (self._closed.is_set() and self._queue.empty()):
            try:
                item, done, characters = self._queue.get(timeout=_IDLE)
            except Empty:
                self._journal.tidy()
                continue
            if item is None:
                self._sync_now()
                done.set_result(True)
                continue
            untold, ok = self._untold, False
            try:
                self._add(item, untold)
                ok = True
            except OSError as error:
                self._lose(error.strerror or str(error))
            except Exception as error:  # what strangers sent must not end the thread; its text may tell what they sent
                self._lose(self._scrubber.text(f"{type(error).__name__}: {error}"[:160]))
            with self._lock:
                self._waiting -= 1
                self._characters -= characters
                if ok:
                    self.recorded += isinstance(item, Exchange)
                    self._untold -= untold
            done.set_result(ok)
            if ok:
                self._written.set()

    def _sync(self) -> None:
        """Apart from the writer: a disk may take long over it, and what is written meanwhile is safe from a kill."""
        while not self._closed.is_set():
            self._written.wait()
            self._closed.wait(_SYNC_WITHIN)
            self._written.clear()
            self._sync_now()

    def _sync_now(self) -> None:
        try:
            self._journal.sync()
        except OSError as error:
            with self._lock:
                self.why = error.strerror or str(error)

    def _add(self, item: Exchange | Feedback, untold: int) -> None:
        file, scrub = self._journal.file(), self._scrubber
        new: dict[bytes, int] = {}
        out = [_line({"lost": untold, "why": self.why})] if untold else []
        if isinstance(item, Feedback):
            said = scrub.value(item.model_dump(mode="json", exclude={"exchange"}))
            out.append(_line({"feedback": {"exchange": item.exchange, **said}}))
        else:
            tools = [self._tool(tool, file, new, out) for tool in item.tools]
            messages = [self._message(message, file, new, out) for message in item.messages]
            own = {"id", "time", "messages", "tools", "feedback"}
            rest = scrub.value(item.model_dump(mode="json", exclude_defaults=True, exclude=own))
            head = {"id": item.id, "time": item.time, "messages": messages, "tools": tools}
            out.append(_line({"exchange": {**head, **rest}}))
        file.append(b"".join(out))
        file.parts.update(new)

    def _tool(self, tool: ToolSpec, file: File, new: dict[bytes, int], out: list[bytes]) -> int:
        # By identity first: 73 tools come with every request. A copy's fingerprint may be that of its original.
        key = self._tools.get(id(tool), (tool, b""))[1]
        if not key:
            if len(self._tools) >= _TOOLS:
                self._tools.clear()
            key = _digest(_dump(tool))
            self._tools[id(tool)] = tool, key
        number = file.parts.get(key, new.get(key))
        if number is None:
            number = new[key] = file.number()
            out.append(_line({"n": number, "tool": _dump(self._scrubber.tool(tool))}))
        return number

    def _message(self, message: Message, file: File, new: dict[bytes, int], out: list[bytes]) -> int:
        whole = _dump(message)
        key = _digest(whole)
        number = file.parts.get(key, new.get(key))
        if number is None:
            number = new[key] = file.number()
            out.append(_line({"n": number, "message": self._scrubber.value(whole)}))
        return number


def _dump(value: Value) -> dict[str, Json]:
    return value.model_dump(mode="json", exclude_defaults=True)


def _json(value: Json) -> bytes:
    try:
        return to_json(value)
    except ValueError:  # half a surrogate pair, which JSON may hold and UTF-8 cannot
        return to_json(printable(value))


def _digest(value: Json) -> bytes:
    return blake2b(_json(value), digest_size=16).digest()


def _line(value: Json) -> bytes:
    return _json(value) + b"\n"


# ------------------------------------------------------------------------------------------------------------ reading


def read(where: Path, damage: list[str] | None = None) -> Iterator[Exchange]:
    """The exchanges of a journal (its folder, or one file), as they were written, each with its feedback. The tools and
    messages that exchanges share are one value. A half last line is passed over; for any other line that cannot be
    read, and for what was lost while recording, a sentence is added to `damage`."""
    files = journal_files(where)
    said = {feedback.exchange: feedback for path in files for feedback in _said(path)}
    for path in files:
        yield from _exchanges(path, said, [] if damage is None else damage)


def _said(path: Path) -> Iterator[Feedback]:
    for _, line in lines(path):
        if line.startswith(b'{"feedback"'):
            with suppress(ValueError, TypeError, KeyError):
                yield Feedback.model_validate(json.loads(line)["feedback"])


def _exchanges(path: Path, said: Mapping[str, Feedback], damage: list[str]) -> Iterator[Exchange]:
    parts: dict[int, Any] = {}
    for number, line in lines(path):
        try:
            body = json.loads(line)
            if "exchange" in body:
                yield _exchange(body["exchange"], parts, said)
            elif "message" in body:
                parts[body["n"]] = Message.model_validate(body["message"])
            elif "tool" in body:
                parts[body["n"]] = ToolSpec.model_validate(body["tool"])
            elif "lost" in body:
                damage.append(f"{path.name}: {body['lost']} exchanges were not recorded ({body['why']})")
            elif "feedback" in body:
                Feedback.model_validate(body["feedback"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else repr(error)
            damage.append(f"{path.name}, line {number}: {what[:160]}")


def _exchange(body: dict[str, Json], parts: Mapping[int, Any], said: Mapping[str, Feedback]) -> Exchange:
    shared = {key: tuple(parts[number] for number in body[key]) for key in ("messages", "tools")}
    return Exchange.model_validate({**body, **shared, "feedback": said.get(body["id"])})
