"""The smallest MCP server: line by line, no SDK, so that a nasty one starts in 50 ms and does exactly what it says."""

import json
import sys
from collections.abc import Callable
from typing import Any

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def answer(request: dict[str, Any], result: Any) -> None:
    send({"jsonrpc": "2.0", "id": request["id"], "result": result})


def text(value: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": value}]}


def serve(tools: dict[str, Callable[[dict[str, Any]], Any]], schema: dict[str, Any] | None = None) -> None:
    """Each tool takes the whole request; what it returns is the result, None: it sent (or did) something itself."""
    for line in sys.stdin:
        request = json.loads(line)
        if "id" not in request:
            continue
        method, params = request["method"], request.get("params", {})
        if method == "initialize":
            info = {"name": "nasty", "version": "1"}
            version = params["protocolVersion"]
            answer(request, {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info})
        elif method == "tools/list":
            listed = [{"name": n, "inputSchema": schema or {"type": "object", "title": n}} for n in tools]
            answer(request, {"tools": listed})
        elif method == "tools/call":
            result = tools[params["name"]](request)
            if result is not None:
                answer(request, result)
        else:
            send({"jsonrpc": "2.0", "id": request["id"], "error": {"code": -32601, "message": "no such method"}})
