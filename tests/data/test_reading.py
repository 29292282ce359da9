"""Rows come out of every kind of file one by one, and what is no row is counted."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

from llm_tuner.data import reading
from llm_tuner.data.reading import AttemptFile, rows
from llm_tuner.data.rejections import Rejection
from llm_tuner.store import write_jsonl
from llm_tuner.types import Attempt, DataError, MissingExtra, Verdict


def read(path: Path) -> list[object]:
    """Values, and reasons for what is none."""
    return [row.value.reason if isinstance(row.value, Rejection) else row.value for row in rows(path)]


def test_lines_and_what_is_no_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"a": 1}\n\n{"a": "\xff"}\n[1]\n{"a": NaN}\n{"a": "\\ud800"}\n{"a": "\\ud83d\\ude00"}\nnope\n'
        + b'{"a":' * 100_000 + b"\n" + '{"a": "日本"}\n{"a": "half'.encode()
    )  # fmt: skip
    assert read(path) == [
        {"a": 1}, "invalid_utf8", "not_an_object", "not_json", "invalid_unicode", {"a": "😀"}, "not_json", "not_json",
        {"a": "日本"}, "half_line",
    ]  # fmt: skip
    assert [row.place for row in rows(path)][:3] == ["a.jsonl:1", "a.jsonl:3", "a.jsonl:4"]


def test_a_line_without_end_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LONGEST", 1000)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"a": "x" * 5000}) + "\n" + '{"a": 2}\n', encoding="utf-8")
    assert read(path) == ["too_long", {"a": 2}]


def test_an_array_is_read_object_by_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_CHUNK", 64)
    values = [{"n": n, "text": "語" * (n % 50)} for n in range(300)]
    path = tmp_path / "a.json"
    for indent in (None, 2):
        path.write_text(json.dumps(values, ensure_ascii=False, indent=indent), encoding="utf-8")
        assert read(path) == values


def test_a_broken_object_of_an_array_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1},\n {"a": },\n {"a": 3}, 4, {"a": 5}]', encoding="utf-8")
    assert read(path) == [{"a": 1}, "not_json", {"a": 3}, "not_an_object", {"a": 5}]
    path.write_text('[{"a": 1}, {"a": 2', encoding="utf-8")
    assert read(path) == [{"a": 1}, "not_json"]


def test_gzip(tmp_path: Path) -> None:
    for name, text in (("a.jsonl.gz", '{"a": 1}\n{"a": 2}\n'), ("a.json.gz", '[{"a": 1}, {"a": 2}]')):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
        assert read(tmp_path / name) == [{"a": 1}, {"a": 2}]


def test_parquet(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"messages": ["[]", "x"], "n": [1, 2]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [{"messages": "[]", "n": 1}, {"messages": "x", "n": 2}]
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="no Parquet file"):
        list(rows(tmp_path / "b.parquet"))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingExtra, match=r"llm-tuner\[parquet\]"):
        list(rows(tmp_path / "a.parquet"))


def test_no_file_and_no_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No file"):
        rows(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="no suite"):
        list(rows(tmp_path))


def attempt(number: int, *, ok: bool = True, backend: str = "a") -> Attempt:
    verdict = Verdict(ok=ok, selection_ok=ok, parameters_ok=ok, score=float(ok), reason="ok" if ok else "no_call")
    return Attempt(task_id=f"{number * 0x1111_1111:016x}", backend=backend, verdict=verdict)


def test_attempts_in_any_order(tmp_path: Path) -> None:
    written = [attempt(n) for n in range(50)]
    written[7:7] = [attempt(60, ok=False), attempt(61, ok=False, backend="bad"), attempt(61, backend="good")]
    write_jsonl(tmp_path / "attempts.jsonl", written)
    orders = (range(50), range(49, -1, -1), [3, 3, 40, 4, 5, 6, 7, 0])
    for order in orders:
        with AttemptFile(tmp_path / "attempts.jsonl") as file:
            assert [file.get(attempt(n).task_id) for n in order] == [attempt(n) for n in order]
    with AttemptFile(tmp_path / "attempts.jsonl") as file:
        assert file.get(attempt(60).task_id) == attempt(60, ok=False)
        assert file.get(attempt(61).task_id) == attempt(61, backend="good")
        assert file.get(attempt(99).task_id) is None
        assert len(file) == 53
    with AttemptFile(tmp_path / "none.jsonl") as file:
        assert file.get(attempt(1).task_id) is None
        assert len(file) == 0
