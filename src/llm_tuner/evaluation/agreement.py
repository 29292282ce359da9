"""Whether a served file is the model that was trained: the same rows, token by token, trainer against server.

Not an evaluation of answers: a tuned model may answer wrong in the trainer too. The rule that it protects: the adapter
that vanished is told apart from the noise of quantising, by also holding the served file against the base as served;
only the places where both differ from each other can tell.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Literal, Protocol

from pydantic import Field

from llm_tuner.evaluation.intervals import rate
from llm_tuner.store import append_jsonl, resume_jsonl
from llm_tuner.types import DataError, Event, Prediction, Rate, Row, Value

Word = Literal["holds", "lost", "coarse", "unknown"]


class Foreseeing(Protocol):
    """A served model that foresees given tokens: ln p of each, and the likeliest token at its place."""

    def predict(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> tuple[list[float], list[int]]: ...


class Tolerance(Value):
    """How far a served file may be from the trainer.

    `kept`: the least share of what training gained in log-probability that the served file must have. Under a half it
    is nearer to the base than to what was trained; 0.8 leaves room for the noise of 4 bits on short completions.
    `same`: the least share of equal greedy tokens. It is missed only where the whole 95 % interval lies below it, so
    that a few rows do not condemn a file. The trainer's own bfloat16 against float32 costs 1 to 2 % (docs/export.md),
    8 bits next to nothing, 4 bits a few per cent: below 0.9 a call of 30 tokens rarely comes out as trained.
    `gain`: nats a token that training must have gained before `kept` means anything; less is noise of both sides.
    `places`: fewer compared tokens than this say nothing.
    """

    kept: float = Field(0.8, ge=0, le=1)
    same: float = Field(0.9, ge=0, le=1)
    gain: float = Field(0.02, gt=0)
    places: int = Field(50, ge=1)


class Agreement(Value):
    """A served file against the trainer, over the same `rows`, all their completion tokens.

    `same`: places with the trainer's greedy token; `same_as_base`: with that of the base as served. `changed`: places
    where trainer and base differ, of which the served file has the trainer's token in `followed` and the base's in
    `stayed`. `mean_difference`, `max_difference`: of ln p, absolute, in nats. `gain`: nats a token that training gained
    over the base as served; `kept`: the served file's share of it (None where there was no gain).
    """

    name: str
    rows: int
    same: Rate
    same_as_base: Rate
    changed: int
    followed: Rate
    stayed: Rate
    mean_difference: float
    max_difference: float
    gain: float
    kept: float | None
    word: Word
    sentence: str

    @property
    def refused(self) -> bool:
        """Whether the file must not be taken for what was trained."""
        return self.word in ("lost", "coarse")


def serve(model: Foreseeing, rows: Sequence[Row], out: Path) -> Generator[Event, None, tuple[Prediction, ...]]:
    """A served model's predictions of these rows, in their order, kept in `out` (JSONL): a killed call goes on."""
    done = {prediction.row: prediction for prediction in resume_jsonl(out, Prediction)}
    for number, row in enumerate(rows, start=1):
        if row.fingerprint not in done:
            said, greedy = model.predict(row.prompt_ids, row.completion_ids)
            done[row.fingerprint] = Prediction(row=row.fingerprint, log_probabilities=tuple(said), greedy=tuple(greedy))
            append_jsonl(out, done[row.fingerprint])
        yield Event(step="agreement", message=out.stem, done=number, total=len(rows), unit="rows")
    return tuple(done[row.fingerprint] for row in rows)


def agree(
    name: str,
    trainer: Sequence[Prediction],
    served: Sequence[Prediction],
    base: Sequence[Prediction],
    tolerance: Tolerance | None = None,
) -> Agreement:
    """Holds the file `name` as served against the trainer and against the base as served; the same rows in one order.

    Raises DataError where they are not.
    """
    tolerance = tolerance or Tolerance()
    if not [p.row for p in trainer] == [p.row for p in served] == [p.row for p in base]:
        raise DataError(f"{name}: trainer, file and base were asked about different rows. Measure them again.")
    places = [
        (t, s, b)
        for one, two, three in zip(trainer, served, base, strict=True)
        for t, s, b in zip(one.greedy, two.greedy, three.greedy, strict=True)
    ]
    said = [
        [value for prediction in side for value in prediction.log_probabilities] for side in (trainer, served, base)
    ]
    apart = [abs(t - s) for t, s in zip(said[0], said[1], strict=True)]
    gain = fmean(said[0]) - fmean(said[2]) if places else 0.0
    changed = [(t, s, b) for t, s, b in places if t != b]
    found = Agreement(
        name=name,
        rows=len(trainer),
        same=rate(sum(t == s for t, s, _ in places), len(places)),
        same_as_base=rate(sum(s == b for _, s, b in places), len(places)),
        changed=len(changed),
        followed=rate(sum(s == t for t, s, _ in changed), len(changed)),
        stayed=rate(sum(s == b for _, s, b in changed), len(changed)),
        mean_difference=fmean(apart) if apart else 0.0,
        max_difference=max(apart, default=0.0),
        gain=gain,
        kept=(fmean(said[1]) - fmean(said[2])) / gain if gain >= tolerance.gain else None,
        word="unknown",
        sentence="",
    )
    word = _word(found, tolerance)
    return found.model_copy(update={"word": word, "sentence": _sentence(found, word, tolerance)})


def _word(found: Agreement, tolerance: Tolerance) -> Word:
    """Lost before coarse: a vanished adapter may still write most of the trainer's tokens, where both say the same."""
    if found.same.n < tolerance.places:
        return "unknown"
    if found.stayed.k > found.followed.k or (found.kept is not None and found.kept < tolerance.kept):
        return "lost"
    if found.same.high is not None and found.same.high < tolerance.same:
        return "coarse"
    return "holds"


def _sentence(found: Agreement, word: Word, tolerance: Tolerance) -> str:
    """The verdict, by the file's name, with the numbers that decide."""
    if word == "unknown":
        return (
            f"{found.name}: {found.same.n} tokens were compared, at least {tolerance.places} are needed. "
            "Measure on more rows."
        )
    same = f"the trainer's own token at {_percent(found.same)} of {found.same.n} places"
    base = f"the base's at {_percent(found.same_as_base)}"
    where = f"; where training changed the token ({found.changed}), it is kept at {_percent(found.followed)}"
    kept = "" if found.kept is None else f"; {found.kept * 100:.0f} % of the gained log-probability is in it"
    verb = {"holds": "holds the adapter", "lost": "loses the adapter", "coarse": "is too coarse for the adapter"}[word]
    return f"{found.name} {verb}: {same}, {base}{where if found.changed else ''}{kept}."


def _percent(found: Rate) -> str:
    if found.value is None or found.low is None or found.high is None:
        return "none"
    return f"{found.value * 100:.1f} % ({found.low * 100:.0f}-{found.high * 100:.0f})"
