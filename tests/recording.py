"""What the tests of recording share, and a gateway to kill: `python recording.py FOLDER [BYTES]`.

It records without end and says the id of each exchange when it is handed over (stderr) and when it is written (stdout).

With BYTES no file may grow beyond that: it records 200 exchanges, prints what was lost, and then as many with room.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

from llm_tuner.serving.exchanges import Exchange, Recorder, Route
from llm_tuner.store.scrub import Scrubber
from llm_tuner.types import Message, ToolCall, ToolResult, ToolSpec

READ = ToolSpec(
    name="read_file",
    description="Read a file",
    server="files",
    parameters={
        "type": "object",
        "properties": {"path": {"type": "string"}, "lines": {"type": "integer"}},
        "required": ["path"],
    },
)
FIND = ToolSpec(
    name="find_files",
    description="Find files by a word",
    server="files",
    parameters={"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
)
TOOLS = (READ, FIND)


def user(text: str) -> Message:
    return Message(role="user", text=text)


def calling(*calls: ToolCall, text: str = "") -> Message:
    return Message(role="assistant", text=text, tool_calls=calls)


def call(name: str, id: str = "", **arguments: Any) -> ToolCall:
    return ToolCall(name=name, id=id, arguments=arguments)


def heard(content: str, id: str = "", *, error: bool = False) -> Message:
    return Message(role="tool", result=ToolResult(call_id=id, content=content, is_error=error))


def asked(*messages: Message, answer: Message | None, tools: tuple[ToolSpec, ...] = TOOLS, **more: Any) -> Exchange:
    return Exchange(
        model="local", messages=messages, tools=tools, answer=answer,
        route=Route(role="worker", backend="qwen", why="asked for"), **more,
    )  # fmt: skip


def numbered(number: int) -> Exchange:
    return asked(
        user(f"Read note {number} / メモ{number}を読んで"),
        answer=calling(call("read_file", path=f"notes/{number}.txt")),
    )


def _endless(recorder: Recorder) -> None:
    def run(start: int) -> None:
        number = start
        while True:
            exchange = numbered(number)
            os.write(2, f"{exchange.id}\n".encode())
            if recorder.record(exchange).result():
                os.write(1, f"{exchange.id}\n".encode())
            number += 8

    threads = [threading.Thread(target=run, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    threads[0].join()


def _with_little_room(recorder: Recorder, room: int) -> None:
    if room:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    first = [recorder.record(numbered(n)).result() for n in range(200)]
    print(recorder.recorded, recorder.lost, first.count(False), recorder.why, sep="|")
    if room:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    else:
        (Path(sys.argv[1]) / "filler").unlink()
    after = [recorder.record(numbered(n)).result() for n in range(200, 210)]
    recorder.close()
    print(recorder.recorded, recorder.lost, after.count(False), recorder.why, sep="|")


if __name__ == "__main__":
    made = Recorder(Path(sys.argv[1]) / "journal", Scrubber("test"))
    if len(sys.argv) > 2:
        _with_little_room(made, int(sys.argv[2]))
    else:
        _endless(made)
