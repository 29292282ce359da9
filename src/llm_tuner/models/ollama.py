"""A model as served by Ollama, and the server itself: list, pull, create, copy, delete.

Speaks raw JSON to Ollama's own API: typed clients drop parts of tool schemas, and its OpenAI endpoint ignores the
context size. The rule it protects: no prompt is cut silently. Every request names its context and forbids truncation,
and servers that are too old to obey are refused.
"""

from __future__ import annotations

import ipaddress
import json
import os
import queue
import re
import threading
import time
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from llm_tuner.models import dialects, http_answer
from llm_tuner.models.dialects.shapes import arguments_of, printable
from llm_tuner.models.https import trust
from llm_tuner.models.sources.weights import check_gguf, sha256_of
from llm_tuner.types import (
    GREEDY,
    ChatOptions,
    Event,
    Json,
    Message,
    ModelError,
    Reply,
    RuntimeTooOld,
    RuntimeUnavailable,
    SourceUnreachable,
    TemplateMismatch,
    Timing,
    ToolCall,
    ToolSpec,
    UnknownModel,
    Usage,
)

OLDEST = (0, 12, 6)
"""The first release known to obey `"truncate": false` on /api/chat."""

NATIVE = (0, 30, 0)
"""The first release that renders a file's own Jinja template, through llama.cpp's server."""

PORT = 11434

UNLOAD_SECONDS = 30

_CHUNK = 1 << 20


