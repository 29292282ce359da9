#!/usr/bin/env python3
"""Wall time of the same BFCL entries on the same server: `llm-tuner eval bfcl` against `bfcl generate` of bfcl-eval.

Both run as whole processes, start-up included, against an embedded llama.cpp server that is started anew for each run,
so that neither finds the other's prompt cache. Several rounds, in turns; the ratio is of medians. The official runner
is the package's own (`_llm_response_generation.main` with its handler for OpenAI-compatible servers), at its default
of one request at a time and at as many as ours. Vendor SDKs that it imports and does not use here are stood in for, so
that it runs without the 150 packages that it pins. Needs a virtual environment of its own:

    python -m venv VENV
    VENV/bin/pip install --no-deps bfcl-eval==2026.3.23 tree_sitter==0.21.3 tree-sitter-java==0.21.0 \\
        tree-sitter-javascript==0.21.4
    VENV/bin/pip install numpy openai tqdm python-dotenv tenacity overrides filelock

Then

    python benchmarks/eval_vs_bfcl.py VENV/bin/python --model qwen2.5-coder:0.5b --limit 10 --parallel 4 --json
    python benchmarks/eval_vs_bfcl.py VENV/bin/python --instant 50 --limit 100 --parallel 16 --json

`--instant MS` takes a server in the place of the model that answers every request after so many milliseconds, any
number at a time, as a GPU with room for all of them would: what is left is the runners' own speed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

from llm_tuner.evaluation import bfcl
from llm_tuner.evaluation.target import Target, locate
from llm_tuner.models.llamacpp import Embedded
from llm_tuner.models.resources import machine
from llm_tuner.types import Event

OFFICIAL = """
import importlib.abc, importlib.machinery, importlib.util, json, sys, types
from unittest.mock import MagicMock

class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    # Stands in for what bfcl_eval itself imports and does not find; other packages do without what they lack.
    def find_spec(self, name, path, target=None):
        frame = sys._getframe(1)
        while "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        inside = "bfcl_eval" in frame.f_code.co_filename and not name.startswith("bfcl_eval")
        inside = inside or isinstance(sys.modules.get(name.rpartition(".")[0]), MagicMock)
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if inside else None
    def create_module(self, spec):
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__ = [], spec
        return module
    def exec_module(self, module): pass

sys.meta_path.append(Absent())
configs = types.ModuleType("bfcl_eval.constants.model_config")
sys.modules["bfcl_eval.constants.model_config"] = configs
configs.MODEL_CONFIG_MAPPING = {}
import openai, tqdm, dotenv, tenacity, overrides
assert not isinstance(openai, MagicMock), "openai is not installed in this environment"
from types import SimpleNamespace
from bfcl_eval.model_handler.api_inference.openai_completion import OpenAICompletionsHandler
configs.MODEL_CONFIG_MAPPING["served-FC"] = SimpleNamespace(
    model_name="served", model_handler=OpenAICompletionsHandler, is_fc_model=True, underscore_to_dot=True)
from bfcl_eval import _llm_response_generation as runner
threads = int(sys.argv[1])
runner.main(SimpleNamespace(
    model=["served-FC"], test_category=["all"], temperature=0.001, include_input_log=False, exclude_state_log=False,
    num_threads=threads, num_gpus=1, backend="vllm", gpu_memory_utilization=0.9, result_dir=None, run_ids=True,
    allow_overwrite=False, skip_server_setup=False, local_model_path=None, lora_modules=None, enable_lora=False,
    max_lora_rank=None))
