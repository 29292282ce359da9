"""Operations as jobs: each long one in a thread of its own, with its events, its result, and a way to stop it; and what
quick answers were remembered of slow questions.

Nothing is kept beyond this process: what an operation makes is kept by the operation. The rule it protects: a page
never waits for an operation.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llm_tuner.operations import Operation, perform
from llm_tuner.types import Event, Json, SetupError, TunerError

MOST_RUNNING, MOST_KEPT, MOST_EVENTS = 8, 100, 500
ENDED = ("done", "failed", "stopped")


@dataclass
class Job:
    """One long operation. Its last events are held, each with its number."""

    id: str
    operation: Operation
    arguments: dict[str, Any]
    started: float = field(default_factory=time.time)
    state: str = "running"
    events: deque[tuple[int, Event]] = field(default_factory=lambda: deque(maxlen=MOST_EVENTS))
    result: Json = None
    error: str = ""
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def document(self) -> dict[str, Any]:
        last = self.events[-1][1].model_dump(mode="json") if self.events else None
        return {
            "id": self.id,
            "operation": self.operation.name,
            "state": self.state,
            "started": self.started,
            "event": last,
            "result": self.result,
            "error": self.error,
        }

    def since(self, number: int) -> list[tuple[int, Event]]:
        """The events from this number on."""
        return [one for one in list(self.events) if one[0] >= number]


class Jobs:
    """The jobs of this process, newest last. `ended` is called after each, in its thread."""

    def __init__(self, ended: Callable[[Operation], None]) -> None:
        self._jobs: dict[str, Job] = {}
        self._ended = ended

    def __iter__(self) -> Any:
        return iter(reversed(list(self._jobs.values())))

    def get(self, id_: str) -> Job | None:
        return self._jobs.get(id_)

    def start(self, operation: Operation, arguments: Mapping[str, Any]) -> Job:
        """Raises SetupError where too many run already."""
        if sum(job.state == "running" for job in self._jobs.values()) >= MOST_RUNNING:
            raise SetupError(f"{MOST_RUNNING} operations are running. Wait for one, or stop one.")
        job = Job(secrets.token_hex(8), operation, dict(arguments))
        for old in [one.id for one in self._jobs.values() if one.state in ENDED][: len(self._jobs) + 1 - MOST_KEPT]:
            del self._jobs[old]
        self._jobs[job.id] = job
        threading.Thread(target=self._work, args=(job,), daemon=True, name=f"job-{operation.name}").start()
        return job

    def stop_all(self) -> None:
        for job in self._jobs.values():
            job.stop.set()

    def _work(self, job: Job) -> None:
        """One thread from start to end: an operation may hold what belongs to its thread (a database)."""
        steps = perform(job.operation, job.arguments)
        state, job_error = "stopped", ""
        try:
            while not job.stop.is_set():
                number = job.events[-1][0] + 1 if job.events else 0
                job.events.append((number, next(steps)))
            steps.close()
        except StopIteration as end:
            job.result, state = end.value, "done"
        except TunerError as error:
            job_error, state = f"{type(error).__name__}: {error}", "failed"
        except Exception as error:  # a fault of ours must be seen on the page, not only end a thread
            job_error, state = f"{type(error).__name__}: {error}", "failed"
        job.error = job_error
        self._ended(job.operation)
        job.state = state


def run(operation: Operation, arguments: Mapping[str, Any]) -> Json:
    """Does it and waits. Raises as `perform`."""
    steps = perform(operation, arguments)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Json = end.value
            return result


@dataclass(frozen=True)
class Answer:
    """What was remembered: `value` None where nothing is known yet, `when` it was asked, whether it is asked again."""

    value: Any = None
    when: float = 0.0
    asking: bool = False
    error: str = ""


class Remembered:
    """Answers to slow questions: the last one is given at once, a new one is fetched in the background."""

    def __init__(self, most: int = 64) -> None:
        self._answers: dict[Any, Answer] = {}
        self._asking: dict[Any, threading.Event] = {}
        self._stale: set[Any] = set()
        self._lock, self._most = threading.Lock(), most

    def get(self, key: Any, ask: Callable[[], Any], age: float, wait: float = 0.03) -> Answer:
        """The answer to `key`; older than `age` seconds (or forgotten), it is asked for again. For a moment, `wait`, it
        is worth waiting."""
        with self._lock:
            known = self._answers.get(key, Answer())
            fresh = key in self._answers and key not in self._stale and time.time() - known.when < age
            done = self._asking.get(key)
            if done is None and not fresh:
                done = self._asking[key] = threading.Event()
                threading.Thread(target=self._ask, args=(key, ask, done), daemon=True).start()
        if done is not None:
            done.wait(wait if key not in self._stale else wait * 4)
        with self._lock:
            found = self._answers.get(key, Answer())
            return Answer(found.value, found.when, key in self._asking, found.error)

    def forget(self) -> None:
        """Something changed: all is asked again, and shown until then."""
        with self._lock:
            self._stale |= set(self._answers) | set(self._asking)

    def _ask(self, key: Any, ask: Callable[[], Any], done: threading.Event) -> None:
        with self._lock:
            self._stale.discard(key)
        try:
            answer = Answer(ask(), time.time())
        except TunerError as error:
            answer = Answer(None, time.time(), error=f"{type(error).__name__}: {error}")
        except Exception as error:
            answer = Answer(None, time.time(), error=f"{type(error).__name__}: {error}")
        with self._lock:
            self._answers.pop(key, None)
            self._answers[key] = answer
            while len(self._answers) > self._most:
                del self._answers[next(iter(self._answers))]
            del self._asking[key]
        done.set()