class OllamaServer:
    """An Ollama server. `host` as Ollama itself understands OLLAMA_HOST, which is used when it is not given.

    Every method raises RuntimeUnavailable when no server answers, UnknownModel for a name that is not there, and
    ModelError for anything else, with Ollama's own words where it has some. `timeout` is seconds of one answer; of a
    pull or a create, seconds without a byte.
    """

    def __init__(self, host: str | None = None, *, timeout: float = 600) -> None:
        self.url = base_url(host if host is not None else os.environ.get("OLLAMA_HOST", ""))
        self._http = httpx2.Client(
            base_url=self.url,
            timeout=httpx2.Timeout(timeout, connect=10),
            verify=trust(self.url),
            # A proxy never leads to this machine.
            trust_env=not is_loopback(self.url),
        )
        self._seconds = timeout
        self._finalizer = weakref.finalize(self, self._http.close)

    def close(self) -> None:
        """Close the connections. The server goes on."""
        self._finalizer()

    def __repr__(self) -> str:
        return f"OllamaServer({self.url!r})"

    def version(self) -> str:
        """The server's version; "0.0.0" is a development build. Raises RuntimeTooOld below `OLDEST`."""
        version = str(self._told("/api/version", "version"))
        numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:3])
        if (0, 0, 0) < numbers < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise RuntimeTooOld(
                f"Ollama at {self.url} is version {version}; older than {oldest} it cuts long prompts silently. "
                "Update it: https://ollama.com/download"
            )
        return version

    def renders_jinja(self) -> bool:
        """Whether it can render a file's own Jinja template: since 0.30 llama.cpp does that for it. A development build
        is taken for a new one."""
        numbers = tuple(int(n) for n in re.findall(r"\d+", self.version())[:3])
        return numbers == (0, 0, 0) or numbers >= NATIVE

    def models(self) -> list[dict[str, Json]]:
        """The installed models as /api/tags describes them: name, size (bytes), digest, modified_at, details."""
        return list(self._told("/api/tags", "models") or ())

    def running(self) -> list[dict[str, Json]]:
        """The loaded models as /api/ps describes them: name, size and size_vram (bytes), context_length, expires_at."""
        return list(self._told("/api/ps", "models") or ())

    def show(self, name: str) -> dict[str, Json]:
        """What /api/show tells about a model: modelfile, template, parameters, details, model_info, capabilities."""
        return self.ask("POST", "/api/show", {"model": name}, model=name)

    def delete(self, name: str) -> None:
        """Remove a model. Its blobs go when no other model uses them."""
        self.ask("DELETE", "/api/delete", {"model": name}, model=name)

    def unload(self, name: str) -> None:
        """Have a model's memory given back. 0.34 renders with the template of whichever model of a file it loaded
        first, as long as that is loaded."""
        self.ask("POST", "/api/generate", {"model": name, "keep_alive": 0}, model=name)
        until = time.monotonic() + UNLOAD_SECONDS
        while time.monotonic() < until and any(entry["name"] == name for entry in self.running()):
            time.sleep(0.05)

    def copy(self, source: str, destination: str) -> None:
        """Give a model a second name, replacing what had it. No bytes are copied."""
        self.ask("POST", "/api/copy", {"source": source, "destination": destination}, model=source)

    def load(self, name: str, keep_alive: str = "") -> None:
        """Have a model in memory before it is asked; `keep_alive` such as "1h", "" for the server's own time."""
        body: dict[str, Json] = {"model": name} | ({"keep_alive": keep_alive} if keep_alive else {})
        self.ask("POST", "/api/generate", body, model=name)

    def pull(self, name: str, *, insecure: bool = False) -> Generator[Event, None, None]:
        """Fetch a model from its registry. Progress is in bytes. Closed in the middle, the server stops and keeps
        what it has: the same pull goes on from there. `insecure` allows a registry over plain http."""
        yield from self._follow("pull", "/api/pull", {"model": name, "insecure": insecure}, name)

    def push(self, name: str, *, insecure: bool = False) -> Generator[Event, None, None]:
        """Send a model to the registry that its name names. Progress is in bytes."""
        yield from self._follow("push", "/api/push", {"model": name, "insecure": insecure}, name)

    def create(
        self,
        name: str,
        gguf: Path,
        *,
        template: str = "",
        parameters: Mapping[str, Json] | None = None,
        system: str = "",
    ) -> Generator[Event, None, None]:
        """Make a model of a GGUF file under `name`. A failure leaves the model that had the name as it was.

        `template` is a Go template; without one Ollama guesses by the GGUF's own. The file is not sent when the server
        has it already. Progress is in bytes. Raises CorruptModel for a file that is no whole GGUF.
        """
        # A file that is no GGUF ends the whole server (seen with 0.24.0), and with it what others are being served.
        check_gguf(gguf)
        digest = "sha256:" + (yield from sha256_of(gguf))
        if not self._has_blob(digest):
            yield from self._upload(gguf, digest)
        body: dict[str, Json] = {"model": name, "files": {gguf.name: digest}}
        body |= {"template": template} if template else {}
        body |= {"parameters": dict(parameters)} if parameters else {}
        body |= {"system": system} if system else {}
        yield from self._follow("create", "/api/create", body, name)

    def _told(self, path: str, key: str) -> Json:
        answer = self.ask("GET", path)
        if key not in answer:
            raise _no_ollama(self.url, path, json.dumps(answer))
        return answer[key]

    def ask(
        self, method: str, path: str, body: dict[str, Json] | None = None, *, model: str = "", tools: int = 0
    ) -> dict[str, Any]:
        """One request and its JSON answer. `model` and `tools` (their number) are for the error's message."""
        started = time.monotonic()
        with _reaching(self.url, self._seconds), self._http.stream(method, path, json=body) as answer:
            text = http_answer.text(answer, f"Ollama at {self.url}", started, self._seconds)
        if not answer.is_success:
            raise self._refusal(path, answer.status_code, _complaint(text), model, tools)
        try:
            return http_answer.document(text) if text else {}
        except ValueError as e:
            raise _no_ollama(self.url, path, text) from e

    def _follow(self, step: str, path: str, body: dict[str, Json], model: str) -> Generator[Event, None, None]:
        status = ""
        streamed = {**body, "stream": True}
        with _reaching(self.url, self._seconds), self._http.stream("POST", path, json=streamed) as answer:
            if not answer.is_success:
                raise self._refusal(path, answer.status_code, _complaint(answer.read().decode()), model, 0)
            for line in filter(None, answer.iter_lines()):
                try:
                    sign = http_answer.document(line)
                except ValueError as e:
                    raise _no_ollama(self.url, path, line) from e
                if "error" in sign:
                    raise self._refusal(path, answer.status_code, str(sign["error"]), model, 0)
                status = sign.get("status", "")
                total = sign.get("total", 0)
                yield Event(
                    step=step, message=status, done=sign.get("completed", 0), total=total, unit="bytes" if total else ""
                )
        if status != "success":
            raise ModelError(f"Ollama stopped in the middle of {path} for {model} (last word: {status!r}). Try again.")

    def _has_blob(self, digest: str) -> bool:
        with _reaching(self.url, self._seconds):
            return self._http.head(f"/api/blobs/{digest}").is_success

    def _upload(self, gguf: Path, digest: str) -> Generator[Event, None, None]:
        total = gguf.stat().st_size
        sent: queue.Queue[int | None] = queue.Queue()
        outcome: list[httpx2.Response | Exception] = []
        stop = threading.Event()

        def chunks() -> Iterator[bytes]:
            with gguf.open("rb") as file:
                while (chunk := file.read(_CHUNK)) and not stop.is_set():
                    yield chunk
                    sent.put(file.tell())

        def send() -> None:
            try:
                outcome.append(
                    self._http.post(f"/api/blobs/{digest}", content=chunks(), headers={"content-length": str(total)})
                )
            except Exception as e:
                outcome.append(e)
            sent.put(None)

        # The request runs beside us: its body is read while we report.
        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        try:
            while (done := sent.get()) is not None:
                yield Event(step="create", message=f"uploading {gguf.name}", done=done, total=total, unit="bytes")
        finally:
            stop.set()
            sender.join()
        answer = outcome[0]
        if isinstance(answer, Exception):
            with _reaching(self.url, self._seconds):
                raise answer
        if not answer.is_success:
            raise self._refusal("/api/blobs", answer.status_code, _complaint(answer.text), gguf.name, 0)

    def _refusal(self, path: str, status: int, complaint: str, model: str, tools: int) -> ModelError:
        lower = complaint.lower()
        if (
            path != "/api/create"
            and model
            and (status == 404 or "not found" in lower or "file does not exist" in lower)
        ):
            return self._unknown(model, path)
        if path in ("/api/pull", "/api/push"):
            if any(sign in lower for sign in ("dial tcp", "no such host", "i/o timeout", "connection re")):
                return SourceUnreachable(
                    f"The Ollama server cannot reach the registry of {model} ({complaint}). Try again: what was "
                    "fetched is kept."
                )
            if "digest mismatch" in lower:
                return ModelError(
                    f"What the registry sent for {model} is not what its manifest names ({complaint}). Nothing was "
                    "installed; try again."
                )
        if "does not support tools" in lower:
            return TemplateMismatch(
                f"Ollama's {model} has no place for tools in its template. Create it again with a template that has "
                "(models/ollama_templates.py), or show it the tools as text (rendering compact)."
            )
        if "exceeds the context length" in lower or "exceeds the available context" in lower:
            return ModelError(
                f"The prompt with {tools} tools does not fit the context of {model} ({complaint}). "
                "Offer fewer tools or ask with a larger context."
            )
        return ModelError(f"Ollama refused {path} for {model or self.url} (HTTP {status}): {complaint}")

    def _unknown(self, model: str, path: str) -> UnknownModel:
        if path == "/api/pull":
            return UnknownModel(
                f'No model "{model}" in the registry, or one that misses a part. Look it up: https://ollama.com/search'
            )
        found = sorted(str(entry["name"]) for entry in self.models())
        listed = f"found {len(found)}: {', '.join(found)}" if found else "there is none at all"
        return UnknownModel(f'No model "{model}" in Ollama ({listed}). Run: ollama pull {model}')


