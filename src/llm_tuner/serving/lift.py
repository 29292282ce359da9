"""Calls out of a stream of text: what may be a call is held back until it is known to be one or not.

Not a dialect: whether a text is a call is for `models.dialects` to say, on the whole of it. Here it is only foreseen
what they can still find. The rule it protects: no part of a call is shown as text, and no text is lost.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llm_tuner.models import dialects
from llm_tuner.models.dialects import fenced_json, tool_call_tags
from llm_tuner.models.dialects.shapes import CALL_KEYS, NAME_KEYS, calls_in, values_at
from llm_tuner.types import Message, ToolCall, ToolSpec

RAMBLED = 24
"""Characters behind a whole call that are no other call: the model has said what it wants, and talks on."""

_TAG, _FENCE = tool_call_tags.START, fenced_json.END
_MARK = re.compile(rf"{re.escape(_TAG)}|{_FENCE}|[{{\[]")
_IN_CODE = re.compile(rf"{re.escape(_TAG)}|{_FENCE}")
_BEGUN = re.compile("|".join(f"{re.escape(_TAG[:n])}$" for n in range(len(_TAG) - 1, 0, -1)) + "|`{1,2}$")
_LANGUAGE = re.compile(r"```([\w-]*)(\s*)")
_HEAD = re.compile(r"[\s\[{]*[\[{][\s\[{]*")
_KEY = re.compile(r"""(["'])(\w*)(\1)?""")
_VALUE = re.compile(r"""\s*:\s*(["'{])?([^"']*)?(["'])?""")
_CLOSED = re.compile(r"[\s\])};,]*(?:</tool_call>|```)?\s*")


class Lifter:
    """Feed it what the model writes; it says what may be shown. At the end: the rest of the text, or the calls.

    `written` is everything so far. `tools` are those on offer: names decide whether plain JSON is a call.
    """

    def __init__(self, tools: Sequence[ToolSpec]) -> None:
        self._tools = tuple(tools)
        self._names = frozenset(tool.name for tool in tools)
        self.written = ""
        self._shown = 0
        self._in_code = False
        self._meant = False
        """What is held back is a call for certain, readable or not: only its end is waited for."""

    @property
    def holding(self) -> bool:
        """Whether something was written that is not shown yet."""
        return self._shown < len(self.written)

    def feed(self, text: str) -> str:
        """What may be shown now."""
        self.written += text
        if not self._tools:
            return self._show(len(self.written))
        if self._meant:
            return ""
        out = ""
        while True:
            mark = (_IN_CODE if self._in_code else _MARK).search(self.written, self._shown)
            if mark is None:
                begun = _BEGUN.search(self.written, self._shown)
                return out + self._show(begun.start() if begun else len(self.written))
            out += self._show(mark.start())
            if self._in_code and mark.group() == _FENCE:
                out += self._show(mark.end())
                self._in_code = False
                continue
            state = self._foreseen(mark.group())
            if state == "call":
                self._meant = True
            if state != "text":
                return out
            self._in_code = mark.group() == _FENCE
            out += self._show(mark.end())

    def whole(self) -> bool:
        """Whether a call is complete and the model goes on with something else, so that it may be stopped."""
        if not self.holding or not self._tools:
            return False
        calls = self._read()
        if not calls or any(call.error for call in calls):
            return False
        end = self.written.rfind(calls[-1].raw) + len(calls[-1].raw)
        rest = self.written[_ends(self.written, end) :]
        return len(rest.strip()) >= RAMBLED and not _MARK.search(rest)

    def end(self) -> tuple[str, tuple[ToolCall, ...]]:
        """The text that was still held back and is text after all; or the calls."""
        if not self._tools:
            return "", ()
        if self.holding or not self.written:
            if calls := self._read():
                return "", calls
            return self._show(len(self.written)), ()
        return "", ()

    def _read(self) -> tuple[ToolCall, ...]:
        return dialects.read(Message(role="assistant", text=self.written), self._tools).text_calls

    def _show(self, to: int) -> str:
        text = self.written[self._shown : to]
        self._shown = max(self._shown, to)
        return text

    def _foreseen(self, mark: str) -> str:
        """ "call", "text", or "open" while it may be either."""
        if mark == _TAG:
            return "call"
        held = self.written[self._shown :]
        if mark == _FENCE:
            opening = _LANGUAGE.match(held)
            body = held[opening.end() :] if opening else ""
            if not body:
                return "open"
            if body.startswith(_TAG) or _TAG.startswith(body):
                return "open" if len(body) < len(_TAG) else "call"
            return self._json(body, fenced=True) if body[0] in "{[" else "text"
        return self._json(held, fenced=False)

    def _json(self, text: str, fenced: bool) -> str:
        head = _HEAD.match(text)
        rest = text[head.end() :] if head else ""
        if not rest:
            return "open"
        key = _KEY.match(rest)
        if key is None or (not key.group(3) and key.end() < len(rest)):
            return "text"
        word, closed = key.group(2), bool(key.group(3))
        if not closed:
            return "open" if any(known.startswith(word) for known in CALL_KEYS) else "text"
        if word not in CALL_KEYS:
            return "text"
        if word in NAME_KEYS and not self._may_be_named(rest[key.end() :]):
            return "text"
        return self._finished(text, fenced)

    def _may_be_named(self, text: str) -> bool:
        value = _VALUE.match(text)
        if value is None:
            return not text.strip() or text.strip() == ":"
        quote, name, closed = value.groups()
        if quote is None:
            return not (name or "").strip()
        if quote == "{":
            return True
        return name in self._names if closed else any(known.startswith(name or "") for known in self._names)

    def _finished(self, text: str, fenced: bool) -> str:
        """Of JSON that opens as a call does: it is text once it turns out to be none, or, outside of a fence and not at
        the head, once other text follows."""
        values, end = values_at(text, 0)
        if not values:
            return "open"
        rest = text[end:].strip(" \t\r\n,;")
        if not any(calls_in(value, raw, self._names) for value, raw in values):
            return "open" if rest[:1] in ("{", "[") else "text"
        if fenced or not self.written[: self._shown].strip():
            return "call"
        return "open" if not rest or rest[0] in "{[<" else "text"


def _ends(text: str, at: int) -> int:
    match = _CLOSED.match(text, at)
    return match.end() if match else at
