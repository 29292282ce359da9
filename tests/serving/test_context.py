"""Which tools a model sees: within the budget, stable within a conversation, and none out of reach."""

from __future__ import annotations

import asyncio
import json

import pytest

from llm_tuner.models.signatures import LIKELY
from llm_tuner.models.window import guessed
from llm_tuner.serving.context import Context, Mode
from llm_tuner.serving.request import Calls, ChatRequest, Piece
from llm_tuner.serving.roles import Role, Roles
from llm_tuner.serving.scripted import ScriptedUpstream
from llm_tuner.serving.service import Outcome, Service
from llm_tuner.types import Message, PromptTooLong, ToolCall, ToolResult, ToolSpec

VERBS = ("create", "delete", "list", "rename", "archive", "share")
NOUNS = ("invoice", "branch", "calendar event", "photo", "playlist", "printer", "ticket", "server", "webhook", "vault")


def spec(verb: str, noun: str) -> ToolSpec:
    name = f"{verb}_{noun.replace(' ', '_')}"
    schema = {"type": "object", "properties": {"id": {"type": "string", "description": f"Which {noun} is meant."}}}
    return ToolSpec(name=name, description=f"{verb.capitalize()} a {noun} of the current user.", parameters=schema)


TOOLS = tuple(spec(verb, noun) for verb in VERBS for noun in NOUNS)


def asked(text: str, *more: Message, **fields: object) -> ChatRequest:
    messages = (Message(role="user", text=text), *more)
    return ChatRequest.model_validate({"model": "worker", "messages": messages, "tools": TOOLS} | fields)


def test_full_shows_every_tool_as_it_is() -> None:
    shown = Context("full")(asked("x"), ScriptedUpstream())
    assert (shown.tools, shown.offered, shown.left_out, shown.form) == (TOOLS, TOOLS, (), "full")


def test_compact_shows_every_tool_in_the_system_message_and_checks_against_the_originals() -> None:
    shown = Context("compact")(asked("x"), ScriptedUpstream())
    assert (shown.tools, shown.offered, shown.form) == ((), TOOLS, "compact")
    assert "archive_webhook(" in shown.messages[0].text


def test_hints_stand_behind_the_request_and_nothing_before_them_ever_changes() -> None:
    context, upstream = Context("hint"), ScriptedUpstream()
    first = context(asked("Delete the photo 7"), upstream)
    assert (first.tools, first.offered, first.left_out, first.form) == ((), TOOLS, (), "hint")
    system, user = first.messages
    assert "archive_webhook(" in system.text
    request, _, hints = user.text.partition(f"\n\n{LIKELY}\n")
    assert request == "Delete the photo 7"
    assert "delete_photo" in [line.partition("(")[0] for line in hints.splitlines()]
    call = ToolCall(name="delete_photo", arguments={"id": "7"}, id="c")
    done = Message(role="tool", result=ToolResult(call_id="c", content="gone"))
    more = (Message(role="assistant", tool_calls=(call,)), done, Message(role="user", text="Now share the vault."))
    later = context(asked("Delete the photo 7", *more), upstream)
    assert later.messages[:2] == first.messages
    assert later.messages[2:4] == more[:2]
    assert "share_vault" in later.messages[4].text


