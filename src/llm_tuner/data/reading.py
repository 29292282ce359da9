"""Rows out of files: JSON lines, a JSON array, Parquet, gzipped or not, and this project's suites, data sets, journals.

Not an importer: what a row means is not looked at. The rule it protects: a file of any size is read with one row in
memory, and what is no row (half a line, bytes that are no UTF-8) is counted and passed over, never fatal.
"""

from __future__ import annotations

import gzip
import json
import re
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from llm_tuner.data.importers.shapes import parse_json
from llm_tuner.data.rejections import Rejection
from llm_tuner.serving.exchanges import read
from llm_tuner.serving.journal import journal_files
from llm_tuner.serving.outcomes import outcomes
from llm_tuner.store import long_suite
from llm_tuner.types import Attempt, DataError, MissingExtra, canonical_json

LONGEST = 64 << 20
"""Bytes of a row that is still read."""

_CHUNK = 1 << 20
_NEXT_OBJECT = re.compile(r"\}\s*,\s*(?=\{)")


class Row(NamedTuple):
    """A row and where it stands (file:number), or why there is none."""

    place: str
    value: Mapping[str, Any] | Rejection


def rows(path: Path) -> Iterator[Row]:
    """The rows of a file, or of the folder of a data set or of a journal. Raises DataError where there is no such file,
    MissingExtra for Parquet without pyarrow."""
    if journal_files(path):
        return _recorded(path)
    if path.is_dir():
        return _own_folder(path)
    if not path.is_file():
        raise DataError(f"No file {path}. Give .jsonl, .json, .parquet, one of them gzipped, or a data set's folder.")
    if path.name.endswith(".parquet"):
        return _parquet(path)
    with _opened(path) as file:
        start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"["):
        return _array(path)
    if start.startswith(b'{"suite"'):
        return _own_suite(path, path.parent / "attempts.jsonl")
    return _lines(path)


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.name.endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _refused(place: str, reason: str, detail: str) -> Row:
    return Row(place, Rejection(stage="read", reason=reason, detail=detail, source=place))


def _lines(path: Path) -> Iterator[Row]:
    with _opened(path) as file:
        number = 0
        while line := file.readline(LONGEST):
            number += 1
            place = f"{path.name}:{number}"
            whole = line.endswith(b"\n")
            if not whole and len(line) == LONGEST:
                while (rest := file.readline(_CHUNK)) and not rest.endswith(b"\n"):
                    pass
                yield _refused(place, "too_long", f"a line of more than {LONGEST >> 20} MiB")
            elif line.strip():
                yield _row(place, line, whole)


def _row(place: str, line: bytes, whole: bool) -> Row:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return _refused(place, "invalid_utf8", f"byte {error.start} of the line is no UTF-8")
    try:
        value = parse_json(text)
    except ValueError as error:
        reason = "half_line" if not whole and text.lstrip().startswith("{") else "not_json"
        return _refused(place, reason, f"{error}: {text.strip()[:60]!r}")
    return _checked(place, value, may_lie="\\u" in text)


def _checked(place: str, value: Any, *, may_lie: bool = True) -> Row:
    if not isinstance(value, dict):
        return _refused(place, "not_an_object", f"a JSON {type(value).__name__}, not an object")
    if may_lie:
        try:
            canonical_json(value).encode()
        except UnicodeEncodeError:
            return _refused(place, "invalid_unicode", "half a surrogate pair: no text has it")
        except (ValueError, TypeError, RecursionError) as error:
            return _refused(place, "not_json", str(error)[:120])
    return Row(place, value)


def _array(path: Path) -> Iterator[Row]:
    """The objects of one JSON array, decoded one by one; after a broken one reading goes on at the next."""
    decoder, number = json.JSONDecoder(), 0
    with _opened(path) as file:
        source = _Text(file)
        source.skip_to("[")
        while source.at_object():
            number += 1
            place = f"{path.name}:{number}"
            wanted = _CHUNK
            while True:
                try:
                    value, end = decoder.raw_decode(source.text, source.at)
                except (ValueError, RecursionError) as error:
                    if len(source.text) - source.at < LONGEST and source.more(wanted):
                        wanted *= 2  # a bigger step each time: an object is parsed only a few times
                        continue
                    yield _refused(place, "not_json", str(error)[:120])
                    if not source.skip_object():
                        return
                    break
                source.at = end
                yield _checked(place, value)
                break


