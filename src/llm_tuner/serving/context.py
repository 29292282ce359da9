"""Which of a client's tools a model is shown, and in which form: the context window's side of a request.

It joins the ranking (tools.retrieval) with the budget (models.fitting), which do not see each other. The rule it
protects: within a conversation what was shown once is shown again, in the same order, so that the prompt cache holds;
calls are checked against the client's own definitions, whatever form the model saw.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeVar

from llm_tuner.models.fitting import Count, fit
from llm_tuner.models.signatures import Rendering, catalogue_text, hinted, in_words, shown
from llm_tuner.models.window import guessed
from llm_tuner.serving.request import ChatRequest
from llm_tuner.serving.service import Shown, as_they_are
from llm_tuner.serving.upstreams import Upstream
from llm_tuner.tools.retrieval import Index, index, search_tool, used
from llm_tuner.types import Message, PromptTooLong, ToolSpec, content_hash

T = TypeVar("T")

Mode = Literal["full", "fit", "compact", "hint"]

BUDGET = 1_900
"""Tokens of the tools in mode "fit", unless told otherwise: 85 % less than the reference hub's 73 definitions."""

ANSWER = 512
"""Tokens that are left for an answer where the client names no limit."""

BYTES_A_TOKEN = 3.5
"""Of a conversation, where only a guess is wanted: the server refuses what really does not fit."""

FOUND = 3
"""So many tools a search adds."""

LIKELY = 3
"""So many signatures stand behind a request in mode "hint"."""

_CONVERSATIONS = 256
_CATALOGUES = 16


class Context:
    """A `service.Fit`. "full" shows every tool in the server's template; "fit" those that the request is likeliest to
    need, within `budget` tokens, all of them where there is room; "compact" every tool as one signature line in the
    system message, which a model must have been trained on; "hint" the same, with the signatures of the LIKELY
    likeliest behind each thing that the user said, for any model: the prompt's beginning never changes. A model whose
    template has no place for tools (`shows_tools` is False) is hinted where it should be shown definitions.

    Raises PromptTooLong where not even the tools that must be there leave room in the window.
    """

    def __init__(self, mode: Mode = "full", budget: int = BUDGET) -> None:
        self.mode, self.budget = mode, budget
        self._indices: OrderedDict[str, Index] = OrderedDict()
        self._before: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, request: ChatRequest, upstream: Upstream) -> Shown:
        mode, offered = self.mode, request.offered
        wordless = not upstream.shows_tools
        if wordless and mode in ("full", "fit"):
            mode = "hint"
        if mode == "full":
            return as_they_are(request, upstream)
        if mode == "compact":
            found = _shown(request, offered, "compact", ())
            return replace(found, messages=in_words(found.messages)) if wordless else found
        catalogue = content_hash([tool.fingerprint for tool in offered])
        if mode == "hint":
            found = self._hinted(request, self._index(catalogue, offered))
            return replace(found, messages=in_words(found.messages)) if wordless else found
        conversation = content_hash([catalogue, upstream.name, *_beginning(request.messages)])
        with self._lock:
            before = self._before.get(conversation, ())
        count: Count = getattr(upstream, "count", None) or guessed
        known, room = self._index(catalogue, offered), self._room(request, upstream)
        search = search_tool(tool.name for tool in offered)

        def fitted(needed: Sequence[str]) -> Shown:
            found = fit(
                offered,
                room,
                count,
                ranked=known.rank(request.messages),
                needed=needed,
                kept=used(request.messages),
                before=before,
                search=None if request.named else search,
            )
            with self._lock:
                _remember(self._before, conversation, found.names, _CONVERSATIONS)
            out = _shown(request, found.tools, found.rendering, found.left_out)
            return replace(out, search=search.name, find=find) if found.left_out and not request.named else out

        def find(query: str) -> tuple[str, Shown]:
            hits = known.search(query, FOUND)
            words = catalogue_text(hits) if hits else "No tool was found. Try other words, or answer without a tool."
            return words, fitted([tool.name for tool in hits])

        return fitted((request.named,) if request.named else ())

    def _hinted(self, request: ChatRequest, known: Index) -> Shown:
        def likely(messages: Sequence[Message]) -> Sequence[ToolSpec]:
            chosen = {tool.name for tool in known.rank(messages)[:LIKELY]}
            return [tool for tool in known.tools if tool.name in chosen]

        return Shown(hinted(request.messages, request.offered, likely), (), request.offered, (), "hint")

    def _room(self, request: ChatRequest, upstream: Upstream) -> int:
        """The budget, or what the window leaves where that is less."""
        if not upstream.window:
            return self.budget
        said = sum(len(m.text.encode()) + (len(m.result.content.encode()) if m.result else 0) for m in request.messages)
        wanted = request.sampling.get("max_tokens") or request.sampling.get("max_completion_tokens") or ANSWER
        left = upstream.window - round(said / BYTES_A_TOKEN) - int(wanted)
        if left <= 0:
            raise PromptTooLong(
                f"The conversation takes about {round(said / BYTES_A_TOKEN)} tokens, which leaves no room for tools "
                f"and {wanted} tokens of an answer in a window of {upstream.window}. Shorten it, or serve a larger one."
            )
        return min(self.budget, left)

    def _index(self, key: str, tools: Sequence[ToolSpec]) -> Index:
        with self._lock:
            found = self._indices.get(key)
        if found is None:
            found = index(tools)
            with self._lock:
                _remember(self._indices, key, found, _CATALOGUES)
        return found


def _shown(request: ChatRequest, tools: Sequence[ToolSpec], rendering: Rendering, left_out: tuple[str, ...]) -> Shown:
    messages, given = shown(request.messages, tools, rendering)
    return Shown(messages, given, tuple(tools), left_out, rendering)


def _beginning(messages: Sequence[Message]) -> list[str]:
    """What a conversation is known by: everything up to the first thing that the user said."""
    out = []
    for message in messages:
        out.append(message.text)
        if message.role == "user":
            break
    return out


def _remember(known: OrderedDict[str, T], key: str, value: T, most: int) -> None:
    known[key] = value
    known.move_to_end(key)
    while len(known) > most:
        known.popitem(last=False)
