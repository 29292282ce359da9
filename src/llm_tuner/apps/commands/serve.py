"""`llm-tuner serve`: what runs until it is told to stop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_tuner.apps.commands.dashboard import dashboard
from llm_tuner.apps.console import drive, note

app = typer.Typer(help="Servers: the gateway, the MCP server, the dashboard.", no_args_is_help=True)

DEFAULT_MODEL = "qwen2.5-coder:0.5b"
PORT = 11535
MCP_PORT = 11537

app.command()(dashboard)


@app.command()
def gateway(
    config: Annotated[Path | None, typer.Option(help="A TOML file with [roles.NAME] (docs/gateway.md).")] = None,
    model: Annotated[str, typer.Option(help=f"One embedded model for every name. Default {DEFAULT_MODEL}.")] = "",
    ollama: Annotated[str, typer.Option(help="One model of the Ollama server.")] = "",
    base_url: Annotated[str, typer.Option(help="MODEL is served by this OpenAI-compatible URL.")] = "",
    context: Annotated[int, typer.Option(min=512, help="Window of the one model, in tokens.")] = 8192,
    at_once: Annotated[int, typer.Option(min=1, help="Requests at a time to the one model.")] = 1,
    host: Annotated[str, typer.Option(help="Beyond loopback LLM_TUNER_TOKEN must be set.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = PORT,
    show: Annotated[
        str, typer.Option(help="The tools a model sees: full, fit (likeliest ones, within --budget), compact, or hint.")
    ] = "fit",
    budget: Annotated[int, typer.Option(min=64, help="Tokens of the tools, with --show fit.")] = 1900,
    record: Annotated[bool, typer.Option("--record/--no-record", help="Keep exchanges as training material.")] = True,
    retention_days: Annotated[int, typer.Option(min=1, help="How long they are kept.")] = 30,
    constrain: Annotated[
        bool, typer.Option("--constrain/--free", help="Hold calls to the tools' grammar, where the runtime can.")
    ] = False,
) -> None:
    """One URL for every agent: OpenAI's and Ollama's API, with calls that are calls.

    Calls that a model writes as text become tool_calls, are checked against their schema, mended where nothing is lost,
    and asked again once where they are wrong. Stop it with Ctrl-C.

    Example: llm-tuner serve gateway --model qwen2.5-coder:1.5b
    """
    from contextlib import ExitStack

    from llm_tuner.apps.gateway.opening import RoleSettings, opened, read_roles
    from llm_tuner.apps.gateway.recording import recording
    from llm_tuner.apps.gateway.running import bound, run
    from llm_tuner.serving.context import Context
    from llm_tuner.types import SetupError

    if show not in ("full", "fit", "compact", "hint"):
        raise SetupError(f'--show is "{show}"; it must be full, fit, compact or hint.')
    if config is not None and (model or ollama or base_url):
        raise SetupError("--config says which models serve; leave --model, --ollama and --base-url out.")
    if config is not None:
        roles = read_roles(config)
    else:
        one = RoleSettings(
            model=model or ("" if ollama else DEFAULT_MODEL),
            ollama=ollama,
            base_url=base_url,
            window=context,
            at_once=at_once,
        )
        roles = {"worker": one}
    with ExitStack() as stack:
        listening = stack.enter_context(bound(host, port))
        made = drive(opened(roles, stack))
        address = listening.getsockname()
        note(f"http://{address[0]}:{address[1]} serves {', '.join(made.names())}: /v1 as OpenAI, /api as Ollama.")
        records = stack.enter_context(recording(retention_days)) if record else None
        if records is not None:
            note(f"Exchanges are kept in {records.folder}, scrubbed, for {retention_days} days (--no-record: not).")
        run(made, listening, context=Context(show, budget), constrain=constrain, records=records)  # type: ignore[arg-type]


@app.command()
def mcp(
    http: Annotated[bool, typer.Option("--http", help="Streamable HTTP at /mcp instead of standard input.")] = False,
    host: Annotated[str, typer.Option(help="With --http. Beyond loopback LLM_TUNER_TOKEN must be set.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="With --http. 0: any free one.")] = MCP_PORT,
) -> None:
    """llm-tuner itself as an MCP server, for Claude Code and other agents: everything that the terminal can do.

    What destroys only says what it would do, until it is called again with confirm=true.

    Example: claude mcp add llm-tuner -- llm-tuner serve mcp
    """
    import os

    import anyio

    from llm_tuner.apps.gateway.running import bound
    from llm_tuner.apps.mcp_face import http_app, serve_stdio
    from llm_tuner.operations.table import OPERATIONS

    if not http:
        anyio.run(serve_stdio, OPERATIONS)
        return
    import uvicorn

    with bound(host, port) as listening:
        address = listening.getsockname()
        note(f"http://{address[0]}:{address[1]}/mcp serves {len(OPERATIONS)} tools.")
        made = http_app(OPERATIONS, os.environ.get("LLM_TUNER_TOKEN", ""))
        uvicorn.Server(uvicorn.Config(made, log_level="warning", server_header=False)).run(sockets=[listening])
