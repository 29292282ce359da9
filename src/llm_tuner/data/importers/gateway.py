"""What a gateway recorded: each exchange with what is known of its answer (reading.py joins the journal with outcomes).

    {"exchange": <Exchange>, "outcome": <Outcome>}

Only the exchange's own answer is learned: the turns before it are exchanges of their own. An answer of which it is not
known that it was right becomes a rejection.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from llm_tuner.data.examples import REFERENCE, Example
from llm_tuner.data.importers.shapes import Row, Unreadable, example, renumbered
from llm_tuner.models import dialects
from llm_tuner.scoring import score
from llm_tuner.serving.exchanges import Exchange
from llm_tuner.serving.outcomes import Outcome
from llm_tuner.types import Attempt, Message, Task

NAME = "gateway"
SOURCE = "gateway"
LICENCE = "own"
"""Unless the import says otherwise."""

_MENDED = frozenset({"lifted", "renamed", "coerced", "dropped"})
"""The repairs after which an answer is not what the model wrote."""


def recognises(row: Row) -> bool:
    return isinstance(row.get("exchange"), Exchange) and isinstance(row.get("outcome"), Outcome)


def examples(row: Row, source: str, licence: str) -> Iterator[Example]:
    yield _right(row["exchange"], row["outcome"], source, licence or LICENCE)


def to_attempts(
    known: Iterable[tuple[Exchange, Outcome]], *, licence: str = LICENCE
) -> tuple[list[Task], list[Attempt]]:
    """The tasks that recorded exchanges become, each once, and the judged attempts at them: the right answer, and what
    models wrote instead (the text that a call was lifted from, a refused call, an answer that was corrected). The input
    of `pairs.build_pairs` and `rows.build_rows`, which refuse the held-out side (`Task.side`). Exchanges whose right
    answer is not known are left out."""
    tasks: dict[str, Task] = {}
    attempts: dict[tuple[str, str, str], Attempt] = {}
    for exchange, outcome in known:
        try:
            task, right = _right(exchange, outcome, SOURCE, licence)
        except Unreadable:
            continue
        tasks.setdefault(task.id, task)
        for attempt in (right, *_wrong(exchange, task)):
            said = "".join(message.model_dump_json() for message in attempt.messages)
            attempts.setdefault((task.id, attempt.backend, said), attempt)
    return list(tasks.values()), list(attempts.values())


def _right(exchange: Exchange, outcome: Outcome, source: str, licence: str) -> Example:
    """The task with its right answer. Raises Unreadable where none is known."""
    answer = _right_answer(exchange, outcome)
    if not exchange.tools:
        raise Unreadable("no_tools", "no tool was offered: nothing here is about tools")
    if not any(message.role == "user" for message in exchange.messages):
        raise Unreadable("no_request", "nobody asked for anything")
    *before, said = _plain((*exchange.messages, answer))
    results = tuple(
        result.model_copy(update={"call_id": call.id})
        for call, result in zip(said.tool_calls, outcome.results, strict=False)
        if answer is exchange.answer
    )
    made = example(tuple(before), exchange.tools, said, results=results, source=source, licence=licence)
    tags = {"exchange": exchange.id} | ({} if exchange.rendering == "full" else {"rendering": exchange.rendering})
    if answer is not exchange.answer or _mended(exchange):
        return Example(made.task.model_copy(update={"tags": tags}), made.attempt)
    own = {"backend": exchange.route.backend or REFERENCE, "usage": exchange.usage, "timing": exchange.timing}
    return Example(made.task.model_copy(update={"tags": tags}), made.attempt.model_copy(update=own))


def _right_answer(exchange: Exchange, outcome: Outcome) -> Message:
    if outcome.state == "right" and exchange.answer is not None:
        return exchange.answer
    if exchange.feedback is not None and exchange.feedback.calls:
        return Message(role="assistant", tool_calls=exchange.feedback.calls)
    raise Unreadable(f"outcome_{outcome.state}", outcome.why)


def _mended(exchange: Exchange) -> bool:
    return any(repair.kind in _MENDED for repair in exchange.repairs)


def _wrong(exchange: Exchange, task: Task) -> Iterator[Attempt]:
    """What models wrote and the judge calls wrong for this task."""
    written = [(one.backend, one.message) for one in exchange.tries]
    if exchange.answer is not None and not _mended(exchange):
        written.append((exchange.route.backend, exchange.answer))
    for backend, message in written:
        said = dialects.read(message, task.tools)
        attempt = Attempt(task_id=task.id, backend=backend or exchange.model or "?", messages=(said,))
        verdict = score(task, attempt)
        if not verdict.ok:
            yield attempt.model_copy(update={"verdict": verdict})


def _plain(messages: Sequence[Message]) -> list[Message]:
    """Without what differs from one recording of a conversation to the next: ids, thinking, a call's own letters."""
    *before, answer = messages
    plain = [message.model_copy(update={"thinking": ""}) for message in before]
    return renumbered([message.model_copy(update=_bare(message)) for message in (*plain, answer)])


def _bare(message: Message) -> dict[str, object]:
    calls = tuple(call.model_copy(update={"raw": ""}) for call in message.tool_calls)
    return {"tool_calls": calls, "text_calls": ()}
