"""Tokens in the served model's own template, and what windows come to."""

import json
from pathlib import Path

import pytest

from llm_tuner.models.kv_cache import KvCache
from llm_tuner.models.signatures import RENDERINGS, catalogue_text, shown
from llm_tuner.models.window import AT_EASE, ROOM, Meter, budget, guessed, verdict
from llm_tuner.types import Message, ModelError, TemplateMismatch, ToolSpec

HUB = tuple(
    ToolSpec.model_validate(tool)
    for tool in json.loads((Path(__file__).parents[2] / "examples" / "hub-8" / "tools.json").read_text("utf-8"))
)
ASK = (Message(role="user", text="hi"),)


class Letters:
    """A renderer whose tokens are characters. `blind`: its template leaves tools out; `plain`: it has no place for a
    system message."""

    def __init__(self, blind=False, plain=False):
        self.blind, self.plain, self.asked = blind, plain, 0

    def render(self, messages, tools=(), generation_prompt=True):
        self.asked += 1
        if self.plain and messages[0].role == "system":
            raise ModelError("System role not supported")
        said = "".join(f"<{m.role}>{m.text}\n" for m in messages)
        offered = "" if self.blind or not tools else f"[{len(tools)}]" + "".join(t.name + "\n" for t in tools)
        return offered + said

    def tokenize(self, text):
        return list(range(len(text)))

    def detokenize(self, tokens):
        raise NotImplementedError

    def end_tokens(self):
        return frozenset()


def test_a_tool_is_rendered_once_and_sums_are_exact():
    renderer = Letters()
    meter = Meter(renderer)
    tools = [ToolSpec(name="a" * n) for n in range(1, 9)]
    assert meter(tools, "full") == meter.exact(tools, "full") == len("[8]") + sum(range(2, 10))
    asked = renderer.asked
    assert meter(tools[::-1], "full") == meter(tools, "full")
    assert renderer.asked == asked
    assert meter([], "full") == meter.exact([], "full") == 0


def test_a_template_that_leaves_tools_out_is_no_small_number():
    meter = Meter(Letters(blind=True))
    with pytest.raises(TemplateMismatch, match="compact"):
        meter(HUB, "full")
    assert meter(HUB, "compact") > 1000
    found = budget(HUB, meter, [8192])
    assert list(found.whole) == ["compact"]
    assert [use.rendering for use in found.windows] == ["compact"]


def test_a_template_without_system_messages_is_counted_all_the_same():
    assert Meter(Letters(plain=True))(HUB[:1], "full") == len("[1]") + len(HUB[0].name) + 1


def test_verdicts():
    assert verdict(int(AT_EASE * 8192), 8192) == "fits"
    assert verdict(int(AT_EASE * 8192) + 1, 8192) == "tight"
    assert verdict(8192 - ROOM, 8192) == "tight"
    assert verdict(8192 - ROOM + 1, 8192) == "does not fit"
    assert verdict(0, ROOM - 1) == "does not fit"
    assert verdict(0, ROOM) == "fits"


def test_a_budget_adds_up():
    cache = KvCache(heads=(2,) * 24, key=64, value=64, trained=32768)
    found = budget(HUB, Meter(Letters()), [200_000, 4096], cache)
    for rendering in RENDERINGS:
        each = sum(tool.tokens[rendering] for tool in found.tools)
        assert each == sum(server[rendering] for server in found.servers.values())
        if rendering != "full":
            assert found.whole[rendering] == pytest.approx(each + found.around[rendering], abs=2)
    assert len(found.servers) == 8
    assert [(use.window, use.rendering) for use in found.windows] == [
        (window, rendering) for window in (200_000, 4096) for rendering in RENDERINGS
    ]
    assert found.kv_bytes == {200_000: cache.bytes(200_000), 4096: 48 * 2**20}
    assert found.trained == 32768
    assert budget(HUB, Meter(Letters()), [4096]).kv_bytes == {}


def test_a_guess_is_rather_too_many():
    assert guessed([]) == 0
    assert guessed(HUB, "full") > guessed(HUB, "compressed") > guessed(HUB, "compact") > 1791


@pytest.mark.weights
def test_the_reference_hub_in_qwens_own_tokens(qwen):
    """The limit: 73 tools in under 1,900 tokens, at least 85 % fewer than in full."""
    meter = Meter(qwen)
    full, compressed, compact = (meter.exact(HUB, rendering) for rendering in RENDERINGS)
    assert len(HUB) == 73
    assert full > 12_000
    assert compressed < 0.66 * full
    assert compact < 1_900
    assert compact <= 0.15 * full
    for rendering in RENDERINGS:
        assert abs(meter(HUB, rendering) - meter.exact(HUB, rendering)) <= len(HUB)
        assert meter(HUB, rendering) <= guessed(HUB, rendering)
    few = HUB[3:40:4]
    assert abs(meter(few, "compressed") - meter.exact(few, "compressed")) <= len(few)
    assert len(qwen.tokenize(catalogue_text(HUB))) < compact
    assert meter.prompt(ASK, HUB, "compact") == len(qwen.tokenize(qwen.render(*shown(ASK, HUB, "compact"))))