class Ollama:
    """One model of an Ollama server as a Backend. `context` is the window in tokens, `timeout` seconds of one answer.

    It renders too, but it is no whole Renderer: Ollama offers no tokenizer. The server is asked for its version before
    the first answer. Safe to use from several threads.
    """

    def __init__(self, model: str, host: str | None = None, context: int = 8192, *, timeout: float = 600) -> None:
        self._model = model
        self._context = context
        self._checked = False
        self.server = OllamaServer(host, timeout=timeout)

    @property
    def name(self) -> str:
        return self._model

    def __repr__(self) -> str:
        return f"Ollama({self._model!r}, {self.server.url!r}, context={self._context})"

    def close(self) -> None:
        """Close the connections. The model stays loaded as long as the server likes."""
        self.server.close()

    def chat(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), options: ChatOptions = GREEDY) -> Reply:
        """One answer. Raises UnknownModel, TemplateMismatch (no place for tools), RuntimeUnavailable, RuntimeTooOld,
        and ModelError when the prompt does not fit the context. `options.parallel` has no meaning to Ollama, and it
        does not say which tokens it wrote."""
        started = time.monotonic()
        answer = self._ask(messages, tools, options, {})
        try:
            return _reply(answer, tools, (time.monotonic() - started) * 1000)
        except http_answer.MISSHAPEN as e:
            raise _no_ollama(self.server.url, "/api/chat", str(answer)) from e

    def render(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), generation_prompt: bool = True
    ) -> str:
        """The prompt as the server renders it. The model's template decides about the end: the generation prompt
        follows any last message but an assistant's, so that `generation_prompt` must say the same (else ModelError)."""
        if generation_prompt == (bool(messages) and messages[-1].role == "assistant"):
            raise ModelError(
                "Ollama always adds the generation prompt after a user's or a tool's message and never after an "
                "assistant's. Ask for the one or the other, or render with the embedded llama.cpp."
            )
        answer = self._ask(messages, tools, GREEDY, {"_debug_render_only": True})
        return str(answer["_debug_info"]["rendered_template"])

    def _ask(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], options: ChatOptions, more: dict[str, Json]
    ) -> dict[str, Any]:
        if not self._checked:
            self.server.version()
            self._checked = True
        body: dict[str, Json] = {
            "model": self._model,
            "messages": outgoing(messages),
            "tools": [tool.openai() for tool in tools],
            "options": {
                "temperature": options.temperature,
                "seed": options.seed,
                "num_predict": options.max_tokens,
                "num_ctx": self._context,
                **({"top_k": 0, "top_p": 1.0, "min_p": 0.0} if options.on_policy else {}),
            },
            "stream": False,
            "truncate": False,
            "shift": False,
        }
        return self.server.ask("POST", "/api/chat", body | more, model=self._model, tools=len(tools))


