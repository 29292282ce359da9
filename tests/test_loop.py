"""The gate is pure: two reports and rules in, a decision with sentences out."""

import math
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from llm_tuner.evaluation.general import questions
from llm_tuner.evaluation.measure import tally
from llm_tuner.evaluation.perplexity import estimated
from llm_tuner.loop import Rules, Tune, decide, find_run, hub_hash
from llm_tuner.scoring import gold_attempt, score
from llm_tuner.store import Store
from llm_tuner.store.suite import Suite
from llm_tuner.training.sft import SFT
from llm_tuner.types import (
    Attempt,
    DataError,
    ExactCalls,
    Message,
    NoCall,
    Passage,
    Perplexity,
    SetupError,
    Task,
    Timing,
    ToolCall,
    ToolSpec,
    Verdict,
)

TOOLS = tuple(ToolSpec(name=name, parameters={"type": "object", "properties": {"x": {}}}) for name in ("a", "b"))


def tasks(calls=60, silent=20):
    made = []
    for number in range(calls + silent):
        wants = number < calls
        expect = ExactCalls(calls=(ToolCall(name="a", arguments={"x": number}),)) if wants else NoCall(reply="no")
        message = Message(role="user", text=f"request {number}")
        category = "single" if wants else "no_call"
        made.append(Task(messages=(message,), tools=TOOLS, expect=expect, category=category, language="en"))
    return tuple(made)


SUITE = Suite(name="s", tasks=tasks())


def report(right=1.0, silent=1.0, native=True, p50=100.0):
    """A report whose first share of tasks of each kind is answered right."""
    attempts = []
    for kind, share in (("single", right), ("no_call", silent)):
        group = [task for task in SUITE.tasks if task.category == kind]
        for number, task in enumerate(group):
            answer = gold_attempt(task).messages[0]
            if number >= share * len(group):
                answer = Message(role="assistant", tool_calls=(ToolCall(name="b"),))
            if not native:
                answer = answer.model_copy(update={"text_calls": answer.tool_calls, "tool_calls": ()})
            attempt = Attempt(task_id=task.id, backend="m", messages=(answer,), timing=Timing(total_ms=p50))
            attempts.append(attempt.model_copy(update={"verdict": score(task, attempt)}))
    order = {task.id: i for i, task in enumerate(SUITE.tasks)}
    attempts.sort(key=lambda a: order[a.task_id])
    return tally(SUITE, attempts, backend="m")


def failed(decision):
    return {check.rule for check in decision.checks if not check.passed}


def test_a_clear_gain_is_promoted_with_sentences():
    decision = decide(report(native=False), report(right=0.9), Rules())
    assert decision.promote
    assert failed(decision) == set()
    assert any("Selection went from 0.0 % to 90.0 % of 60 tasks" in s for s in decision.sentences)


def test_a_loss_is_refused():
    decision = decide(report(right=0.9), report(right=0.5), Rules())
    assert not decision.promote
    assert {"selection", "parameters", "no part worse"} <= failed(decision)


def test_no_change_is_enough_only_without_a_minimum_gain():
    assert decide(report(), report(), Rules()).promote
    assert failed(decide(report(), report(), Rules(min_gain=0.02))) == {"selection", "parameters"}


def test_calls_that_the_runtime_does_not_surface_are_refused():
    assert "native" in failed(decide(report(native=False), report(native=False), Rules()))


def test_a_call_that_was_not_written_is_no_fault_of_its_format():
    calls = report(right=0.9)
    for reason, share in (("no_call", "100.0 %"), ("call_as_text", "90.0 %")):
        wrong = {id_ for id_, verdict in calls.verdicts.items() if not verdict.ok}
        verdicts = {
            id_: v.model_copy(update={"reason": reason}) if id_ in wrong else v for id_, v in calls.verdicts.items()
        }
        decision = decide(report(native=False), calls.model_copy(update={"verdicts": verdicts}), Rules())
        assert ("native" in failed(decision)) == (reason == "call_as_text")
        assert f"surfaced {share} of the calls" in decision.sentences[0]


def test_a_candidate_that_never_calls_is_refused():
    silent = report()
    verdicts = {i: v.model_copy(update={"ok": False, "reason": "no_call"}) for i, v in silent.verdicts.items()}
    assert "native" in failed(decide(report(native=False), silent.model_copy(update={"verdicts": verdicts}), Rules()))


def test_more_unwanted_calls_are_refused_even_with_better_selection():
    decision = decide(report(right=0.3), report(right=1.0, silent=0.2), Rules())
    assert "no part worse" in failed(decision)
    assert any("want no call were left alone in 20.0 %" in s for s in decision.sentences)


def test_a_slow_candidate_is_refused():
    assert failed(decide(report(right=0.5), report(p50=400), Rules())) == {"latency"}
    assert decide(report(right=0.5), report(p50=140), Rules()).promote


def test_reports_without_a_common_task_cannot_be_decided():
    other = report().model_copy(update={"verdicts": {"x": next(iter(report().verdicts.values()))}})
    with pytest.raises(DataError):
        decide(report(), other, Rules())


