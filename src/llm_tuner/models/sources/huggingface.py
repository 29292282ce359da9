"""The Hugging Face hub as a source of weights: first the hub cache on this machine, then one GET of one file.

Not `huggingface_hub`, which the core does without. HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, HF_HOME and HF_HUB_CACHE
mean here what they mean there. The rule it protects: the hub's own SHA-256 is checked where it gives one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from pathlib import Path
from urllib.parse import quote

from llm_tuner.models.sources import web
from llm_tuner.types import Event, SetupError, SourceUnreachable

HUB = "https://huggingface.co"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def local(rest: str) -> tuple[Path, str] | None:
    """The file in the hub cache and the SHA-256 that its blob is named by ("" when it is not); None when absent."""
    repo, name = _parts(rest)
    folder = _hub_cache() / f"models--{repo.replace('/', '--')}"
    main = folder / "refs" / "main"
    try:
        newest = sorted((folder / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime, reverse=True)
        current = [folder / "snapshots" / main.read_text().strip()] if main.is_file() else []
        for snapshot in (*current, *newest):
            if (snapshot / name).is_file():
                blob = (snapshot / name).resolve()
                return snapshot / name, blob.name if _SHA256.fullmatch(blob.name) else ""
    except OSError:
        return None
    return None


def download(rest: str, part: Path, sha256: str, label: str) -> Generator[Event, None, str]:
    """Gets the file of the main revision into `part`; returns the SHA-256 that the hub gives, "" when it gives none."""
    repo, name = _parts(rest)
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise SourceUnreachable("HF_HUB_OFFLINE is set and the hub cache does not have the file")
    token = os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = f"{os.environ.get('HF_ENDPOINT', HUB).rstrip('/')}/{repo}/resolve/main/{quote(name)}"
    with web.client() as http:
        seen = yield from web.download(http, url, part, label=label, headers=headers)
    promised = seen.get("x-linked-etag", "").strip('"')
    return promised if _SHA256.fullmatch(promised) else ""


def _parts(rest: str) -> tuple[str, str]:
    """owner/repo, and the file's path inside it."""
    owner, _, after = rest.partition("/")
    repo, _, name = after.partition("/")
    if not (owner and repo and name) or ".." in rest.split("/"):
        raise SetupError(f'"{rest}" names no file of the hub. Write hf:OWNER/REPO/FILE.gguf.')
    return f"{owner}/{repo}", name


def _hub_cache() -> Path:
    if chosen := os.environ.get("HF_HUB_CACHE"):
        return Path(chosen).expanduser()
    shared = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("HF_HOME") or shared / "huggingface").expanduser() / "hub"
