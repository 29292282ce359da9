"""What later requests tell of an answer, and that unknown is the default."""

from __future__ import annotations

import random
from typing import Any

import pytest

from llm_tuner.serving.exchanges import Exchange, Feedback
from llm_tuner.serving.outcomes import Outcome, outcomes
from llm_tuner.types import Message, ToolCall
from recording import READ, TOOLS, asked, call, calling, heard, user

ASK = user("Read a.txt / a.txtを読んで")
MADE = call("read_file", "c1", path="a.txt")


def known(*exchanges: Exchange, behind: int = 4096) -> list[Outcome]:
    found = list(outcomes(exchanges, behind))
    assert [exchange for exchange, _ in found] == list(exchanges)
    return [outcome for _, outcome in found]


def first(*exchanges: Exchange) -> tuple[str, str]:
    outcome = known(*exchanges)[0]
    return outcome.state, outcome.why


def went_on(
    result: str, *, made: ToolCall = MADE, error: bool = False, answer: Message | None = None, **more: Any
) -> tuple[Exchange, Exchange]:
    """A call, and the request that carries its result."""
    one = asked(ASK, answer=calling(made), **more)
    after = answer or Message(role="assistant", text="It says so.")
    return one, asked(ASK, calling(made), heard(result, made.id, error=error), answer=after)


# ------------------------------------------------------------------------------------------------------------ joining


def test_a_call_whose_result_came_and_was_no_error_was_right() -> None:
    one, two = known(*went_on("the text"))
    assert (one.state, one.why) == ("right", "every call was made and none failed")
    assert [r.content for r in one.results] == ["the text"]
    assert (two.state, two.why) == ("unknown", "nothing was called")


def test_without_a_later_request_nothing_is_known() -> None:
    assert first(asked(ASK, answer=calling(MADE))) == ("unknown", "no result came")
    assert first(asked(ASK, answer=None, error="upstream died")) == ("unknown", "there was no answer: upstream died")


def test_results_are_found_by_id_even_where_the_conversation_was_cut() -> None:
    one = asked(user("earlier"), Message(role="assistant", text="ok"), ASK, answer=calling(MADE))
    cut = asked(Message(role="system", text="Summary."), calling(MADE), heard("text", "c1"), answer=None, error="x")
    assert known(one, cut)[0].state == "right"


def test_without_ids_results_are_found_by_the_conversation() -> None:
    both = calling(call("read_file", path="a"), call("find_files", word="b"))
    one = asked(ASK, answer=Message(role="assistant", text="Both.", tool_calls=both.tool_calls, thinking="hm"))
    behind = (heard("A"), heard("B"))
    (found, _) = known(one, asked(ASK, both, *behind, answer=None))
    assert (found.state, [r.content for r in found.results]) == ("right", ["A", "B"])
    for other in (
        asked(user("Something else"), both, *behind, answer=None),  # another conversation
        asked(ASK, calling(*both.tool_calls[::-1]), *behind, answer=None),  # other calls
        asked(ASK, both, behind[0], answer=None),  # a result is missing
        asked(ASK, calling(call("read_file", path="edited"), both.tool_calls[1]), *behind, answer=None),
    ):
        assert first(one, other) == ("unknown", "no result came")


def test_results_of_several_calls_are_put_in_the_order_of_the_calls() -> None:
    both = calling(call("read_file", "c1", path="a"), call("find_files", "c2", word="b"))
    later = asked(ASK, both, heard("B", "c2"), heard("A", "c1"), answer=None)
    assert [r.content for r in known(asked(ASK, answer=both), later)[0].results] == ["A", "B"]


def test_an_id_that_two_answers_have_is_not_gone_by() -> None:
    """Some runtimes number the calls of each answer from call_0 on."""
    made = [call("read_file", "call_0", path=p) for p in ("a", "b")]
    ones = [asked(user(f"Read {m.arguments['path']}"), answer=calling(m)) for m in made]
    later = asked(user("Read a"), calling(made[0]), heard("A", "call_0"), answer=None)
    found = known(*ones, later)
    assert [outcome.state for outcome in found[:2]] == ["right", "unknown"]
    lost = asked(user("Cut off"), calling(made[0]), heard("A", "call_0"), answer=None)
    assert [outcome.state for outcome in known(*ones, lost)[:2]] == ["unknown", "unknown"]


def test_conversations_side_by_side_do_not_mix() -> None:
    rng, streams = random.Random(3), []
    for number in range(40):
        said: list[Message] = [user(f"Conversation {number}")]
        stream = []
        for turn in range(4):
            answer = calling(call("read_file", f"id-{number}-{turn}" if number % 2 else "", path=f"{number}-{turn}"))
            stream.append(asked(*said, answer=answer))
            said += [answer, heard(f"result {number}-{turn}", answer.tool_calls[0].id), user(f"go on {turn}")]
        stream.append(asked(*said, answer=Message(role="assistant", text="done")))
        streams.append(stream)
    mixed = []
    while streams:
        stream = rng.choice(streams)
        mixed.append(stream.pop(0))
        streams = [stream for stream in streams if stream]
    for exchange, outcome in outcomes(mixed):
        if exchange.answer is not None and exchange.answer.tool_calls:
            path = exchange.answer.tool_calls[0].arguments["path"]
            assert (outcome.state, [r.content for r in outcome.results]) == ("right", [f"result {path}"])


def test_memory_is_bounded_and_what_comes_too_late_is_unknown() -> None:
    one, two = went_on("text")
    between = [asked(user(f"Other {n}"), answer=None) for n in range(20)]
    assert known(one, *between, two, behind=30)[0].state == "right"
    assert known(one, *between, two, behind=10)[0].state == "unknown"
    taken = 0

    def counted() -> Any:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield asked(user(str(number)), answer=None)

    next(outcomes(counted(), 10))
    assert taken == 11


