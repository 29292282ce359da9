"""The questions are right, answers are recognised in what people and models write, and two models can be compared."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from llm_tuner.evaluation import general, perplexity
from llm_tuner.evaluation.compare import compare, open_parts
from llm_tuner.evaluation.general import judge, questions
from llm_tuner.evaluation.target import Located, Target
from llm_tuner.models.llamacpp import Embedded
from llm_tuner.models.ollama import OllamaServer
from llm_tuner.models.ollama_templates import QWEN_TEMPLATE
from llm_tuner.store.suite import load
from llm_tuner.types import (
    GREEDY,
    Attempt,
    ChatOptions,
    Event,
    Message,
    NoCall,
    Reply,
    Report,
    Task,
    ToolSpec,
)


def test_every_question_has_its_right_answer() -> None:
    text = resources.files("llm_tuner.evaluation").joinpath("general.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) == len({row["id"] for row in rows}) == len({task.id for task in questions().tasks}) == 40
    for row in rows:
        if "expression" in row:
            assert repr(eval(row["expression"])) == row["answer"]  # written by us, in this very package
        else:
            assert row["question"]


def said(text: str, expected: str) -> bool:
    task = Task(messages=(), tools=(), expect=NoCall(reply=expected))
    verdict = judge(task, Attempt(task_id=task.id, backend="b", messages=(Message(role="assistant", text=text),)))
    assert verdict.reason == ("ok" if verdict.ok else "wrong_value")
    return verdict.ok


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", "12"),
        (" 12.\n", "12"),
        ("`12`", "12"),
        ("The expression evaluates to `12`.", "12"),
        ("It evaluates to 12.", "12"),
        ("Let me see.\n\nThe answer is: 12", "12"),
        ("```python\n12\n```", "12"),
        ("[1,2,3]", "[1, 2, 3]"),
        ('["a", "b"]', "['a', 'b']"),
        ("ABC", "'ABC'"),
        ('"ABC"', "'ABC'"),
        ("len('tool' * 3) = 12", "12"),
        ("DISTINCT", "'DISTINCT'"),
        ("-7 // 2 equals -4", "-4"),
        # What SmolLM2-135M wrote.
        ("The Python expression `'abc'.upper()` evaluates to `'ABC'`. This is a string that is `upper()`.", "'ABC'"),
        ("The Python expression `10 == 10.0` evaluates to `True` because `10` and `10.0` are equal.", "True"),
        ("The JavaScript expression `[1, 2, 3].length` evaluates to 3, which is the length of `[1, 2, 3]`.", "3"),
        ("The expression evaluates to:\n\n```python\n[1, 2]\n```\nbecause `x` is a list", "[1, 2]"),
        ("It evaluates to a list. The answer is **12**.", "12"),
        ("The result is 1.5; the rest is dropped", "1.5"),
        ("The query returns 9.", "9"),
        ("12\n\nThe word has four letters, and", "12"),
    ],
)
def test_right_answers_are_recognised(text: str, expected: str) -> None:
    assert said(text, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("13", "12"),
        ("", "12"),
        ("12 or 13", "12"),
        ("12.0", "12"),
        ("`bool([])` evaluates to `True` because `False` is a special value that is `False`", "False"),  # SmolLM2-135M
        ("It evaluates to 13 because 12", "12"),
        ("The answer is 12.5", "12"),
        ("1", "True"),
        ("abc", "'ABC'"),
        ("[1, 2]", "[1, 2, 3]"),
        ("__import__('os')", "12"),
        ("'\\d'", "12"),
        ("(" * 5000, "12"),
        ("1is", "12"),
    ],
)
def test_wrong_answers_are_not(text: str, expected: str) -> None:
    assert not said(text, expected)


def test_an_error_is_the_backend_s() -> None:
    task = questions().tasks[0]
    assert judge(task, Attempt(task_id=task.id, backend="b", error="down")).reason == "backend_error"


class Knowing:
    """Knows the first answers, and no more."""

    name = "knowing"

    def __init__(self, known: int) -> None:
        self.answers = {t.request: t.expect.reply for t in questions().tasks[:known] if isinstance(t.expect, NoCall)}

    def chat(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), options: ChatOptions = GREEDY) -> Reply:
        assert not tools
        return Reply(message=Message(role="assistant", text=self.answers.get(messages[-1].text, "no idea")))


def measured(known: int, out: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    def locate(asked: Target) -> Generator[Event, None, Located]:
        yield Event(step="fetch")
        return Located(target=asked)

    @contextmanager
    def opened(located: Located) -> Iterator[Any]:
        yield Knowing(known)

    monkeypatch.setattr(general, "locate", locate)
    monkeypatch.setattr(general, "opened", opened)
    steps = general.general(Target(model="m"), out=out)
    while True:
        try:
            event = next(steps)
        except StopIteration as end:
            assert event.message == f"{known} of 40 right"
            report: Report = end.value
            return report


def test_two_models_are_compared_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = (measured(known, tmp_path / str(known), monkeypatch) for known in (30, 12))
    assert (before.rates["ok"].k, after.rates["ok"].k, before.rules) == (30, 12, "general")
    assert after.groups["category"]["python"]["ok"].k == 12
    assert load(tmp_path / "30" / "suite.jsonl") == questions()
    found = compare(open_parts(str(tmp_path / "30")), open_parts(str(tmp_path / "12")))
    assert [(change.metric, change.lost, change.regression) for change in found.changes] == [("ok", 18, True)]
    assert before.perplexity is not None
    assert [note for note in found.notes if before.perplexity.why in note] == list(found.notes)
    assert "Knowing, which serves knowing, gives no log-probabilities" in before.perplexity.why
    assert all(flip.before and flip.after for flip in found.flips)
    assert "no idea" in (tmp_path / "12" / "report.html").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------- every kind of target


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three questions and two short passages: a real model has to answer them."""
    all_ = questions()
    monkeypatch.setattr(general, "questions", lambda: all_.model_copy(update={"tasks": all_.tasks[:3]}))
    texts = [text._replace(text=text.text[:60]) for text in perplexity.passages()[:2]]
    monkeypatch.setattr(perplexity, "passages", lambda: tuple(texts))


