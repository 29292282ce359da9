"""`llm-tuner tools`: what the tool servers offer, and one call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_tuner.apps.console import Json, note, out, table

app = typer.Typer(help="Tool servers (MCP): list their tools, call one.", no_args_is_help=True)

Hub = Annotated[str, typer.Option("--hub", help='An mcpServers JSON file, or "demo".')]


@app.command("list")
def list_(
    hub: Hub = "demo",
    discover: Annotated[
        bool, typer.Option("--discover", help="Find Claude, Cursor and VS Code files instead.")
    ] = False,
    json: Json = False,
) -> None:
    """The tools of a hub, server by server. With --discover: the configuration files of this machine's clients.

    Example: llm-tuner tools list --hub .mcp.json
    """
    if discover:
        _discovered(json)
        return
    from llm_tuner.loop import Tune, workshop

    with workshop(Tune(hub=hub)) as (tools, _):
        specs = tools.specs()
    rows = [[t.server, t.name, (t.description.strip().splitlines() or [""])[0][:70]] for t in specs]
    document = [t.model_dump(mode="json") for t in specs]
    out(document, json, lambda: table(rows, ["server", "tool", "description"]) + f"\n{len(rows)} tools")


def _discovered(json: bool) -> None:
    from llm_tuner.tools.servers import discover

    unreadable: dict[Path, str] = {}
    found = discover(unreadable=unreadable)
    for why in unreadable.values():
        note(why)
    document = [
        {"file": str(path), "server": server.name, "address": server.address}
        for path, servers in found.items()
        for server in servers
    ]
    rows = [[d["file"], d["server"], d["address"]] for d in document]
    out(document, json, lambda: table(rows, ["file", "server", "starts"]) if rows else "No configuration file found.")


@app.command()
def call(
    name: Annotated[str, typer.Argument(help="The tool.")],
    arguments: Annotated[str, typer.Argument(help="Its arguments, a JSON object.")] = "{}",
    hub: Hub = "demo",
    folder: Annotated[
        Path | None, typer.Option(help="Copied into the throw-away folder that servers start in.")
    ] = None,
    json: Json = False,
) -> None:
    """Call one tool once, inside a throw-away folder. Exit code 1 when the tool answers with an error.

    Example: llm-tuner tools call get_current_time '{"timezone": "Asia/Tokyo"}'
    """
    import json as json_text

    from llm_tuner.loop import Tune, workshop
    from llm_tuner.types import SetupError, ToolCall

    try:
        values = json_text.loads(arguments)
    except ValueError as error:
        raise SetupError(
            f'The arguments are not JSON ({error}). Write them like \'{{"timezone": "Asia/Tokyo"}}\'.'
        ) from error
    if not isinstance(values, dict):
        raise SetupError('The arguments must be a JSON object, like \'{"timezone": "Asia/Tokyo"}\'.')
    with workshop(Tune(hub=hub, seed_folder=folder)) as (tools, _):
        result = tools.call(ToolCall(name=name, arguments=values))
    out(result.model_dump(mode="json"), json, lambda: result.content)
    if result.is_error:
        raise typer.Exit(1)
