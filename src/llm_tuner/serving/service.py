"""One request answered: asked of the right model, read as it comes, checked, asked again if it must be, told.

Not a web server and not a judge of what was wanted. The rule it protects: a client gets calls that it can run, in the
native form, or text; never half of the one as the other. What was changed, and who answered, is in the `Outcome`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from llm_tuner.serving.grammar import Grammar, grammar_of
from llm_tuner.serving.lift import Lifter
from llm_tuner.serving.mending import mend
from llm_tuner.serving.request import Calls, ChatRequest, End, Piece, Repair, Text
from llm_tuner.serving.roles import Role, Roles
from llm_tuner.serving.upstreams import Prompt, Refused, Upstream
from llm_tuner.types import (
    Message,
    ModelError,
    PromptTooLong,
    RuntimeUnavailable,
    ToolCall,
    ToolResult,
    ToolSpec,
    Usage,
)

SEARCHES = 2
"""So often a model may search for a tool on the way to one answer."""

Fit = Callable[[ChatRequest, Upstream], "Shown"]
"""Decides which tools a model is shown for a request, and how."""


@dataclass(frozen=True)
class Shown:
    """What a model is shown. `messages` and `tools` go to the server; `offered` are the tools that calls are checked
    against (the originals). `left_out` names those that were not shown, `form` says how the others were. Where some
    were left out, `search` is a tool of ours among those offered, and `find` answers a query for it: what to tell the
    model, and what it is shown from then on."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    offered: tuple[ToolSpec, ...]
    left_out: tuple[str, ...] = ()
    form: str = "full"
    search: str = ""
    find: Callable[[str], tuple[str, Shown]] | None = None


def as_they_are(request: ChatRequest, upstream: Upstream) -> Shown:
    """Every tool, in the server's own template."""
    return Shown(request.messages, request.offered, request.offered)


@dataclass
class Outcome:
    """What became of a request, filled while it is answered. Times are milliseconds since it came."""

    asked: str
    private: bool = False
    """Nothing of it may be kept on disk."""
    role: str = ""
    served_by: str = ""
    why: str = ""
    tries: int = 0
    repairs: list[Repair] = field(default_factory=list)
    left_out: tuple[str, ...] = ()
    form: str = "full"
    shown: tuple[ToolSpec, ...] = ()
    text: str = ""
    thinking: str = ""
    written: str = ""
    calls: tuple[ToolCall, ...] = ()
    wrong: list[tuple[str, Message, str]] = field(default_factory=list)
    """Who wrote what that the client did not get so, and why not."""
    end: End = field(default_factory=End)
    error: str = ""
    started: float = field(default_factory=time.monotonic)
    first_ms: float | None = None
    total_ms: float = 0.0

    @property
    def message(self) -> Message:
        """The answer as the client got it."""
        return Message(role="assistant", text=self.text, thinking=self.thinking, tool_calls=self.calls)


