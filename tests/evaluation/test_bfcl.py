"""BFCL as suites: the conversion, the pinned data, and agreement with the official checker's recorded verdicts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_tuner.evaluation import bfcl
from llm_tuner.scoring import gold_attempt, score
from llm_tuner.types import (
    AllowedCall,
    AllowedCalls,
    Attempt,
    ChecksumMismatch,
    Event,
    Message,
    NoCall,
    SetupError,
    SourceUnreachable,
    ToolCall,
)

PINNED = json.loads((Path(__file__).parent / "bfcl_agreement.json").read_text(encoding="utf-8"))
UNANSWERABLE = {"live_simple_106-63-0", "live_simple_112-68-0", "live_multiple_862-181-3", "live_multiple_964-207-0"}
"""Rows of 2026.3.23 that no answer passes, with the official checker either: a required argument has no allowed value,
or the expected one is not in the function's document."""


def row(functions: list[Any]) -> dict[str, Any]:
    return {"id": "simple_python_7", "question": [[{"role": "user", "content": "Go."}]], "function": functions}


@pytest.mark.parametrize("category", ["simple_python", "multiple", "parallel", "parallel_multiple"])
def test_our_rules_agree_with_the_official_checker(category: str) -> None:
    cases = [case for case in PINNED["cases"] if case[1] == category]
    assert {verdict for *_, verdict in cases} == {True, False}
    for place, _, answer, made, verdict in cases:
        task = bfcl.task(row(PINNED["functions"][place]), answer, category)
        calls = tuple(ToolCall(name=name, arguments=args) for call in made for name, args in call.items())
        attempt = Attempt(task_id=task.id, backend="b", messages=(Message(role="assistant", tool_calls=calls),))
        got = score(task, attempt, rules="bfcl")
        assert got.ok == verdict, (answer, made, got)


def test_a_row_becomes_a_task() -> None:
    document = {
        "name": "harbour.book",
        "description": "Books.",
        "parameters": {
            "type": "dict",
            "required": ["at"],
            "properties": {
                "at": {"type": "tuple", "items": {"type": "float"}},
                "who": {"type": "dict", "properties": {"type": {"type": "any"}}, "optional": True},
            },
        },
    }
    task = bfcl.task(row([document]), [{"harbour.book": {"at": [[1.0]]}}], "simple_python")
    assert task.tools[0].name == "harbour_book"
    assert task.tools[0].parameters == {
        "type": "object",
        "required": ["at"],
        "properties": {
            "at": {"type": "array", "items": {"type": "number"}},
            "who": {"type": "object", "properties": {"type": {"type": "string"}}},
        },
    }
    assert task.expect == AllowedCalls(calls=(AllowedCall(name="harbour_book", arguments={"at": [[1.0]]}),))
    assert (task.source, task.licence, task.side, task.tags) == (
        "bfcl",
        "Apache-2.0",
        "held-out",
        {"id": "simple_python_7"},
    )
    assert bfcl.task(row([document]), [], "irrelevance").expect == NoCall()


def test_an_unknown_category_is_named_with_the_known_ones() -> None:
    with pytest.raises(SetupError, match="simple_python"):
        bfcl.load("simple")


def test_other_data_than_the_pinned_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tampered(rest: str, part: Path, sha256: str, label: str) -> Iterator[Event]:
        part.write_text('{"id": "simple_python_0"}')
        yield Event(step="fetch")

    monkeypatch.setattr(bfcl.pypi, "download", tampered)
    with pytest.raises(ChecksumMismatch, match=r"2026\.3\.23"):
        bfcl.load("simple_python", cache=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def data() -> None:
    try:
        list(bfcl.fetch())
    except SourceUnreachable as error:
        pytest.skip(f"the BFCL data cannot be fetched: {error}")


@pytest.mark.slow
@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("category", [*bfcl.CATEGORIES, *bfcl.LIVE_CATEGORIES])
def test_gold_answers_of_the_whole_data_set_score_one(category: str) -> None:
    failed = {
        task.tags["id"] for task in bfcl.load(category).tasks if score(task, gold_attempt(task), rules="bfcl").score < 1
    }
    assert failed == {id_ for id_ in UNANSWERABLE if id_.rpartition("_")[0] == category}


@pytest.mark.slow
@pytest.mark.usefixtures("data")
def test_a_sample_is_the_same_for_the_same_seed() -> None:
    suite = bfcl.load(["multiple", "irrelevance"], limit=5)
    assert [task.category for task in suite.tasks] == ["multiple"] * 5 + ["irrelevance"] * 5
    assert bfcl.load(["multiple", "irrelevance"], limit=5).hash == suite.hash
    assert bfcl.load(["multiple", "irrelevance"], limit=5, seed=1).hash != suite.hash
    assert len(bfcl.load("simple_python").tasks) == 400
