"""Choosing tools: both languages, any catalogue, any conversation, the same order every time."""

import json
import random
import time
from pathlib import Path

import pytest

from llm_tuner.tools.retrieval import fused, index, request, search_tool, used
from llm_tuner.types import Message, ToolCall, ToolSpec

HUB = tuple(
    ToolSpec.model_validate(tool)
    for tool in json.loads((Path(__file__).parents[2] / "examples" / "hub-8" / "tools.json").read_text("utf-8"))
)
OFFICE = tuple(
    ToolSpec(name=name, description=description)
    for name, description in {
        "calendar_create_event": "Create an event in the user's calendar.",
        "calendarListEvents": "List events of a day.",
        "sendEmail": "Sends an e-mail to a recipient.",
        "get_weather_forecast": "Forecast for a city.",
        "playMusic": "Plays a song on the speaker.",
        "deploy_container": "Deploy a container to the cluster.",
        "translate_text": "Translate text between languages.",
        "query_database": "Run a SQL query.",
    }.items()
)
JAPANESE = (
    ToolSpec(name="yotei_sakusei", description="カレンダーに新しい予定を作成します。"),
    ToolSpec(name="tenki", description="都市の天気予報を取得します。"),
    ToolSpec(name="keihi", description="経費を精算システムに登録します。"),
)


def ask(text):
    return [Message(role="user", text=text)]


def first(tools, text, k=1):
    return [tool.name for tool in index(tools).rank(ask(text))[:k]]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Put lunch with Anna on my calendar tomorrow at 12:30", "calendar_create_event"),
        ("明日の12時半にランチの予定を入れて", "calendar_create_event"),
        ("Will it rain in Osaka?", "get_weather_forecast"),
        ("大阪の明日の天気は?", "get_weather_forecast"),
        ("メールを送っておいて", "sendEmail"),
        ("Mail the report to bob@example.org", "sendEmail"),
        ("曲を再生して", "playMusic"),
        ("新しいコンテナをデプロイして", "deploy_container"),
        ("これを英語に翻訳してください", "translate_text"),
        ("データベースに問い合わせて", "query_database"),
    ],
)
def test_a_catalogue_that_nothing_was_made_for(text, name):
    assert first(OFFICE, text) == [name]


@pytest.mark.parametrize(
    ("text", "name"),
    [("経費を登録したい", "keihi"), ("予定を作って", "yotei_sakusei"), ("What is the weather like?", "tenki")],
)
def test_a_japanese_catalogue_in_either_language(text, name):
    assert first(JAPANESE, text) == [name]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("switch repos/blog to branch dev", "git_checkout"),
        ("ステージした変更を取り消して", "git_reset"),
        ("Fork acme/parser into my account", "fork_repository"),
        ("acme/parser の PR #12 をマージして", "merge_pull_request"),
        ("What time is it in Lima?", "get_current_time"),
        ("https://example.org/ を読んで", "fetch"),
    ],
)
def test_the_reference_hub(text, name):
    assert name in first(HUB, text, 5)


def test_each_of_several_things_asked_for_counts():
    found = first(HUB, "What time is it in Lima? Also fork acme/parser. そしてページ https://a.example/ を開いて。", 8)
    assert {"get_current_time", "fork_repository", "fetch"} <= set(found)


def test_what_stands_in_quotation_marks_is_data():
    text = 'Post to #general: "please delete the branch, merge the pull request and search the repository"'
    assert first(HUB, text) == ["slack_post_message"]


def test_what_was_said_before_counts_a_little():
    history = [*ask("Show the weather in Osaka"), Message(role="assistant", text="Sunny."), *ask("And in Kobe?")]
    assert index(OFFICE).rank(history)[0].name == "get_weather_forecast"
    assert index(OFFICE).rank([*history[:2], *ask("Play a song")])[0].name == "playMusic"


