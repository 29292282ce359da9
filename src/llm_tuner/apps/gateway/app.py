"""The gateway as an ASGI application."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from json import dumps
from typing import Any, Protocol

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from llm_tuner import __version__
from llm_tuner.apps.gateway.guards import LARGEST_BODY, Guard, TooLarge, json_body
from llm_tuner.apps.gateway.metrics import Metrics
from llm_tuner.serving import ollama_api, openai_api
from llm_tuner.serving.request import BadRequest, ChatRequest, End, Piece
from llm_tuner.serving.roles import Busy, Role
from llm_tuner.serving.service import Outcome, Service
from llm_tuner.types import (
    DataError,
    Json,
    ModelError,
    PromptTooLong,
    RuntimeUnavailable,
    TunerError,
    UnknownModel,
)

SEEN = "0.12.6"
"""The Ollama release whose API this is; clients ask for it."""

log = logging.getLogger("llm_tuner.gateway")


class Records(Protocol):
    """Where exchanges are kept."""

    def new_id(self) -> str: ...

    def keep(self, id_: str, request: ChatRequest, outcome: Outcome) -> None: ...

    def feedback(self, id_: str, right: bool, note: str = "") -> None: ...

    @property
    def lost(self) -> int: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Settings:
    """`token` guards everything but /healthz ("": this machine only). `largest_body` is bytes."""

    token: str = ""
    largest_body: int = LARGEST_BODY


class Gateway:
    """`app` is the ASGI application over a service. `records` None: nothing is kept."""

    def __init__(self, service: Service, settings: Settings = Settings(), records: Records | None = None) -> None:
        self.service, self.settings, self.records = service, settings, records
        self.metrics = Metrics()
        routes = [
            Route("/v1/chat/completions", self._openai_chat, methods=["POST"]),
            Route("/v1/models", self._openai_models),
            Route("/v1/models/{name:path}", self._openai_model),
            Route("/v1/embeddings", self._embeddings, methods=["POST"]),
            Route("/v1/feedback", self._feedback, methods=["POST"]),
            Route("/api/chat", self._ollama_chat, methods=["POST"]),
            Route("/api/generate", self._ollama_generate, methods=["POST"]),
            Route("/api/tags", self._ollama_tags),
            Route("/api/show", self._ollama_show, methods=["POST"]),
            Route("/api/ps", self._ollama_ps),
            Route("/api/version", self._ollama_version),
            Route("/healthz", self._healthz),
            Route("/metrics", self._metrics),
            Route("/", self._root, methods=["GET", "HEAD"]),
        ]
        self.app = Starlette(
            routes=routes,
            middleware=[Middleware(Guard, token=settings.token)],
            lifespan=self._lifespan,
            exception_handlers={TunerError: _refused, 404: _no_such_path, 405: _no_such_path},
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        await self.service.roles.close()
        if self.records is not None:
            await anyio.to_thread.run_sync(self.records.close)

    # ------------------------------------------------------------------------------------------------------------ chat

    async def _openai_chat(self, request: Request) -> Response:
        body = await json_body(request, self.settings.largest_body)
        asked = openai_api.request(body)
        identity = self._identity("chatcmpl")
        if body.get("stream"):
            with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
            chunks = openai_api.Chunks(identity, asked.model, with_usage)

            def rendered(piece: Piece) -> Iterator[bytes]:
                for chunk in chunks.of(piece):
                    yield b"data: " + _bytes(chunk) + b"\n\n"
                if isinstance(piece, End):
                    yield b"data: [DONE]\n\n"

            wire = _Wire("text/event-stream", rendered, lambda e: b"data: " + _bytes(_failure(e)[1]) + b"\n\n")
        else:
            wire = _Wire(
                "application/json",
                None,
                lambda e: _bytes(_failure(e)[1]),
                lambda o: openai_api.answer(identity, asked.model, o.text, o.thinking, o.calls, o.end),
            )
        return _Answer(self, "openai", identity, asked, wire, request.headers)

    async def _ollama_chat(self, request: Request) -> Response:
        body = await json_body(request, self.settings.largest_body)
        return self._ollama(ollama_api.chat_request(body), body, request, generate=False)

    async def _ollama_generate(self, request: Request) -> Response:
        body = await json_body(request, self.settings.largest_body)
        asked = ollama_api.generate_request(body)
        if not body.get("prompt"):  # Ollama's way to load a model, which is loaded here
            self.service.roles.chain(asked.model)
            empty = ollama_api.answer(asked.model, "", "", (), End(), generate=True)
            return JSONResponse(empty | {"done_reason": "load"})
        return self._ollama(asked, body, request, generate=True)

    def _ollama(self, asked: ChatRequest, body: Mapping[str, Any], request: Request, *, generate: bool) -> Response:
        identity = self._identity("ollama")
        if body.get("stream", True):
            lines = ollama_api.Lines(asked.model, generate=generate)

            def rendered(piece: Piece) -> Iterator[bytes]:
                return (_bytes(line) + b"\n" for line in lines.of(piece))

            wire = _Wire("application/x-ndjson", rendered, lambda e: _bytes({"error": str(e)}) + b"\n")
        else:
            wire = _Wire(
                "application/json",
                None,
                lambda e: _bytes({"error": str(e)}),
                lambda o: ollama_api.answer(asked.model, o.text, o.thinking, o.calls, o.end, generate=generate),
            )
        return _Answer(self, "ollama", identity, asked, wire, request.headers)

    def _identity(self, prefix: str) -> str:
        import uuid

        return f"{prefix}-{self.records.new_id() if self.records else uuid.uuid4().hex}"

    # ---------------------------------------------------------------------------------------------------- other paths

    async def _openai_models(self, request: Request) -> Response:
        return JSONResponse(openai_api.models(self.service.roles.names()))

    async def _openai_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self.service.roles.chain(name)
        return JSONResponse(openai_api.models([name])["data"][0])

    async def _embeddings(self, request: Request) -> Response:
        body = await json_body(request, self.settings.largest_body)
        if not isinstance(body, dict):
            raise BadRequest("The body must be a JSON object.")
        role = self.service.roles.chain(str(body.get("model") or ""))[0]
        ask = getattr(role.upstream, "embeddings", None)
        if ask is None:
            raise BadRequest(f"{role.name} has no embeddings.")
        async with role.place():
            return JSONResponse(await ask(body))

    async def _feedback(self, request: Request) -> Response:
        body = await json_body(request, self.settings.largest_body)
        if not isinstance(body, dict) or not isinstance(body.get("id"), str) or not isinstance(body.get("right"), bool):
            raise BadRequest('Send {"id": "<the answer\'s id>", "right": true or false}.')
        if self.records is None:
            raise BadRequest("This gateway keeps no records, so there is nothing to mark. Start it with --record.")
        self.records.feedback(body["id"].partition("-")[2] or body["id"], body["right"], str(body.get("note") or ""))
        return JSONResponse({"id": body["id"], "right": body["right"]})

    async def _ollama_tags(self, request: Request) -> Response:
        found = [_described(role, name) for role in self.service.roles.all for name in (role.name, *role.also)]
        return JSONResponse({"models": found})

    async def _ollama_show(self, request: Request) -> Response:
        body = await json_body(request, self.settings.largest_body)
        if not isinstance(body, dict):
            raise BadRequest("The body must be a JSON object.")
        role = self.service.roles.chain(str(body.get("model") or body.get("name") or ""))[0]
        described = _described(role, role.name)
        return JSONResponse(
            {
                "modelfile": f"# served by llm-tuner as {role.name}\nFROM {role.upstream.name}\n",
                "parameters": f"num_ctx {role.upstream.window}" if role.upstream.window else "",
                "template": "",
                "details": described["details"],
                "model_info": {"general.context_length": role.upstream.window},
                "capabilities": ["completion", "tools"],
            }
        )

    async def _ollama_ps(self, request: Request) -> Response:
        running = [role for role in self.service.roles.all if not role.resting]
        found = [_described(role, role.name) | {"expires_at": ollama_api.now(), "size_vram": 0} for role in running]
        return JSONResponse({"models": found})

    async def _ollama_version(self, request: Request) -> Response:
        return JSONResponse({"version": SEEN, "llm_tuner": __version__})

    async def _healthz(self, request: Request) -> Response:
        roles = {role.name: "resting" if role.resting else "ready" for role in self.service.roles.all}
        if "resting" in roles.values():
            for role in self.service.roles.all:
                if roles[role.name] == "resting" and await role.upstream.alive():
                    roles[role.name] = "failing"
        well = "ready" in roles.values()
        return JSONResponse({"ok": well, "roles": roles}, 200 if well else 503)

    async def _metrics(self, request: Request) -> Response:
        if self.records is not None:
            self.metrics.lost.set(self.records.lost)
        return Response(await anyio.to_thread.run_sync(self.metrics.text), media_type=self.metrics.content_type)

    async def _root(self, request: Request) -> Response:
        return PlainTextResponse("Ollama is running")  # what Ollama's clients look for


@dataclass(frozen=True)
class _Wire:
    """How an answer goes out: `piece` for a stream, else `whole`; `broken` ends what has begun."""

    media_type: str
    piece: Callable[[Piece], Iterator[bytes]] | None
    broken: Callable[[Exception], bytes]
    whole: Callable[[Outcome], Json] | None = None


class _Answer(Response):
    """A response that asks the service when it is sent, and stops asking when the client goes away."""

    def __init__(
        self, gateway: Gateway, api: str, identity: str, asked: ChatRequest, wire: _Wire, headers: Mapping[str, str]
    ) -> None:
        self._gateway, self._api, self._identity, self._asked, self._wire = gateway, api, identity, asked, wire
        self._constrain = _switch(headers.get("x-llm-tuner-constrain"))
        self._retry = _switch(headers.get("x-llm-tuner-retry"))
        self._recorded = gateway.records is not None and _switch(headers.get("x-llm-tuner-record")) is not False
        self._outcome = Outcome(asked=asked.model, private=not self._recorded)
        self.status_code = 200
        self.background = None
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._gateway.metrics.running.inc()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_until_gone, receive, tasks.cancel_scope)
                await self._send(send)
                tasks.cancel_scope.cancel()
        finally:
            self._gateway.metrics.running.dec()
            self._over()

    async def _send(self, send: Send) -> None:
        pieces = self._gateway.service.answer(self._asked, self._outcome, constrain=self._constrain, retry=self._retry)
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    if self._wire.piece is None:
                        continue
                    for data in self._wire.piece(piece):
                        await self._begin(send)
                        await send({"type": "http.response.body", "body": data, "more_body": True})
            if self._wire.whole is not None:
                await self._begin(send)
                body = _bytes(self._wire.whole(self._outcome))
                await send({"type": "http.response.body", "body": body, "more_body": True})
        except Exception as error:
            if not isinstance(error, TunerError):
                log.exception("a request failed")
            if not self._begun:
                self.status_code = _failure(error)[0]
            await self._begin(send, "application/json")
            await send({"type": "http.response.body", "body": self._wire.broken(error), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self, send: Send, media_type: str = "") -> None:
        """The head, once, as late as possible: it says who serves and why."""
        if self._begun:
            return
        self._begun = True
        told = {
            "content-type": media_type or self._wire.media_type,
            "cache-control": "no-store",
            "x-llm-tuner-id": self._identity,
            "x-llm-tuner-served-by": f"{self._outcome.role or 'none'} ({self._outcome.served_by or 'nobody'})",
            "x-llm-tuner-why": self._outcome.why or "no role could be asked",
            "x-llm-tuner-tools": f"{len(self._outcome.shown)} of {len(self._asked.tools)}, {self._outcome.form}",
        }
        if self.status_code == 503:
            told["retry-after"] = "5"
        if self._wire.piece is None and self._outcome.repairs:
            told["x-llm-tuner-repairs"] = "; ".join(f"{one.kind}: {one.detail}" for one in self._outcome.repairs)
        headers = [(name.encode(), _header(value)) for name, value in told.items()]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})

    def _over(self) -> None:
        outcome, gateway = self._outcome, self._gateway
        status = self.status_code if self._begun else 499
        gateway.metrics.count(self._api, outcome, status)
        log.info(
            "%s %s %s %d %.0f ms, %d+%d tokens%s",
            self._api, self._identity, outcome.role or "none", status, outcome.total_ms,
            outcome.end.usage.prompt_tokens, outcome.end.usage.completion_tokens,
            f", {', '.join(repair.kind for repair in outcome.repairs)}" if outcome.repairs else "",
        )  # fmt: skip
        if gateway.records is not None and self._recorded:
            with suppress(Exception):  # counted there as lost; an answer is never held up by its record
                gateway.records.keep(self._identity.partition("-")[2], self._asked, outcome)


async def _until_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _described(role: Role, name: str) -> dict[str, Any]:
    details = {"family": "", "format": "gguf", "parameter_size": "", "quantization_level": "", "parent_model": ""}
    return {
        "name": name,
        "model": name,
        "modified_at": "1970-01-01T00:00:00Z",
        "size": 0,
        "digest": "",
        "details": details | {"families": []},
        "context_length": role.upstream.window,
    }


def _failure(error: Exception) -> tuple[int, Json]:
    """HTTP status and body of an error."""
    words = str(error) or type(error).__name__
    if isinstance(error, PromptTooLong):
        return 400, openai_api.failure(words, code="context_length_exceeded")
    if isinstance(error, TooLarge):
        return 413, openai_api.failure(words, code="body_too_large")
    if isinstance(error, UnknownModel):
        return 404, openai_api.failure(words, code="model_not_found")
    if isinstance(error, DataError):
        return 400, openai_api.failure(words)
    if isinstance(error, Busy):
        return 503, openai_api.failure(words, "server_busy")
    if isinstance(error, RuntimeUnavailable):
        return 503, openai_api.failure(words, "upstream_unavailable")
    if isinstance(error, ModelError):
        return 502, openai_api.failure(words, "upstream_error")
    return 500, openai_api.failure("The gateway failed. Its log says why.", "internal_error")


async def _refused(request: Request, error: Exception) -> Response:
    status, body = _failure(error)
    if request.url.path.startswith("/api/"):
        body = {"error": str(error)}
    return JSONResponse(body, status)


async def _no_such_path(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    words = f"{request.method} {request.url.path} is not served here."
    return JSONResponse({"error": words} if request.url.path.startswith("/api/") else openai_api.failure(words), status)


def _switch(value: str | None) -> bool | None:
    return None if value is None else value.strip().lower() not in ("0", "off", "no", "false")


def _bytes(value: Json) -> bytes:
    return dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _header(value: str) -> bytes:
    """A header's value: one line of ASCII."""
    return "".join(c if " " <= c <= "~" else "?" for c in value)[:500].encode()


__all__ = ["Gateway", "Records", "Settings"]
