"""A model behind any server that speaks OpenAI's chat API: vLLM, llama-server, LM Studio, hosted teachers.

Not a Renderer: such a server shows neither its prompt nor its tokens. The rule it protects: the key goes into one
request header and nowhere else, no message, no repr, no record.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import httpx2

from llm_tuner.models import http_answer, openai_wire
from llm_tuner.models.https import trust
from llm_tuner.types import (
    GREEDY,
    ChatOptions,
    Json,
    Message,
    ModelError,
    Reply,
    ToolSpec,
    UnknownModel,
)

DEFAULT_URL = "https://api.openai.com/v1"


class OpenAICompatible:
    """A model of an OpenAI-compatible server as a Backend. Safe to use from several threads.

    `base_url` up to and including the version ("http://127.0.0.1:8000/v1"), else OPENAI_BASE_URL, else OpenAI.
    `api_key` else OPENAI_API_KEY, else none is sent. `timeout` is seconds of one answer.
    """

    def __init__(
        self, model: str, base_url: str | None = None, api_key: str | None = None, timeout: float = 600
    ) -> None:
        self._model = model
        self.url = (base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL).rstrip("/")
        key = api_key if api_key is not None else os.environ.get("OPENAI_API_KEY", "")
        self._key, self._seconds = key, timeout
        self._http = httpx2.Client(
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(timeout, connect=10),
            verify=trust(self.url),
        )
        self._finalizer = weakref.finalize(self, self._http.close)

    @property
    def name(self) -> str:
        return self._model

    def __repr__(self) -> str:
        return f"OpenAICompatible({self._model!r}, {self.url!r})"

    def close(self) -> None:
        """Close the connections."""
        self._finalizer()

    def chat(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), options: ChatOptions = GREEDY) -> Reply:
        """One answer. Raises UnknownModel, RuntimeUnavailable where no server answers, or ModelError: with the server's
        own words, or for an answer that is garbage, broken off, or not finished within the time limit."""
        body = openai_wire.request(messages, tools, options) | {"model": self._model}
        started = time.monotonic()
        answer = self._post(body, started)
        return self._reply(answer, tools, started)

    def stream(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), options: ChatOptions = GREEDY
    ) -> Reply:
        """The same answer as `chat`, streamed, so that `timing.first_token_ms` is known: when the first piece of text,
        thinking or a call came. A server that reads calls itself may hold that back until the call's name is whole.
        Raises what `chat` raises."""
        body = openai_wire.request(messages, tools, options) | {"model": self._model}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        started, first, pieces = time.monotonic(), 0.0, openai_wire.Streamed()
        for chunk in self._events(body, started):
            try:
                pieces.add(chunk)
            except http_answer.MISSHAPEN as e:
                raise self._no_chat(str(chunk)) from e
            if pieces.began and not first:
                first = (time.monotonic() - started) * 1000
        made = self._reply(pieces.body(), tools, started)
        if not first:
            return made
        generated = made.timing.total_ms - first if made.timing.generate_ms is None else made.timing.generate_ms
        timing = made.timing.model_copy(update={"first_token_ms": first, "generate_ms": generated})
        return made.model_copy(update={"timing": timing})

    @contextmanager
    def with_adapter(self, name: str, folder: Path) -> Iterator[OpenAICompatible]:
        """The same server's model `name`: its base with the PEFT adapter in `folder`, loaded for as long as the context
        is open. That is vLLM's way (`--enable-lora`, VLLM_ALLOW_RUNTIME_LORA_UPDATING=1); the server must see the
        folder. Raises what `chat` raises."""
        self._order("load_lora_adapter", {"lora_name": name, "lora_path": str(folder.resolve())})
        served = OpenAICompatible(name, self.url, self._key, self._seconds)
        try:
            yield served
        finally:
            served.close()
            self._order("unload_lora_adapter", {"lora_name": name})

    def _order(self, what: str, body: dict[str, Json]) -> None:
        started = time.monotonic()
        with self._reaching(), self._http.stream("POST", f"{self.url}/{what}", json=body) as answer:
            text = http_answer.text(answer, self.url, started, self._seconds)
        if answer.status_code == 404:
            raise ModelError(
                f"{self.url} loads no adapters while it runs (HTTP 404). vLLM does with --enable-lora and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment."
            )
        if not answer.is_success:
            self._refuse(answer.status_code, text)

    def _reply(self, answer: dict[str, Any], tools: Sequence[ToolSpec], started: float) -> Reply:
        try:
            return openai_wire.reply(answer, tools, (time.monotonic() - started) * 1000)
        except http_answer.MISSHAPEN as e:
            raise self._no_chat(str(answer)) from e

    def _events(self, body: dict[str, Json], started: float) -> Iterator[dict[str, Any]]:
        url, found = f"{self.url}/chat/completions", False
        with self._reaching(), self._http.stream("POST", url, json=body) as answer:
            if not answer.is_success:
                self._refuse(answer.status_code, http_answer.text(answer, self.url, started, self._seconds))
            for line in http_answer.lines(answer, self.url, started, self._seconds):
                if not line.startswith("data:") or line == "data: [DONE]":
                    continue
                try:
                    chunk = http_answer.document(line.removeprefix("data:"))
                except ValueError as e:
                    raise ModelError(f"{self.url} streams no JSON: {self._hide(line[:200])!r}.") from e
                if error := chunk.get("error"):
                    raise ModelError(f"{self.url} broke off: {self._hide(str(error))[:500]}")
                found = True
                yield chunk
        if not found:
            raise ModelError(f"{self.url} does not stream its answers, so the first token cannot be timed.")

    def _reaching(self) -> AbstractContextManager[None]:
        absent = f"No server answers at {self.url} ({{error}}). Check the URL."
        return http_answer.reaching(self.url, absent, self._seconds)

    def _refuse(self, status: int, body: str) -> NoReturn:
        if status in (401, 403):
            raise ModelError(f"{self.url} refuses the key (HTTP {status}). Set OPENAI_API_KEY to one that it accepts.")
        kind = UnknownModel if status == 404 else ModelError
        raise kind(f"{self.url} refused {self._model} (HTTP {status}): {self._hide(_complaint(body))}")

    def _post(self, body: dict[str, Json], started: float) -> dict[str, Any]:
        with self._reaching(), self._http.stream("POST", f"{self.url}/chat/completions", json=body) as answer:
            text = http_answer.text(answer, self.url, started, self._seconds)
        if not answer.is_success:
            self._refuse(answer.status_code, text)
        try:
            return http_answer.document(text)
        except ValueError as e:
            raise self._no_chat(text) from e

    def _no_chat(self, text: str) -> ModelError:
        return ModelError(
            f"{self.url} does not speak OpenAI's chat API: {self._hide(text[:200])!r}. "
            "The URL ends in the version, as in http://127.0.0.1:8000/v1."
        )

    def _hide(self, text: str) -> str:
        # Some servers repeat the key they refuse.
        return text.replace(self._key, "***") if self._key else text


def _complaint(body: str) -> str:
    try:
        error = http_answer.document(body)["error"]
    except (ValueError, LookupError):
        return body.strip()[:500] or "no reason given"
    return str(error.get("message", error) if isinstance(error, dict) else error)[:500]
