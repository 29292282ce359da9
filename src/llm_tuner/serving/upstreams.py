"""The servers behind the gateway: one prompt in, the pieces of the answer out as they come.

The asynchronous side of `models`: it opens connections and reads streams, and knows neither roles nor repairs. The rule
it protects: no upstream cuts a prompt silently (the window is named in every request, and an overflow is an error), and
none keeps a client beyond the time limit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import httpx2

from llm_tuner.models import http_answer
from llm_tuner.models.fitting import Count
from llm_tuner.models.https import trust
from llm_tuner.models.ollama import outgoing as to_ollama
from llm_tuner.models.openai_wire import incoming_call
from llm_tuner.models.openai_wire import outgoing as to_openai
from llm_tuner.serving.grammar import Grammar
from llm_tuner.serving.ollama_api import OPTIONS
from llm_tuner.serving.pins import Pins
from llm_tuner.serving.request import Calls, End, Piece, Text
from llm_tuner.types import (
    Json,
    Message,
    ModelError,
    PromptTooLong,
    RuntimeUnavailable,
    ToolCall,
    ToolSpec,
    UnknownModel,
    Usage,
    content_hash,
)


class Refused(ModelError):
    """A server refused this very request (HTTP 4xx): it is well, and would refuse it again."""


LONGEST = 600.0
"""Seconds of one answer."""


@dataclass(frozen=True)
class Prompt:
    """What a model is asked. `tools` are those that the server's own template shows; `choice`, `named` and `parallel`
    are for servers that honour them. `grammar` holds the answer to the tools, where the server can do that. Of a
    `private` one nothing may be kept on disk."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    choice: str = "auto"
    named: str = ""
    parallel: bool = True
    sampling: Mapping[str, Json] = field(default_factory=dict)
    grammar: Grammar | None = None
    private: bool = False


class Upstream(Protocol):
    """A model as a server offers it. `window` is the context in tokens, 0 where the server decides. `constrains`:
    `Prompt.grammar` is honoured. `shows_tools`: its chat template has a place for `Prompt.tools`.

    `stream` raises RuntimeUnavailable where no server answers, UnknownModel, PromptTooLong, and ModelError for all else
    that the server complains about or breaks off with, also in the middle."""

    name: str
    window: int
    constrains: bool
    shows_tools: bool

    def stream(self, prompt: Prompt) -> AsyncIterator[Piece]: ...

    async def alive(self) -> bool: ...

    async def close(self) -> None: ...


_IDLE = 2.0
"""Seconds after which an idle connection is not used again. llama.cpp's server closes one after 5."""


class _Client:
    """The connection that the upstreams share the making of."""

    def __init__(self, url: str, key: str = "", seconds: float = LONGEST) -> None:
        self.url = url.rstrip("/")
        self._key, self._seconds = key, seconds
        self._http = httpx2.AsyncClient(
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(seconds, connect=10),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=_IDLE),
            verify=trust(self.url),
            # A proxy never leads to this machine.
            trust_env="127.0.0.1" not in url and "localhost" not in url,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, method: str, path: str, body: Json = None) -> dict[str, Any]:
        """One request and its JSON answer."""
        with self._reaching():
            answer = await self._sent(method, path, body)
            try:
                await answer.aread()
            finally:
                await answer.aclose()
        if not answer.is_success:
            raise self._refusal(answer.status_code, answer.text)
        try:
            return http_answer.document(answer.text)
        except ValueError as error:
            raise ModelError(f"{self.url} answered no JSON: {answer.text[:200]!r}.") from error

    @asynccontextmanager
    async def lines(self, path: str, body: Json) -> AsyncIterator[AsyncIterator[str]]:
        """The lines of a streamed answer."""
        started = time.monotonic()
        with self._reaching():
            answer = await self._sent("POST", path, body)
            try:
                if not answer.is_success:
                    raise self._refusal(answer.status_code, (await answer.aread()).decode("utf-8", "replace"))
                yield self._lines(answer, started)
            finally:
                await answer.aclose()

    async def _sent(self, method: str, path: str, body: Json) -> httpx2.Response:
        """An answer whose body is still to come. A connection that the server closed while it lay idle, just as we
        wrote into it, says nothing about the request: it is sent again, once."""
        request = self._http.build_request(method, self.url + path, json=body)
        try:
            return await self._http.send(request, stream=True)
        except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
            return await self._http.send(request, stream=True)

    async def _lines(self, answer: httpx2.Response, started: float) -> AsyncIterator[str]:
        rest, size = b"", 0
        async for piece in answer.aiter_bytes():
            size += len(piece)
            if size > http_answer.LARGEST or time.monotonic() - started > self._seconds:
                raise ModelError(f"{self.url} did not finish its answer within {self._seconds:g} s and 64 MiB.")
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line.decode("utf-8", "replace").rstrip("\r")
        if rest:
            yield rest.decode("utf-8", "replace")

    def _reaching(self) -> Any:
        return http_answer.reaching(self.url, f"No server answers at {self.url} ({{error}}).", self._seconds)

    def _refusal(self, status: int, body: str) -> ModelError:
        words = _complaint(body)
        if self._key:
            words = words.replace(self._key, "***")
        return refusal(self.url, status, words)


