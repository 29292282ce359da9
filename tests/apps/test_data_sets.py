"""`llm-tuner data import|export|check|show|card` as a user meets them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llm_tuner.serving.exchanges import Recorder
from llm_tuner.store.scrub import Scrubber
from recording import asked, call, calling, heard, user

FORMATS = Path(__file__).parent.parent / "data" / "formats"


def llm_tuner(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "llm_tuner", *arguments], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "set"
    files = [str(FORMATS / name) for name in ("toolace.json", "openai_log.jsonl", "when2call_sft.jsonl")]
    done = llm_tuner("data", "import", *files, "--out", str(folder), "--licence", "own", "--no-benchmark", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["counts"]["rows"] == 15
    assert document["counts"]["train"] + document["counts"]["held-out"] == 11
    return folder


def test_check_passes_and_fails_with_30(data_set: Path, tmp_path: Path) -> None:
    done = llm_tuner("data", "check", str(data_set), "--no-benchmark", "--json")
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert (found["ok"], found["valid"], found["duplicates"], found["overlaps"]) == (True, 11, 0, {"held-out": 0})
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in data_set.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    with (broken / "rejected.jsonl").open("a") as file:
        file.write("{}\n")
    done = llm_tuner("data", "check", str(broken), "--no-benchmark")
    assert done.returncode == 30
    assert "rejected.jsonl was changed" in done.stdout
    assert "not all right" in done.stdout


def test_show_reads_like_a_conversation(data_set: Path) -> None:
    text = llm_tuner("data", "show", str(data_set), "--limit", "50").stdout
    for words in (
        "user",
        "offered",
        "expected",
        "verdict",
        'Market_Trends_API(trend_type="MARKET_INDEXES"',
        "no call",
        "ok",
    ):
        assert words in text
    japanese = json.loads(llm_tuner("data", "show", str(data_set), "--language", "ja", "--json").stdout)
    assert [row["language"] for row in japanese] == ["ja"]
    drawn = [llm_tuner("data", "show", str(data_set), "--random", "3", "--seed", "5").stdout for _ in range(2)]
    assert drawn[0] == drawn[1] != ""
    suite = json.loads(llm_tuner("data", "show", str(data_set / "train.jsonl"), "--json").stdout)
    assert {row["side"] for row in suite} == {"train"}


@pytest.mark.weights
def test_show_marks_what_is_trained(smol_gguf: Path, tmp_path: Path) -> None:
    from template_families import FAMILIES, write

    tuned = write(tmp_path / "qwen3.gguf", smol_gguf, FAMILIES["Qwen3"])
    suite = str(Path(__file__).parents[2] / "examples" / "suite" / "kitchen.jsonl")
    text = llm_tuner("data", "show", suite, "--limit", "2", "--mask", str(tuned)).stdout
    assert text.count("[[<think>\n\n</think>\n\n<tool_call>") == 2
    assert text.count("</tool_call><|im_end|>]]") == 2
    assert "tokens read" in text
    document = json.loads(llm_tuner("data", "show", suite, "--limit", "1", "--mask", str(tuned), "--json").stdout)
    (row,) = document[0]["rows"]
    assert text.count(row["completion"]) >= 1
    assert "[[" not in row["completion"]
    deaf = llm_tuner("data", "show", suite, "--limit", "1", "--mask", str(smol_gguf)).stdout
    assert "drops calls" in deaf


def test_export_and_card(data_set: Path, tmp_path: Path) -> None:
    done = llm_tuner(
        "data", "export", str(data_set), "--out", str(tmp_path / "a.jsonl"), "--side", "train,held-out", "--json"
    )
    assert json.loads(done.stdout)["rows"] == 11
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 11
    done = llm_tuner("data", "card", str(data_set), "--seed", "9", "--json")
    assert json.loads(done.stdout)["counts"]["licence"]["own"] == 3
    assert llm_tuner("data", "check", str(data_set), "--no-benchmark").returncode == 0  # the hashes know the new card


BAD = [
    (["import", "none.jsonl", "--out", "x"], 30, "No file none.jsonl"),
    (["import", str(FORMATS / "bfcl.jsonl"), "--out", "x"], 30, "benchmark"),
    (["import", str(FORMATS / "trl.jsonl"), "--out", "x", "--format", "csv"], 4, 'No format "csv"'),
    (["check", "none"], 30, "none is no data set"),
    (["card", "none"], 30, "none is no data set"),
    (["export", "none", "--out", "x.csv"], 4, ".jsonl or .parquet"),
    (["show", "none.jsonl"], 30, "none.jsonl"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), BAD, ids=[" ".join(row[0][:2]) for row in BAD])
def test_bad_input(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    more = ["--no-benchmark"] if arguments[0] in ("import", "check") else []
    done = llm_tuner("data", *arguments, *more)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.benchmark
def test_what_was_taken_from_bfcl_is_found_and_said(tmp_path: Path) -> None:
    """Requests of the benchmark in another format, some with a few words before and after them."""
    from llm_tuner.evaluation import bfcl

    function = {"name": "f", "description": "Do it", "parameters": {"type": "object", "properties": {}}}
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    texts = [task.request for task in bfcl.load(["simple_python", "live_multiple"], limit=40).tasks]
    texts = [text if n % 2 else f"Hello there. {text} Thanks in advance!" for n, text in enumerate(texts)]
    rows = [
        {
            "messages": [{"role": "user", "content": text}, {"role": "assistant", "tool_calls": [call]}],
            "tools": [{"type": "function", "function": function}],
        }
        for text in [*texts, "Water the lemon tree on the roof of the old library on Friday"]
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = llm_tuner("data", "import", str(tmp_path / "x.jsonl"), "--out", str(tmp_path / "set"), "--json")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)["counts"]
    found = counts["rejected"].get("overlap:bfcl", 0)
    assert counts["train"] + counts["held-out"] + sum(counts["rejected"].values()) == 81
    assert found >= 70, counts
    told = (tmp_path / "set" / "rejected.jsonl").read_text(encoding="utf-8")
    assert told.count("bfcl:") == found


@pytest.mark.benchmark
def test_the_commands_of_the_docs_run(tmp_path: Path) -> None:
    """All of docs/data.md but the one that needs a model."""
    (tmp_path / "chats.jsonl").write_bytes((FORMATS / "openai_log.jsonl").read_bytes())
    (tmp_path / "ToolACE.json").write_bytes((FORMATS / "toolace.json").read_bytes())
    recorder, said = Recorder(tmp_path / "journal", Scrubber("test")), user("Read a.txt")
    recorder.record(asked(said, answer=calling(call("read_file", "c1", path="a.txt"))))
    recorder.record(asked(said, calling(call("read_file", "c1", path="a.txt")), heard("text", "c1"), answer=None))
    recorder.close()
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("llm-tuner data ")]
    lines = [line for line in lines if "--model" not in line and "synthesize" not in line]
    assert len(lines) >= 6
    for line in lines:
        command = [sys.executable, "-m", "llm_tuner", *shlex.split(line)[1:]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.returncode == 0, (line, done.stderr)
