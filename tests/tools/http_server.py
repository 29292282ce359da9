"""A server of the SDK on loopback: `python http_server.py TRANSPORT PORT`. Wants the header `x-key: open-sesame`."""

import sys
import time

import uvicorn
from mcp.server import MCPServer
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

server = MCPServer("loopback")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


@server.tool()
def wait(seconds: float) -> str:
    """Waits."""
    time.sleep(seconds)
    return "done"


def guarded(app: ASGIApp) -> ASGIApp:
    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and Request(scope).headers.get("x-key") != "open-sesame":
            return await PlainTextResponse("no", status_code=401)(scope, receive, send)
        return await app(scope, receive, send)

    return guard


if __name__ == "__main__":
    app = server.sse_app() if sys.argv[1] == "sse" else server.streamable_http_app()
    uvicorn.run(guarded(app), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
