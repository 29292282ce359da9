"""How alike two texts are: hashed character n-grams, MinHash signatures, word 13-grams, and an index over them.

Not a rule of what is a duplicate (duplicates.py) or a leak (overlap.py). Everything is a function of the text alone: no
seed of a process, no order of a set. The rule it protects: the index is a table on disk, so that memory does not grow
with the rows, and a text costs hashes only.

MinHash after Broder (1997), with 60 hash functions in 10 bands of 6 rows: a pair of likeness (Jaccard) 0.8 is found
with 95 %, of 0.9 with 99.95 %, and every pair found is verified on the whole signature.
"""

from __future__ import annotations

import re
import sqlite3
import unicodedata
import zlib
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

NEAR = 0.8
"""From this likeness on two texts are nearly the same."""

WORDS = 13
"""Length of a word n-gram that two texts may not share (the usual measure of contamination since GPT-3)."""

_BANDS, _ROWS = 10, 6
_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af"
_IS_CJK = re.compile(f"[{_CJK}]")
_TOKEN = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")
_GAP = re.compile(r"[\W_]+")
_LONGEST = 20_000
"""Characters of a text that are looked at."""

_PRIME = np.uint64(0x100000001B3)


def normal(text: str) -> str:
    """The text without what does not count: width and case of letters, punctuation, amounts of white space."""
    return _GAP.sub(" ", unicodedata.normalize("NFKC", text[:_LONGEST]).casefold()).strip()


def _mixed(values: Hashes) -> Hashes:
    """Bits spread over the whole word (the finalizer of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _rolled(values: Hashes, n: int) -> Hashes:
    """One hash for every n values that follow each other; one of all where there are fewer."""
    n = max(1, min(n, len(values)))
    out = np.zeros(len(values) - n + 1, dtype=np.uint64)
    for place in range(n):
        out = out * _PRIME + values[place : len(values) - n + 1 + place] + np.uint64(1)
    return _mixed(out)


def shingles(text: str) -> Hashes:
    """The distinct hashes of a normal text's character n-grams: 5 letters, or 3 where a third is Chinese, Japanese or
    Korean, whose characters say more each. Never empty."""
    letters = np.frombuffer((text or " ").encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    dense = len(_IS_CJK.findall(text)) * 3 >= len(text) > 0
    return np.unique(_rolled(letters, 3 if dense else 5))


_STEPS = _mixed(np.arange(1, 2 * _BANDS * _ROWS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
_FACTORS = (_STEPS[: _BANDS * _ROWS] | np.uint64(1)).reshape(-1, 1)
_ADDENDS = _STEPS[_BANDS * _ROWS :].reshape(-1, 1)


@lru_cache(8)
def signature(text: str) -> NDArray[np.uint32]:
    """The MinHash of a normal text: 60 numbers of 32 bits, not to be changed."""
    least: Hashes = ((shingles(text)[None, :] * _FACTORS + _ADDENDS) >> np.uint64(32)).min(axis=1)
    return least.astype(np.uint32)


def likeness(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> float:
    """The estimated Jaccard likeness of two texts, 0..1."""
    return float((a == b).mean())


_WEIGHTS = _mixed(np.arange(7, 7 + _ROWS, dtype=np.uint64)) | np.uint64(1)
_PLACES = _mixed(np.arange(101, 101 + _BANDS, dtype=np.uint64))


def _keys(marks: NDArray[np.uint32], salt: int) -> list[int]:
    """One number for each band, in SQLite's range; equal bands of equal salt have equal numbers."""
    bands = marks.astype(np.uint64).reshape(_BANDS, _ROWS)
    summed = (bands * _WEIGHTS).sum(axis=1, dtype=np.uint64) + _PLACES
    found: list[int] = _mixed(summed ^ np.uint64(salt & (2**64 - 1))).view(np.int64).tolist()
    return found


@lru_cache(65536)
def _word(token: str) -> int:
    return zlib.crc32(token.encode()) | (1 << 40 if _IS_CJK.match(token) else 0)


def tokens(text: str) -> Hashes:
    """Hashes of the words of a normal text; a CJK character is a word (and has bit 40 set)."""
    return np.array([_word(token) for token in _TOKEN.findall(text)], dtype=np.uint64)


def signed(value: int) -> int:
    """A 64-bit number in SQLite's range."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


class Found(NamedTuple):
    """What a text is like: `how` ("exact", "near"), the other's label, the likeness 0..1."""

    how: str
    label: str
    likeness: float


