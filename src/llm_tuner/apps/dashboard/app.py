"""The dashboard as an ASGI application: pages, the API of the operations, the switches of language and appearance.

What a page shows is made in pages.py; who may ask is decided in security.py, before anything here is reached.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from platformdirs import user_cache_path, user_data_path
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from llm_tuner import __version__
from llm_tuner.apps.dashboard import formats
from llm_tuner.apps.dashboard.index import Index
from llm_tuner.apps.dashboard.jobs import ENDED, Job, Jobs, Remembered, run
from llm_tuner.apps.dashboard.security import COOKIE, REPORT_POLICY, Shield, right_token, ticket
from llm_tuner.apps.dashboard.words import Words, language_of
from llm_tuner.apps.gateway.guards import json_body
from llm_tuner.operations import Operation
from llm_tuner.serving.request import BadRequest
from llm_tuner.store import Store
from llm_tuner.types import TunerError, content_hash

STATIC = {"dashboard.css": "text/css; charset=utf-8", "dashboard.js": "text/javascript; charset=utf-8"}
YEAR = 31_536_000
HEARTBEAT = 15.0

Page = Callable[["Dashboard", Request], dict[str, Any]]


class Missing(Exception):
    """There is no such page."""


class Dashboard:
    """All of it; `app` is what a server runs. `journal` is the gateway's, `cache` a folder that may be deleted."""

    def __init__(
        self,
        operations: Sequence[Operation],
        store: Store,
        *,
        token: str = "",
        journal: Path | None = None,
        cache: Path | None = None,
    ) -> None:
        self.operations = {operation.name: operation for operation in operations}
        self.store, self.token = store, token
        self.journal = journal or user_data_path("llm-tuner") / "exchanges"
        self.cache = (cache or user_cache_path("llm-tuner")) / "dashboard"
        self.id = content_hash([str(self.store.root), str(self.journal)])
        self.remembered = Remembered()
        self.jobs = Jobs(self._ended)

    @cached_property
    def index(self) -> Index:
        return Index(self.cache / f"{self.id}.sqlite")

    @cached_property
    def app(self) -> ASGIApp:
        from llm_tuner.apps.dashboard.pages import PAGES

        pages = [Route(path, self._page(template, made)) for path, template, made in PAGES]
        routes = [
            *pages,
            Route("/healthz", lambda _: JSONResponse({"ok": True})),
            Route("/static/{name}", _static),
            Route("/login", self._login, methods=["GET", "POST"]),
            Route("/set/{what}/{value}", _set),
            Route("/runs/{run}/html/{name}", self._report),
            Route("/api/operations", self._list),
            Route("/api/operations/{name}", self._do, methods=["POST"]),
            Route("/api/jobs/{id}", self._job),
            Route("/api/jobs/{id}/events", self._events),
            Route("/api/jobs/{id}/cancel", self._cancel, methods=["POST"]),
        ]
        app = Starlette(
            routes=routes, lifespan=self._lifespan, exception_handlers={404: self._missing, 405: self._missing}
        )
        return Shield(app, self.token)

    # --------------------------------------------------------------------------------------------------------- pages

    def _page(self, template: str, made: Page) -> Callable[[Request], Response]:
        def endpoint(request: Request) -> Response:
            try:
                with self.index.page():
                    found = made(self, request)
            except Missing:
                return self._missing(request, None)
            except TunerError as error:
                return self.page(request, "message.html", {"title": "", "message": str(error)}, 500)
            return self.page(request, template, found)

        return endpoint

    def page(self, request: Request, template: str, found: dict[str, Any], status: int = 200) -> Response:
        """A rendered page. `found["again"]` is after how many milliseconds it wants to be asked again."""
        cookies = request.cookies
        words = Words(language_of(cookies.get("lang", ""), request.headers.get("accept-language", "")))
        theme = cookies.get("theme", "auto")
        again = found.get("again", 0)
        context = {
            "again": again,
            "t": words,
            "lang": words.spoken,
            "theme": theme if theme in ("light", "dark") else "auto",
            "here": quote(request.url.path + (f"?{request.url.query}" if request.url.query else "")),
            "path": request.url.path,
            "part": request.query_params.get("part") == "1",
            "operations": self.operations,
            "version": __version__,
            "asset": _assets(),
            **found,
        }
        text = _environment().get_template(template).render(context)
        return HTMLResponse(text, status, {"x-again": str(again), "vary": "Cookie, Accept-Language"})

    def _missing(self, request: Request, error: Exception | None) -> Response:
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": "There is nothing here."}, getattr(error, "status_code", 404))
        return self.page(request, "message.html", {"title": "404", "message": ""}, getattr(error, "status_code", 404))

    async def _login(self, request: Request) -> Response:
        if not self.token:
            return RedirectResponse("/", 303)
        wrong = False
        if request.method == "POST":
            form = await request.form(max_files=0, max_fields=4)
            if await right_token(str(form.get("token", "")), self.token):
                answer = RedirectResponse("/", 303)
                secure = request.url.scheme == "https"
                answer.set_cookie(COOKIE, ticket(self.token), httponly=True, samesite="strict", secure=secure)
                return answer
            wrong = True
        return self.page(request, "login.html", {"title": "login", "wrong": wrong}, 401 if wrong else 200)

    def _report(self, request: Request) -> Response:
        """A page that a run wrote, shown without scripts and without the rights of this origin."""
        from llm_tuner.apps.dashboard.pages import folder_of

        folder, name = folder_of(self, request.path_params["run"]), request.path_params["name"]
        there = {path.name: path for path in folder.glob("*.html")} if folder else {}
        if name not in there:
            return self._missing(request, None)
        return HTMLResponse(there[name].read_bytes(), headers={"content-security-policy": REPORT_POLICY})

    # ----------------------------------------------------------------------------------------------------------- API

    def _list(self, request: Request) -> Response:
        return JSONResponse([described(operation) for operation in self.operations.values()])

    async def _do(self, request: Request) -> Response:
        operation = self.operations.get(request.path_params["name"])
        if operation is None:
            return JSONResponse({"error": f"There are: {', '.join(self.operations)}."}, 404)
        try:
            arguments = await json_body(request) if int(request.headers.get("content-length", "1") or 1) else {}
        except (BadRequest, ValueError) as error:
            return JSONResponse({"error": str(error)}, 400)
        if not isinstance(arguments, dict):
            return JSONResponse({"error": "The body is a JSON object of arguments."}, 400)
        try:
            if operation.long:
                operation_checked(operation, arguments)
                job = self.jobs.start(operation, arguments)
                where = f"/api/jobs/{job.id}"
                return JSONResponse(job.document, 202, {"location": where})
            result = await run_in_threadpool(run, operation, arguments)
        except TunerError as error:
            return JSONResponse({"error": str(error), "type": type(error).__name__}, 422)
        if operation.effect == "changes" or (isinstance(result, dict) and result.get("done")):
            self._ended(operation)
        return JSONResponse(result)

    def _job(self, request: Request) -> Response:
        job = self._found(request)
        return JSONResponse(job.document) if job else JSONResponse({"error": "There is no such job."}, 404)

    async def _cancel(self, request: Request) -> Response:
        job = self._found(request)
        if job is None:
            return JSONResponse({"error": "There is no such job."}, 404)
        job.stop.set()
        return JSONResponse(job.document, 202)

    async def _events(self, request: Request) -> Response:
        job = self._found(request)
        if job is None:
            return JSONResponse({"error": "There is no such job."}, 404)
        last = request.headers.get("last-event-id", "")
        return StreamingResponse(_told(job, int(last) + 1 if last.isdigit() else 0), media_type="text/event-stream")

    def _found(self, request: Request) -> Job | None:
        return self.jobs.get(request.path_params["id"])

    def _ended(self, operation: Operation) -> None:
        if operation.effect != "reads":
            self.remembered.forget()

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self.jobs.stop_all()
            if "index" in self.__dict__:
                self.index.close()


