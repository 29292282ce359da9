"""A real small model as writer: whatever it writes, only what determines the call is kept."""

import pytest

from hub_tools import CALLABLE, TOOLS
from llm_tuner.data.drafts import draft
from llm_tuner.data.plan import HubMix, plan
from llm_tuner.data.verify import meaning_fault
from llm_tuner.data.writer import Writer

pytestmark = [pytest.mark.weights, pytest.mark.slow]


def test_the_05b_rewords_what_it_can(qwen_gguf):
    from llm_tuner.models.llamacpp import Embedded

    mix = HubMix(count=12, sizes=(3,), masked=0, kinds={"single": 1}, held_out=0)
    made = plan(TOOLS, mix, CALLABLE)
    with Embedded(qwen_gguf) as model:
        writer = Writer(model)
        for slot in made.slots:
            before = draft(slot, 0, made.tools, 0)
            after = writer.reworded(before, slot)
            assert after.calls == before.calls
            assert meaning_fault(after, "", slot.catalogue.names) is None
    counts = writer.counts()
    assert counts["asked"] == 12 == sum(n for why, n in counts.items() if why != "asked")
