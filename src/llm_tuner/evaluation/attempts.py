"""The attempts of one measurement: in a file as they come, or in memory where there is none.

Not a record of its own (types.Attempt is) and not a judge. The rule it protects: with a file, what is held in memory
of an attempt is where it stands in the file, so that a measurement may be as long as it likes; and what a stopped
measurement had finished is not asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from llm_tuner.store import disk_full_named, scan_jsonl, write_atomic
from llm_tuner.types import Attempt, DataError, Json, SetupError, Verdict, canonical_json

ATTEMPTS = "attempts.jsonl"
_NOTE = "measured.json"


class Attempts:
    """Attempts by task id; the last one of a task counts. Opened on a folder, it begins with those that an earlier,
    stopped measurement of the same model with the same options left there: failed ones are not taken over, they are to
    be asked again.

    Raises DataError where the folder holds another measurement's attempts, or a line that cannot be read.
    """

    def __init__(self, out: Path | None = None, identity: Mapping[str, Json] | None = None) -> None:
        self._path = out / ATTEMPTS if out is not None else None
        self._places: dict[str, int] = {}
        self._held: dict[str, Attempt] = {}
        if out is not None:
            self._resume(out, dict(identity or {}))

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._places or task_id in self._held

    def __getitem__(self, task_id: str) -> Attempt:
        if self._path is None:
            return self._held[task_id]
        with self._path.open("rb") as file:
            return _at(file.seek, file.readline, self._places[task_id])

    def add(self, attempt: Attempt) -> None:
        """Keep one more. Raises ValueError for one that cannot be written (half a character), DiskFull."""
        if self._path is None:
            self._held[attempt.task_id] = attempt
            return
        line = attempt.model_dump_json(exclude_defaults=True).encode() + b"\n"
        with disk_full_named(self._path), self._path.open("ab") as file:
            place = file.tell()
            file.write(line)
        self._places[attempt.task_id] = place

    def judged(self, verdicts: Mapping[str, Verdict]) -> Judged:
        """These tasks' attempts, in this order, with these verdicts."""
        return Judged(self, verdicts)

    def several(self, task_ids: Sequence[str]) -> Iterator[Attempt]:
        """Attempts in the order of these ids; the file is opened once."""
        if self._path is None:
            yield from (self._held[task_id] for task_id in task_ids)
            return
        if not task_ids:
            return
        with self._path.open("rb") as file:
            for task_id in task_ids:
                yield _at(file.seek, file.readline, self._places[task_id])

    def _resume(self, out: Path, identity: dict[str, Json]) -> None:
        assert self._path is not None
        found = False
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SetupError(f"Cannot make the folder {out}: {error.strerror}. Choose another --out.") from error
        for place, attempt in scan_jsonl(self._path, Attempt):
            found = True
            if not attempt.error:
                self._places[attempt.task_id] = place
        note = out / _NOTE
        if not found:
            write_atomic(note, canonical_json(identity))
        elif not note.is_file() or note.read_text(encoding="utf-8") != canonical_json(identity):
            raise DataError(f"{out} holds the attempts of another model or other options. Choose another folder.")


class Judged:
    """Attempts with their verdicts, in a fixed order; may be gone through several times."""

    def __init__(self, attempts: Attempts, verdicts: Mapping[str, Verdict]) -> None:
        self._attempts, self._verdicts = attempts, verdicts

    def __len__(self) -> int:
        return len(self._verdicts)

    def __iter__(self) -> Iterator[Attempt]:
        for attempt in self._attempts.several(list(self._verdicts)):
            yield attempt.model_copy(update={"verdict": self._verdicts[attempt.task_id]})


def _at(seek: Callable[[int], int], readline: Callable[[], bytes], place: int) -> Attempt:
    seek(place)
    return Attempt.model_validate_json(readline())
