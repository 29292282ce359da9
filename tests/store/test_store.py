"""Run folders: whole or not there, found again, safe against a second writer and a full disk."""

import errno
import os

import psutil
import pytest

from llm_tuner.store import Store, append_jsonl, disk_full_named, read_jsonl, write_jsonl
from llm_tuner.types import DataError, DiskFull, Row, SetupError


def row(name):
    return Row(task_id=name, prompt="p", completion="c", prompt_ids=(1, 2), completion_ids=(3,))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


def test_a_finished_step_is_found_by_its_config_and_inputs(store):
    with store.write("train", {"r": 16}, {"data": "a"}, seed=3) as folder:
        (folder.path / "x.txt").write_text("kept")
        folder.metrics["loss"] = 0.5
    run = store.find("train", {"r": 16}, {"data": "a"})
    assert run is not None
    assert run.metrics == {"loss": 0.5}
    assert run.seed == 3
    assert run.versions["python"]
    assert (store.folder(run) / "x.txt").read_text() == "kept"
    assert store.find("train", {"r": 8}, {"data": "a"}) is None
    assert store.find("train", {"r": 16}, {"data": "b"}) is None
    assert store.find("collect", {"r": 16}, {"data": "a"}) is None


def fail(store, error):
    with store.write("train", {}, {}) as folder:
        (folder.path / "half").write_text("work")
        raise error


def test_a_failed_step_is_no_run_and_resumes_in_the_same_folder(store):
    with pytest.raises(RuntimeError, match="boom"):
        fail(store, RuntimeError("boom"))
    assert store.runs() == []
    with store.write("train", {}, {}) as folder:
        assert folder.resumed
        assert (folder.path / "half").read_text() == "work"
    assert len(store.runs("train")) == 1


def test_the_index_is_derived_and_deletable(store):
    for number in range(3):
        with store.write("train", {"n": number}, {}):
            pass
    assert len(store.runs()) == 3
    (store.root / "index.sqlite").unlink()
    assert len(store.runs()) == 3
    (store.root / "index.sqlite").write_text("damaged " * 999)
    assert sorted(run.config["n"] for run in store.runs()) == [0, 1, 2]
    victim = store.runs()[0]
    for path in sorted(store.folder(victim).rglob("*"), reverse=True):
        path.unlink()
    store.folder(victim).rmdir()
    assert victim.id not in {run.id for run in store.runs()}


def test_a_second_writer_is_refused_and_a_dead_ones_lock_is_taken_over(store):
    with store.write("train", {}, {}) as folder:
        lock = folder.path / ".lock"
        lock.write_text(f"{os.getppid()} {psutil.Process(os.getppid()).create_time()}")
        with pytest.raises(SetupError, match=r"already working on this"), store.write("train", {}, {}):
            pass
        lock.write_text(f"{os.getppid()} 1.0")
    with store.write("train", {"again": 1}, {}) as folder:
        pass
    assert not (store.folder(folder.run) / ".lock").exists()


def test_a_full_disk_has_a_clear_error_and_keeps_what_is_written(store):
    with pytest.raises(DiskFull, match="run the same command again"):
        fail(store, OSError(errno.ENOSPC, "No space left on device"))
    with store.write("train", {}, {}) as folder:
        assert (folder.path / "half").read_text() == "work"
    with pytest.raises(OSError, match="elsewhere"), disk_full_named(store.root):
        raise OSError(errno.EIO, "elsewhere")


def test_a_run_of_another_version_is_an_error_that_names_the_file(store):
    with store.write("train", {}, {}) as folder:
        pass
    (store.folder(folder.run) / "run.json").write_text('{"id": "x", "novel": 1}')
    with pytest.raises(DataError, match=r"run\.json is not a run of this version"):
        store.runs()


def test_jsonl_round_trip_and_errors_with_the_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [row("a"), row("b")])
    append_jsonl(path, row("ち"))
    assert [r.task_id for r in read_jsonl(path, Row)] == ["a", "b", "ち"]
    with path.open("a") as file:
        file.write('{"task_id": "half')
    with pytest.raises(DataError, match=r"rows\.jsonl, line 4"):
        read_jsonl(path, Row)
    assert len(read_jsonl(path, Row, partial=True)) == 3
    with pytest.raises(DataError, match="Cannot read"):
        read_jsonl(tmp_path / "none.jsonl", Row)
