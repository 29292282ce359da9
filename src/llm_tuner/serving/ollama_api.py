"""The server's side of Ollama's own API: /api/chat and /api/generate bodies to requests, pieces to lines. Pure.

Source: github.com/ollama/ollama, docs/api.md. The rule it protects: a client that speaks it finds every field where
Ollama would have put it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from llm_tuner.models.dialects.shapes import arguments_of, printable
from llm_tuner.serving.openai_api import content, tool_choice, tools
from llm_tuner.serving.request import BadRequest, Calls, ChatRequest, End, Piece, Text, checked
from llm_tuner.types import Json, Message, ToolCall, ToolResult

OPTIONS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "seed",
    "stop": "stop",
    "num_predict": "max_tokens",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "repeat_penalty": "repeat_penalty",
}
"""Ollama's options in OpenAI's words; the others are of the runtime (num_gpu, num_thread) and not a client's to set."""


def chat_request(body: Json) -> ChatRequest:
    """A body of /api/chat. `tool_choice` and `parallel_tool_calls`, which Ollama does not have, are understood too."""
    body = _object(printable(body))
    given = body.get("messages")
    if not isinstance(given, list):
        raise BadRequest("`messages` must be a list.")
    choice, named = tool_choice(body.get("tool_choice"))
    parallel = body.get("parallel_tool_calls")
    return checked(
        ChatRequest(
            model=str(body.get("model") or ""),
            messages=_history(given),
            tools=tools(body.get("tools")),
            choice=choice,
            named=named,
            parallel=True if parallel is None else bool(parallel),
            sampling=_sampling(body),
            context=_window(body),
        )
    )


def generate_request(body: Json) -> ChatRequest:
    """A body of /api/generate: one prompt, answered through the model's template."""
    body = _object(printable(body))
    if body.get("images"):
        raise BadRequest("`images`: the models behind this gateway read text only.")
    if body.get("raw") or body.get("template") or body.get("suffix") or body.get("context"):
        raise BadRequest(
            "`raw`, `template`, `suffix` and `context` are not supported here. Send `prompt` and `system`."
        )
    system = str(body.get("system") or "")
    said = [Message(role="system", text=system)] if system else []
    return ChatRequest(
        model=str(body.get("model") or ""),
        messages=(*said, Message(role="user", text=str(body.get("prompt") or ""))),
        sampling=_sampling(body),
        context=_window(body),
    )


def _sampling(body: dict[str, Any]) -> dict[str, Json]:
    options = body.get("options") or {}
    if not isinstance(options, dict):
        raise BadRequest("`options` must be an object.")
    out = {OPTIONS[key]: value for key, value in options.items() if key in OPTIONS and value is not None}
    if out.get("max_tokens", 0) in (-1, -2):
        del out["max_tokens"]
    shape = body.get("format")
    if shape == "json":
        out["response_format"] = {"type": "json_object"}
    elif isinstance(shape, dict) and shape:
        out["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": shape}}
    elif shape not in (None, "", {}):
        raise BadRequest(f'`format` must be "json" or a JSON Schema, found {shape!r}.')
    return out


def _window(body: dict[str, Any]) -> int:
    asked = (body.get("options") or {}).get("num_ctx") or 0
    if not isinstance(asked, int) or asked < 0:
        raise BadRequest("`options.num_ctx` must be a whole number of tokens.")
    return asked


def _history(given: list[Json]) -> tuple[Message, ...]:
    """Ollama's results have no id, or only the tool's name: they belong to the calls before, in their order."""
    out: list[Message] = []
    open_calls: list[ToolCall] = []
    for place, one in enumerate(given):
        body = _object(one, f"messages[{place}]")
        role, text = body.get("role"), content(body.get("content"), f"messages[{place}].content")
        if body.get("images"):
            raise BadRequest(f"messages[{place}].images: the models behind this gateway read text only.")
        if role == "tool":
            name, identity = body.get("tool_name") or body.get("name"), body.get("tool_call_id") or ""
            call = next((c for c in open_calls if identity and c.id == identity), None)
            call = call or next((c for c in open_calls if c.name == name or not name), None)
            if call is not None:
                open_calls.remove(call)
            call_id = identity or (call.id if call else "")
            out.append(Message(role="tool", result=ToolResult(call_id=call_id, content=text)))
            continue
        if role not in ("system", "user", "assistant"):
            raise BadRequest(f"messages[{place}].role is {role!r}; it must be system, user, assistant or tool.")
        calls = tuple(_call(call, f"call_{place}_{number}") for number, call in enumerate(body.get("tool_calls") or ()))
        open_calls += calls
        out.append(Message(role=role, text=text, thinking=str(body.get("thinking") or ""), tool_calls=calls))
    return tuple(out)


def _call(given: Json, identity: str) -> ToolCall:
    body = _object(given, "tool_calls")
    function = _object(body.get("function"), "tool_calls.function")
    arguments, error = arguments_of(function.get("arguments"))
    return ToolCall(
        name=str(function.get("name") or ""), arguments=arguments, id=str(body.get("id") or identity), error=error
    )


# ------------------------------------------------------------------------------------------------------------ answers


class Lines:
    """Pieces as the lines of a stream. `generate`: of /api/generate, whose text stands in `response`."""

    def __init__(self, model: str, *, generate: bool = False) -> None:
        self._model, self._generate = model, generate

    def of(self, piece: Piece) -> Iterator[Json]:
        """The lines of one piece."""
        if isinstance(piece, Text):
            yield self._line({"thinking" if piece.thinking else "content": piece.text})
        elif isinstance(piece, Calls):
            yield self._line({"tool_calls": [called(call) for call in piece.calls]})
        else:
            yield {**self._line({}), **ending(piece)}

    def _line(self, said: dict[str, Json]) -> dict[str, Any]:
        head = {"model": self._model, "created_at": now()}
        if self._generate:
            return head | {"response": said.get("content", ""), "done": False} | _thinking(said)
        return head | {"message": {"role": "assistant", "content": "", **said}, "done": False}


def answer(
    model: str, text: str, thinking: str, calls: tuple[ToolCall, ...], end: End, *, generate: bool = False
) -> dict[str, Any]:
    """A whole answer."""
    head: dict[str, Any] = {"model": model, "created_at": now()}
    extra: dict[str, Json] = {"thinking": thinking} if thinking else {}
    if generate:
        return head | {"response": text} | extra | ending(end)
    if calls:
        extra["tool_calls"] = [called(call) for call in calls]
    return head | {"message": {"role": "assistant", "content": text, **extra}} | ending(end)


def called(call: ToolCall) -> Json:
    return {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}}


def ending(end: End) -> dict[str, Any]:
    """The fields of the last line. Durations are nanoseconds."""
    prompt, generated = round((end.prompt_ms or 0) * 1e6), round((end.generate_ms or 0) * 1e6)
    return {
        "done": True,
        "done_reason": "length" if end.finish == "length" else "stop",
        "total_duration": prompt + generated,
        "load_duration": 0,
        "prompt_eval_count": end.usage.prompt_tokens,
        "prompt_eval_duration": prompt,
        "eval_count": end.usage.completion_tokens,
        "eval_duration": generated,
    }


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _thinking(said: dict[str, Json]) -> dict[str, Json]:
    return {"thinking": said["thinking"]} if "thinking" in said else {}


def _object(value: Json, what: str = "The body") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequest(f"{what} must be a JSON object, found {type(value).__name__}.")
    return value
