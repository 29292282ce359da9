"""Which side an example stands on: by its request, and by tools and servers that training never sees.

Not a share that is drawn: the hash of a text or a name decides, so that every build decides alike. The rules:

- a conversation stands on the side of its *first* request, with all its turns;
- a share of the tools, and of the servers, is withheld (or they are named). Who calls one, or has called one earlier in
  the conversation, stands on the held-out side;
- who is only offered a withheld tool loses it from the catalogue and stays; who would have no tool left is held out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

from pydantic import Field

from llm_tuner.data.examples import Example, Item, Stage, calls_wanted, changed, each
from llm_tuner.types import Side, Task, ToolSpec, Value


class Withheld(Value):
    """Shares (0..1) of tools and of servers that training never sees, and those that are named."""

    tools: float = Field(0.05, ge=0, le=1)
    servers: float = Field(0.1, ge=0, le=1)
    names: tuple[str, ...] = ()

    def holds(self, tool: ToolSpec) -> bool:
        """Whether training must never see this tool: by its name, or by its server's."""
        if tool.name in self.names or (tool.server and tool.server in self.names):
            return True
        if _share(f"tool:{tool.name}") < self.tools:
            return True
        return bool(tool.server) and _share(f"server:{tool.server}") < self.servers


def divide(withheld: Withheld) -> Stage:
    """A stage that fixes every example's side. A side that a task already has stays, unless withheld tools move it."""
    return each(partial(_divided, withheld.holds))


def _divided(holds: Callable[[ToolSpec], bool], example: Example) -> Item:
    task = example.task
    side = first_side(task)
    gone = {tool.name for tool in task.tools if holds(tool)}
    if side == "held-out" or gone & called(task) or len(gone) == len(task.tools):
        return changed(example, split="held-out")
    if not gone:
        return changed(example, split="train")
    kept = tuple(tool for tool in task.tools if tool.name not in gone)
    return changed(example, split="train", tools=kept, tags={**task.tags, "withheld": str(len(gone))})


def first_side(task: Task) -> Side:
    """The side of the conversation's first request; the task's own where it is fixed."""
    first = next((message for message in task.messages if message.role == "user"), None)
    if task.split is not None or first is None:
        return task.side
    return task.model_copy(update={"messages": (first,)}).side


def called(task: Task) -> set[str]:
    """Names of the tools that the task calls, or called earlier in its conversation."""
    history = {call.name for message in task.messages for call in message.tool_calls}
    return history | {name for name, _ in calls_wanted(task)}


def _share(text: str) -> float:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 0x1_0000_0000
