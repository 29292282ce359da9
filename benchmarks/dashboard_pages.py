#!/usr/bin/env python3
"""How soon the dashboard's pages come with many attempts and exchanges, while they are being indexed and after.

Made data, a folder of its own; asked in this process through the ASGI application, so without a network.

    python benchmarks/dashboard_pages.py --json
    python benchmarks/dashboard_pages.py --attempts 100000 --exchanges 100000 --folder /tmp/dashboard-pages
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from starlette.testclient import TestClient

from llm_tuner.apps.dashboard.app import Dashboard
from llm_tuner.models.resources import machine
from llm_tuner.operations.table import OPERATIONS
from llm_tuner.serving.exchanges import Exchange, Recorder, Route
from llm_tuner.store import Store
from llm_tuner.store.scrub import Scrubber
from llm_tuner.store.suite import Suite, save
from llm_tuner.types import (
    Attempt,
    ExactCalls,
    Latency,
    Message,
    NoCall,
    Rate,
    Report,
    Task,
    Timing,
    ToolCall,
    ToolResult,
    ToolSpec,
    Usage,
    Verdict,
)

SCHEMA = {
    "type": "object",
    "properties": {"path": {"type": "string", "description": "Where."}, "count": {"type": "integer"}},
    "required": ["path"],
}
TOOLS = tuple(
    ToolSpec(
        name=f"tool_{i}", description=f"Does thing number {i} with a path. " * 3, parameters=SCHEMA, server=f"s{i % 4}"
    )
    for i in range(24)
)
CATALOGUES = (TOOLS[:8], TOOLS[8:16], TOOLS[16:], TOOLS)
REASONS = ("ok", "ok", "ok", "wrong_tool", "wrong_value", "missing_parameter", "no_call")


def main() -> None:
    asked = parser().parse_args()
    folder = Path(asked.folder or tempfile.mkdtemp())
    os.environ["XDG_DATA_HOME"] = str(folder / "data")
    store, journal = Store(folder / "runs"), folder / "exchanges"
    if not store.runs("evaluate"):
        measured(store, asked.attempts)
        recorded(journal, asked.exchanges)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    found = pages(store, journal, folder / "cache")
    document = {"machine": machine(), "attempts": asked.attempts, "exchanges": asked.exchanges, **found}
    if asked.json:
        print(json.dumps(document, indent=2))
    else:
        print(f"indexed in {found['indexing_s']} s; meanwhile median {found['meanwhile_ms'][0]:.0f} ms, "
              f"at most {found['meanwhile_ms'][1]:.0f}")  # fmt: skip
        for path, (middle, most) in found["pages_ms"].items():
            print(f"{middle:7.1f} ms median {most:7.1f} at most  {path}")
    if not asked.folder:
        shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.flush()
    os._exit(0)  # threads of the dashboard may still be asking


def measured(store: Store, count: int) -> None:
    """One evaluate run with so many attempts."""
    rng = random.Random(0)
    tasks = []
    for i in range(count):
        tools = CATALOGUES[i % 4]
        call = ToolCall(name=tools[i % len(tools)].name, arguments={"path": f"src/{i}", "count": i % 7})
        tasks.append(
            Task(
                messages=(Message(role="user", text=f"Please do the thing {i} in src/{i}, {i % 7} times."),),
                tools=tools,
                expect=ExactCalls(calls=(call,)) if i % 5 else NoCall(),
                category="single" if i % 5 else "no_call",
                language="en" if i % 2 else "ja",
            )
        )
    suite = Suite(name="held-out", tasks=tuple(tasks))
    with store.write("evaluate", {}, {"model": "made"}) as folder:
        out = folder.path / "held-out"
        out.mkdir()
        save(suite, out / "suite.jsonl")
        verdicts = {}
        with (out / "attempts.jsonl").open("w", encoding="utf-8") as file:
            for i, task in enumerate(tasks):
                reason = rng.choice(REASONS)
                ok = reason == "ok"
                verdicts[task.id] = verdict = Verdict(
                    ok=ok, selection_ok=ok, parameters_ok=ok, score=1.0 if ok else 0.2, reason=reason, detail="As said."
                )
                called = ToolCall(name=task.tools[i % len(task.tools)].name, arguments={"path": f"src/{i}"}, id=f"c{i}")
                attempt = Attempt(
                    task_id=task.id,
                    backend="made",
                    messages=(Message(role="assistant", tool_calls=(called,)),),
                    usage=Usage(prompt_tokens=900, completion_tokens=30),
                    timing=Timing(total_ms=rng.lognormvariate(7, 0.5)),
                    verdict=verdict,
                )
                file.write(attempt.model_dump_json(exclude_defaults=True) + "\n")
        half = Rate(k=count // 2, n=count, value=0.5, low=0.49, high=0.51)
        report = Report(
            suite="held-out", suite_hash=suite.hash, backend="made", n=count,
            rates={"ok": half, "selection": half, "parameters": half}, latency=Latency(n=count, p50_ms=1100.0),
            verdicts=verdicts,
        )  # fmt: skip
        (out / "report.json").write_text(report.model_dump_json(), encoding="utf-8")
        folder.outputs["held-out"] = "held-out/report.json"
        folder.metrics["held-out"] = {"ok": 0.5}


def recorded(journal: Path, count: int) -> None:
    """A journal of so many exchanges: a call, then its result, some of them errors."""
    rng, recorder = random.Random(1), Recorder(journal, Scrubber("s" * 32))
    route = Route(role="worker", backend="demo:stable")
    for i in range(count // 2):
        tools = CATALOGUES[i % 4]
        call = ToolCall(name=tools[i % len(tools)].name, arguments={"path": f"src/{i}"} if i % 6 else {}, id=f"call{i}")
        ask, said = Message(role="user", text=f"Question {i}"), Message(role="assistant", tool_calls=(call,))
        content = "Done." if i % 6 else "Error: path is a required property"
        heard = Message(role="tool", result=ToolResult(call_id=f"call{i}", content=content, is_error=not i % 6))
        for messages, answer in (((ask,), said), ((ask, said, heard), Message(role="assistant", text="It is done."))):
            timing = Timing(total_ms=rng.lognormvariate(7, 0.5))
            recorder.record(
                Exchange(model="worker", messages=messages, tools=tools, answer=answer, route=route, timing=timing)
            )
        if not i % 1000:
            recorder.flush()
    recorder.close()


def pages(store: Store, journal: Path, cache: Path) -> dict[str, Any]:
    """Milliseconds of each page: while the index is made, then medians and maxima of nine."""
    client = TestClient(Dashboard(OPERATIONS, store, journal=journal, cache=cache).app, base_url="http://127.0.0.1:1")
    run = store.runs("evaluate")[0].id
    base = f"/evaluations/{run}/held-out"

    def took(path: str) -> tuple[float, Any]:
        clock = time.perf_counter()
        answer = client.get(path)
        spent = (time.perf_counter() - clock) * 1000
        assert answer.status_code == 200, (path, answer.status_code)
        return spent, answer

    client.get("/login")
    begun, meanwhile = time.monotonic(), []
    while True:
        first, evaluation = took(base)
        second, traffic = took("/traffic")
        meanwhile += [first, second]
        if evaluation.headers["x-again"] == "0" and "Reading files" not in traffic.text:
            break
        time.sleep(0.3)
    indexing = round(time.monotonic() - begun, 1)
    attempt = re.search(base + r'/([0-9a-f]{16})"', evaluation.text)
    exchange = re.search(r"/traffic/([0-9a-f-]{36})", traffic.text)
    assert attempt
    assert exchange
    paths = [
        "/", "/models", "/runs", f"/runs/{run}", "/evaluations", base, f"{base}?page=1999", f"{base}?tool=tool_3",
        f"{base}?reason=wrong_value&page=200", f"{base}/{attempt[1]}", "/data", "/traffic", "/traffic?page=1999",
        "/traffic?tool=tool_3", f"/traffic/{exchange[1]}", "/resources", "/operations",
    ]  # fmt: skip
    spent = {path: [took(path)[0] for _ in range(9)] for path in paths}
    return {
        "indexing_s": indexing,
        "meanwhile_ms": [round(median(meanwhile), 1), round(max(meanwhile), 1)],
        "pages_ms": {p.replace(run, "RUN"): [round(median(t), 1), round(max(t), 1)] for p, t in spent.items()},
        "index_bytes": sum(file.stat().st_size for file in (cache / "dashboard").iterdir()),
    }


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--attempts", type=int, default=100_000)
    made.add_argument("--exchanges", type=int, default=100_000)
    made.add_argument("--folder", default="", help="Keep the made data here, and use what is there.")
    made.add_argument("--json", action="store_true")
    return made


if __name__ == "__main__":
    main()