def asked(target: Target, out: Path) -> Report:
    steps = general.general(target, out=out)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            report: Report = end.value
            return report


@pytest.mark.weights
@pytest.mark.usefixtures("few")
def test_a_file_and_a_server_are_asked_the_same(smol_gguf: Path, tmp_path: Path) -> None:
    file = asked(Target(model=str(smol_gguf), context=1024), tmp_path / "file")
    with Embedded(smol_gguf, name="smol", context=1024) as embedded:
        served = asked(Target(model="smol", base_url=f"{embedded.address}/v1"), tmp_path / "server")
    assert served.verdicts == file.verdicts
    assert served.reasons.keys() <= {"ok", "wrong_value"}
    assert file.perplexity is not None
    assert 10 < file.perplexity.perplexity["all"].value < 1000
    assert served.perplexity is not None
    assert "an OpenAI-compatible server, which serves smol, gives no log-probabilities" in served.perplexity.why
    found = compare(open_parts(str(tmp_path / "file")), open_parts(str(tmp_path / "server")))
    assert (found.texts, found.worse) == ((), ())
    assert any("Perplexity of after: not measurable here" in note for note in found.notes)


@pytest.mark.ollama
@pytest.mark.weights
@pytest.mark.usefixtures("few")
def test_a_real_ollama_server_is_asked(
    ollama_url: str, smol_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(OllamaServer(ollama_url).create("smol-general", smol_gguf, template=QWEN_TEMPLATE))
    monkeypatch.setenv("OLLAMA_HOST", ollama_url)
    report = asked(Target(ollama="smol-general", context=1024), tmp_path)
    assert (report.n, report.reasons.keys() <= {"ok", "wrong_value"}) == (3, True)
    assert report.perplexity is not None
    assert report.perplexity.why.startswith("not measurable here: Ollama, which serves smol-general")
