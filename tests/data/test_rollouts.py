"""Rollouts: the judge's reward for the whole, the tokens that were written, a box for each, nothing lost on a kill."""

from __future__ import annotations

import threading
import time

import pytest
from template import Calls

from llm_tuner.data.box import demo_box
from llm_tuner.data.rollouts import Rollouts, roll_out, summarise, teaches
from llm_tuner.scoring import gold_attempt, score
from llm_tuner.store import read_jsonl
from llm_tuner.tools.hub import Hub
from llm_tuner.tools.recorded import RecordedTools
from llm_tuner.tools.servers import demo_servers
from llm_tuner.types import (
    Attempt,
    DataError,
    EmptyData,
    ExactCalls,
    Message,
    ModelError,
    NoCall,
    Reply,
    Rollout,
    RuntimeUnavailable,
    Task,
    ToolCall,
    ToolResult,
    ToolSpec,
    Written,
)

ADD = ToolSpec(name="add", parameters={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})


def task(text, *calls, **words):
    expect = ExactCalls(calls=calls) if calls else NoCall(reply="No.")
    words = {"split": "train", **words}
    return Task(messages=(Message(role="user", text=text),), tools=(ADD,), expect=expect, **words)


def call(a):
    return ToolCall(name="add", arguments={"a": a}, id="c")


def said(*calls, text=""):
    return Message(role="assistant", text=text, tool_calls=calls)


TASKS = [task("add 1", call(1)), task("add 2", call(2)), task("hello")]
TOOLS = RecordedTools([ADD], [(call(n), ToolResult(content=f"added {n}")) for n in range(9)])


def drain(steps, seen=None):
    try:
        while True:
            event = next(steps)
            if seen is not None:
                seen.append(event)
    except StopIteration as stop:
        return stop.value


class Model:
    """A backend whose answer is a function of the conversation and the seed; it says its tokens when asked to."""

    name = "model"

    def __init__(self, answer, written=True):
        self.answer, self.written = answer, written
        self.lock, self.options, self.shown = threading.Lock(), [], []

    def chat(self, messages, tools=(), options=None):
        with self.lock:
            self.options.append(options)
            self.shown.append(tuple(messages))
        message = self.answer(messages, options.seed)
        if isinstance(message, Exception):
            raise message
        ids = (7, options.seed % 5, 9)
        return Reply(message=message, written=Written(text="as written", ids=ids) if self.written else None)


def half_right(messages, seed):
    """Seeds that are even are right at the first two tasks; whoever has a result stops."""
    if messages[-1].role == "tool":
        return said(text="Done.")
    wanted = {"add 1": 1, "add 2": 2}.get(messages[0].text)
    if wanted is None:
        return said(text="Hello!")
    return said(call(wanted if seed % 2 == 0 else wanted + 1))


def test_rewards_are_the_judges_and_groups_without_signal_are_reported(tmp_path):
    seen = []
    model = Model(half_right)
    done = drain(roll_out(Rollouts(group=4), TASKS, model, Calls(), tmp_path / "r.jsonl", toolbox=TOOLS), seen)
    assert [rollout.task_id for rollout in done.rollouts] == [one.id for one in TASKS for _ in range(4)]
    assert [teaches(done.rollouts[at : at + 4]) for at in (0, 4, 8)] == [True, True, False]
    assert sorted(rollout.reward for rollout in done.rollouts[:4]) == [0.5, 0.5, 1.0, 1.0]
    wrong = Attempt(task_id=TASKS[0].id, backend="x", messages=(said(call(2)),))
    assert score(TASKS[0], wrong).score == 0.5
    assert {key: done.summary[key] for key in ("groups", "rollouts", "with_signal", "all_right", "right", "turns")} == {
        "groups": 3, "rollouts": 12, "with_signal": 2, "all_right": 1, "right": 0.6667, "turns": 1.67
    }  # fmt: skip
    assert done.summary["reasons"] == {"ok": 8, "wrong_value": 4}
    assert seen[-1].data == done.summary
    assert len(read_jsonl(tmp_path / "r.jsonl", Rollout)) == 12
    assert all(options.on_policy and options.temperature == 1.0 for options in model.options)
    first = [o.seed for o, shown in zip(model.options, model.shown, strict=True) if shown == TASKS[0].messages]
    assert len(first) == len(set(first)) == 4


