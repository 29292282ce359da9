"""A backend that answers from a record: the fake for tests, and what replays a conversation without its model.

No model, no time, no chance. The rule it protects: what was not recorded is a ModelError, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from llm_tuner.types import GREEDY, ChatOptions, Message, ModelError, Reply, ToolSpec

Answer = Message | Callable[[Sequence[Message], Sequence[ToolSpec]], Message]


class RecordedBackend:
    """A Backend that knows what to say to the last thing that the user said.

    `answers` maps a part of that text to the answer (or to a function of the conversation and the tools); the first
    part that is in it counts. `asked` keeps what was asked, in order.
    """

    def __init__(self, answers: Mapping[str, Answer], name: str = "recorded") -> None:
        self._answers = dict(answers)
        self._name = name
        self.asked: list[str] = []

    @property
    def name(self) -> str:
        return self._name

    def chat(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), options: ChatOptions = GREEDY) -> Reply:
        """The recorded answer. Raises ModelError where there is none."""
        said = next((message.text for message in reversed(messages) if message.role == "user"), "")
        self.asked.append(said)
        for part, answer in self._answers.items():
            if part in said:
                return Reply(message=answer if isinstance(answer, Message) else answer(messages, tools))
        raise ModelError(f"No answer was recorded for {said[:80]!r}. Record one, or ask a model.")
