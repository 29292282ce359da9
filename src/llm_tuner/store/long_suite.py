"""A suite's file, written and read task by task: for more tasks than fit into memory.

Not another format: `suite.load` reads what is written here. Its header is as wide at first as it may get, and is filled
in at the end; a tool and a catalogue stand before the first task that uses them, and again when the last use is long
ago (`window`). The rule it protects: a reader that remembers twice `window` tools and catalogues finds every one.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from llm_tuner.store.suite import FORMAT, line_text, task_line, tool_key
from llm_tuner.types import DataError, Task, ToolSpec, content_hash

WINDOW = 2048
"""Tools, and catalogues, that a writer and a reader remember."""

_WIDEST = 999_999_999_999

T = TypeVar("T")


class _Recent(Generic[T]):
    """The last `size` values by key; using one makes it the newest."""

    def __init__(self, size: int) -> None:
        self._size, self._values = size, OrderedDict[Any, T]()

    def get(self, key: Any) -> T | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: Any, value: T) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        while len(self._values) > self._size:
            self._values.popitem(last=False)


class SuiteWriter:
    """Appends tasks to a suite's file. Between `size` and a later `SuiteWriter(path, name, size=size)` the process may
    have been killed: what was written after `size` is cut off."""

    def __init__(self, path: Path, name: str, *, size: int | None = None) -> None:
        self.path, self._name = path, name
        self._tools = _Recent[str](WINDOW)
        self._catalogues = _Recent[str](WINDOW)
        self._keys = _Recent[tuple[ToolSpec, str]](WINDOW)
        path.parent.mkdir(parents=True, exist_ok=True)
        if size is None:
            self._file = path.open("w+b")
            self._file.write(self._header(_WIDEST, "0" * 16))
        else:
            self._file = path.open("r+b")
            self._file.truncate(size)
            self._file.seek(size)

    @property
    def size(self) -> int:
        """Bytes that are written, and handed to the operating system."""
        self._file.flush()
        return self._file.tell()

    def fileno(self) -> int:
        return self._file.fileno()

    def add(self, task: Task) -> None:
        keys = [self._key(tool) for tool in task.tools]
        catalogue = content_hash(keys)
        lines = []
        if self._catalogues.get(catalogue) is None:
            # Tools are used by catalogues only: a reader that has the catalogue does not look at them again.
            for key, tool in zip(keys, task.tools, strict=True):
                if self._tools.get(key) is None:
                    lines.append(line_text({"tool": key, "spec": tool.model_dump(mode="json")}))
                    self._tools.put(key, key)
            lines.append(line_text({"catalogue": catalogue, "tools": list(keys)}))
            self._catalogues.put(catalogue, catalogue)
        lines.append(line_text(task_line(task, catalogue)))
        self._file.write("".join(lines).encode())

    def finish(self, ids: Iterable[str]) -> None:
        """Fills in the header. `ids` are those of all tasks in the file, sorted."""
        count, digest = 0, hashlib.sha256(b"[")
        for count, task_id in enumerate(ids, start=1):
            digest.update((b"," if count > 1 else b"") + json.dumps(task_id).encode())
        digest.update(b"]")
        self._file.seek(0)
        self._file.write(self._header(count, digest.hexdigest()[:16]))
        self.close()

    def close(self) -> None:
        self._file.close()

    def _key(self, tool: ToolSpec) -> str:
        known = self._keys.get(id(tool))
        if known is not None and known[0] is tool:
            return known[1]
        key = tool_key(tool)
        self._keys.put(id(tool), (tool, key))
        return key

    def _header(self, tasks: int, digest: str) -> bytes:
        header = {"suite": self._name, "format": FORMAT, "tasks": tasks, "hash": digest, "window": WINDOW}
        widest = line_text({**header, "tasks": _WIDEST})
        return (line_text(header).rstrip("\n").ljust(len(widest) - 1) + "\n").encode()


def read(path: Path) -> Iterator[Task]:
    """The tasks of a suite's file that llm-tuner wrote, one after the other. Raises DataError with the line's number,
    and at the end where the file does not hold as many tasks as its header says.

    Memory stays flat where the header has a `window`; else every tool and catalogue is remembered.
    """
    header: dict[str, Any] = {}
    tools, catalogues = _Recent[ToolSpec](1 << 62), _Recent[tuple[ToolSpec, ...]](1 << 62)
    count = 0
    try:
        file = path.open(encoding="utf-8")
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error
    with file:
        for number, text in enumerate(file, start=1):
            try:
                line = json.loads(text)
                if "messages" in line:
                    offered = catalogues.get(line["tools"])
                    if offered is None:
                        raise ValueError(f"the catalogue {line['tools']} is used before its own line")
                    count += 1
                    task = Task.model_validate({**line, "tools": offered})
                elif "catalogue" in line:
                    catalogues.put(line["catalogue"], _offered(line["tools"], tools))
                    continue
                elif "tool" in line:
                    tools.put(line["tool"], ToolSpec.model_validate(line["spec"]))
                    continue
                else:
                    header = line
                    if "window" in header:
                        size = 2 * int(header["window"])  # a catalogue's new tools stand before its old ones are used
                        tools, catalogues = _Recent[ToolSpec](size), _Recent[tuple[ToolSpec, ...]](size)
                    continue
            except (ValueError, KeyError, TypeError) as error:
                said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
                raise DataError(f"{path}, line {number}: {said}. Write the file again.") from error
            yield task
    if header.get("tasks", count) != count:
        raise DataError(f"{path} should hold {header['tasks']} tasks, found {count}: cut short, or edited.")


def _offered(keys: list[str], tools: _Recent[ToolSpec]) -> tuple[ToolSpec, ...]:
    found = tuple(tools.get(key) for key in keys)
    if any(tool is None for tool in found):
        raise ValueError("a catalogue holds a tool before that tool's own line")
    return tuple(tool for tool in found if tool is not None)
