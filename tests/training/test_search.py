"""The search: a real study finds what is best, prunes by the loss, survives kills, and never sees held-out."""

import math
import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("optuna")

from llm_tuner.training.rows import mixed
from llm_tuner.training.search import FAILURES, Space, search, split
from llm_tuner.types import (
    DataError,
    Event,
    Message,
    NoCall,
    Row,
    SetupError,
    Task,
    TrainingError,
    TrainingInterrupted,
)

SPACE = Space(keep={"no_call": 0.2})


def hill(settings):
    """Highest (1) at a rate of 5e-4; rank and alpha matter little, the mix not at all."""
    return 1 - abs(math.log10(settings["learning_rate"] / 5e-4)) ** 2 - 0.001 * settings["r"] / 64


def analytic(settings):
    yield Event(step="train", message="training")
    return hill(settings)


def drain(steps, seen=None):
    try:
        while True:
            event = next(steps)
            if seen is not None:
                seen.append(event)
    except StopIteration as stop:
        return stop.value


def test_a_study_finds_the_top_and_says_what_matters(tmp_path):
    found = drain(search(SPACE, analytic, tmp_path, trials=30))
    assert [trial.state for trial in found.trials] == ["done"] * 30
    best = next(trial for trial in found.trials if trial.number == found.best)
    assert best.accuracy == max(trial.accuracy for trial in found.trials) > 0.98
    assert set(best.settings) == {"r", "alpha", "learning_rate", "epochs", "keep_no_call"}
    assert max(found.importance, key=found.importance.get) == "learning_rate"
    assert sum(found.importance.values()) == pytest.approx(1, abs=0.01)
    for trial in found.trials:
        assert 4 <= trial.settings["r"] <= 64
        assert 0.2 <= trial.settings["keep_no_call"] <= 1
        assert 0.45 < trial.settings["alpha"] / trial.settings["r"] < 4.2


def test_the_same_seed_proposes_the_same_and_the_first_settings_come_first(tmp_path):
    first = {"r": 16, "alpha": 32, "learning_rate": 5e-4, "epochs": 1.0}
    one, two = (drain(search(SPACE, analytic, tmp_path / n, trials=4, seed=3, first=first)) for n in "ab")
    assert [t.settings for t in one.trials] == [t.settings for t in two.trials]
    assert one.trials[0].settings == {**first, "keep_no_call": 1.0}
    other = drain(search(SPACE, analytic, tmp_path / "c", trials=4, seed=4, first=first))
    assert other.trials[1].settings != one.trials[1].settings


def test_a_finished_search_is_found_again_and_more_trials_go_on_with_it(tmp_path):
    before = drain(search(SPACE, analytic, tmp_path, trials=3))

    def never(settings):
        raise AssertionError("nothing was left to try")
        yield

    assert drain(search(SPACE, never, tmp_path, trials=3)).trials == before.trials
    after = drain(search(SPACE, analytic, tmp_path, trials=5))
    assert after.trials[:3] == before.trials
    assert len(after.trials) == 5
    with pytest.raises(SetupError, match="holds another search"):
        drain(search(SPACE, analytic, tmp_path, trials=5, inputs={"base": "another"}))


def test_a_trial_whose_loss_is_worse_than_the_median_is_stopped_early(tmp_path):
    steps = []
    losses = iter([1.3, 1.2, 1.1, 1.0, 9.0, 0.5])
    closed = []

    def falling(settings):
        loss, done = next(losses), 0
        try:
            for done in range(1, 9):
                yield Event(step="train", message="", done=done, total=8, data={"held_out_loss": loss + 1 / done})
        finally:
            steps.append(done)
            closed.append(loss)
        return 10 - loss

    found = drain(search(SPACE, falling, tmp_path, trials=6))
    assert [trial.state for trial in found.trials] == ["done"] * 4 + ["pruned", "done"]
    assert steps == [8, 8, 8, 8, 2, 8]
    assert closed[4] == 9.0
    pruned = found.trials[4]
    assert pruned.accuracy is None
    assert pruned.losses == ((0.25, pytest.approx(9.5)),)
    assert found.best == 5


def test_a_failing_trial_is_kept_as_failed_and_three_in_a_row_end_the_search(tmp_path):
    calls = []

    def sometimes(settings):
        calls.append(settings)
        yield Event(step="train", message="")
        if len(calls) in (1, 3):
            raise TrainingError("the loss is not finite")
        return 0.5

    found = drain(search(SPACE, sometimes, tmp_path / "a", trials=2))
    assert [trial.state for trial in found.trials] == ["failed", "done", "failed", "done"]
    assert found.trials[0].why == "the loss is not finite"

    def always(settings):
        yield Event(step="train", message="")
        raise TrainingError("no")

    with pytest.raises(TrainingError, match="no"):
        drain(search(SPACE, always, tmp_path / "b", trials=10))
    journal = (tmp_path / "b" / "study.journal").read_text()
    assert journal.count('"why ') == FAILURES


@pytest.mark.parametrize("error", [KeyboardInterrupt, TrainingInterrupted("stopped")])
def test_ctrl_c_keeps_what_is_done_and_tries_the_settings_again(tmp_path, error):
    tried = []

    def interrupted(settings):
        tried.append(settings)
        yield Event(step="train", message="")
        if len(tried) == 3:
            raise error
        return hill(settings)

    with pytest.raises((KeyboardInterrupt, TrainingInterrupted)):
        drain(search(SPACE, interrupted, tmp_path, trials=4))
    found = drain(search(SPACE, interrupted, tmp_path, trials=4))
    assert [trial.state for trial in found.trials] == ["done", "done", "failed", "done", "done"]
    assert tried[3] == tried[2]


