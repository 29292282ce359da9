"""Tasks: determined by their request, two sides that share nothing, every value fits the schema."""

from collections import Counter
from string import Formatter

import jsonschema
import pytest
from pydantic import ValidationError

from llm_tuner.data.paraphrases import MORE_OUT_OF_REACH, MORE_SMALL_TALK
from llm_tuner.data.synthesize import Mix, synthesize, synthesize_unseen
from llm_tuner.data.wording import OUT_OF_REACH, SMALL_TALK, WORDINGS, side_of
from llm_tuner.types import DataError, NoCall, ToolSpec


def spec(name, properties=None, required=None, description=""):
    schema = {"type": "object", "properties": properties or {}, "required": required or []}
    return ToolSpec(name=name, description=description, parameters=schema, server="s")


TEXT, INTEGER = {"type": "string"}, {"type": "integer"}
HUB = (
    spec("git_status", {"repo_path": TEXT}, ["repo_path"]),
    spec("git_commit", {"repo_path": TEXT, "message": TEXT}, ["repo_path", "message"]),
    spec("git_show", {"repo_path": TEXT, "revision": TEXT}, ["repo_path", "revision"]),
    spec("get_current_time", {"timezone": TEXT}, ["timezone"]),
    spec("fetch", {"url": TEXT, "max_length": INTEGER, "raw": {"type": "boolean"}}, ["url"]),
    spec("list_tables"),
    spec("read_query", {"query": TEXT}, ["query"]),
)
MIX = Mix(tasks=120, catalogues=6, sizes=(2, 4), unseen=("git_show",))


def test_both_sides_share_no_request_and_no_unseen_tool_is_trained():
    train = synthesize(HUB, MIX, "train", pages="http://127.0.0.1:1")
    held_out = synthesize(HUB, MIX, "held-out", pages="http://127.0.0.1:1")
    assert {t.request for t in train}.isdisjoint({t.request for t in held_out})
    assert {t.side for t in train} == {"train"}
    assert {t.side for t in held_out} == {"held-out"}
    assert not any(tool.name == "git_show" for t in train for tool in t.tools)
    unseen = synthesize_unseen(HUB, MIX.model_copy(update={"tasks": 10}))
    assert {c.name for t in unseen for c in t.expect.calls} == {"git_show"}


def test_every_call_is_offered_fits_its_schema_and_is_said_in_the_request():
    for task in synthesize(HUB, MIX, "train", pages="http://127.0.0.1:1"):
        if isinstance(task.expect, NoCall):
            assert task.expect.reply
            continue
        offered = {tool.name: tool for tool in task.tools}
        for call in task.expect.calls:
            jsonschema.validate(call.arguments, offered[call.name].parameters)
            for name, value in call.arguments.items():
                if name not in ("timezone", "raw"):
                    assert str(value) in task.request


def test_a_tool_that_is_absent_is_never_expected_and_no_call_really_has_no_tool():
    tasks = synthesize(HUB, MIX.model_copy(update={"tasks": 300}), "train")
    kinds = {task.category for task in tasks}
    assert kinds == {"single", "several", "no_call"}
    for task in tasks:
        names = {tool.name for tool in task.tools}
        if isinstance(task.expect, NoCall) and "git status" in task.request:
            assert "git_status" not in names


def test_languages_are_balanced_and_the_same_arguments_make_the_same_tasks():
    first = synthesize(HUB, MIX, "train")
    assert first == synthesize(HUB, MIX, "train")
    assert first != synthesize(HUB, MIX.model_copy(update={"seed": 1}), "train")
    languages = [task.language for task in first]
    assert abs(languages.count("en") - languages.count("ja")) <= 6


def test_any_tool_gets_a_request_from_its_schema():
    odd = spec(
        "book_room",
        {
            "room": {"enum": ["red", "blue"]},
            "hours": {"type": "integer", "minimum": 2, "maximum": 3},
            "who": {"type": "array", "items": TEXT, "minItems": 1},
            "note": {"anyOf": [TEXT, {"type": "null"}]},
            "extra": {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]},
        },
        ["room", "hours", "who", "note", "extra"],
        "Books a room.\nMore text.",
    )
    mix = Mix(tasks=8, catalogues=1, sizes=(1, 1), no_call=0, several=0)
    for task in synthesize([odd], mix, "train"):
        (call,) = task.expect.calls
        jsonschema.validate(call.arguments, odd.parameters)
        assert "Books a room" in task.request


