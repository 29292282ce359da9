"""Perplexity: arithmetic against models whose probabilities are known, intervals that cover, and one real model."""

from __future__ import annotations

import ast
import math
import random
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_tuner.evaluation.compare import compare, open_parts
from llm_tuner.evaluation.general import questions
from llm_tuner.evaluation.intervals import student
from llm_tuner.evaluation.perplexity import (
    ALL,
    PASSAGES,
    Text,
    compare_texts,
    estimated,
    measure_perplexity,
    passages,
    text_hash,
)
from llm_tuner.evaluation.render import comparison_to_html, comparison_to_markdown, to_html, to_markdown, write
from llm_tuner.models.llamacpp import Embedded
from llm_tuner.models.ollama import Ollama
from llm_tuner.models.openai_compatible import OpenAICompatible
from llm_tuner.store.suite import save
from llm_tuner.types import Backend, Event, ModelError, Passage, Perplexity, Report, Verdict


class Bytes:
    """A model of which every byte is a token of the same probability."""

    name = "bytes"

    def __init__(self, p: float = 1 / 256, failing_at: int = 1 << 30) -> None:
        self.p, self.failing_at, self.asked = p, failing_at, 0

    def chat(self, *_: Any) -> Any:
        raise NotImplementedError

    def log_probabilities(self, text: str) -> list[float]:
        self.asked += 1
        if self.asked == self.failing_at:
            raise ModelError("gone")
        return [math.log(self.p)] * len(text.encode())


def result(steps: Generator[Event, None, Perplexity]) -> tuple[Perplexity, list[Event]]:
    events = []
    while True:
        try:
            events.append(next(steps))
        except StopIteration as end:
            return end.value, events


def test_the_text_is_whole() -> None:
    texts = passages()
    kinds = [text.kind for text in texts]
    assert {kind: kinds.count(kind) for kind in kinds} == {"english": 8, "japanese": 8, "python": 8}
    assert len({text.id for text in texts}) == len({text.hash for text in texts}) == 24
    for text in texts:
        assert text.id.startswith(text.kind)
        if text.kind == "python":
            ast.parse(text.text)
    assert text_hash(texts) != text_hash(texts[::-1])


def test_every_byte_as_likely_as_any_other_takes_eight_bits() -> None:
    found, events = result(measure_perplexity(Bytes()))
    assert list(found.bits_per_byte) == list(found.perplexity) == ["all", "english", "japanese", "python"]
    for kind, bits in found.bits_per_byte.items():
        assert (bits.value, bits.low, bits.high) == pytest.approx((8, 8, 8))
        assert found.perplexity[kind].value == pytest.approx(256)
    assert sum(p.bytes for p in found.passages) == sum(len(t.text.encode()) for t in passages())
    assert [event.done for event in events] == list(range(1, 25))
    assert (found.text, found.why) == (text_hash(passages()), "")


def test_a_stopped_measurement_goes_on(tmp_path: Path) -> None:
    found, _ = result(measure_perplexity(Bytes(failing_at=11), out=tmp_path))
    assert (found.passages, found.why) == ((), "not measured: gone")
    with (tmp_path / PASSAGES).open("a") as file:
        file.write('{"id": "english-')  # killed while writing
    again = Bytes()
    whole, _ = result(measure_perplexity(again, out=tmp_path))
    assert again.asked == 14
    assert whole == result(measure_perplexity(Bytes()))[0]


def test_another_text_is_asked_about_again(tmp_path: Path) -> None:
    texts = [Text(id=f"t-{i}", kind="t", text=f"text {i}") for i in range(4)]
    result(measure_perplexity(Bytes(), texts, out=tmp_path))
    changed = Bytes()
    result(measure_perplexity(changed, [texts[0]._replace(text="other"), *texts[1:]], out=tmp_path))
    assert changed.asked == 1


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        (Ollama("qwen:7b", "http://127.0.0.1:1"), "not measurable here: Ollama, which serves qwen:7b"),
        (OpenAICompatible("m", base_url="http://127.0.0.1:1/v1"), "here: an OpenAI-compatible server, which serves m"),
    ],
)
def test_a_server_that_does_not_say_is_not_measured(backend: Backend, words: str) -> None:
    found, events = result(measure_perplexity(backend))
    assert words in found.why
    assert (found.passages, found.bits_per_byte, events) == ((), {}, [])


# ----------------------------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize(("freedom", "t"), [(3, 3.1824), (7, 2.3646), (15, 2.1314), (23, 2.0687), (100, 1.9840)])
def test_student(freedom: int, t: float) -> None:
    assert student(freedom) == pytest.approx(t, rel=2e-3)


DRAWN = [(1.5, 200, "a")] * 8 + [(0.8, 100, "b")] * 16


def passage(number: int, bits: float, bytes_: int, kind: str = "k") -> Passage:
    return Passage(id=f"{number}", kind=kind, hash=f"{number}", bytes=bytes_, tokens=9, nats=bits * math.log(2))


def test_intervals_cover_what_the_passages_were_drawn_from() -> None:
    """Two kinds: 8 passages of 200 bytes with 1.5 bits a byte, and 16 of 100 with 0.8: 1.15 bits a byte in all."""
    draw, covered, widths = np.random.default_rng(1), 0, []
    for _ in range(1000):
        found = estimated(
            "t",
            [passage(i, n * (mean + 0.2 * draw.standard_normal()), n, kind) for i, (mean, n, kind) in enumerate(DRAWN)],
        )
        all_ = found.bits_per_byte[ALL]
        covered += all_.low <= 1.15 <= all_.high
        widths.append(all_.high - all_.low)
    assert 930 <= covered <= 970
    # What the kinds differ by is no chance. 0.2 bits a byte are, and of these sqrt(8 * 200^2 + 16 * 100^2) / 3200.
    assert np.mean(widths) == pytest.approx(2 * 2.07 * 0.2 * 480_000**0.5 / 3200, rel=0.05)


