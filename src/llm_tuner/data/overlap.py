"""Contamination: a request to be trained on that stands, nearly or in a long part, in what will be measured.

Not a duplicate within the set (duplicates.py). The texts to keep out are given as pairs (label, text): of a benchmark,
or of the held-out side. A request overlaps where it is the same, nearly the same, or shares 13 words in a row. The rule
it protects: what is measured was never learned; every removal says what it matched.
"""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from llm_tuner.data.examples import Example, Item, Stage, refused, user_texts
from llm_tuner.data.similarity import Found, Grams, Index, normal, tokens
from llm_tuner.types import Task

SHORTEST = 5
"""Words of a follow-up turn that says enough to be recognised; "yes, please" is nobody's."""


class Reference(NamedTuple):
    """A text that must not be trained on, and what it is (a benchmark's id)."""

    label: str
    text: str


class References:
    """Texts that must not be trained on, in tables of a SQLite database (by default one in memory)."""

    def __init__(self, database: sqlite3.Connection | None = None, name: str = "references") -> None:
        if database is None:
            database = sqlite3.connect(":memory:")
            weakref.finalize(self, database.close)
        self._index, self._grams = Index(database, name), Grams(database, name)

    def add(self, reference: Reference) -> None:
        text = normal(reference.text)
        if text:
            self._index.add(text, reference.label)
            self._grams.add(text, reference.label)

    def add_task(self, task: Task) -> None:
        """The task's requests, under its id."""
        for text in telling(task):
            self.add(Reference(task.id, text))

    def find(self, text: str) -> Found | None:
        """What this text overlaps with."""
        text = normal(text)
        return (self._index.find(text) or self._grams.find(text)) if text else None


def telling(task: Task) -> list[str]:
    """The user's texts that can be recognised: the first one, and others that are long enough."""
    texts = user_texts(task)
    return texts[:1] + [text for text in texts[1:] if len(tokens(normal(text))) >= SHORTEST]


def drop_overlaps(references: References, reason: str) -> Stage:
    """A stage that refuses every example whose request overlaps with the references."""

    def stage(items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            yield _judged(item, references, reason) if isinstance(item, Example) else item

    return stage


def _judged(example: Example, references: References, reason: str) -> Item:
    for text in telling(example.task):
        if found := references.find(text):
            return refused(example, "overlap", reason, f"{said(found)} {found.label}")
    return example


def said(found: Found) -> str:
    """How two texts overlap, in words."""
    if found.how == "exact":
        return "the same request as"
    if found.how == "near":
        return f"{found.likeness:.0%} the same request as"
    return f"13 words in a row, and {found.likeness:.0%} of it in all, as in"
