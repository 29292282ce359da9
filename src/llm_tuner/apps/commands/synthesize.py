"""`llm-tuner data synthesize`: a verified data set from a hub."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_tuner.apps.commands.data_sets import Benchmark, references
from llm_tuner.apps.console import Json, drive, note, out, table

if TYPE_CHECKING:
    from llm_tuner.data.overlap import Reference
    from llm_tuner.data.plan import HubMix
    from llm_tuner.types import Backend, ToolSpec


def synthesize(
    hub: Annotated[
        Path,
        typer.Option(
            help="An mcpServers JSON file (`{box}` in it: the throw-away folder), or what `tools list --json` wrote."
        ),
    ],
    folder: Annotated[Path, typer.Option("--out", help="The folder of the data set.")],
    count: Annotated[int, typer.Option(min=1, help="Tasks to make, of both sides.")] = 1500,
    seed: Annotated[int, typer.Option(help="The same seed, tools and settings give the same plan.")] = 0,
    mix: Annotated[str, typer.Option(help='Shares of kinds, as "single=0.4,missing=0.1"; others keep theirs.')] = "",
    languages: Annotated[str, typer.Option(help='Shares of languages: "en=0.5,ja=0.4,mixed=0.1".')] = "",
    irrelevance: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of requests that no tool fits.")
    ] = None,
    sizes: Annotated[str, typer.Option(help='Tools offered, one catalogue after the other: "1,5,20".')] = "",
    masked: Annotated[float, typer.Option(min=0, max=1, help="Share of catalogues with other tool names.")] = 0.15,
    rendering: Annotated[
        str, typer.Option(help="auto, full, compressed or compact (one signature line a tool).")
    ] = "auto",
    held_out: Annotated[float, typer.Option(min=0, max=0.9, help="Share of the held-out side.")] = 0.2,
    unseen_tool: Annotated[
        list[str] | None, typer.Option(help="A tool for the held-out side only; repeatable.")
    ] = None,
    unseen_server: Annotated[list[str] | None, typer.Option(help="The same for a whole server.")] = None,
    list_only: Annotated[list[str] | None, typer.Option(help="A server that is never called; repeatable.")] = None,
    execute: Annotated[
        bool, typer.Option("--execute/--no-execute", help="Really call the servers, in the box.")
    ] = True,
    writer: Annotated[
        str, typer.Option(help='Rewords requests: "local", or URL#MODEL of an OpenAI-style server.')
    ] = "",
    benches: Annotated[int, typer.Option(min=1, max=16, help="Boxes that work side by side.")] = 2,
    benchmark: Benchmark = True,
    json: Json = False,
) -> None:
    """Make a data set from a hub: requests in English and Japanese with calls that were checked and executed.

    A killed build goes on when the same command is given again.

    Example: llm-tuner data synthesize --hub examples/hub-8/mcp.json --count 1500 --seed 1 --out hub-set --json
    """
    from llm_tuner.data.plan import HubMix
    from llm_tuner.tools.recorded import read_list
    from llm_tuner.tools.sandbox import available
    from llm_tuner.tools.servers import load

    default = HubMix()
    kinds: dict[str, float] = dict(default.kinds) | _shares(mix, "--mix")
    if irrelevance is not None:
        rest = sum(share for kind, share in kinds.items() if kind != "irrelevant") or 1.0
        kinds = {kind: share / rest * (1 - irrelevance) for kind, share in kinds.items()} | {"irrelevant": irrelevance}
    asked = HubMix.model_validate(
        {
            "count": count,
            "seed": seed,
            "held_out": held_out,
            "kinds": kinds,
            "languages": _shares(languages, "--languages") or default.languages,
            "sizes": _numbers(sizes) or default.sizes,
            "masked": masked,
            "rendering": rendering,
            "unseen_tools": None if unseen_tool is None else tuple(unseen_tool),
            "unseen_servers": None if unseen_server is None else tuple(unseen_server),
            "list_only": tuple(list_only or ()),
            "execute": execute,
        }
    )
    recorded = read_list(hub)
    if execute and recorded is None and not available():
        note("There is no working bubblewrap (bwrap): the servers run without a sandbox, in a throw-away folder.")
    configs = load(hub) if recorded is None else ()
    document = _built(configs, recorded or (), asked, folder, writer, benches, references(benchmark))
    document["folder"] = str(folder.absolute())
    out(document, json, lambda: _text(document))


def _built(
    configs: Any,
    tools: Sequence[ToolSpec],
    asked: HubMix,
    folder: Path,
    writer: str,
    benches: int,
    against: Mapping[str, Iterable[Reference]],
) -> dict[str, Any]:
    from contextlib import ExitStack

    from llm_tuner.data.build import build
    from llm_tuner.data.writer import Writer

    with ExitStack() as stack:
        words = Writer(_backend(writer, stack)) if writer else None
        return drive(build(configs, asked, folder, tools=tools, writer=words, benches=benches, against=against))


def _backend(writer: str, stack: Any) -> Backend:
    """The backend that rewords: the embedded 0.5B, or a model behind a URL."""
    from llm_tuner.models.openai_compatible import OpenAICompatible
    from llm_tuner.types import SetupError

    if writer == "local":
        from llm_tuner import loop
        from llm_tuner.models.runtimes import EmbeddedRuntime

        runtime = EmbeddedRuntime()
        backend: Backend = stack.enter_context(runtime.open(drive(loop.stock_step(loop.Tune(), runtime))))
        return backend
    url, _, model = writer.partition("#")
    if not url.startswith(("http://", "https://")) or not model:
        raise SetupError(f'--writer is "local" or URL#MODEL (http://127.0.0.1:8000/v1#my-model), found {writer!r}.')
    return OpenAICompatible(model, url)


def _shares(text: str, option: str) -> dict[str, float]:
    from llm_tuner.types import SetupError

    try:
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        return {name.strip(): float(share) for name, _, share in pairs}
    except ValueError:
        raise SetupError(f'{option} is NAME=SHARE,NAME=SHARE, found "{text}".') from None


def _numbers(text: str) -> tuple[int, ...]:
    from llm_tuner.types import SetupError

    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise SetupError(f'--sizes is a list of whole numbers, found "{text}".') from None


def _text(document: dict[str, Any]) -> str:
    tasks, tools = document["tasks"], document["tools"]
    rows = [["kind", name, str(n)] for name, n in document["kinds"].items()]
    rows += [["language", name, str(n)] for name, n in document["languages"].items()]
    rows += [["verified", name, str(n)] for name, n in document["verified"].items()]
    rows += [
        [f"refused: {stage}", why, str(n)] for stage, part in document["rejected"].items() for why, n in part.items()
    ]
    head = f"{tasks['made']} of {tasks['wanted']} tasks, {tools['called']} of {tools['listed']} tools called, "
    head += f"{document['executed_share'] * 100:.1f} % of the tasks with calls executed, {document['seconds']} s"
    return "\n".join([head, "", table(rows, ["what", "which", "tasks"]), "", document["folder"]])
