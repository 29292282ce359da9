"""The import: files that people have -> a data set that is read, clean, divided and described.

Not a format (importers) and no rule of its own: it sets the stages in order and makes it all go on after a kill.

    read -> licence -> scrub -> form -> quarantine -> duplicates -> overlap with benchmarks -> side
         -> (train only, when the held-out side is known) overlap with the held-out side

The rule it protects: every row that goes in comes out as examples or as rejections, whatever happens in between, and
memory does not grow with their number.
"""

from __future__ import annotations

import secrets
import shutil
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from llm_tuner.data import card
from llm_tuner.data.cleaning import cleaning
from llm_tuner.data.dataset import MANIFEST, PARTIAL, LineFile, PartialSet, file_hash, manifest, write_manifest
from llm_tuner.data.examples import Example, Item, piped
from llm_tuner.data.importers import Importer, named, read_row, recognise
from llm_tuner.data.overlap import Reference, References, drop_overlaps
from llm_tuner.data.reading import rows
from llm_tuner.data.rejections import Rejection
from llm_tuner.data.split import Withheld
from llm_tuner.store import long_suite, versions
from llm_tuner.store.scrub import Scrubber
from llm_tuner.types import Attempt, DataError, EmptyData, Event, Json, Value, content_hash

EVERY = 1000
"""Rows between two commits: what a kill costs at most."""

_LOOKED_AT = 50


class Intake(Value):
    """How to import. `format` fixes the format of all files; `licence` is that of files whose format has none of its
    own; `salt` makes the same placeholders in two builds (store/scrub.py); `seed` chooses the card's random rows."""

    format: str = ""
    licence: str = ""
    exclude_noncommercial: bool = False
    withheld: Withheld = Withheld()
    salt: str = ""
    seed: int = 0


def take_in(
    files: Sequence[Path], out: Path, config: Intake, references: Mapping[str, Iterable[Reference]] | None = None
) -> Generator[Event, None, dict[str, Any]]:
    """Makes the data set `out` out of these files and returns its data.json. `references`: texts that must not be
    trained on, by the name of what they belong to ("bfcl").

    A set that was made already of the same files in the same way is returned as it is; one that was killed goes on.
    Raises DataError for a file that is in no known format or is a benchmark, EmptyData where nothing is left.
    """
    importers = [_importer(path, config.format) for path in files]
    sources = [{"file": path.name, "format": i.NAME, **_size(path)} for path, i in zip(files, importers, strict=True)]
    against = {name: list(texts) for name, texts in (references or {}).items()}
    shown = config.model_dump(mode="json", exclude={"salt"})
    key = content_hash([shown, bool(config.salt), sources, {k: content_hash(v) for k, v in against.items()}])
    if (out / MANIFEST).is_file():
        if manifest(out).get("key") != key:
            raise DataError(
                f"{out} holds a data set that was made otherwise. Choose another folder, or delete this one."
            )
        shutil.rmtree(out / PARTIAL, ignore_errors=True)  # killed between the last file and the end
        return manifest(out)
    partial = PartialSet(out, key)
    try:
        if partial.fact("phase") != "publish":
            build = _Build(partial, config, against)
            yield from build.read(files, importers)
            yield from build.separate()
            yield from build.finish({"made": "import", "key": key, "config": shown, "files": sources})
        partial.publish()
    finally:
        partial.close()
    return manifest(out)


def _importer(path: Path, fixed: str) -> Importer:
    if fixed:
        return named(fixed)
    first = [row.value for row in islice(rows(path), _LOOKED_AT) if not isinstance(row.value, Rejection)]
    return recognise(first, path.name)


def _size(path: Path) -> dict[str, Json]:
    if path.is_dir():
        return {"sha256": content_hash([[p.name, file_hash(p)] for p in sorted(path.glob("*.jsonl"))])}
    return {"bytes": path.stat().st_size, "sha256": file_hash(path)}


