"""Duplicates: the same example again, or nearly so.

Not contamination (overlap.py). Two examples are duplicates where their calls are the same (names and arguments; or no
call in both) and their conversations are the same or nearly so. Nearly the same requests with *different* calls are
contrast, the most instructive pairs there are, and stay. The rule it protects: the first one stays, whatever the order
of the others.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator

from llm_tuner.data.examples import Example, Item, Stage, calls_wanted, refused
from llm_tuner.data.similarity import Index, normal
from llm_tuner.types import Task, canonical_json

_RESULT = 1000
"""Characters of a tool's result that count when conversations are held against each other."""


def drop_duplicates(database: sqlite3.Connection, *, catalogues: bool = False) -> Stage:
    """A stage that refuses an example which is like an earlier one. Its index lies in `database`, so that a build goes
    on after a kill. With `catalogues` the tools offered count, too: the same request with other tools is another
    example."""
    index = Index(database, "duplicates")

    def stage(items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            yield _judged(item, index, catalogues) if isinstance(item, Example) else item

    return stage


def _judged(example: Example, index: Index, catalogues: bool) -> Item:
    task = example.task
    text, salt = normal(conversation(task)), calls_key(task, catalogues)
    found = index.find(text, salt)
    if found is None:
        index.add(text, task.tags.get("row") or task.id, salt)
        return example
    if found.how == "exact":
        return refused(example, "duplicate", "same", f"the same request and calls as {found.label}")
    detail = f"the same calls and {found.likeness:.0%} the same request as {found.label}"
    return refused(example, "duplicate", "nearly_same", detail)


def conversation(task: Task) -> str:
    """What the example is asked, in one text: what users said, what was called and what tools answered."""
    parts = []
    for message in task.messages:
        if message.role == "user":
            parts.append(message.text)
        elif message.result is not None:
            parts.append(message.result.content[:_RESULT])
        else:
            parts += [f"{call.name} {canonical_json(call.arguments)}" for call in message.tool_calls]
    return "\n".join(parts)


def calls_key(task: Task, catalogues: bool = False) -> int:
    """Equal for the same calls in any order (and, with `catalogues`, the same tools offered)."""
    calls = sorted(canonical_json(call) for call in calls_wanted(task))
    offered = [tool.fingerprint for tool in task.tools] if catalogues else []
    return int.from_bytes(hashlib.sha256(canonical_json([calls, offered]).encode()).digest()[:8], "big")
