"""The server's side of OpenAI's chat API: bodies to requests, pieces to chunks. Pure.

Source: platform.openai.com/docs/api-reference/chat. The rule it protects: what the API says and we cannot do is refused
by name, never passed over.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from llm_tuner.models.dialects.shapes import printable
from llm_tuner.models.openai_wire import incoming_call
from llm_tuner.serving.request import BadRequest, Calls, ChatRequest, Choice, End, Piece, Text, checked
from llm_tuner.types import Json, Message, ToolCall, ToolResult, ToolSpec, Usage

SAMPLING = frozenset(
    (
        "temperature", "top_p", "top_k", "min_p", "seed", "stop", "max_tokens", "max_completion_tokens",
        "frequency_penalty", "presence_penalty", "repeat_penalty", "response_format", "logit_bias",
    )
)  # fmt: skip
"""What is passed on as it is."""

PASSED_OVER = frozenset(
    (
        "user", "store", "metadata", "service_tier", "stream", "stream_options", "reasoning_effort", "verbosity",
        "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "prediction",
    )
)  # fmt: skip
"""What changes nothing for a local model."""


def request(body: Json) -> ChatRequest:
    """A body of /v1/chat/completions. Raises BadRequest."""
    body = _object(printable(body), "The body")
    if body.get("n") not in (None, 1):
        raise BadRequest("`n` must be 1: one answer a request.")
    if body.get("logprobs") or body.get("top_logprobs"):
        raise BadRequest("`logprobs` is not supported here.")
    if body.get("functions") or body.get("function_call"):
        raise BadRequest("`functions` is long deprecated. Use `tools`.")
    choice, named = tool_choice(body.get("tool_choice"))
    given: dict[str, Json] = {key: value for key, value in body.items() if key in SAMPLING and value is not None}
    parallel = body.get("parallel_tool_calls")
    return checked(
        ChatRequest(
            model=_text(body.get("model"), "model"),
            messages=tuple(message(one, place) for place, one in enumerate(_list(body.get("messages"), "messages"))),
            tools=tools(body.get("tools")),
            choice=choice,
            named=named,
            parallel=True if parallel is None else bool(parallel),
            sampling=given,
        )
    )


def tools(given: Json) -> tuple[ToolSpec, ...]:
    """OpenAI's `tools`, which is Ollama's too. Schemas stay as they came."""
    out = []
    for place, one in enumerate(_list(given or [], "tools")):
        function = _object(_object(one, f"tools[{place}]").get("function"), f"tools[{place}].function")
        parameters = function.get("parameters")
        if parameters is None:
            parameters = {"type": "object", "properties": {}}
        try:
            spec = ToolSpec(
                name=function.get("name") or "", description=function.get("description") or "", parameters=parameters
            )
        except ValidationError as error:
            raise BadRequest(f"tools[{place}].function: {_problem(error)}.") from error
        out.append(spec)
    return tuple(out)


def tool_choice(given: Json) -> tuple[Choice, str]:
    """OpenAI's `tool_choice`: a word, or one function by name."""
    if given is None or given == "auto":
        return "auto", ""
    if given == "none":
        return "none", ""
    if given in ("required", "any"):
        return "required", ""
    name = (given.get("function") or given).get("name") if isinstance(given, dict) else None
    if not isinstance(name, str) or not name:
        raise BadRequest(f"`tool_choice` {json.dumps(given)[:100]} is none of auto, none, required or a function.")
    return "required", name


def message(given: Json, place: int) -> Message:
    """One message of the history."""
    body = _object(given, f"messages[{place}]")
    role = {"developer": "system", "function": "tool"}.get(str(body.get("role")), body.get("role"))
    text = content(body.get("content"), f"messages[{place}].content")
    if role == "tool":
        result = ToolResult(call_id=str(body.get("tool_call_id") or ""), content=text)
        return Message(role="tool", result=result)
    if role not in ("system", "user", "assistant"):
        raise BadRequest(f"messages[{place}].role is {role!r}; it must be system, user, assistant or tool.")
    calls = [_object(call, f"messages[{place}].tool_calls") for call in body.get("tool_calls") or ()]
    thinking = body.get("reasoning_content") or body.get("thinking") or ""
    try:
        return Message(role=role, text=text, thinking=thinking, tool_calls=tuple(incoming_call(call) for call in calls))
    except ValidationError as error:
        raise BadRequest(f"messages[{place}]: {_problem(error)}.") from error


