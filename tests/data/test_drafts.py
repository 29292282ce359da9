"""Drafts hold what the checks ask for; and the checks see what a draft does wrong."""

from dataclasses import replace

import pytest

from hub_tools import CALLABLE, TOOLS
from llm_tuner.data.drafts import Draft, Impossible, draft
from llm_tuner.data.plan import HubMix, plan
from llm_tuner.data.verify import format_fault, meaning_fault
from llm_tuner.types import ToolCall, ToolSpec

MIX = HubMix(count=700, seed=5)
PLAN = plan(TOOLS, MIX, CALLABLE)


def drafts():
    for slot in PLAN.slots:
        try:
            yield slot, draft(slot, 0, PLAN.tools_of(slot.side), MIX.seed)
        except Impossible:
            continue


DRAFTS = list(drafts())


def test_nearly_every_slot_has_a_draft_that_passes_the_checks():
    assert len(DRAFTS) > 0.95 * len(PLAN.slots)
    for slot, made in DRAFTS:
        assert format_fault([slot.catalogue.shown_call(c) for c in made.calls], slot.catalogue.shown) is None
        if slot.kind not in ("sequence", "error"):
            assert meaning_fault(made, "", slot.catalogue.names) is None, made
        assert made.calls or made.reply


def test_several_calls_could_not_be_one():
    for slot, made in DRAFTS:
        if slot.kind == "several":
            memory = [
                call.name for call in made.calls if call.name.endswith(("_entities", "_observations", "_relations"))
            ]
            assert len(set(memory)) == len(memory)
            if "read_multiple_files" in slot.catalogue.names:
                assert [call.name for call in made.calls].count("read_text_file") < 2


def test_the_sides_share_no_request():
    sides = [{made.request.casefold() for slot, made in DRAFTS if slot.side == side} for side in ("train", "held-out")]
    assert not sides[0] & sides[1]


def test_language_is_what_the_slot_says():
    for slot, made in DRAFTS:
        if slot.language == "ja" and slot.kind != "irrelevant":
            assert not made.request.isascii() or " " in made.request  # `ls projects/shop` is the same in any language
        if slot.language == "mixed" and slot.kind in ("single", "look_alike", "missing"):
            assert not made.request.isascii()


def test_the_same_slot_and_try_give_the_same_draft():
    slot, made = DRAFTS[0]
    assert draft(slot, 0, PLAN.tools_of(slot.side), MIX.seed) == made


def test_a_tool_that_is_not_offered_is_declined():
    for slot, made in DRAFTS:
        if slot.kind in ("irrelevant", "missing"):
            assert not made.calls
            assert made.reply


CALL = ToolCall(name="git_log", arguments={"repo_path": "repos/blog", "max_count": 7})
GOOD = Draft("Show 7 commits of repos/blog.", (CALL,))


def fault(made, offered=("git_log",), found="", results=()):
    found_fault = meaning_fault(made, found, offered, results)
    return found_fault[0] if found_fault else ""


@pytest.mark.parametrize(
    ("request_text", "reason"),
    [
        ("Show 7 commits of repos/blog.", ""),
        ("Show 7 commits of REPOS/blog.", ""),
        ("Show the commits of repos/blog.", "value not in the request"),
        ("Show 7 commits of the blog.", "value not in the request"),
        ("Show 7 commits of repos/blog and repos/shop.", "value not in the call"),
        ("Show 7 commits of repos/blog up to 「main」.", "value not in the call"),
        ("Show 7 of 25 commits of repos/blog.", "value not in the call"),
    ],
)
def test_request_and_call_determine_each_other(request_text, reason):
    assert fault(replace(GOOD, request=request_text)) == reason


def test_names_constants_and_results_are_given_values():
    call = ToolCall(name="fetch", arguments={"url": "http://a.example/x", "raw": True})
    made = Draft("Raw HTML of the link, please.", (call,))
    assert fault(made) == "value not in the request"
    assert fault(replace(made, constants=("true",)), results=["see http://a.example/x"]) == ""
    zone = Draft("Time in Tokyo?", (ToolCall(name="get_current_time", arguments={"timezone": "Asia/Tokyo"}),))
    assert fault(zone) == "value not in the request"
    assert fault(replace(zone, said={'"Asia/Tokyo"': ("Tokyo", "東京")})) == ""


def test_a_rival_that_is_offered_makes_a_request_ambiguous():
    made = Draft(
        "Read projects/shop/README.md.", (ToolCall(name="read_file", arguments={"path": "projects/shop/README.md"}),)
    )
    assert fault(made, ["read_file"]) == ""
    assert fault(made, ["read_file", "read_text_file"]) == "another tool fits"


def test_format_faults():
    tool = ToolSpec(
        name="f",
        parameters={"type": "object", "properties": {"n": {"type": "integer", "maximum": 5}}, "required": ["n"]},
    )

    def reason(**arguments):
        found = format_fault([ToolCall(name="f", arguments=arguments)], [tool])
        return found[0] if found else ""

    assert reason(n=3) == ""
    assert reason(n="3") == "schema"
    assert reason(n=9) == "schema"
    assert reason() == "schema"
    assert reason(n=3, m=1) == "unexpected parameter"
    assert format_fault([ToolCall(name="g")], [tool])[0] == "not offered"
    broken = tool.model_copy(update={"parameters": {"type": "object", "properties": {"n": {"$ref": "#/gone"}}}})
    assert format_fault([ToolCall(name="f", arguments={"n": 1})], [broken])[0] == "unusable schema"
