"""An upstream that says what it is told to, at once: for tests and for measuring the gateway's own cost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

from llm_tuner.serving.request import End, Piece, Text
from llm_tuner.serving.upstreams import Prompt

Answer = str | Exception | Sequence[Piece | Exception]


class ScriptedUpstream:
    """Answers one request after the other with `answers`, the last one for ever. A text comes in pieces of `size`
    characters; an Exception is raised, also in the middle. `prompts` keeps what was asked."""

    def __init__(
        self, *answers: Answer, name: str = "scripted", window: int = 8192, size: int = 4, constrains: bool = False
    ) -> None:
        self.name, self.window, self.constrains = name, window, constrains
        self._answers, self._size = list(answers) or ["Hello."], size
        self.shows_tools = True
        self.prompts: list[Prompt] = []
        self.closed = 0
        """Streams that were closed before their end."""
        self.pause: Callable[[], object] | None = None
        """Awaited before each piece, where it is set."""

    async def alive(self) -> bool:
        return True

    async def close(self) -> None:
        return

    async def stream(self, prompt: Prompt) -> AsyncIterator[Piece]:
        answer = self._answers[min(len(self.prompts), len(self._answers) - 1)]
        self.prompts.append(prompt)
        whole = False
        try:
            for piece in self._pieces(answer):
                if self.pause is not None:
                    await self.pause()  # type: ignore[misc]
                if isinstance(piece, Exception):
                    raise piece
                yield piece
            whole = True
        finally:
            self.closed += not whole

    def _pieces(self, answer: Answer) -> Sequence[Piece | Exception]:
        if isinstance(answer, Exception):
            return [answer]
        if isinstance(answer, str):
            cut = [answer[at : at + self._size] for at in range(0, len(answer), self._size)]
            return [*map(Text, cut), End()]
        return answer