def content(given: Json, where: str) -> str:
    """A message's content: text, or a list of text parts."""
    if given is None:
        return ""
    if isinstance(given, str):
        return given
    parts = []
    for part in _list(given, where):
        kind = part.get("type") if isinstance(part, dict) else ""
        if kind not in ("text", "input_text", "refusal"):
            raise BadRequest(f"{where} holds a part of type {kind!r}. The models behind this gateway read text only.")
        parts.append(str(part.get("text") or part.get("refusal") or ""))
    return "\n".join(parts)


# ------------------------------------------------------------------------------------------------------------ answers


def answer(identity: str, model: str, text: str, thinking: str, calls: tuple[ToolCall, ...], end: End) -> Json:
    """A whole answer."""
    said: dict[str, Json] = {"role": "assistant", "content": text or (None if calls else "")}
    if thinking:
        said["reasoning_content"] = thinking
    if calls:
        said["tool_calls"] = [_call(call) for call in calls]
    choice = {"index": 0, "message": said, "finish_reason": end.finish, "logprobs": None}
    return {**_head(identity, model, "chat.completion"), "choices": [choice], "usage": usage(end.usage)}


class Chunks:
    """Pieces as chunks of a stream. `with_usage`: the client asked for a last chunk with the tokens."""

    def __init__(self, identity: str, model: str, with_usage: bool) -> None:
        self._head = _head(identity, model, "chat.completion.chunk")
        self._with_usage = with_usage
        self._begun = False
        self._calls = 0

    def of(self, piece: Piece) -> Iterator[Json]:
        """The chunks of one piece."""
        if not self._begun:
            self._begun = True
            yield self._chunk({"role": "assistant", "content": ""})
        if isinstance(piece, Text):
            yield self._chunk({"reasoning_content" if piece.thinking else "content": piece.text})
        elif isinstance(piece, Calls):
            for call in piece.calls:
                yield self._chunk({"tool_calls": [{"index": self._calls, **_call(call)}]})
                self._calls += 1
        else:
            yield self._chunk({}, piece.finish)
            if self._with_usage:
                yield {**self._head, "choices": [], "usage": usage(piece.usage)}

    def _chunk(self, delta: Mapping[str, Json], finish: str | None = None) -> Json:
        return {**self._head, "choices": [{"index": 0, "delta": dict(delta), "finish_reason": finish}]}


def usage(tokens: Usage) -> Json:
    return {
        "prompt_tokens": tokens.prompt_tokens,
        "completion_tokens": tokens.completion_tokens,
        "total_tokens": tokens.prompt_tokens + tokens.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": tokens.cached_tokens},
    }


def failure(words: str, kind: str = "invalid_request_error", code: str | None = None) -> Json:
    """The body of an error, as OpenAI's clients read it."""
    return {"error": {"message": words, "type": kind, "param": None, "code": code}}


def models(names: list[str], owner: str = "llm-tuner") -> Json:
    return {"object": "list", "data": [{"id": n, "object": "model", "created": 0, "owned_by": owner} for n in names]}


def _head(identity: str, model: str, kind: str) -> dict[str, Any]:
    return {"id": identity, "object": kind, "created": int(time.time()), "model": model}


def _call(call: ToolCall) -> dict[str, Json]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _object(value: Json, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequest(f"{what} must be a JSON object, found {type(value).__name__}.")
    return value


def _list(value: Json, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadRequest(f"`{what}` must be a list, found {type(value).__name__}.")
    return value


def _text(value: Json, what: str) -> str:
    if value is not None and not isinstance(value, str):
        raise BadRequest(f"`{what}` must be a text, found {type(value).__name__}.")
    return value or ""


def _problem(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
