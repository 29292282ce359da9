import random

from hub_tools import TOOLS
from llm_tuner.data.catalogues import deal, likeness, nearest, renamed, vectors
from llm_tuner.store.scrub import looks_random
from llm_tuner.types import ToolCall

WEIGHTS = vectors(TOOLS)
BY_NAME = {tool.name: tool for tool in TOOLS}


def test_look_alikes_come_first():
    first = [tool.name for tool in nearest(BY_NAME["git_diff_staged"], TOOLS, WEIGHTS)[:3]]
    assert {"git_diff_unstaged", "git_diff"} <= set(first)
    assert likeness(WEIGHTS["git_log"], WEIGHTS["git_log"]) > 0.999


def test_a_catalogue_has_its_size_its_seed_and_no_tool_twice():
    for size in (1, 2, 5, 20, len(TOOLS)):
        made = deal(BY_NAME["git_log"], size, TOOLS, WEIGHTS, random.Random(size), wanted=["fetch"])
        assert len(made.own) == size == len(made.names)
        assert "git_log" in made.names
        assert size == 1 or "fetch" in made.names


def test_renamed_tools_keep_their_schema_and_map_calls():
    made = deal(BY_NAME["git_log"], 8, TOOLS, WEIGHTS, random.Random(1), mask=True)
    shown = made.shown
    assert len({tool.name for tool in shown}) == 8
    own = {tool.name: tool for tool in made.own}
    for name, renaming in made.renamings.items():
        spec = renaming.spec(own[name])
        assert spec.description == own[name].description
        assert len(spec.parameters["properties"]) == len(own[name].parameters["properties"])
        assert set(spec.parameters["required"]) <= set(spec.parameters["properties"])
    call = made.shown_call(ToolCall(name="git_log", arguments={"repo_path": "repos/blog"}))
    assert call.name == made.renamings["git_log"].name
    assert list(call.arguments.values()) == ["repos/blog"]
    assert set(made.tags()) == {"renamed", "renamed_parameters"}


def test_new_names_are_never_taken():
    taken = set()
    names = [renamed(tool, taken, random.Random(7)).name for tool in TOOLS]
    assert len(set(names)) == len(names)


def test_a_number_behind_a_name_makes_no_key_of_it():
    tool = TOOLS[0].model_copy(update={"name": "linear_getWorkflowStates"})
    for seed in range(40):
        name = renamed(tool, {"linear_getWorkflowStates"}, random.Random(seed)).name
        assert not looks_random(name)
