"""The plan: exact shares, every tool asked for, what is unseen stays unseen."""

from collections import Counter

import pytest
from pydantic import ValidationError

from hub_tools import CALLABLE, TOOLS
from llm_tuner.data.plan import LANGUAGE_SHARES, SHARES, HubMix, plan
from llm_tuner.data.wordings import wordings
from llm_tuner.types import DataError

MIX = HubMix(count=600, seed=3)


@pytest.fixture(scope="module")
def made():
    return plan(TOOLS, MIX, CALLABLE)


def test_shares_are_exact(made):
    kinds = Counter(slot.kind for slot in made.slots)
    assert kinds == {kind: round(MIX.count * share) for kind, share in SHARES.items()}
    languages = Counter(slot.language for slot in made.slots)
    assert languages == {name: round(MIX.count * share) for name, share in LANGUAGE_SHARES.items()}
    assert Counter(slot.side for slot in made.slots) == {"train": 480, "held-out": 120}


def test_unseen_tools_and_servers_stand_in_no_training_catalogue(made):
    assert len(made.unseen_servers) == 1
    assert {tool.name for tool in TOOLS if tool.server == made.unseen_servers[0]} < made.unseen
    for slot in made.slots:
        if slot.side == "train":
            assert not slot.catalogue.names & made.unseen
    targets = {slot.target for slot in made.slots if slot.side == "held-out"}
    assert made.unseen <= targets


def test_every_tool_is_asked_for_and_sizes_go_from_one_to_all(made):
    assert {slot.target for slot in made.slots} >= {tool.name for tool in TOOLS} - {"read_file"}
    sizes = {len(slot.catalogue.own) for slot in made.slots}
    assert min(sizes) == 1
    assert max(sizes) >= len(TOOLS) - len(made.unseen)


def test_no_tool_is_wanted_beside_one_that_fits_equally(made):
    for slot in made.slots:
        if slot.kind in ("single", "look_alike") and slot.target in wordings():
            rivals = set(wordings()[slot.target].rivals) & slot.catalogue.names
            assert not rivals or len(slot.catalogue.own) == 1


def test_the_same_settings_give_the_same_plan(made):
    assert plan(TOOLS, MIX, CALLABLE) == made
    assert plan(TOOLS, MIX.model_copy(update={"seed": 4}), CALLABLE) != made


def test_without_callable_tools_there_are_no_results_in_the_history():
    kinds = {slot.kind for slot in plan(TOOLS, MIX, frozenset()).slots}
    assert kinds == {"single", "look_alike", "several", "missing", "irrelevant"}


def test_what_is_unseen_can_be_chosen():
    mix = HubMix(count=60, unseen_tools=("git_show",), unseen_servers=("slack",))
    made = plan(TOOLS, mix, CALLABLE)
    assert made.unseen == {"git_show", *(tool.name for tool in TOOLS if tool.server == "slack")}
    with pytest.raises(DataError, match="No server 'slak' in the hub"):
        plan(TOOLS, HubMix(unseen_servers=("slak",)), CALLABLE)
    with pytest.raises(DataError, match="No tool 'nope'"):
        plan(TOOLS, HubMix(unseen_tools=("nope",)), CALLABLE)
    with pytest.raises(DataError, match="lists no tool"):
        plan([], HubMix(), CALLABLE)


@pytest.mark.parametrize(
    "wrong", [{"kinds": {"single": -1}}, {"kinds": {"single": 0}}, {"sizes": (0,)}, {"languages": {"fr": 1}}]
)
def test_an_impossible_mix_is_refused(wrong):
    with pytest.raises(ValidationError):
        HubMix(**wrong)
