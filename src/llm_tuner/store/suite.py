"""A suite: a named, frozen set of tasks, and its file.

Not a data set to train on and not a runner. The file is JSONL for people: a header, then every tool once, every
catalogue (an ordered list of tools) once, then one task a line. The rule it protects: what was measured can be read
back, byte for byte the same tasks, under the same hash.

    {"suite": "hub", "format": 1, "tasks": 2, "hash": "…"}
    {"tool": "<key>", "spec": {…}}
    {"catalogue": "<key>", "tools": ["<tool key>", …]}
    {"messages": […], "tools": "<catalogue key>", "expect": {…}, …}

A file written by hand has no hash. It may use the shorthands of handwritten.py (docs/suite.md): the header may be left
out or hold the tools, a task line may hold its own, and what is wrong with a task is an error with its line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llm_tuner.store import handwritten, read_json
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
    return content_hash([tool_key(tool) for tool in tools])


def save(suite: Suite, path: Path) -> None:
    """Write the suite as JSONL. The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.writelines(line_text(line) for line in _lines(suite))
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


def line_text(line: dict[str, Json]) -> str:
    """One line of the file. Keys are not sorted: a schema's properties stand in the prompt in their own order."""
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n"


def task_line(task: Task, catalogue: str) -> dict[str, Json]:
    """The line of a task whose tools are those of this catalogue."""
    # `kind` is the discriminator of `expect`: a dump without defaults would lose it.
    words = task.model_dump(mode="json", exclude_defaults=True, exclude={"tools", "expect"})
    expect = task.expect.model_dump(mode="json", exclude_defaults=True) | {"kind": task.expect.kind}
    return {**words, "expect": expect, "tools": catalogue}


def tool_key(tool: ToolSpec) -> str:
    """Equal for equal tools of the same server."""
    # The order of a schema's keys counts here, unlike in the fingerprint: it is in the prompt.
    return content_hash(tool.model_dump_json())


def _lines(suite: Suite) -> Iterator[dict[str, Json]]:
    yield {"suite": suite.name, "format": FORMAT, "tasks": len(suite.tasks), "hash": suite.hash}
    tools = {tool_key(tool): tool for task in suite.tasks for tool in task.tools}
    for key, tool in tools.items():
        yield {"tool": key, "spec": tool.model_dump(mode="json")}
    catalogues = {catalogue_key(task.tools): task.tools for task in suite.tasks}
    for key, catalogue in catalogues.items():
        yield {"catalogue": key, "tools": [tool_key(tool) for tool in catalogue]}
    for task in suite.tasks:
        yield task_line(task, catalogue_key(task.tools))


class _Reading:
    """The lines of one file, read in order."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.stem
        self.header: dict[str, Json] = {}
        self.tools: dict[str, ToolSpec] = {}
        self.catalogues: dict[str, tuple[ToolSpec, ...]] = {}
        self.shared: dict[str, ToolSpec] = {}
        self.tasks: list[Task] = []
        self.number = 0
        self.lines: dict[str, int] = {}
        """Of every task by its id, and by its name where it has one: only of a file written by hand."""

    def take(self, number: int, text: str) -> None:
        self.number = number
        try:
            self._take(json.loads(text))
        except DataError as error:
            raise DataError(f"{self.path}, line {number}: {error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.path}, line {number}: {_said(error)}. Fix or remove this line.") from error

    def _take(self, line: Any) -> None:
        if not isinstance(line, dict):
            raise ValueError(f"expected a JSON object, found {type(line).__name__}")
        if "messages" in line or "request" in line:
            self.tasks.append(self._task(line))
        elif "suite" in line:
            if line.get("format", FORMAT) != FORMAT:
                raise ValueError(f"format {line['format']} is not the format {FORMAT} that this version reads")
            self.name, self.header = str(line["suite"]), line
            self.shared = self._shared(line.get("tools", []))
        elif "catalogue" in line:
            self.catalogues[line["catalogue"]] = tuple(self.tools[key] for key in line["tools"])
        elif "tool" in line:
            self.tools[line["tool"]] = ToolSpec.model_validate(line["spec"])
        else:
            raise ValueError(f"neither a task nor a tool nor a catalogue (keys: {', '.join(sorted(line)) or 'none'})")

    def _task(self, line: dict[str, Json]) -> Task:
        if "hash" in self.header:
            return Task.model_validate({**line, "tools": self._catalogue(line.get("tools", []))})
        tools = self._catalogue(line["tools"]) if "tools" in line else tuple(self.shared.values())
        task = handwritten.linked(Task.model_validate({**handwritten.long_form(line), "tools": tools}))
        handwritten.look_through(task)
        self._once(task)
        return task

    def _catalogue(self, tools: Json) -> tuple[ToolSpec, ...]:
        return self.catalogues[tools] if isinstance(tools, str) else handwritten.chosen(tools, self.shared)

    def _shared(self, tools: Json) -> dict[str, ToolSpec]:
        """The header's tools: in place, or the path of a file that `llm-tuner tools list --json` wrote."""
        if isinstance(tools, str):
            tools = read_json(self.path.parent / tools)
        return {spec.name: spec for spec in map(handwritten.tool, tools)}

    def _once(self, task: Task) -> None:
        keys = {task.id: "the same task"}
        if name := task.tags.get("id"):
            keys[f"id {name}"] = f'the id "{name}"'
        for key, what in keys.items():
            if key in self.lines:
                raise ValueError(f"{what} stands in line {self.lines[key]} already")
            self.lines[key] = self.number

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
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']}" if where else first["msg"]
    if isinstance(error, KeyError):
        return f"{error} is missing, or used before its own line"
    return str(error)
