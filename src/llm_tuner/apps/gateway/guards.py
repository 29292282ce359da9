"""Who may come in, and with how much: the token, the host, the size of a body.

The rule it protects: a web page in the user's browser is not the user. Without a token, requests that a page of another
origin makes, or that came under a foreign host name (DNS rebinding), are refused.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from llm_tuner.serving import openai_api
from llm_tuner.serving.request import BadRequest
from llm_tuner.types import Json, SetupError

LARGEST_BODY = 8 << 20
"""Bytes of a request's body: a window of 200K tokens is about 1 MB of text."""

OPEN = frozenset(("/healthz",))
"""Paths that need no token: they tell nothing."""


class TooLarge(BadRequest):
    """A body beyond the limit."""


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine."""
    name = host.strip("[]").lower()
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def require_token(host: str, token: str) -> None:
    """Raises SetupError for a server that others can reach without a token."""
    if not is_loopback(host) and not token:
        raise SetupError(
            f"{host} can be reached from other machines, and there is no token. Set LLM_TUNER_TOKEN, or bind "
            "to 127.0.0.1."
        )
    if token and len(token) < 16:
        raise SetupError("LLM_TUNER_TOKEN has less than 16 characters. Take a longer one: openssl rand -hex 16")


class Guard:
    """ASGI middleware: answers 401 or 403 itself, lets everything else in."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        refused = self._refused(dict(scope["headers"]))
        if refused is None:
            await self._app(scope, receive, send)
        else:
            status, words = refused
            await JSONResponse(openai_api.failure(words, "authentication_error"), status)(scope, receive, send)

    def _refused(self, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        if self._token:
            given = headers.get(b"authorization", b"").removeprefix(b"Bearer ").strip()
            if hmac.compare_digest(given, self._token.encode()):
                return None
            return 401, "A token is required: Authorization: Bearer <LLM_TUNER_TOKEN>."
        host = _host_of(f"//{headers.get(b'host', b'').decode('latin-1')}") or "localhost"
        if not is_loopback(host):
            return 403, f"This server answers this machine only, and was asked as {host}. Set LLM_TUNER_TOKEN."
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and not is_loopback(_host_of(origin)):
            return 403, f"A page of {origin} may not use this server. Set LLM_TUNER_TOKEN and send it."
        return None


def _host_of(address: str) -> str:
    """The host name of an address; "?" for what is none."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return "?"


async def json_body(request: Request, largest: int = LARGEST_BODY) -> Json:
    """The request's body. Raises TooLarge, and BadRequest for what is no JSON."""
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > largest:
        raise TooLarge(f"The body has {int(declared) >> 20} MiB; at most {largest >> 20} MiB are taken.")
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > largest:
            raise TooLarge(f"The body has more than {largest >> 20} MiB, which are not taken.")
        pieces.append(piece)
    try:
        return json.loads(b"".join(pieces).decode("utf-8"), parse_constant=_no)
    except UnicodeDecodeError as error:
        raise BadRequest(f"The body is not UTF-8 (byte {error.start}).") from error
    except RecursionError as error:
        raise BadRequest("The body is nested too deeply.") from error
    except ValueError as error:
        raise BadRequest(f"The body is no JSON: {error}.") from error


def _no(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")
