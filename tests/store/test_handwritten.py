"""A suite that a person writes: short forms, shared tools, conversations, and slips named with their line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_tuner.models import openai_wire
from llm_tuner.scoring import gold_attempt, score
from llm_tuner.store.suite import Suite, load, save
from llm_tuner.types import (
    GREEDY,
    AllowedCall,
    AllowedCalls,
    Attempt,
    DataError,
    ExactCalls,
    Message,
    NoCall,
    ToolCall,
)

CLOCK = {
    "name": "clock",
    "description": "The time in a zone.",
    "parameters": {
        "type": "object",
        "properties": {"zone": {"type": "string"}, "form": {"type": "string"}, "more": {"type": "object"}},
        "required": ["zone"],
    },
}
OPENAI = {"type": "function", "function": {**CLOCK, "name": "openai_clock"}}
MCP = {"name": "mcp_clock", "description": "", "inputSchema": CLOCK["parameters"]}
HEADER = {"suite": "mine", "tools": [CLOCK, OPENAI, MCP]}


def written(folder: Path, *lines: Any) -> Suite:
    path = folder / "mine.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n", encoding="utf-8")
    return load(path)


def test_a_request_and_its_calls_are_enough(tmp_path: Path) -> None:
    suite = written(
        tmp_path,
        HEADER,
        {
            "id": "a",
            "request": "What time is it in Tokyo?",
            "expect": [{"name": "clock", "arguments": {"zone": "JST"}}],
        },
        {"request": "Hello", "expect": None, "system": "Be brief."},
        {"request": "Good morning", "expect": "none", "tools": ["mcp_clock"]},
        {
            "request": "Bye",
            "expect": {"name": "clock", "arguments": {"zone": "UTC"}},
            "tools": [CLOCK],
            "language": "en",
        },
    )
    asked, greeted, named, own = suite.tasks
    assert suite.name == "mine"
    assert asked.request == "What time is it in Tokyo?"
    assert asked.expect == ExactCalls(calls=(ToolCall(name="clock", arguments={"zone": "JST"}),))
    assert asked.tags == {"id": "a"}
    assert [tool.name for tool in asked.tools] == ["clock", "openai_clock", "mcp_clock"]
    assert all(tool.parameters == CLOCK["parameters"] for tool in asked.tools)
    assert greeted.expect == NoCall()
    assert [message.role for message in greeted.messages] == ["system", "user"]
    assert [tool.name for tool in named.tools] == ["mcp_clock"]
    assert (own.language, [tool.name for tool in own.tools]) == ("en", ["clock"])


def test_allowed_values(tmp_path: Path) -> None:
    call = {
        "name": "clock",
        "arguments": {"more": {"a": [1]}},
        "allowed": {"zone": ["JST", "Asia/Tokyo"], "form": ["", "24h"]},
    }
    (task,) = written(tmp_path, HEADER, {"request": "Time?", "expect": [call, call], "ordered": True}).tasks
    wanted = AllowedCall(
        name="clock", arguments={"more": [{"a": [[1]]}], "zone": ["JST", "Asia/Tokyo"], "form": ["", "24h"]}
    )
    assert task.expect == AllowedCalls(calls=(wanted, wanted), ordered=True)

    def verdict(**arguments: Any) -> bool:
        made = ToolCall(name="clock", arguments=arguments)
        answer = Message(role="assistant", tool_calls=(made, made))
        return score(task, Attempt(task_id=task.id, backend="b", messages=(answer,))).ok

    assert verdict(zone="Asia/Tokyo", more={"a": [1]})
    assert verdict(zone="JST", more={"a": [1]}, form="24h")
    assert not verdict(zone="JST", more={"a": 1})
    assert not verdict(zone="UTC", more={"a": [1]})
    assert not verdict(zone="JST", more={"a": [1]}, form="12h")


def test_tools_from_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text(json.dumps([CLOCK, MCP]), encoding="utf-8")
    suite = written(tmp_path, {"suite": "s", "tools": "tools.json"}, {"request": "Hi", "expect": None})
    assert [tool.name for tool in suite.tasks[0].tools] == ["clock", "mcp_clock"]
    with pytest.raises(DataError, match=r"line 1: Cannot read .*gone\.json"):
        written(tmp_path, {"suite": "s", "tools": "gone.json"}, {"request": "Hi", "expect": None})


CONVERSATION = [
    {"role": "user", "text": "What time is it in Tokyo and in London?"},
    {
        "role": "assistant",
        "tool_calls": [
            {"name": "clock", "arguments": {"zone": "JST"}},
            {"name": "clock", "arguments": {"zone": "GMT"}},
        ],
    },
    {"role": "tool", "text": "09:00"},
    {"role": "tool", "text": "00:00"},
    {"role": "assistant", "text": "09:00 and 00:00."},
    {"role": "user", "text": "And in UTC?"},
]


def test_a_conversation_with_recorded_results_reaches_the_model_whole(tmp_path: Path) -> None:
    expect = [{"name": "clock", "arguments": {"zone": "UTC"}}]
    (task,) = written(tmp_path, HEADER, {"messages": CONVERSATION, "expect": expect}).tasks
    assert task.request == "And in UTC?"
    sent = openai_wire.request(task.messages, task.tools, GREEDY)["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool", "tool", "assistant", "user"]
    assert [call["id"] for call in sent[1]["tool_calls"]] == ["call_1", "call_2"]
    assert [(m["tool_call_id"], m["content"]) for m in sent[2:4]] == [("call_1", "09:00"), ("call_2", "00:00")]
    assert score(task, gold_attempt(task)).ok
    assert not score(task, Attempt(task_id=task.id, backend="b", messages=(Message(role="assistant"),))).ok


def test_a_task_may_end_with_a_result_and_name_its_call(tmp_path: Path) -> None:
    calls = [{"name": "clock", "arguments": {"zone": zone}, "id": zone} for zone in ("JST", "GMT")]
    result = {"call_id": "GMT", "content": "failed", "is_error": True}
    messages = [
        {"role": "user", "text": "?"},
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "result": result},
    ]
    (task,) = written(tmp_path, HEADER, {"messages": messages, "expect": None}).tasks
    assert task.messages[-1].result is not None
    assert task.messages[-1].result.call_id == "GMT"


def test_what_was_written_by_hand_can_be_saved_and_read_back(tmp_path: Path) -> None:
    suite = written(tmp_path, HEADER, {"messages": CONVERSATION, "expect": None}, {"request": "Hi", "expect": None})
    save(suite, tmp_path / "saved.jsonl")
    assert load(tmp_path / "saved.jsonl") == suite


GOOD = {"id": "a", "request": "Hi", "expect": None}


def asks(call: Any, **words: Any) -> dict[str, Any]:
    return {"request": "Time?", "expect": call, **words}


SLIPS: list[tuple[dict[str, Any], str]] = [
    (asks([{"name": "clok"}]), r'line 3: expect: the tool "clok" is not offered \(offered: clock, openai_clock'),
    (asks([{"name": "clock", "arguments": {"zon": "JST"}}]), 'line 3: expect: "clock" has no argument "zon"'),
    (asks([{"name": "clock", "arguments": {}}]), 'line 3: expect: "clock" requires the argument "zone"'),
    (asks([{"nam": "clock"}]), 'line 3: expect: every call needs a "name"'),
    (asks([{"name": "clock", "argument": {}}]), "line 3: expect.exact.calls.0.argument: Extra inputs"),
    (
        asks([{"name": "clock", "arguments": {"zone": "a"}, "allowed": {"zone": ["b"]}}]),
        'line 3: expect: "zone" stands',
    ),
    (asks("maybe"), "line 3: expect"),
    (asks(None, messages=[]), 'line 3: "request" and "messages"'),
    (asks(None, tools=["gone"]), """line 3: tools: "gone" is not in the file's catalogue"""),
    (asks(None, tools=[CLOCK, CLOCK]), 'line 3: the tool "clock" is offered twice'),
    (asks(None, tools=[{"description": "no name"}]), "line 3: name: Field required"),
    ({"request": "Time?"}, "line 3: expect: Field required"),
    ({"request": 5, "expect": None}, "line 3: messages.0.text"),
    ({"request": "Hello", "expect": None, "id": "a"}, 'line 3: the id "a" stands in line 2 already'),
    ({"request": "Hi", "expect": None, "id": "b"}, "line 3: the same task stands in line 2 already"),
    ({"messages": CONVERSATION[:2], "expect": None}, "line 3: the messages must end"),
    ({"messages": [CONVERSATION[0], CONVERSATION[2]], "expect": None}, "line 3: a tool's result .* answers no call"),
]


@pytest.mark.parametrize(("line", "says"), SLIPS)
def test_slips_are_named_with_their_line(tmp_path: Path, line: dict[str, Any], says: str) -> None:
    # The id is a tag, so the same request under another id is another task only to the eye.
    with pytest.raises(DataError, match=says):
        written(tmp_path, HEADER, GOOD, line)


def test_a_saved_suite_is_taken_as_it_is(tmp_path: Path) -> None:
    suite = written(tmp_path, HEADER, GOOD)
    twice = Suite(name="s", tasks=suite.tasks * 2)
    save(twice, tmp_path / "twice.jsonl")
    assert load(tmp_path / "twice.jsonl") == twice


def test_the_example_file_is_a_suite() -> None:
    folder = Path(__file__).parents[2] / "examples" / "suite"
    suite = load(folder / "kitchen.jsonl")
    assert all(score(task, gold_attempt(task)).ok for task in suite.tasks)
    assert {type(task.expect) for task in suite.tasks} == {ExactCalls, AllowedCalls, NoCall}
    assert any(message.role == "tool" for task in suite.tasks for message in task.messages)
