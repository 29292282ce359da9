"""What a tag is in its registry now: the manifest, as `ollama pull` would fetch it, without fetching a layer.

Not a downloader: the server pulls. The protocol is the Docker registry's, version 2
(https://distribution.github.io/distribution/spec/api/).
"""

from __future__ import annotations

import hashlib
import json

import httpx2

from llm_tuner.models import http_answer
from llm_tuner.models.ollama_store import NAMESPACE, REGISTRY, Layer, layers_of, own_digest
from llm_tuner.types import ModelError, SourceUnreachable, UnknownModel, Value

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


class Published(Value):
    """A tag in its registry. `digests` are the ones under which Ollama may know it: of the bytes, and of the document
    as it writes it anew."""

    name: str
    digests: tuple[str, ...]
    layers: tuple[Layer, ...]


class Change(Value):
    """A layer that is not the same: `kind`, and the bytes that are to be fetched (0 for one that only goes)."""

    kind: str
    bytes: int


def published(name: str, *, insecure: bool = False, seconds: float = 20) -> Published:
    """The tag as its registry has it. `insecure` allows plain http. Raises UnknownModel where the registry does not
    know it (a model that was made here), SourceUnreachable where no registry answers, ModelError for all else."""
    host, path, tag = located(name)
    url = f"{'http' if insecure else 'https'}://{host}/v2/{path}/manifests/{tag}"
    try:
        answer = httpx2.get(url, headers={"accept": _MANIFEST}, timeout=seconds, follow_redirects=True)
    except (httpx2.TransportError, httpx2.InvalidURL) as error:
        raise SourceUnreachable(f"The registry {host} does not answer ({type(error).__name__}). Try again.") from error
    if answer.status_code == 404:
        raise UnknownModel(f'The registry {host} has no "{path}:{tag}".')
    if not answer.is_success:
        raise ModelError(f"The registry {host} refused {path}:{tag} (HTTP {answer.status_code}).")
    try:
        document = http_answer.document(answer.text)
        layers = tuple(layers_of(document))
        digests = (hashlib.sha256(answer.content).hexdigest(), own_digest(document))
    except (ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ModelError(f"What {host} has as {path}:{tag} is no manifest of a model.") from error
    return Published(name=name, digests=digests, layers=layers)


def located(name: str) -> tuple[str, str, str]:
    """Host, path and tag of a model's name: "qwen2.5-coder:7b", "someone/model", "http://host:5000/space/model:tag"."""
    rest = name.partition("://")[2] or name
    rest, _, tag = rest.rpartition(":") if ":" in rest.rpartition("/")[2] else (rest, "", "latest")
    parts = rest.split("/")
    host = parts.pop(0) if len(parts) > 2 else REGISTRY
    return host, "/".join(parts if len(parts) > 1 else [NAMESPACE, *parts]), tag


def changes(before: tuple[Layer, ...], after: tuple[Layer, ...]) -> tuple[Change, ...]:
    """What a pull would change, by the kind of layer."""
    had, has = {layer.digest for layer in before}, {layer.digest for layer in after}
    found: dict[str, int] = {}
    for layer in after:
        if layer.digest not in had:
            found[layer.kind] = found.get(layer.kind, 0) + layer.size
    for layer in before:
        if layer.digest not in has:
            found.setdefault(layer.kind, 0)
    return tuple(Change(kind=kind, bytes=size) for kind, size in found.items() if kind != "config" or len(found) == 1)
