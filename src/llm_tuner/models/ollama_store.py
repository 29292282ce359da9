"""Ollama's models as they lie on disk: manifests that name blobs, which models may share.

Read only, and of this machine alone. The rule it protects: what a removal frees is counted, not guessed, and a manifest
that points to what is not there is named before somebody waits for a model that cannot load.

    ROOT/manifests/HOST/NAMESPACE/MODEL/TAG      JSON, the layers by digest
    ROOT/blobs/sha256-HEX                        the layers; -partial* while they are fetched
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from llm_tuner.types import Json, UnknownModel, Value

REGISTRY, NAMESPACE = "registry.ollama.ai", "library"

_KIND = "application/vnd.ollama.image."
_SYSTEM = Path("/usr/share/ollama/.ollama/models")
"""Where the Linux service keeps its own."""


class Layer(Value):
    """A part of a model: `kind` is model, template, params, license, system, adapter, ...; `size` in bytes."""

    kind: str
    digest: str
    size: int


class Stored(Value):
    """One model on disk. `digest` is that of the manifest, as /api/tags says it; `size` the sum of its layers in
    bytes; `trouble` says which blobs are missing or short."""

    name: str
    digest: str
    size: int
    modified: str
    layers: tuple[Layer, ...] = ()
    trouble: tuple[str, ...] = Field(default=())


class Freed(Value):
    """What a removal gives back: `bytes` of blobs that no other has, `shared` of those that stay, and for whom."""

    bytes: int
    shared: int
    shared_with: tuple[str, ...]


class OllamaStore:
    """The store below `root` (default: OLLAMA_MODELS, else ~/.ollama/models, else the Linux service's)."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or _root()

    def models(self) -> tuple[Stored, ...]:
        """Every model, by name. A manifest that cannot be read is one with `trouble`."""
        base = self.root / "manifests"
        files = sorted(path for path in base.glob("*/*/*/*") if path.is_file())
        return tuple(sorted((self._read(path) for path in files), key=lambda model: model.name))

    def model(self, name: str) -> Stored:
        """One model, by the name that Ollama shows. Raises UnknownModel."""
        found = {model.name: model for model in self.models()}
        wanted = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
        if wanted not in found:
            raise UnknownModel(f'No model "{name}" in {self.root} (found: {", ".join(found) or "none"}).')
        return found[wanted]

    def freed(self, name: str) -> Freed:
        """What removing this model would free. Raises UnknownModel."""
        gone = self.model(name)
        own = {layer.digest: layer.size for layer in gone.layers}
        others = [model for model in self.models() if model.name != gone.name]
        kept = {layer.digest for model in others for layer in model.layers}
        return Freed(
            bytes=sum(size for digest, size in own.items() if digest not in kept),
            shared=sum(size for digest, size in own.items() if digest in kept),
            shared_with=tuple(m.name for m in others if any(layer.digest in own for layer in m.layers)),
        )

    def leftovers(self) -> tuple[Path, ...]:
        """Blobs that no manifest names, broken downloads among them."""
        named = {layer.digest.replace(":", "-") for model in self.models() for layer in model.layers}
        return tuple(sorted(path for path in (self.root / "blobs").glob("sha256-*") if path.name not in named))

    def _read(self, path: Path) -> Stored:
        host, namespace, model, tag = path.relative_to(self.root / "manifests").parts
        name = f"{model}:{tag}"
        if (host, namespace) != (REGISTRY, NAMESPACE):
            name = f"{namespace}/{name}" if host == REGISTRY else f"{host}/{namespace}/{name}"
        try:
            content = path.read_bytes()
            layers = tuple(layers_of(json.loads(content)))
            modified = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = f"its manifest {path} cannot be read ({type(error).__name__})"
            return Stored(name=name, digest="", size=0, modified="", trouble=(why,))
        digest = hashlib.sha256(content).hexdigest()
        size = sum(layer.size for layer in layers)
        trouble = tuple(self._trouble(layers))
        return Stored(name=name, digest=digest, size=size, modified=modified, layers=layers, trouble=trouble)

    def _trouble(self, layers: tuple[Layer, ...]) -> Iterator[str]:
        for layer in layers:
            path = self.root / "blobs" / layer.digest.replace(":", "-")
            try:
                found = path.stat().st_size
            except OSError:
                yield f"the blob of its {layer.kind} is missing ({layer.digest[:19]})"
                continue
            if found != layer.size:
                yield f"the blob of its {layer.kind} has {found} of {layer.size} bytes ({layer.digest[:19]})"


def layers_of(manifest: dict[str, Any]) -> Iterator[Layer]:
    """The layers that a manifest names, its configuration first. Raises KeyError, TypeError and ValueError for what is
    no manifest."""
    for entry in (manifest["config"], *(manifest["layers"] or ())):
        kind = str(entry["mediaType"])
        short = kind.removeprefix(_KIND) if kind.startswith(_KIND) else "config"
        yield Layer(kind=short, digest=str(entry["digest"]), size=int(entry["size"]))


def own_digest(manifest: dict[str, Json]) -> str:
    """The digest that Ollama gives to a manifest that it pulled: it writes the document anew (Go's json.Marshal)."""

    def layer(entry: Any) -> dict[str, Json]:
        return {
            key: entry[key] for key in ("mediaType", "digest", "size", "from", "name") if entry.get(key) is not None
        }

    document = {
        "schemaVersion": manifest["schemaVersion"],
        "mediaType": manifest.get("mediaType", ""),
        "config": layer(manifest["config"]),
        "layers": [layer(entry) for entry in manifest["layers"]],
    }
    return hashlib.sha256(json.dumps(document, separators=(",", ":")).encode()).hexdigest()


def _root() -> Path:
    if given := os.environ.get("OLLAMA_MODELS"):
        return Path(given)
    own = Path.home() / ".ollama" / "models"
    return own if own.is_dir() or not os.access(_SYSTEM, os.R_OK) else _SYSTEM
