"""Measuring what answers badly, over real sockets: every task is counted, as the model's fault or the runtime's; the
rest is measured. And a measurement that was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from evaluation.bad_server import SHAPES, BadServer, serving
from llm_tuner.apps import cli
from llm_tuner.evaluation.attempts import ATTEMPTS
from llm_tuner.evaluation.measure import measure
from llm_tuner.models import http_answer
from llm_tuner.models.ollama import Ollama
from llm_tuner.models.openai_compatible import OpenAICompatible
from llm_tuner.store import read_jsonl
from llm_tuner.store.suite import Suite, save
from llm_tuner.types import (
    Attempt,
    Backend,
    ChatOptions,
    Event,
    ExactCalls,
    Message,
    ModelError,
    Report,
    RuntimeUnavailable,
    Task,
    ToolCall,
    ToolSpec,
)

CLOCK = ToolSpec(name="clock", parameters={"type": "object", "properties": {"zone": {"type": "string"}}})
WANTED = ExactCalls(calls=(ToolCall(name="clock", arguments={"zone": "JST"}),))
SECONDS = 1.5

# What the model did wrong: it has its own reason, and an answer is kept.
MODELS = {
    "babble": "no_call",
    "endless": "no_call",
    "broken": "broken_call",
    "listed": "broken_call",
    "deep": "broken_call",
    "halves": "unexpected_parameter",
    "text-half": "call_as_text",
}
# What the runtime did wrong: the attempt has an error and no answer.
RUNTIMES = (
    *("garbage", "zipped", "http-500", "http-500-page", "half", "closes", "closes", "closes", "hangs-up"),
    *("silent", "silent", "silent", "drips", "floods", *SHAPES),
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BadServer]:
    monkeypatch.setattr(http_answer, "LARGEST", 1 << 20)
    with serving() as started:
        yield started


@pytest.fixture(params=["openai", "ollama"])
def backend(server: BadServer, request: pytest.FixtureRequest) -> Iterator[OpenAICompatible | Ollama]:
    if request.param == "openai":
        opened: OpenAICompatible | Ollama = OpenAICompatible("m", f"{server.url}/v1", timeout=SECONDS)
    else:
        opened = Ollama("m", server.url, timeout=SECONDS)
    yield opened
    opened.close()


def suite(*requests: str) -> Suite:
    def task(text: str) -> Task:
        return Task(messages=(Message(role="user", text=text),), tools=(CLOCK,), expect=WANTED)

    return Suite(name="bad", tasks=tuple(task(f"{request} {i}") for i, request in enumerate(requests)))


def measured(backend: Backend, tasks: Suite, out: Path) -> tuple[Report, list[Attempt]]:
    steps: Generator[Event, None, Any] = measure(tasks, backend, options=ChatOptions(max_tokens=7), out=out)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            report, attempts = end.value
            return report, list(attempts)


def test_every_bad_answer_is_counted_and_the_rest_is_measured(
    server: BadServer, backend: OpenAICompatible | Ollama, tmp_path: Path
) -> None:
    tasks = suite("right", *MODELS, "right", *RUNTIMES, "right")
    report, attempts = measured(backend, tasks, tmp_path)
    seen = [
        (t.request.split()[0], report.verdicts[t.id].reason, bool(a.error))
        for t, a in zip(tasks.tasks, attempts, strict=True)
    ]
    right = [("right", "ok", False)]
    faults = [(word, reason, False) for word, reason in MODELS.items()]
    failures = [(word, "backend_error", True) for word in RUNTIMES]
    assert seen == right + faults + right + failures + right
    kept = read_jsonl(tmp_path / ATTEMPTS, Attempt)
    assert {attempt.task_id for attempt in kept} == {task.id for task in tasks.tasks}
    assert len(kept) == len(tasks.tasks) == report.n
    endless = next(a for t, a in zip(tasks.tasks, attempts, strict=True) if t.request.startswith("endless"))
    assert endless.usage.completion_tokens == 7

    server.asked.clear()
    again, _ = measured(backend, tasks, tmp_path)
    assert sorted(server.asked) == sorted(t.request for t in tasks.tasks if t.request.split()[0] in RUNTIMES)
    assert again.reasons == report.reasons


def test_errors_say_what_happened(server: BadServer, backend: OpenAICompatible | Ollama) -> None:
    words = {
        "http-500": "out of memory",
        "closes": "broke off in the middle",
        "hangs-up": "broke off in the middle",
        "drips": r"in time \(1.5 s\)",
        "silent": r"in time \(1.5 s\)",
        "floods": "more than 1 MiB",
        "half": "does not (speak|answer)",
    }
    for request, said in words.items():
        started = time.monotonic()
        with pytest.raises(ModelError, match=said) as raised:
            backend.chat((Message(role="user", text=request),), (CLOCK,))
        assert not isinstance(raised.value, RuntimeUnavailable)
        assert time.monotonic() - started < 10 * SECONDS


@pytest.mark.parametrize("request_", ["garbage", "closes", "hangs-up", "silent", "drips", "floods", "http-500", "list"])
def test_bad_streams_end_too(server: BadServer, request_: str) -> None:
    model = OpenAICompatible("m", f"{server.url}/v1", timeout=SECONDS)
    with pytest.raises(ModelError) as raised:
        model.stream((Message(role="user", text=request_),), (CLOCK,))
    assert not isinstance(raised.value, RuntimeUnavailable)
    model.close()


def test_a_server_that_is_gone_ends_the_measurement(tmp_path: Path) -> None:
    with serving() as server:
        url = f"{server.url}/v1"
    with pytest.raises(RuntimeUnavailable, match="No server answers"):
        measured(OpenAICompatible("m", url), suite(*["right"] * 9), tmp_path)


def test_a_killed_evaluation_goes_on_where_it_stopped(server: BadServer, tmp_path: Path) -> None:
    tasks, file, out = suite(*["right"] * 40), tmp_path / "suite.jsonl", tmp_path / "out"
    save(tasks, file)
    command = [sys.executable, "-m", "llm_tuner", "eval", "suite", str(file), "--base-url", f"{server.url}/v1"]
    command += ["--model", "m", "--out", str(out), "--json"]
    server.delay = 0.1
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (out / ATTEMPTS).is_file() or (out / ATTEMPTS).read_bytes().count(b"\n") < 5:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert process.stderr is not None
    process.stderr.close()
    whole = [line for line in (out / ATTEMPTS).read_bytes().split(b"\n")[:-1] if line]
    done = {json.loads(line)["task_id"] for line in whole}
    assert 5 <= len(done) < 40
    assert not (out / "report.json").exists()

    server.delay = 0.0
    server.asked.clear()
    finished = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert finished.returncode == 0, finished.stderr
    asked = set(server.asked)
    assert asked == {task.request for task in tasks.tasks if task.id not in done}
    assert len(server.asked) == len(asked)
    kept = read_jsonl(out / ATTEMPTS, Attempt)
    assert sorted(attempt.task_id for attempt in kept) == sorted(task.id for task in tasks.tasks)
    assert json.loads(finished.stdout)[0]["rates"]["ok"]["k"] == 40


BAD_SUITES = [
    ('{"request": "a", "tools": ["nope"], "expect": null}', "nope"),
    ('{"request": "a", "expect": {"name": "nope", "arguments": {}}}', "nope"),
    ('{"request": "a", "expect": null, "id": "x"}\n{"request": "b", "expect": null, "id": "x"}', '"x" stands in line'),
    ("{", "line 2: not JSON"),
]


@pytest.mark.parametrize(("lines", "said"), BAD_SUITES, ids=[said for _, said in BAD_SUITES])
def test_a_bad_suite_is_refused_before_a_model_is_asked(
    server: BadServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: str, said: str
) -> None:
    file = tmp_path / "suite.jsonl"
    head = {"suite": "s", "tools": [CLOCK.model_dump(mode="json")]}
    file.write_text(f"{json.dumps(head)}\n{lines}\n", encoding="utf-8")
    assert cli.run(["eval", "suite", str(file), "--base-url", f"{server.url}/v1", "--model", "m"]) == 30
    assert said in capsys.readouterr().err
    assert server.asked == []


def test_no_such_category(server: BadServer, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "bfcl", "--categories", "simple_rust", "--base-url", f"{server.url}/v1", "--model", "m"]
    assert cli.run(command) == 4
    assert 'No BFCL category "simple_rust"' in capsys.readouterr().err
    assert server.asked == []


def test_a_server_that_answers_nothing_is_no_measurement(
    server: BadServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "suite.jsonl"
    tool = {"name": "clock", "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}}
    lines = [{"suite": "s", "tools": [tool]}, *({"request": f"number {i}", "expect": None} for i in range(3))]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert cli.run(["eval", "suite", str(file), "--base-url", f"{server.url}/v1", "--model", "m"]) == 10
    said = capsys.readouterr()
    assert "3 of 3 requests failed" in said.out
    assert "Not one request was answered" in said.err
