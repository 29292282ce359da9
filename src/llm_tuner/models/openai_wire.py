"""The chat format of OpenAI's API, both ways: what llama.cpp's server and most hosted models speak.

Pure mapping between it and our words: no connection, no keys. Tool schemas go out as they came in.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llm_tuner.models import dialects
from llm_tuner.models.dialects.shapes import arguments_of, printable
from llm_tuner.types import (
    ChatOptions,
    Json,
    Message,
    Reply,
    Timing,
    ToolCall,
    ToolSpec,
    Usage,
    Written,
)

# No cuts of the distribution; the written tokens, as llama.cpp (`verbose` and `return_tokens`) and vLLM
# (`return_token_ids`) are asked for them. Each passes over the other's words.
_ON_POLICY: dict[str, Json] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
_ON_POLICY |= {"verbose": True, "return_tokens": True, "return_token_ids": True}


def request(messages: Sequence[Message], tools: Sequence[ToolSpec], options: ChatOptions) -> dict[str, Json]:
    """The body of a chat request, without the model's name."""
    body: dict[str, Json] = {
        "messages": [outgoing(message) for message in messages],
        "temperature": options.temperature,
        "max_tokens": options.max_tokens,
        "seed": options.seed,
        "stream": False,
    }
    if options.on_policy:
        body |= _ON_POLICY
    if tools:
        body["tools"] = [tool.openai() for tool in tools]
        body["parallel_tool_calls"] = options.parallel
    return body


def outgoing(message: Message) -> dict[str, Json]:
    """One message of the history. Calls found in text stay text: that is what the model wrote."""
    if message.role == "tool":
        result = message.result
        return {
            "role": "tool",
            "tool_call_id": result.call_id if result else "",
            "content": result.content if result else message.text,
        }
    body: dict[str, Json] = {"role": message.role, "content": message.text}
    if message.thinking:
        body["reasoning_content"] = message.thinking
    if message.tool_calls:
        body["tool_calls"] = [_outgoing_call(call) for call in message.tool_calls]
    return body


def _outgoing_call(call: ToolCall) -> dict[str, Json]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": arguments}}


def incoming_call(body: dict[str, Json]) -> ToolCall:
    """A call as the server surfaced it. Arguments that are no JSON object make it a broken call."""
    function = body.get("function") or {}
    name, given = function.get("name") or "", function.get("arguments")
    arguments, error = arguments_of(given)
    raw = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    return ToolCall(
        name=name,
        arguments=arguments,
        id=body.get("id") or "",
        raw=raw,
        error=error or ("" if name else "the call has no name"),
    )


def _cut_off(message: Message) -> Message:
    # A call that the token limit cut right after its name comes with blank arguments, as if it wanted none.
    if not message.tool_calls or message.tool_calls[-1].raw.strip():
        return message
    last = message.tool_calls[-1].model_copy(update={"error": "the token limit cut the call off"})
    return message.model_copy(update={"tool_calls": (*message.tool_calls[:-1], last)})


class Streamed:
    """The pieces of a streamed answer, put together into the body that the server would have sent at once.

    `began`: a piece of the answer itself (text, thinking or a call) has come, not only the role.
    """

    def __init__(self) -> None:
        self.began = False
        self._texts: dict[str, list[str]] = {"content": [], "reasoning_content": []}
        self._calls: dict[int, dict[str, Any]] = {}
        self._rest: dict[str, Json] = {}
        self._finish = ""

    def add(self, chunk: dict[str, Any]) -> None:
        """One `data:` object of the stream."""
        self._rest |= {key: chunk[key] for key in ("usage", "timings") if chunk.get(key)}
        for choice in (chunk.get("choices") or ())[:1]:
            delta = choice.get("delta") or {}
            self._finish = choice.get("finish_reason") or self._finish
            for key, pieces in self._texts.items():
                if delta.get(key):
                    pieces.append(delta[key])
                    self.began = True
            for piece in delta.get("tool_calls") or ():
                self._add_call(piece)
                self.began = True

    def _add_call(self, piece: dict[str, Any]) -> None:
        call = self._calls.setdefault(piece.get("index") or 0, {"id": "", "function": {"name": "", "arguments": ""}})
        call["id"] = piece.get("id") or call["id"]
        function = piece.get("function") or {}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""

    def body(self) -> dict[str, Any]:
        """As an answer that was not streamed."""
        message = {key: "".join(pieces) for key, pieces in self._texts.items()}
        calls = [self._calls[index] for index in sorted(self._calls)]
        return {"choices": [{"message": {**message, "tool_calls": calls}, "finish_reason": self._finish}], **self._rest}


def reply(body: dict[str, Json], tools: Sequence[ToolSpec], total_ms: float) -> Reply:
    """The server's answer in our words. `timings` is llama.cpp's own addition; other servers report none."""
    choice = printable(body)["choices"][0]
    finish = choice.get("finish_reason") or ""
    answer, usage, timings = choice["message"], body.get("usage") or {}, body.get("timings") or {}
    message = Message(
        role="assistant",
        text=answer.get("content") or "",
        thinking=answer.get("reasoning_content") or "",
        tool_calls=tuple(incoming_call(call) for call in answer.get("tool_calls") or ()),
    )
    if finish == "length":
        message = _cut_off(message)
    return Reply(
        message=dialects.read(message, tools),
        usage=Usage(
            prompt_tokens=usage.get("prompt_tokens") or 0,
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
            completion_tokens=usage.get("completion_tokens") or 0,
        ),
        timing=Timing(total_ms=total_ms, prompt_ms=timings.get("prompt_ms"), generate_ms=timings.get("predicted_ms")),
        finish=finish,
        written=_written(body, choice, answer),
    )


def _written(body: dict[str, Json], choice: dict[str, Json], answer: dict[str, Json]) -> Written | None:
    said = body.get("__verbose")
    if isinstance(said, dict) and said.get("tokens"):
        return Written(text=printable(said).get("content") or "", ids=tuple(said["tokens"]))
    if choice.get("token_ids"):
        return Written(text=answer.get("content") or "", ids=tuple(choice["token_ids"]))
    return None
