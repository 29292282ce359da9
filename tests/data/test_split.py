"""The sides: by the first request, and training never sees a withheld tool or server."""

from __future__ import annotations

from rows import FETCH, MAIL, asked, call, made

from llm_tuner.data.examples import Example, piped
from llm_tuner.data.split import Withheld, divide, first_side
from llm_tuner.types import HELD_OUT_SHARE, Message, ToolCall, ToolResult, ToolSpec

NOTHING = Withheld(tools=0, servers=0)


def requests(side: str, count: int) -> list[str]:
    texts = (f"request number {n}" for n in range(1000))
    return [text for text in texts if asked(text, call("fetch", url="u")).task.side == side][:count]


TRAIN, HELD_OUT = requests("train", 3), requests("held-out", 3)


def divided(example: Example, rule: Withheld) -> Example:
    (item,) = piped([example], divide(rule))
    assert isinstance(item, Example)
    assert item.attempt.task_id == item.task.id
    return item


def test_the_request_decides() -> None:
    assert divided(asked(TRAIN[0], call("fetch", url="u")), NOTHING).task.split == "train"
    assert divided(asked(HELD_OUT[0], call("fetch", url="u")), NOTHING).task.split == "held-out"


def test_a_conversation_stands_on_one_side_with_all_its_turns() -> None:
    for first, other in ((TRAIN, HELD_OUT), (HELD_OUT, TRAIN)):
        talk = (
            Message(role="user", text=first[0]),
            Message(role="assistant", text="?"),
            Message(role="user", text=other[0]),
        )
        example = made(*talk, answer=Message(role="assistant", text="done"))
        assert example.task.side != first_side(example.task)
        assert divided(example, NOTHING).task.side == first_side(example.task)


def test_who_calls_a_withheld_tool_is_held_out() -> None:
    for rule in (Withheld(tools=0, servers=0, names=("fetch",)), Withheld(tools=0, servers=0, names=("web",))):
        assert divided(asked(TRAIN[0], call("fetch", url="u")), rule).task.split == "held-out"
        before = (
            Message(role="user", text=TRAIN[0]),
            Message(role="assistant", tool_calls=(ToolCall(name="fetch", arguments={"url": "u"}, id="call_1"),)),
            Message(role="tool", result=ToolResult(call_id="call_1", content="x")),
        )
        assert divided(made(*before, answer=Message(role="assistant", text="x")), rule).task.split == "held-out"


def test_who_is_only_offered_one_loses_it_and_stays() -> None:
    rule = Withheld(tools=0, servers=0, names=("fetch",))
    example = asked(TRAIN[0], call("send_mail", to="x"))
    found = divided(example, rule)
    assert found.task.split == "train"
    assert found.task.tools == (MAIL,)
    assert found.task.tags["withheld"] == "1"
    assert found.task.id != example.task.id
    held = divided(asked(HELD_OUT[0], call("send_mail", to="x")), rule)
    assert held.task.tools == (MAIL, FETCH)  # the held-out side keeps its catalogue


def test_who_would_have_no_tool_left_is_held_out() -> None:
    rule = Withheld(tools=0, servers=0, names=("fetch",))
    assert divided(asked(TRAIN[0], reply="no", tools=(FETCH,)), rule).task.split == "held-out"


def test_shares_are_of_names_and_the_same_in_every_build() -> None:
    tools = [ToolSpec(name=f"tool_{n}", server=f"server_{n % 200}") for n in range(2000)]
    by_tool, by_server = Withheld(tools=0.1, servers=0), Withheld(tools=0, servers=0.1)
    assert 140 < sum(map(by_tool.holds, tools)) < 260
    servers = {tool.server for tool in tools if by_server.holds(tool)}
    assert 8 < len(servers) < 34
    assert all(by_server.holds(tool) for tool in tools if tool.server in servers)  # whole servers
    assert sum(map(by_tool.holds, tools)) == sum(map(by_tool.holds, reversed(tools)))
    assert 0 < HELD_OUT_SHARE < 1
