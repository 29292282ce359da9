"""Every format, on a small file in exactly that form: what becomes an example, what is refused and why."""

from __future__ import annotations

from collections import Counter

import pytest
from rows import FORMATS, examples, imported, rejections

from llm_tuner.data.importers import IMPORTERS, named, read_row, recognise
from llm_tuner.data.importers.toolace import calls
from llm_tuner.data.importers.xlam import schema
from llm_tuner.data.licences import DECLARED, is_noncommercial
from llm_tuner.data.reading import rows
from llm_tuner.types import DataError, NoCall, SetupError

TABLE = [
    # file, format, kinds of examples, reasons of rejections
    ("openai_log.jsonl", "openai", "answer several single", "cut_off no_answer wrong_value"),
    ("openai_finetune.jsonl", "openai", "answer single single single single", "broken_call no_tools"),
    ("ollama_log.jsonl", "ollama", "answer single single", "cut_off"),
    ("glaive.json", "glaive", "answer answer no_call single single single", "broken_call no_tools"),
    ("xlam.json", "xlam", "several single single", "broken_call wrong_type"),
    ("toolace.json", "toolace", "answer answer no_call several single", "broken_call unknown_tool"),
    ("hermes.json", "hermes", "answer no_call several", "broken_call wrong_value"),
    ("when2call_sft.jsonl", "when2call", "no_call no_call single", "broken_call"),
    ("when2call_pref.jsonl", "when2call", "no_call single", ""),
    ("toucan.jsonl", "toucan", "answer no_call sequence single", "broken_message"),
    ("toucan_sft.jsonl", "toucan", "answer several", ""),
    ("trl.jsonl", "trl", "answer no_call single single", ""),
]


@pytest.mark.parametrize(("file", "format", "kinds", "reasons"), TABLE, ids=[row[0] for row in TABLE])
def test_a_format(file: str, format: str, kinds: str, reasons: str) -> None:
    items = imported(file)
    found = examples(items)
    assert sorted(e.task.category for e in found) == kinds.split()
    assert sorted(r.reason for r in rejections(items)) == reasons.split()
    importer = named(format)
    for example in found:
        task = example.task
        assert task.source == importer.SOURCE
        assert task.licence == (DECLARED.get(importer.SOURCE) or "mine")
        assert task.tags["row"].startswith(file + ":")
        assert example.attempt.task_id == task.id
        assert example.attempt.verdict is not None
        assert example.attempt.verdict.ok
    for rejection in rejections(items):
        assert rejection.source.startswith(file + ":")
        assert rejection.detail


@pytest.mark.parametrize(("file", "format"), [row[:2] for row in TABLE], ids=[row[0] for row in TABLE])
def test_a_format_is_recognised_by_its_rows(file: str, format: str) -> None:
    first = [row.value for row in rows(FORMATS / file)]
    assert format == recognise(first, file).NAME
    others = Counter(i.NAME for i in IMPORTERS for row in first if i.recognises(row) and format != i.NAME)
    assert others.keys() <= {"trl", "openai"}  # the two that share a form where nothing is called


def test_a_format_is_what_reads_the_most_rows_and_not_what_reads_the_first() -> None:
    quiet = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": []}
    function = {"name": "f", "arguments": {"a": 1}}
    calling = {**quiet, "messages": [{"role": "assistant", "tool_calls": [{"function": function}]}]}
    assert recognise([quiet, quiet, quiet], "x").NAME == "openai"
    assert recognise([quiet, quiet, calling], "x").NAME == "trl"


def expected(file: str) -> list[list[tuple[str, dict[str, object]]]]:
    return [[(c.name, c.arguments) for c in getattr(e.task.expect, "calls", ())] for e in examples(imported(file))]


def test_what_is_called() -> None:
    assert expected("glaive.json")[4] == [("search_movies", {"title": "Schindler's List", "year": 1993})]
    assert expected("toolace.json")[2] == [
        ("calc_add", {"values": [1.5, 2], "exact": True, "options": {"rounding": "up, always (x)"}}),
        ("Market_Trends_API", {"trend_type": "LOSERS", "country": "jp", "limit": 10}),
    ]
    assert expected("hermes.json")[0][1] == ("list_all_cameras", {"include_offline": True})
    assert expected("openai_log.jsonl")[2] == [("set_alarm", {"time": "06:30"}), ("get_weather", {"city": "東京"})]
    assert expected("toucan_sft.jsonl")[0] == [
        ("okx-mcp-get_price", {"instrument": "ETH-USDT"}),
        ("okx-mcp-get_price", {"instrument": "SOL-USDT"}),
    ]


