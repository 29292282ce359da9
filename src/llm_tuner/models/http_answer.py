"""The body of a model server's HTTP answer, read within limits. Not a client: it opens nothing and knows no API.

A server that was reached and then fails (garbage, half an answer, no end) fails this one request: a ModelError. Only
one that cannot be reached is RuntimeUnavailable. The rule it protects: no server keeps a caller beyond the time limit
or fills its memory, whatever it sends.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from llm_tuner.types import Json, ModelError, RuntimeUnavailable

LARGEST = 64 << 20
"""Bytes of one answer: some hundred times what the longest context can say."""

MISSHAPEN = (AttributeError, LookupError, TypeError, ValueError, RecursionError)
"""What taking apart a JSON object of another shape than the API's can raise."""


@contextmanager
def reaching(url: str, absent: str, seconds: float) -> Iterator[None]:
    """Transport errors in our words. `absent` says what to do where no server answers; `{error}` in it is why."""
    try:
        yield
    except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.UnsupportedProtocol, httpx2.InvalidURL) as e:
        raise RuntimeUnavailable(absent.replace("{error}", str(e) or type(e).__name__)) from e
    except httpx2.TimeoutException as e:
        raise ModelError(f"{url} did not answer in time ({seconds:g} s). Allow more time or fewer tokens.") from e
    except (httpx2.TransportError, httpx2.DecodingError) as e:
        raise ModelError(f"{url} broke off in the middle of its answer ({type(e).__name__}). See its log.") from e


def pieces(answer: httpx2.Response, url: str, started: float, seconds: float) -> Iterator[bytes]:
    """The body as it comes. `started` is of time.monotonic(). Raises ModelError beyond the time limit or LARGEST."""
    size = 0
    for piece in answer.iter_bytes():
        size += len(piece)
        if size > LARGEST:
            raise ModelError(f"{url} sent more than {LARGEST >> 20} MiB as one answer, which was not read on.")
        if time.monotonic() - started > seconds:
            raise ModelError(f"{url} did not finish its answer in time ({seconds:g} s). Allow more time.")
        yield piece


def text(answer: httpx2.Response, url: str, started: float, seconds: float) -> str:
    """The whole body."""
    return b"".join(pieces(answer, url, started, seconds)).decode("utf-8", "replace")


def lines(answer: httpx2.Response, url: str, started: float, seconds: float) -> Iterator[str]:
    """The body's lines as they come, without their ends."""
    rest = b""
    for piece in pieces(answer, url, started, seconds):
        *whole, rest = (rest + piece).split(b"\n")
        yield from (line.decode("utf-8", "replace").rstrip("\r") for line in whole)
    if rest:
        yield rest.decode("utf-8", "replace")


def document(body: str) -> dict[str, Any]:
    """The JSON object that a text is. Raises ValueError where it is none."""
    try:
        value: Json = json.loads(body)
    except RecursionError as e:
        raise ValueError("nested too deeply") from e
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}, not an object")
    return value
