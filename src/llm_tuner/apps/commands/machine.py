"""`llm-tuner top`, `resources`, `models advise`, `models fit`: the machine, as text."""

from __future__ import annotations

import json as json_text
import sys
import time
from typing import Annotated, Any

import typer

from llm_tuner.apps import face
from llm_tuner.apps.commands.standing import language
from llm_tuner.apps.console import Json, table
from llm_tuner.operations import amount
from llm_tuner.operations import machine as operations


def top(
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two readings.")] = 2,
    watch: Annotated[int, typer.Option(min=0, help="With --json: so many readings, one a line; 0: one.")] = 0,
    host: Annotated[str, typer.Option(help="Ollama server; OLLAMA_HOST when empty.")] = "",
    json: Json = False,
) -> None:
    """How busy this machine is: CPU, memory, disk, GPUs, the memory of each model that is served, tokens a second, and
    what should worry. Live in a terminal, until Ctrl-C; readings are kept for `llm-tuner resources`.

    Example: llm-tuner top --json
    """
    from llm_tuner.operations.machine import reading, resources, values
    from llm_tuner.store.readings import Readings

    if not watch and (json or not sys.stdout.isatty()):
        found = resources(host)
        print(json_text.dumps(found, ensure_ascii=False, indent=2) if json else text(found))
        return
    kept, before = Readings(), dict[str, float]()
    reading(host, 0.1, before)
    if json:
        for _ in range(watch):
            time.sleep(interval)
            found = reading(host, 0, before)
            kept.add(values(found))
            print(json_text.dumps(found, ensure_ascii=False), flush=True)
        return
    from rich.live import Live
    from rich.text import Text

    with Live(screen=True, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(interval)
                found = reading(host, 0, before)
                kept.add(values(found))
                live.update(Text(text(found)), refresh=True)
        except KeyboardInterrupt:
            return


def text(found: dict[str, Any]) -> str:
    """One reading."""
    cores = " ".join(f"{core:.0f}" for core in found["cores"])
    lines = [
        f"CPU     {_bar(found['cpu'] / 100)} {found['cpu']:5.1f} %  ({cores})",
        f"memory  {_bar(found['memory_used'] / found['memory_total'])} {amount(found['memory_used'])} of "
        f"{amount(found['memory_total'])}, swap {amount(found['swap_used'])}",
        f"disk    {amount(found['disk_free'])} of {amount(found['disk_total'])} free",
    ]
    for card in found["gpus"]:
        more = [f"{card[key]:.0f} {unit}" for key, unit in (("celsius", "°C"), ("watts", "W")) if card[key] is not None]
        busy = "" if card["utilisation"] is None else f"{card['utilisation']:.0f} %, "
        memory = f"{amount(card['memory_used'])} of {amount(card['memory_total'])}"
        lines.append(f"{card['name']}: {busy}{memory} {' '.join(more)}".rstrip())
    if found["tokens_per_s"] is not None:
        lines.append(f"gateway {found['tokens_per_s']:.1f} tokens/s")
    rows = [[one["runtime"], str(one["pid"]), amount(one["memory"]), one["model"]] for one in found["served"]]
    for one in found["ollama"] or []:
        about = f"{one['name']}, {one['context_length'] or '?'} tokens, {amount(one['size_vram'])} on GPU"
        rows.append(["ollama", "", amount(one["size"]), about])
    parts = [
        "\n".join(lines),
        table(rows, ["served by", "process", "memory", "model"]) if rows else "No model is served.",
    ]
    return "\n\n".join([*parts, *found["warnings"]])


def _history(found: dict[str, Any]) -> str:
    if not found["series"]:
        return "No reading is kept yet: llm-tuner top"
    rows = []
    for name, points in found["series"].items():
        values = [value for _, value in points]
        shown = (min(values), sum(values) / len(values), max(values), values[-1])
        in_bytes = name in ("memory", "disk_free", "served") or name.endswith("_memory")
        rows.append([name, *(amount(v) if in_bytes else f"{v:.1f}" for v in shown), str(len(values))])
    return table(rows, ["", "least", "mean", "most", "last", "points"])


def _advice(found: dict[str, Any]) -> str:
    lines = found["sentences_ja" if language() == "ja" else "sentences"]
    rejected = [f"not {line}" for line in found["rejected"]]
    return "\n".join([*lines, *([""] if rejected else []), *rejected, *(["", found["toml"]] if found["toml"] else [])])


def _fit(found: dict[str, Any]) -> str:
    rows = [
        ["weights", amount(found["weights"]) + (" (estimated)" if found["estimated"] else "")],
        [f"KV cache, {found['window']:,} tokens x {found['slots']}", amount(found["cache"])],
        ["buffers", amount(found["buffers"])],
        *([["weights in another order for the CPU", amount(found["repacked"])]] if found["repacked"] else []),
        ["together", amount(found["total"])],
    ]
    if "measured" in found:
        rows.append(["measured", f"{amount(found['measured'])} (the calculation is {found['off']:+.1%} off)"])
    place = {"gpu": " on the GPU", "memory": " in memory", "": ""}[found["where"]]
    beyond = " The window is longer than what the model was trained on." if found["beyond_trained"] else ""
    return f"{table(rows, [found['model'], found['quantisation']])}\n\n{found['verdict']}{place}.{beyond}"


def _bar(share: float) -> str:
    full = round(min(max(share, 0), 1) * 20)
    return "█" * full + "░" * (20 - full)


_BY_NAME = {operation.name: operation for operation in operations.OPERATIONS}


def register(app: typer.Typer, models: typer.Typer) -> None:
    """`top` and `resources` of the program, `advise` and `fit` of `models`."""
    app.command("top")(top)
    face.add(app, _BY_NAME["resource_history"], _history)
    face.add(models, _BY_NAME["models_advise"], _advice)
    face.add(models, _BY_NAME["models_fit"], _fit)