def refusal(url: str, status: int, words: str) -> ModelError:
    """A server's complaint as our error."""
    lower = words.lower()
    if "context" in lower and any(word in lower for word in ("exceed", "too long", "maximum", "larger")):
        return PromptTooLong(f"The prompt does not fit the window of the model: {words}")
    if status == 404 or ("model" in lower and "not found" in lower):
        return UnknownModel(f"{url} does not know the model: {words}")
    if status in (502, 503):
        return RuntimeUnavailable(f"{url} is not ready (HTTP {status}): {words}")
    kind = Refused if 400 <= status < 500 and status != 429 else ModelError
    return kind(f"{url} refused the request (HTTP {status}): {words}")


def _complaint(body: str) -> str:
    try:
        error = http_answer.document(body)["error"]
    except (ValueError, LookupError):
        return body.strip()[:500] or "no reason given"
    return str(error.get("message", error) if isinstance(error, dict) else error)[:500]


class OpenAIUpstream:
    """A model of any server that speaks OpenAI's chat API. `url` up to and including the version."""

    constrains = False
    shows_tools = True

    def __init__(self, model: str, url: str, key: str = "", *, window: int = 0, seconds: float = LONGEST) -> None:
        self.name, self.window = model, window
        self._client = _Client(url, key, seconds)

    def __repr__(self) -> str:
        return f"OpenAIUpstream({self.name!r}, {self._client.url!r})"

    async def close(self) -> None:
        await self._client.close()

    async def alive(self) -> bool:
        try:
            await self._client.ask("GET", "/models")
        except RuntimeUnavailable:
            return False
        except ModelError:
            return True
        return True

    async def embeddings(self, body: dict[str, Json]) -> dict[str, Any]:
        """OpenAI's /embeddings, passed through."""
        return await self._client.ask("POST", "/embeddings", body | {"model": self.name})

    def stream(self, prompt: Prompt) -> AsyncIterator[Piece]:
        return self._chat(self._body(prompt))

    def _body(self, prompt: Prompt) -> dict[str, Json]:
        body: dict[str, Json] = {
            "model": self.name,
            "messages": [to_openai(message) for message in prompt.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            **prompt.sampling,
        }
        if prompt.tools:
            body["tools"] = [tool.openai() for tool in prompt.tools]
            body["parallel_tool_calls"] = prompt.parallel
            body["tool_choice"] = _choice(prompt)
        return body

    async def _chat(self, body: dict[str, Json]) -> AsyncGenerator[Piece, None]:
        calls: dict[int, dict[str, Any]] = {}
        times: dict[str, Any] = {}
        finish, usage = "", Usage()
        async with self._client.lines("/chat/completions", body) as lines:
            async for chunk in _events(lines, self._client.url):
                usage = _openai_usage(chunk["usage"]) if chunk.get("usage") else usage
                times = chunk.get("timings") or times
                for choice in (chunk.get("choices") or ())[:1]:
                    delta = choice.get("delta") or {}
                    finish = choice.get("finish_reason") or finish
                    if delta.get("reasoning_content"):
                        yield Text(delta["reasoning_content"], thinking=True)
                    if delta.get("content"):
                        yield Text(delta["content"])
                    for piece in delta.get("tool_calls") or ():
                        _collect(calls, piece)
        if calls:
            yield Calls(tuple(_call(calls[index], finish) for index in sorted(calls)))
        yield End(finish or "stop", usage, times.get("prompt_ms"), times.get("predicted_ms"))


class LlamaCppUpstream(OpenAIUpstream):
    """llama.cpp's own server. A prompt with a grammar is rendered by the server, and completed under it: its chat
    endpoint takes no lazy grammar from outside. `window` is what one request may fill; `count` says what tools take of
    it, where somebody can. Each of its `slots` keeps to one beginning (tools and system message); `states` is the
    folder in which the server saves them, of this model file and window alone. `revive` starts a server of ours that
    ended again and says where it is; the request that finds it dead goes on then."""

    constrains = True

    def __init__(
        self,
        model: str,
        address: str,
        *,
        window: int,
        count: Count | None = None,
        slots: int = 1,
        states: Path | None = None,
        revive: Callable[[], str] | None = None,
        seconds: float = LONGEST,
    ) -> None:
        super().__init__(model, f"{address.rstrip('/')}/v1", window=window, seconds=seconds)
        self.count = count
        self._own = _Client(address, seconds=seconds)
        self.pins = Pins(slots, self._act, states)
        self._revive = revive

    async def close(self) -> None:
        await self.pins.close()
        await super().close()
        await self._own.close()

    async def stream(self, prompt: Prompt) -> AsyncIterator[Piece]:
        await self._revived()

        async def bare(slot: int) -> None:
            begun = prompt.messages[:1] if prompt.messages[0].role == "system" else ()
            asking = (*begun, Message(role="user", text="."))
            nobody = replace(prompt, messages=asking, choice="auto", named="", sampling={"max_tokens": 1})
            async for _ in self._chat(self._body(nobody) | {"id_slot": slot, "cache_prompt": True}):
                pass

        async with self.pins.slot(_beginning(prompt), None if prompt.private else bare) as slot:
            if prompt.grammar is None:
                pieces = self._chat(self._body(prompt) | {"id_slot": slot.number, "cache_prompt": True})
            else:
                pieces = self._held(prompt, prompt.grammar, slot.number)
            async with aclosing(pieces):  # the server stops before the slot is free again
                async for piece in pieces:
                    slot.read = True
                    yield piece

    async def alive(self) -> bool:
        try:
            await self._revived()
        except ModelError:
            return False
        return await super().alive()

    async def _revived(self) -> None:
        if self._revive is None:
            return
        address = await asyncio.to_thread(self._revive)
        if address != self._own.url:
            self._own.url, self._client.url = address, f"{address}/v1"
            self.pins.forget()

    async def _act(self, slot: int, action: str, file: str) -> object:
        return await self._own.ask("POST", f"/slots/{slot}?action={action}", {"filename": file})

    async def _held(self, prompt: Prompt, grammar: Grammar, slot: int) -> AsyncGenerator[Piece, None]:
        shown: dict[str, Json] = {"messages": [to_openai(message) for message in prompt.messages]}
        if prompt.tools:
            shown |= {"tools": [tool.openai() for tool in prompt.tools], "parallel_tool_calls": prompt.parallel}
        rendered = await self._own.ask("POST", "/apply-template", shown)
        body: dict[str, Json] = {
            **{_LLAMA.get(key, key): value for key, value in prompt.sampling.items()},
            "prompt": rendered["prompt"],
            "stream": True,
            "id_slot": slot,
            "cache_prompt": True,
            **grammar.llama_cpp(),
        }
        times: dict[str, Any] = {}
        finish, usage = "stop", Usage()
        async with self._own.lines("/completion", body) as lines:
            async for chunk in _events(lines, self._own.url):
                if chunk.get("content"):
                    yield Text(chunk["content"])
                if chunk.get("stop"):
                    times = chunk.get("timings") or {}
                    finish = "length" if chunk.get("stop_type") == "limit" else "stop"
                    usage = Usage(
                        prompt_tokens=chunk.get("tokens_evaluated") or 0,
                        cached_tokens=max(0, (chunk.get("tokens_evaluated") or 0) - (times.get("prompt_n") or 0)),
                        completion_tokens=chunk.get("tokens_predicted") or 0,
                    )
        yield End(finish, usage, times.get("prompt_ms"), times.get("predicted_ms"))


class OllamaUpstream:
    """A model of an Ollama server, over its own API: its OpenAI endpoint ignores the window. `window` is sent with
    every request, and cutting is forbidden. `shows_tools`: its template has a place for tools; without one the server
    refuses them."""

    constrains = False

    def __init__(
        self, model: str, url: str, *, window: int = 8192, shows_tools: bool = True, seconds: float = LONGEST
    ) -> None:
        self.name, self.window, self.shows_tools = model, window, shows_tools
        self._client = _Client(url, seconds=seconds)

    def __repr__(self) -> str:
        return f"OllamaUpstream({self.name!r}, {self._client.url!r}, window={self.window})"

    async def close(self) -> None:
        await self._client.close()

    async def alive(self) -> bool:
        try:
            await self._client.ask("GET", "/api/version")
        except ModelError:
            return False
        return True

    async def embeddings(self, body: dict[str, Json]) -> dict[str, Any]:
        """Ollama's own OpenAI-style /v1/embeddings, passed through."""
        return await self._client.ask("POST", "/v1/embeddings", body | {"model": self.name})

    async def stream(self, prompt: Prompt) -> AsyncIterator[Piece]:
        options = {_OLLAMA[key]: value for key, value in prompt.sampling.items() if key in _OLLAMA}
        body: dict[str, Json] = {
            "model": self.name,
            "messages": to_ollama(prompt.messages),
            "options": options | {"num_ctx": self.window},
            "stream": True,
            "truncate": False,
            "shift": False,
        }
        if prompt.tools:
            body["tools"] = [tool.openai() for tool in prompt.tools]
        if prompt.grammar is not None and prompt.grammar.whole is not None:
            body["format"] = prompt.grammar.whole
        elif shape := _format(prompt.sampling.get("response_format")):
            body["format"] = shape
        async with self._client.lines("/api/chat", body) as lines:
            async for line in lines:
                if not line.strip():
                    continue
                chunk = _document(line, self._client.url)
                if error := chunk.get("error"):
                    raise refusal(self._client.url, 500, str(error)[:500])
                said = chunk.get("message") or {}
                if said.get("thinking"):
                    yield Text(said["thinking"], thinking=True)
                if said.get("content"):
                    yield Text(said["content"])
                if said.get("tool_calls"):
                    yield Calls(tuple(incoming_call(call) for call in said["tool_calls"]))
                if chunk.get("done"):
                    usage = Usage(
                        prompt_tokens=chunk.get("prompt_eval_count") or 0,
                        completion_tokens=chunk.get("eval_count") or 0,
                    )
                    finish = "length" if chunk.get("done_reason") == "length" else "stop"
                    times = [(chunk.get(key) or 0) / 1e6 for key in ("prompt_eval_duration", "eval_duration")]
                    yield End(finish, usage, times[0], times[1])
                    return
        raise ModelError(f"{self._client.url} broke off in the middle of its answer. See its log.")


# ---------------------------------------------------------------------------------------------------------- the wires

_LLAMA = {"max_tokens": "n_predict", "max_completion_tokens": "n_predict"}

_OLLAMA = {ours: theirs for theirs, ours in OPTIONS.items()} | {"max_completion_tokens": "num_predict"}


def _beginning(prompt: Prompt) -> str:
    """What the prompts of one client begin with: its tools, and what the system message says."""
    first = prompt.messages[0].text if prompt.messages and prompt.messages[0].role == "system" else ""
    return content_hash([first, [tool.fingerprint for tool in prompt.tools]])


def _choice(prompt: Prompt) -> Json:
    if prompt.named:
        return {"type": "function", "function": {"name": prompt.named}}
    return prompt.choice


def _format(response_format: Json) -> Json:
    """Ollama's `format` for OpenAI's `response_format`."""
    kind = response_format.get("type") if isinstance(response_format, dict) else ""
    if kind == "json_object":
        return "json"
    return (response_format.get("json_schema") or {}).get("schema") if kind == "json_schema" else None


async def _events(lines: AsyncIterator[str], url: str) -> AsyncIterator[dict[str, Any]]:
    """The `data:` objects of a stream of server-sent events. Raises ModelError where it breaks off or complains."""
    whole = False
    async for line in lines:
        if line.startswith("error:"):
            line = line.removeprefix("error:")
            raise refusal(url, 500, _complaint(f'{{"error": {line}}}'))
        if not line.startswith("data:"):
            continue
        if line[5:].strip() == "[DONE]":
            whole = True
            continue
        chunk = _document(line[5:], url)
        if error := chunk.get("error"):
            words = error.get("message", error) if isinstance(error, dict) else error
            raise refusal(url, int(error.get("code") or 500) if isinstance(error, dict) else 500, str(words)[:500])
        whole = whole or bool(chunk.get("stop"))
        whole = whole or any(choice.get("finish_reason") for choice in chunk.get("choices") or ())
        yield chunk
    if not whole:
        raise ModelError(f"{url} broke off in the middle of its answer. See its log.")


def _document(line: str, url: str) -> dict[str, Any]:
    try:
        return http_answer.document(line)
    except ValueError as error:
        raise ModelError(f"{url} streams no JSON: {line[:200]!r}.") from error


def _collect(calls: dict[int, dict[str, Any]], piece: dict[str, Any]) -> None:
    call = calls.setdefault(piece.get("index") or 0, {"id": "", "function": {"name": "", "arguments": ""}})
    call["id"] = piece.get("id") or call["id"]
    function = piece.get("function") or {}
    call["function"]["name"] += function.get("name") or ""
    call["function"]["arguments"] += function.get("arguments") or ""


def _call(body: dict[str, Any], finish: str) -> ToolCall:
    call = incoming_call(body)
    if finish == "length" and not call.raw.strip():
        return call.model_copy(update={"error": "the token limit cut the call off"})
    return call


def _openai_usage(usage: Mapping[str, Any]) -> Usage:
    return Usage(
        prompt_tokens=usage.get("prompt_tokens") or 0,
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        completion_tokens=usage.get("completion_tokens") or 0,
    )


__all__ = ["LlamaCppUpstream", "OllamaUpstream", "OpenAIUpstream", "Prompt", "Upstream", "refusal"]