class _Text:
    """The text of a file from some place on, as much as was asked for."""

    def __init__(self, file: IO[bytes]) -> None:
        import codecs

        self._file, self._decoder = file, codecs.getincrementaldecoder("utf-8-sig")("replace")
        self.text, self.at = "", 0

    def more(self, size: int = _CHUNK) -> bool:
        data = self._file.read(size)
        self.text = self.text[self.at :] + self._decoder.decode(data, final=not data)
        self.at = 0
        return bool(data)

    def skip_to(self, letter: str) -> None:
        while (found := self.text.find(letter, self.at)) < 0 and self.more():
            pass
        self.at = found + 1

    def at_object(self) -> bool:
        """Whether another value follows, after a comma perhaps."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in ", \t\r\n":
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at] != "]"
            if not self.more():
                return False

    def skip_object(self) -> bool:
        """To the next place that looks like the border between two objects."""
        while (found := _NEXT_OBJECT.search(self.text, self.at + 1)) is None:
            self.at = max(self.at, len(self.text) - 64)
            if not self.more():
                return False
        self.at = found.end()
        return True


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingExtra(
            f"{path.name} is Parquet, and pyarrow is not installed. Run: pip install 'llm-tuner[parquet]'."
        ) from None
    try:
        file = parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no Parquet file: {str(error)[:160]}.") from error
    return _batches(path, file)


def _batches(path: Path, file: Any) -> Iterator[Row]:
    number = 0
    for batch in file.iter_batches(batch_size=256):
        for value in batch.to_pylist():
            number += 1
            yield _checked(f"{path.name}:{number}", unpacked(value, batch.schema))


def unpacked(value: dict[str, Any], schema: Any) -> dict[str, Any]:
    """The row with its JSON columns decoded."""
    return {field.name: _decoded(value[field.name], str(field.type)) for field in schema}


def _decoded(value: Any, kind: str) -> Any:
    if "arrow.json" not in kind or value is None:
        return value
    return [json.loads(item) for item in value] if isinstance(value, list) else json.loads(value)


# ---------------------------------------------------------------------------------------------------------------- own


def _own_folder(folder: Path) -> Iterator[Row]:
    """All suites of a data set or of a collect run, with their attempts."""
    suites = [p for p in sorted(folder.glob("*.jsonl")) if _is_suite(p)]
    if not suites:
        raise DataError(f"{folder} holds no suite (train.jsonl, held-out.jsonl). Give the folder of a data set.")
    with AttemptFile(folder / "attempts.jsonl") as shared:
        for suite in suites:
            beside = folder / f"{suite.stem}-attempts.jsonl"
            yield from _own_suite(suite, beside) if beside.is_file() else _answered(suite, shared)


def _is_suite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9) == b'{"suite":' or (file.seek(0) == 0 and file.read(8) == b'{"suite"')


def _own_suite(path: Path, attempts: Path) -> Iterator[Row]:
    with AttemptFile(attempts) as found:
        yield from _answered(path, found)


def _recorded(path: Path) -> Iterator[Row]:
    """The exchanges of a journal, and at the end what of it could not be read."""
    damage: list[str] = []
    for exchange, outcome in outcomes(read(path, damage)):
        yield Row(f"{path.name}:{exchange.id}", {"exchange": exchange, "outcome": outcome})
    yield from (_refused(path.name, "not_recorded", sentence) for sentence in damage)


def _answered(path: Path, attempts: AttemptFile) -> Iterator[Row]:
    for number, task in enumerate(long_suite.read(path), start=1):
        yield Row(f"{path.name}:{number}", {"task": task, "attempt": attempts.get(task.id)})


class AttemptFile:
    """Attempts by task id out of a JSONL file of any length. The first attempt at a task whose verdict is ok counts;
    without one the first.

    Asked in the order of the file it keeps nothing; else an index of 16 bytes an attempt.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb") if path.is_file() else None
        self._next = 0
        self._ids: NDArray[np.uint64] | None = None
        self._places: NDArray[np.int64] = np.array([], dtype=np.int64)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        """How many attempts the file holds."""
        return sum(1 for _ in self._lines())

    def get(self, task_id: str) -> Attempt | None:
        """The attempt at this task; none where there is none. Raises DataError for a line that is none."""
        if self._file is None:
            return None
        self._file.seek(self._next)
        line = self._file.readline()
        if _task_of(line) == int(task_id, 16):
            attempt = self._read(line, task_id)
            if attempt.verdict is not None and attempt.verdict.ok:
                self._next += len(line)
                return attempt
        return self._looked_up(self._file, task_id)

    def _looked_up(self, file: IO[bytes], task_id: str) -> Attempt | None:
        ids, wanted = self._index(), np.uint64(int(task_id, 16))
        at = int(np.searchsorted(ids, wanted))
        first: Attempt | None = None
        while at < len(ids) and ids[at] == wanted:
            file.seek(int(self._places[at]))
            line = file.readline()
            attempt = self._read(line, task_id)
            if attempt.verdict is not None and attempt.verdict.ok:
                self._next = int(self._places[at]) + len(line)
                return attempt
            first, at = first or attempt, at + 1
        return first

    def _index(self) -> NDArray[np.uint64]:
        if self._ids is None:
            ids, places = array("Q"), array("q")
            for offset, task in self._lines():
                ids.append(task)
                places.append(offset)
            found = np.frombuffer(ids, dtype=np.uint64) if ids else np.array([], dtype=np.uint64)
            order = np.argsort(found, kind="stable")
            self._ids = found[order]
            self._places = np.frombuffer(places, dtype=np.int64)[order] if places else self._places
        return self._ids

    def _lines(self) -> Iterator[tuple[int, int]]:
        """Offset and task of every attempt."""
        if self._file is None:
            return
        self._file.seek(0)
        offset = 0
        while line := self._file.readline():
            task = _task_of(line)
            if task is not None:
                yield offset, task
            offset += len(line)

    def _read(self, line: bytes, task_id: str) -> Attempt:
        try:
            return Attempt.model_validate_json(line)
        except ValueError as error:
            raise DataError(f"{self._path}: the attempt at task {task_id} cannot be read ({error}).") from error


def _task_of(line: bytes) -> int | None:
    found = re.search(rb'"task_id":\s*"([0-9a-f]{16})"', line[:200])
    return int(found.group(1), 16) if found else None
