"""`llm-tuner doctor`: is this machine ready."""

from __future__ import annotations

import shutil
from importlib import metadata
from typing import Any

import typer

from llm_tuner.apps.console import Json, out, table


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
