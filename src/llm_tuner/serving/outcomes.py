"""Outcomes: whether a recorded answer was right, from what came later.

Not the judge (scoring compares with an expectation; here there is none yet). A later request of the same conversation
carries the results of the calls that an answer made: found by the ids of the calls, and where clients send none by the
conversation up to there. The rule it protects: unknown is the default. A wrong word here would be learned.

    right     somebody said so; or every call was made, none failed, and nobody asked for the same again
    wrong     somebody said so; or a call cannot be read, names no tool that was offered, or does not fit its schema,
              by our own look at it or by the tool's
    unknown   everything else: no result came, the tool failed at the world (no such file), a forced call, an answer in
              words, the same request with other calls, the same tool called again at once with other arguments
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import takewhile
from typing import Literal

from llm_tuner.scoring.schema import fits, property_of, required
from llm_tuner.serving.exchanges import Exchange
from llm_tuner.types import Message, ToolCall, ToolResult, ToolSpec, Value, by_name, canonical_json

BEHIND = 4096
"""So many exchanges are held back for what comes later."""

_OTHERWISE = "the same request was asked again and got another answer"


class Outcome(Value):
    """What is known of an exchange's answer, and why. `results` are those of its calls in their order, if they came."""

    state: Literal["right", "wrong", "unknown"]
    why: str
    results: tuple[ToolResult, ...] = ()


def outcomes(exchanges: Iterable[Exchange], behind: int = BEHIND) -> Iterator[tuple[Exchange, Outcome]]:
    """Each exchange with its outcome, in their order, as long as later ones may still tell: `behind` of them. So memory
    does not grow with their number; a result that comes later than that leaves an unknown."""
    waiting = _Waiting()
    for exchange in exchanges:
        waiting.hear(exchange)
        if len(waiting.open) > behind:
            yield waiting.settle()
    while waiting.open:
        yield waiting.settle()


# ------------------------------------------------------------------------------------------------------------ joining


@dataclass
class _Open:
    """An exchange of which more may be heard. `before` and `after`: its conversation without and with its answer."""

    exchange: Exchange
    before: bytes
    after: bytes
    results: tuple[ToolResult, ...] = ()
    next: Message | None = None
    doubt: str = ""
    ids: list[str] = field(default_factory=list)

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        return self.exchange.answer.tool_calls if self.exchange.answer is not None else ()


class _Waiting:
    """The open exchanges, and how to find the one that a message of a later request is the answer of."""

    def __init__(self) -> None:
        self.open: deque[_Open] = deque()
        self._asked: dict[bytes, _Open] = {}
        self._answered: dict[bytes, _Open] = {}
        self._called: dict[str, _Open | None] = {}

    def hear(self, exchange: Exchange) -> None:
        keys = list(_keys(exchange.messages))
        for place, message in enumerate(exchange.messages):
            if message.role == "assistant" and (found := self._answer(message, keys[place + 1])):
                _carry(found, exchange, place)
        after = _key(keys[-1], exchange.answer) if exchange.answer is not None else b""
        new = _Open(exchange, keys[-1], after)
        earlier = self._asked.get(new.before)
        if earlier is not None and (earlier.doubt == _OTHERWISE or _said(earlier.calls) != _said(new.calls)):
            earlier.doubt = new.doubt = _OTHERWISE
        self._register(new)

    def _answer(self, message: Message, key: bytes) -> _Open | None:
        """By the ids of its calls, if all are of one open exchange that made these calls; else by the conversation."""
        if not message.tool_calls:
            return None
        found = {id(o): o for call in message.tool_calls if (o := self._called.get(call.id)) is not None}
        if len(found) == 1:
            (one,) = found.values()
            if _said(one.calls) == _said(message.tool_calls):
                return one
        return self._answered.get(key)

    def _register(self, new: _Open) -> None:
        self.open.append(new)
        self._asked[new.before] = new
        if new.calls:
            self._answered[new.after] = new
        for call in new.calls:
            if call.id:
                new.ids.append(call.id)
                self._called[call.id] = None if call.id in self._called else new  # an id that is not one of its own

    def settle(self) -> tuple[Exchange, Outcome]:
        """The oldest, of which no more is heard."""
        old = self.open.popleft()
        if self._asked.get(old.before) is old:
            del self._asked[old.before]
        if self._answered.get(old.after) is old:
            del self._answered[old.after]
        for one in old.ids:
            if self._called.get(one) is old:
                del self._called[one]
        return old.exchange, _outcome(old)


def _carry(found: _Open, later: Exchange, place: int) -> None:
    """What the later request, in which the answer stands at `place`, tells of it."""
    behind = later.messages[place + 1 :]
    heard = [m.result for m in takewhile(lambda m: m.role == "tool", behind) if m.result is not None]
    if not found.results and len(heard) == len(found.calls):
        found.results = _in_order(heard, later.messages[place].tool_calls)
    if found.results:
        found.next = behind[len(heard)] if len(behind) > len(heard) else later.answer
    asked, again = _request(found.exchange.messages), later.messages[-1]
    if again.role == "user" and behind and asked == _words(again.text):
        found.doubt = "the user asked for the same again"


def _in_order(heard: Sequence[ToolResult], calls: Sequence[ToolCall]) -> tuple[ToolResult, ...]:
    by_id = {result.call_id: result for result in heard if result.call_id}
    if len(by_id) == len(calls) and all(call.id in by_id for call in calls):
        return tuple(by_id[call.id] for call in calls)
    return tuple(heard)