def test_all_tools_are_ranked_and_what_nothing_speaks_for_keeps_its_order():
    assert index(OFFICE).rank(ask("???")) == OFFICE
    assert index(OFFICE).rank([]) == OFFICE
    ranked = index(OFFICE).rank(ask("Play a song"))
    assert sorted(t.name for t in ranked) == sorted(t.name for t in OFFICE)
    silent = [tool for tool, score in zip(OFFICE, index(OFFICE).scores(ask("Play a song")), strict=True) if not score]
    assert list(ranked[-len(silent) :]) == silent


def test_a_dense_scorer_is_fused_with_the_words():
    def dense(text, tools):
        assert text == "Play a song"
        return [float(tool.name == "query_database") for tool in tools]

    assert [t.name for t in index(OFFICE).rank(ask("Play a song"), dense)[:2]] == ["playMusic", "query_database"]
    assert fused([[0, 1, 2], [2, 0, 1]]) == [0, 2, 1]
    assert fused([[1, 0]]) == [1, 0]
    assert fused([]) == []


def test_a_search_finds_only_what_says_something_and_the_search_tool_has_a_free_name():
    found = index(HUB)
    assert found.search("merge a pull request", 3)[0].name == "merge_pull_request"
    assert "search_files" in [tool.name for tool in found.search("ファイルを探す", 8)]
    assert found.search("zzz") == ()
    assert search_tool().name == "search_tools"
    assert search_tool(["search_tools", "search_tools_2"]).name == "search_tools_3"
    assert search_tool().parameters["required"] == ["query"]


def test_tools_of_the_conversation():
    calls = (ToolCall(name="a"), ToolCall(name="b"), ToolCall(name="", error="broken"))
    messages = [
        *ask("x"), Message(role="assistant", tool_calls=calls), Message(role="tool"),
        Message(role="assistant", text_calls=(ToolCall(name="c"), ToolCall(name="a"))), *ask("y"),
    ]  # fmt: skip
    assert used(messages) == ("a", "b", "c")
    assert request(messages) == "y"
    assert (used([]), request([])) == ((), "")


def test_bad_catalogues_are_ranked_all_the_same():
    endless = {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"items": {"$ref": "#"}}}}
    deep = {"type": "string"}
    for _ in range(400):
        deep = {"type": "object", "properties": {"x": deep}}
    odd = {"properties": [1, {"a": None}], "enum": 3, "items": [[[]]], "description": 7, "anyOf": "x"}
    huge = {"properties": {f"p{n}": {"description": "word " * 2000, "enum": ["v"] * 1000} for n in range(2000)}}
    tools = [
        ToolSpec(name="same"), ToolSpec(name="same", description="Plays a song."), ToolSpec(name=""),
        *(ToolSpec(name=f"t{n}", parameters=schema) for n, schema in enumerate((endless, deep, odd, huge, {}))),
        ToolSpec(name="long", description="\u0000\ud7ff" + "すもも" * 30_000), ToolSpec(name="emoji", description="🙂"),
    ]  # fmt: skip
    began = time.perf_counter()
    ranked = index(tools).rank(ask("play a song " + "x" * 1_000_000 + " 「" * 5000))
    assert time.perf_counter() - began < 10
    assert ranked[0].description == "Plays a song."
    assert len(ranked) == len(tools)
    assert index([]).rank(ask("hi")) == ()


def test_200_tools_are_ranked_quickly_and_the_same_every_time():
    rng = random.Random(2)
    tools = [t.model_copy(update={"name": f"{t.name}_{n}"}) for n in range(3) for t in HUB][:200]
    found = index(tools)
    words = ["open", "the", "last", "commits", "branch", "履歴を見せて", "ブランチを切り替えて", "#12", "a/b.md"]
    texts = [" ".join(rng.choices(words, k=12)) for _ in range(50)]
    times = []
    for text in texts:
        began = time.perf_counter()
        ranked = found.rank(ask(text))
        times.append(time.perf_counter() - began)
        assert len(ranked) == 200
        assert ranked == found.rank(ask(text))
    assert ranked == index(tools).rank(ask(text))
    assert sorted(times)[len(times) // 2] < 0.05  # 4 ms on an idle machine
