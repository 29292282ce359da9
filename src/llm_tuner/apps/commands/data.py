"""`llm-tuner data`: make tasks and attempts, look at them. What works on whole data sets is in data_sets.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_tuner.apps.commands import data_sets
from llm_tuner.apps.commands.synthesize import synthesize
from llm_tuner.apps.commands.tune import RuntimeName
from llm_tuner.apps.console import Json, drive, out, page, table

if TYPE_CHECKING:
    from llm_tuner.data.examples import Example

app = typer.Typer(help="Data: make it from a hub, import, check, show, export.", no_args_is_help=True)
app.command("synthesize")(synthesize)


@app.command()
def collect(
    hub: Annotated[str, typer.Option(help='An mcpServers JSON file, or "demo".')] = "demo",
    base: Annotated[str, typer.Option(help="Model whose own attempts are collected too.")] = "qwen2.5-coder:0.5b",
    tasks: Annotated[int, typer.Option(min=1, help="Training tasks to make.")] = 160,
    own: Annotated[int, typer.Option(min=0, help="How many of them the model itself tries.")] = 16,
    execute: Annotated[bool, typer.Option("--execute/--no-execute", help="Really call the servers.")] = True,
    runtime: RuntimeName = "embedded",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no result.")] = False,
    json: Json = False,
) -> None:
    """Make tasks from a hub's schemas, try every reference answer on the servers, keep what they accept.

    Example: llm-tuner data collect --tasks 100 --own 0
    """
    from llm_tuner.operations.rounds import collect as collected

    document = drive(collected(hub, base, tasks, own, execute, runtime))  # type: ignore[arg-type]
    rows = [[name, str(counts["made"]), str(counts["accepted"])] for name, counts in document["counts"].items()]
    if not quiet:
        out(document, json, lambda: table(rows, ["suite", "made", "accepted"]) + f"\n{document['folder']}")


app.command("import")(data_sets.import_files)
app.command("export")(data_sets.export)
app.command("check")(data_sets.check)
app.command("card")(data_sets.card)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="DIR|FILE", help="A data set, or a suite file.")],
    limit: Annotated[int, typer.Option(min=1)] = 10,
    kind: Annotated[str, typer.Option(help="Only this kind (single, several, sequence, answer, no_call, ...).")] = "",
    language: Annotated[str, typer.Option(help="Only this language (en, ja, ...).")] = "",
    random: Annotated[int, typer.Option(min=0, help="So many at random, instead of the first ones.")] = 0,
    seed: Annotated[int, typer.Option(help="Chooses the random ones.")] = 0,
    mask: Annotated[str, typer.Option(metavar="MODEL", help="Show what is trained, as this model reads it.")] = "",
    json: Json = False,
) -> None:
    """The rows of a data set or of a suite file, to be read: conversation, tools offered, what is right, the verdict.

    On a terminal a pager shows them. With --mask MODEL (a name or a .gguf) they are rendered by that model's own
    template: what would be trained stands in colour, or in [[ ]] where there is none (NO_COLOR, no terminal).

    Example: llm-tuner data show mine --random 20 --language ja
    """
    from llm_tuner.data import readable
    from llm_tuner.data.dataset import chosen, open_examples

    found = chosen(
        open_examples(file), most=random or limit, draw=bool(random), seed=seed, kind=kind, language=language
    )
    if mask:
        _show_masks(found, mask, json)
        return
    document = [
        e.task.model_dump(mode="json", exclude_defaults=True)
        | {"id": e.task.id, "side": e.task.side, "attempt": e.attempt.model_dump(mode="json", exclude_defaults=True)}
        for e in found
    ]
    out(document, json, lambda: page("\n\n".join("\n".join(readable.lines(example)) for example in found)))


def _show_masks(examples: Sequence[Example], model: str, json: bool) -> None:
    """Each example as the model's server renders it, and its trained part; a task without an attempt with its reference
    answer. One that cannot be proven shows why."""
    import os
    import sys

    from llm_tuner.data import masks, readable
    from llm_tuner.scoring import gold_attempt
    from llm_tuner.types import DataError, Row

    plain = json or "NO_COLOR" in os.environ or not sys.stdout.isatty()
    mark = ("[[", "]]") if plain else ("\033[1;32m", "\033[0m")
    texts, document = [], []
    with data_sets.renderer(model) as server:
        for example in examples:
            rows: list[Row] = []
            refusal = ""
            attempt = example.attempt if example.attempt.messages else gold_attempt(example.task)
            try:
                rows = [masks.row(example.task, turn, server) for turn in masks.turns(example.task, attempt)]
            except DataError as error:
                refusal = str(error)
            shown = "\n".join(readable.masked(rows, mark))
            texts.append(f"{example.task.id}\n{shown or refusal}")
            document.append(
                {"id": example.task.id, "refused": refusal, "rows": [row.model_dump(mode="json") for row in rows]}
            )
    out(document, json, lambda: "\n\n".join(texts))