def base_url(host: str) -> str:
    """The URL that OLLAMA_HOST stands for: host, host:port, :port, an IPv6 address or a URL; "" is the default."""
    host = host.strip()
    scheme, _, rest = host.rpartition("://")
    rest, _, path = rest.partition("/")
    if rest.count(":") > 1 and not rest.startswith("["):
        rest = f"[{rest}]"
    parts = urlsplit(f"//{rest}")
    try:
        port = parts.port
    except ValueError as e:
        raise RuntimeUnavailable(
            f'"{host}" is no address of an Ollama server: {e}. Set OLLAMA_HOST to host:port.'
        ) from e
    name = parts.hostname or "127.0.0.1"
    # What a server listens on is not where a client connects to.
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name, name)
    port = port or {"": PORT, "http": 80, "https": 443}.get(scheme, PORT)
    return f"{scheme or 'http'}://{f'[{name}]' if ':' in name else name}:{port}{'/' + path if path else ''}".rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine."""
    name = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _reaching(url: str, seconds: float) -> AbstractContextManager[None]:
    absent = f"No Ollama server answers at {url} ({{error}}). Start one with: ollama serve (or set OLLAMA_HOST)."
    return http_answer.reaching(f"Ollama at {url}", absent, seconds)


def _no_ollama(url: str, path: str, text: str) -> ModelError:
    return ModelError(f"{url} does not answer {path} as Ollama does: {text[:200]!r}. Check OLLAMA_HOST.")


def _complaint(text: str) -> str:
    """The words of an error body, which is JSON or plain text."""
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text.strip()[:500] or "no reason given"


def outgoing(messages: Sequence[Message]) -> list[dict[str, Json]]:
    """The history as /api/chat wants it: arguments are objects, results name their tool. Calls in text stay text."""
    called: dict[str, str] = {}
    out: list[dict[str, Json]] = []
    for message in messages:
        body: dict[str, Json] = {"role": message.role, "content": message.text}
        if message.thinking:
            body["thinking"] = message.thinking
        if message.tool_calls:
            called |= {call.id: call.name for call in message.tool_calls}
            body["tool_calls"] = [
                {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
                for call in message.tool_calls
            ]
        if message.result:
            body["content"] = message.result.content
            body["tool_call_id"] = message.result.call_id
            body["tool_name"] = called.get(message.result.call_id, "")
        out.append(body)
    return out


def _reply(answer: dict[str, Any], tools: Sequence[ToolSpec], total_ms: float) -> Reply:
    body = printable(answer)["message"]
    message = Message(
        role="assistant",
        text=body.get("content") or "",
        thinking=body.get("thinking") or "",
        tool_calls=tuple(_incoming_call(call) for call in body.get("tool_calls") or ()),
    )
    return Reply(
        message=dialects.read(message, tools),
        usage=Usage(
            prompt_tokens=answer.get("prompt_eval_count") or 0, completion_tokens=answer.get("eval_count") or 0
        ),
        timing=Timing(
            total_ms=total_ms,
            prompt_ms=_milliseconds(answer.get("prompt_eval_duration")),
            generate_ms=_milliseconds(answer.get("eval_duration")),
        ),
        finish=answer.get("done_reason") or "",
    )


def _incoming_call(body: dict[str, Json]) -> ToolCall:
    function = body["function"]
    arguments, error = arguments_of(function.get("arguments"))
    raw = json.dumps(function.get("arguments"), ensure_ascii=False)
    return ToolCall(name=function["name"], arguments=arguments, id=body.get("id") or "", raw=raw, error=error)


def _milliseconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e6
