"""Ask a backend many tasks: in which order, how many at a time, and what becomes of an answer that does not come.

Not a judge and not a record (attempts.py keeps). The rule it protects: every task comes back as one attempt, whatever
the model or the runtime does; an error is that attempt's, and never the end of the others.
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from queue import SimpleQueue
from typing import NamedTuple

from llm_tuner.types import (
    GREEDY,
    Attempt,
    Backend,
    ChatOptions,
    CorruptModel,
    Forking,
    ModelError,
    RuntimeUnavailable,
    SourceUnreachable,
    Task,
    UnknownModel,
)

PATIENCE = 3
"""So many equal errors in a row of a backend that cannot be reached end the measurement."""

_UNREACHABLE = (RuntimeUnavailable, SourceUnreachable, UnknownModel, CorruptModel)
_LONGEST_ERROR = 500
_LOTS = 4


class Question(NamedTuple):
    """A task to be asked, and the number of the suite in which it stands."""

    suite: int
    task: Task


Answered = tuple[Question, Attempt, ModelError | None]


def answered(
    questions: Sequence[Question], backend: Backend, options: ChatOptions = GREEDY, at_a_time: int = 1
) -> Iterator[Answered]:
    """Every question's attempt as it comes, and the ModelError that made it a failed one. Closing the iterator stops:
    what is in flight is given up.

    A backend that forks reads the prompt of one catalogue once, and `at_a_time` requests go on from there together."""
    if at_a_time == 1:
        yield from (_ask(question, backend, options) for lot in _lots(questions, 1) for question in lot)
    elif isinstance(backend, Forking):
        for group in _by_catalogue(questions):
            backends = _forked(group[0].task, backend, min(at_a_time, len(group)))
            yield from _together([[question] for question in group], backends, options)
    else:
        yield from _together(_lots(questions, at_a_time), [backend] * at_a_time, options)


def _forked(task: Task, backend: Backend, count: int) -> Sequence[Backend]:
    if count > 1 and isinstance(backend, Forking):
        try:
            return backend.fork(task.messages, task.tools, count)
        except ModelError:
            pass  # asked alone it fails again, and that is then the attempt's error
    return [backend]


def _together(
    waiting: Iterable[list[Question]], backends: Sequence[Backend], options: ChatOptions
) -> Iterator[Answered]:
    """Every backend asks one lot after the other, all of them at the same time."""
    lots, at_a_time = deque(waiting), len(backends)
    total = sum(map(len, lots))
    done: SimpleQueue[Answered | BaseException] = SimpleQueue()
    stopped = threading.Event()
    ahead = threading.Semaphore(at_a_time)  # answers that nobody has taken yet would be lost with the process

    def work(backend: Backend) -> None:
        try:
            while not stopped.is_set():
                try:
                    lot = lots.popleft()
                except IndexError:  # another worker took the last one
                    return
                for question in lot:
                    ahead.acquire()
                    if stopped.is_set():
                        return
                    done.put(_ask(question, backend, options))
        except BaseException as error:  # ours, not the model's: raised where the answers are taken
            done.put(error)

    for backend in backends:
        threading.Thread(target=work, args=(backend,), name="llm-tuner-asking", daemon=True).start()
    try:
        for _ in range(total):
            one = done.get()
            if isinstance(one, BaseException):
                raise one
            yield one
            ahead.release()
    finally:
        stopped.set()
        ahead.release(at_a_time)


def _lots(questions: Sequence[Question], at_a_time: int) -> deque[list[Question]]:
    """The questions in an order in which each shares as much of its prompt as possible with the one before, cut into
    lots that one connection asks one after the other. A lot ends where the catalogue changes, unless one catalogue has
    more than its share of all questions; there are a few lots for each connection, so that none ends long after the
    others."""
    share, most = (max(1, math.ceil(len(questions) / (of * at_a_time))) for of in (_LOTS, 1))
    lots: list[list[Question]] = [[]]
    for group in _by_catalogue(questions):
        if len(lots[-1]) >= share:
            lots.append([])
        for question in group:
            if len(lots[-1]) >= most:
                lots.append([])
            lots[-1].append(question)
    return deque(lots)


def _by_catalogue(questions: Iterable[Question]) -> list[list[Question]]:
    groups: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        groups[_beginning(question.task)].append(question)
    return [group for _, group in sorted(groups.items())]


def _beginning(task: Task) -> str:
    """What chat templates put before the conversation, so that tasks in the order of it share prompts: what the system
    says and the tools, each beginning with its name."""
    first = task.messages[0] if task.messages else None
    system = first.text if first is not None and first.role == "system" else ""
    return "\n".join((system, *(tool.name + tool.fingerprint for tool in task.tools)))


def _ask(question: Question, backend: Backend, options: ChatOptions) -> Answered:
    task, start = question.task, time.perf_counter()
    try:
        reply = backend.chat(task.messages, task.tools, options)
        reply.message.model_dump_json()  # what cannot be kept is this answer's fault, and not the end of the rest
    except ModelError as error:
        return question, Attempt(task_id=task.id, backend=backend.name, error=_said(error)), error
    except (ValueError, RecursionError) as error:
        told = f"What came back is no message: {type(error).__name__}: {_said(error)}"[:_LONGEST_ERROR]
        return question, Attempt(task_id=task.id, backend=backend.name, error=told), None
    timing = reply.timing
    if timing.total_ms == 0:
        timing = timing.model_copy(update={"total_ms": (time.perf_counter() - start) * 1000})
    made = Attempt(task_id=task.id, backend=backend.name, messages=(reply.message,), usage=reply.usage, timing=timing)
    return question, made, None


def _said(error: Exception) -> str:
    """An error's words, which may be a server's: half characters, which no record can hold, become question marks."""
    return (str(error) or type(error).__name__).encode("utf-8", "replace").decode()


def stop_if_unreachable(errors: Sequence[ModelError]) -> None:
    """Raises the last error where a backend that cannot be reached gave it PATIENCE times in a row."""
    last = errors[-PATIENCE:]
    if len(last) == PATIENCE and isinstance(last[0], _UNREACHABLE) and len({(type(e), str(e)) for e in last}) == 1:
        raise last[-1]
