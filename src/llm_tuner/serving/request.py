"""What a client asks, in our words, whichever API it spoke. Pure values, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from llm_tuner.types import DataError, Json, Message, ToolCall, ToolSpec, Usage, Value

Choice = Literal["auto", "none", "required"]


class BadRequest(DataError):
    """A request that no model will ever answer as it is. The message says what to change."""


class ChatRequest(Value):
    """One request for one answer.

    `choice` as in OpenAI's `tool_choice`; with `named` it is "required" and this tool alone may be called. `sampling`
    holds what decides the decoding, in OpenAI's words (temperature, top_p, max_tokens, seed, stop, response_format);
    what the client did not say is not there. `context` is the window that the client asked for (0: the gateway's own).
    """

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    choice: Choice = "auto"
    named: str = ""
    parallel: bool = True
    sampling: dict[str, Json] = Field(default_factory=dict)
    context: int = 0

    @property
    def offered(self) -> tuple[ToolSpec, ...]:
        """The tools that may be called."""
        if self.choice == "none":
            return ()
        return tuple(tool for tool in self.tools if tool.name == self.named) if self.named else self.tools


class Repair(Value):
    """One change of what the model wrote. `kind` is one of a few words, `detail` a sentence."""

    kind: Literal["lifted", "renamed", "coerced", "dropped", "retried", "fell_back", "left_wrong", "ended", "searched"]
    detail: str


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer's text, or of the model's thinking."""

    text: str
    thinking: bool = False


@dataclass(frozen=True, slots=True)
class Calls:
    """Whole calls, checked."""

    calls: tuple[ToolCall, ...]


@dataclass(frozen=True, slots=True)
class End:
    """The last piece. `finish`: "stop", "length" or "tool_calls". `times` are milliseconds, as the runtime says."""

    finish: str = "stop"
    usage: Usage = field(default_factory=Usage)
    prompt_ms: float | None = None
    generate_ms: float | None = None


Piece = Text | Calls | End


def checked(request: ChatRequest) -> ChatRequest:
    """The request, if it makes sense. Raises BadRequest."""
    if not request.messages:
        raise BadRequest("`messages` is empty. Give at least one message.")
    names = [tool.name for tool in request.tools]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise BadRequest(f"Two tools have the name `{twice}`. A call could not say which is meant: rename one.")
    if "" in names:
        raise BadRequest("A tool has no name.")
    if request.named and request.named not in names:
        known = ", ".join(names[:10]) or "none"
        raise BadRequest(f"`tool_choice` names `{request.named}`, which is not among the tools ({known}).")
    if request.choice == "required" and not request.tools:
        raise BadRequest("`tool_choice` requires a call, but no tools are given.")
    return request