KILLED = """
import sys, time
from pathlib import Path
from llm_tuner.training.search import Space, search
from llm_tuner.types import Event
out = Path(sys.argv[1])
def slow(settings):
    count = len(list(out.glob("tried-*")))
    (out / f"tried-{count}").write_text(repr(settings))
    yield Event(step="train", message="")
    if count == 2:
        time.sleep(600)
    return settings["learning_rate"]
for event in search(Space(keep={"no_call": 0.2}), slow, out, trials=4):
    pass
"""


def test_a_killed_search_goes_on_with_the_trial_that_was_running(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    try:
        for _ in range(600):
            if (tmp_path / "tried-2").exists() and (tmp_path / "tried-2").read_text():
                break
            assert process.poll() is None
            time.sleep(0.1)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with (tmp_path / "study.journal").open("a") as journal:
        journal.write('{"op_code": 6, "worker')  # as a kill in the middle of a write would leave it
    (tmp_path / "study.journal.lock").touch()
    tried = []

    def quick(settings):
        tried.append(repr(settings))
        yield Event(step="train", message="")
        return settings["learning_rate"]

    found = drain(search(SPACE, quick, tmp_path, trials=4))
    assert [trial.state for trial in found.trials] == ["done", "done", "failed", "done", "done"]
    assert found.trials[2].why == "its process was killed"
    assert tried[0] == (tmp_path / "tried-2").read_text()
    assert len(tried) == 2


# ------------------------------------------------------------------------------------------------------------ the data


def task(n, side="train", request=None):
    message = Message(role="user", text=request or f"request {n}")
    return Task(messages=(message,), tools=(), expect=NoCall(reply="no"), category="no_call", split=side)


def test_the_judging_tasks_are_cut_out_by_request_and_held_out_ones_are_refused():
    tasks = [task(n) for n in range(400)]
    trained, judged = split(tasks)
    assert {t.id for t in trained} | {t.id for t in judged} == {t.id for t in tasks}
    assert {t.request for t in trained}.isdisjoint({t.request for t in judged})
    assert 70 < len(judged) < 130
    assert split(tasks[:200])[1] == tuple(t for t in tasks[:200] if t in judged)
    spoken = split([*tasks, task(0, request=judged[0].request.upper())])[1]
    assert len(spoken) == len(judged) + 1
    with pytest.raises(DataError, match="held-out side"):
        split([*tasks, task(500, side="held-out")])
    with pytest.raises(DataError, match="divided"):
        split(tasks[:1])


def test_the_mix_keeps_a_share_of_a_category_alone():
    one = Row(task_id="", prompt="p", completion="c", prompt_ids=(1, 2), completion_ids=(3,))
    rows = [one.model_copy(update={"task_id": f"t{n}"}) for n in range(400)]
    categories = {f"t{n}": "no_call" if n % 2 else "single" for n in range(400)}
    half, quarter = (mixed(rows, categories, {"no_call": share}) for share in (0.5, 0.25))
    assert sum(categories[row.task_id] == "single" for row in half) == 200
    assert 80 < sum(categories[row.task_id] == "no_call" for row in half) < 120
    assert {row.task_id for row in quarter} < {row.task_id for row in half}
    assert mixed(rows, categories, {}) == tuple(rows)


def test_impossible_spaces_are_refused():
    with pytest.raises(ValueError, match="least, most"):
        Space(r=(64, 4))
    with pytest.raises(ValueError, match="no_call"):
        Space(keep={"no_call": 0.0})


# ------------------------------------------------------------------------------------------------- with a real training


def test_short_real_trainings_are_compared_by_their_held_out_loss(tiny_gguf, tmp_path):
    pytest.importorskip("torch")
    from llm_tuner.training.sft import SFT, sft

    def rows(words):
        head = tuple(range(40, 70))
        return [
            Row(task_id=str(w), prompt="p", completion="c", prompt_ids=(*head, w, 33), completion_ids=(w, w, 0))
            for w in words
        ]

    trained = []

    def evaluate(settings):
        config = SFT(**settings, batch=2, accumulation=2, precision="float32", evaluate_every=1)
        out = tmp_path / str(len(trained))
        metrics = yield from sft(config, tiny_gguf(), rows(range(80, 92)), out, held_out=rows(range(92, 96)))
        trained.append(metrics["steps"])
        return -metrics["held_out_loss"]

    space = Space(r=(4, 8), learning_rate=(1e-4, 1e-2), epochs=(1.0, 2.0), keep={})
    seen = []
    found = drain(search(space, evaluate, tmp_path / "study", trials=3), seen)
    assert len(found.trials) == 3
    done = [trial for trial in found.trials if trial.state == "done"]
    assert len(done) >= 2
    assert all(3 <= steps <= 6 for steps in trained)
    rates = {trial.settings["learning_rate"]: trial.accuracy for trial in done}
    assert found.trials[found.best].accuracy == max(rates.values())
    assert all(trial.losses[-1][1] == pytest.approx(-trial.accuracy, abs=1e-6) for trial in done)
    assert any(event.step == "train" for event in seen)
