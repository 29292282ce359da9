"""Tools under a budget: everything where it fits, the likeliest in a stable order where not, never lost silently."""

import random

import pytest

from llm_tuner.models.fitting import SURE, fit
from llm_tuner.models.window import guessed
from llm_tuner.types import ModelError, ToolSpec

SEARCH = ToolSpec(name="search_tools", description="Finds more tools.")


def tool(name, length=10):
    return ToolSpec(name=name, description="x" * length)


TOOLS = [tool(f"t{n}") for n in range(20)]


def count(tools, rendering):
    """A tool costs its description, a third of it compressed; one more around all of them."""
    cost = {"full": 3, "compressed": 2, "compact": 1}[rendering]
    return 1 + sum(cost * len(t.description) for t in tools) if tools else 0


def test_all_in_full_then_all_compressed_then_fewer():
    assert fit(TOOLS, 601, count).rendering == "full"
    found = fit(TOOLS, 600, count)
    assert (found.rendering, found.tools, found.left_out, found.tokens) == ("compressed", tuple(TOOLS), (), 401)
    found = fit(TOOLS, 400, count)
    assert (len(found.tools), found.left_out, found.tokens) == (19, ("t19",), 381)
    assert fit(TOOLS, 400, count, renderings=("full", "compressed", "compact")).left_out == ()
    assert fit(TOOLS, 601, count, search=SEARCH).names == tuple(t.name for t in TOOLS)  # nothing to search for


def test_the_likeliest_in_the_catalogues_own_order():
    found = fit(TOOLS, 61, count, ranked=[TOOLS[7], TOOLS[3], TOOLS[9], TOOLS[1]])
    assert found.names == ("t3", "t7", "t9")
    assert set(found.left_out) == {t.name for t in TOOLS} - set(found.names)


def test_needed_and_kept_tools_stay_and_the_last_used_comes_first():
    ranked = TOOLS[:10]
    assert fit(TOOLS, 61, count, ranked=ranked, needed=["t15"], kept=["t12", "t13"]).names == ("t12", "t13", "t15")
    assert fit(TOOLS, 41, count, ranked=ranked, needed=["t15"], kept=["t12", "t13"]).names == ("t13", "t15")
    assert fit(TOOLS, 61, count, ranked=ranked, kept=["gone"]).names == ("t0", "t1", "t2")


def test_the_search_tool_comes_first_and_is_paid_for():
    found = fit(TOOLS, 96, count, ranked=TOOLS, search=SEARCH)
    assert found.names == ("search_tools", "t0", "t1", "t2")
    assert found.tokens == count(found.tools, "compressed") <= 96


def test_what_is_too_long_for_what_is_left_is_passed_over():
    tools = [tool("long", 300), *TOOLS]
    found = fit(tools, 61, count, ranked=tools)
    assert found.names == ("t0", "t1", "t2")
    assert "long" in found.left_out


def test_what_was_offered_before_is_offered_again_while_it_holds_what_is_likely():
    ranked = TOOLS[:SURE]
    before = [t.name for t in TOOLS[: SURE + 2]]
    budget = count(TOOLS[: SURE + 2], "compressed")
    again = fit(TOOLS, budget, count, ranked=[*ranked[::-1], TOOLS[19], TOOLS[18]], before=before)
    assert again.names == tuple(before)
    other = fit(TOOLS, budget, count, ranked=[TOOLS[19], *ranked, TOOLS[18]], before=before)
    assert "t19" in other.names
    kept = fit(TOOLS, budget, count, ranked=ranked, kept=["t18"], before=before)
    assert "t18" in kept.names
    smaller = fit(TOOLS, budget - 1, count, ranked=ranked, before=before)
    assert smaller.names == tuple(t.name for t in ranked)


def test_what_cannot_fit_is_an_error_that_says_how_much_it_takes():
    with pytest.raises(ModelError, match=r"20 tools do not fit into 20 tokens: t0 \(compressed\) alone take 21"):
        fit(TOOLS, 20, count)
    with pytest.raises(ModelError, match="t4, t5"):
        fit(TOOLS, 40, count, needed=["t4", "t5"])
    with pytest.raises(ModelError, match="search_tools"):
        fit(TOOLS, 30, count, search=SEARCH)
    with pytest.raises(ModelError, match="into 0 tokens"):
        fit(TOOLS, -5, count)
    with pytest.raises(ModelError, match="search_tools"):
        fit([tool("a", 500)], 60, count, search=SEARCH)  # the search tool alone puts nothing in reach


def test_no_tools_fit_anywhere():
    assert fit([], 0, count).tools == ()


def test_of_two_tools_with_one_name_the_first_counts():
    found = fit([tool("a", 1), tool("a", 2), tool("b")], 1000, count)
    assert [len(t.description) for t in found.tools] == [1, 10]


def test_any_catalogue_any_budget():
    """Within the budget, in order, complete, the same again, and never without a word."""
    rng = random.Random(1)
    for _ in range(400):
        tools = [tool(f"t{rng.randrange(250)}", rng.randrange(0, 90)) for _ in range(rng.randrange(1, 200))]
        names = {t.name for t in tools}
        budget, search = rng.randrange(0, 9000), rng.choice([None, SEARCH])
        asked = {
            "ranked": rng.sample(tools, rng.randrange(len(tools) + 1)),
            "needed": [rng.choice(tools).name] if rng.random() < 0.3 else [],
            "kept": [f"t{rng.randrange(250)}" for _ in range(rng.randrange(4))],
            "before": [f"t{rng.randrange(250)}" for _ in range(rng.randrange(30))],
            "renderings": rng.choice(
                [("full",), ("compact",), ("full", "compressed"), ("full", "compressed", "compact")]
            ),
            "search": search,
        }
        measure = rng.choice([count, guessed])
        try:
            found = fit(tools, budget, measure, **asked)
        except ModelError:
            continue
        assert found == fit(tools, budget, measure, **asked)
        assert found.tokens == measure(found.tools, found.rendering) <= budget
        own = [name for name in found.names if name != SEARCH.name]
        assert own
        assert {*own, *found.left_out} == names
        assert len(own) + len(found.left_out) == len(names)
        order = [t.name for t in tools]
        assert own == sorted(own, key=order.index)
        assert set(asked["needed"]) <= set(own)
        assert (SEARCH.name in found.names) == bool(search and found.left_out)
