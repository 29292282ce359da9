"""A suite's file gives back the same tasks under the same hash, and says which line is bad."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_tuner.store.suite import Suite, load, save
from llm_tuner.types import AllowedCall, AllowedCalls, DataError, EmptyData, ExactCalls, Message, NoCall, Task, ToolSpec
from llm_tuner.types import ToolCall as Call

CLOCK = ToolSpec(name="clock", description="時刻", server="time", parameters={"type": "object", "properties": {}})
OTHER = CLOCK.model_copy(update={"server": "elsewhere"})


def suite() -> Suite:
    history = (
        Message(role="user", text="何時？"),
        Message(role="assistant", tool_calls=(Call(name="clock", arguments={"zone": None}),)),
    )
    tasks = (
        Task(messages=history, tools=(CLOCK, OTHER), expect=NoCall(), language="ja", tags={"seen": "yes"}),
        Task(messages=history, tools=(CLOCK,), expect=ExactCalls(calls=(Call(name="clock"),)), split="held-out"),
        Task(messages=history, tools=(OTHER,), expect=AllowedCalls(calls=(AllowedCall(name="clock"),)), source="x"),
        Task(messages=(Message(role="user", text="hi"),), tools=(), expect=NoCall(reply="hello")),
    )
    return Suite(name="demo", tasks=tasks)


def test_round_trip(tmp_path: Path) -> None:
    save(suite(), tmp_path / "a" / "demo.jsonl")
    back = load(tmp_path / "a" / "demo.jsonl")
    assert back == suite()
    assert back.hash == suite().hash
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["demo.jsonl"]


def test_tools_and_catalogues_are_stored_once(tmp_path: Path) -> None:
    save(Suite(name="s", tasks=suite().tasks * 3), tmp_path / "s.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum("spec" in line for line in lines) == 2  # the same tool of two servers
    assert sum("catalogue" in line for line in lines) == 4


def test_the_order_of_a_schema_survives(tmp_path: Path) -> None:
    orders = ({"z": {"type": "string"}, "a": {}}, {"a": {}, "z": {"type": "string"}})
    tools = [ToolSpec(name="t", parameters={"type": "object", "properties": order}) for order in orders]
    ask = (Message(role="user", text="hi"),)
    tasks = tuple(Task(messages=ask, tools=(tool,), expect=NoCall(reply=str(i))) for i, tool in enumerate(tools))
    save(Suite(name="s", tasks=tasks), tmp_path / "s.jsonl")
    back = [task.tools[0].parameters["properties"] for task in load(tmp_path / "s.jsonl").tasks]
    assert [list(properties) for properties in back] == [["z", "a"], ["a", "z"]]


def test_the_hash_depends_on_the_tasks_only() -> None:
    tasks = suite().tasks
    assert Suite(name="other", tasks=tasks[::-1]).hash == suite().hash
    assert Suite(name="demo", tasks=tasks[1:]).hash != suite().hash


def test_a_file_written_by_hand(tmp_path: Path) -> None:
    task = {"messages": [{"role": "user", "text": "hi"}], "tools": [{"name": "t"}], "expect": {"kind": "none"}}
    (tmp_path / "mine.jsonl").write_text(json.dumps(task) + "\n\n", encoding="utf-8")
    assert load(tmp_path / "mine.jsonl").name == "mine"
    assert load(tmp_path / "mine.jsonl").tasks[0].tools[0].name == "t"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: expected a JSON object"),
        ('{"what": 1}', "line 2: neither a task"),
        ('{"messages": [], "tools": "gone", "expect": {"kind": "none"}}', "line 2: 'gone' is missing"),
        ('{"messages": [], "expect": {"kind": "none"}}', "line 2: the messages must end with the user's or a tool's"),
        ('{"messages": [], "expect": {"kind": "maybe"}}', "line 2: expect"),
        ('{"messages": [], "expect": {"kind": "none"}, "typo": 1}', "line 2: typo"),
        ('{"suite": "x", "format": 99}', "line 2: format 99"),
        ('{"tool": "x"}', "line 2: 'spec' is missing"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"suite": "x"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=says):
        load(path)


def test_a_file_that_was_cut_or_edited_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    save(suite(), path)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(DataError, match="should hold 4 tasks, found 3"):
        load(path)
    path.write_text("\n".join(lines).replace("hello", "bye"), encoding="utf-8")
    with pytest.raises(DataError, match="edited"):
        load(path)


def test_no_file_and_no_task(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No suite at"):
        load(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(EmptyData, match="holds no task"):
        load(tmp_path / "empty.jsonl")
