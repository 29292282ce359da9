"""BFCL by category: each once and in its own folder, and the script prints what the command prints."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llm_tuner.apps import cli
from llm_tuner.evaluation import benchmark, bfcl, target
from llm_tuner.evaluation import bfcl_multi_turn as conversations
from llm_tuner.evaluation.intervals import rate
from llm_tuner.evaluation.target import Located, Target
from llm_tuner.store.suite import Suite
from llm_tuner.types import (
    GREEDY,
    AnyCall,
    ChatOptions,
    Event,
    Message,
    NoCall,
    Reply,
    Report,
    SetupError,
    SourceUnreachable,
    Task,
    Timing,
    ToolSpec,
)


class Silent:
    """Right wherever no call is wanted."""

    name = "silent"

    def chat(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), options: ChatOptions = GREEDY) -> Reply:
        return Reply(message=Message(role="assistant", text="Hello."), timing=Timing(total_ms=5))


@contextmanager
def silent(located: Located, **_: Any) -> Iterator[Silent]:
    yield Silent()


def suite(category: str, limit: int | None, seed: int) -> Suite:
    expect = NoCall() if "irrelevance" in category else AnyCall()
    asked = (Message(role="user", text=f"{category} {i} {seed}") for i in range(limit or 4))
    tasks = (Task(messages=(message,), tools=(), expect=expect, category=category) for message in asked)
    return Suite(name=f"bfcl:{category}", tasks=tuple(tasks))


def conversation(asked: Target, category: str, limit: int | None, **words: Any) -> Generator[Event, None, Report]:
    yield Event(step="measure", message=f"{category} {words['reading']} {words['seed']}", done=1, total=1)
    rates = {"ok": rate(1, 2), "ok_lenient": rate(0, 0)}
    name, groups = f"bfcl:{category}", {"category": {category: rates}}
    return Report(suite=name, suite_hash="h", backend="silent", n=2, rates=rates, groups=groups)


def fetched() -> Generator[Event, None, Path]:
    yield Event(step="fetch")
    return Path()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched, no model is asked, the tasks are few."""
    monkeypatch.setattr(bfcl, "fetch", fetched)
    monkeypatch.setattr(bfcl, "load", suite)
    monkeypatch.setattr(target, "opened", silent)
    monkeypatch.setattr(conversations, "evaluate", conversation)


@pytest.fixture
def script() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "local-llm" / "evaluate_bfcl.py"
    spec = importlib.util.spec_from_file_location("evaluate_bfcl", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NAMED = "irrelevance,multi_turn,non_python,irrelevance"
ORDER = ["irrelevance", "simple_java", "simple_javascript", *conversations.CATEGORIES]


def test_each_category_is_measured_once_and_kept_in_its_own_folder(tmp_path: Path) -> None:
    steps, said = benchmark.evaluate_categories(Target(ollama="any"), NAMED, 3, seed=7, out=tmp_path), []
    while True:
        try:
            said.append(next(steps).message)
        except StopIteration as end:
            reports = end.value
            break
    assert [report.suite for report in reports] == [f"bfcl:{category}" for category in ORDER]
    assert [report.rates["ok"].n for report in reports[:3]] == [3, 3, 3]
    assert "multi_turn_base native 7" in said
    for category in ORDER[:3]:
        assert (tmp_path / category / "report.json").is_file()
    again = benchmark.evaluate_categories(Target(ollama="any"), "live_relevance", 1, out=tmp_path)
    assert all(event.step for event in again)
    lines = (tmp_path / "bfcl.md").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ")[1] for line in lines[2:6]] == [*ORDER[1:3], "irrelevance", "live_relevance"]


def test_a_name_that_is_no_category_ends_it_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfcl, "fetch", lambda: pytest.fail("fetched"))
    with pytest.raises(SetupError, match="simple_pyton"):
        next(benchmark.evaluate_categories(Target(ollama="any"), "simple_python,simple_pyton"))


def test_the_script_prints_what_the_command_prints(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--ollama", "any", "--categories", f"{NAMED},live_irrelevance", "--limit", "2", "--lenient"]
    for more in ([], ["--json"]):
        assert script.main([*words, *more]) == 0
        printed = capsys.readouterr()
        assert cli.run(["eval", "bfcl", *words, *more]) == 0
        assert printed.out == capsys.readouterr().out
        assert "multi_turn_base lenient" in printed.err
    scores = json.loads(printed.out)["scores"]["native"]["groups"]
    assert (scores["irrelevance"]["value"], scores["multi_turn"]["value"]) == (1.0, 0.5)
    assert scores["non_live"]["missing"] == ["simple_python", "multiple", "parallel", "parallel_multiple"]


def test_the_script_ends_with_the_error_s_own_code(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert script.main([]) == SetupError.exit_code
    assert "Say which model" in capsys.readouterr().err

    def unreachable() -> Generator[Event, None, Path]:
        raise SourceUnreachable("no index")
        yield

    monkeypatch.setattr(bfcl, "fetch", unreachable)
    assert script.main(["--ollama", "any"]) == SourceUnreachable.exit_code
