"""`llm-tuner export`: a trained run as files of any format, each measured as it is served."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_tuner.apps.console import Json, drive, out, table

if TYPE_CHECKING:
    from llm_tuner.exports import Base, Exported
    from llm_tuner.types import Run


def export(
    run: Annotated[str, typer.Argument(help='A run that trained an adapter: its id, or "last".')],
    out_folder: Annotated[Path, typer.Option("--out", help="Folder that gets a folder for each format.")],
    kinds: Annotated[
        str,
        typer.Option(
            "--as",
            help="Formats, with commas between: as_base, q4_k_s, q4_k_m, q5_k_m, q6_k, q8_0, f16 (merged GGUF), "
            "adapter (LoRA GGUF), peft, safetensors.",
        ),
    ] = "q4_k_m",
    base: Annotated[str, typer.Option(help="The base, where it is not found by its hash: a name or a source.")] = "",
    rows: Annotated[int, typer.Option(min=0, help="Rows to hold each file against the trainer on; 0: none.")] = 24,
    larger: Annotated[bool, typer.Option("--larger/--no-larger", help="Of a refused file, make the next size.")] = True,
    weights: Annotated[str, typer.Option(help="Of the safetensors: bfloat16, float16 or float32.")] = "bfloat16",
    json: Json = False,
) -> None:
    """A trained model as files for llama.cpp, Ollama and Hugging Face's libraries.

    Each file is held against the trainer, token by token, as it is served. One that lost what was trained is refused by
    name, and the next size up is made. Exit code 3 when nothing that was asked for, and nothing larger, holds it.

    Example: llm-tuner export last --as q4_k_m,q8_0,peft --out exported
    """
    from llm_tuner import exports
    from llm_tuner.store import Store
    from llm_tuner.types import GATE_REFUSED

    store = Store()
    trained = exports.find_trained(store, run)
    config = exports.Export.model_validate({"kinds": _kinds(kinds), "rows": rows, "larger": larger, "weights": weights})
    made = drive(exports.export(config, store, trained, find_base(trained, base), out_folder))
    out({"run": trained.id, "exports": [_plain(one) for one in made]}, json, lambda: _text(made))
    if made[-1].refused:
        raise typer.Exit(GATE_REFUSED)


def _kinds(text: str) -> list[str]:
    import difflib

    from llm_tuner.exports import KINDS
    from llm_tuner.types import SetupError

    names = [name.strip().lower().replace("-", "_") for name in text.split(",") if name.strip()]
    for name in names:
        if name not in KINDS:
            near = difflib.get_close_matches(name, KINDS, n=1)
            guess = f' Did you mean "{near[0]}"?' if near else ""
            raise SetupError(f'No format "{name}" (found {len(KINDS)}: {", ".join(KINDS)}).{guess}')
    if not names:
        raise SetupError(f"--as names no format (found {len(KINDS)}: {', '.join(KINDS)}).")
    return names


def find_base(trained: Run, reference: str) -> Base:
    """The GGUF that the run was trained on: the one given, else the one of the catalogue or the cache with its hash."""
    from llm_tuner.exports import Base
    from llm_tuner.models import catalogue
    from llm_tuner.models.sources import fetch, installed
    from llm_tuner.models.sources.weights import sha256_of
    from llm_tuner.types import SetupError

    wanted = trained.inputs.get("base", "")
    known = next((model for model in catalogue.KNOWN if wanted and model.sha256 == wanted), None)
    kept = next((model for model in installed() if wanted and model.sha256 == wanted), None)
    if not reference and known is None and kept is None:
        raise SetupError(
            f"{trained.id} was trained on a base that is neither in the catalogue nor fetched (SHA-256 "
            f"{wanted or 'not known'}). Give it: --base file:/PATH.gguf"
        )
    name = reference or (known.name if known else "")
    gguf = drive(fetch(name)) if reference or kept is None else kept.path
    sha256 = drive(sha256_of(gguf))
    known = next((model for model in catalogue.KNOWN if model.sha256 == sha256), None)
    if known is None:
        return Base(gguf=gguf, sha256=sha256, name=gguf.stem)
    return Base(gguf=gguf, sha256=sha256, name=known.name, licence=known.licence, repository=known.repository)


def _plain(made: Exported) -> dict[str, Any]:
    return made.model_dump(mode="json") | {"refused": made.refused}


def _text(made: tuple[Exported, ...]) -> str:
    rows = [
        [
            one.kind,
            f"{one.size / 1e6:.0f} MB",
            f"{one.seconds:.0f} s",
            "-" if one.agreement is None else f"{(one.agreement.same.value or 0) * 100:.1f} %",
            "-" if one.agreement is None else f"{one.agreement.mean_difference:.3f}",
            "-" if one.agreement is None else one.agreement.word,
            one.folder,
        ]
        for one in made
    ]
    head = ["format", "size", "made in", "same token", "nats apart", "", "folder"]
    said = [one.agreement.sentence if one.agreement else f"{one.kind}: {one.why}" for one in made]
    return "\n".join([table(rows, head), "", *said])
