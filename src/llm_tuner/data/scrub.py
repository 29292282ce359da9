"""Secrets and personal data out of examples: request, call, result and tool alike, by the rules of `store/scrub.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from llm_tuner.data.examples import Example, Item, Stage
from llm_tuner.data.rejections import Rejection
from llm_tuner.store.scrub import Scrubber
from llm_tuner.types import Attempt, Task

__all__ = ["Scrubber", "findings", "scrub", "scrubbed"]


def scrub(scrubber: Scrubber) -> Stage:
    """A stage that scrubs examples, and what rejections tell."""

    def stage(items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            if isinstance(item, Example):
                yield scrubbed(scrubber, item)
            else:
                clean: dict[str, Any] = {"detail": scrubber.text(item.detail), "request": scrubber.text(item.request)}
                yield Rejection.model_validate({**item.model_dump(), **clean})

    return stage


def scrubbed(scrubber: Scrubber, example: Example) -> Example:
    """The example with placeholders everywhere: conversation, tools, expectation, answer, results. The very same where
    nothing is found."""
    task, attempt = example
    words = task.model_dump(mode="json", exclude={"tools"})
    given = {key: words[key] for key in ("messages", "expect")}
    clean = scrubber.value(given)
    tools = tuple(scrubber.tool(tool) for tool in task.tools)
    answer = attempt.model_dump(mode="json")
    replied = scrubber.value(answer["messages"]), scrubber.value(answer["results"])
    if clean == given and tools == task.tools and replied == (answer["messages"], answer["results"]):
        return example
    task = Task.model_validate({**words, **clean, "tools": tools})
    verdict = scrubber.value(answer["verdict"])
    messages, results = replied
    renewed = {**answer, "task_id": task.id, "messages": messages, "results": results, "verdict": verdict}
    return Example(task, Attempt.model_validate(renewed))


def findings(example: Example) -> Counter[str]:
    """What is left to scrub in an example, by kind."""
    scrubber = Scrubber("look")
    scrubbed(scrubber, example)
    return scrubber.found
