"""`llm-tuner tools`: what the tool servers offer, what it takes of a context window, and one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_tuner.apps.console import Json, note, out, table

if TYPE_CHECKING:
    from llm_tuner.models.window import Budget

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


@app.command()
def budget(
    hub: Annotated[
        str, typer.Option("--hub", help='An mcpServers JSON file, "demo", or what `tools list --json` wrote.')
    ] = "demo",
    model: Annotated[
        str, typer.Option(help="Whose template and tokenizer count: a known or installed model, or a .gguf path.")
    ] = "qwen2.5-coder:0.5b",
    windows: Annotated[str, typer.Option(help="Context windows in tokens, with commas.")] = "200000,32768,8192",
    cache: Annotated[str, typer.Option(help="Type of the KV cache: f16, q8_0, q4_0 and others.")] = "f16",
    json: Json = False,
) -> None:
    """What tools take of a context window: tokens of every tool, server and the whole in the model's own template, in
    full and in two short forms, and whether that leaves room in a window; with the memory that the window takes.

    Example: llm-tuner tools budget --hub .mcp.json --model qwen2.5-coder:0.5b --windows 32768,8192
    """
    from llm_tuner.apps.console import drive
    from llm_tuner.models.window import Budget
    from llm_tuner.operations.rounds import budget as counted

    document = drive(counted(hub, model, windows, cache))
    found = Budget.model_validate({name: document[name] for name in Budget.model_fields})
    out(document, json, lambda: _budgeted(found, cache))


def _budgeted(found: Budget, cache: str) -> str:
    from llm_tuner.models.window import AT_EASE, ROOM

    forms = list(found.whole)
    by_length = sorted(found.tools, key=lambda tool: -tool.tokens["full"])
    head = ["tool", "server", *forms]
    rows = [[t.name, t.server, *_numbers([t.tokens[form] for form in forms])] for t in by_length]
    servers = sorted(found.servers.items(), key=lambda server: -server[1]["full"])
    counts = {name: sum(tool.server == name for tool in found.tools) for name in found.servers}
    sums = [[name, str(counts[name]), *_numbers([tokens[form] for form in forms])] for name, tokens in servers]
    sums.append(["around all tools", "", *_numbers([found.around[form] for form in forms])])
    sums.append(["whole catalogue", str(len(found.tools)), *_numbers([found.whole[form] for form in forms])])
    uses = {(use.window, use.rendering): use for use in found.windows}
    sizes = list(dict.fromkeys(use.window for use in found.windows))
    seen = []
    for size in sizes:
        cells = [f"{uses[size, form].share:.0%} {uses[size, form].verdict}" for form in forms]
        seen.append([f"{size:,}{' *' if 0 < found.trained < size else ''}", *cells, _memory(found.kv_bytes.get(size))])
    parts = [
        table(rows, head),
        table(sums, ["server", "tools", *forms]),
        table(seen, ["window", *forms, f"KV cache ({cache})"]),
        f"fits: the tools take at most {AT_EASE:.0%} of the window; does not fit: they leave less than {ROOM:,} tokens "
        "for a request and its answer; tight: between.",
    ]
    if any(0 < found.trained < size for size in sizes):
        parts.append(f"* longer than the {found.trained:,} tokens that the model was trained on.")
    return "\n\n".join(parts)


def _numbers(values: Sequence[int]) -> list[str]:
    return [f"{value:,}".rjust(7) for value in values]


def _memory(size: int | None) -> str:
    if size is None:
        return "not known"
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
