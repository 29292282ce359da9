"""What the importers share: messages, calls and tools in the shapes that several formats have, and turns -> examples.

No format of its own. The rule it protects: what cannot be read is said (`Unreadable`), never repaired into something
that the source does not hold; names and types are respelled only where no tool server could take them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import count
from typing import Any, NoReturn

from pydantic import ValidationError

from llm_tuner.data.examples import REFERENCE, Example
from llm_tuner.scoring import score
from llm_tuner.types import (
    Attempt,
    ExactCalls,
    Expectation,
    Json,
    Message,
    NoCall,
    Task,
    ToolCall,
    ToolResult,
    ToolSpec,
)

Row = Mapping[str, Any]

LONGEST_LITERAL = 1 << 20
"""Characters of a Python literal that is still parsed."""


class Unreadable(ValueError):
    """A row, or the rest of one, that cannot become examples. `reason` is a short closed word, the text a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


# ------------------------------------------------------------------------------------------------------------- values


def _not_json(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def parse_json(text: str) -> Json:
    """The value of a JSON text. Raises ValueError, for NaN and for nesting without end, too."""
    try:
        return json.loads(text, parse_constant=_not_json)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_value(text: str) -> Json:
    """A JSON text or a Python literal (several sets were printed by Python). Raises ValueError."""
    try:
        return parse_json(text)
    except ValueError:
        pass
    if len(text) > LONGEST_LITERAL:
        raise ValueError("too long for a literal")
    try:
        return as_json(ast.literal_eval(text.strip()))
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        raise ValueError(f"neither JSON nor a Python literal: {text[:80]!r}") from None


def as_json(value: Any) -> Json:
    """A Python literal as a JSON value. Raises ValueError for what JSON has not."""
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and value - value == 0):
        return value
    raise ValueError(f"{value!r} is no JSON value")