def test_each_turn_is_a_row_that_the_server_renders_and_the_model_wrote(tmp_path):
    done = drain(roll_out(Rollouts(group=2), TASKS[:1], Model(half_right), Calls(), tmp_path / "r", toolbox=TOOLS))
    right = next(rollout for rollout in done.rollouts if rollout.reward == 1.0)
    first, second = right.rows
    assert first.prompt == "[add]<user>add 1$\n<assistant>"
    assert second.prompt == '[add]<user>add 1$\n<assistant><t>["add",{"a":1}]</t>$\n<tool>added 1$\n<assistant>'
    assert "".join(map(chr, second.prompt_ids)) == second.prompt
    assert first.completion == "as written"
    assert first.completion_ids[::2] == (7, 9)


def test_without_the_runtimes_tokens_the_text_is_tokenised_again(tmp_path):
    model = Model(half_right, written=False)
    done = drain(roll_out(Rollouts(group=2), TASKS[:1], model, Calls(), tmp_path / "r", toolbox=TOOLS))
    right = next(rollout for rollout in done.rollouts if rollout.reward == 1.0)
    assert [row.completion for row in right.rows] == ['<t>["add",{"a":1}]</t>$', "Done.$"]
    assert all("".join(map(chr, row.completion_ids)) == row.completion for row in right.rows)

    def sometimes_broken(messages, seed):
        broken = ToolCall(name="add", error="no JSON")
        return said(broken) if seed % 2 else said(call(1))

    model = Model(sometimes_broken, written=False)
    assert len(drain(roll_out(Rollouts(group=4), TASKS[:1], model, Calls(), tmp_path / "b")).rollouts) == 2


def test_a_whole_conversation_is_judged_and_calls_again_are_wrong(tmp_path):
    """Two wanted calls may come one after the other; a call again after the result is one too many."""
    both = task("add 1 and 2", call(1), call(2))

    def one_by_one(messages, seed):
        results = sum(message.role == "tool" for message in messages)
        if results == 2 and seed % 2 == 0:
            return said(text="Done.")
        return said(call(min(results, 2) + 1))

    config = Rollouts(group=2, turns=3)
    done = drain(roll_out(config, [both], Model(one_by_one), Calls(), tmp_path / "r", toolbox=TOOLS))
    assert sorted((rollout.reason, len(rollout.rows)) for rollout in done.rollouts) == [("ok", 3), ("wrong_count", 3)]


class Counter:
    """A tool with a state: what it answers depends on the calls since the box was restored."""

    def __init__(self):
        self.calls, self.made = [], 0

    def specs(self):
        return (ADD,)

    def call(self, one):
        self.calls.append(one.arguments["a"])
        self.made += 1
        return ToolResult(content=",".join(map(str, self.calls)))

    def restore(self):
        self.calls = []


def test_no_rollout_sees_what_another_one_did_to_the_box(tmp_path):
    heard = []

    def climbs(messages, seed):
        results = [message.result.content for message in messages if message.role == "tool"]
        heard.append(results)
        return said(call(len(results) + 1)) if len(results) < 3 else said(text="There.")

    tools = Counter()
    one = task("climb", call(1), call(2), call(3))
    config = Rollouts(group=6, turns=4)
    steps = roll_out(config, [one], Model(climbs), Calls(), tmp_path / "r", toolbox=tools, restore=tools.restore)
    rollouts, summary = drain(steps)
    assert (summary["with_signal"], summary["all_right"]) == (0, 1)
    assert {tuple(results) for results in heard} == {(), ("1",), ("1", "1,2"), ("1", "1,2", "1,2,3")}
    assert tools.calls == []
    assert [(rollout.reward, len(rollout.rows)) for rollout in rollouts] == [(1.0, 4)] * 6


def test_a_killed_run_goes_on_and_nothing_is_asked_twice(tmp_path):
    out = tmp_path / "r.jsonl"
    steps = roll_out(Rollouts(group=4), TASKS, Model(half_right), Calls(), out)
    next(steps)
    steps.close()
    first = read_jsonl(out, Rollout)
    assert len(first) == 4
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:3]) + lines[3][:40])  # killed while the fourth was written
    model = Model(half_right)
    done = drain(roll_out(Rollouts(group=4), TASKS, model, Calls(), out))
    assert len(model.options) == 1 + 4 + 4
    assert done.summary["rollouts"] == 12
    assert read_jsonl(out, Rollout)[:3] == first[:3]
    again = Model(half_right)
    assert drain(roll_out(Rollouts(group=4), TASKS, again, Calls(), out)).rollouts == done.rollouts
    assert again.options == []


