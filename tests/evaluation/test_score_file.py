"""Calls that were made elsewhere: rows in, a verdict a row, totals; and every kind of bad row."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_tuner.apps import cli
from llm_tuner.evaluation import bfcl
from llm_tuner.evaluation.score_file import RowVerdict, Totals, score_file
from llm_tuner.types import DataError, EmptyData, SetupError

BOOK = {
    "name": "harbour.book",
    "description": "Books.",
    "parameters": {
        "type": "dict",
        "required": ["name"],
        "properties": {"name": {"type": "string", "description": ""}, "berth": {"type": "integer", "description": ""}},
    },
}
IN_JAVA = {
    "name": "Harbour.book",
    "description": "Books.",
    "parameters": {"type": "dict", "required": [], "properties": {"berth": {"type": "long", "description": "Where."}}},
}
ENTRIES: list[tuple[str, Any, Any]] = [
    ("simple_python_0", BOOK, [{"harbour.book": {"name": ["Sea Gull"], "berth": [3, ""]}}]),
    ("simple_python_1", BOOK, [{"harbour.book": {"name": ["x"], "berth": [""]}}]),
    ("simple_java_0", IN_JAVA, [{"Harbour.book": {"berth": [3]}}]),
    ("parallel_0", BOOK, [{"harbour.book": {"name": ["a", "b"]}}, {"harbour.book": {"name": ["a"]}}]),
    ("irrelevance_0", BOOK, None),
    ("live_relevance_0-0-0", BOOK, None),
    ("live_simple_7-3-2", BOOK, [{"harbour.book": {"name": ["京都"]}}]),
]


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small data set in the place of the real one."""
    lines: list[Any] = [
        {"id": id_, "question": [[{"role": "user", "content": "?"}]], "function": [function]}
        for id_, function, _ in ENTRIES
    ]
    lines += [{"id": id_, "ground_truth": answer} for id_, _, answer in ENTRIES if answer]
    cache = tmp_path / "cache"
    cache.mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (cache / f"bfcl-eval-{bfcl.VERSION}.json").write_text(text)
    monkeypatch.setattr(bfcl, "_SHA256", hashlib.sha256(text.encode()).hexdigest())
    monkeypatch.setattr(bfcl, "_cache_folder", lambda: cache)


def judged(path: Path, categories: str = "all") -> tuple[list[RowVerdict], Totals]:
    steps, verdicts = score_file(path, categories), []
    while True:
        try:
            verdicts.append(next(steps))
        except StopIteration as end:
            return verdicts, end.value


def rows(tmp_path: Path, *lines: Any, name: str = "rows.jsonl") -> Path:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


def made(id_: str, *calls: Any) -> dict[str, Any]:
    return {"id": id_, "calls": [{"name": name, "arguments": arguments} for name, arguments in calls]}


def test_rows_are_judged_in_their_order(tmp_path: Path) -> None:
    path = rows(
        tmp_path,
        made("live_simple_7-3-2", ("harbour_book", {"name": "京都"})),
        made("simple_python_0", ("harbour_book", '{"name": "sea-gull", "berth": 4}')) | {"category": "simple_python"},
        made("simple_java_0", ("Harbour_book", {"berth": "3L"})),
        made("parallel_0", ("harbour_book", {"name": "a"}), ("harbour_book", {"name": "b"})),
        "",
        made("irrelevance_0"),
        made("live_relevance_0-0-0", ("not offered", {})),
        {"id": "simple_python_1", "calls": [{"function": {"name": "harbour_book", "arguments": '{"name": "x"}'}}]},
    )
    verdicts, totals = judged(path)
    assert [(v.id, v.ok, v.reason) for v in verdicts] == [
        ("live_simple_7-3-2", True, "ok"),
        ("simple_python_0", False, "wrong_value"),
        ("simple_java_0", True, "ok"),
        ("parallel_0", False, "wrong_value"),  # first fit: the first wanted call takes "a"
        ("irrelevance_0", True, "ok"),
        ("live_relevance_0-0-0", True, "ok"),
        ("simple_python_1", True, "ok"),
    ]
    assert "berth" in verdicts[1].detail
    assert (totals.rows, totals.judged, totals.right, totals.bad) == (7, 7, 5, {})
    document = totals.document()["totals"]
    assert document["categories"]["simple_python"] == {
        "n": 2,
        "of": 400,
        "right": 1,
        "rate": 0.5,
        "low": pytest.approx(0.0945, abs=1e-3),
        "high": pytest.approx(0.9055, abs=1e-3),
    }
    assert document["unanswered"]["simple_java"] == 99
    assert document["groups"]["relevance"]["value"] == 1.0
    assert document["overall"]["missing"]


