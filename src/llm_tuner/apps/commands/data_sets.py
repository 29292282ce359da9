"""`llm-tuner data import|export|check|card`: data sets out of what people have, and into what they use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_tuner.apps.console import Json, drive, out, table

if TYPE_CHECKING:
    from llm_tuner.data.check import Checked
    from llm_tuner.data.overlap import Reference
    from llm_tuner.types import Renderer

Benchmark = Annotated[
    bool,
    typer.Option("--benchmark/--no-benchmark", help="Hold every request against BFCL's (fetched once, 2 MB)."),
]
DataSet = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a data set.")]


def import_files(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help=".jsonl, .json, .parquet, a data set, or a journal.")
    ],
    out_folder: Annotated[Path, typer.Option("--out", help="The data set's folder.")],
    format: Annotated[str, typer.Option(help="The format of the files, where it is not recognised.")] = "",
    licence: Annotated[str, typer.Option(help="The licence of rows whose format has none of its own.")] = "",
    exclude_noncommercial: Annotated[
        bool, typer.Option("--exclude-noncommercial", help="Refuse rows whose licence forbids commercial use.")
    ] = False,
    held_out_tools: Annotated[
        float, typer.Option(min=0, max=1, help="Share of tools that training never sees.")
    ] = 0.05,
    held_out_servers: Annotated[float, typer.Option(min=0, max=1, help="Share of servers, the same.")] = 0.1,
    hold_out: Annotated[list[str] | None, typer.Option(help="A tool or server by name, the same. Repeatable.")] = None,
    salt: Annotated[
        str,
        typer.Option(envvar="LLM_TUNER_SALT", help="Makes the same placeholders for secrets again; keep it secret."),
    ] = "",
    seed: Annotated[int, typer.Option(help="Chooses the card's random rows.")] = 0,
    benchmark: Benchmark = True,
    json: Json = False,
) -> None:
    """Files of any known format become one data set: read, scrubbed, checked, without doubles, divided, described.

    A row that cannot be used is a line in rejected.jsonl, never an error. After a kill the same command goes on. The
    formats: own, gateway, glaive, xlam, toolace, hermes, when2call, toucan, ollama, openai, trl (docs/data.md).

    Example: llm-tuner data import chats.jsonl --out mine --licence own
    """
    from llm_tuner.data.intake import Intake, take_in
    from llm_tuner.data.split import Withheld

    config = Intake(
        format=format,
        licence=licence,
        exclude_noncommercial=exclude_noncommercial,
        withheld=Withheld(tools=held_out_tools, servers=held_out_servers, names=tuple(hold_out or ())),
        salt=salt,
        seed=seed,
    )
    found = drive(take_in(files, out_folder, config, references(benchmark)))
    document = {"folder": str(out_folder), **found}
    out(document, json, lambda: _imported(found, out_folder))


def export(
    folder: DataSet,
    out_file: Annotated[Path, typer.Option("--out", help="The file: .jsonl or .parquet.")],
    side: Annotated[str, typer.Option(help="train, held-out, or both with a comma.")] = "train",
    json: Json = False,
) -> None:
    """A data set in TRL's conversational form (messages, tools): what trainers read, and `data import` reads back.

    Example: llm-tuner data export mine --out train.parquet
    """
    from llm_tuner.data.export import export as exported

    sides = [part.strip() for part in side.split(",") if part.strip()]
    rows = drive(exported(folder, out_file, sides))
    out({"file": str(out_file), "rows": rows, "sides": sides}, json, lambda: f"{rows} rows in {out_file}")


def check(folder: DataSet, benchmark: Benchmark = True, json: Json = False) -> None:
    """Looks through a data set: valid against every schema, no doubles, apart from BFCL and from its held-out side,
    every task with its attempt, every file as it was written. Exit code 30 where something is wrong.

    Example: llm-tuner data check mine --json
    """
    from llm_tuner.data.check import check as checked
    from llm_tuner.types import DataError

    found = drive(checked(folder, references(benchmark)))
    out(found.model_dump(mode="json"), json, lambda: _checked(found))
    if not found.ok:
        raise typer.Exit(DataError.exit_code)


def card(
    folder: DataSet,
    seed: Annotated[int, typer.Option(help="Chooses the random rows.")] = 0,
    model: Annotated[
        str, typer.Option(help="Count lengths in tokens of this model's template (a known model, or a .gguf path).")
    ] = "",
    json: Json = False,
) -> None:
    """Writes a data set's card anew: card.json, card.md, card.html.

    Example: llm-tuner data card mine --model qwen2.5-coder:0.5b
    """
    from llm_tuner.data import card as cards
    from llm_tuner.data.dataset import manifest, write_manifest

    facts: dict[str, Any] = {k: v for k, v in manifest(folder).items() if k not in ("format", "hashes")}
    if model:
        with renderer(model) as server:
            found = drive(cards.describe(folder, facts, seed=seed, renderer=server))
    else:
        found = drive(cards.describe(folder, facts, seed=seed))
    cards.write(folder, found)
    write_manifest(folder, facts)
    document = found.model_dump(mode="json", exclude={"rows"})
    out(document, json, lambda: f"{found.examples} examples; {folder / 'card.html'}")


@contextmanager
def renderer(model: str) -> Iterator[Renderer]:
    """The model, served by the embedded runtime for as long as its template and tokenizer are needed."""
    from llm_tuner.evaluation.target import Target, locate, opened
    from llm_tuner.types import Renderer, SetupError

    with opened(drive(locate(Target(model=model)))) as backend:
        if not isinstance(backend, Renderer):
            raise SetupError(
                f"{model} is served by what does not show its template. Name a .gguf, or leave --model out."
            )
        yield backend


def references(wanted: bool) -> dict[str, list[Reference]]:
    """The requests of BFCL, single-turn and multi-turn, as what must not be trained on."""
    if not wanted:
        return {}
    from llm_tuner.data.overlap import Reference
    from llm_tuner.evaluation import bfcl, bfcl_multi_turn
    from llm_tuner.types import SourceUnreachable

    categories = (*bfcl.GROUPS["all"], *bfcl_multi_turn.CATEGORIES)
    try:
        rows = list(bfcl.rows(categories))
    except SourceUnreachable as error:
        raise SourceUnreachable(f"{error} To go without the benchmark's requests: --no-benchmark.") from error
    turns = ((row["id"], turn) for _, row, _ in rows for messages in row["question"] for turn in messages)
    texts = [(name, turn["content"]) for name, turn in turns if turn["role"] == "user"]
    return {"bfcl": [Reference(f"bfcl:{name}", text) for name, text in texts if text.strip()]}


def _imported(found: dict[str, Any], folder: Path) -> str:
    counts = found["counts"]
    rejected = [[*name.split(":", 1), str(count)] for name, count in sorted(counts["rejected"].items())]
    parts = [f"{counts.get('rows', 0)} rows, {counts['train']} train, {counts['held-out']} held-out in {folder}"]
    if rejected:
        parts.append(table(rejected, ["rejected", "reason", "examples"]))
    if found["scrubbed"]:
        parts.append("scrubbed: " + ", ".join(f"{kind} {count}" for kind, count in found["scrubbed"].items()))
    if not counts["train"]:
        parts.append(
            "Nothing is left to train on: all is held out (--held-out-tools 0 --held-out-servers 0 says otherwise)."
        )
    return "\n".join(parts)


def _checked(found: Checked) -> str:
    tasks = sum(found.tasks.values())
    apart = ", ".join(f"{count} overlaps with {name}" for name, count in found.overlaps.items())
    parts = [f"{found.valid} of {tasks} tasks valid, {found.duplicates} duplicates, {apart}"]
    for kind, count in found.problems.items():
        parts.append(f"{kind}: {count}")
        parts += [f"  {sentence}" for sentence in found.shown.get(kind, [])]
    return "\n".join([*parts, "all right" if found.ok else "not all right"])