def test_a_rollout_that_fails_is_left_out_and_one_that_cannot_be_asked_ends_it(tmp_path):
    def fails(messages, seed):
        return ModelError("too long") if seed % 4 == 1 else half_right(messages, seed)

    done = drain(roll_out(Rollouts(group=8), TASKS[:1], Model(fails), Calls(), tmp_path / "a"))
    assert done.summary["rollouts"] == 6
    assert done.summary["failed"] == {"ModelError: too long": 2}
    long = Model(lambda messages, seed: ModelError("too long"))
    with pytest.raises(EmptyData, match="ModelError: too long"):
        drain(roll_out(Rollouts(group=2), TASKS[:1], long, Calls(), tmp_path / "c"))
    gone = Model(lambda messages, seed: RuntimeUnavailable("gone"))
    with pytest.raises(RuntimeUnavailable, match="gone"):
        drain(roll_out(Rollouts(group=2), TASKS[:1], gone, Calls(), tmp_path / "b"))


class Forks(Model):
    """A backend that forks: each fork is a backend of its own."""

    def fork(self, messages, tools, count):
        self.forked = [*getattr(self, "forked", []), (tuple(messages), count)]
        return [self] * count


def test_a_group_forks_its_prompt_once_and_several_groups_run_at_a_time_where_it_cannot(tmp_path):
    model = Forks(half_right)
    drain(roll_out(Rollouts(group=4, groups_at_a_time=3), TASKS, model, Calls(), tmp_path / "a"))
    assert model.forked == [(one.messages, 4) for one in TASKS]
    together = threading.Barrier(3 * 2, timeout=20)  # breaks unless all of three groups ask at once

    def waits(messages, seed):
        together.wait()
        return half_right(messages, seed)

    config = Rollouts(group=2, groups_at_a_time=3)
    assert drain(roll_out(config, TASKS, Model(waits), Calls(), tmp_path / "b")).summary["rollouts"] == 6


def test_what_must_not_be_trained_on_is_refused_and_what_cannot_be_is_left_out(tmp_path):
    for words in ({"split": "held-out"}, {"source": "bfcl"}):
        with pytest.raises(DataError, match="must not be trained on"):
            drain(roll_out(Rollouts(), [task("x", **words)], Model(half_right), Calls(), tmp_path / "r"))
    compact = task("add 3", call(3), tags={"rendering": "compact"})
    done = drain(roll_out(Rollouts(group=2), [TASKS[0], compact], Model(half_right), Calls(), tmp_path / "c"))
    assert (done.summary["groups"], done.summary["left_out"]) == (1, 1)


def test_a_perfect_model_has_the_reward_one():
    """The reward and the data filter have one judge: reference answers earn all there is."""
    assert [score(one, gold_attempt(one)).score for one in TASKS] == [1.0] * 3
    assert summarise([])["reward"] == 0


@pytest.mark.servers
def test_tools_really_run_and_the_box_is_restored_between_tries(tmp_path):
    """Every try makes the same branch, which git refuses where it is there already."""
    branch = ToolCall(
        name="git_create_branch", arguments={"repo_path": "repos/blog", "branch_name": "brand-new"}, id="c"
    )
    status = ToolCall(name="git_branch", arguments={"repo_path": "repos/blog", "branch_type": "local"}, id="d")
    heard = []

    def makes_a_branch(messages, seed):
        results = [message.result for message in messages if message.role == "tool"]
        heard.append(results)
        return said([branch, status][len(results)]) if len(results) < 2 else said(text="Done.")

    with demo_box() as box, Hub([s for s in demo_servers(box.path) if s.name == "git"], cwd=box.path) as hub:
        one = Task(
            messages=(Message(role="user", text="make a branch brand-new and list the branches"),),
            tools=hub.specs(),
            expect=ExactCalls(calls=(branch, status)),
            split="train",
        )
        config = Rollouts(group=4, turns=3)
        steps = roll_out(
            config, [one], Model(makes_a_branch), Calls(), tmp_path / "r", toolbox=hub, restore=box.restore
        )
        done = drain(steps)
        assert [rollout.reward for rollout in done.rollouts] == [1.0] * 4
        results = [result for said in heard for result in said]
        assert not any(result.is_error for result in results), results
        assert sum("brand-new" in said[1].content for said in heard if len(said) == 2) == 4
        assert "brand-new" not in hub.call(status).content  # the box is as it was


def test_who_stops_does_not_wait_for_what_is_in_flight(tmp_path):
    hangs = threading.Event()

    def waits(messages, seed):
        if messages[0].text == "add 2":
            hangs.wait(60)
        return half_right(messages, seed)

    steps = roll_out(Rollouts(group=2), TASKS, Model(waits), Calls(), tmp_path / "r.jsonl")
    next(steps)
    started = time.monotonic()
    steps.close()
    hangs.set()
    assert time.monotonic() - started < 30
    assert len(read_jsonl(tmp_path / "r.jsonl", Rollout)) == 2
