"""Whether a data set is what it says: valid, free of doubles, apart from what it will be tested on, whole.

Not a build: nothing is mended. Everything is looked at anew, from the files alone. The rule it protects: a set that
passes here may be trained on; one that does not says what is wrong, how often, and where.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from llm_tuner.data.dataset import SIDES, file_hash, hashes_of, manifest
from llm_tuner.data.duplicates import drop_duplicates
from llm_tuner.data.examples import Example
from llm_tuner.data.overlap import Reference, References, said, telling
from llm_tuner.data.reading import AttemptFile
from llm_tuner.data.rejections import Rejection
from llm_tuner.data.rows import BENCHMARKS
from llm_tuner.data.scrub import findings
from llm_tuner.data.split import Withheld, called
from llm_tuner.data.validity import faults
from llm_tuner.store import long_suite
from llm_tuner.types import Event, Task, Value

_SHOWN = 5
_EVERY = 2000


class Checked(Value):
    """What was looked at and found. `problems[kind]` is how often, `shown[kind]` the first few in words; `against`
    counts the texts of each benchmark."""

    ok: bool
    tasks: dict[str, int]
    valid: int
    duplicates: int
    overlaps: dict[str, int]
    problems: dict[str, int]
    shown: dict[str, list[str]]
    against: dict[str, int]


def check(folder: Path, references: Mapping[str, Iterable[Reference]] | None = None) -> Generator[Event, None, Checked]:
    """Looks through the whole set. Raises DataError where the folder is no data set or a file cannot be read."""
    found = manifest(folder)
    with tempfile.TemporaryDirectory(prefix="llm-tuner-check-") as scratch:
        database = sqlite3.connect(Path(scratch) / "state.sqlite", isolation_level=None)
        try:
            database.execute("PRAGMA synchronous=OFF")
            database.execute("BEGIN")
            with AttemptFile(folder / "attempts.jsonl") as attempts:
                against = {name: list(texts) for name, texts in (references or {}).items()}
                look = _Look(folder, found, attempts, database, against)
                look.files()
                for side in ("held-out", "train"):  # first what the train side must not overlap with
                    yield from look.side(side)
                look.leftovers()
                return look.result()
        finally:
            database.close()


class _Look:
    def __init__(
        self,
        folder: Path,
        found: Mapping[str, Any],
        attempts: AttemptFile,
        database: sqlite3.Connection,
        against: dict[str, list[Reference]],
    ) -> None:
        self.folder, self.found = folder, found
        self.problems: Counter[str] = Counter()
        self.shown: dict[str, list[str]] = {}
        self.tasks: Counter[str] = Counter()
        self.valid = 0
        self.attempts = attempts
        config = found.get("config") or {}
        self.withheld = Withheld.model_validate(config["withheld"]) if "withheld" in config else None
        self.duplicate = drop_duplicates(database, catalogues=bool(config.get("catalogues")))
        self.held_out = References(database, "held_out")
        self.against = {name: References() for name in against}
        self.sizes = {name: len(texts) for name, texts in against.items()}
        for name, texts in against.items():
            for text in texts:
                self.against[name].add(text)

    def problem(self, kind: str, sentence: str) -> None:
        self.problems[kind] += 1
        if self.problems[kind] <= _SHOWN:
            self.shown.setdefault(kind, []).append(sentence)

    def files(self) -> None:
        for name, wanted in hashes_of(self.found).items():
            path = self.folder / name
            if not path.is_file():
                self.problem("missing_file", f"{name} is not there")
            elif file_hash(path) != wanted:
                self.problem("changed_file", f"{name} was changed after the set was made")
        for name in ("train.jsonl", "attempts.jsonl", "rejected.jsonl"):
            if not (self.folder / name).is_file():
                self.problem("missing_file", f"{name} is not there")

    def side(self, side: str) -> Generator[Event, None, None]:
        path = self.folder / f"{side}.jsonl"
        if not path.is_file():
            return
        for number, task in enumerate(long_suite.read(path), start=1):
            self.tasks[side] += 1
            self._task(task, side)
            if number % _EVERY == 0:
                yield Event(step="check", message=f"{side}: {number} tasks, {self.problems.total()} problems")

    def _task(self, task: Task, side: str) -> None:
        attempt = self.attempts.get(task.id)
        where = f"{side} {task.id}"
        if attempt is None:
            self.problem("no_attempt", f"{where} has no attempt")
            return
        example = Example(task, attempt)
        wrong = list(faults(example))
        self.valid += not wrong
        for reason, detail in wrong:
            self.problem(f"form_{reason}", f"{where}: {detail}")
        for item in self.duplicate([example]):
            if isinstance(item, Rejection):
                self.problem("duplicate", f"{where} has {item.detail}")
        for kind, count in findings(example).items():
            self.problem("not_scrubbed", f"{where}: {count} x {kind}")
        if task.source in BENCHMARKS:
            self.problem("benchmark", f"{where} comes from {task.source}")
        if task.side != side:
            self.problem("wrong_side", f"{where} is on the side {task.side}")
        self._apart(task, side, where)

    def _apart(self, task: Task, side: str, where: str) -> None:
        for name, references in self.against.items():
            self._overlap(task, references, name, where)
        if side == "held-out":
            self.held_out.add_task(task)
            return
        self._overlap(task, self.held_out, "held-out", where)
        if self.withheld is not None:
            seen = sorted(
                {tool.name for tool in task.tools if self.withheld.holds(tool)} | (called(task) & self._named())
            )
            if seen:
                self.problem("withheld_tool", f"{where} offers or calls {', '.join(seen)}, which training must not see")

    def _named(self) -> set[str]:
        return set(self.withheld.names) if self.withheld is not None else set()

    def _overlap(self, task: Task, references: References, name: str, where: str) -> None:
        for text in telling(task):
            if found := references.find(text):
                self.problem(f"overlap_{name}", f"{where} has {said(found)} {found.label}")
                return

    def leftovers(self) -> None:
        """Attempts without a task."""
        wanted = self.tasks.total() - self.problems["no_attempt"]
        if len(self.attempts) != wanted:
            self.problem("stray_attempts", f"{len(self.attempts)} attempts for {wanted} tasks")

    def result(self) -> Checked:
        prefix = "overlap_"
        overlaps = {name: self.problems[prefix + name] for name in (*self.against, "held-out")}
        return Checked(
            ok=not self.problems.total(),
            tasks={side: self.tasks[side] for side in SIDES},
            valid=self.valid,
            duplicates=self.problems["duplicate"],
            overlaps=overlaps,
            problems={kind: count for kind, count in self.problems.most_common() if count},
            shown=self.shown,
            against=self.sizes,
        )
