"""The benchmark scripts start and do their own side; the other side needs an environment that they describe."""

from __future__ import annotations

import argparse
import importlib.util
import json
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
    asked = argparse.Namespace(categories="simple_java,irrelevance", limit=3, seed=0, parallel=2)
    with module.instant(0.01) as url:
        module.ours(tmp_path, url, asked)
    assert module.judged(tmp_path, "ours") == 3  # saying no is right where no call is wanted
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
    with pytest.raises(SystemExit, match="wrote 0 results"):
        script("eval_vs_bfcl").official(tmp_path, "http://127.0.0.1:9", sys.executable, {"simple_java": ["x"]}, 1)