def test_a_missing_run_says_what_there_is(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(DataError, match=r'No collect run "last" \(found: none\)'):
        find_run(store, "collect", "last")
    with store.write("collect", {}, {}) as folder:
        pass
    assert find_run(store, "collect", "last") == folder.run
    assert find_run(store, "collect", folder.run.id) == folder.run


def test_the_documented_training_defaults():
    sft = SFT()
    assert (sft.r, sft.alpha, sft.dropout) == (16, 32, 0.0)
    assert sft.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert (sft.learning_rate, sft.batch, sft.accumulation, sft.max_seq_length) == (2e-4, 2, 8, 2048)
    assert 1 <= sft.epochs <= 3


def test_a_table_in_part_changes_the_rounds_own_defaults():
    config = Tune.model_validate({"sft": {"epochs": 3}, "train": {"tasks": 10}})
    assert config.sft == Tune().sft.model_copy(update={"epochs": 3.0})
    assert config.train == Tune().train.model_copy(update={"tasks": 10})
    with pytest.raises(ValidationError, match="epoch"):
        Tune.model_validate({"sft": {"epoch": 3}})


def test_the_documented_file_holds_the_defaults():
    text = (Path(__file__).parents[1] / "docs" / "tune.md").read_text(encoding="utf-8")
    written = tomllib.loads(text.split("```toml\n")[1].split("```")[0])
    named = {"name": "mine", "hub": ".mcp.json", "execute": False}
    train = Tune().train.model_copy(update={"unseen": ("git_show",)})
    assert Tune.model_validate(written) == Tune().model_copy(update={**named, "train": train})


def test_a_hub_file_is_kept_as_a_hash_only(tmp_path):
    """It may hold secrets, and a run's key is written to disk."""
    hub = tmp_path / "mcp.json"
    hub.write_text('{"mcpServers": {"a": {"command": "x", "env": {"KEY": "sk-SECRET"}}}}')
    assert "SECRET" not in hub_hash(str(hub))
    assert hub_hash(str(hub)) == hub_hash(str(hub))
    with pytest.raises(SetupError, match="Cannot read the hub file"):
        hub_hash(str(tmp_path / "none.json"))


def test_a_name_that_could_leave_its_folder_is_refused():
    with pytest.raises(ValidationError):
        Tune(name="../up")


def test_a_suite_beside_may_refuse_and_cannot_promote():
    pair = report(right=0.9), report(right=0.4)
    decision = decide(report(right=0.5), report(right=0.9), Rules(), {"recorded": pair})
    assert failed(decision) == {"recorded not worse"}
    assert any("suite recorded fell from 90.0 % to 40.0 %" in sentence for sentence in decision.sentences)
    better = report(right=0.1), report(right=1.0)
    assert "parameters" in failed(decide(report(right=0.9), report(right=0.5), Rules(), {"recorded": better}))
    assert decide(report(right=0.5), report(right=0.9), Rules(), {"recorded": better}).promote
    noisier = report(silent=1.0), report(silent=0.2)
    assert failed(decide(report(right=0.5), report(right=0.9), Rules(), {"unseen": noisier})) == {"unseen not worse"}


def general(right=40, bits=1.0, passages=4):
    """A check of general skill: so many of 40 questions right, and a text that takes so many bits a byte."""
    suite = questions()
    attempts = [gold_attempt(task) for task in suite.tasks]
    ok = {
        task.id: Verdict(ok=n < right, selection_ok=True, parameters_ok=True, score=1, reason="ok")
        for n, task in enumerate(suite.tasks)
    }
    found = [
        Passage(id=str(n), kind="prose", hash=str(n), bytes=100 + n, tokens=30, nats=(100 + n) * bits * math.log(2))
        for n in range(passages)
    ]
    whole = tally(suite, [a.model_copy(update={"verdict": ok[a.task_id]}) for a in attempts], backend="m")
    return whole.model_copy(update={"verdicts": ok, "perplexity": estimated("text", found)})


def test_a_candidate_that_forgot_the_rest_is_refused():
    better = report(right=0.5), report(right=0.9), Rules(), {}
    assert decide(*better, (general(), general(bits=1.019))).promote
    decision = decide(*better, (general(), general(bits=1.03)))
    assert failed(decision) == {"general text"}
    assert any(
        "1.030 bits a byte, with the untuned base 1.000: +3.0 % (allowed +2.0 %)" in s for s in decision.sentences
    )
    assert failed(decide(*better, (general(40), general(25)))) == {"general answers"}
    assert decide(*better, (general(40), general(38))).promote


def test_what_was_not_measured_is_said():
    after = general().model_copy(update={"perplexity": Perplexity(text="text", why="the server gives none")})
    decision = decide(report(right=0.5), report(right=0.9), Rules(), {}, (general(), after))
    assert decision.promote
    assert "A fixed text was not compared: the server gives none." in decision.sentences


@pytest.mark.parametrize("methods", [(), ("dpo",), ("sft", "sft"), ("dpo", "sft"), ("sft", "ppo")])
def test_methods_come_in_one_order(methods):
    with pytest.raises(ValidationError, match="methods"):
        Tune(methods=methods)