def pair(shift: float, noise: float) -> tuple[Perplexity, Perplexity]:
    draw = random.Random(3)
    old = [passage(i, 200 * draw.uniform(0.5, 2.0), 200) for i in range(24)]
    new = [p.model_copy(update={"nats": p.nats + 200 * math.log(2) * draw.gauss(shift, noise)}) for p in old]
    return estimated("t", old), estimated("t", new)


def test_a_rise_of_every_passage_is_seen_where_the_passages_themselves_differ_much_more() -> None:
    before, after = pair(shift=0.02, noise=0.01)
    assert after.bits_per_byte[ALL].low < before.bits_per_byte[ALL].value  # side by side they could be one
    (change, kind) = compare_texts(before, after)
    assert (change.kind, change.n, kind.kind, change.regression) == (ALL, 24, "k", True)
    assert 0.01 < change.low < change.difference < change.high < 0.03
    assert change.difference == pytest.approx(change.after - change.before)
    assert change.ratio == pytest.approx(change.after / change.before)
    assert not compare_texts(after, before)[0].regression


def test_noise_is_no_regression() -> None:
    assert not compare_texts(*pair(shift=0.0, noise=0.02))[0].regression


# ------------------------------------------------------------------------------------------------ reports, comparisons


def report(found: Perplexity | None) -> Report:
    right = Verdict(ok=True, selection_ok=True, parameters_ok=True, score=1, reason="ok")
    tasks = [task.id for task in questions().tasks]
    return Report(
        suite="general", suite_hash="h", backend="b", n=40, rates={}, verdicts=dict.fromkeys(tasks, right)
    ).model_copy(update={"perplexity": found, "rules": "general"})


def parts(folder: Path, found: Perplexity | None) -> Any:
    write(folder, report(found))
    save(questions(), folder / "suite.jsonl")
    return open_parts(str(folder))


def test_two_models_are_compared_by_it(tmp_path: Path) -> None:
    good, bad = (result(measure_perplexity(Bytes(p)))[0] for p in (1 / 2, 1 / 4))
    found = compare(parts(tmp_path / "good", good), parts(tmp_path / "bad", bad))
    assert [(change.kind, change.before, change.after) for change in found.texts] == [
        (kind, pytest.approx(1), pytest.approx(2)) for kind in ("all", "english", "japanese", "python")
    ]
    assert (found.regressions, found.worse, found.notes) == ((), ("bits_per_byte",), ())
    assert compare(parts(tmp_path / "bad", bad), parts(tmp_path / "good", good)).worse == ()
    for page in (comparison_to_html(found), comparison_to_markdown(found), comparison_to_html(found, "ja")):
        assert "+1.0000" in page
        assert "+100.00 %" in page


@pytest.mark.parametrize(
    ("old", "new", "note"),
    [
        (Perplexity(text="a", why="not measurable here."), None, "Perplexity of before: not measurable here."),
        (None, Perplexity(text="a", why="not measured: x"), "Perplexity of before: not in the report."),
        (estimated("a", []), estimated("b", []), "different texts"),
    ],
)
def test_what_cannot_be_compared_is_said(
    tmp_path: Path, old: Perplexity | None, new: Perplexity | None, note: str
) -> None:
    found = compare(parts(tmp_path / "old", old), parts(tmp_path / "new", new))
    assert (found.texts, found.worse) == ((), ())
    assert any(note in said for said in found.notes)


def test_reports_without_it_say_nothing_of_it(tmp_path: Path) -> None:
    assert compare(parts(tmp_path / "a", None), parts(tmp_path / "b", None)).notes == ()
    assert "perplexity" not in (tmp_path / "a" / "report.json").read_text(encoding="utf-8")


def test_the_pages_show_it_or_why_not() -> None:
    measured = report(result(measure_perplexity(Bytes()))[0])
    refused = report(Perplexity(text="a", why="not measurable here: <b>"))
    for page in (to_html(None, measured), to_markdown(None, measured), to_html(None, measured, language="ja")):
        assert "8.000" in page
        assert "256.0" in page
    assert "not measurable here: &lt;b&gt;" in to_html(None, refused)
    assert Report.model_validate_json(measured.model_dump_json()) == measured


# -------------------------------------------------------------------------------------------------------- a real model


@pytest.fixture(scope="module")
def smol(smol_gguf: Path) -> Iterator[Embedded]:
    with Embedded(smol_gguf, name="smol", context=512) as embedded:
        yield embedded


@pytest.mark.weights
def test_a_real_model_foresees_text_and_not_its_words_in_disorder(smol: Embedded) -> None:
    english = [text for text in passages() if text.kind == "english"][:2]
    words = [text.text.split() for text in english]
    for some in words:
        random.Random(0).shuffle(some)
    disorder = [text._replace(text=" ".join(some)) for text, some in zip(english, words, strict=True)]
    real, shuffled = (result(measure_perplexity(smol, texts))[0] for texts in (english, disorder))
    assert 0.8 < real.bits_per_byte[ALL].value < 1.6
    assert 15 < real.perplexity[ALL].value < 100
    assert shuffled.perplexity[ALL].value > 5 * real.perplexity[ALL].value
