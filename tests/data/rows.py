"""What the tests of the data room share: the files of each format, examples, whole imports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm_tuner.data.examples import Example, Item, piped
from llm_tuner.data.importers import read_row, recognise
from llm_tuner.data.importers.shapes import example
from llm_tuner.data.intake import Intake, take_in
from llm_tuner.data.reading import rows
from llm_tuner.data.rejections import Rejection
from llm_tuner.data.validity import check_form
from llm_tuner.types import Message, ToolCall, ToolSpec

FORMATS = Path(__file__).parent / "formats"

MAIL = ToolSpec(
    name="send_mail",
    description="Send a mail",
    server="mail",
    parameters={
        "type": "object",
        "properties": {"to": {"type": "string"}, "text": {"type": "string"}, "copies": {"type": "integer"}},
        "required": ["to"],
    },
)
FETCH = ToolSpec(
    name="fetch",
    description="Fetch a page",
    server="web",
    parameters={"type": "object", "properties": {"url": {"type": "string"}}, "required": ["url"]},
)


def imported(name: str) -> list[Item]:
    """Everything that a file of a format becomes, after the check of form."""
    found = list(rows(FORMATS / name))
    importer = recognise([row.value for row in found if not isinstance(row.value, Rejection)], name)
    items = (
        item
        for row in found
        for item in (
            [row.value] if isinstance(row.value, Rejection) else read_row(importer, row.value, row.place, "mine")
        )
    )
    return list(piped(items, check_form()))


def examples(items: list[Item]) -> list[Example]:
    return [item for item in items if isinstance(item, Example)]


def rejections(items: list[Item]) -> list[Rejection]:
    return [item for item in items if isinstance(item, Rejection)]


def made(
    *messages: Message, answer: Message, tools: tuple[ToolSpec, ...] = (MAIL, FETCH), source: str = "test"
) -> Example:
    return example(tuple(messages), tools, answer, source=source, licence="own")


def asked(text: str, *calls: ToolCall, reply: str = "", tools: tuple[ToolSpec, ...] = (MAIL, FETCH)) -> Example:
    """A request, and the calls (or the words) that answer it."""
    answer = Message(role="assistant", text=reply, tool_calls=calls)
    return made(Message(role="user", text=text), answer=answer, tools=tools)


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(name=name, arguments=arguments)


def take(files: list[Path], out: Path, **config: Any) -> dict[str, Any]:
    """A whole import."""
    references = config.pop("references", None)
    steps = take_in(files, out, Intake(**{"salt": "test", **config}), references)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return dict(end.value)


def write_lines(path: Path, values: list[Any]) -> Path:
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return path


def xlam_row(number: int, query: str = "", **more: Any) -> dict[str, Any]:
    """A row in xLAM's form, unlike any other number's."""
    word = "".join("bcdfghklmnprstvwz"[int(digit)] + "aeiou"[int(digit) % 5] for digit in f"{number * 7919 + 13:08d}")
    query = query or f"look {word} up, number {number}, in the {word[::-1]} shelf of {word[4:]}{word[:4]}"
    tools = [{"name": f"look_{number % 7}", "description": "Look up", "parameters": {"what": {"type": "str"}}}]
    answers = [{"name": f"look_{number % 7}", "arguments": {"what": word}}]
    return {"id": number, "query": query, "answers": json.dumps(answers), "tools": json.dumps(tools), **more}
