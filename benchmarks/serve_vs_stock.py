#!/usr/bin/env python3
"""A tool call from all 73 tools of the reference hub: stock Ollama against the gateway in front of the same server.

The same requests (English and Japanese, held-out templates; examples/hub-8), the same model, the same machine, one run:

    stock      Ollama's /api/chat as an agent sends it, with all definitions and no options: the server's own window
    wide       the same with num_ctx 16384, as somebody who knows would set it
    gateway    the same body to the gateway, which fits the tools (--budget) and answers through the same Ollama

`warm`: requests one after the other, each with a new text; the prompt cache has what it can have. `cold`: the model is
unloaded before the request. Right is
what `scoring.score` says: `native` counts calls that came as tool_calls, `lenient`
also those that were written as text. The gateway's own retry and mending are part of it; no other model helps.

    ollama serve &
    examples/hub-8/install.sh                   # once: the tool list
    python benchmarks/serve_vs_stock.py --model qwen2.5-coder:0.5b --json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
from train_vs_trl_rows import drive, tool_list

from llm_tuner.data.synthesize import Mix, synthesize
from llm_tuner.evaluation.intervals import rate
from llm_tuner.models import dialects
from llm_tuner.models.ollama import OllamaServer
from llm_tuner.models.ollama_templates import GO_TEMPLATES
from llm_tuner.models.resources import machine
from llm_tuner.models.sources import fetch
from llm_tuner.scoring import score
from llm_tuner.types import Attempt, Message, Task, ToolCall

TAG = "llm-tuner-bench"
WIDE = 16_384


def main() -> None:
    asked = parser().parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    server = OllamaServer()
    tasks = requests(asked)
    drive(server.create(TAG, drive(fetch(asked.model)), template=GO_TEMPLATES["Qwen2.5"]))
    sides: dict[str, Any] = {}
    with gateway(asked) as front:
        for name in asked.sides.split(","):
            url = front if name == "gateway" else server.url
            options = {"temperature": 0, "num_predict": 192} | ({"num_ctx": WIDE} if name == "wide" else {})
            cold = []
            for task in tasks[: asked.cold]:
                server.unload(TAG)
                cold.append(ask(url, task, options)[1])
            answers = []
            for number, task in enumerate(tasks, start=1):
                answers.append((task, *ask(url, task, options)))
                print(f"{name}: {number} of {len(tasks)}, {answers[-1][2]:.1f} s", file=sys.stderr, flush=True)
            sides[name] = summary(answers, cold)
            print(json.dumps({name: sides[name]}), file=sys.stderr, flush=True)
    server.delete(TAG)
    found = {
        "model": asked.model,
        "tasks": len(tasks),
        "ollama": server.version(),
        "sides": sides,
        "machine": machine(),
    }
    if {"stock", "gateway"} <= sides.keys():
        found["ratios"] = {
            f"{kind}_{other}": round(sides[other][kind]["p50_s"] / sides["gateway"][kind]["p50_s"], 2)
            for kind in ("warm", "cold")
            for other in sides
            if other != "gateway" and sides["gateway"][kind]["n"]
        }
    print(json.dumps(found, indent=None if asked.json else 1))


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--model", default="qwen2.5-coder:0.5b")
    out.add_argument("--tasks", type=int, default=48)
    out.add_argument("--cold", type=int, default=3, help="cold requests of each side (default 3)")
    out.add_argument("--budget", type=int, default=1900, help="tokens of the fitted tools (default 1900)")
    out.add_argument("--show", default="fit", choices=("full", "fit", "compact", "hint"))
    out.add_argument("--sides", default="stock,wide,gateway")
    out.add_argument("--split", default="held-out", choices=("train", "held-out"), help="whose phrases are asked")
    out.add_argument("--seed", type=int, default=2)
    out.add_argument("--work", type=Path, default=Path("build/serve-vs-stock"), help="the tool list")
    out.add_argument("--json", action="store_true", help="one line")
    return out


def requests(asked: argparse.Namespace) -> list[Task]:
    specs = tool_list(asked.work / "tools.json")
    mix = Mix(tasks=asked.tasks, catalogues=1, whole_hub=True, catalogue_chars=10_000_000, seed=asked.seed)
    return list(synthesize(specs, mix, asked.split, pages="http://127.0.0.1:8000"))


def ask(url: str, task: Task, options: dict[str, Any]) -> tuple[Message, float]:
    """The answer and the seconds it took."""
    body = {
        "model": TAG,
        "messages": [{"role": message.role, "content": message.text} for message in task.messages],
        "tools": [tool.openai() for tool in task.tools],
        "options": options,
        "stream": False,
    }
    began = time.perf_counter()
    answer = httpx2.post(f"{url}/api/chat", json=body, timeout=1800, trust_env=False)
    took = time.perf_counter() - began
    if answer.status_code not in (200, 400, 502):  # what a server refuses is an answer that is wrong
        raise SystemExit(f"{url} failed with HTTP {answer.status_code}: {answer.text[:300]}")
    if answer.status_code != 200:
        print(f"refused: {answer.text[:300]}", file=sys.stderr, flush=True)
        return Message(role="assistant", text=f"(HTTP {answer.status_code}) {answer.text[:200]}"), took
    said = answer.json()["message"]
    calls = tuple(
        ToolCall(name=call["function"]["name"], arguments=call["function"]["arguments"])
        for call in said.get("tool_calls") or ()
    )
    message = Message(role="assistant", text=said.get("content") or "", tool_calls=calls)
    return dialects.read(message, task.tools), took


def summary(answers: Sequence[tuple[Task, Message, float]], cold: Sequence[float]) -> dict[str, Any]:
    out: dict[str, Any] = {
        "warm": {"n": len(answers), "p50_s": round(median(took for _, _, took in answers), 3)},
        "cold": {"n": len(cold), "p50_s": round(median(cold), 3) if cold else None},
    }
    for reading in ("native", "lenient"):
        verdicts = [
            (task, score(task, Attempt(task_id=task.id, backend=TAG, messages=(said,)), reading=reading))  # type: ignore[arg-type]
            for task, said, _ in answers
        ]
        wanted = [(task, verdict) for task, verdict in verdicts if task.expect.kind != "none"]
        for what in ("selection", "parameters"):
            for language in ("", "en", "ja"):
                some = [verdict for task, verdict in wanted if not language or task.language == language]
                one = rate(sum(getattr(verdict, f"{what}_ok") for verdict in some), len(some))
                key = f"{what}_{reading}" + (f"_{language}" if language else "")
                out[key] = [one.value, one.low, one.high]
    return out


@contextmanager
def gateway(asked: argparse.Namespace) -> Iterator[str]:
    """The gateway in front of Ollama, in a thread."""
    import uvicorn

    from llm_tuner.apps.gateway import Gateway
    from llm_tuner.apps.gateway.opening import RoleSettings, opened
    from llm_tuner.serving.context import Context
    from llm_tuner.serving.service import Service

    with ExitStack() as stack:
        roles = drive(opened({"worker": RoleSettings(ollama=TAG, window=8192)}, stack))
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        app = Gateway(Service(roles, fit=Context(asked.show, asked.budget))).app
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


if __name__ == "__main__":
    main()
