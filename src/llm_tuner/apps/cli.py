"""The command line: `llm-tuner`, also called `chuner` (ちゅーなー).

Each command lives in apps/commands/ and loads what it runs only when it runs: `--help` loads neither torch nor the tool
client. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the gate refused, 130 interrupted, others by kind of error
(docs/errors.md).
"""

from __future__ import annotations

import json
import sys
from typing import NoReturn

import typer

from llm_tuner import __version__
from llm_tuner.apps.commands import (
    compare,
    data,
    doctor,
    evaluate,
    export,
    general,
    latency,
    machine,
    models,
    ollama,
    search,
    serve,
    standing,
    tools,
    train,
    tune,
    watch,
)

INTERRUPTED = 130
"""What a shell reports for Ctrl-C."""

app = typer.Typer(
    help="Makes a local model call your tools right: measure, collect, train, export, install, measure again, promote.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.command("demo")(tune.demo)
app.command("tune")(tune.tune)
app.command("watch")(watch.watch)
app.add_typer(models.app, name="models")
app.add_typer(ollama.app, name="ollama")
app.add_typer(tools.app, name="tools")
app.add_typer(data.app, name="data")
app.add_typer(serve.app, name="serve")
app.command("train")(train.train)
app.command("search")(search.search)
app.command("export")(export.export)
evaluate.app.command("compare")(compare.compare)
evaluate.app.command("latency")(latency.latency)
evaluate.app.command("general")(general.general)
app.add_typer(evaluate.app, name="eval")
machine.register(app, models.app)
app.command("rollback")(models.rollback)
app.command("status")(standing.status)
app.command("doctor")(doctor.doctor)


def _version(show: bool) -> None:
    if show:
        print(f"llm-tuner {__version__}")
        raise typer.Exit


@app.callback()
def root(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show it.")) -> None:
    return


def main() -> NoReturn:
    """Runs a command and ends the process with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs a command; returns its exit code. An error that is a defect of ours keeps its traceback."""
    try:
        app(arguments, prog_name="llm-tuner")
    except SystemExit as end:
        if end.code == INTERRUPTED:
            print("Interrupted. What was finished is kept; the same command goes on from there.", file=sys.stderr)
        return end.code if isinstance(end.code, int) else 1
    except Exception as error:
        return _failed(error, "--json" in arguments)
    return 0


def _failed(error: Exception, as_json: bool) -> int:
    from pydantic import ValidationError

    from llm_tuner.types import SetupError, TunerError

    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        error = SetupError(f"{error.title}: {where}: {first['msg']} (found {first.get('input')!r}).")
    if not isinstance(error, TunerError):
        raise error
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    if as_json:
        kind = {"kind": type(error).__name__, "message": str(error), "exit_code": error.exit_code}
        print(json.dumps({"error": kind}, ensure_ascii=False))
    return error.exit_code
