"""The turn loop: results go back to the model, and every conversation ends."""

from __future__ import annotations

import pytest

from llm_tuner.tools.turns import converse, made_calls
from llm_tuner.types import Message, ModelError, Reply, ToolCall, ToolResult

ASK = (Message(role="user", text="go"),)


def calling(*numbers, text=""):
    calls = tuple(ToolCall(name="step", arguments={"n": n}, id=f"call_{n}") for n in numbers)
    return Message(role="assistant", text=text, tool_calls=calls)


class Script:
    """A backend that says one thing after the other and keeps what it was shown."""

    name = "script"

    def __init__(self, *messages):
        self.messages, self.shown = list(messages), []

    def chat(self, messages, tools=(), options=None):
        self.shown.append(tuple(messages))
        message = self.messages.pop(0)
        if isinstance(message, Exception):
            raise message
        return Reply(message=message)


def results(calls):
    return [ToolResult(content=f"did {call.arguments['n']}") for call in calls]


def test_results_go_back_under_the_ids_of_their_calls_until_nothing_is_called():
    backend = Script(calling(1, 2), calling(3), calling(text="Done."))
    turns = converse(backend, ASK, (), results, limit=5)
    assert [len(turn.reply.message.tool_calls) for turn in turns] == [2, 1, 0]
    assert [turn.before for turn in turns] == [shown[1:] for shown in backend.shown]
    last = backend.shown[-1]
    assert [message.role for message in last] == ["user", "assistant", "tool", "tool", "assistant", "tool"]
    assert [(m.result.call_id, m.result.content) for m in last if m.result] == [
        ("call_1", "did 1"),
        ("call_2", "did 2"),
        ("call_3", "did 3"),
    ]
    whole = made_calls(turns)
    assert (whole.text, [call.arguments["n"] for call in whole.tool_calls]) == ("Done.", [1, 2, 3])


def test_the_limit_ends_it_and_the_last_calls_are_not_made():
    made = []
    turns = converse(Script(*(calling(n) for n in range(9))), ASK, (), lambda c: made.extend(c) or results(c), limit=3)
    assert (len(turns), len(made)) == (3, 2)
    assert turns[-1].results == ()
    assert len(made_calls(turns).tool_calls) == 3


def test_a_call_written_as_text_is_not_made_and_ends_it():
    said = Message(role="assistant", text="{...}", text_calls=(ToolCall(name="step"),))
    turns = converse(Script(said), ASK, (), lambda calls: pytest.fail("made"), limit=3)
    assert made_calls(turns) == said


def test_what_the_backend_raises_is_raised():
    with pytest.raises(ModelError, match="too long"):
        converse(Script(calling(1), ModelError("too long")), ASK, (), results, limit=3)
