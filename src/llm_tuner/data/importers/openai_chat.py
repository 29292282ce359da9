"""OpenAI chat: logged request/response pairs, fine-tuning rows, and preference rows.

    {"request": {"messages": [...], "tools": [...]}, "response": {"choices": [{"message": {...}}]}}
    {"messages": [...], "tools": [...]}                  arguments are JSON texts; `weight: 0`: not to be learned
    {"input": {"messages": [...], "tools": [...]}, "preferred_output": [...], "non_preferred_output": [...]}

`functions` and `function_call` are the older words for tools and calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from llm_tuner.data.examples import Example
from llm_tuner.data.importers.shapes import Row, Unreadable, openai_message, tools_of, turns
from llm_tuner.types import Json

NAME = "openai"
SOURCE = "openai-log"


def recognises(row: Row) -> bool:
    if _has_messages(row.get("input")) and "preferred_output" in row:
        return True
    if _has_messages(row.get("request")):
        return isinstance(row.get("response"), Mapping) and "choices" in row["response"]
    return _has_messages(row) and ("tools" in row or "functions" in row) and not _has_object_arguments(row)


def examples(row: Row, source: str, licence: str) -> Iterator[Example]:
    if "preferred_output" in row:
        asked, answers = row["input"], row["preferred_output"]
    elif "request" in row:
        asked, answers = row["request"], [_answer(row["response"])]
    else:
        asked, answers = row, []
    bodies = [*asked["messages"], *answers]
    silent = _silent(bodies, learn_from=len(asked["messages"]) if answers else 0)
    yield from turns(
        map(openai_message, bodies), tools_of(_tools(asked)), source=source, licence=licence, silent=silent
    )


def _silent(bodies: list[Json], learn_from: int) -> set[int]:
    """Of a log only the answer is learned: the turns before it stand in earlier lines of the log."""
    marked = {place for place, body in enumerate(bodies) if isinstance(body, dict) and body.get("weight") == 0}
    return marked | set(range(learn_from))


def _answer(response: Json) -> Json:
    choices = response.get("choices") if isinstance(response, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict) or "message" not in choices[0]:
        raise Unreadable("no_answer", f"the response has no message: {str(response)[:120]}")
    if choices[0].get("finish_reason") == "length":
        raise Unreadable("cut_off", "the answer was cut off at the token limit")
    return choices[0]["message"]


def _tools(asked: Row) -> Json:
    return asked.get("tools") or asked.get("functions") or []


def _has_messages(body: Json) -> bool:
    return isinstance(body, Mapping) and isinstance(body.get("messages"), list)


def _has_object_arguments(row: Row) -> bool:
    for message in row["messages"]:
        for call in (message.get("tool_calls") or ()) if isinstance(message, dict) else ():
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict) and isinstance(function.get("arguments"), dict):
                return True
    return False
