"""What a set that is made here refuses of its own examples: doubles, and what it will be tested on.

Not the checks of one example by itself (verify.py). The same stages clean what is imported (duplicates.py, overlap.py);
here an example is refused at once, so that another one can be made in its place. The rule it protects: a finished set
passes `llm-tuner data check`. Held-out examples come first: those of the train side are held against all of them.
"""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Iterable, Mapping

from llm_tuner.data.duplicates import drop_duplicates
from llm_tuner.data.examples import Example, piped
from llm_tuner.data.overlap import Reference, References, drop_overlaps
from llm_tuner.data.rejections import Rejection


class Sieve:
    """`against`: by name, the texts that must not be trained on or stand in the set at all (a benchmark's)."""

    def __init__(self, against: Mapping[str, Iterable[Reference]] | None = None) -> None:
        database = sqlite3.connect(":memory:")
        weakref.finalize(self, database.close)
        self._held_out = References()
        self._stages = []
        self.sizes: dict[str, int] = {}
        """How many texts of each benchmark the examples are held against."""
        for name, texts in (against or {}).items():
            known, self.sizes[name] = References(), 0
            for text in texts:
                known.add(text)
                self.sizes[name] += 1
            self._stages.append(drop_overlaps(known, name))
        self._apart = drop_overlaps(self._held_out, "held-out")
        self._duplicate = drop_duplicates(database)

    def refusal(self, example: Example) -> Rejection | None:
        """Why this example may not join those that were let through before; None lets it through."""
        train = example.task.side == "train"
        stages = [*self._stages, *([self._apart] if train else []), self._duplicate]
        (found,) = piped([example], *stages)
        if isinstance(found, Rejection):
            return found
        if not train:
            self._held_out.add_task(example.task)
        return None
