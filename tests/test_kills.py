"""SIGKILL in every step of a real round, `--resume` after each: the end is that of a round that nobody killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("torch")

pytestmark = [pytest.mark.slow, pytest.mark.weights, pytest.mark.servers, pytest.mark.timeout(3600)]

CONFIG = """
name = "small"
own_attempts = 2
unseen_tasks = 0
train = { tasks = 24, catalogues = 2, sizes = [3, 3], several = 0.0, no_call = 0.1, unseen = ["git_show", "git_log"] }
held_out = { tasks = 8, catalogues = 1, sizes = [3, 3], several = 0.0, whole_hub = false }
sft = { epochs = 2, accumulation = 6 }
rules = { min_native = 0.0, margin = 1.0, min_gain = -1.0, slowdown = 100.0, forget = 10.0 }
"""
"""The gate lets pass what there is: what is tested here is the order of things."""

KILLS = (
    r"collect: +\d+ of 24",
    r"collect: +\d of 2 ",
    r"measure: +[1-5] of 8",
    r"render: ",
    r"train: +[2-6] of",
    r"export: ",
    r"install: +installing",
    r"parity: ",
    r"measure: +[1-5] of 8",
    r"general: |measure: +\d+ of 40",
    r"perplexity: ",
)
"""What a run had just said when it was killed, in this order; a pattern that does not come any more is passed over."""


def begin(home: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "XDG_DATA_HOME": str(home)}
    loud = (
        "import sys, llm_tuner.apps.console as c, llm_tuner.apps.cli as m; c.QUIET_SECONDS = 0;"
        "sys.exit(m.run(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", loud, "tune", "--json", *words]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def killed(process: subprocess.Popen[str], pattern: str) -> bool:
    """Kills it when it says this; False where it ended before."""
    assert process.stderr is not None
    for line in process.stderr:
        if re.match(pattern, line):
            family = psutil.Process(process.pid).children(recursive=True)
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            left = psutil.wait_procs(family, timeout=20)[1]
            assert not left, f"still there after {pattern}: {left}"
            return True
    process.wait()
    return False


def document(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, log = process.communicate()
    assert process.returncode == 0, log[-2000:]
    found: dict[str, Any] = json.loads(out)
    return found


def comparable(found: dict[str, Any]) -> dict[str, Any]:
    """All but times, names of runs and where files lie."""
    said = [re.sub(r"\d+ ms", "ms", sentence) for sentence in found["decision"]["sentences"]]
    rates = {side: {k: v for k, v in found[side].items() if k != "latency_p50_ms"} for side in ("before", "after")}
    stages = [(one["method"], one["promote"]) for one in found["stages"]]
    return {"said": said, "stages": stages, **rates}


def test_a_round_that_is_killed_in_every_step_ends_as_one_that_is_not(tmp_path: Path) -> None:
    file = tmp_path / "tune.toml"
    file.write_text(CONFIG)
    straight = document(begin(tmp_path / "straight", "--config", str(file)))
    home, done, words = tmp_path / "killed", [], ("--config", str(file))
    for pattern in KILLS:
        if killed(begin(home, *words), pattern):
            done.append(pattern)
            words = ("--resume",)
        else:
            break
    assert len(done) >= 9, done
    ended = document(begin(home, "--resume"))
    assert comparable(ended) == comparable(straight)
    assert curves(home) == curves(tmp_path / "straight")
    assert ended["decision"]["stable"] == straight["decision"]["stable"]


def curves(home: Path) -> dict[str, list[float]]:
    """The losses of each training, by its kind."""
    found = {}
    for file in sorted((home / "llm-tuner" / "runs").glob("*/curve.jsonl")):
        kind = json.loads((file.parent / "run.json").read_text())["kind"]
        found[kind] = [round(json.loads(line)["loss"], 6) for line in file.read_text().splitlines()]
    return found
