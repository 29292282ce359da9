"""The operations as an MCP server, over stdio or streamable HTTP: an agent drives llm-tuner as a person does.

Not a second implementation: the tools are the table. The rule it protects: a tool that destroys only says what it would
do until it is called with `confirm`, and is annotated as destructive, so that a client can ask its user before.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings
from starlette.types import ASGIApp

from llm_tuner import __version__
from llm_tuner.apps.gateway.guards import Guard
from llm_tuner.operations import Operation, perform
from llm_tuner.types import Event, Json, TunerError

INSTRUCTIONS = """\
llm-tuner measures, tunes and serves local models that call tools. Begin with `status`: it says what is there, what is
measured against which target, and what to do next. Tools that destroy or change what serves answer with a plan first;
show it to the user, and call again with confirm=true only when they agree. Long ones (tune, collect, evaluate, pulls)
send progress and may be cancelled: what was finished is kept.
llm-tuner はローカルモデルのツール呼び出しを測定・学習・提供します。まず `status` を呼んでください。削除や切り替えを行う
ツールは、最初は計画だけを返します。利用者の同意を得てから confirm=true で呼び直してください。"""


def server(operations: Sequence[Operation]) -> Server[Any]:
    """The MCP server of these operations."""
    table = {operation.name: operation for operation in operations}

    async def list_tools(_: Any, __: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[tool(operation) for operation in operations])

    async def call_tool(
        context: ServerRequestContext[Any, Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        operation = table.get(params.name)
        if operation is None:
            return _said(f"There is no tool {params.name!r}. There are: {', '.join(table)}.", failed=True)
        result = await _performed(operation, params.arguments or {}, context)
        if isinstance(result, TunerError):
            return _said(f"{type(result).__name__}: {result}", failed=True)
        document = result if isinstance(result, dict) else {"result": result}
        return _said(json.dumps(result, ensure_ascii=False, indent=1), document)

    return Server(
        "llm-tuner",
        title="llm-tuner (ちゅーなー)",
        version=__version__,
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def tool(operation: Operation) -> types.Tool:
    """How an operation is described to a client."""
    said = operation.help.partition("\n\nExample:")[0].strip()
    return types.Tool(
        name=operation.name,
        title=operation.summary,
        description=f"{said}\n\n{operation.ja}",
        input_schema=operation.arguments.model_json_schema(),
        annotations=types.ToolAnnotations(
            title=operation.summary,
            read_only_hint=operation.effect == "reads",
            destructive_hint=operation.effect == "destroys",
        ),
    )


def http_app(operations: Sequence[Operation], token: str = "") -> ASGIApp:
    """The server as an ASGI application at /mcp. Without a token only this machine's own clients may use it, and no
    page of another origin (see Guard)."""
    # Guard knows our rules for both cases, the SDK's own check only the one of loopback.
    app = server(operations).streamable_http_app(
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False)
    )
    return Guard(app, token)


async def serve_stdio(operations: Sequence[Operation]) -> None:
    """Serves until standard input ends."""
    made = server(operations)
    async with stdio_server() as (reading, writing):
        await made.run(reading, writing, made.create_initialization_options())


async def _performed(
    operation: Operation, arguments: dict[str, Any], context: ServerRequestContext[Any, Any]
) -> Json | TunerError:
    """One thread from start to end: an operation may hold what belongs to its thread (a database)."""
    stop = threading.Event()

    def work() -> Json | TunerError:
        steps = perform(operation, arguments)
        told = 0
        try:
            while not stop.is_set():
                event, told = next(steps), told + 1
                anyio.from_thread.run(_tell, context, event, told)
        except StopIteration as end:
            return end.value
        except TunerError as error:
            return error
        finally:
            steps.close()
        return None

    async def watch() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            stop.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        result = await anyio.to_thread.run_sync(work)
        await anyio.lowlevel.checkpoint()  # a request that was cancelled ends here
        tasks.cancel_scope.cancel()
    return result


async def _tell(context: ServerRequestContext[Any, Any], event: Event, told: int) -> None:
    """MCP wants progress that only rises over a whole request. Steps each begin at 0, so events are counted."""
    share = f" {event.done:g}/{event.total:g} {event.unit}".rstrip() if event.total else ""
    await context.session.report_progress(told, message=f"{event.step}: {event.message}{share}")


def _said(text: str, document: dict[str, Any] | None = None, *, failed: bool = False) -> types.CallToolResult:
    content: list[Any] = [types.TextContent(type="text", text=text)]
    return types.CallToolResult(content=content, structured_content=document, is_error=failed)