# ------------------------------------------------------------------------------------------------------------ telling

REFUSALS = [
    "MCP error -32602: Input validation error: Invalid arguments for tool read_file: [...]",
    "MCP error -32602: Tool read_files not found",
    "Error: Invalid arguments for read_file: path is required",
    "Input validation error: 'path' is a required property",
    "Error executing tool read_file: 1 validation error for read_fileArguments\npath\n  Field required",
    "Unknown tool: read_files",
    "Error: read_files is not a valid tool, try one of [read_file].",
    "Error: read_file() got an unexpected keyword argument 'p'",
    "Error: read_file() missing 1 required positional argument: 'path'",
    "There is no tool `read_files`. Near names: read_file.",
    "The arguments do not fit `read_file` at `lines`: 'x' is not of type 'integer'",
    "エラー: 引数が不正です (path)",
    "エラー: 必須のパラメータ path がありません",
    "不明なツール: read_files",
]
FAILURES = [
    "Error: ENOENT: no such file or directory, open '/work/a.txt'",
    "MCP error -32603: connection closed",
    "Error executing tool read_file: HTTP 503",
    "Failed to read: permission denied",
    "エラー: ファイルが見つかりません",
    '{"error": "rate limited"}',
    '{"isError": true, "text": "no"}',
    "Traceback (most recent call last):\n  boom",
]
CONTENTS = [
    "A book about invalid arguments and unknown tools",
    "log: Input validation error: 'x' is a required property",
    '{"error": null, "rows": []}',
    '{"items": [{"error": "none"}]}',
    "",
    "ファイルの内容: エラーはありません",
    "-32602",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_a_call_that_its_tool_refused_was_wrong(text: str) -> None:
    state, why = first(*went_on(text))
    assert state == "wrong"
    assert text[:20] in why


@pytest.mark.parametrize("text", FAILURES)
def test_a_tool_that_failed_at_the_world_proves_nothing(text: str) -> None:
    state, why = first(*went_on(text))
    assert state == "unknown"
    assert "may not be the call's fault" in why


@pytest.mark.parametrize("text", CONTENTS)
def test_what_a_file_says_is_no_failure(text: str) -> None:
    assert first(*went_on(text))[0] == "right"
    assert first(*went_on(text, error=True))[0] != "right"


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (call("read_files", "c1", path="a"), "read_files was not offered"),
        (call("read_file", "c1", file="a"), "read_file: path is missing"),
        (call("read_file", "c1", path="a", lines="three"), "read_file: lines has the wrong type"),
        (ToolCall(name="read_file", id="c1", error="no JSON"), "the call could not be read: no JSON"),
    ],
)
def test_a_call_that_does_not_fit_what_was_offered_was_wrong_unless_its_tool_took_it(made: ToolCall, why: str) -> None:
    assert first(asked(ASK, answer=calling(made))) == ("wrong", why)
    assert first(*went_on("Error: whatever", made=made)) == ("wrong", why)
    state, said = first(*went_on("the text", made=made))
    assert (state, said) == ("unknown", f"the tool took what does not fit its schema: {why}")


def test_a_forced_or_cut_off_call_is_unknown() -> None:
    assert first(*went_on("text", tool_choice="required")) == ("unknown", "the call was forced")
    assert first(*went_on("text", finish="length")) == ("unknown", "the answer was cut off")


def test_the_same_request_with_other_calls_is_unknown() -> None:
    one, two = went_on("text")
    otherwise = asked(ASK, answer=calling(call("find_files", "c9", word="a")))
    for order in ((one, two, otherwise), (one, otherwise, two), (otherwise, one, two)):
        found = {exchange.id: outcome for exchange, outcome in outcomes(order)}
        assert found[one.id].why == "the same request was asked again and got another answer"
        assert found[otherwise.id].state == "unknown"
    again = asked(ASK, answer=calling(MADE.model_copy(update={"id": "c2"})))
    assert known(one, again, two)[0].state == "right"  # the same calls again
    assert known(one, otherwise, again, two)[0].state == "unknown"


def test_a_user_who_asks_the_same_again_was_not_served() -> None:
    one, two = went_on("text")
    more = asked(*two.messages, Message(role="assistant", text="So."), user("read A.TXT /  a.txtを読んで"), answer=None)
    assert known(one, two, more)[0].why == "the user asked for the same again"
    other = asked(*two.messages, Message(role="assistant", text="So."), user("Thanks"), answer=None)
    assert known(one, two, other)[0].state == "right"


def test_the_same_tool_again_at_once_with_other_arguments_is_unknown() -> None:
    again = calling(call("read_file", "c2", path="b.txt"))
    assert first(*went_on("text", answer=again))[1].startswith("the same tool was called again at once")
    assert first(*went_on("text", answer=calling(call("find_files", "c2", word="b"))))[0] == "right"
    assert first(*went_on("text", answer=calling(MADE.model_copy(update={"id": "c2"}))))[0] == "right"


def test_what_somebody_said_wins() -> None:
    cases = [went_on("text"), went_on("Unknown tool: x"), (asked(ASK, answer=Message(role="assistant", text="No.")),)]
    for right in (True, False):
        for one, *later in cases:
            marked = one.model_copy(update={"feedback": Feedback(exchange=one.id, right=right)})
            assert first(marked, *later) == ("right" if right else "wrong", "somebody said so")


def test_strange_schemas_are_no_fault_of_the_call() -> None:
    for parameters in ({}, {"type": "object", "properties": 3, "required": "path"}, {"$ref": "#/none"}):
        tool = READ.model_copy(update={"parameters": parameters})
        assert first(*went_on("text", tools=(tool, *TOOLS[1:])))[0] == "right"
