"""A whole import: nothing is lost or doubled, whatever happens in between, and memory does not grow with the rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rows import FORMATS, take, write_lines, xlam_row

from llm_tuner.data import intake
from llm_tuner.data.dataset import PARTIAL, PartialSet, chosen, open_examples, read_examples
from llm_tuner.data.overlap import Reference
from llm_tuner.data.rejections import Rejection
from llm_tuner.store import read_jsonl
from llm_tuner.store.suite import load
from llm_tuner.types import DataError, EmptyData, MissingExtra, SetupError

FILES = ["attempts.jsonl", "held-out.jsonl", "rejected.jsonl", "train.jsonl"]


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def same(a: Path, b: Path) -> bool:
    """The same tasks, attempts and rejections in the same order; a suite that was gone on with may say a tool twice."""
    suites = all(load(a / name) == load(b / name) for name in ("train.jsonl", "held-out.jsonl"))
    return suites and all((a / n).read_bytes() == (b / n).read_bytes() for n in ("attempts.jsonl", "rejected.jsonl"))


def test_every_row_comes_out_as_an_example_or_as_a_rejection(tmp_path: Path) -> None:
    rows: list[Any] = [xlam_row(n) for n in range(60)]
    rows += [xlam_row(3), xlam_row(4, query=json.loads(json.dumps(rows[4]))["query"].upper()), {"prompt": "x"}]
    file = write_lines(tmp_path / "x.jsonl", rows)
    with file.open("ab") as more:
        more.write(b'{"query": "\xff"}\n{"query": "half')
    found = take([file], tmp_path / "set")
    counts = found["counts"]
    assert counts["rows"] == 65
    assert counts["train"] + counts["held-out"] == 60
    assert counts["rejected"] == {
        "duplicate:same": 2, "read:another_format": 1, "read:invalid_utf8": 1, "read:half_line": 1,
    }  # fmt: skip
    rejected = read_jsonl(tmp_path / "set" / "rejected.jsonl", Rejection)
    assert {r.source for r in rejected} == {f"x.jsonl:{n}" for n in range(61, 66)}
    assert load(tmp_path / "set" / "train.jsonl").tasks
    for side in ("train", "held-out"):
        examples = list(read_examples(tmp_path / "set", side))
        assert len(examples) == counts[side]
        assert all(e.task.side == side and e.task.source == "xlam-function-calling-60k" for e in examples)
    assert not (tmp_path / "set" / PARTIAL).exists()


def test_the_same_command_again_reuses_what_is_there(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "x.jsonl", [xlam_row(n) for n in range(9)])
    first = take([file], tmp_path / "set")
    before = (tmp_path / "set" / "train.jsonl").stat().st_mtime_ns
    assert take([file], tmp_path / "set") == first
    assert (tmp_path / "set" / "train.jsonl").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="made otherwise"):
        take([file], tmp_path / "set", exclude_noncommercial=True)


def test_two_imports_of_the_same_files_are_the_same_to_the_byte(tmp_path: Path) -> None:
    files = [FORMATS / "toolace.json", FORMATS / "glaive.json", FORMATS / "openai_log.jsonl"]
    for name in ("a", "b"):
        take(files, tmp_path / name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert (tmp_path / "a" / "card.html").read_text() == (tmp_path / "b" / "card.html").read_text()


def test_licences_are_kept_and_noncommercial_rows_can_be_excluded(tmp_path: Path) -> None:
    rows = [xlam_row(n) | ({"license": "CC-BY-NC-4.0"} if n % 3 == 0 else {}) for n in range(30)]
    file = write_lines(tmp_path / "x.jsonl", rows)
    kept = take([file], tmp_path / "all")
    assert kept["counts"]["train"] + kept["counts"]["held-out"] == 30
    less = take([file], tmp_path / "less", exclude_noncommercial=True)
    assert less["counts"]["rejected"] == {"licence:noncommercial": 10}
    licences = {e.task.licence for e in open_examples(tmp_path / "less")}
    assert licences == {"CC-BY-4.0"}
    assert {e.task.licence for e in open_examples(tmp_path / "all")} == {"CC-BY-4.0", "CC-BY-NC-4.0"}


def test_benchmarks_and_the_held_out_side_stay_out_of_training(tmp_path: Path) -> None:
    long = "please list every parcel that was weighed in the northern depot on the third Monday of the month"
    rows = [xlam_row(n) for n in range(40)] + [xlam_row(100 + n, query=f"{long} for desk {n}") for n in range(8)]
    file = write_lines(tmp_path / "x.jsonl", rows)
    bench = xlam_row(7)["query"]
    found = take([file], tmp_path / "set", references={"bench": [Reference("b1", bench)]})
    rejected = found["counts"]["rejected"]
    assert rejected["overlap:bench"] == 1
    sides = {
        n: e.task.side
        for n in range(8)
        for e in open_examples(tmp_path / "set")
        if e.task.request.endswith(f"desk {n}")
    }
    assert set(sides.values()) in ({"held-out"}, {"train"})
    if "held-out" in sides.values():
        assert rejected["overlap:held-out"] == 8 - len(sides)
    told = [r for r in read_jsonl(tmp_path / "set" / "rejected.jsonl", Rejection) if r.stage == "overlap"]
    assert all(("b1" in r.detail) or ("same request as" in r.detail) or ("13 words" in r.detail) for r in told)


def test_withheld_tools_are_never_seen_in_training(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "x.jsonl", [xlam_row(n) for n in range(70)])
    take([file], tmp_path / "set", withheld={"tools": 0, "servers": 0, "names": ["look_2"]})
    train = list(read_examples(tmp_path / "set", "train"))
    assert train
    assert all("look_2" not in {tool.name for tool in e.task.tools} for e in train)
    held = [e for e in read_examples(tmp_path / "set", "held-out") if e.task.tools[0].name == "look_2"]
    assert len(held) == 10


def test_secrets_never_touch_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, token = "hanako.sato@corp.co.jp", "ghp_16C7e42F292c6912E7710c838347Ae178B4a"
    rows: list[Any] = [xlam_row(n, query=f"mail report {n} of the week to {secret} with {token}") for n in range(5)]
    rows += [{"query": secret, "tools": "[", "answers": "[]"}, {"prompt": token}]
    file = write_lines(tmp_path / "x.jsonl", rows)
    seen: list[bytes] = []
    publish = PartialSet.publish

    def look(self: PartialSet) -> None:
        seen.extend(path.read_bytes() for path in self.path.iterdir())
        publish(self)

    monkeypatch.setattr(PartialSet, "publish", look)
    found = take([file], tmp_path / "set", salt="")
    seen.extend(path.read_bytes() for path in (tmp_path / "set").iterdir())
    assert len(seen) > 8
    assert not any(secret.encode() in data or token.encode() in data for data in seen)
    assert found["scrubbed"]["e-mail"] >= 5
    assert found["scrubbed"]["key"] >= 5
    words = next(iter(open_examples(tmp_path / "set"))).task.request.split()
    placeholders = {word for e in open_examples(tmp_path / "set") for word in e.task.request.split() if "@" in word}
    assert len(placeholders) == 1  # one value, one placeholder, in the whole set
    assert any(word.startswith("ghp_") and word.endswith("EXAMPLE") for word in words)


def test_what_cannot_be_imported_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No file"):
        take([tmp_path / "none.jsonl"], tmp_path / "set")
    with pytest.raises(DataError, match="benchmark"):
        take([FORMATS / "bfcl.jsonl"], tmp_path / "set")
    with pytest.raises(DataError, match="no known format"):
        take([write_lines(tmp_path / "o.jsonl", [{"text": "x"}])], tmp_path / "set")
    bad = write_lines(tmp_path / "bad.jsonl", [xlam_row(n, answers="[") for n in range(3)])
    with pytest.raises(EmptyData, match="read:broken_call 3"):
        take([bad], tmp_path / "set")
    assert len(read_jsonl(tmp_path / "set" / "rejected.jsonl", Rejection)) == 3
    assert not (tmp_path / "set" / "data.json").exists()


def test_a_format_can_be_named(tmp_path: Path) -> None:
    file = FORMATS / "trl.jsonl"
    found = take([file], tmp_path / "set", format="trl")
    assert found["files"][0]["format"] == "trl"
    with pytest.raises(EmptyData, match="another_format"):
        take([file], tmp_path / "other", format="xlam")


# -------------------------------------------------------------------------------------------------------- interruptions

_STEPS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from rows import take
from llm_tuner.data import intake
intake.EVERY = int(sys.argv[4])
take([Path(sys.argv[2])], Path(sys.argv[3]))
"""


