"""What recording costs: `python benchmarks/recording.py [--json]`.

Conversations of eight turns with 73 tools offered: how many exchanges a second one thread writes, how long handing one
over takes, how long until it is in the file at 50 a second, and the bytes of each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from llm_tuner.serving.exchanges import Exchange, Recorder, Route, read
from llm_tuner.store.scrub import Scrubber
from llm_tuner.types import Message, ToolCall, ToolResult, ToolSpec

TOOLS = tuple(
    ToolSpec(
        name=f"tool_{n}",
        description="Does one thing, in about as many words as a tool of a real server has, or a few more than that.",
        parameters={"type": "object", "properties": {k: {"type": "string"} for k in ("path", "word", "limit")}},
    )
    for n in range(73)
)


def conversations() -> Iterator[Exchange]:
    """Endless; each has a system prompt, eight calls and results of some 600 letters."""
    number = 0
    while True:
        number += 1
        said = [
            Message(role="system", text="You are an agent. " * 40),
            Message(role="user", text=f"Task {number} 作業"),
        ]
        for turn in range(8):
            call = ToolCall(name=f"tool_{turn}", id=f"call_{number}_{turn}", arguments={"path": f"/work/{number}.txt"})
            answer = Message(role="assistant", tool_calls=(call,))
            yield Exchange(
                model="local", messages=tuple(said), tools=TOOLS, answer=answer, route=Route(role="worker", backend="m")
            )
            content = f"line {turn} of {number}: " + "some words of a file, 1.2 and 3; " * 18
            said += [answer, Message(role="tool", result=ToolResult(call_id=call.id, content=content))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--exchanges", type=int, default=4000)
    options = parser.parse_args()
    made = conversations()
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder), Scrubber("benchmark"))
        given = [next(made) for _ in range(options.exchanges)]
        handing, started = [], time.perf_counter()
        for exchange in given:
            before = time.perf_counter()
            recorder.record(exchange)
            handing.append((time.perf_counter() - before) * 1000)
        recorder.flush()
        took = time.perf_counter() - started
        written = []
        for exchange in (next(made) for _ in range(500)):
            before = time.perf_counter()
            recorder.record(exchange).result()
            written.append((time.perf_counter() - before) * 1000)
            time.sleep(0.02)
        recorder.close()
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        before = time.perf_counter()
        count = sum(1 for _ in read(Path(folder)))
        reading = count / (time.perf_counter() - before)
    found = {
        "exchanges_per_s": round(options.exchanges / took),
        "lost": recorder.lost,
        "handed_over_ms": {"p50": _at(handing, 50), "p99": _at(handing, 99)},
        "written_ms_at_50_per_s": {"p50": _at(written, 50), "p99": _at(written, 99)},
        "bytes_per_exchange": round(size / count),
        "bytes_if_each_stood_alone": round(statistics.mean(len(one.model_dump_json()) for one in given[:8])),
        "read_per_s": round(reading),
    }
    print(json.dumps(found, indent=2) if options.json else "\n".join(f"{k}: {v}" for k, v in found.items()))


def _at(values: list[float], percent: int) -> float:
    return round(sorted(values)[len(values) * percent // 100], 3)


if __name__ == "__main__":
    main()