class Service:
    """Answers requests. `constrain` holds the models that can to the tools' grammar once a call has begun; `retry`
    shows a model what was wrong with its call, once. Both may be decided by the request instead."""

    def __init__(self, roles: Roles, *, fit: Fit = as_they_are, constrain: bool = False, retry: bool = True) -> None:
        self.roles, self.fit, self.constrain, self.retry = roles, fit, constrain, retry

    async def answer(
        self, request: ChatRequest, outcome: Outcome, *, constrain: bool | None = None, retry: bool | None = None
    ) -> AsyncGenerator[Piece, None]:
        """The pieces of the answer; the last one is an End. `outcome` is filled on the way.

        Text is passed on as it comes, but for what may be a call. Raises what upstreams raise, and Busy, where no role
        of the chain could answer and nothing was said yet.
        """
        held = self.constrain if constrain is None else constrain
        again = self.retry if retry is None else retry
        chain = self.roles.chain(request.model)
        try:
            async for piece in self._chain(request, outcome, chain, held, again):
                if outcome.first_ms is None and not isinstance(piece, End):
                    outcome.first_ms = (time.monotonic() - outcome.started) * 1000
                yield piece
        except (asyncio.CancelledError, GeneratorExit):
            outcome.error = "the client went away"
            raise
        except Exception as error:
            outcome.error = str(error)
            raise
        finally:
            outcome.total_ms = (time.monotonic() - outcome.started) * 1000

    async def _chain(
        self, request: ChatRequest, outcome: Outcome, chain: Sequence[Role], held: bool, again: bool
    ) -> AsyncIterator[Piece]:
        wrong: _Turn | None = None
        for place, role in enumerate(chain):
            last = place == len(chain) - 1
            if role.resting and not last:
                _fell_back(outcome, f"{role.name} is left alone after {role.failures} failures")
                continue
            tries = 2 if again else 1
            for number in range(1, tries + 1):
                turn = _Turn(request, outcome, wrong)
                try:
                    async with role.place() as upstream:
                        outcome.role, outcome.served_by = role.name, upstream.name
                        outcome.why = outcome.why or f"asked for {request.model or 'the default'}"
                        outcome.tries += 1
                        async for piece in self._turn(turn, upstream, held):
                            yield piece
                        while (found := turn.found()) is not None:
                            turn = found
                            async for piece in self._turn(turn, upstream, held):
                                yield piece
                    role.worked()
                except (PromptTooLong, RuntimeUnavailable, ModelError) as error:
                    if not isinstance(error, (PromptTooLong, Refused)):
                        role.failed()
                    if wrong is None and (last or outcome.text):
                        raise
                    _fell_back(outcome, f"{role.name}: {error}")
                    break
                if not turn.fault:
                    for piece in turn.ended():
                        yield piece
                    return
                wrong = turn
                if turn.final:
                    break
                if number < tries:
                    outcome.repairs.append(Repair(kind="retried", detail=f"{role.name} was shown: {turn.fault}"))
            else:
                if not last:
                    _fell_back(outcome, f"{role.name} did not make a right call: {wrong.fault if wrong else ''}")
        if wrong is not None:
            for piece in wrong.left_wrong():
                yield piece

    async def _turn(self, turn: _Turn, upstream: Upstream, held: bool) -> AsyncIterator[Piece]:
        """Asks once. Text goes on at once; calls are kept in the turn until they are known to be right."""
        request = turn.request
        fitted = turn.shown or await self._fitted(request, upstream)
        turn.begin(fitted)
        stream = upstream.stream(
            Prompt(
                messages=turn.messages(fitted),
                tools=fitted.tools,
                choice=request.choice,
                named=request.named,
                parallel=request.parallel,
                sampling=request.sampling,
                grammar=_grammar(request, fitted, upstream, held),
                private=turn.outcome.private,
            )
        )
        try:
            async for piece in stream:
                for shown in turn.read(piece):
                    yield shown
                if turn.enough:
                    turn.cut()
                    turn.outcome.repairs.append(Repair(kind="ended", detail="the model talked on after its call"))
                    break
        finally:
            closing = getattr(stream, "aclose", None)
            if closing is not None:
                await closing()
        for shown in turn.finish():
            yield shown

    async def _fitted(self, request: ChatRequest, upstream: Upstream) -> Shown:
        if not request.offered:
            return as_they_are(request, upstream)
        return await asyncio.to_thread(self.fit, request, upstream)  # counting may ask the server


def _fell_back(outcome: Outcome, why: str) -> None:
    outcome.repairs.append(Repair(kind="fell_back", detail=why))
    outcome.why = why


def _grammar(request: ChatRequest, fitted: Shown, upstream: Upstream, held: bool) -> Grammar | None:
    if not fitted.offered or not (held or request.choice == "required"):
        return None
    if request.choice != "required" and not upstream.constrains:
        return None
    return grammar_of(fitted.offered, required=request.choice == "required", parallel=request.parallel)


