"""One request answered: streamed, checked, asked again, handed on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from llm_tuner.serving.request import Calls, ChatRequest, End, Piece, Text
from llm_tuner.serving.roles import FAILURES, REST, Busy, Role, Roles
from llm_tuner.serving.scripted import ScriptedUpstream
from llm_tuner.serving.service import Outcome, Service
from llm_tuner.types import Message, ModelError, PromptTooLong, RuntimeUnavailable, ToolCall, ToolSpec, UnknownModel

READ = ToolSpec(
    name="read_file",
    parameters={
        "type": "object",
        "properties": {"path": {"type": "string"}, "n": {"type": "integer"}},
        "required": ["path"],
    },
)
LIST = ToolSpec(name="list_files")
RIGHT = '```json\n{"name": "read_file", "arguments": {"path": "a.txt"}}\n```'
WRONG = '```json\n{"name": "read_file", "arguments": {"file": "a.txt"}}\n```'


def asked(**more: object) -> ChatRequest:
    fields = {"model": "worker", "messages": (Message(role="user", text="Read a.txt"),), "tools": (READ, LIST)} | more
    return ChatRequest.model_validate(fields)


def answer(service: Service, request: ChatRequest, **switches: bool) -> tuple[list[Piece], Outcome]:
    outcome = Outcome(asked=request.model)

    async def all_of() -> list[Piece]:
        return [piece async for piece in service.answer(request, outcome, **switches)]

    return asyncio.run(all_of()), outcome


def one(*answers: object, **more: object) -> tuple[Service, ScriptedUpstream]:
    upstream = ScriptedUpstream(*answers, **more)  # type: ignore[arg-type]
    return Service(Roles([Role("worker", upstream)])), upstream


def two(first: Sequence[object], second: Sequence[object]) -> tuple[Service, ScriptedUpstream, ScriptedUpstream]:
    worker, helper = ScriptedUpstream(*first), ScriptedUpstream(*second, name="small")  # type: ignore[arg-type]
    return Service(Roles([Role("worker", worker), Role("fallback", helper)])), worker, helper


def text(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Text))


def calls(pieces: Sequence[Piece]) -> list[ToolCall]:
    return [call for piece in pieces if isinstance(piece, Calls) for call in piece.calls]


def test_text_is_streamed_as_it_comes() -> None:
    service, _ = one("Hello there, how are you?")
    pieces, outcome = answer(service, asked())
    assert len(pieces) > 3
    assert text(pieces) == outcome.text == "Hello there, how are you?"
    assert pieces[-1] == End("stop")
    assert (outcome.tries, outcome.role, outcome.repairs) == (1, "worker", [])


def test_a_call_written_as_text_becomes_a_call_with_an_id() -> None:
    service, _ = one("I read it.\n" + RIGHT)
    pieces, outcome = answer(service, asked())
    (call,) = calls(pieces)
    assert (call.name, call.arguments) == ("read_file", {"path": "a.txt"})
    assert call.id.startswith("call_")
    assert text(pieces).strip() == "I read it."
    assert pieces[-1].finish == "tool_calls"  # type: ignore[union-attr]
    assert [repair.kind for repair in outcome.repairs] == ["lifted"]
    assert outcome.written.endswith("```")


def test_a_wrong_call_is_shown_to_the_model_once_and_then_right() -> None:
    service, upstream = one(WRONG, RIGHT)
    pieces, outcome = answer(service, asked())
    assert calls(pieces)[0].arguments == {"path": "a.txt"}
    assert [repair.kind for repair in outcome.repairs] == ["retried", "lifted"]
    said, told = upstream.prompts[1].messages[-2:]
    assert said.text == WRONG
    assert "'path' is a required property" in told.text
    assert "```" not in text(pieces)


def test_a_native_wrong_call_is_answered_as_its_tool_would() -> None:
    native = Calls((ToolCall(name="read_file", arguments={}, id="call_1"),))
    service, upstream = one([native, End("tool_calls")], RIGHT)
    pieces, _ = answer(service, asked())
    assert calls(pieces)[0].arguments == {"path": "a.txt"}
    said, told = upstream.prompts[1].messages[-2:]
    assert said.tool_calls[0].id == "call_1"
    assert told.result is not None
    assert (told.result.call_id, told.result.is_error) == ("call_1", True)


def test_without_retry_a_wrong_call_goes_out_as_it_is() -> None:
    service, upstream = one(WRONG)
    pieces, outcome = answer(service, asked(), retry=False)
    assert calls(pieces)[0].arguments == {"file": "a.txt"}
    assert len(upstream.prompts) == 1
    assert outcome.repairs[-1].kind == "left_wrong"


def test_a_call_of_no_tool_at_all_stays_text() -> None:
    service, upstream = one('<tool_call>{"name": "rm", "arguments": {}}</tool_call>')
    pieces, outcome = answer(service, asked())
    assert calls(pieces) == []
    assert "rm" in text(pieces)
    assert (pieces[-1].finish, len(upstream.prompts)) == ("stop", 2)  # type: ignore[union-attr]
    assert outcome.repairs[-1].kind == "left_wrong"


def test_who_fails_twice_at_a_call_is_helped_by_the_fallback() -> None:
    service, worker, helper = two([WRONG], [RIGHT])
    pieces, outcome = answer(service, asked())
    assert calls(pieces)[0].arguments == {"path": "a.txt"}
    assert (len(worker.prompts), len(helper.prompts)) == (2, 1)
    assert outcome.role == "fallback"
    assert "did not make a right call" in outcome.why


@pytest.mark.parametrize("error", [RuntimeUnavailable("gone"), ModelError("broke off"), PromptTooLong("too long")])
def test_who_cannot_answer_is_helped_by_the_fallback(error: Exception) -> None:
    service, worker, _ = two([error], ["Here I am."])
    pieces, outcome = answer(service, asked())
    assert text(pieces) == "Here I am."
    assert (outcome.role, len(worker.prompts)) == ("fallback", 1)
    assert str(error) in outcome.why


def test_nothing_is_said_twice_where_a_model_breaks_off_in_the_middle() -> None:
    service, _, helper = two([[Text("Half of an "), ModelError("broke off")]], ["Other."])
    with pytest.raises(ModelError, match="broke off"):
        answer(service, asked())
    assert helper.prompts == []


def test_a_model_that_keeps_failing_is_left_alone_for_a_while() -> None:
    now = [0.0]
    worker, helper = ScriptedUpstream(RuntimeUnavailable("gone")), ScriptedUpstream("Yes.")
    role = Role("worker", worker, clock=lambda: now[0])
    service = Service(Roles([role, Role("fallback", helper)]))
    for _ in range(FAILURES + 3):
        answer(service, asked())
    assert len(worker.prompts) == FAILURES
    now[0] = REST + 1
    answer(service, asked())
    assert len(worker.prompts) == FAILURES + 1
    assert len(helper.prompts) == FAILURES + 4


def test_a_model_that_talks_on_after_its_call_is_stopped() -> None:
    service, upstream = one(RIGHT + "\nThis call reads the file that you have named. " * 40)
    pieces, outcome = answer(service, asked())
    assert calls(pieces)
    assert upstream.closed == 1
    assert outcome.repairs[0].kind == "ended"
    assert text(pieces) == ""


def test_one_call_where_one_was_allowed() -> None:
    service, upstream = one(RIGHT + "\n" + RIGHT)
    pieces, outcome = answer(service, asked(parallel=False))
    assert len(calls(pieces)) == 1
    assert "dropped" in [repair.kind for repair in outcome.repairs]
    assert upstream.prompts[0].parallel is False


def test_none_offers_nothing_and_lifts_nothing() -> None:
    service, upstream = one(RIGHT)
    pieces, _ = answer(service, asked(choice="none"))
    assert text(pieces) == RIGHT
    assert upstream.prompts[0].tools == ()


def test_required_asks_again_and_shows_the_words_only_where_no_call_comes() -> None:
    service, upstream = one("I would rather talk.", RIGHT)
    pieces, _ = answer(service, asked(choice="required"))
    assert (text(pieces), len(calls(pieces))) == ("", 1)
    assert upstream.prompts[0].grammar is not None
    never, _ = one("I would rather talk.")
    pieces, outcome = answer(never, asked(choice="required"))
    assert text(pieces) == "I would rather talk."
    assert outcome.repairs[-1].kind == "left_wrong"


def test_a_named_tool_is_the_only_one_offered() -> None:
    service, upstream = one('```json\n{"name": "list_files", "arguments": {}}\n```', RIGHT)
    pieces, _ = answer(service, asked(choice="required", named="read_file"))
    assert [tool.name for tool in upstream.prompts[0].tools] == ["read_file"]
    assert calls(pieces)[0].name == "read_file"


def test_the_limit_is_not_tried_again() -> None:
    service, upstream = one([Text('<tool_call>\n{"name": "read_file", "argum'), End("length")])
    pieces, _ = answer(service, asked())
    assert len(upstream.prompts) == 1
    assert pieces[-1].finish == "length"  # type: ignore[union-attr]
    assert "read_file" in text(pieces)


def test_unknown_models_and_crowded_ones() -> None:
    service, _ = one("Hi.")
    with pytest.raises(UnknownModel, match=r"found 1: worker"):
        answer(service, asked(model="other"))

    async def crowd() -> None:
        role = Role("worker", ScriptedUpstream("Hi."), at_once=1)
        async with role.place():
            with pytest.raises(Busy, match="busy"):
                async with role.place(line=0.05):
                    pass

    asyncio.run(crowd())


def test_a_client_that_goes_away_closes_the_stream() -> None:
    service, upstream = one("word " * 500)

    async def leave() -> Outcome:
        outcome = Outcome(asked="worker")
        pieces = service.answer(asked(), outcome)
        async for _ in pieces:
            break
        await pieces.aclose()  # type: ignore[attr-defined]
        return outcome

    outcome = asyncio.run(leave())
    assert upstream.closed == 1
    assert outcome.error == "the client went away"
