"""Ollama's library as a source of weights: first the store on this machine, then the registry's HTTP API.

Not the Ollama server: none has to run, and none is asked. The rule it protects: a blob is named by its SHA-256, so
what a manifest promises can always be verified.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Generator
from pathlib import Path

from llm_tuner.models.sources import web
from llm_tuner.types import ChecksumMismatch, Event, Json, SetupError, SourceUnreachable

REGISTRY = "https://registry.ollama.ai"
_MODEL_LAYER = "application/vnd.ollama.image.model"
_NAME = re.compile(r"(?:([\w.-]+)/)?([\w][\w.-]*)(?::([\w][\w.-]*))?")


def local(rest: str) -> tuple[Path, str] | None:
    """The model's GGUF in a store on this machine and the SHA-256 that its name promises; None when there is none."""
    space, name, tag = _parts(rest)
    for store in _stores():
        try:
            manifest = store / "manifests" / "registry.ollama.ai" / space / name / tag
            digest = _layer(json.loads(manifest.read_bytes()), rest)
            blob = store / "blobs" / f"sha256-{digest}"
            if blob.is_file():
                return blob, digest
        except (OSError, ValueError, SourceUnreachable):
            continue
    return None


def download(rest: str, part: Path, sha256: str, label: str) -> Generator[Event, None, str]:
    """Pulls the model layer into `part`; returns the SHA-256 that the manifest gives."""
    space, name, tag = _parts(rest)
    base = f"{os.environ.get('LLM_TUNER_OLLAMA_REGISTRY', REGISTRY).rstrip('/')}/v2/{space}/{name}"
    with web.client() as http:
        accept = {"Accept": "application/vnd.docker.distribution.manifest.v2+json"}
        answer = web.get(http, f"{base}/manifests/{tag}", accept)
        try:
            digest = _layer(answer.json(), rest)
        except ValueError as error:
            raise SourceUnreachable(f"The registry's manifest of {rest} cannot be read: {error}") from error
        if sha256 and digest != sha256:
            raise ChecksumMismatch(f"Ollama's {rest} is another build: sha256 {digest}, wanted {sha256}")
        yield from web.download(http, f"{base}/blobs/sha256:{digest}", part, label=label)
    return digest


def _parts(rest: str) -> tuple[str, str, str]:
    """Namespace, name and tag, with Ollama's defaults."""
    match = _NAME.fullmatch(rest)
    if not match or ".." in rest:
        raise SetupError(f'"{rest}" is not a model of Ollama\'s library. Write ollama:NAME:TAG, as in smollm2:135m.')
    space, name, tag = match.groups()
    return space or "library", name, tag or "latest"


def _stores() -> list[Path]:
    """$OLLAMA_MODELS alone where it is set, else the user's store and that of the Linux service."""
    if chosen := os.environ.get("OLLAMA_MODELS"):
        return [Path(chosen).expanduser()]
    return [Path.home() / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models")]


def _layer(manifest: Json, rest: str) -> str:
    """The SHA-256 of the layer that is the GGUF."""
    layers = manifest.get("layers", []) if isinstance(manifest, dict) else []
    for layer in layers:
        digest = str(layer.get("digest", ""))
        if layer.get("mediaType") == _MODEL_LAYER and re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            return digest.removeprefix("sha256:")
    raise SourceUnreachable(f"The manifest of {rest} names no GGUF layer (found {len(layers)} layers)")
