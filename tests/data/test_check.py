"""The check finds every kind of wrong, each time from the files alone, and a good set has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rows import take, write_lines, xlam_row

from llm_tuner.data.check import Checked, check
from llm_tuner.data.dataset import open_examples, write_manifest
from llm_tuner.data.examples import Example, changed
from llm_tuner.data.overlap import Reference
from llm_tuner.store import write_jsonl
from llm_tuner.store.suite import Suite, save
from llm_tuner.types import DataError, Message, ToolCall

REFERENCES = {"bench": [Reference("b1", "an entirely different question about the moons of Saturn and their names")]}


def checked(folder: Path, **references: list[Reference]) -> Checked:
    steps = check(folder, references or REFERENCES)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Checked = end.value
            return found


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    file = write_lines(tmp_path / "x.jsonl", [xlam_row(n) for n in range(40)])
    take([file], tmp_path / "set", withheld={"tools": 0, "servers": 0, "names": ["look_3"]})
    return tmp_path / "set"


def rewritten(folder: Path, change: Callable[[list[Example], list[Example]], None], *, seal: bool = True) -> Checked:
    """The check of the set after its examples (train, held-out) were changed and written again."""
    sides = {s: [e for e in open_examples(folder) if e.task.side == s] for s in ("train", "held-out")}
    change(sides["train"], sides["held-out"])
    for side, examples in sides.items():
        save(Suite(name=side, tasks=tuple(e.task for e in examples)), folder / f"{side}.jsonl")
    write_jsonl(folder / "attempts.jsonl", [e.attempt for side in sides.values() for e in side])
    if seal:
        facts = json.loads((folder / "data.json").read_text())
        write_manifest(folder, {key: value for key, value in facts.items() if key not in ("format", "hashes")})
    return checked(folder)


def test_a_good_set_has_no_problem(data_set: Path) -> None:
    found = checked(data_set)
    assert found.ok
    assert found.problems == {}
    assert found.valid == sum(found.tasks.values()) == 40
    assert found.overlaps == {"bench": 0, "held-out": 0}
    assert found.against == {"bench": 1}


def test_a_changed_file_and_a_missing_one(data_set: Path) -> None:
    assert rewritten(data_set, lambda train, held: None, seal=False).problems.keys() == {"changed_file"}
    (data_set / "rejected.jsonl").unlink()
    assert checked(data_set).problems["missing_file"] >= 1


def test_a_duplicate(data_set: Path) -> None:
    def change(train: list[Example], held: list[Example]) -> None:
        message = Message(role="user", text=train[0].task.request + " !")
        train.append(changed(train[0], messages=(message,), split="train"))

    found = rewritten(data_set, change)
    assert found.problems == {"duplicate": 1}
    assert found.duplicates == 1
    assert not found.ok


def test_an_overlap_with_the_held_out_side_and_with_a_benchmark(data_set: Path) -> None:
    def change(train: list[Example], held: list[Example]) -> None:
        message = Message(role="user", text=held[0].task.request + " now")
        train[0] = changed(train[0], messages=(message,), split="train")

    found = rewritten(data_set, change)
    assert found.overlaps["held-out"] == 1
    assert "held-out" in found.shown["overlap_held-out"][0] or "same request" in found.shown["overlap_held-out"][0]
    request = list(open_examples(data_set))[-1].task.request
    assert checked(data_set, bench=[Reference("b", request)]).overlaps["bench"] == 1


def test_a_call_that_does_not_fit_and_an_answer_that_is_not_right(data_set: Path) -> None:
    def change(train: list[Example], held: list[Example]) -> None:
        wrong = Message(
            role="assistant", tool_calls=(ToolCall(name=train[0].task.tools[0].name, arguments={"what": 3}),)
        )
        train[0] = Example(train[0].task, train[0].attempt.model_copy(update={"messages": (wrong,)}))
        verdict = train[1].attempt.verdict
        assert verdict is not None
        bad = verdict.model_copy(update={"ok": False})
        train[1] = Example(train[1].task, train[1].attempt.model_copy(update={"verdict": bad}))

    found = rewritten(data_set, change)
    assert found.problems == {"form_wrong_type": 1, "form_not_right": 2}
    assert found.valid == 38


def test_a_verdict_is_not_believed(data_set: Path) -> None:
    def change(train: list[Example], held: list[Example]) -> None:
        calls = (ToolCall(name=train[0].task.tools[0].name, arguments={"what": "something else"}),)
        wrong = Message(role="assistant", tool_calls=calls)
        train[0] = Example(train[0].task, train[0].attempt.model_copy(update={"messages": (wrong,)}))

    found = rewritten(data_set, change)
    assert found.problems == {"form_not_right": 1}
    assert "was judged right, and is not" in found.shown["form_not_right"][0]


def test_attempts_that_are_missing_or_of_nobody(data_set: Path) -> None:
    lines = (data_set / "attempts.jsonl").read_text().splitlines(keepends=True)
    stray = lines[0].replace('"task_id":"', '"task_id":"0000')[:]
    stray = stray.replace(json.loads(stray)["task_id"], "0123456789abcdef")
    (data_set / "attempts.jsonl").write_text("".join([*lines[1:], stray]))
    found = checked(data_set)
    assert found.problems["no_attempt"] == 1
    assert found.problems["stray_attempts"] == 1


def test_sides_secrets_withheld_tools_and_benchmarks(data_set: Path) -> None:
    def change(train: list[Example], held: list[Example]) -> None:
        train[0] = changed(train[0], source="bfcl")
        message = Message(role="user", text="send what you found to hanako.sato@corp.co.jp today")
        train[1] = changed(train[1], messages=(message,))
        moved = next(e for e in held if e.task.tools[0].name == "look_3")
        held.remove(moved)
        train.append(changed(moved, split="train"))

    found = rewritten(data_set, change)
    assert found.problems == {"benchmark": 1, "not_scrubbed": 1, "withheld_tool": 1}
    assert "look_3" in found.shown["withheld_tool"][0]
    (data_set / "held-out.jsonl").write_bytes((data_set / "train.jsonl").read_bytes())
    assert checked(data_set).problems["wrong_side"] > 10


def test_no_set_and_a_half_made_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data\.json"):
        checked(tmp_path)
    (tmp_path / ".partial").mkdir()
    with pytest.raises(DataError, match="was not finished"):
        checked(tmp_path)
