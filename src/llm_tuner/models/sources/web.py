"""HTTP for fetching: one client with the user's certificates and proxies, and one resumable download.

Not an API client. The rule it protects: an unreachable host fails within seconds, and bytes that arrived are kept.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llm_tuner.models.https import trust
from llm_tuner.models.sources.cache import room_for
from llm_tuner.models.sources.weights import CHUNK
from llm_tuner.types import Event, SourceUnreachable

if TYPE_CHECKING:
    from httpx2 import Client, Response

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
TRIES = 3
"""How often a download that breaks off is taken up again within one fetch; only tries that brought bytes count on."""


def client() -> Client:
    """A client that follows redirects, and honours the certificate variables and the proxy variables."""
    import httpx2

    timeout = httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    return httpx2.Client(timeout=timeout, follow_redirects=True, verify=trust())


def get(http: Client, url: str, headers: Mapping[str, str] | None = None) -> Response:
    """A small answer, read whole. Raises SourceUnreachable on a dead host or any status but 200."""
    import httpx2

    try:
        response = http.get(url, headers=dict(headers or {}))
    except (httpx2.RequestError, httpx2.InvalidURL) as error:
        raise unreachable(url, error) from error
    if response.status_code != 200:
        raise refused(url, response.status_code)
    return response


def download(
    http: Client, url: str, part: Path, *, label: str, headers: Mapping[str, str] | None = None
) -> Generator[Event, None, dict[str, str]]:
    """Brings `part` up to the whole of `url`, going on from the bytes it has, and returns the headers that were seen.

    Events count bytes. Raises SourceUnreachable (what arrived stays in `part`) and DiskFull.
    """
    import httpx2

    for again in range(TRIES, 0, -1):
        before = _have(part)
        try:
            seen = yield from _rest(http, url, part, label, headers or {})
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            if again == 1 or _have(part) <= before:
                raise unreachable(url, error) from error
            continue
        if seen is not None:
            return seen
        part.unlink(missing_ok=True)
    raise SourceUnreachable(f"{_host(url)} does not answer ranges of {shown(url)} in a way that can be resumed")


def _rest(
    http: Client, url: str, part: Path, label: str, headers: Mapping[str, str]
) -> Generator[Event, None, dict[str, str] | None]:
    """One request for the missing bytes. None: what is there does not fit what the server has, start over."""
    have = _have(part)
    ask = {"Accept-Encoding": "identity", **headers} | ({"Range": f"bytes={have}-"} if have else {})
    with http.stream("GET", url, headers=ask) as response:
        seen = {name.lower(): value for r in (*response.history, response) for name, value in r.headers.items()}
        span = seen.get("content-range", "")
        if response.status_code == 416:
            return seen if span == f"bytes */{have}" else None
        if response.status_code not in (200, 206):
            raise refused(url, response.status_code)
        if response.status_code == 206 and not span.startswith(f"bytes {have}-"):
            return None
        done = have if response.status_code == 206 else 0
        missing = int(response.headers.get("content-length") or 0)
        total = done + missing if missing else 0
        with room_for(part.parent, missing), part.open("ab" if done else "wb") as file:
            told = done
            for chunk in response.iter_raw():  # as it arrives: bytes held back for a full chunk would be lost by a cut
                file.write(chunk)
                done += len(chunk)
                if done - told >= CHUNK or done == total:
                    told = done
                    yield Event(step="fetch", message=label, done=done, total=total, unit="B")
            file.flush()
            os.fsync(file.fileno())
    return seen


def _have(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def unreachable(url: str, error: Exception) -> SourceUnreachable:
    """A dead host, a broken connection or a timeout, in one line."""
    kind = type(error).__name__
    return SourceUnreachable(f"{_host(url)} cannot be reached ({kind}: {str(error) or 'no answer in time'})")


def refused(url: str, status: int) -> SourceUnreachable:
    """An answer that is not the file."""
    meaning = {401: "it wants a token", 403: "it does not allow this", 404: "it has no such file"}
    said = meaning.get(status, "it failed" if status >= 500 else "it refused")
    return SourceUnreachable(f"{_host(url)} answered HTTP {status} ({said}) for {shown(url)}")


def shown(url: str) -> str:
    """The address without the user name and the password that it may carry, and without a signed query."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    return f"{parts.scheme}://{_host(url)}{parts.path}"


def _host(url: str) -> str:
    from urllib.parse import urlsplit

    return urlsplit(url).netloc.rpartition("@")[2]
