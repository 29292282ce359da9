"""The benchmark scripts start and do their own side; the other side needs an environment that they describe."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import httpx2
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_server_without_a_model_answers_many_at_a_time() -> None:
    with script("eval_vs_bfcl").instant(0.4) as url, ThreadPoolExecutor(20) as pool:
        started = time.perf_counter()
        asked = [pool.submit(httpx2.post, f"{url}/chat/completions", json={}, trust_env=False) for _ in range(20)]
        said = {answer.result().json()["choices"][0]["message"]["content"] for answer in asked}
        assert said == {"No."}
        assert time.perf_counter() - started < 4  # one after the other they would take 8 s


@pytest.mark.benchmark
def test_our_side_asks_and_is_judged(tmp_path: Path) -> None:
    module = script("eval_vs_bfcl")
    asked = argparse.Namespace(categories="simple_java,irrelevance", limit=3, seed=0, parallel=2, max_tokens=64)
    with module.instant(0.01) as url:
        module.ours(tmp_path, url, asked)
    assert module.judged(tmp_path, "ours") == (3, 6)  # saying no is right where no call is wanted
    report = json.loads((tmp_path / "ours" / "simple_java" / "report.json").read_text())
    assert (report["n"], report["machine"]["requests_at_a_time"]) == (3, "2")


@pytest.mark.benchmark
def test_both_sides_take_the_same_entries() -> None:
    module = script("eval_vs_bfcl")
    ids = module.ids_of("simple_java", 5, 0)
    assert len(set(ids)) == 5
    assert ids == module.ids_of("simple_java", 5, 0) != module.ids_of("simple_java", 5, 1)
    assert all(name.startswith("simple_java_") for name in ids)


def test_a_side_that_fails_is_named(tmp_path: Path) -> None:
    module, asked = script("eval_vs_bfcl"), argparse.Namespace(python=sys.executable, max_tokens=64)
    with pytest.raises(SystemExit, match="wrote 0 results"):
        module.official(tmp_path, "http://127.0.0.1:9", asked, {"simple_java": ["x"]}, 1)


@pytest.mark.slow
def test_training_against_trl_runs_and_both_sides_agree(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    command = [sys.executable, str(FOLDER / "train_vs_trl.py"), "--smoke", "--json", "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)["cases"]
    assert "eight" in found
    for case in found.values():
        ours, trl = case["ours"], case["trl"]
        assert ours["loss_before"] == pytest.approx(trl["loss_before"], rel=1e-3)
        assert ours["steps"] == trl["steps"] == 1
        assert case["time_ratio"] == pytest.approx(trl["epoch_seconds"] / ours["epoch_seconds"], rel=0.2)
        assert min(ours["peak_gb"], trl["peak_gb"], ours["tokens_per_s"], trl["tokens_per_s"]) > 0


def test_losses_that_disagree_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    module = script("train_vs_trl")
    judge = module.Bench.__new__(module.Bench)
    judge.made = {"precision": "float32"}
    run = {"epoch_seconds": 2.0, "warm_up_seconds": 1.0, "wall_seconds": 3.0, "step_seconds": [1.0, 1.0]}
    run |= {"losses": [2.0, 1.5], "settings": {}, "peak_cuda_gb": None, "peak_rss_gb": 1.0}
    rows = module.invented("eight", 256, 1, 4)

    def agree(before: tuple[float, float], after: tuple[float, float]) -> bool:
        names = ("ours", "trl")
        found = judge._summary(
            "eight", rows, {"ours": [run], "trl": [run]},
            dict(zip(names, before, strict=True)), {"base": 2.0, **dict(zip(names, after, strict=True))},
        )  # fmt: skip
        return bool(found["losses_agree"])

    assert agree((2.0, 2.0), (1.0, 1.1))
    assert not agree((2.0, 2.01), (1.0, 1.0))  # another loss before anything was learned
    assert not agree((2.0, 2.0), (1.0, 1.3))  # less was learned


def test_recording_is_measured() -> None:
    command = [sys.executable, str(FOLDER / "recording.py"), "--json", "--exchanges", "300"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["lost"] == 0
    assert found["exchanges_per_s"] > 100
    assert found["bytes_per_exchange"] < found["bytes_if_each_stood_alone"] / 4


def test_recall_is_counted_by_language_place_and_budget() -> None:
    from llm_tuner.models.window import guessed
    from llm_tuner.tools.retrieval import index
    from llm_tuner.types import ExactCalls, Message, Task, ToolCall, ToolSpec

    module = script("retrieval")
    hub = [ToolSpec.model_validate(tool) for tool in json.loads(module.HUB.read_text())]
    said = {"Fork acme/parser on GitHub": ("en", "fork_repository"), "リマは今何時?": ("ja", "get_current_time")}
    tasks = []
    for text, (language, name) in said.items():
        task = Task(
            messages=(Message(role="user", text=text),),
            tools=(),
            expect=ExactCalls(calls=(ToolCall(name=name),)),
            language=language,
        )
        tasks.append(module.Asked(task, (name,)))
    found = module.measured(tasks, index(hub), guessed, 1900, ["fork_repository"])
    assert found["recall"]["all"]["at 5"]["n"] == 2
    assert found["recall"]["ja"]["at 1900 tokens, compressed"]["k"] == 1
    assert found["recall"]["tool:unseen"]["at 16"] == found["recall"]["en"]["at 16"]
    assert max(found["most_tokens"].values()) <= 1900
    assert "2 requests" in module.text({"side": "train", "tools": 73, **found})