def described(operation: Operation) -> dict[str, Any]:
    """An operation for programs."""
    return {
        "name": operation.name,
        "summary": operation.summary,
        "ja": operation.ja,
        "effect": operation.effect,
        "long": operation.long,
        "command": ["llm-tuner", *operation.command],
        "input_schema": operation.arguments.model_json_schema(),
    }


def operation_checked(operation: Operation, arguments: dict[str, Any]) -> None:
    """Raises SetupError for arguments that a job would fail with at once."""
    from pydantic import ValidationError

    from llm_tuner.types import SetupError

    try:
        operation.arguments.model_validate(arguments)
    except ValidationError as error:
        problem = error.errors()[0]
        raise SetupError(f"{operation.name}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}.") from error


async def _told(job: Job, number: int) -> AsyncIterator[str]:
    """Events of a job as they come, then how it ended; a word now and then so that nobody hangs up."""
    quiet = 0.0
    while True:
        state = job.state
        for number_, event in job.since(number):
            yield f"id: {number_}\nevent: progress\ndata: {event.model_dump_json()}\n\n"
            number, quiet = number_ + 1, 0.0
        if state in ENDED:
            yield f"event: end\ndata: {json.dumps(job.document)}\n\n"
            return
        await asyncio.sleep(0.2)
        quiet += 0.2
        if quiet > HEARTBEAT:
            yield ": here\n\n"
            quiet = 0.0


def _set(request: Request) -> Response:
    """Keeps a switch in a cookie and goes back to a page of this dashboard, and to no other."""
    what, value, to = request.path_params["what"], request.path_params["value"], request.query_params.get("to", "/")
    if not to.startswith("/") or to.startswith("//") or "\\" in to or any(ord(c) < 32 for c in to):
        to = "/"
    answer = RedirectResponse(to, 303)
    if (what, value) in [("lang", "en"), ("lang", "ja"), ("theme", "light"), ("theme", "dark"), ("theme", "auto")]:
        answer.set_cookie(what, value, max_age=YEAR, samesite="strict", httponly=True)
    return answer


def _file(name: str) -> bytes:
    return resources.files("llm_tuner.apps.dashboard").joinpath("static", name).read_bytes()


def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in STATIC:
        return Response("There is nothing here.", 404)
    return Response(
        _file(name), media_type=STATIC[name], headers={"cache-control": "public, max-age=31536000, immutable"}
    )


def _once(make: Callable[[], Any]) -> Callable[[], Any]:
    made: list[Any] = []

    def get() -> Any:
        if not made:
            made.append(make())
        return made[0]

    return get


@_once
def _assets() -> dict[str, str]:
    """Their addresses change with their contents."""
    return {name: f"/static/{name}?{content_hash(_file(name).decode())[:8]}" for name in STATIC}


@_once
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("llm_tuner.apps.dashboard", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(formats.FILTERS)
    return made
