"""Calls out of a stream: nothing of a call leaks, nothing of a text is lost, however the stream is cut."""

from __future__ import annotations

import json
import random

import pytest

from llm_tuner.models import dialects
from llm_tuner.serving.lift import Lifter
from llm_tuner.types import Message, ToolSpec

TOOLS = (
    ToolSpec(name="read_file", parameters={"type": "object", "properties": {"path": {"type": "string"}}}),
    ToolSpec(name="write_file"),
)
CALL = '{"name": "read_file", "arguments": {"path": "a.txt"}}'
TWO = CALL + "\n" + '{"name": "write_file", "arguments": {"path": "b.txt", "text": "{\\"x\\": [1]} ``` </tool_call>"}}'

CALLS = {
    "tags": f"<tool_call>\n{CALL}\n</tool_call>",
    "tags after words": f"I will read it.\n<tool_call>\n{CALL}\n</tool_call>",
    "two in tags": f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>",
    "tags in a fence": f"```\n<tool_call>\n{CALL}\n</tool_call>\n```",
    "fence": f"```json\n{CALL}\n```",
    "fence after words": f"ファイルを読みます。\n\n```json\n{CALL}\n```\nThis reads it.",
    "fence without a language": f"```\n{CALL}\n```",
    "fence of an array": f"```json\n[\n  {CALL}\n]\n```",
    "code, then a fence": f"```python\nprint([1])\n```\nNow:\n```json\n{CALL}\n```",
    "bare": CALL,
    "bare, two": TWO,
    "bare at the tail": f"Sure, here it is: {CALL}",
    "bare array": f"[{CALL}]",
    "arguments first": '{"arguments": {"path": "a.txt"}, "name": "read_file"}',
    "function around": f'{{"type": "function", "function": {CALL}}}',
    "broken in tags": '<tool_call>\n{"name": "read_file", "arguments": {"path": \n</tool_call>',
    "unknown name in tags": '<tool_call>\n{"name": "reed", "arguments": {}}\n</tool_call>',
}
TEXTS = {
    "plain": "Nothing to do. 何もしません。",
    "angle brackets": "if a < b and <tool> is not <tool_box>, then a <",
    "code": "```python\nd = {'port': 1}\nprint(d['port'])\n```\nDone.",
    "json that is no call": '```json\n{"port": 8080, "name": "web"}\n```',
    "a list": "[1, 2, 3] is a list, and {x} a set.",
    "unknown name": '{"name": "delete_all", "arguments": {}}',
    "a definition": json.dumps({"name": "read_file", "description": "Reads.", "parameters": TOOLS[0].parameters}),
    "talk about a call": f"The call {CALL} would read it, but I will not make it.",
    "an open fence": "Look:\n```",
    "an open tag": "a <tool_ca",
    "empty": "",
    "backticks": "Use `ls` or ``x`` now.",
}


def cut(text: str, seed: int) -> list[str]:
    rng, at, out = random.Random(seed), 0, []
    while at < len(text):
        size = rng.choice((1, 1, 2, 3, 5, 8, 40))
        out.append(text[at : at + size])
        at += size
    return out


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_found_and_nothing_of_it_is_shown(name: str) -> None:
    text = CALLS[name]
    wanted = dialects.read(Message(role="assistant", text=text), TOOLS).text_calls
    assert wanted
    for seed in range(25):
        lifter = Lifter(TOOLS)
        shown = "".join(lifter.feed(piece) for piece in cut(text, seed))
        rest, calls = lifter.end()
        assert (calls, rest) == (wanted, "")
        assert text.startswith(shown)
        assert "read_file" not in shown
        assert "tool_call" not in shown


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_is_shown_whole(name: str) -> None:
    text = TEXTS[name]
    assert dialects.read(Message(role="assistant", text=text), TOOLS).text_calls == ()
    for seed in range(25):
        lifter = Lifter(TOOLS)
        shown = "".join(lifter.feed(piece) for piece in cut(text, seed))
        rest, calls = lifter.end()
        assert (shown + rest, calls) == (text, ())


def test_text_is_not_held_back_longer_than_it_must() -> None:
    lifter = Lifter(TOOLS)
    assert lifter.feed("Hello wor") == "Hello wor"
    assert lifter.feed("ld <") == "ld "
    assert lifter.feed("b> and ") == "<b> and "
    assert lifter.feed("```py") == ""
    assert lifter.feed("thon\nx = {") == "```python\nx = {"
    assert lifter.feed("1}\n```\n") == "1}\n```\n"
    assert not lifter.holding


def test_without_tools_nothing_is_held_back() -> None:
    lifter = Lifter(())
    assert lifter.feed(CALLS["tags"]) == CALLS["tags"]
    assert lifter.end() == ("", ())


def test_a_model_that_talks_on_after_its_call_may_be_stopped() -> None:
    lifter = Lifter(TOOLS)
    lifter.feed(CALLS["fence"])
    assert not lifter.whole()
    lifter.feed("\nThis will read ")
    assert not lifter.whole()
    lifter.feed("the file that you named, and then")
    assert lifter.whole()
    more = Lifter(TOOLS)
    more.feed(CALLS["tags"] + "\n<tool_call>\n{")
    assert not more.whole()


def test_random_texts_lose_nothing() -> None:
    rng = random.Random(7)
    bits = ["{", "[", "}", "]", "```", "```json\n", "\n", " ", '"name"', ": ", '"read_file"', '"arguments"', "日本"]
    bits += ["<tool_call>", "</tool_call>", "x", ",", CALL]
    for _ in range(1500):
        text = "".join(rng.choice(bits) for _ in range(rng.randrange(1, 14)))
        lifter = Lifter(TOOLS)
        shown = "".join(lifter.feed(piece) for piece in cut(text, rng.randrange(1000)))
        rest, calls = lifter.end()
        assert text.startswith(shown + rest)
        if not calls:
            assert shown + rest == text