def test_a_folder_of_official_result_files(tmp_path: Path) -> None:
    rows(
        tmp_path,
        {"id": "simple_python_0", "result": [{"harbour_book": '{"name": "Sea Gull"}'}], "latency": 0.1},
        {"id": "simple_python_1", "result": "I would book it."},
        name="result/non_live/BFCL_v4_simple_python_result.json",
    )
    rows(
        tmp_path,
        {"id": "irrelevance_0", "result": "No boat, no booking."},
        name="result/non_live/BFCL_v4_irrelevance_result.json",
    )
    rows(
        tmp_path,
        {"id": "live_relevance_0-0-0", "result": [{"harbour_book": "{"}]},
        name="result/live/BFCL_v4_live_relevance_result.json",
    )
    verdicts, totals = judged(tmp_path / "result")
    assert {v.id: (v.ok, v.reason) for v in verdicts} == {
        "simple_python_0": (True, "ok"),
        "simple_python_1": (False, "no_call"),
        "irrelevance_0": (True, "ok"),
        "live_relevance_0-0-0": (False, "broken_call"),
    }
    assert totals.rows == 4


BROKEN = [
    [],
    "text",
    None,
    {"name": 5, "arguments": {}},
    {"arguments": {}},
    {"name": "harbour_book", "arguments": "{"},
    {"name": "harbour_book", "arguments": ""},
    {"name": "harbour_book", "arguments": [1]},
    {"name": "harbour_book", "arguments": None},
    {"name": "harbour_book", "arguments": "[" * 100_000},
    {"name": "harbour_book", "arguments": "9" * 5000},
]


@pytest.mark.parametrize("call", BROKEN, ids=lambda call: str(call)[:50])
def test_what_the_model_broke_counts_against_the_model(tmp_path: Path, call: Any) -> None:
    path = rows(tmp_path, {"id": "simple_python_0", "calls": [call]}, {"id": "irrelevance_0", "calls": [call]})
    verdicts, totals = judged(path)
    assert [v.reason for v in verdicts] == ["broken_call", "ok"]
    assert (totals.judged, totals.bad) == (2, {})


def test_half_characters_are_judged(tmp_path: Path) -> None:
    path = rows(
        tmp_path,
        r'{"id": "simple_python_0", "calls": [{"name": "\ud83d", "arguments": {}}]}',
        r'{"id": "simple_python_1", "calls": [{"name": "harbour_book", "arguments": {"name": "\ud83d", "\ud83d": 1}}]}',
        r'{"id": "\ud83d", "calls": []}',
    )
    assert [v.reason for v in judged(path)[0]] == ["unknown_tool", "wrong_value", "unknown_category"]
    assert cli.run(["eval", "score", str(path), "--json"]) == 30


BAD = [
    ("{", "malformed_line"),
    ("[1]", "malformed_line"),
    ("\x00\x01", "malformed_line"),
    ("[" * 100_000, "malformed_line"),
    ('{"calls": []}', "malformed_line"),
    ('{"id": 5, "calls": []}', "malformed_line"),
    ('{"id": "simple_python_0"}', "malformed_line"),
    ('{"id": "simple_python_0", "calls": {}}', "malformed_line"),
    ('{"id": "simple_python_0", "calls": "f()"}', "malformed_line"),
    ('{"id": "simple_python_0", "category": 5, "calls": []}', "malformed_line"),
    ('{"id": "simple_0", "calls": []}', "unknown_category"),
    ('{"id": "", "calls": []}', "unknown_category"),
    ('{"id": "memory_kv_0", "calls": []}', "unknown_category"),
    ('{"id": "multi_turn_base_0", "result": []}', "unknown_category"),
    ('{"id": "simple_python_9", "calls": []}', "unknown_id"),
    ('{"id": "simple_python_0", "category": "parallel", "calls": []}', "unknown_id"),
]


