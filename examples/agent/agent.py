#!/usr/bin/env python3
"""An agent as small as it gets: OpenAI's own client, real MCP servers, a loop. It knows nothing of llm-tuner.

It offers all tools of the servers, runs what comes back as `tool_calls`, and stops when a turn has none. Give it the
URL of the gateway, or that of Ollama (http://127.0.0.1:11434/v1) to see the difference.

    pip install openai "mcp>=2"
    python agent.py --url http://127.0.0.1:11535/v1 --model worker --servers SERVERS.json \\
        "Write the text 'Buy milk' into todo.txt." "Add todo.txt to the git index." "Commit it: groceries"

SERVERS.json has `mcpServers`, as Claude Desktop and others write it. Each request is a turn of one conversation.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from openai import AsyncOpenAI

MOST_STEPS = 6


async def main() -> int:
    asked = parser().parse_args()
    client = AsyncOpenAI(base_url=asked.url, api_key=asked.key, max_retries=0, timeout=1800)
    async with AsyncExitStack() as stack:
        sessions, tools = await started(json.loads(asked.servers.read_text(encoding="utf-8"))["mcpServers"], stack)
        print(f"{len(tools)} tools of {len(set(map(id, sessions.values())))} servers")
        messages: list[Any] = [{"role": "system", "content": asked.system}] if asked.system else []
        called = 0
        for request in asked.requests:
            print(f"\nuser: {request}")
            messages.append({"role": "user", "content": request})
            called += await turn(client, asked.model, messages, tools, sessions)
    print(f"\n{called} tool calls")
    return 0 if called else 1


async def turn(
    client: AsyncOpenAI, model: str, messages: list[Any], tools: list[Any], sessions: dict[str, ClientSession]
) -> int:
    """Asks, runs, tells, until an answer has no call. The number of calls."""
    called = 0
    for _ in range(MOST_STEPS):
        began = time.monotonic()
        answer = await client.chat.completions.create(model=model, messages=messages, tools=tools, temperature=0)
        said = answer.choices[0].message
        took = f"({time.monotonic() - began:.1f} s)"
        messages.append(said.model_dump(exclude_none=True))
        if not said.tool_calls:
            print(f"assistant {took}: {(said.content or '').strip()[:300]}")
            return called
        for call in said.tool_calls:
            name, arguments = call.function.name, json.loads(call.function.arguments)
            print(f"calls {took}: {name} {json.dumps(arguments, ensure_ascii=False)}")
            if name not in sessions:
                text = f"There is no tool {name}."
            else:
                result = await sessions[name].call_tool(name, arguments)
                text = "\n".join(getattr(part, "text", "") for part in result.content)
            print(f"  -> {text.strip()[:200]}")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": text})
            called += 1
    print("(enough steps)")
    return called


async def started(servers: dict[str, Any], stack: AsyncExitStack) -> tuple[dict[str, ClientSession], list[Any]]:
    """Every server's session by the names of its tools, and the tools as OpenAI's API takes them."""
    sessions: dict[str, ClientSession] = {}
    tools: list[Any] = []
    for server in servers.values():
        how = StdioServerParameters(
            command=server["command"], args=server.get("args", []), env=server.get("env"), cwd=server.get("cwd")
        )
        read, write = await stack.enter_async_context(stdio_client(how))
        session = await stack.enter_async_context(ClientSession(read, write))
        await session.initialize()
        for tool in (await session.list_tools()).tools:
            sessions[tool.name] = session
            function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
            tools.append({"type": "function", "function": function})
    return sessions, tools


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("requests", nargs="+", help="what the user says, turn by turn")
    out.add_argument("--url", default="http://127.0.0.1:11535/v1")
    out.add_argument("--model", default="worker")
    out.add_argument("--key", default="none")
    out.add_argument("--system", default="")
    out.add_argument("--servers", type=Path, required=True, help='a file with {"mcpServers": ...}')
    return out


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