class Index:
    """Texts with a label, found again by a text that is nearly the same. Tables `{name}_...` of a SQLite database."""

    def __init__(self, database: sqlite3.Connection, name: str) -> None:
        self._database, self._name = database, name
        database.execute(f"CREATE TABLE IF NOT EXISTS {name}_texts (place INTEGER PRIMARY KEY, marks BLOB, label TEXT)")
        for table in ("exact", "bands"):
            database.execute(
                f"CREATE TABLE IF NOT EXISTS {name}_{table} (key INTEGER, place INTEGER, PRIMARY KEY (key, place)) "
                "WITHOUT ROWID"
            )

    def find(self, text: str, salt: int = 0) -> Found | None:
        """The first text that is the same as this normal one, or nearly so. Only texts of the same salt are alike."""
        row = self._database.execute(
            f"SELECT label FROM {self._name}_exact JOIN {self._name}_texts USING (place) WHERE key = ? LIMIT 1",
            (_exact(text, salt),),
        ).fetchone()
        if row is not None:
            return Found("exact", row[0], 1.0)
        marks = signature(text)
        keys = _keys(marks, salt)
        for other, label in self._database.execute(
            f"SELECT marks, label FROM {self._name}_texts WHERE place IN "
            f"(SELECT place FROM {self._name}_bands WHERE key IN ({','.join('?' * len(keys))})) ORDER BY place",
            keys,
        ):
            alike = likeness(marks, np.frombuffer(other, dtype=np.uint32))
            if alike >= NEAR:
                return Found("near", label, alike)
        return None

    def add(self, text: str, label: str, salt: int = 0) -> None:
        marks = signature(text)
        place = self._database.execute(
            f"INSERT INTO {self._name}_texts (marks, label) VALUES (?, ?)", (marks.tobytes(), label)
        ).lastrowid
        self._database.execute(f"INSERT INTO {self._name}_exact VALUES (?, ?)", (_exact(text, salt), place))
        self._database.executemany(
            f"INSERT OR IGNORE INTO {self._name}_bands VALUES (?, ?)", [(key, place) for key in _keys(marks, salt)]
        )


@lru_cache(8)
def _exact(text: str, salt: int) -> int:
    data = text.encode("utf-8", "surrogatepass")
    return signed((zlib.crc32(data) << 32 | zlib.crc32(data, 0x9E3779B9)) * 0x100000001B3 + salt)


class Grams:
    """The word 13-grams of texts with a label, found again in a text that shares one. Tables of a SQLite database."""

    def __init__(self, database: sqlite3.Connection, name: str) -> None:
        self._database, self._name = database, name
        database.execute(
            f"CREATE TABLE IF NOT EXISTS {name}_sources (place INTEGER PRIMARY KEY, words INTEGER, label TEXT)"
        )
        database.execute(
            f"CREATE TABLE IF NOT EXISTS {name}_grams (gram INTEGER PRIMARY KEY, place INTEGER) WITHOUT ROWID"
        )

    def add(self, text: str, label: str) -> None:
        words = tokens(text)
        if len(words) < WORDS:
            return
        place = self._database.execute(
            f"INSERT INTO {self._name}_sources (words, label) VALUES (?, ?)", (len(words), label)
        ).lastrowid
        grams: list[int] = np.unique(_rolled(words, WORDS)).view(np.int64).tolist()
        self._database.executemany(
            f"INSERT OR IGNORE INTO {self._name}_grams VALUES (?, ?)", [(gram, place) for gram in grams]
        )

    def find(self, text: str) -> Found | None:
        """A text that shares 13 words in a row with this normal one. Where the words are CJK characters, thirteen are a
        short phrase of politeness; there the shared ones must be three quarters of the other text."""
        words = tokens(text)
        if len(words) < WORDS:
            return None
        grams: list[int] = np.unique(_rolled(words, WORDS)).view(np.int64).tolist()
        dense = int((words >> np.uint64(40)).sum()) * 2 > len(words)
        shared: dict[int, int] = {}
        for start in range(0, len(grams), 500):
            part = grams[start : start + 500]
            marks = ",".join("?" * len(part))
            query = f"SELECT place, COUNT(*) FROM {self._name}_grams WHERE gram IN ({marks}) GROUP BY place"
            for place, count in self._database.execute(query, part):
                shared[place] = shared.get(place, 0) + count
        for place, count in sorted(shared.items(), key=lambda pair: (-pair[1], pair[0])):
            length, label = self._database.execute(
                f"SELECT words, label FROM {self._name}_sources WHERE place = ?", (place,)
            ).fetchone()
            covered = min(1.0, (count + WORDS - 1) / length)
            if not dense or covered >= 0.75:
                return Found("words", label, covered)
        return None
