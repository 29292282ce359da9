"""From an evaluation's folder to rows that both checkers take: every answer, in both readings, with its verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from evaluation.bfcl_outputs import written_rows
from llm_tuner.evaluation import bfcl, score_file
from llm_tuner.evaluation.attempts import ATTEMPTS
from llm_tuner.evaluation.measure import measure
from llm_tuner.models import dialects, openai_wire
from llm_tuner.scoring import score
from llm_tuner.store import append_jsonl
from llm_tuner.store.suite import Suite, save
from llm_tuner.types import (
    GREEDY,
    Attempt,
    ChatOptions,
    DataError,
    Message,
    ModelError,
    Reply,
    Task,
    ToolCall,
    ToolSpec,
)

DOCUMENT = {
    "name": "harbour.book",
    "description": "Books.",
    "parameters": {"type": "dict", "required": ["name"], "properties": {"name": {"type": "string", "description": ""}}},
}
AS_TEXT = '```json\n{"name": "harbour_book", "arguments": {"name": "Sea Gull"}}\n```'


def task(id_: str, request: str) -> Task:
    row = {"id": id_, "question": [[{"role": "user", "content": request}]], "function": [DOCUMENT]}
    category = id_.rpartition("_")[0]
    answers = [] if category == "irrelevance" else [{"harbour.book": {"name": ["Sea Gull"]}}]
    return bfcl.task(row, answers, category)


class Answering:
    """Answers by the request: text as it stands, a call of these arguments, or an error."""

    name = "answering"

    def chat(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), options: ChatOptions = GREEDY) -> Reply:
        kind, _, words = messages[-1].text.partition(": ")
        if kind == "error":
            raise ModelError(words)
        if kind == "say":
            return Reply(message=dialects.read(Message(role="assistant", text=words), tools))
        call = openai_wire.incoming_call({"function": {"name": "harbour_book", "arguments": words}})
        return Reply(message=Message(role="assistant", tool_calls=(call,)))


SUITES = {
    "simple_python": (
        task("simple_python_0", 'call: {"name": "sea gull"}'),
        task("simple_python_1", 'call: {"name": "Gull", "berth": 3}'),
        task("simple_python_2", "say: " + AS_TEXT),
        task("simple_python_3", 'call: {"name": "Sea Gu'),
        task("simple_python_4", "call: [1]"),
        task("simple_python_5", "say: Which boat?"),
        task("simple_python_6", "error: out of memory"),
        task("simple_python_7", 'say: {"name": "harbour_book", "arguments": {"name": "Sea'),
    ),
    "irrelevance": (task("irrelevance_0", "say: " + AS_TEXT), task("irrelevance_1", "say: No boat.")),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An evaluation of two categories, as `llm-tuner eval bfcl --out` keeps it."""
    for category, tasks in SUITES.items():
        suite = Suite(name=f"bfcl:{category}", tasks=tasks)
        list(measure(suite, Answering(), rules="bfcl", out=tmp_path / category))
        save(suite, tmp_path / category / "suite.jsonl")
    return tmp_path


def test_every_answer_is_a_row_and_calls_as_text_are_a_second_one(folder: Path) -> None:
    rows = {(row["id"], row["reading"]): (row["calls"], row["ok"]) for row in written_rows(folder)}
    gull = [{"name": "harbour_book", "arguments": '{"name": "Sea Gull"}'}]
    assert rows == {
        ("irrelevance_0", "native"): ([], True),
        ("irrelevance_0", "lenient"): (gull, False),
        ("irrelevance_1", "native"): ([], True),
        ("simple_python_0", "native"): ([{"name": "harbour_book", "arguments": '{"name": "sea gull"}'}], True),
        ("simple_python_1", "native"): (
            [{"name": "harbour_book", "arguments": '{"name": "Gull", "berth": 3}'}],
            False,
        ),
        ("simple_python_2", "native"): ([], False),
        ("simple_python_2", "lenient"): (gull, True),
        ("simple_python_3", "native"): ([{"name": "harbour_book", "arguments": '{"name": "Sea Gu'}], False),
        ("simple_python_4", "native"): ([{"name": "harbour_book", "arguments": "[1]"}], False),
        ("simple_python_5", "native"): ([], False),
        ("simple_python_7", "native"): ([], False),
        ("simple_python_7", "lenient"): (
            [{"name": "harbour_book", "arguments": '{"name": "harbour_book", "arguments": {"name": "Sea'}],
            False,
        ),
    }


def test_the_row_judged_again_has_the_evaluation_s_verdict(folder: Path) -> None:
    tasks = {t.tags["id"]: t for tasks in SUITES.values() for t in tasks}
    for row in written_rows(folder):
        made = [score_file.official_call({call["name"]: call["arguments"]}) for call in row["calls"]]
        message = Message(role="assistant", tool_calls=tuple(made))
        attempt = Attempt(task_id="x", backend="x", messages=(message,))
        assert score(tasks[row["id"]], attempt, rules="bfcl").ok == row["ok"], row


def test_a_call_that_is_broken_in_spite_of_its_text_stays_broken(tmp_path: Path) -> None:
    (one,) = tasks = (task("simple_python_0", "?"),)
    save(Suite(name="s", tasks=tasks), tmp_path / "suite.jsonl")
    call = ToolCall(name="harbour_book", raw='{"name": "Sea Gull"}', error="cut off")
    message = Message(role="assistant", tool_calls=(call,))
    append_jsonl(tmp_path / ATTEMPTS, Attempt(task_id=one.id, backend="b", messages=(message,)))
    (row,) = written_rows(tmp_path)
    assert (row["calls"], row["ok"]) == ([{"name": "harbour_book", "arguments": ""}], False)


def test_files_of_rows_are_taken_as_they_are(tmp_path: Path) -> None:
    rows = [{"id": "simple_python_0", "calls": []}, {"id": "simple_python_1", "result": "No."}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert list(written_rows(path)) == list(written_rows(tmp_path)) == rows


def test_an_evaluation_that_is_not_finished_is_refused(folder: Path) -> None:
    (folder / "irrelevance" / "suite.jsonl").unlink()
    assert {row["category"] for row in written_rows(folder)} == {"simple_python"}
    (folder / "simple_python" / "suite.jsonl").unlink()
    with pytest.raises(DataError, match=r"without suite\.jsonl"):
        list(written_rows(folder))
