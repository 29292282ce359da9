#!/usr/bin/env python3
"""What the gateway itself costs: requests at a steady rate to an instant back end, alone and through the gateway.

The back end answers OpenAI-style streams at once: a call written as text (so that lifting and checking are paid for),
in ten pieces. Both are asked by turns, request by request, so that noise meets both alike. Then `--streams` streams at
the same time, each of which lasts a second.

    python benchmarks/gateway_load.py --json
    python benchmarks/gateway_load.py --rate 50 --seconds 30 --streams 200 --tools 8
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from statistics import median, quantiles
from typing import Any

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from llm_tuner.models.resources import machine

ANSWER = 'I read it.\n```json\n{"name": "tool_0", "arguments": {"path": "README.md", "lines": "12"}}\n```'


def main() -> None:
    asked = parser().parse_args()
    if asked.back_end:
        serve(back_end(), asked.back_end)
        return
    if asked.gateway:
        serve(gateway(asked.gateway[1]), int(asked.gateway[0]))
        return
    ports = free_ports(2)
    here = [sys.executable, __file__]
    children = [
        subprocess.Popen([*here, "--back-end", str(ports[0])]),
        subprocess.Popen([*here, "--gateway", str(ports[1]), f"http://127.0.0.1:{ports[0]}/v1"]),
    ]
    try:
        found = asyncio.run(measured(asked, *(f"http://127.0.0.1:{port}" for port in ports)))
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait()
    print(json.dumps(found | {"machine": machine()}, indent=None if asked.json else 1))


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--rate", type=float, default=50, help="requests a second (default 50)")
    out.add_argument("--seconds", type=float, default=20)
    out.add_argument("--streams", type=int, default=200, help="at the same time (default 200)")
    out.add_argument("--tools", type=int, default=8, help="definitions in each request (default 8)")
    out.add_argument("--json", action="store_true", help="one line")
    out.add_argument("--back-end", type=int, default=0, help=argparse.SUPPRESS)
    out.add_argument("--gateway", nargs=2, default=None, help=argparse.SUPPRESS)
    return out


async def measured(asked: argparse.Namespace, back: str, front: str) -> dict[str, Any]:
    body = {"model": "worker", "stream": True, "messages": [{"role": "user", "content": "Read the README."}]}
    body["tools"] = [tool(number) for number in range(asked.tools)]
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(timeout=120, limits=limits, trust_env=False) as client:
        for url in (back, front):
            await ready(client, url)
            for _ in range(30):
                await timed(client, url, body)
        times: dict[str, list[float]] = {back: [], front: []}
        at_once: list[asyncio.Task[None]] = []

        async def one(url: str) -> None:
            times[url].append(await timed(client, url, body))

        start, count = time.perf_counter(), int(asked.rate * asked.seconds)
        for number in range(2 * count):  # by turns: each is asked at the rate
            await asyncio.sleep(max(0.0, start + number / (2 * asked.rate) - time.perf_counter()))
            at_once.append(asyncio.create_task(one((back, front)[number % 2])))
        await asyncio.gather(*at_once)
        began = time.perf_counter()
        slow = body | {"messages": [{"role": "user", "content": "slowly"}]}
        answers = await asyncio.gather(
            *(timed(client, front, slow) for _ in range(asked.streams)), return_exceptions=True
        )
        held = time.perf_counter() - began
    whole = [answer for answer in answers if isinstance(answer, float)]
    told = {name: spread(times[url]) for name, url in (("alone", back), ("through_the_gateway", front))}
    added = {key: round(told["through_the_gateway"][key] - told["alone"][key], 2) for key in told["alone"]}
    return {
        "rate": asked.rate,
        "requests": count,
        "tools": asked.tools,
        "milliseconds": told,
        "added_ms": added,
        "streams": {"asked": asked.streams, "whole": len(whole), "seconds": round(held, 2)},
    }


async def ready(client: httpx2.AsyncClient, url: str) -> None:
    for _ in range(200):
        try:
            await client.get(f"{url}/healthz")
            return
        except httpx2.TransportError:
            await asyncio.sleep(0.1)
    raise SystemExit(f"{url} does not come up")


async def timed(client: httpx2.AsyncClient, url: str, body: Any) -> float:
    """Milliseconds of one whole stream."""
    began, last = time.perf_counter(), ""
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            last = line or last
    if last != "data: [DONE]":
        raise RuntimeError(f"{url} broke off: {last[:200]}")
    return (time.perf_counter() - began) * 1000


def spread(times: list[float]) -> dict[str, float]:
    cuts = quantiles(times, n=100, method="inclusive")
    return {"p50": round(median(times), 2), "p95": round(cuts[94], 2), "p99": round(cuts[98], 2)}


def tool(number: int) -> dict[str, Any]:
    properties = {"path": {"type": "string", "description": "Where it lies."}, "lines": {"type": "integer"}}
    schema = {"type": "object", "properties": properties, "required": ["path"]}
    words = {"name": f"tool_{number}", "description": "Reads a file and says what is in it.", "parameters": schema}
    return {"type": "function", "function": words}


# ------------------------------------------------------------------------------------------------------- two processes


def back_end() -> Starlette:
    """OpenAI's stream, at once; one that is asked "slowly" takes a second."""
    cut = [ANSWER[at : at + 10] for at in range(0, len(ANSWER), 10)]

    async def chat(request: Request) -> StreamingResponse:
        body = await request.json()
        pause = 1 / len(cut) if body["messages"][-1]["content"] == "slowly" else 0

        async def lines() -> AsyncIterator[str]:
            for piece in cut:
                if pause:
                    await asyncio.sleep(pause)
                yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': piece}}]})}\n\n"
            yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': {}, 'finish_reason': 'stop'}]})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"ok": True})

    return Starlette(
        routes=[Route("/healthz", health)]
        + [Route(f"{base}/chat/completions", chat, methods=["POST"]) for base in ("/v1",)]
    )


def gateway(url: str) -> Any:
    from llm_tuner.apps.gateway import Gateway
    from llm_tuner.serving.roles import Role, Roles
    from llm_tuner.serving.service import Service
    from llm_tuner.serving.upstreams import OpenAIUpstream

    roles = Roles([Role("worker", OpenAIUpstream("worker", url), at_once=1000)])
    return Gateway(Service(roles)).app


def serve(app: Any, port: int) -> None:
    import uvicorn

    uvicorn.run(app, port=port, log_level="error")


def free_ports(count: int) -> list[int]:
    import socket

    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


if __name__ == "__main__":
    main()