def _keys(messages: Sequence[Message]) -> Iterator[bytes]:
    """What stands for the conversation before each message, and for all of it: without what differs from client to
    client (ids, thinking, the words beside a call)."""
    key = b""
    yield key
    for message in messages:
        key = _key(key, message)
        yield key


def _key(before: bytes, message: Message) -> bytes:
    said = _said(message.tool_calls) or (message.result.content if message.result else message.text.strip())
    whole = before + canonical_json([message.role, said]).encode("utf-8", "replace")
    return blake2b(whole, digest_size=16).digest()


def _said(calls: Sequence[ToolCall]) -> list[str]:
    return [f"{call.name} {canonical_json(call.arguments)}" for call in calls]


def _request(messages: Sequence[Message]) -> str:
    return next((_words(message.text) for message in reversed(messages) if message.role == "user"), "")


def _words(text: str) -> str:
    return " ".join(text.split()).casefold()


# ------------------------------------------------------------------------------------------------------------ telling

_FAILED = re.compile(
    r"\s*(?:mcp )?(?:error|failed|failure|exception|traceback|invalid|input validation|validation|unknown|"
    r"there is no tool|the arguments do not fit|the call could not be read"
    r"|エラー|失敗|引数が|パラメーター?が|必須|必要な|不明な|未知の|存在しない)",
    re.IGNORECASE,
)
"""How a result begins that tells of a failure: most clients send no other sign of it."""

_REFUSED = re.compile(
    r"-32602|input validation error|invalid (?:arguments?|param(?:eter|)s?)\b|unknown (?:tool|function)\b"
    r"|validation errors? for \w*arg(?:ument)?s?\b|(?:tool|function) [\w`'\".:-]+ (?:was |is )?not found"
    r"|there is no tool `|not a valid tool|the arguments do not fit `|the call could not be read"
    r"|unexpected keyword argument|is a required property|\"code\": ?\"invalid_type\""
    r"|missing (?:\d+ )?required (?:\w+[ -])*?(?:argument|parameter|property|field)"
    r"|(?:引数|パラメーター?)が(?:不正|無効|不足|足り)|(?:必須の?|必要な)(?:引数|パラメータ)|(?:不明な|未知の|存在しない)ツール",
    re.IGNORECASE,
)
"""What MCP's and others' servers and clients say of a call that does not fit, near the beginning."""

_LOOKED_AT = 300


def _outcome(heard: _Open) -> Outcome:
    exchange, answer, results = heard.exchange, heard.exchange.answer, heard.results

    def unknown(why: str) -> Outcome:
        return Outcome(state="unknown", why=why, results=results)

    if exchange.feedback is not None:
        return Outcome(state="right" if exchange.feedback.right else "wrong", why="somebody said so", results=results)
    if answer is None or exchange.error:
        return unknown(f"there was no answer: {exchange.error}")
    if exchange.finish == "length":
        return unknown("the answer was cut off")
    if not heard.calls:
        return unknown("nothing was called")
    failed = [result for result in results if _failed(result)]
    refused = next((r.content for r in failed if _REFUSED.search(r.content[:_LOOKED_AT])), "")
    fault = next(filter(None, (_fault(call, exchange.tools) for call in heard.calls)), "")
    if refused or (fault and (failed or not results)):
        return Outcome(state="wrong", why=fault or f"the tool refused the call: {refused[:160]}", results=results)
    if fault:
        return unknown(f"the tool took what does not fit its schema: {fault}")
    if not results:
        return unknown("no result came")
    if failed:
        return unknown(f"a tool failed, which may not be the call's fault: {failed[0].content[:160]}")
    if heard.doubt:
        return unknown(heard.doubt)
    if exchange.tool_choice not in ("", "auto"):
        return unknown("the call was forced")
    if _another(heard):
        return unknown("the same tool was called again at once, with other arguments")
    return Outcome(state="right", why="every call was made and none failed", results=results)


def _failed(result: ToolResult) -> bool:
    text = result.content
    if result.is_error or _FAILED.match(text[:80]):
        return True
    if not text.lstrip().startswith("{") or "rror" not in text[:2000]:
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return bool(value.get("isError")) or (bool(value.get("error")) and len(value) == 1)


def _fault(call: ToolCall, tools: Sequence[ToolSpec]) -> str:
    """What speaks against a call without making it; types and required names only."""
    if call.error:
        return f"the call could not be read: {call.error}"
    tool = by_name(tools).get(call.name)
    if tool is None:
        return f"{call.name} was not offered"
    missing = [name for name in required(tool.parameters) if name not in call.arguments]
    if missing:
        return f"{call.name}: {missing[0]} is missing"
    for name, value in call.arguments.items():
        if not fits(value, property_of(tool.parameters, name), tool.parameters):
            return f"{call.name}: {name} has the wrong type"
    return ""


def _another(heard: _Open) -> bool:
    """Whether the next answer corrects this one, as far as one can see."""
    made = {(call.name, canonical_json(call.arguments)) for call in heard.calls}
    names = {call.name for call in heard.calls}
    calls = heard.next.tool_calls if heard.next is not None else ()
    return any(call.name in names and (call.name, canonical_json(call.arguments)) not in made for call in calls)
