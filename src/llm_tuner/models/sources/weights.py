"""Is this file a whole GGUF, and what does it hash to.

Not a reader: tensors and metadata are for the `gguf` package. The rule it protects: a truncated or foreign file is
named as such here, before a runtime crashes on it. The check reads the header only, so it costs milliseconds.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Generator
from math import prod
from pathlib import Path

from llm_tuner.types import CorruptModel, Event

CHUNK = 1 << 20
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_FIXED = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of each GGUF value type of fixed width (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""


def sha256_of(path: Path, label: str = "") -> Generator[Event, None, str]:
    """The SHA-256 of a file in hex, with an event a chunk (bytes)."""
    total = path.stat().st_size
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK * 8):
            digest.update(chunk)
            done += len(chunk)
            yield Event(step="verify", message=label or path.name, done=done, total=total, unit="B")
    return digest.hexdigest()


def check_gguf(path: Path) -> None:
    """Raises CorruptModel unless `path` is a GGUF whose tensors all lie inside the file."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            end = _Header(data).end()
            size = len(data)
    except _Malformed as error:
        raise _corrupt(path, str(error)) from None
    except ValueError:  # mmap refuses an empty file
        raise _corrupt(path, "the file is empty") from None
    except OSError as error:
        raise _corrupt(path, f"it cannot be read: {error.strerror}") from error
    if end > size:
        raise _corrupt(path, f"its tensors need {end} bytes and the file has {size}: it was cut short")


class _Malformed(Exception):
    pass


def _corrupt(path: Path, why: str) -> CorruptModel:
    return CorruptModel(f"{path} is not a whole GGUF model: {why}. Delete it and fetch it again.")


class _Header:
    """A cursor over the header of a GGUF; it skips the metadata and reads the tensor table."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def end(self) -> int:
        """The byte after the last tensor."""
        if self.data[:4] != b"GGUF":
            raise _Malformed(f"it starts with {self.data[:4]!r}, not with b'GGUF'")
        self.at = 4
        version = self._number("<I")
        if version not in _VERSIONS:
            raise _Malformed(f"GGUF version {version} is not one of {_VERSIONS}")
        tensors, pairs = self._number("<Q"), self._number("<Q")
        if not tensors:
            raise _Malformed("it holds no tensors")
        alignment = 32
        for _ in range(pairs):
            key, kind = self._text(), self._number("<I")
            if key == b"general.alignment" and kind == 4:
                alignment = self._number("<I") or 32
            else:
                self._skip(kind)
        last = max(self._tensor() for _ in range(tensors))
        start = -(-self.at // alignment) * alignment
        return start + last

    def _tensor(self) -> int:
        """Reads one row of the tensor table: where its data ends, counted from the start of the data."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        self._text()
        shape = [self._number("<Q") for _ in range(self._number("<I"))]
        kind, offset = self._number("<I"), self._number("<Q")
        try:
            block, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            return offset  # a type newer than the gguf package: only its start can be checked
        return int(offset + prod(shape) // block * width)

    def _skip(self, kind: int) -> None:
        if kind in _FIXED:
            self._move(_FIXED[kind])
        elif kind == _STRING:
            self._text()
        elif kind == _ARRAY:
            inner, count = self._number("<I"), self._number("<Q")
            if inner in _FIXED:
                self._move(_FIXED[inner] * count)
            else:
                for _ in range(count):
                    self._skip(inner)
        else:
            raise _Malformed(f"metadata of the unknown type {kind}")

    def _text(self) -> bytes:
        length = self._number("<Q")
        start = self.at
        self._move(length)
        return self.data[start : self.at]

    def _number(self, form: str) -> int:
        start = self.at
        self._move(struct.calcsize(form))
        value: int = struct.unpack_from(form, self.data, start)[0]
        return value

    def _move(self, count: int) -> None:
        self.at += count
        if self.at > len(self.data):
            raise _Malformed("the file ends inside its header")