@pytest.mark.parametrize("mode", ["full", "fit", "hint", "compact"])
def test_a_template_without_a_place_for_tools_gets_everything_in_words(mode: Mode) -> None:
    upstream = ScriptedUpstream()
    upstream.shows_tools = False
    call = ToolCall(name="delete_photo", arguments={"id": "7"}, id="c")
    done = Message(role="tool", result=ToolResult(call_id="c", content="gone"))
    asking = asked("Delete the photo 7", Message(role="assistant", tool_calls=(call,)), done)
    shown = Context(mode, budget=600)(asking, upstream)
    assert shown.tools == ()
    assert "delete_photo(id?: str)" in shown.messages[0].text
    assert [(m.role, bool(m.tool_calls), m.result) for m in shown.messages[2:]] == [
        ("assistant", False, None),
        ("user", False, None),
    ]
    written = shown.messages[2].text
    assert json.loads(written.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")) == {
        "name": "delete_photo",
        "arguments": {"id": "7"},
    }
    assert shown.messages[3].text == "<tool_response>\ngone\n</tool_response>"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Please delete the photo from last week", "delete_photo"),
        ("プレイリストの一覧を見せて", "list_playlist"),
        ("Rename my calendar event to Standup", "rename_calendar_event"),
    ],
)
def test_fit_keeps_the_budget_and_the_right_tool(text: str, name: str) -> None:
    shown = Context("fit", budget=600)(asked(text), ScriptedUpstream())
    assert name in [tool.name for tool in shown.offered]
    assert guessed(shown.offered, shown.form) <= 600  # type: ignore[arg-type]
    assert len(shown.left_out) + len(shown.offered) - 1 == len(TOOLS)
    assert shown.search in [tool.name for tool in shown.offered]


def test_where_all_fit_all_are_shown_and_there_is_nothing_to_search() -> None:
    shown = Context("fit", budget=100_000)(asked("x"), ScriptedUpstream(window=0))
    assert (shown.tools, shown.search, shown.find) == (TOOLS, "", None)


def test_within_a_conversation_the_same_tools_are_shown_again() -> None:
    context, upstream = Context("fit", budget=700), ScriptedUpstream()
    first = context(asked("Delete the photo"), upstream)
    call = ToolCall(name="delete_photo", arguments={"id": "1"}, id="c")
    later = (Message(role="assistant", tool_calls=(call,)), Message(role="user", text="Thanks. And the other photo?"))
    again = context(asked("Delete the photo", *later), upstream)
    assert again.tools == first.tools


def test_a_named_tool_is_shown_alone() -> None:
    shown = Context("fit", budget=600)(asked("x", choice="required", named="share_vault"), ScriptedUpstream())
    assert [tool.name for tool in shown.offered] == ["share_vault"]
    assert shown.find is None


def test_a_conversation_that_fills_the_window_is_refused() -> None:
    with pytest.raises(PromptTooLong, match="no room for tools"):
        Context("fit")(asked("word " * 3000), ScriptedUpstream(window=2048))


def test_a_tool_that_was_left_out_is_found_by_searching() -> None:
    search = '<tool_call>{"name": "search_tools", "arguments": {"query": "share a vault"}}</tool_call>'
    call = '<tool_call>{"name": "share_vault", "arguments": {"id": "7"}}</tool_call>'
    upstream = ScriptedUpstream(search, call)
    service = Service(Roles([Role("worker", upstream)]), fit=Context("fit", budget=400))
    outcome = Outcome(asked="worker")
    request = asked("Delete the photo")

    async def all_of() -> list[Piece]:
        return [piece async for piece in service.answer(request, outcome)]

    pieces = asyncio.run(all_of())
    first, second = upstream.prompts
    assert "share_vault" not in [tool.name for tool in first.tools]
    assert "share_vault" in [tool.name for tool in second.tools]
    said, told = second.messages[-2:]
    assert said.tool_calls[0].name == "search_tools"
    assert told.result is not None
    assert "share_vault(" in told.result.content
    assert [c.name for p in pieces if isinstance(p, Calls) for c in p.calls] == ["share_vault"]
    assert "searched" in [repair.kind for repair in outcome.repairs]
    assert "search_tools" not in [tool.name for tool in outcome.shown]


def test_a_model_that_only_searches_is_stopped_and_its_searches_stay_here() -> None:
    search = '<tool_call>{"name": "search_tools", "arguments": {"query": "vault"}}</tool_call>'
    upstream = ScriptedUpstream(search)
    service = Service(Roles([Role("worker", upstream)]), fit=Context("fit", budget=400))
    outcome = Outcome(asked="worker")

    async def all_of() -> list[Piece]:
        return [piece async for piece in service.answer(asked("Delete the photo"), outcome)]

    pieces = asyncio.run(all_of())
    assert not any(isinstance(piece, Calls) for piece in pieces)
    assert len(upstream.prompts) <= 6
    assert outcome.calls == ()