def test_what_is_said_before_and_answered() -> None:
    ask, after = examples(imported("toucan_sft.jsonl"))
    assert [m.role for m in ask.task.messages] == ["user"]  # the system message only declared the tools
    assert ask.answer.text == "I'll look both up."
    assert [r.content for r in ask.attempt.results] == ["3000", "150"]
    assert [(m.result.call_id, m.result.content) for m in after.task.messages if m.result] == [
        ("call_1", "3000"),
        ("call_2", "150"),
    ]
    hermes = examples(imported("hermes.json"))
    assert hermes[2].task.expect == NoCall(reply="What is the id of the garage camera?")  # without the scratch pad
    logged = examples(imported("openai_log.jsonl"))
    assert [e.task.language for e in logged] == ["en", "en", "ja"]
    assert examples(imported("toolace.json"))[4].task.language == "zh"


def test_of_a_log_only_the_answer_is_learned_and_weight_0_is_not() -> None:
    assert len(examples(imported("ollama_log.jsonl"))) == 3  # four lines, one cut off; no turn twice
    requests = [e.task.request for e in examples(imported("openai_finetune.jsonl"))]
    assert "Which alarms do I have?" not in requests
    assert "Then set one for noon" in requests


def test_of_a_preference_the_chosen_answer_is_taken() -> None:
    chosen, declined = examples(imported("when2call_pref.jsonl"))
    assert chosen.answer.tool_calls[0].name == "word_count"
    assert declined.task.expect == NoCall(reply="I have no tool for translation.")


def test_benchmarks_are_refused_as_files_and_as_rows() -> None:
    for file, words in (("bfcl.jsonl", "BFCL"), ("when2call_test.jsonl", "When2Call")):
        bad = [row.value for row in rows(FORMATS / file)]
        with pytest.raises(DataError, match=words):
            recognise(bad, file)
        (refused,) = read_row(named("openai"), bad[0], "x:1")
        assert (refused.stage, refused.reason) == ("overlap", "benchmark")


def test_another_format_is_said_with_what_was_found() -> None:
    with pytest.raises(DataError, match=r"no known format \(found: prompt, text\)"):
        recognise([{"prompt": "a", "text": "b"}], "other.jsonl")
    with pytest.raises(SetupError, match="toolace"):
        named("sharegpt")
    (refused,) = read_row(named("xlam"), {"prompt": "a"}, "other.jsonl:7")
    assert (refused.reason, refused.source) == ("another_format", "other.jsonl:7")


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("str, optional", {"type": "string"}),
        ("List[int]", {"type": "array", "items": {"type": "integer"}}),
        ("List[List[float]], optional", {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}),
        ("Dict[str, Any]", {"type": "object"}),
        ("Tuple[float, float]", {"type": "array"}),
        ("Union[int, float]", {"anyOf": [{"type": "integer"}, {"type": "number"}]}),
        ("Optional[str]", {"anyOf": [{"type": "string"}, {"type": "null"}]}),
        ("Callable[[float], float]", {}),
        ("set", {"type": "array"}),
        ("", {}),
    ],
)
def test_python_types_of_xlam(kind: str, wanted: dict[str, object]) -> None:
    assert schema(kind) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[f()]", [("f", {})]),
        ("[f(a='it\\'s', b=[1, {'c': None}]), g.h(x=-1.5e3)]", [("f", {"a": "it's", "b": [1, {"c": None}]}), ("g_h", {"x": -1500.0})]),
        ('[f(a="x=1, y=(2)", from="here", $filter=true)]', [("f", {"a": "x=1, y=(2)", "from": "here", "$filter": True})]),
        ("[1, 2, 3]", []),
        ("[Note: nothing to call]", []),
    ],
)  # fmt: skip
def test_calls_of_toolace(text: str, wanted: list[tuple[str, dict[str, object]]]) -> None:
    assert [(c.name, c.arguments) for c in calls(text)] == wanted


@pytest.mark.parametrize(
    ("licence", "forbidden"),
    [("CC-BY-NC-4.0", True), ("cc-by-nc-sa-3.0", True), ("qwen-research", True), ("CC-BY-4.0", False), ("ncsa", False)],
)
def test_which_licences_forbid_commercial_use(licence: str, forbidden: bool) -> None:
    assert is_noncommercial(licence) is forbidden
