"""Who may use the dashboard: this machine's own pages, or whoever has the token.

The rule it protects: a page of another origin can neither read nor change anything. Reading stops at the Host (DNS
rebinding) or at the token; changing needs a header that no form can send and an Origin that is the page's own.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_tuner.apps.gateway.guards import Guard

COOKIE = "llm_tuner_session"
HEADER = "x-llm-tuner"
"""Every POST but the login's has it: a form cannot, and a script of another origin may not without asking first."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'none'"
"""For the reports that a run wrote: pages of their own, without scripts, with styles in them."""

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}

_WITHOUT_TOKEN = ("/login", "/static/")
_WRONG_TOKEN_COSTS = 0.3


class Shield:
    """ASGI middleware around the whole dashboard: Guard, plus the cookie of the login, CSRF and headers."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._guarded, self._token = app, Guard(app, token), token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        path: str = scope["path"]
        if scope["method"] not in ("GET", "HEAD") and (why := forged(headers, path)):
            await JSONResponse({"error": why}, 403)(scope, receive, with_headers)
            return
        app: ASGIApp = self._guarded
        if self._token and path.startswith(_WITHOUT_TOKEN):
            app = self._app
        elif self._token and session(headers, self._token):
            bearer = (b"authorization", b"Bearer " + self._token.encode())
            scope = {**scope, "headers": [*(h for h in scope["headers"] if h[0] != b"authorization"), bearer]}
        elif self._token and "authorization" not in headers and "text/html" in headers.get("accept", ""):
            app = RedirectResponse("/login", 303)
        await app(scope, receive, with_headers)


def forged(headers: Mapping[str, str], path: str) -> str:
    """Why a request that changes something may not be this dashboard's own; empty where nothing speaks against it."""
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower():
        return f"A page of {origin} may not change anything here."
    if headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return "Only the dashboard's own pages may change anything here."
    if path != "/login" and HEADER not in headers:
        return f"Send the header {HEADER}: 1."
    return ""


def session(headers: Mapping[str, str], token: str) -> bool:
    """Whether the cookie of a login with this token came along."""
    given = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
    return hmac.compare_digest(given.encode("utf-8", "replace"), ticket(token).encode())


def ticket(token: str) -> str:
    """What the cookie holds: it proves the token and does not tell it."""
    return hmac.new(token.encode(), b"llm-tuner dashboard", hashlib.sha256).hexdigest()


async def right_token(given: str, token: str) -> bool:
    """Compared in constant time; a wrong one costs a moment."""
    if hmac.compare_digest(given.encode("utf-8", "replace"), token.encode()):
        return True
    await asyncio.sleep(_WRONG_TOKEN_COSTS)
    return False
