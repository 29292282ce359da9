"""A round that learns from the user's own data sets: sides stay apart, a lying held-out side promotes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_tuner.data.dataset import write_manifest
from llm_tuner.loop import own_data
from llm_tuner.scoring import gold_attempt, score
from llm_tuner.store import RunFolder, append_jsonl, read_jsonl
from llm_tuner.store.suite import Suite, load, save
from llm_tuner.types import Attempt, DataError, ExactCalls, Message, Task, ToolCall, ToolResult, ToolSpec

TOOLS = (ToolSpec(name="a", parameters={"type": "object", "properties": {"x": {"type": "string"}}}),)


def task(request: str, side: str = "train", x: str = "1") -> Task:
    return Task(
        messages=(Message(role="user", text=request),),
        tools=TOOLS,
        expect=ExactCalls(calls=(ToolCall(name="a", arguments={"x": x}),)),
        category="single",
        language="en",
        split=side,
    )


def answered(one: Task, **changes: object) -> Attempt:
    attempt = gold_attempt(one)
    return attempt.model_copy(update={"verdict": score(one, attempt), **changes})


def data_set(folder: Path, train: list[Task], held_out: list[Task], **changes: object) -> Path:
    folder.mkdir()
    for name, tasks in (("train", train), ("held-out", held_out)):
        if tasks:
            save(Suite(name=name, tasks=tuple(tasks)), folder / f"{name}.jsonl")
        for one in tasks:
            append_jsonl(folder / "attempts.jsonl", answered(one, **changes))
    write_manifest(folder, {})
    return folder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A collect run that made three tasks itself."""
    folder = RunFolder(tmp_path / "run", "collect", "k", resumed=False)
    folder.path.mkdir()
    save(Suite(name="train", tasks=(task("own one"), task("own two"))), folder.path / "train.jsonl")
    save(Suite(name="held-out", tasks=(task("asked one", "held-out"),)), folder.path / "held-out.jsonl")
    for one in (task("own one"), task("own two")):
        append_jsonl(folder.path / "reference-train.jsonl", answered(one))
    folder.outputs |= {"train": "train.jsonl", "held-out": "held-out.jsonl"}
    return folder


def requests(run: RunFolder, suite: str) -> list[str]:
    return [one.request for one in load(run.path / f"{suite}.jsonl").tasks]


def test_both_sides_are_added_and_no_request_stands_on_both(tmp_path: Path, run: RunFolder) -> None:
    train = [task("mine"), task("Asked  ONE"), task("own one"), task("both")]
    held = [task("kept back", "held-out"), task("own TWO", "held-out"), task("both", "held-out", "2")]
    own_data.add([data_set(tmp_path / "set", train, held)], 10, run)
    assert requests(run, "train") == ["own one", "own two", "mine"]
    assert sorted(requests(run, "recorded")) == ["both", "kept back"]
    assert requests(run, "held-out") == ["asked one"]
    attempts = read_jsonl(run.path / "reference-train.jsonl", Attempt)
    assert [a.task_id for a in attempts] == [one.id for one in (task("own one"), task("own two"), task("mine"))]
    assert run.metrics["recorded"] == {"made": 3, "accepted": 1, "held_out": 2}


def test_a_killed_step_adds_nothing_twice(tmp_path: Path, run: RunFolder) -> None:
    folder = data_set(tmp_path / "set", [task("mine"), task("also")], [])
    own_data.add([folder], 10, run)
    own_data.add([folder], 10, run)
    assert requests(run, "train") == ["own one", "own two", "mine", "also"]
    assert len(read_jsonl(run.path / "reference-train.jsonl", Attempt)) == 4
    assert "recorded" not in run.outputs


def test_at_most_so_many_are_measured_the_same_ones_every_time(tmp_path: Path, run: RunFolder) -> None:
    held = [task(f"kept {n}", "held-out") for n in range(20)]
    own_data.add([data_set(tmp_path / "set", [], held)], 5, run)
    first = requests(run, "recorded")
    assert len(first) == 5
    own_data.add([data_set(tmp_path / "again", [], held[::-1])], 5, run)
    assert requests(run, "recorded") == first


def test_what_a_server_refused_is_not_learned(tmp_path: Path, run: RunFolder) -> None:
    bad = data_set(tmp_path / "set", [task("mine")], [], results=(ToolResult(content="no", is_error=True),))
    own_data.add([bad], 5, run)
    assert requests(run, "train") == ["own one", "own two"]


def test_a_folder_that_is_no_data_set_and_one_whose_sides_are_mixed_are_refused(tmp_path: Path, run: RunFolder) -> None:
    with pytest.raises(DataError, match="nowhere"):
        own_data.data_hash([tmp_path / "nowhere"])
    mixed = data_set(tmp_path / "set", [task("mine", "held-out")], [])
    with pytest.raises(DataError, match="marked held-out"):
        own_data.add([mixed], 5, run)


def test_the_hash_is_that_of_the_files(tmp_path: Path) -> None:
    first = own_data.data_hash([data_set(tmp_path / "a", [task("mine")], [])])
    assert own_data.data_hash([data_set(tmp_path / "b", [task("mine")], [])]) == first
    assert own_data.data_hash([data_set(tmp_path / "c", [task("other")], [])]) != first
    document = json.loads((tmp_path / "a" / "data.json").read_text())
    assert set(document["hashes"]) == {"train.jsonl", "attempts.jsonl"}