def test_sides_share_no_request_for_tools_without_a_wording():
    """Also for a tool without arguments, whose request has nothing but words."""
    level = {"type": "integer", "minimum": 0, "maximum": 0}
    hub = [
        spec("stop_all", description="Stops everything."),
        spec("set_level", {"level": level}, ["level"], "Sets the level."),
        spec("rename", {"old": TEXT, "new": TEXT}, ["old", "new"], "Renames a thing."),
    ]
    mix = Mix(tasks=12, catalogues=2, sizes=(2, 3), no_call=0, several=0)
    sides = [synthesize(hub, mix, side) for side in ("train", "held-out")]
    requests = [{t.request for t in side} for side in sides]
    assert requests[0].isdisjoint(requests[1])
    calls = [[c for t in side for c in t.expect.calls if c.name == "rename"] for side in sides]
    values = [{v for c in found for v in c.arguments.values()} for found in calls]
    assert values[0].isdisjoint(values[1])


@pytest.mark.parametrize(
    "wrong",
    [
        {"sizes": (7, 3)},
        {"sizes": (0, 0)},
        {"languages": ()},
        {"languages": ("fr",)},
        {"several": 0.6, "no_call": 0.6},
    ],
)
def test_an_impossible_mix_is_refused(wrong):
    with pytest.raises(ValidationError):
        Mix(**wrong)


def test_too_few_distinct_requests_is_an_error_that_says_what_to_do():
    mix = Mix(tasks=500, catalogues=1, sizes=(1, 1), no_call=0, several=0)
    with pytest.raises(DataError, match="Ask for fewer tasks"):
        synthesize([spec("list_tables")], mix, "train")
    with pytest.raises(DataError, match="No tools to make tasks from"):
        synthesize([], mix, "train")


@pytest.mark.parametrize("name", sorted(WORDINGS))
def test_every_wording_names_each_of_its_values_in_every_template(name):
    for wording in WORDINGS[name]:
        assert len(wording.en) >= 3
        assert len(wording.ja) >= 3
        for template in (*wording.en, *wording.ja):
            for value in wording.values:
                assert f"{{{value}}}" in template
        for language in ("en", "ja"):
            sides = (set(wording.templates(language, side)) for side in ("train", "held-out"))
            assert set.intersection(*sides) == set()


def test_pools_split_by_every_fourth_value():
    assert side_of("abcdefgh", "held-out") == ["d", "h"]
    assert side_of("abcdefgh", "train") == list("abcefg")


@pytest.mark.parametrize("tool", WORDINGS)
def test_paraphrases_say_every_value_and_repeat_no_held_out_sentence(tool):
    for wording in WORDINGS[tool]:
        for language, more in zip(("en", "ja"), wording.more, strict=True):
            assert len(more) >= 2
            held_out = wording.templates(language, "held-out")
            assert not set(wording.templates(language, "train")) & set(held_out)
            for template in more:
                assert {name for _, name, _, _ in Formatter().parse(template) if name} == set(wording.values)


@pytest.mark.parametrize("language", ["en", "ja"])
def test_more_of_what_no_tool_fits_is_for_training_only(language):
    held_out = {text for text, _ in side_of(SMALL_TALK[language], "held-out")}
    held_out |= set(side_of(OUT_OF_REACH[language], "held-out"))
    more = {*dict(MORE_SMALL_TALK[language]), *MORE_OUT_OF_REACH[language]}
    assert not held_out & more
    mix = Mix(tasks=48, catalogues=2, several=0, no_call=1, languages=(language,))
    assert {task.request for task in synthesize(HUB, mix, "train")} & more
    assert not {task.request for task in synthesize(HUB, mix.model_copy(update={"tasks": 8}), "held-out")} & more


def test_the_shares_are_exact():
    mix = Mix(tasks=40, catalogues=2, several=0.15, no_call=0.25)
    found = Counter(task.category for task in synthesize(HUB, mix, "train"))
    assert found == {"single": 24, "several": 6, "no_call": 10}
