"""A suite: a named, frozen set of tasks, and its file.

Not a data set to train on and not a runner. The file is JSONL for people: a header, then every tool once, every
catalogue (an ordered list of tools) once, then one task a line. The rule it protects: what was measured can be read
back, byte for byte the same tasks, under the same hash.

    {"suite": "hub", "format": 1, "tasks": 2, "hash": "…"}
    {"tool": "<key>", "spec": {…}}
    {"catalogue": "<key>", "tools": ["<tool key>", …]}
    {"messages": […], "tools": "<catalogue key>", "expect": {…}, …}

A task line written by hand may hold its tools in place (`"tools": [{…}]`), and the header may be left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llm_tuner.types import DataError, EmptyData, Json, Task, ToolSpec, Value, content_hash

FORMAT = 1


class Suite(Value):
    """Tasks that are measured together."""

    name: str
    tasks: tuple[Task, ...]

    @cached_property
    def hash(self) -> str:
        """The same for the same tasks, in whatever order and under whatever name."""
        return content_hash(sorted(task.id for task in self.tasks))


def catalogue_key(tools: Iterable[ToolSpec]) -> str:
    """Equal for equal catalogues: the same tools of the same servers in the same order."""
    return content_hash([_tool_key(tool) for tool in tools])


def save(suite: Suite, path: Path) -> None:
    """Write the suite as JSONL. The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        for line in _lines(suite):
            # Keys are not sorted: a schema's properties stand in the prompt in their own order.
            file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
    part.replace(path)


def load(path: Path) -> Suite:
    """Read a suite. Raises DataError with the line's number where a line cannot be read, EmptyData without a task."""
    if not path.is_file():
        raise DataError(f"No suite at {path}. Build one, or give the path of a .jsonl file.")
    reading = _Reading(path)
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            if text.strip():
                reading.take(number, text)
    return reading.suite()


def _tool_key(tool: ToolSpec) -> str:
    # The order of a schema's keys counts here, unlike in the fingerprint: it is in the prompt.
    return content_hash(tool.model_dump_json())


def _lines(suite: Suite) -> Iterator[dict[str, Json]]:
    yield {"suite": suite.name, "format": FORMAT, "tasks": len(suite.tasks), "hash": suite.hash}
    tools = {_tool_key(tool): tool for task in suite.tasks for tool in task.tools}
    for key, tool in tools.items():
        yield {"tool": key, "spec": tool.model_dump(mode="json")}
    catalogues = {catalogue_key(task.tools): task.tools for task in suite.tasks}
    for key, catalogue in catalogues.items():
        yield {"catalogue": key, "tools": [_tool_key(tool) for tool in catalogue]}
    for task in suite.tasks:
        # `kind` is the discriminator of `expect`: a dump without defaults would lose it.
        words = task.model_dump(mode="json", exclude_defaults=True, exclude={"tools", "expect"})
        expect = task.expect.model_dump(mode="json", exclude_defaults=True) | {"kind": task.expect.kind}
        yield {**words, "expect": expect, "tools": catalogue_key(task.tools)}


class _Reading:
    """The lines of one file, read in order."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.stem
        self.header: dict[str, Json] = {}
        self.tools: dict[str, ToolSpec] = {}
        self.catalogues: dict[str, tuple[ToolSpec, ...]] = {}
        self.tasks: list[Task] = []

    def take(self, number: int, text: str) -> None:
        try:
            self._take(json.loads(text))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.path}, line {number}: {_said(error)}. Fix or remove this line.") from error

    def _take(self, line: Any) -> None:
        if not isinstance(line, dict):
            raise ValueError(f"expected a JSON object, found {type(line).__name__}")
        if "messages" in line:
            self.tasks.append(Task.model_validate({**line, "tools": self._catalogue(line.get("tools", []))}))
        elif "suite" in line:
            if line.get("format", FORMAT) != FORMAT:
                raise ValueError(f"format {line['format']} is not the format {FORMAT} that this version reads")
            self.name, self.header = str(line["suite"]), line
        elif "catalogue" in line:
            self.catalogues[line["catalogue"]] = tuple(self.tools[key] for key in line["tools"])
        elif "tool" in line:
            self.tools[line["tool"]] = ToolSpec.model_validate(line["spec"])
        else:
            raise ValueError(f"neither a task nor a tool nor a catalogue (keys: {', '.join(sorted(line)) or 'none'})")

    def _catalogue(self, tools: Json) -> tuple[ToolSpec, ...]:
        if isinstance(tools, str):
            return self.catalogues[tools]
        return tuple(ToolSpec.model_validate(tool) for tool in tools)

    def suite(self) -> Suite:
        if not self.tasks:
            raise EmptyData(f"{self.path} holds no task. A task line has messages, tools and expect.")
        suite = Suite(name=self.name, tasks=tuple(self.tasks))
        wanted = self.header.get("tasks", len(self.tasks))
        if wanted != len(self.tasks):
            raise DataError(f"{self.path} should hold {wanted} tasks, found {len(self.tasks)}: cut short, or edited.")
        if self.header.get("hash", suite.hash) != suite.hash:
            raise DataError(f"{self.path} was edited after it was saved: remove the header's hash to take it as it is.")
        return suite


def _said(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg} at column {error.colno})"
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    if isinstance(error, KeyError):
        return f"{error} is missing, or used before its own line"
    return str(error)