@pytest.mark.parametrize(("line", "reason"), BAD, ids=[line[:40] for line, _ in BAD])
def test_a_bad_row_has_its_verdict_and_stops_nothing(tmp_path: Path, line: str, reason: str) -> None:
    right = made("simple_python_1", ("harbour_book", {"name": "x"}))
    verdicts, totals = judged(rows(tmp_path, line, right, right))
    assert [v.reason for v in verdicts] == [reason, "ok", "duplicate_id"]
    assert "line 1" in verdicts[0].detail
    assert (totals.rows, totals.judged, totals.right) == (3, 1, 1)
    assert totals.bad == {reason: 1, "duplicate_id": 1}


def test_bytes_that_are_no_text_spoil_their_line_only(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    right = json.dumps(made("simple_python_1", ("harbour_book", {"name": "x"}))).encode()
    path.write_bytes(b"\xef\xbb\xbf" + right + b"\r\n\xff\xfe{\n")
    assert [v.reason for v in judged(path)[0]] == ["ok", "malformed_line"]


def test_rows_of_other_categories_are_counted(tmp_path: Path) -> None:
    path = rows(tmp_path, made("simple_python_0"), made("irrelevance_0"), made("live_relevance_0-0-0"))
    verdicts, totals = judged(path, "hallucination")
    assert [v.id for v in verdicts] == ["irrelevance_0", "live_relevance_0-0-0"]
    assert (totals.rows, totals.judged, totals.left_out) == (3, 2, 1)
    assert set(totals.document()["totals"]["categories"]) == {"irrelevance", "live_irrelevance", "live_relevance"}


def test_nothing_to_read_is_said_at_once(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path / "cache"):
        with pytest.raises(DataError, match=path.name):
            score_file(path)
    with pytest.raises(SetupError, match="simple_python"):
        score_file(rows(tmp_path), "simple")
    empty = rows(tmp_path)
    verdicts, totals = judged(empty)
    assert (verdicts, totals.rows) == ([], 0)
    assert cli.run(["eval", "score", str(empty)]) == EmptyData.exit_code


LONG = ("harbour_book", {"name": "x" * 1000})
MANY = {
    "there twice": lambda i: made("simple_python_0", LONG),
    "unknown, each of its own": lambda i: made(f"simple_python_{i + 10}", LONG),
    "of unknown categories": lambda i: made(f"category {i}_0", LONG),
    "of other categories": lambda i: made("irrelevance_0", LONG),
    "malformed": lambda i: f"{{{i}" + "x" * 1000,
}


@pytest.mark.parametrize("row", MANY.values(), ids=MANY)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, row: Callable[[int], Any]) -> None:
    def peak(n: int) -> int:
        path = rows(tmp_path, *[row(i) for i in range(n)])
        tracemalloc.start()
        for _ in score_file(path, "simple_python"):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(10)  # whatever is loaded once
    assert peak(4000) < peak(400) + 200_000


def test_the_command_prints_a_verdict_a_row_and_the_totals_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = made("simple_python_1", ("harbour_book", {"name": "x"}))
    path = rows(tmp_path, right, made("live_simple_7-3-2", ("harbour_book", {"name": "東京"})))
    assert cli.run(["eval", "score", str(path), "--json"]) == 0
    *lines, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == {
        "id": "simple_python_1",
        "ok": True,
        "reason": "ok",
        "detail": "Right tool, right arguments.",
    }
    assert lines[1]["reason"] == "wrong_value"
    assert "東京" in lines[1]["detail"]
    assert last["totals"]["right"] == 1
    assert last["totals"]["measured_weight"] == 0.0


def test_the_command_s_table_and_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = made("simple_python_1", ("harbour_book", {"name": "x"}))
    path = rows(tmp_path, right, "{", *[right] * 30)
    assert cli.run(["eval", "score", str(path), "--categories", "simple_python"]) == DataError.exit_code
    captured = capsys.readouterr()
    assert "simple_python" in captured.out
    assert "100.00 %" in captured.out
    assert "1 of 32 rows judged, 1 right" in captured.out
    assert "agentic: 40%" in captured.out
    assert "rows.jsonl, line 2: not JSON" in captured.err
    assert captured.err.count("duplicate_id:") == 19
    assert "31 of 32 rows could not be judged: 1 malformed_line, 30 duplicate_id." in captured.err
