"""Agreement: what holds, what is lost, what is only coarse, told apart by numbers that are known."""

import pytest

from llm_tuner.evaluation.agreement import Tolerance, agree, serve
from llm_tuner.types import DataError, Prediction, Row

BASE, TUNED, OTHER = 1, 2, 3


def side(greedy, nats):
    """Ten rows of ten tokens: `greedy[n]` is the token at place n of each row, `nats` the ln p of every token."""
    return [Prediction(row=str(n), log_probabilities=(nats,) * 10, greedy=tuple(greedy)) for n in range(10)]


TRAINER = side([TUNED] * 4 + [BASE] * 6, -0.1)
STOCK = side([BASE] * 10, -1.1)


def test_a_file_with_the_trainers_tokens_and_log_probabilities_holds():
    found = agree("Q8_0", TRAINER, side([TUNED] * 4 + [BASE] * 6, -0.12), STOCK)
    assert (found.word, found.refused) == ("holds", False)
    assert (found.same.k, found.same.n, found.same_as_base.k, found.changed) == (100, 100, 60, 40)
    assert (found.followed.k, found.stayed.k) == (40, 0)
    assert found.same.low == pytest.approx(0.963, abs=1e-3)
    assert found.mean_difference == pytest.approx(0.02)
    assert found.gain == pytest.approx(1.0)
    assert found.kept == pytest.approx(0.98)
    assert found.sentence.startswith(
        "Q8_0 holds the adapter: the trainer's own token at 100.0 % (96-100) of 100 places, the base's at 60.0 %"
    )


def test_the_base_itself_has_lost_the_adapter():
    found = agree("Q4_K_M", TRAINER, STOCK, STOCK)
    assert (found.word, found.refused, found.kept) == ("lost", True, 0.0)
    assert "Q4_K_M loses the adapter" in found.sentence
    assert "(40), it is kept at 0.0 %" in found.sentence


def test_most_tokens_alike_is_no_proof_that_the_adapter_is_there():
    """95 of 100 tokens are the trainer's, but at the five that training changed the base's stand."""
    trainer = [*side([BASE] * 10, -0.1)[:9], Prediction(row="9", log_probabilities=(-0.1,) * 10, greedy=(TUNED,) * 10)]
    file = side([BASE] * 10, -0.12)
    found = agree("Q4_K_M", trainer, file, STOCK)
    assert found.same.value == 0.9
    assert found.word == "lost"


def test_the_lost_gain_counts_where_the_tokens_are_the_same():
    same = side([BASE] * 10, -0.1)
    assert agree("x", same, side([BASE] * 10, -0.9), STOCK).word == "lost"
    assert agree("x", same, side([BASE] * 10, -0.15), STOCK).word == "holds"
    found = agree("x", side([BASE] * 10, -1.1), side([BASE] * 10, -1.2), STOCK)
    assert (found.word, found.kept) == ("holds", None)


def test_noise_that_follows_neither_side_is_coarse():
    found = agree("Q4_K_S", TRAINER, side([TUNED] * 4 + [OTHER] * 3 + [BASE] * 3, -0.2), STOCK)
    assert (found.word, found.refused) == ("coarse", True)
    assert "is too coarse for the adapter" in found.sentence


def test_few_tokens_say_nothing_and_the_bounds_are_yours():
    found = agree("x", TRAINER[:2], STOCK[:2], STOCK[:2])
    assert (found.word, found.refused) == ("unknown", False)
    assert "20 tokens were compared, at least 50 are needed" in found.sentence
    assert agree("x", TRAINER[:2], STOCK[:2], STOCK[:2], Tolerance(places=20)).word == "lost"
    file = side([TUNED] * 4 + [OTHER] * 3 + [BASE] * 3, -0.2)
    assert agree("x", TRAINER, file, STOCK, Tolerance(same=0.6)).word == "holds"


def test_different_rows_are_not_compared():
    with pytest.raises(DataError, match="different rows"):
        agree("x", TRAINER, STOCK[1:], STOCK)


class Counting:
    """A served model that counts how often it is asked."""

    def __init__(self):
        self.asked = 0

    def predict(self, prompt_ids, completion_ids):
        self.asked += 1
        return [-0.5] * len(completion_ids), list(completion_ids)


def test_asking_goes_on_after_a_kill_and_keeps_the_order(tmp_path):
    rows = [Row(task_id=str(n), prompt="", completion="", prompt_ids=(1, n), completion_ids=(n, 7)) for n in range(5)]
    model = Counting()
    steps = serve(model, rows, tmp_path / "served.jsonl")
    next(steps)
    next(steps)
    steps.close()
    with (tmp_path / "served.jsonl").open("a") as file:
        file.write('{"row": "half')
    steps = serve(model, rows, tmp_path / "served.jsonl")
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            found = stop.value
            break
    assert model.asked == 5
    assert [one.row for one in found] == [row.fingerprint for row in rows]
    assert [one.greedy for one in found] == [row.completion_ids for row in rows]
