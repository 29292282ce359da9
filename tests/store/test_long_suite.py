"""A long suite's file is a suite's file: `load` reads it, and task by task it comes back with little memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_tuner.store import long_suite
from llm_tuner.store.long_suite import SuiteWriter, read
from llm_tuner.store.suite import Suite, load, save
from llm_tuner.types import DataError, Message, NoCall, Task, ToolSpec


def tool(number: int) -> ToolSpec:
    return ToolSpec(
        name=f"tool_{number}", server="s", description="日本", parameters={"type": "object", "properties": {}}
    )


def task(number: int, *tools: int) -> Task:
    return Task(
        messages=(Message(role="user", text=f"request {number}"),),
        tools=tuple(tool(n) for n in tools),
        expect=NoCall(reply="no"),
        language="en",
    )


def write(path: Path, tasks: list[Task]) -> None:
    writer = SuiteWriter(path, "long")
    for one in tasks:
        writer.add(one)
    writer.finish(sorted(one.id for one in tasks))


def test_load_reads_what_was_written_task_by_task(tmp_path: Path) -> None:
    tasks = [task(n, n % 3, n % 5, 7) for n in range(40)]
    write(tmp_path / "long.jsonl", tasks)
    assert load(tmp_path / "long.jsonl") == Suite(name="long", tasks=tuple(tasks))
    assert list(read(tmp_path / "long.jsonl")) == tasks


def test_a_saved_suite_is_read_task_by_task(tmp_path: Path) -> None:
    tasks = tuple(task(n, n, n + 1) for n in range(9))
    save(Suite(name="s", tasks=tasks), tmp_path / "s.jsonl")
    assert tuple(read(tmp_path / "s.jsonl")) == tasks


def test_tools_that_fell_out_of_the_window_are_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_suite, "WINDOW", 4)
    tasks = [task(n, n % 11, (n * 7) % 11, (n * 3) % 5 + 20) for n in range(200)]
    tasks += [task(1000 + n, 0, 1, 2, 3) for n in range(5)]
    write(tmp_path / "long.jsonl", tasks)
    assert list(read(tmp_path / "long.jsonl")) == tasks
    assert load(tmp_path / "long.jsonl").tasks == tuple(tasks)


def test_what_was_written_after_the_last_commit_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    writer = SuiteWriter(path, "long")
    writer.add(task(1, 1))
    size = writer.size
    writer.add(task(2, 2))
    writer.close()
    again = SuiteWriter(path, "long", size=size)
    again.add(task(3, 1, 3))
    again.finish(sorted((task(1, 1).id, task(3, 1, 3).id)))
    assert load(path).tasks == (task(1, 1), task(3, 1, 3))


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    write(path, [task(n, n) for n in range(3)])
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(DataError, match="should hold 3 tasks, found 2"):
        list(read(path))
    path.write_text("".join(lines[:-1]) + lines[-1][:30], encoding="utf-8")
    with pytest.raises(DataError, match="line 10"):
        list(read(path))
