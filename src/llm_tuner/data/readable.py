"""An example as a person reads it: turns, tools offered, what is expected, the verdict. Text only, nothing is
decided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from llm_tuner.data.examples import Example, calls_wanted
from llm_tuner.data.masks import differs_at
from llm_tuner.types import Json, Message, Row, Task, canonical_json

_LONGEST = 1200
_TOOLS = 12
_SHOWN = 120


class Turn(NamedTuple):
    """Who speaks, and what."""

    role: str
    text: str


def turns(example: Example) -> list[Turn]:
    """The conversation before the answer."""
    return [Turn(message.role, text_of(message)) for message in example.task.messages]


def text_of(message: Message) -> str:
    """A message's text, calls and result, cut where it is very long."""
    parts = [message.text] if message.text else []
    parts += [call_text(call.name, call.arguments) for call in message.tool_calls]
    if message.result is not None:
        parts.append(("error: " if message.result.is_error else "") + message.result.content)
    return short("\n".join(parts))


def call_text(name: str, arguments: dict[str, Json]) -> str:
    """A call on one line."""
    return f"{name}({', '.join(f'{key}={canonical_json(value)}' for key, value in arguments.items())})"


def offered(task: Task) -> str:
    """The names of the tools offered, the first dozen by name."""
    names = [tool.name for tool in task.tools]
    rest = len(names) - _TOOLS
    return ", ".join(names[:_TOOLS]) + (f" and {rest} more" if rest > 0 else "")


def expected(task: Task) -> str:
    """What a right answer is."""
    if task.expect.kind == "any":
        return "any call"
    calls = [call_text(name, arguments) for name, arguments in calls_wanted(task)]
    return short("\n".join(calls)) if calls else "no call"


def verdict(example: Example) -> str:
    """The judge's word, and what the servers said where they were asked."""
    attempt = example.attempt
    if attempt.verdict is None:
        return "not judged"
    word = "ok" if attempt.verdict.ok else f"{attempt.verdict.reason}: {attempt.verdict.detail}"
    if not attempt.results:
        return word
    failed = sum(result.is_error for result in attempt.results)
    return f"{word}, results {len(attempt.results)}{f' (errors {failed})' if failed else ''}"


def lines(example: Example) -> Iterator[str]:
    """The whole example for a terminal."""
    task = example.task
    where = [task.id, task.side, task.category or "-", task.language or "-", task.source or "-", task.licence or "-"]
    yield "  ".join(where)
    for turn in turns(example):
        yield f"{turn.role:>9}  " + turn.text.replace("\n", "\n" + " " * 11)
    yield f"{'offered':>9}  {len(task.tools)}: {offered(task)}"
    yield f"{'expected':>9}  " + expected(task).replace("\n", "\n" + " " * 11)
    if not example.answer.tool_calls and example.answer.text:
        yield f"{'reply':>9}  " + short(example.answer.text).replace("\n", "\n" + " " * 11)
    yield f"{'verdict':>9}  {verdict(example)}"


def masked(rows: Sequence[Row], mark: tuple[str, str]) -> Iterator[str]:
    """Rows as their model reads them, with a mark before and behind what is trained. Of what a row shares with the one
    before only the end is shown."""
    before = ""
    for row in rows:
        shared = differs_at(before, row.prompt)
        shared = max(0, row.prompt.rfind("\n", 0, max(0, shared - _SHOWN)) + 1)
        yield f"turn {row.turn + 1}: {len(row.prompt_ids)} tokens read, {len(row.completion_ids)} trained"
        yield (
            (f"(… {shared} characters as before …)\n" if shared else "")
            + row.prompt[shared:]
            + mark[0]
            + (row.completion + mark[1])
        )
        before = row.prompt + row.completion


def short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"