class _Turn:
    """One asking of one model: what it wrote, what of it is shown, what is wrong with it."""

    def __init__(
        self,
        request: ChatRequest,
        outcome: Outcome,
        before: _Turn | None,
        shown: Shown | None = None,
        searched: tuple[Message, ...] = (),
    ) -> None:
        self.request, self.outcome = request, outcome
        self._before = before
        self.shown = shown
        self._searched = searched
        self.fault = ""
        self.calls: tuple[ToolCall, ...] = ()
        self.enough = False
        self.final = False
        self._repairs: list[Repair] = []
        self._text = ""
        self._end = End()
        self._native: tuple[ToolCall, ...] = ()
        self._held: list[str] = []
        self._pieces = 0
        self._offered: tuple[ToolSpec, ...] = ()
        self._lifter = Lifter(())

    def begin(self, fitted: Shown) -> None:
        self.shown, self._offered = fitted, fitted.offered
        self._lifter = Lifter(fitted.offered)
        self.outcome.left_out, self.outcome.form = fitted.left_out, fitted.form
        self.outcome.shown = tuple(tool for tool in fitted.offered if tool.name != fitted.search)

    def messages(self, fitted: Shown) -> tuple[Message, ...]:
        """The conversation; after a wrong call, that call and what was wrong with it too."""
        told = self._before.told() if self._before is not None else ()
        return fitted.messages + told + self._searched

    def found(self) -> _Turn | None:
        """Where the model asked our own search for a tool: the turn that goes on with what was found."""
        shown = self.shown
        if shown is None or shown.find is None or len(self._searched) >= 2 * SEARCHES:
            return None
        call = next((call for call in self.calls if call.name == shown.search), None)
        if call is None or any(other.name != shown.search for other in self.calls):
            return None
        told, more = shown.find(str(call.arguments.get("query", "")))
        self.outcome.repairs += [*self._repairs, Repair(kind="searched", detail=str(call.arguments.get("query", "")))]
        result = ToolResult(call_id=call.id, content=told)
        said = (Message(role="assistant", tool_calls=(call,)), Message(role="tool", result=result))
        return _Turn(self.request, self.outcome, self._before, more, (*self._searched, *said))

    def told(self) -> tuple[Message, ...]:
        words = f"{self.fault} Make the call again, with nothing else."
        if self._native:
            call = self._native[0]
            call = call.model_copy(update={"id": call.id or "call_wrong", "error": ""})
            said = Message(role="assistant", tool_calls=(call,))
            return said, Message(role="tool", result=ToolResult(call_id=call.id, content=words, is_error=True))
        return Message(role="assistant", text=self._lifter.written), Message(role="user", text=words)

    def read(self, piece: Piece) -> list[Piece]:
        """What may be shown of what came."""
        if isinstance(piece, End):
            self._end = piece
            return []
        if isinstance(piece, Calls):
            self._native += piece.calls
            return []
        self._pieces += 1
        if piece.thinking:
            self.outcome.thinking += piece.text
            return [piece]
        shown = self._lifter.feed(piece.text)
        # Within a long argument there is nothing to decide: only what ends a line or an object is looked at.
        if self._lifter.holding and ("\n" in piece.text or "}" in piece.text or ">" in piece.text or " " in piece.text):
            self.enough = self._lifter.whole()
        return self._shown(shown)

    def _shown(self, text: str) -> list[Piece]:
        if not text:
            return []
        if self._before is not None or self.request.choice == "required":
            self._held.append(text)  # a call is wanted; words beside it are shown only if none comes
            return []
        self.outcome.text += text
        return [Text(text)]

    def cut(self) -> None:
        """The model was stopped, so that its server does not say what it took: a piece is a token, nearly always."""
        self._end = End(usage=Usage(completion_tokens=self._pieces))

    def finish(self) -> list[Piece]:
        """After the last piece: the calls are read and checked; the rest of a text is shown."""
        rest, lifted = self._lifter.end()
        calls = self._native or lifted
        if not calls:
            out = self._shown(rest)
            if self.request.choice == "required":
                self.fault = "No tool was called, but a call of one of the tools is required."
            elif self._held:
                out += self._let_go()
            return out
        if lifted and not self._native:
            self._keep(Message(role="assistant", text=self._lifter.written, text_calls=lifted), "a call as text")
            self._repairs.append(Repair(kind="lifted", detail=f"{len(lifted)} written as text"))
        if not self.request.parallel and len(calls) > 1:
            self._repairs.append(Repair(kind="dropped", detail=f"{len(calls) - 1} further calls: one was allowed"))
            calls = calls[:1]
        mended = [mend(call, self._offered) for call in calls]
        self._repairs += [repair for one in mended for repair in one.repairs]
        self.calls = tuple(one.call.model_copy(update={"id": one.call.id or call_id()}) for one in mended)
        self.fault = next((one.fault for one in mended if one.fault), "")
        self._without_search()
        if self._native and (self.fault or any(one.repairs for one in mended)):
            said = Message(role="assistant", text=self._lifter.written, tool_calls=self._native)
            self._keep(said, self.fault or "a call that was mended")
        if self.fault and self._end.finish == "length":
            self.final = True  # the limit cut it off: asking again would cut it off again
        return []

    def _without_search(self) -> None:
        """The client does not know our search: beside calls of its own tools it is dropped, alone it is answered here,
        a few times."""
        ours = self.shown.search if self.shown is not None else ""
        others = tuple(call for call in self.calls if call.name != ours)
        if others and len(others) < len(self.calls):
            self.calls = others
        elif ours and not others and len(self._searched) >= 2 * SEARCHES:
            self.fault = f"`{ours}` was asked often enough. Call one of the other tools, or answer without."

    def _keep(self, message: Message, why: str) -> None:
        self.outcome.wrong.append((self.outcome.served_by, message, why))

    def _let_go(self) -> list[Piece]:
        text, self._held = "".join(self._held), []
        self.outcome.text += text
        return [Text(text)] if text else []

    def ended(self) -> list[Piece]:
        """The calls, if any, and the End."""
        return self._close("tool_calls" if self.calls else self._end.finish)

    def left_wrong(self) -> list[Piece]:
        """When nobody made a right call: calls that can be run at all go out as they are, for the tool's own server to
        refuse; the rest is text."""
        known = {tool.name for tool in self.outcome.shown}
        usable = tuple(call for call in self.calls if call.name in known and not call.error)
        self._repairs.append(Repair(kind="left_wrong", detail=self.fault))
        out: list[Piece] = []
        if not usable:
            self._held.append(self._lifter.written if self.calls and not self.outcome.text else "")
            out += self._let_go()
        self.calls = usable
        return [*out, *self._close("tool_calls" if usable else self._end.finish)]

    def _close(self, finish: str) -> list[Piece]:
        self.outcome.repairs += self._repairs
        self.outcome.calls = self.calls
        self.outcome.written = self._lifter.written
        if finish == "tool_calls" and not self.calls:
            finish = "stop"
        self.outcome.end = End(finish, self._end.usage, self._end.prompt_ms, self._end.generate_ms)
        called: list[Piece] = [Calls(self.calls)] if self.calls else []
        return [*called, self.outcome.end]


def call_id() -> str:
    """A fresh id of a call."""
    return f"call_{secrets.token_hex(12)}"
