"""Out in TRL's conversational form and back: the same tasks, under the same ids, through JSON lines and Parquet."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rows import FORMATS, asked, call, examples, imported, made, take

from llm_tuner.data.conversational import COLUMN, example_of, row_of
from llm_tuner.data.dataset import open_examples
from llm_tuner.data.examples import Example, changed
from llm_tuner.data.export import export
from llm_tuner.types import (
    AllowedCall,
    AllowedCalls,
    Attempt,
    DataError,
    Message,
    MissingExtra,
    SetupError,
    ToolCall,
    ToolResult,
)

FILES = [
    "openai_log.jsonl", "openai_finetune.jsonl", "ollama_log.jsonl", "glaive.json", "xlam.json", "toolace.json",
    "hermes.json", "when2call_sft.jsonl", "when2call_pref.jsonl", "toucan.jsonl", "toucan_sft.jsonl", "trl.jsonl",
]  # fmt: skip


def exported(folder: Path, out: Path, sides: tuple[str, ...] = ("train", "held-out")) -> int:
    steps = export(folder, out, sides)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return int(end.value)


def through_json(example: Example) -> Example:
    return example_of(json.loads(json.dumps(row_of(example))))


@pytest.mark.parametrize("file", FILES)
def test_every_format_comes_back(file: str) -> None:
    found = examples(imported(file))
    assert found
    for example in found:
        assert through_json(example) == example
        assert through_json(example).task.id == example.task.id


def test_what_the_form_cannot_say_comes_back_too() -> None:
    before = (
        Message(role="system", text="short"),
        Message(role="user", text="go"),
        Message(role="assistant", thinking="hm", tool_calls=(ToolCall(name="x", raw="{", error="bad", id="1"),)),
        Message(role="tool", result=ToolResult(call_id="1", content="no", is_error=True)),
        Message(role="assistant", text="{}", text_calls=(ToolCall(name="y"),)),
        Message(role="user", text="again"),
    )  # fmt: skip
    odd = made(*before, answer=Message(role="assistant", tool_calls=(call("fetch", url="u"),)))
    allowed = AllowedCalls(calls=(AllowedCall(name="fetch", arguments={"url": ["u", ""]}),), ordered=True)
    example = changed(odd, expect=allowed, split="held-out", tags={"a": "b"})
    assert through_json(example) == example
    assert through_json(example).task.tools[0].server == "mail"
    empty = Example(example.task, Attempt(task_id=example.task.id, backend="x"))
    assert through_json(empty) == empty


def test_the_form_is_trls() -> None:
    row = row_of(asked("mail the boss", call("send_mail", to="boss", copies=2)))
    assert row["messages"] == [
        {"role": "user", "content": "mail the boss"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "type": "function",
                    "id": "",
                    "function": {"name": "send_mail", "arguments": {"to": "boss", "copies": 2}},
                }
            ],
        },
    ]  # fmt: skip
    assert [tool["type"] for tool in row["tools"]] == ["function", "function"]
    assert set(row) == {"messages", "tools", COLUMN}


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set") / "all"
    take([FORMATS / file for file in FILES], folder)
    return folder


def same(a: Path, b: Path) -> bool:
    ours, theirs = ({e.task.id: e for e in open_examples(folder)} for folder in (a, b))
    attempts = all(theirs[i].attempt.messages == ours[i].attempt.messages for i in ours if i in theirs)
    return ours.keys() == theirs.keys() and attempts and all(ours[i].task.side == theirs[i].task.side for i in ours)


@pytest.mark.parametrize("name", ["set.jsonl", "set.parquet"])
def test_a_whole_set_comes_back_through_a_file(tmp_path: Path, data_set: Path, name: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    rows = exported(data_set, tmp_path / name)
    found = take([tmp_path / name], tmp_path / "back")
    assert found["counts"]["rejected"] == {}
    assert found["counts"]["train"] + found["counts"]["held-out"] == rows
    assert same(data_set, tmp_path / "back")


def test_a_whole_set_comes_back_from_its_folder(tmp_path: Path, data_set: Path) -> None:
    found = take([data_set], tmp_path / "back")
    assert found["counts"]["rejected"] == {}
    assert same(data_set, tmp_path / "back")
    assert {e.task.source for e in open_examples(data_set)} == {e.task.source for e in open_examples(tmp_path / "back")}


def test_a_suite_without_attempts_answers_itself(tmp_path: Path, data_set: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "train.jsonl").write_bytes((data_set / "train.jsonl").read_bytes())
    take([tmp_path / "bare" / "train.jsonl"], tmp_path / "back")
    wanted = {e.task.id for e in open_examples(data_set) if e.task.side == "train"}
    assert {e.task.id for e in open_examples(tmp_path / "back")} == wanted


def test_parquet_has_no_union_of_all_tools(tmp_path: Path, data_set: Path) -> None:
    """Read by the library that trainers read with: arguments are objects, with their own keys only."""
    datasets: Any = pytest.importorskip("datasets")
    exported(data_set, tmp_path / "set.parquet")
    loaded = datasets.Dataset.from_parquet(str(tmp_path / "set.parquet"), cache_dir=str(tmp_path / "cache"))
    arguments = [
        call["function"]["arguments"]
        for row in loaded
        for message in row["messages"]
        for call in message.get("tool_calls") or ()
    ]
    assert {"city": "Bergen"} in arguments
    assert all(isinstance(given, dict) and None not in given.values() for given in arguments)
    assert all("role" in message for row in loaded for message in row["messages"])
    assert all(tool["type"] == "function" for row in loaded for tool in row["tools"])


def test_what_cannot_be_exported_says_so(tmp_path: Path, data_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SetupError, match=r"\.jsonl or \.parquet"):
        exported(data_set, tmp_path / "set.csv")
    with pytest.raises(SetupError, match='No side "test"'):
        exported(data_set, tmp_path / "set.jsonl", ("test",))
    with pytest.raises(DataError, match="Cannot read"):
        exported(tmp_path, tmp_path / "set.jsonl")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match="pyarrow"):
        exported(data_set, tmp_path / "set.parquet")
    assert not (tmp_path / "set.parquet").exists()
