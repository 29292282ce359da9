"""Preferences: right against wrong by the one judge, no reason dominating, the model's own mistakes first."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from template import Calls

from llm_tuner.data.collect import REFERENCE
from llm_tuner.data.mistakes import known_values, mistakes
from llm_tuner.data.pairs import Pairing, build_pairs, prefer
from llm_tuner.models import dialects
from llm_tuner.scoring import gold_attempt, score
from llm_tuner.types import (
    Attempt,
    DataError,
    EmptyData,
    ExactCalls,
    Message,
    NoCall,
    Task,
    ToolCall,
    ToolResult,
    ToolSpec,
)


def tool(name, description, required=(), **types):
    properties = {key: {"type": kind} for key, kind in types.items()}
    return ToolSpec(
        name=name,
        description=description,
        parameters={"type": "object", "properties": properties, "required": list(required)},
    )


LOG = tool("git_log", "Show the commits of a repository", ["repo", "count"], repo="string", count="integer")
SHOW = tool("git_show", "Show one commit of a repository", ["repo", "revision"], repo="string", revision="string")
TIME = tool("get_time", "The time in a zone", ["zone"], zone="string", short="boolean")
TOOLS = (TIME, LOG, SHOW)


def call(name, **arguments):
    return ToolCall(name=name, arguments=arguments, id="call_0")


def task(text, *calls, **words):
    expect = ExactCalls(calls=calls) if calls else NoCall(reply="I cannot do that.")
    words = {"split": "train", **words}
    return Task(messages=(Message(role="user", text=text),), tools=TOOLS, expect=expect, **words)


TASKS = (
    *(task(f"last {n} commits of r{n}", call("git_log", repo=f"r{n}", count=n)) for n in range(1, 25)),
    *(task(f"what time is it in zone {n}", call("get_time", zone=f"Zone/{n}")) for n in range(12)),
    *(task(f"sing song {n}") for n in range(6)),
    task("log and time", call("git_log", repo="a", count=1), call("get_time", zone="Asia/Tokyo")),
)
REFERENCES = [gold_attempt(one).model_copy(update={"backend": REFERENCE}) for one in TASKS]


def drain(steps):
    try:
        while True:
            next(steps)
    except StopIteration as stop:
        return stop.value


def own(one, *calls, text="", **words):
    message = dialects.read(Message(role="assistant", text=text, tool_calls=calls), one.tools)
    return Attempt(task_id=one.id, backend="mine", messages=(message,), **words)


def judged(one, message):
    return score(one, Attempt(task_id=one.id, backend="x", messages=(message,)))


def made_of(one, seed=0):
    right = gold_attempt(one).messages[0]
    known = known_values(attempt.messages[0] for attempt in REFERENCES)
    return {mistake.reason: mistake.answer for mistake in mistakes(one, right, known, Random(seed))}


def test_every_made_mistake_is_wrong_for_the_reason_that_it_says():
    for one in TASKS:
        for seed in range(3):
            for reason, answer in made_of(one, seed).items():
                verdict = judged(one, answer)
                assert (verdict.ok, verdict.reason) == (False, reason)


def test_which_mistakes_can_be_made_of_which_task():
    arguments = {"missing_parameter", "unexpected_parameter", "wrong_value", "wrong_type"}
    assert made_of(TASKS[0]).keys() == {"wrong_tool", "no_call", "call_as_text", *arguments}
    assert made_of(TASKS[-1]).keys() == {"wrong_tool", "wrong_count", "no_call", "call_as_text", *arguments}
    assert made_of(TASKS[-2]).keys() == {"unwanted_call"}


def test_the_wrong_tool_is_the_look_alike_with_arguments_that_fit_it():
    made = made_of(TASKS[4])["wrong_tool"].tool_calls[0]
    assert made.name == "git_show"
    assert made.arguments["repo"] == "r5"
    assert isinstance(made.arguments["revision"], str)
    assert made.arguments.keys() == {"repo", "revision"}


def test_a_call_as_text_has_the_shape_of_a_stock_model_and_is_read_back():
    made = made_of(TASKS[-1])["call_as_text"]
    assert made.text.startswith('```json\n{\n  "name": "git_log"')
    assert made.tool_calls == ()
    assert [(one.name, one.arguments) for one in made.text_calls] == [
        ("git_log", {"repo": "a", "count": 1}),
        ("get_time", {"zone": "Asia/Tokyo"}),
    ]


def test_a_wrong_value_is_one_that_is_right_elsewhere():
    values = {made_of(TASKS[30], seed)["wrong_value"].tool_calls[0].arguments["zone"] for seed in range(5)}
    assert values <= {f"Zone/{n}" for n in range(12)} | {"Asia/Tokyo"}


def test_a_schema_without_properties_still_has_mistakes():
    bare = ToolSpec(name="go", parameters={"type": "object"})
    one = Task(
        messages=(Message(role="user", text="go"),),
        tools=(bare,),
        expect=ExactCalls(calls=(call("go"),)),
        split="train",
    )
    made = {mistake.reason for mistake in mistakes(one, gold_attempt(one).messages[0], {}, Random(0))}
    assert made == {"no_call", "call_as_text", "unexpected_parameter"}


def test_no_reason_dominates_and_the_counts_say_so():
    pairs, counts = drain(build_pairs(Pairing(most=0.25), TASKS, REFERENCES, Calls()))
    assert counts["pairs"] == len(pairs) == len(TASKS)
    assert counts["origins"] == {"made": len(pairs)}
    assert counts["reasons"] == dict(Counter(pair.reason for pair in pairs).most_common())
    assert max(counts["reasons"].values()) <= 0.25 * len(pairs)
    assert len(counts["reasons"]) == 9
    by_id = {one.id: one for one in TASKS}
    for pair in pairs:
        assert pair.chosen.task_id == pair.rejected.task_id in by_id
        assert pair.chosen.prompt_ids == pair.rejected.prompt_ids
        assert pair.chosen.completion_ids != pair.rejected.completion_ids
    assert [pair.chosen.task_id for pair in pairs] == [one.id for one in TASKS]


def test_the_same_seed_gives_the_same_pairs_and_another_gives_others():
    def rejected(seed):
        return [one.wrong for one in prefer(Pairing(seed=seed), TASKS, REFERENCES)[0]]

    assert rejected(1) == rejected(1)
    assert rejected(1) != rejected(2)


def test_the_models_own_mistakes_come_first_until_their_reason_has_enough():
    few = [own(one, call("git_show", repo="r", revision="x")) for one in TASKS[:5]]
    pairs, counts = drain(build_pairs(Pairing(), TASKS, [*few, *REFERENCES], Calls()))
    itself = [pair for pair in pairs if pair.origin == "itself"]
    assert {pair.rejected.task_id for pair in itself} == {one.id for one in TASKS[:5]}
    assert all(pair.reason == "wrong_tool" and '["git_show"' in pair.rejected.completion for pair in itself)
    always = [own(one, text='```json\n{"name": "git_log", "arguments": {}}\n```') for one in TASKS[:36]]
    counts = drain(build_pairs(Pairing(most=0.25), TASKS, [*always, *REFERENCES], Calls())).counts
    assert counts["reasons"]["call_as_text"] == counts["origins"]["itself"] == len(TASKS) // 4
    assert counts["origins"]["made"] == len(TASKS) - len(TASKS) // 4


def test_without_made_mistakes_too_many_of_a_reason_are_left_out():
    text = [own(one, text='```json\n{"name": "git_log", "arguments": {}}\n```') for one in TASKS[:20]]
    other = [own(one, call("git_log", repo="r", count=-1)) for one in TASKS[20:24]]
    alone = drain(build_pairs(Pairing(made=False), TASKS, [*text, *REFERENCES], Calls())).counts
    assert alone["reasons"] == {"call_as_text": 12}  # 0.3 of all tasks; there is no other reason to balance it
    both = drain(build_pairs(Pairing(made=False, most=0.3), TASKS, [*text, *other, *REFERENCES], Calls())).counts
    assert both["reasons"] == {"call_as_text": 4, "wrong_value": 4}
    assert both["left_out"] == {"no wrong answer": 19, "of a reason that has enough": 16}


def test_several_pairs_of_a_task_have_several_mistakes():
    pairs, counts = drain(build_pairs(Pairing(per_task=3), TASKS, REFERENCES, Calls()))
    assert counts["tasks"] == len(TASKS)
    assert len(pairs) > 2 * len(TASKS)
    assert len({(pair.chosen.task_id, pair.rejected.completion) for pair in pairs}) == len(pairs)


def test_a_models_own_right_answer_is_chosen_where_the_reference_was_refused():
    one = TASKS[-2]
    refused = REFERENCES[-2].model_copy(update={"results": (ToolResult(content="no", is_error=True),)})
    mine = [own(one, text="No, I do not sing."), own(one, call("get_time", zone="UTC"))]
    pairs, _ = drain(build_pairs(Pairing(), [one], [refused, *mine], Calls()))
    assert [(pair.chosen.completion, pair.reason, pair.origin) for pair in pairs] == [
        ("No, I do not sing.$", "unwanted_call", "itself")
    ]


def test_what_a_server_refused_or_nobody_could_write_again_is_neither_right_nor_wrong():
    one = TASKS[0]
    refused = own(one, call("git_log", repo="r1", count=1), results=(ToolResult(content="no", is_error=True),))
    broken = own(one, ToolCall(name="git_log", error="no JSON"))
    failed = Attempt(task_id=one.id, backend="mine", error="gone")
    with pytest.raises(EmptyData, match="is a wrong answer"):
        drain(build_pairs(Pairing(made=False), [one], [refused, broken, failed, *REFERENCES], Calls()))
    counts = drain(build_pairs(Pairing(), [one], [refused, broken, failed, *REFERENCES], Calls())).counts
    assert counts["left_out"] == {"a call that cannot be written again": 1}


def test_a_data_set_without_right_or_wrong_answers_says_so():
    wrong = [own(one, call("nothing")) for one in TASKS]
    with pytest.raises(EmptyData, match="None of the 43 attempts at 43 tasks is right"):
        drain(build_pairs(Pairing(), TASKS, wrong, Calls()))
    with pytest.raises(EmptyData, match=r"Let mistakes be made"):
        drain(build_pairs(Pairing(made=False), TASKS, REFERENCES, Calls()))


def test_held_out_and_benchmark_tasks_are_refused():
    for words, match in (({"split": "held-out"}, "held-out side"), ({"source": "bfcl"}, "benchmark bfcl")):
        one = task("last commit", call("git_log", repo="a", count=1), **words)
        with pytest.raises(DataError, match=match):
            drain(build_pairs(Pairing(), [one], [gold_attempt(one)], Calls()))


class OneToken(Calls):
    """<t> and </t> are one token each in the vocabulary."""

    def tokenize(self, text):
        return [{"<t>": 0, "</t>": 1}.get(text, 2)] if text in ("<t>", "</t>") else super().tokenize(text)


def test_tags_are_spelled_in_the_same_way_on_both_sides():
    one = TASKS[0]
    mine = own(one, call("git_log", repo="r1", count=2))
    ((pair,), _) = drain(build_pairs(Pairing(), [one], [*REFERENCES, mine], OneToken(), {"<t>", "</t>"}))
    for row in (pair.chosen, pair.rejected):
        assert "".join(map(chr, row.completion_ids)) == row.completion
        assert row.completion.startswith("<t>")
