"""What a model writes is kept only where every value is in it and a second reading makes the same call."""

from hub_tools import CALLABLE, TOOLS
from llm_tuner.data.drafts import Draft
from llm_tuner.data.plan import HubMix, plan
from llm_tuner.data.writer import Writer
from llm_tuner.models.recorded import RecordedBackend
from llm_tuner.types import Message, ToolCall

MIX = HubMix(count=12, sizes=(73,), masked=0, languages={"en": 1}, held_out=0)
SLOT = plan(TOOLS, MIX, CALLABLE).slots[0]
CALL = ToolCall(name="git_log", arguments={"repo_path": "repos/blog", "max_count": 7})
DRAFT = Draft("Show 7 commits of repos/blog.", (CALL,))


def says(text):
    return Message(role="assistant", text=text)


def calls(call):
    return Message(role="assistant", tool_calls=(call,))


def reworded(words, reading):
    writer = Writer(RecordedBackend({"in your own words": says(words)}), RecordedBackend({"": calls(reading)}))
    return writer.reworded(DRAFT, SLOT), writer.counts()


def test_a_good_paraphrase_is_kept_and_counted():
    made, counts = reworded("Could I see the newest 7 commits in repos/blog?", CALL)
    assert made.request == "Could I see the newest 7 commits in repos/blog?"
    assert made.writer == "recorded"
    assert made.calls == DRAFT.calls
    assert counts == {"asked": 1, "kept": 1}


def test_a_paraphrase_without_a_value_is_not():
    made, counts = reworded("Could I see the newest commits in repos/blog?", CALL)
    assert made == DRAFT
    assert counts == {"asked": 1, "value missing": 1}


def test_nor_one_that_is_read_otherwise():
    other = ToolCall(name="git_status", arguments={"repo_path": "repos/blog"})
    made, counts = reworded("Could I see the newest 7 commits in repos/blog?", other)
    assert made == DRAFT
    assert counts == {"asked": 1, "read otherwise": 1}


def test_a_backend_that_cannot_be_asked_costs_nothing():
    writer = Writer(RecordedBackend({}))
    assert writer.reworded(DRAFT, SLOT) == DRAFT
    assert writer.counts() == {"asked": 1, "unreachable": 1}
