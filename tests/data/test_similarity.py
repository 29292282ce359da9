"""Alike is what a reader would call alike, in both scripts, and the same in every process."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from contextlib import closing

import pytest
from rows import MAIL, asked, call, made

from llm_tuner.data.duplicates import drop_duplicates
from llm_tuner.data.examples import Stage, piped
from llm_tuner.data.overlap import Reference, References, drop_overlaps
from llm_tuner.data.rejections import Rejection
from llm_tuner.data.similarity import NEAR, likeness, normal, shingles, signature
from llm_tuner.types import Message, ToolCall, ToolResult

LONG = "please show me every invoice of the customer Aster that was sent in March and is not yet paid"
LONG_JA = "先月に送られてまだ支払われていない請求書を取引先ごとにまとめて表にして見せてください"


def alike(a: str, b: str) -> float:
    return likeness(signature(normal(a)), signature(normal(b)))


def jaccard(a: str, b: str) -> float:
    first, second = set(shingles(normal(a)).tolist()), set(shingles(normal(b)).tolist())
    return len(first & second) / len(first | second)


@pytest.mark.parametrize(
    ("a", "b", "near"),
    [
        (LONG, LONG.upper() + "!!", True),
        (LONG, LONG.replace("every invoice", "every  invoice,"), True),
        (LONG, LONG.replace("March", "Marz"), True),
        (LONG, "Please show the weather of every city in March", False),
        (LONG_JA, LONG_JA + "ね", True),
        (LONG_JA, "来週の東京の天気を時間ごとに表にして見せてください", False),
        ("ｱﾗｰﾑを６時に", "アラームを6時に", True),  # width does not count
        ("", "!!", True),
    ],
)
def test_what_is_nearly_the_same(a: str, b: str, near: bool) -> None:
    assert (alike(a, b) >= NEAR) is near


def test_the_signature_estimates_the_likeness() -> None:
    words = [f"word{n}" for n in range(60)]
    for kept in (58, 50, 40, 20):
        a, b = " ".join(words), " ".join(words[:kept] + [f"other{n}" for n in range(60 - kept)])
        assert alike(a, b) == pytest.approx(jaccard(a, b), abs=0.2)


def test_the_same_in_every_process() -> None:
    code = f"from llm_tuner.data.similarity import *; print(signature(normal({LONG!r})).tolist())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert other.stdout.strip() == str(signature(normal(LONG)).tolist())


# ---------------------------------------------------------------------------------------------------------- duplicates


def reasons(*examples: object, catalogues: bool = False) -> list[str]:
    with closing(sqlite3.connect(":memory:")) as database:
        return _reasons(drop_duplicates(database, catalogues=catalogues), examples)


def _reasons(stage: Stage, examples: Iterable[object]) -> list[str]:
    return [item.reason if isinstance(item, Rejection) else "" for item in piped(examples, stage)]  # type: ignore[arg-type]


MAIL_TO = call("send_mail", to="a@example.com")


def test_the_same_calls_and_nearly_the_same_request_are_a_duplicate() -> None:
    found = reasons(
        asked(LONG, MAIL_TO), asked(LONG + "!", MAIL_TO), asked(LONG.replace("sent", "send"), MAIL_TO)
    )  # fmt: skip
    assert found == ["", "same", "nearly_same"]


def test_other_calls_for_nearly_the_same_request_are_contrast() -> None:
    timer = [f"Set the kitchen timer of the small oven to {n} minutes, please" for n in (5, 15)]
    assert alike(*timer) >= 0.7
    assert reasons(*(asked(text, call("send_mail", to="x", copies=n)) for n, text in enumerate(timer))) == ["", ""]
    assert reasons(asked(LONG, MAIL_TO), asked(LONG, reply="I cannot do that.")) == ["", ""]


def test_the_order_of_calls_and_keys_does_not_count() -> None:
    other = call("fetch", url="http://example.com")
    swapped = ToolCall(name="send_mail", arguments={"text": "x", "to": "y"})
    plain = ToolCall(name="send_mail", arguments={"to": "y", "text": "x"})
    assert reasons(asked(LONG, other, plain), asked(LONG, swapped, other)) == ["", "same"]


def test_the_conversation_counts_and_not_only_its_last_word() -> None:
    def talk(result: str) -> object:
        before = (
            Message(role="user", text="Look it up"),
            Message(role="assistant", tool_calls=(ToolCall(name="fetch", arguments={"url": "u"}, id="call_1"),)),
            Message(role="tool", result=ToolResult(call_id="call_1", content=result)),
            Message(role="user", text="yes"),
        )
        return made(*before, answer=Message(role="assistant", text="fine"))

    assert reasons(talk("the sky is blue today"), talk("nothing was found at all"), talk("the sky is blue today")) == [
        "", "", "same",
    ]  # fmt: skip


def test_catalogues_count_where_they_are_said_to() -> None:
    many, one = asked(LONG, MAIL_TO), asked(LONG, MAIL_TO, tools=(MAIL,))
    assert reasons(many, one) == ["", "same"]
    assert reasons(many, one, many, catalogues=True) == ["", "", "same"]


# ------------------------------------------------------------------------------------------------------------ overlaps


def overlap(text: str, *references: str) -> str:
    known = References()
    for number, reference in enumerate(references):
        known.add(Reference(f"bench_{number}", reference))
    (item,) = piped([asked(text, MAIL_TO)], drop_overlaps(known, "bench"))
    if not isinstance(item, Rejection):
        return ""
    assert (item.stage, item.reason) == ("overlap", "bench")
    return item.detail


TRIANGLE = "Find the area of a triangle with a base of 10 units and a height of 5 units."


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TRIANGLE, "the same request as bench_1"),
        (TRIANGLE.replace("a height", "height"), "the same request as bench_1"),
        (
            "I sit in class. " + TRIANGLE + " And then draw it in my notebook with a red pen, and post it.",
            "13 words in a row",
        ),
        ("Find the area of a circle with a radius of 4", ""),
        ("明日の大阪の天気を教えていただけますでしょうか", ""),  # a phrase of politeness is no leak
        (
            "ついでに、京都で来週の火曜日に空いている静かな宿を三つ探してほしいです。それから大阪行きの電車の時刻も調べて、両方を表にまとめて母に送ってね",
            "13 words in a row",
        ),
    ],
)
def test_overlaps(text: str, says: str) -> None:
    japanese = "京都で来週の火曜日に空いている静かな宿を三つ探してほしいです"
    polite = "近くの映画館で上映中の作品を教えていただけますでしょうか"
    found = overlap(text, "What is the weather?", TRIANGLE, japanese, polite)
    assert says in found
    assert bool(found) is bool(says)


def test_a_short_follow_up_is_nobodys() -> None:
    known = References()
    known.add(Reference("b", "yes, please"))
    talk = (
        Message(role="user", text="Order the blue lamp of the second page"),
        Message(role="assistant", text="Shall I?"),
        Message(role="user", text="Yes, please!"),
    )
    (item,) = piped([made(*talk, answer=Message(role="assistant", text="done"))], drop_overlaps(known, "b"))
    assert not isinstance(item, Rejection)
    (item,) = piped([asked("Yes please", MAIL_TO)], drop_overlaps(known, "b"))
    assert isinstance(item, Rejection)