"""


def main() -> int:
    asked = parser().parse_args()
    categories = bfcl.named(asked.categories)
    drive(bfcl.fetch())
    ids = {category: ids_of(category, asked.limit, asked.seed) for category in categories}
    gguf = None if asked.instant else drive(locate(Target(model=asked.model))).gguf
    sides = {"ours": asked.parallel, "official": 1, "official_same_threads": asked.parallel}
    if asked.parallel == 1 or asked.default_only:
        del sides["official_same_threads"]
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    right: dict[str, int] = {}
    for number in range(asked.rounds):
        for side in list(sides)[:: 1 if number % 2 == 0 else -1]:
            with tempfile.TemporaryDirectory(prefix="eval-vs-bfcl-") as folder, server(asked, gguf) as url:
                started = time.perf_counter()
                if side == "ours":
                    ours(Path(folder), url, asked)
                else:
                    official(Path(folder), url, asked.python, ids, sides[side])
                seconds[side].append(time.perf_counter() - started)
                right[side] = judged(Path(folder), side)
            print(f"round {number + 1}, {side}: {seconds[side][-1]:.1f} s, {right[side]} right", file=sys.stderr)
    found = {
        "entries": sum(map(len, ids.values())),
        "categories": list(categories),
        "server": f"answers after {asked.instant} ms" if asked.instant else f"llama.cpp (embedded), {asked.model}",
        "parallel": asked.parallel,
        "seconds": {side: [round(s, 2) for s in taken] for side, taken in seconds.items()},
        "right": right,
        "ratio": {s: round(median(taken) / median(seconds["ours"]), 2) for s, taken in seconds.items() if s != "ours"},
        "machine": machine(),
    }
    print(json.dumps(found, indent=None if asked.json else 1))
    return 0


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("python", help="the Python of the virtual environment that has bfcl-eval")
    out.add_argument("--model", default="qwen2.5-coder:0.5b")
    out.add_argument("--instant", type=int, default=0, metavar="MS", help="no model: answer after so many milliseconds")
    out.add_argument("--categories", default="all", help="BFCL categories or groups, with commas (default all)")
    out.add_argument("--limit", type=int, default=10, help="entries of each category (default 10)")
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--parallel", type=int, default=4, help="requests at a time of ours, and the server's slots")
    out.add_argument("--default-only", action="store_true", help="bfcl generate at its default only")
    out.add_argument("--context", type=int, default=8192)
    out.add_argument("--threads", type=int, default=0)
    out.add_argument("--rounds", type=int, default=2)
    out.add_argument("--json", action="store_true", help="one line")
    return out


def ids_of(category: str, limit: int, seed: int) -> list[str]:
    return [task.tags["id"] for task in bfcl.load(category, limit, seed).tasks]


def ours(folder: Path, url: str, asked: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "llm_tuner", "eval", "bfcl", "--base-url", url, "--model", "served", "--json"]
    command += ["--categories", asked.categories, "--limit", str(asked.limit), "--seed", str(asked.seed)]
    command += ["--parallel", str(asked.parallel), "--out", str(folder / "ours")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def official(folder: Path, url: str, python: str, ids: dict[str, list[str]], threads: int) -> None:
    (folder / "test_case_ids_to_generate.json").write_text(json.dumps(ids))
    environment = os.environ | {"BFCL_PROJECT_ROOT": str(folder), "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none"}
    command = [python, "-c", OFFICIAL, str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    written = sum(len(file.read_text().splitlines()) for file in (folder / "result").rglob("*.json"))
    if done.returncode or written != sum(map(len, ids.values())):
        raise SystemExit(f"bfcl generate wrote {written} results, exit code {done.returncode}:\n{done.stderr[-2000:]}")


def judged(folder: Path, side: str) -> int:
    """Right answers as the runtime surfaced them: a check that both asked the same and got answers."""
    if side == "ours":
        reports = [json.loads(path.read_text()) for path in (folder / "ours").glob("*/report.json")]
        return sum(report["rates"]["ok"]["k"] for report in reports)
    command = [sys.executable, "-m", "llm_tuner", "eval", "score", str(folder / "result"), "--json"]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    return sum(json.loads(line).get("ok") is True for line in lines)


@contextmanager
def server(asked: argparse.Namespace, gguf: Path | None) -> Iterator[str]:
    if gguf is None:
        with instant(asked.instant / 1000) as url:
            yield url
        return
    with Embedded(gguf, context=asked.context, slots=asked.parallel, threads=asked.threads) as embedded:
        yield f"{embedded.address}/v1"


@contextmanager
def instant(seconds: float) -> Iterator[str]:
    answer = {
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "No."}}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
    body = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "served"} | answer).encode()

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            time.sleep(seconds)
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            return

    class Server(ThreadingHTTPServer):
        request_queue_size = 256

    served = Server(("127.0.0.1", 0), Answer)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{served.server_address[1]}/v1"
    finally:
        served.shutdown()
        served.server_close()


def drive(steps: Any) -> Any:
    """The result of a step, its events shown."""
    while True:
        try:
            event: Event = next(steps)
        except StopIteration as end:
            return end.value
        print(f"{event.step}: {event.message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