def start(file: Path, out: Path, every: int) -> subprocess.Popen[bytes]:
    arguments = [str(Path(__file__).parent), str(file), str(out), str(every)]
    return subprocess.Popen([sys.executable, "-c", _STEPS, *arguments], stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with duplicates, overlaps, secrets and broken lines among them."""
    folder = tmp_path_factory.mktemp("mixed")
    rows: list[Any] = []
    for n in range(500):
        rows.append(xlam_row(n))
        if n % 20 == 0:
            rows += [
                xlam_row(n // 2),
                {"broken": n},
                xlam_row(n + 5000, query=f"mail {n} to a{n}.b@corp.jp about {xlam_row(n)['query']}"),
            ]
    return write_lines(folder / "mixed.jsonl", rows)


def test_after_sigkill_the_same_command_goes_on_without_a_row_twice_or_lost(tmp_path: Path, mixed: Path) -> None:
    whole = tmp_path / "whole"
    take([mixed], whole)
    out = tmp_path / "killed"
    kills = 0
    for wanted in (40_000, 120_000, 250_000, 330_000):  # bytes written, at which the process is killed
        process = start(mixed, out, every=25)
        while process.poll() is None:
            written = sum(p.stat().st_size for p in (out / PARTIAL).glob("*.jsonl")) if (out / PARTIAL).is_dir() else 0
            if written > wanted:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        process.communicate()
    assert kills >= 2
    process = start(mixed, out, every=25)
    _, said = process.communicate()
    assert process.returncode == 0, said.decode()
    assert same(out, whole)
    facts = [json.loads((folder / "data.json").read_text()) for folder in (out, whole)]
    assert facts[0]["counts"] == facts[1]["counts"]
    assert facts[0]["scrubbed"] == facts[1]["scrubbed"]


def test_a_failure_at_any_place_is_gone_on_from(
    tmp_path: Path, mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Every commit, and every step of publishing, is a place where the process may end."""
    monkeypatch.setattr(intake, "EVERY", 100)
    whole = tmp_path / "whole"
    take([mixed], whole)
    out, commit, replace, tries = tmp_path / "set", PartialSet.commit, os.replace, 0

    class Killed(Exception):
        pass

    while True:
        tries += 1
        left = 3  # the first commit repeats the one that was gone on from

        def failing_commit(self: PartialSet, **facts: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            commit(self, **facts)

        def failing_replace(a: Any, b: Any) -> None:
            nonlocal left
            left -= "killed" not in str(a) and str(b).startswith(str(out)) and not str(a).endswith(".partial")
            if left == 0:
                raise Killed
            replace(a, b)

        monkeypatch.setattr(PartialSet, "commit", failing_commit)
        monkeypatch.setattr(os, "replace", failing_replace)
        try:
            take([mixed], out)
            break
        except Killed:
            assert tries < 60
    assert tries > 8
    assert same(out, whole)


def test_two_processes_do_not_write_the_same_set(tmp_path: Path, mixed: Path) -> None:
    partial = PartialSet(tmp_path / "set", "k")
    try:
        with pytest.raises(SetupError, match="Another process"):
            PartialSet(tmp_path / "set", "k")
    finally:
        partial.close()
    partial = PartialSet(tmp_path / "set", "k")
    partial.commit()
    partial.close()
    with pytest.raises(DataError, match="another data set"):
        PartialSet(tmp_path / "set", "other")


# -------------------------------------------------------------------------------------------------------------- memory

_PEAK = """
import sys, resource
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from rows import take
take([Path(sys.argv[2])], Path(sys.argv[3]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peak(file: Path, out: Path) -> float:
    """Megabytes that an import needs at most."""
    arguments = [sys.executable, "-c", _PEAK, str(Path(__file__).parent), str(file), str(out)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=570)
    return float(done.stdout)


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Each of 2,500 more rows carries 8 KB: kept in memory, they would be 20 MB and more."""
    text = "pad " * 2000
    small = write_lines(tmp_path / "small.jsonl", [xlam_row(n, note=text) for n in range(500)])
    large = write_lines(tmp_path / "large.jsonl", [xlam_row(n, note=text) for n in range(3000)])
    assert peak(large, tmp_path / "b") - peak(small, tmp_path / "a") < 8


# ------------------------------------------------------------------------------------------------------------- showing


def test_rows_are_chosen_by_kind_language_and_chance(tmp_path: Path) -> None:
    take([FORMATS / "openai_log.jsonl", FORMATS / "trl.jsonl", FORMATS / "glaive.json"], tmp_path / "set")
    every = list(open_examples(tmp_path / "set"))
    assert [e.task.id for e in chosen(every, most=3)] == [e.task.id for e in every[:3]]
    assert {e.task.language for e in chosen(every, most=50, language="ja")} == {"ja"}
    assert {e.task.category for e in chosen(every, most=50, kind="answer")} == {"answer"}
    drawn = [e.task.id for e in chosen(every, most=5, draw=True, seed=1)]
    assert drawn == [e.task.id for e in chosen(every, most=5, draw=True, seed=1)]
    assert drawn != [e.task.id for e in chosen(every, most=5, draw=True, seed=2)]
    assert len(set(drawn)) == 5


def test_parquet_in_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingExtra):
        take([tmp_path / "a.parquet"], tmp_path / "set")
