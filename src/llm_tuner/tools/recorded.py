"""Tools that answer from a record: the fake for tests, and what replays a run without its servers.

No server, no time, no chance. The rule it protects: a call that was not recorded is an error result, never a guess.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter, ValidationError

from llm_tuner.types import DataError, Json, Toolbox, ToolCall, ToolResult, ToolSpec, canonical_json


def read_list(path: str | Path) -> tuple[ToolSpec, ...] | None:
    """The tools of a list that `llm-tuner tools list --json` wrote; None for a file that is no JSON list. Raises
    DataError for another list."""
    path = Path(path)
    if not path.is_file() or not path.read_bytes().lstrip().startswith(b"["):
        return None
    try:
        return TypeAdapter(tuple[ToolSpec, ...]).validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{path} is no list of tools ({error.error_count()} faults). Write it with: "
            "llm-tuner tools list --hub FILE --json"
        ) from error


class RecordedTools:
    """A Toolbox from recorded pairs. A call is known by its name and arguments.

    A call that was recorded several times gets its answers in that order, then the last one again and again.
    """

    def __init__(self, specs: Iterable[ToolSpec], answers: Iterable[tuple[ToolCall, ToolResult]]) -> None:
        self._specs = tuple(specs)
        self.answers = tuple(answers)
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[ToolResult]] = {}
        for call, result in self.answers:
            self._waiting.setdefault(_key(call), deque()).append(result)

    def specs(self) -> tuple[ToolSpec, ...]:
        return self._specs

    def call(self, call: ToolCall) -> ToolResult:
        """The recorded answer under this call's id; an error result where there is none."""
        with self._lock:
            waiting = self._waiting.get(_key(call))
            if waiting is None:
                return ToolResult(call_id=call.id, content=_unrecorded(call), is_error=True)
            result = waiting.popleft() if len(waiting) > 1 else waiting[0]
        return result.model_copy(update={"call_id": call.id})

    @classmethod
    def record(cls, tools: Toolbox, calls: Iterable[ToolCall]) -> Self:
        """Makes the calls, one after the other, and keeps the answers."""
        return cls(tools.specs(), [(call, tools.call(call)) for call in calls])

    def save(self, path: str | Path) -> None:
        """Writes JSON lines: one `{"spec": ...}` a tool, then one `{"call": ..., "result": ...}` an answer."""
        lines: list[Json] = [{"spec": spec.model_dump()} for spec in self._specs]
        lines += [{"call": call.model_dump(), "result": result.model_dump()} for call, result in self.answers]
        Path(path).write_text("".join(canonical_json(line) + "\n" for line in lines), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what `save` wrote. Raises DataError with file and line."""
        specs: list[ToolSpec] = []
        answers: list[tuple[ToolCall, ToolResult]] = []
        for number, line in enumerate(_lines(Path(path)), start=1):
            if not line:
                continue
            try:
                row = json.loads(line)
                if "spec" in row:
                    specs.append(ToolSpec.model_validate(row["spec"]))
                else:
                    answers.append((ToolCall.model_validate(row["call"]), ToolResult.model_validate(row["result"])))
            except (ValueError, TypeError, KeyError) as error:
                found = f"{error.error_count()} faults" if isinstance(error, ValidationError) else repr(error)
                raise DataError(f"{path}, line {number}: not a recorded answer ({found}). Record it again.") from None
        return cls(specs, answers)


def _key(call: ToolCall) -> str:
    return canonical_json([call.name, call.arguments])


def _unrecorded(call: ToolCall) -> str:
    return f"No answer was recorded for `{call.name}` with {canonical_json(call.arguments)[:500]}."


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")  # not splitlines: a JSON text may hold U+2028
    except OSError as error:
        raise DataError(f"{path} could not be read ({type(error).__name__}). Give the path of a recording.") from None
