"""BFCL as suites: the conversion, the pinned data, and agreement with the official checker's recorded verdicts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_tuner.evaluation import bfcl
from llm_tuner.evaluation.leaderboard import SIZES
from llm_tuner.evaluation.score_file import official_call
from llm_tuner.scoring import gold_attempt, score
from llm_tuner.types import (
    AllowedCall,
    AllowedCalls,
    AnyCall,
    Attempt,
    ChecksumMismatch,
    Event,
    Message,
    NoCall,
    SetupError,
    SourceUnreachable,
)

PINNED = json.loads((Path(__file__).parent / "bfcl_agreement.json").read_text(encoding="utf-8"))
UNANSWERABLE = {
    "simple_java_36",
    "simple_java_64",
    "simple_java_65",
    "live_simple_106-63-0",
    "live_simple_112-68-0",
    "live_multiple_862-181-3",
    "live_multiple_964-207-0",
}
"""Rows of 2026.3.23 that no sensible answer passes, with the official checker either: a required argument has no
allowed value, the expected one is not in the function's document, the items of a Java list of any type are read as
text but compared with numbers, or an allowed value stands where a list of them should."""


def row(functions: list[Any]) -> dict[str, Any]:
    return {"id": "simple_python_7", "question": [[{"role": "user", "content": "Go."}]], "function": functions}


@pytest.mark.parametrize("category", sorted({case[1] for case in PINNED["cases"]}))
def test_our_rules_agree_with_the_official_checker(category: str) -> None:
    cases = [case for case in PINNED["cases"] if case[1] == category]
    assert {verdict for *_, verdict in cases} == {True, False}
    for place, _, answer, made, verdict in cases:
        task = bfcl.task(row(PINNED["functions"][place]), answer, category)
        calls = tuple(official_call(call) for call in made)
        attempt = Attempt(task_id=task.id, backend="b", messages=(Message(role="assistant", tool_calls=calls),))
        got = score(task, attempt, rules="bfcl")
        assert got.ok == verdict, (answer, made, got)


def test_the_pinned_sample_has_every_kind_of_task() -> None:
    kinds = {case[1] for case in PINNED["cases"]}
    assert {"simple_python", "simple_java", "simple_javascript", "multiple", "parallel", "parallel_multiple"} <= kinds
    assert {"irrelevance", "live_irrelevance", "live_relevance", "live_parallel"} <= kinds
    assert len(PINNED["cases"]) >= 500


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


def test_java_and_javascript_parameters_are_offered_as_strings_that_tell_their_type() -> None:
    document = {
        "name": "Harbour.book",
        "description": "Books.",
        "parameters": {
            "type": "dict",
            "required": ["crew"],
            "properties": {
                "crew": {"type": "ArrayList", "description": "Who.", "items": {"type": "String"}},
                "berth": {"type": "long", "description": "Where."},
                "remark": {"type": "any", "description": "What else."},
            },
        },
    }
    answer = [{"Harbour.book": {"crew": [["Ann", "Bo"]], "berth": [3, ""], "remark": [""]}}]
    task = bfcl.task(row([document]), answer, "simple_java")
    offered = task.tools[0]
    assert offered.description == "Books. Note that the provided function is in Java 8 SDK syntax."
    assert offered.parameters == {
        "type": "object",
        "required": ["crew"],
        "properties": {
            "crew": {
                "type": "string",
                "description": "Who. This is Java ArrayList type parameter in string representation. "
                "The list elements are of type String; they are not in string representation.",
            },
            "berth": {
                "type": "string",
                "description": "Where. This is Java long type parameter in string representation.",
            },
            "remark": {
                "type": "string",
                "description": "What else. This parameter can be of any type of Java object in string representation.",
            },
        },
    }
    assert isinstance(task.expect, AllowedCalls)
    assert task.expect.calls[0].source_types == {
        "crew": ("java", "ArrayList", "String"),
        "berth": ("java", "long"),
        "remark": ("java", "any"),
    }
    gold = gold_attempt(task)
    assert gold.messages[0].tool_calls[0].arguments == {
        "crew": 'new ArrayList<>(Arrays.asList("Ann", "Bo"))',
        "berth": "3L",
    }
    assert score(task, gold, rules="bfcl").ok


def test_a_javascript_object_tells_its_entries() -> None:
    entries = {"kg": {"type": "integer"}}
    words = {"type": "dict", "description": "What.", "properties": entries}
    document = {"name": "load", "description": "Loads.", "parameters": {"type": "dict", "properties": {"cargo": words}}}
    task = bfcl.task(row([document]), [{"load": {"cargo": [{"kg": [2]}]}}], "simple_javascript")
    assert task.tools[0].parameters["properties"]["cargo"] == {
        "type": "string",
        "description": "What. This is JavaScript dict type parameter in string representation. The dictionary entries "
        'have the following schema; they are not in string representation. {"kg": {"type": "integer"}}',
    }
    assert score(task, gold_attempt(task), rules="bfcl").ok


def test_relevance_wants_any_call() -> None:
    task = bfcl.task(row([{"name": "f", "description": "", "parameters": {"properties": {}}}]), [], "live_relevance")
    assert task.expect == AnyCall()
    assert score(task, gold_attempt(task), rules="bfcl").ok


def test_an_unknown_category_is_named_with_the_known_ones() -> None:
    with pytest.raises(SetupError, match="simple_python"):
        bfcl.load("simple")


def test_groups_stand_for_their_categories() -> None:
    assert len(bfcl.named("all")) == 13
    assert bfcl.named("live") == bfcl.LIVE_CATEGORIES
    assert bfcl.named("simple_java, non_python,") == ("simple_java", "simple_javascript")
    assert bfcl.named(["hallucination", "irrelevance"]) == ("irrelevance", "live_irrelevance", "live_relevance")
    assert "simple_java" not in bfcl.named("python")
    for name, reason in (("memory_kv", "memory stores"), ("web_search", "search service"), (" , ", "No BFCL category")):
        with pytest.raises(SetupError, match=reason):
            bfcl.named(name)


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
@pytest.mark.parametrize("category", bfcl.GROUPS["all"])
def test_gold_answers_of_the_whole_data_set_score_one(category: str) -> None:
    tasks = bfcl.load(category).tasks
    assert len(tasks) == SIZES[category]
    failed = {task.tags["id"] for task in tasks if score(task, gold_attempt(task), rules="bfcl").score < 1}
    assert failed == {id_ for id_ in UNANSWERABLE if id_.rpartition("_")[0] == category}


@pytest.mark.slow
@pytest.mark.usefixtures("data")
def test_a_sample_is_the_same_for_the_same_seed() -> None:
    suite = bfcl.load(["multiple", "irrelevance"], limit=5)
    assert [task.category for task in suite.tasks] == ["multiple"] * 5 + ["irrelevance"] * 5
    assert bfcl.load(["multiple", "irrelevance"], limit=5).hash == suite.hash
    assert bfcl.load(["multiple", "irrelevance"], limit=5, seed=1).hash != suite.hash
    assert len(bfcl.load("simple_python").tasks) == 400
