"""The wordings are complete: every tool of the reference hub, both languages, words of the two sides apart."""

import pytest

from llm_tuner.data.values import draw, tables
from llm_tuner.data.wordings import fill, holes, phrases, recipes, servers, sided, wording_of, wordings
from llm_tuner.types import ToolSpec

SIZES = {
    "fetch": 1,
    "filesystem": 14,
    "git": 12,
    "github": 26,
    "memory": 9,
    "sequential-thinking": 1,
    "slack": 8,
    "time": 2,
}


def test_all_73_tools_have_a_wording():
    assert {server.server: len(server.tools) for server in servers()} == SIZES


@pytest.mark.parametrize("name", sorted(wordings()))
def test_enough_sentences_in_every_language(name):
    ways = wordings()[name].ways
    for language in ("en", "ja"):
        every = [s for way in ways for s in getattr(way, language)]
        assert len(every) >= 6
        assert len(set(every)) == len(every)
    assert sum(len(way.mixed) for way in ways) >= 2


@pytest.mark.parametrize("name", sorted(wordings()))
def test_the_two_sides_share_no_sentence(name):
    for way in (*wordings()[name].ways, *wordings()[name].missing):
        for language in ("en", "ja"):
            train, held_out = (set(way.of(language, side)) for side in ("train", "held-out"))
            assert train
            assert held_out
            assert not train & held_out


@pytest.mark.parametrize("name", sorted(wordings()))
def test_every_value_can_be_drawn_and_every_argument_filled(name):
    import random

    for side in ("train", "held-out"):
        for way in wordings()[name].ways:
            values = {k: draw(spec, random.Random(1), side, "en").value for k, spec in way.say.items()}
            text = str(way.call_arguments(values))
            assert "{" not in text.replace("{'", "").replace(" {", "") or holes(text) == set()


def test_recipes_use_known_tools_and_say_what_they_need():
    for recipe in recipes():
        assert set(recipe.tools) <= set(wordings())
        assert recipe.then or recipe.reply_en
        assert "(?P<found>" in recipe.take or recipe.fails


def test_pools_have_values_for_both_sides():
    for name, values in tables()["pools"].items():
        assert len(values) >= 4, name
        assert len({str(v) for v in values}) == len(values), name


def test_phrases_for_both_languages():
    said = phrases()
    for pool in (said.openings, said.closings, said.contexts, said.joins, said.follow_ups, said.declines):
        assert set(pool) >= {"en", "ja"}
        assert all(len(words) >= 8 for words in pool.values())


def test_a_wording_counts_only_for_a_tool_with_these_arguments():
    properties = {"repo_path": {"type": "string"}}
    known = ToolSpec(name="git_status", parameters={"type": "object", "properties": properties})
    assert wording_of(known) is wordings()["git_status"]
    prefixed = known.model_copy(update={"name": "my_git__git_status", "server": "my git"})
    assert wording_of(prefixed) is wordings()["git_status"]
    assert wording_of(ToolSpec(name="git_status")) is None
    assert wording_of(ToolSpec(name="git_unknown")) is None


def test_shapes_are_filled_with_the_values_themselves():
    shape = {"a": "{n}", "b": ["x {n}", {"c": "{words}"}], "d": True}
    assert fill(shape, {"n": 3, "words": ["p"]}) == {"a": 3, "b": ["x 3", {"c": ["p"]}], "d": True}
    assert list(sided("abcdef", "held-out")) == ["e", "f"]
    assert list(sided("abc", "train")) == ["a", "b"]