class _Build:
    """One build: the partial set, its open files, its counts."""

    def __init__(self, partial: PartialSet, config: Intake, against: Mapping[str, list[Reference]]) -> None:
        self.partial, self.config, self.against = partial, config, against
        self.counts: Counter[str] = Counter(partial.fact("counts", {}))
        self.rejected: Counter[str] = Counter(partial.fact("rejected", {}))
        # Made once and kept until the set is published: a build that goes on must use the same placeholders.
        salt = config.salt or partial.fact("salt") or secrets.token_hex(32)
        partial.set_fact("salt", salt)
        self.scrubber = Scrubber(salt)
        self.scrubber.found.update(partial.fact("scrubbed", {}))
        self.held_out = References(partial.database, "held_out")

    def commit(self, **facts: Json) -> None:
        self.partial.commit(
            counts=dict(self.counts),
            rejected=dict(self.rejected),
            scrubbed=dict(self.scrubber.found),
            **facts,
        )

    def refuse(self, rejection: Rejection, file: LineFile) -> None:
        file.add(rejection)
        self.rejected[f"{rejection.stage}:{rejection.reason}"] += 1

    # ------------------------------------------------------------------------------------------------ first pass

    def read(self, files: Sequence[Path], importers: Sequence[Importer]) -> Generator[Event, None, None]:
        """Every row through every stage that looks at one example; train examples wait as candidates."""
        if self.partial.fact("phase"):
            return
        held_out, candidates = self.partial.suite("held-out"), self.partial.suite("candidates")
        attempts, waiting = self.partial.lines("attempts.jsonl"), self.partial.lines("candidates-attempts.jsonl")
        rejected = self.partial.lines("rejected.jsonl")
        stages = cleaning(
            self.partial.database,
            self.scrubber,
            self.config.withheld,
            self.against,
            commercial_only=self.config.exclude_noncommercial,
        )
        for seen, item in enumerate(piped(self._rows(files, importers), *stages)):
            if isinstance(item, Rejection):
                self.refuse(item, rejected)
            elif item.task.side == "held-out":
                held_out.add(item.task)
                attempts.add(item.attempt)
                self.partial.count("held-out", item.task.id)
                self.held_out.add_task(item.task)
            else:
                candidates.add(item.task)
                waiting.add(item.attempt)
                self.partial.count("candidates", item.task.id)
            if seen % EVERY == 0:
                yield Event(step="import", message=f"{self.counts['rows']} rows, {self.rejected.total()} rejections")
        candidates.finish(self.partial.ids("candidates"))
        held_out.finish(self.partial.ids("held-out"))
        for suite in (candidates, held_out):
            self.partial.forget(suite.path.name)
        self.commit(phase="separate")
        self.partial.close_files()

    def _rows(self, files: Sequence[Path], importers: Sequence[Importer]) -> Iterator[Item]:
        """The items of every row from the last commit on. A commit falls between two rows, when everything that came of
        the rows before has left the last stage."""
        at_file, at_row = self.partial.fact("position", [0, 0])
        for number in range(at_file, len(files)):
            start = at_row if number == at_file else 0
            for place, row in enumerate(rows(files[number])):
                if place < start:
                    continue
                if place % EVERY == 0:
                    self.commit(position=[number, place])
                self.counts["rows"] += 1
                self.counts[f"rows:{files[number].name}"] += 1
                if isinstance(row.value, Rejection):
                    yield row.value
                    continue
                for item in read_row(importers[number], row.value, row.place, self.config.licence):
                    self.counts[f"examples:{files[number].name}"] += isinstance(item, Example)
                    yield item

    # ----------------------------------------------------------------------------------------------- second pass

    def separate(self) -> Generator[Event, None, None]:
        """Train candidates that overlap with the held-out side fall; the others become the train side."""
        if self.partial.fact("phase") != "separate":
            return
        train = self.partial.suite("train")
        attempts, rejected = self.partial.lines("attempts.jsonl"), self.partial.lines("rejected.jsonl")
        total = self.partial.size_of("candidates")
        for number, item in enumerate(piped(self._candidates(), drop_overlaps(self.held_out, "held-out"))):
            if isinstance(item, Rejection):
                self.refuse(item, rejected)
            else:
                train.add(item.task)
                attempts.add(item.attempt)
                self.partial.count("train", item.task.id)
            if number % EVERY == 0:
                yield Event(step="separate", message="train from held-out", done=number, total=total, unit="example")
        train.finish(self.partial.ids("train"))
        self.partial.forget("train.jsonl")
        self.commit(phase="finish")
        self.partial.close_files()

    def _candidates(self) -> Iterator[Item]:
        done = self.partial.fact("separated", 0)
        with (self.partial.path / "candidates-attempts.jsonl").open("rb") as file:
            tasks = long_suite.read(self.partial.path / "candidates.jsonl")
            for place, (task, line) in enumerate(zip(tasks, file, strict=True)):
                if place < done:
                    continue
                if place % EVERY == 0:
                    self.commit(separated=place)
                yield Example(task, Attempt.model_validate_json(line))

    # ------------------------------------------------------------------------------------------------------ last

    def finish(self, facts: Mapping[str, Json]) -> Generator[Event, None, None]:
        """The card and data.json; from then on the set is whole."""
        for name in ("candidates.jsonl", "candidates-attempts.jsonl"):
            (self.partial.path / name).unlink(missing_ok=True)
        kept = {side: self.partial.size_of(side) for side in ("train", "held-out")}
        if not any(kept.values()):
            told = self.partial.path / "rejected.jsonl"
            shutil.copy(told, self.partial.folder / "rejected.jsonl")
            shutil.rmtree(self.partial.path, ignore_errors=True)
            raise EmptyData(
                f"None of {self.counts['rows']} rows became an example: {_told(self.rejected)}. "
                f"{self.partial.folder / 'rejected.jsonl'} tells why, row by row."
            )
        written = {
            **facts,
            "versions": versions(),
            "counts": {**self.counts, **kept, "rejected": dict(self.rejected)},
            "scrubbed": dict(self.scrubber.found),
            "against": {name: len(texts) for name, texts in self.against.items()},
        }
        found = yield from card.describe(self.partial.path, written, seed=self.config.seed)
        card.write(self.partial.path, found)
        write_manifest(self.partial.path, written)
        self.commit(phase="publish")


def _told(rejected: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in rejected.most_common(6)) or "no row at all"