def text_of(content: Json) -> str:
    """The text of a message's content: a string, nothing, or a list of text parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return "\n".join(part["text"] for part in content)
    raise Unreadable("not_text", f"a message's content is no text: {str(content)[:80]}")


# -------------------------------------------------------------------------------------------------------------- calls


def call_of(body: Json) -> ToolCall:
    """A call as `{"name", "arguments"}`, with or without OpenAI's wrapping; arguments an object or a text of one."""
    if isinstance(body, dict) and isinstance(body.get("function"), dict):
        body = {**body["function"], "id": body.get("id")}
    if not isinstance(body, dict) or not isinstance(body.get("name"), str) or not body["name"].strip():
        raise Unreadable("broken_call", f"a call without a name: {str(body)[:120]}")
    arguments = body.get("arguments", body.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = parse_value(arguments) if arguments.strip() else {}
        except ValueError as error:
            raise Unreadable("broken_call", f"the arguments of {body['name']} cannot be read: {error}") from None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise Unreadable("broken_call", f"the arguments of {body['name']} are no object: {str(arguments)[:80]}")
    return ToolCall(name=spelled(body["name"]), arguments=arguments, id=str(body.get("id") or ""))


def calls_of(value: Json) -> tuple[ToolCall, ...]:
    """The calls of a list, or one call."""
    return tuple(call_of(body) for body in (value if isinstance(value, list) else [value]))


def tool_message(content: Json, call_id: str = "") -> Message:
    """What a tool answered. It failed where its answer is an object with a true `isError`, or with an `error` and
    nothing else."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return Message(role="tool", result=ToolResult(call_id=call_id, content=text, is_error=_is_error(text)))


def _is_error(text: str) -> bool:
    if "rror" not in text[:2000] or not text.lstrip().startswith("{"):
        return False
    try:
        value = parse_json(text)
    except ValueError:
        return False
    return bool(value.get("isError")) or (bool(value.get("error")) and len(value) == 1)


def openai_message(body: Json) -> Message:
    """A message as OpenAI, Ollama and TRL write it."""
    if not isinstance(body, dict):
        raise Unreadable("broken_message", f"a message is no object: {str(body)[:80]}")
    role = body.get("role")
    if role in ("tool", "function"):
        return tool_message(text_of(body.get("content")), str(body.get("tool_call_id") or ""))
    if role in ("system", "developer"):
        return Message(role="system", text=text_of(body.get("content")))
    if role == "user":
        return Message(role="user", text=text_of(body.get("content")))
    if role != "assistant":
        raise Unreadable("broken_message", f"a message of the role {role!r}")
    calls = list(body.get("tool_calls") or ())
    if body.get("function_call"):
        calls.append(body["function_call"])
    thinking = body.get("reasoning_content") or body.get("thinking") or ""
    return Message(
        role="assistant",
        text=text_of(body.get("content")),
        thinking=thinking if isinstance(thinking, str) else "",
        tool_calls=calls_of(calls),
    )


# -------------------------------------------------------------------------------------------------------------- tools

_TYPES = {
    "dict": "object", "float": "number", "double": "number", "int": "integer", "long": "integer", "str": "string",
    "bool": "boolean", "tuple": "array", "list": "array", "set": "array", "any": "", "none": "null",
}  # fmt: skip
_UNFIT = re.compile(r"[^A-Za-z0-9_-]")


def spelled(name: str) -> str:
    """A tool's name with underscores for what OpenAI-style servers refuse: spaces, dots, slashes."""
    return _UNFIT.sub("_", name.strip())


def schema_of(words: Json, depth: int = 0) -> Json:
    """A schema with JSON Schema's names for the types of Python; untouched where it has no others."""
    if not isinstance(words, dict) or depth > 32:
        return words
    out: dict[str, Json] = {}
    for key, value in words.items():
        if key == "type" and isinstance(value, str):
            kind = _TYPES.get(value.lower(), value)
            if kind:
                out[key] = kind
        elif key == "properties" and isinstance(value, dict):
            out[key] = {name: schema_of(part, depth + 1) for name, part in value.items()}
        elif key in ("items", "additionalProperties"):
            out[key] = schema_of(value, depth + 1)
        elif key in ("anyOf", "oneOf", "allOf") and isinstance(value, list):
            out[key] = [schema_of(part, depth + 1) for part in value]
        elif value is None and key in ("required", "properties", "items", "enum", "description"):
            continue
        else:
            out[key] = value
    return words if out == words else out


def tool_of(body: Json) -> ToolSpec:
    """A tool in OpenAI's wrapping or without, with `parameters` or MCP's `inputSchema`."""
    if isinstance(body, str):
        body = _parsed(body, "a tool")
    if isinstance(body, dict) and isinstance(body.get("function"), dict):
        body = {"server": body.get("server", ""), **body["function"]}
    if not isinstance(body, dict) or not isinstance(body.get("name"), str) or not body["name"].strip():
        raise Unreadable("broken_tool", f"a tool without a name: {str(body)[:120]}")
    return _tool(json.dumps(body, ensure_ascii=False))


@lru_cache(4096)
def _tool(text: str) -> ToolSpec:
    body = json.loads(text)
    parameters = body.get("parameters", body.get("inputSchema"))
    if not isinstance(parameters, dict) or not parameters:
        parameters = {"type": "object", "properties": {}}
    parameters = schema_of(parameters)
    if not {"type", "$ref", "anyOf", "oneOf", "allOf"} & parameters.keys():
        parameters = {"type": "object", **parameters}
    server = body.get("server")
    return ToolSpec(
        name=spelled(body["name"]),
        description=str(body.get("description") or ""),
        parameters=parameters,
        server=server if isinstance(server, str) else "",
    )


def tools_of(value: Json) -> tuple[ToolSpec, ...]:
    """A list of tools, or the JSON text of one. The same tool twice is one; another tool of the same name is an error.

    Raises Unreadable."""
    if isinstance(value, str):
        value = _parsed(value, "the tools")
    if not isinstance(value, list):
        raise Unreadable("broken_tool", f"the tools are no list: {str(value)[:80]}")
    out: dict[str, ToolSpec] = {}
    for tool in map(tool_of, value):
        if out.setdefault(tool.name, tool) != tool:
            raise Unreadable("same_name", f"two different tools are called {tool.name}")
    return tuple(out.values())


def _parsed(text: str, what: str) -> Json:
    try:
        return parse_value(text)
    except ValueError as error:
        raise Unreadable("broken_tool", f"{what} cannot be read: {error}") from None


# -------------------------------------------------------------------------------------------------------------- turns


def turns(
    messages: Iterable[Message],
    tools: Sequence[ToolSpec],
    *,
    source: str,
    licence: str,
    silent: Collection[int] = (),
) -> Iterator[Example]:
    """One example for every assistant turn, with the conversation before it. `silent`: places of assistant messages
    that are not to be learned.

    Raises Unreadable, after the turns before it, where the conversation cannot go on.
    """
    if not tools:
        raise Unreadable("no_tools", "no tool is offered: nothing here is about tools")
    said, placed = _joined(list(messages), silent)
    said = renumbered(said)
    if not any(message.role == "assistant" for message in said):
        raise Unreadable("no_answer", "the conversation has no answer of the assistant")
    for place, message in enumerate(said):
        if message.role != "assistant" or not placed[place]:
            continue
        before = tuple(m.model_copy(update={"thinking": ""}) for m in said[:place])
        if not any(m.role == "user" for m in before):
            continue  # a greeting
        following = said[place + 1 : place + 1 + len(message.tool_calls)]
        results = tuple(m.result for m in following if m.role == "tool" and m.result is not None)
        yield example(before, tuple(tools), message, results=results, source=source, licence=licence)


def example(
    before: tuple[Message, ...],
    tools: tuple[ToolSpec, ...],
    answer: Message,
    *,
    results: tuple[ToolResult, ...] = (),
    source: str,
    licence: str,
) -> Example:
    """The task that this answer is right for, and the answer as its judged attempt."""
    expect: Expectation
    if answer.tool_calls:
        expect = ExactCalls(calls=tuple(ToolCall(name=c.name, arguments=c.arguments) for c in answer.tool_calls))
    elif answer.text.strip():
        expect = NoCall(reply=answer.text)
    else:
        raise Unreadable("empty_answer", "the assistant neither calls nor says anything")
    try:
        task = Task(
            messages=before,
            tools=tools,
            expect=expect,
            category=kind_of(before, answer),
            source=source,
            licence=licence,
            language=language_of(" ".join(m.text for m in before if m.role == "user")),
        )
    except ValidationError as error:
        raise Unreadable("broken_message", str(error.errors()[0]["msg"])) from None
    attempt = Attempt(task_id=task.id, backend=REFERENCE, messages=(answer,), results=results)
    return Example(task, attempt.model_copy(update={"verdict": score(task, attempt)}))


def kind_of(before: Sequence[Message], answer: Message) -> str:
    """What kind of turn it is, by its form: `single` or `several` calls at the user's word, a `sequence` call after a
    tool's result, `answer` in words after a result, `no_call`: words at the user's word."""
    after_result = bool(before) and before[-1].role == "tool"
    if answer.tool_calls:
        return "sequence" if after_result else "several" if len(answer.tool_calls) > 1 else "single"
    return "answer" if after_result else "no_call"


_SCRIPTS = (
    ("ja", re.compile(r"[\u3041-\u309f\u30a1-\u30fa]")),
    ("ko", re.compile(r"[\uac00-\ud7af]")),
    ("zh", re.compile(r"[\u3400-\u9fff]")),
    ("ru", re.compile(r"[\u0400-\u04ff]")),
    ("ar", re.compile(r"[\u0600-\u06ff]")),
)


def language_of(text: str) -> str:
    """By script: kana is Japanese, Latin is taken for English."""
    return next((language for language, letters in _SCRIPTS if letters.search(text)), "en")


def _joined(messages: list[Message], silent: Collection[int]) -> tuple[list[Message], list[bool]]:
    """Assistant messages that follow each other are one turn; and which turns are to be learned."""
    out: list[Message] = []
    learned: list[bool] = []
    for place, message in enumerate(messages):
        if message.role == "assistant" and out and out[-1].role == "assistant":
            last = out[-1]
            text = "\n".join(part for part in (last.text, message.text) if part)
            calls = (*last.tool_calls, *message.tool_calls)
            out[-1] = last.model_copy(update={"text": text, "tool_calls": calls})
            learned[-1] = learned[-1] and place not in silent
        else:
            out.append(message)
            learned.append(place not in silent)
    return out, learned


def renumbered(messages: Sequence[Message]) -> list[Message]:
    """The conversation with calls numbered from call_1 on and every result tied to its call: by its id, else to the
    oldest call without a result. Ids of the source would make equal conversations different."""
    numbers = count(1)
    waiting: dict[str, str] = {}
    out = []
    for message in messages:
        if message.role == "assistant" and message.tool_calls:
            calls = []
            for call in message.tool_calls:
                new = f"call_{next(numbers)}"
                waiting[call.id or new] = new
                calls.append(call.model_copy(update={"id": new}))
            out.append(message.model_copy(update={"tool_calls": tuple(calls)}))
        elif message.role == "tool" and message.result is not None:
            given = message.result.call_id
            if not waiting or (given and given not in waiting):
                raise Unreadable("orphan_result", f"a result answers no call: {message.result.content[:80]!r}")
            new = waiting.pop(given or next(iter(waiting)))
            out.append(message.model_copy(update={"result": message.result.model_copy(update={"call_id": new})}))
        else:
            out.append(message)
    return out
