"""Answers, but not what was agreed."""

import sys

from wire import send, serve


def broken(request: object) -> None:
    print('{"jsonrpc": "2.0", "id":', flush=True)


def foreign(request: dict[str, object]) -> None:
    send({"jsonrpc": "2.0", "id": 424242, "result": {"content": []}})


def binary(request: object) -> None:
    sys.stdout.buffer.write(b"\xff\xfe\x00\n")
    sys.stdout.buffer.flush()


def refused(request: dict[str, object]) -> None:
    send({"jsonrpc": "2.0", "id": request["id"], "error": {"code": -32000, "message": "not today"}})


tools = {"broken": broken, "foreign": foreign, "binary": binary, "refused": refused}
serve({**tools, "shape": lambda r: {"content": "a text"}, "number": lambda r: {"content": [{"type": 7}]}})
