"""How well a model foresees a fixed text: bits a byte, and perplexity a token. Lower is better.

Not a benchmark: no published number is over this text. It is short, carried by the package (passages.jsonl: prose in
English and Japanese, Python; written for this), and the same for every model. The rule it protects: each
log-probability is the runtime's own, of the very token of the text; a runtime that does not give them is not measured,
and two measurements are only compared where their text was the same.

Each passage stands by itself, after the model's BOS (or its EOS, where it has no BOS), and all its tokens count. The
passages are the sample: an interval says how much another text of such passages, as many of each kind, might differ. It
is that of a ratio of sums, stratified by kind (Cochran 1977, Sampling Techniques, 6.11), with Student's t.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from statistics import variance
from typing import NamedTuple, Protocol, runtime_checkable

from llm_tuner.evaluation.intervals import student
from llm_tuner.store import append_jsonl, resume_jsonl
from llm_tuner.types import Backend, Estimate, Event, ModelError, Passage, Perplexity, Value, content_hash

PASSAGES = "passages.jsonl"
ALL = "all"

_INSTEAD = "Measure the model's file instead: --model PATH.gguf."


@runtime_checkable
class Predicting(Protocol):
    """A backend that says how probable each token of a given text is: ln p, given the tokens before it."""

    def log_probabilities(self, text: str) -> list[float]: ...


class Text(NamedTuple):
    """One passage as the package carries it."""

    id: str
    kind: str
    text: str

    @property
    def hash(self) -> str:
        return content_hash(self.text)


class TextChange(Value):
    """Bits a byte of one kind of passages, before and after; `ratio` is after / before.

    `difference` is after - before with its 95 % interval over the `n` passages, each compared with itself.
    `regression`: worse, and the whole interval is above zero.
    """

    kind: str
    n: int
    before: float
    after: float
    difference: float
    low: float
    high: float
    ratio: float
    regression: bool


@cache
def passages() -> tuple[Text, ...]:
    """The fixed text."""
    lines = resources.files("llm_tuner.evaluation").joinpath(PASSAGES).read_text(encoding="utf-8").splitlines()
    return tuple(Text(**json.loads(line)) for line in lines)


def text_hash(texts: Sequence[Text]) -> str:
    """What names a text: two perplexities of different ones say nothing about each other."""
    return content_hash([text.text for text in texts])


def measure_perplexity(
    backend: Backend, texts: Sequence[Text] | None = None, *, out: Path | None = None
) -> Generator[Event, None, Perplexity]:
    """Ask about every passage; an event each. With `out` they are kept in out/passages.jsonl and not asked about again.

    A backend that gives no log-probabilities of a text, or fails at it, makes a Perplexity that says why.
    """
    texts = passages() if texts is None else texts
    name = text_hash(texts)
    if not isinstance(backend, Predicting):
        return Perplexity(text=name, why=f"not measurable here: {_server(backend)}. {_INSTEAD}")
    kept = {passage.hash: passage for passage in resume_jsonl(out / PASSAGES, Passage)} if out is not None else {}
    found: list[Passage] = []
    for text in texts:
        if text.hash not in kept:
            try:
                kept[text.hash] = _measured(backend, text)
            except ModelError as error:
                return Perplexity(text=name, why=f"not measured: {error}")
            if out is not None:
                append_jsonl(out / PASSAGES, kept[text.hash])
        found.append(kept[text.hash])
        yield Event(step="perplexity", message=text.id, done=len(found), total=len(texts), unit="passages")
    return estimated(name, found)


def estimated(text: str, found: Sequence[Passage]) -> Perplexity:
    """Both numbers of the passages, all together and by kind."""
    return Perplexity(
        text=text,
        passages=tuple(found),
        bits_per_byte={kind: _bits(some) for kind, some in _by_kind(found).items()},
        perplexity={kind: _a_token(some) for kind, some in _by_kind(found).items()},
    )


def compare_texts(before: Perplexity, after: Perplexity) -> tuple[TextChange, ...]:
    """What changed, all passages first, then each kind. Nothing where the texts differ or one was not measured."""
    if before.text != after.text or not (before.passages and after.passages):
        return ()
    old = {passage.hash: passage for passage in before.passages}
    return tuple(
        _change(kind, [(old[new.hash], new) for new in some]) for kind, some in _by_kind(after.passages).items()
    )


def _server(backend: Backend) -> str:
    kind = {"Ollama": "Ollama", "OpenAICompatible": "an OpenAI-compatible server"}.get(type(backend).__name__)
    return f"{kind or type(backend).__name__}, which serves {backend.name}, gives no log-probabilities of a given text"


def _measured(backend: Predicting, text: Text) -> Passage:
    said = backend.log_probabilities(text.text)
    return Passage(
        id=text.id,
        kind=text.kind,
        hash=text.hash,
        bytes=len(text.text.encode()),
        tokens=len(said),
        nats=-math.fsum(said),
    )


def _by_kind(found: Sequence[Passage]) -> dict[str, list[Passage]]:
    kinds: dict[str, list[Passage]] = {}
    for passage in found:
        kinds.setdefault(passage.kind, []).append(passage)
    kinds = {kind: some for kind, some in kinds.items() if len(some) > 1}  # one alone has no interval
    return {ALL: [passage for some in kinds.values() for passage in some], **kinds} if kinds else {}


def _bits(found: Sequence[Passage]) -> Estimate:
    return _estimate(*_ratio([Term(p.kind, p.nats / math.log(2), p.bytes) for p in found]))


def _a_token(found: Sequence[Passage]) -> Estimate:
    return _estimate(*_ratio([Term(p.kind, p.nats, p.tokens) for p in found]), math.exp)


def _estimate(value: float, half: float, scale: Callable[[float], float] = float) -> Estimate:
    return Estimate(value=scale(value), low=scale(value - half), high=scale(value + half))


def _change(kind: str, pairs: Sequence[tuple[Passage, Passage]]) -> TextChange:
    difference, half = _ratio([Term(new.kind, (new.nats - old.nats) / math.log(2), new.bytes) for old, new in pairs])
    before, after = (_bits([pair[side] for pair in pairs]).value for side in (0, 1))
    return TextChange(
        kind=kind,
        n=len(pairs),
        before=before,
        after=after,
        difference=difference,
        low=difference - half,
        high=difference + half,
        ratio=after / before,
        regression=difference - half > 0,
    )


class Term(NamedTuple):
    """What one passage adds to the two sums."""

    kind: str
    over: float
    under: float


def _ratio(terms: Sequence[Term]) -> tuple[float, float]:
    """The ratio of the two sums, and half of its 95 % interval. There are two passages of each kind or more."""
    total = math.fsum(term.under for term in terms)
    ratio = math.fsum(term.over for term in terms) / total
    residuals: dict[str, list[float]] = {}
    for term in terms:
        residuals.setdefault(term.kind, []).append(term.over - ratio * term.under)
    squares = math.fsum(len(some) * variance(some) for some in residuals.values())
    return ratio, student(len(terms) - len(residuals)) * math.sqrt(squares) / total
