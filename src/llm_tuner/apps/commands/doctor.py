"""`llm-tuner doctor`: is this machine ready. `llm-tuner status`: where things stand and what to do next."""

from __future__ import annotations

import shutil
from importlib import metadata
from typing import Any

import typer

from llm_tuner.apps.console import Json, out, table

TARGETS = {"selection": 0.90, "parameters": 0.85, "native_rate": 0.99}
"""What a served model should reach on your own catalogue."""


def doctor(json: Json = False) -> None:
    """What is installed, what is missing, and what to run about it. Exit code 4 when the embedded runtime is missing.

    Example: llm-tuner doctor --json
    """
    from llm_tuner.models.resources import machine, snapshot

    checks = [_package("xllamacpp", "serving models", "serve"), _package("torch", "training", "train")]
    checks += [_package(name, "training", "train") for name in ("transformers", "peft")]
    checks += [_command("git", "the demo's repositories"), _command("uvx", "the demo's tool servers")]
    checks += [_command("npx", "tool servers from npm"), _ollama(), _disk()]
    document: dict[str, Any] = {"machine": machine(), "now": snapshot().model_dump(mode="json"), "checks": checks}

    def text() -> str:
        about = "\n".join(f"{key}: {value}" for key, value in document["machine"].items())
        rows = [["ok" if c["ok"] else "--", c["name"], c["found"], c["advice"]] for c in checks]
        return about + "\n\n" + table(rows, ["", "what", "found", "advice"])

    out(document, json, text)
    if not checks[0]["ok"]:
        raise typer.Exit(4)


def status(json: Json = False) -> None:
    """Tuned models with their measured rates against the targets, recent runs, disk use, next actions.

    Example: llm-tuner status
    """
    from llm_tuner.models.sources import installed
    from llm_tuner.models.versions import Versions
    from llm_tuner.store import Store

    store, versions = Store(), Versions()
    runs = store.runs()
    tuned = {name: versions.aliases(name) for name in versions.names()}
    measured = next((run for run in runs if run.kind == "evaluate"), None)
    rates = measured.metrics.get("held-out", {}) if measured else {}
    fetched = [model.name for model in installed()]
    actions = _next(tuned, rates)
    document: dict[str, Any] = {
        "tuned": tuned,
        "fetched": fetched,
        "last_measured": {"run": measured.id, "rates": rates} if measured else None,
        "targets": TARGETS,
        "runs": [{"id": run.id, "kind": run.kind, "seconds": run.seconds} for run in runs[:10]],
        "runs_bytes": sum(path.stat().st_size for path in store.root.rglob("*") if path.is_file()),
        "next": actions,
    }

    def text() -> str:
        lines = [f"tuned: {name}: {aliases}" for name, aliases in tuned.items()] or ["tuned: nothing yet"]
        lines += [f"fetched: {', '.join(fetched) or 'nothing'}"]
        rows = [
            [key, f"{rates[key] * 100:.1f} %", f"{target * 100:.0f} %", "reached" if rates[key] >= target else "below"]
            for key, target in TARGETS.items()
            if rates.get(key) is not None
        ]
        if rows:
            lines += ["", table(rows, ["rate", "last measured", "target", ""])]
        lines += ["", table([[r.id, f"{r.seconds:.0f} s"] for r in runs[:10]], ["run", "took"])] if runs else []
        lines += [f"runs use {document['runs_bytes'] / 1e9:.1f} GB in {store.root}"]
        lines += ["", *(f"next: {action}" for action in actions)]
        return "\n".join(lines)

    out(document, json, text)


def _next(tuned: dict[str, dict[str, str]], rates: dict[str, float]) -> list[str]:
    if not tuned:
        return ["llm-tuner demo: see the whole loop once", "llm-tuner tune --hub YOUR.json: on your own servers"]
    below = [key for key, target in TARGETS.items() if rates.get(key) is not None and rates[key] < target]
    if below:
        return [f"{', '.join(below)} below target: llm-tuner tune with more tasks or epochs (docs/tune.md)"]
    return ["targets reached: llm-tuner models list, and point your agent at NAME:stable"]


def _package(name: str, purpose: str, extra: str) -> dict[str, Any]:
    try:
        return {"name": name, "ok": True, "found": metadata.version(name), "advice": ""}
    except metadata.PackageNotFoundError:
        advice = f"needed for {purpose}: pip install 'llm-tuner[{extra}]'"
        return {"name": name, "ok": False, "found": "not installed", "advice": advice}


def _command(name: str, purpose: str) -> dict[str, Any]:
    path = shutil.which(name)
    return {
        "name": name,
        "ok": path is not None,
        "found": path or "not on PATH",
        "advice": "" if path else f"for {purpose}",
    }


def _ollama() -> dict[str, Any]:
    from llm_tuner.models.ollama import OllamaServer
    from llm_tuner.types import ModelError

    try:
        return {"name": "ollama", "ok": True, "found": OllamaServer(timeout=5).version(), "advice": ""}
    except ModelError as error:
        return {
            "name": "ollama",
            "ok": False,
            "found": str(error).split(". ")[0],
            "advice": "only for --runtime ollama",
        }


def _disk() -> dict[str, Any]:
    from llm_tuner.store import Store

    free = shutil.disk_usage(Store().root).free
    enough = free > 5e9
    advice = "" if enough else "a round needs about 5 GB: llm-tuner models rm, or XDG_DATA_HOME on another disk"
    return {"name": "disk", "ok": enough, "found": f"{free / 1e9:.0f} GB free", "advice": advice}
