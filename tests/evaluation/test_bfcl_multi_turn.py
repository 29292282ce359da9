"""BFCL's multi-turn tasks: the conversation, the environment's limits, agreement with the official checker's verdicts.

Most of it runs on an environment of our own (toy_environment.py), on which the official checker was asked, too.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from evaluation import bfcl_multi_turn_agreement as agreement
from evaluation.bfcl_multi_turn_agreement import Made, attempt, damaged, gold, one_by_one, toys
from llm_tuner.evaluation import bfcl, bfcl_environment
from llm_tuner.evaluation import bfcl_multi_turn as multi_turn
from llm_tuner.evaluation.bfcl_environment import Bundle, Environment, EnvironmentLost, Limits
from llm_tuner.evaluation.bfcl_multi_turn import (
    CATEGORIES,
    MORE_TOOLS,
    MOST_ANSWERS,
    Entry,
    converse,
    judge,
    load,
    measure,
)
from llm_tuner.store import read_jsonl
from llm_tuner.types import (
    GREEDY,
    Attempt,
    ChatOptions,
    ChecksumMismatch,
    DataError,
    Event,
    Message,
    ModelError,
    Reply,
    RuntimeUnavailable,
    SetupError,
    SourceUnreachable,
    ToolCall,
    ToolError,
    ToolSpec,
    Usage,
)

PINNED: list[list[Any]] = json.loads(agreement.FIXTURE.read_text(encoding="utf-8"))["verdicts"]
QUICK = Limits(call_seconds=0.5, result_characters=10_000)


def result(steps: Generator[Event, None, Any]) -> Any:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


class Scripted:
    """A model that makes these calls, turn by turn, and says something when it has none left. `asked` keeps what it was
    shown."""

    name = "scripted"

    def __init__(self, made: Made, as_text: bool = False) -> None:
        self.made, self.as_text = made, as_text
        self.asked: list[tuple[tuple[Message, ...], tuple[ToolSpec, ...]]] = []

    def chat(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), options: ChatOptions = GREEDY) -> Reply:
        self.asked.append((tuple(messages), tuple(tools)))
        users = [i for i, message in enumerate(messages) if message.role == "user"]
        answered = sum(message.role == "assistant" for message in messages[users[-1] :])
        turn = self.made[len(users) - 1]
        if answered >= len(turn):
            return Reply(message=Message(role="assistant", text="Done."), usage=Usage(prompt_tokens=1))
        calls = tuple(ToolCall(name=name, arguments=arguments) for name, arguments in turn[answered])
        message = Message(role="assistant", tool_calls=calls)
        if self.as_text:
            message = Message(role="assistant", text="…", text_calls=calls)
        return Reply(message=message, usage=Usage(prompt_tokens=1))


class Failing:
    """A model that raises what it is given, one after the other, and then answers."""

    name = "failing"

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.asked = 0

    def chat(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), options: ChatOptions = GREEDY) -> Reply:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return Reply(message=Message(role="assistant", text="Hello."))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return agreement.toy_bundle(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def environment(bundle: Bundle) -> Iterator[Environment]:
    with Environment(bundle, QUICK) as opened:
        yield opened


@pytest.fixture
def harbour(environment: Environment) -> Environment:
    environment.start("t_0", ["Harbour", "Sums"], {"Harbour": {"boats": ["Gull"]}}, False)
    return environment


# ------------------------------------------------------------------------------------------------------------ agreement


def test_our_verdicts_agree_with_the_official_checker_on_our_own_environment(bundle: Bundle) -> None:
    pinned = {(id_, name): [valid, error] for id_, name, valid, error in PINNED}
    seen: list[str] = []
    with Environment(bundle) as environment:
        for item, name, made in agreement.questions(toys(), None):
            if (item.id, name) in pinned:
                verdict = agreement.ours(item, made, environment)
                assert agreement.agrees(verdict, pinned[item.id, name]), (item.id, name, verdict)
                seen.append(verdict.reason)
    assert {"ok", "no_call", "wrong_state", "missing_result"} <= set(seen)
    assert len(seen) == sum(row[0] in agreement.TOYS for row in PINNED)


@pytest.fixture(scope="session")
def real() -> tuple[Bundle, Callable[[str], list[Entry]]]:
    try:
        found = result(bfcl_environment.fetch())
        result(bfcl.fetch())
    except SourceUnreachable as error:
        pytest.skip(f"the BFCL data cannot be fetched: {error}")
    return found, lambda category: load(category, found.documents)


@pytest.mark.benchmark
@pytest.mark.parametrize("category", CATEGORIES)
def test_our_verdicts_agree_with_the_official_checker_on_its_own(real: Any, category: str) -> None:
    found, entries = real
    pinned = {
        (row[0], row[1]): row[2:] for row in PINNED if row[0].startswith(category) and row[0] not in agreement.TOYS
    }
    wanted = [item for item in entries(category) if (item.id, "gold") in pinned]
    seen = 0
    with Environment(found) as environment:
        for item in wanted:
            for name, made in [("gold", gold(item)), ("gold one by one", one_by_one(gold(item))), *damaged(item)]:
                if (item.id, name) in pinned:
                    verdict = agreement.ours(item, made, environment)
                    assert agreement.agrees(verdict, pinned[item.id, name]), (item.id, name, verdict)
                    seen += 1
    assert seen == len(pinned) > 20


@pytest.mark.benchmark
@pytest.mark.parametrize("category", CATEGORIES)
def test_the_whole_ground_truth_called_by_a_model_is_right(real: Any, category: str) -> None:
    found, entries = real
    assert replay(found, entries(category)) == 200


def replay(found: Bundle, entries: Sequence[Entry]) -> int:
    """Hold the conversation with a model that calls what is right, one call an answer where a turn may have so many
    answers; every verdict must be ok."""
    with Environment(found) as environment:
        for item in entries:
            right = one_by_one(gold(item))
            if max(map(len, right)) >= MOST_ANSWERS:
                right = gold(item)
            attempt, error = converse(item, Scripted(right), environment)
            assert error is None
            verdict = judge(item, attempt, environment).verdict
            assert verdict.ok, (item.id, verdict)
    return len(entries)


# ----------------------------------------------------------------------------------------------------- the conversation


def test_results_go_back_to_the_model_with_the_calls_ids(environment: Environment) -> None:
    item = toys()[0]
    model = Scripted(gold(item))
    attempt, error = converse(item, model, environment)
    assert (error, attempt.error, attempt.task_id, attempt.usage.prompt_tokens) == (None, "", item.id, 6)
    roles = [message.role for message in attempt.messages]
    assert roles[:6] == ["user", "assistant", "tool", "tool", "assistant", "user"]
    shown = model.asked[1][0]
    ids = [call.id for call in shown[1].tool_calls]
    assert len(set(ids)) == 2
    assert [message.result.call_id for message in shown[2:] if message.result] == ids
    assert shown[2].result.content == '{"berth": 3, "boats": 3}'
    assert shown[3].result.content == "{'boat': <boat Kite>}"


def test_held_out_tools_come_in_with_their_turn(environment: Environment) -> None:
    row = {
        **agreement._ROWS[0],
        "missed_function": {"1": ["leave", "light", "nowhere"]},
        "question": [[{"role": "user", "content": "Go."}], [], [{"role": "user", "content": "And?"}]],
    }
    item = multi_turn.entry(row, row["truth"], agreement.TOY_DOCUMENTS)
    model = Scripted(gold(item))
    attempt, _ = converse(item, model, environment)
    first, last = ([tool.name for tool in model.asked[i][1]] for i in (0, -1))
    assert first == ["arrive", "find", "note", "read", "status", "add", "status"]
    assert last == [*first, "leave", "light"]
    assert [m.text for m in attempt.messages if m.role == "user"] == ["Go.", MORE_TOOLS, "And?"]
    assert judge(item, attempt, environment).verdict.ok


def test_a_turn_without_end_is_cut_off(environment: Environment) -> None:
    item = toys()[0]
    endless: Made = [[[("status", {})]] * 100, [], []]
    attempt, _ = converse(item, Scripted(endless), environment)
    assert sum(message.role == "assistant" for message in attempt.messages) == 21
    verdict = judge(item, attempt, environment).verdict
    assert (verdict.ok, verdict.reason, verdict.score) == (False, "endless_turn", 0.0)
    right, *others = one_by_one(gold(item))
    attempt, _ = converse(item, Scripted([[*right, *endless[0]], *others]), environment)
    verdict = judge(item, attempt, environment).verdict
    assert (verdict.ok, verdict.reason, verdict.score) == (False, "endless_turn", 0.0)
    # Officially the last turn may be cut off: all turns are there.
    attempt, _ = converse(item, Scripted([right, *others[:-1], [*others[-1], *endless[0]]]), environment)
    assert judge(item, attempt, environment).verdict.ok


def test_calls_as_text_count_when_read_leniently(environment: Environment) -> None:
    item = toys()[0]
    attempt, _ = converse(item, Scripted(gold(item), as_text=True), environment)
    mark = judge(item, attempt, environment)
    assert (mark.verdict.reason, mark.surfaced, mark.asked) == ("call_as_text", 0, 3)
    model = Scripted(gold(item), as_text=True)
    attempt, _ = converse(item, model, environment, reading="lenient")
    mark = judge(item, attempt, environment, reading="lenient")
    assert (mark.verdict.ok, mark.surfaced, mark.asked) == (True, 0, 3)
    assert all(not message.text_calls for message in model.asked[-1][0])
    assert [m.text_calls != () for m in attempt.messages if m.role == "assistant"][:2] == [True, False]


def test_a_broken_call_ends_the_turn_and_is_named(environment: Environment) -> None:
    item = toys()[0]

    class Broken(Scripted):
        def chat(self, *asked: Any, **more: Any) -> Reply:
            fine, bad = ToolCall(name="status"), ToolCall(name="find", raw="{", error="the arguments are no JSON")
            return Reply(message=Message(role="assistant", tool_calls=(fine, bad)))

    attempt, _ = converse(item, Broken([]), environment)
    assert [message.role for message in attempt.messages] == ["user", "assistant"] * 3
    assert judge(item, attempt, environment).verdict.reason == "broken_call"


def test_a_call_where_none_is_wanted_is_counted_but_not_wrong(environment: Environment) -> None:
    item = toys()[1]
    made = one_by_one(gold(item))
    assert judge(item, attempt(item, made), environment)[1:7] == (
        judge(item, attempt(item, made), environment).verdict, 3, 2, 2, 1, 1,
    )  # fmt: skip
    mark = judge(item, attempt(item, [made[0], [[("status", {})]], made[2]]), environment)
    assert (mark.verdict.ok, mark.silent, mark.waiting) == (True, 0, 1)


# ---------------------------------------------------------------------------------------------------------- the measure


def test_a_report_counts_conversations_and_turns(environment: Environment, tmp_path: Path) -> None:
    items = toys()
    made = {item.turns[0][0].text + item.id: gold(item) for item in items}
    assert len(made) == 4

    class One(Scripted):
        """Right in the first entry, silent in the others."""

        def chat(self, messages: Any, *more: Any, **named: Any) -> Reply:
            return Scripted(gold(items[0])).chat(messages, *more, **named)

    steps = measure(items[:1] + items[2:3], One([]), environment, name="toy", out=tmp_path)
    report, failed = result(steps)
    assert {name: (rate.k, rate.n) for name, rate in report.rates.items()} == {
        "ok": (1, 2),
        "ok_lenient": (0, 0),
        "turns": (3, 6),
        "native_rate": (6, 6),
        "selection": (2, 2),
        "selection_lenient": (0, 0),
        "no_call": (0, 0),
    }
    assert report.reasons == {"ok": 1, "wrong_state": 1}
    assert report.verdicts.keys() == {items[0].id, items[2].id}
    assert list(report.groups["server"]) == ["Harbour", "Sums"]
    assert [failure.reason for failure in failed] == ["wrong_state"]
    lenient, _ = result(measure(items[:1], One([]), environment, name="toy", reading="lenient"))
    assert (lenient.rates["ok"].n, lenient.rates["ok_lenient"].k, lenient.rates["selection_lenient"].k) == (0, 1, 1)
    assert "arrive" in failed[0].expected
    kept = read_jsonl(tmp_path / "attempts.jsonl", Attempt)
    assert [a.verdict.reason for a in kept if a.verdict] == ["ok", "wrong_state"]


def test_a_stopped_measurement_goes_on(environment: Environment, tmp_path: Path) -> None:
    items = toys()
    steps = measure(items, Failing(), environment, name="toy", out=tmp_path)
    next(steps)
    next(steps)
    steps.close()
    with (tmp_path / "attempts.jsonl").open("a") as file:
        file.write('{"task_id": "half')
    again = Failing()
    report, _ = result(measure(items, again, environment, name="toy", out=tmp_path))
    whole, _ = result(measure(items, Failing(), environment, name="toy"))
    assert again.asked == sum(len(item.turns) for item in items[2:])
    assert (report.verdicts, report.rates) == (whole.verdicts, whole.rates)
    other = Failing()
    other.name = "another"
    with pytest.raises(DataError, match="another model"):
        result(measure(items, other, environment, name="toy", out=tmp_path))


def test_a_backend_that_fails_is_counted_and_not_fatal(environment: Environment, tmp_path: Path) -> None:
    items = toys()
    model = Failing(ModelError("the prompt is over the context"), ValueError("half a message"))
    report, _ = result(measure(items, model, environment, name="toy", out=tmp_path))
    assert report.reasons["backend_error"] == 2
    assert (report.n, report.rates["ok"].n) == (4, 4)
    kept = read_jsonl(tmp_path / "attempts.jsonl", Attempt)
    assert [a.error for a in kept if a.error] == ["the prompt is over the context", "half a message"]
    dead = Failing(*[RuntimeUnavailable("nobody answers")] * 9)
    with pytest.raises(RuntimeUnavailable):
        result(measure(items, dead, environment, name="toy"))
    assert dead.asked == 3


def test_an_answer_that_cannot_be_kept_is_the_models_error(environment: Environment) -> None:
    item = toys()[0]
    attempt, _ = converse(item, Scripted([[[("note", {"text": "\ud83d"})]], [], []]), environment)
    assert "surrogate" in attempt.error
    assert judge(item, attempt, environment).verdict.reason == "backend_error"


@contextmanager
def served(models: dict[str, Scripted]) -> Iterator[str]:
    """An OpenAI-style server; the model is chosen by what the user said first."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            messages = [Message(role=m["role"], text=m["content"] or "") for m in body["messages"]]
            answer = models[messages[0].text].chat(messages).message
            calls = [
                {"id": f"c{i}", "type": "function", "function": {"name": c.name, "arguments": json.dumps(c.arguments)}}
                for i, c in enumerate(answer.tool_calls)
            ]
            message = {"role": "assistant", "content": answer.text, "tool_calls": calls}
            data = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.benchmark
def test_the_command_line_measures_a_served_model(real: Any, tmp_path: Path) -> None:
    found, _ = real
    chosen = ("multi_turn_miss_func", "multi_turn_long_context")
    items = [item for category in chosen for item in load(category, found.documents, 3)]
    models = {item.turns[0][0].text: Scripted(one_by_one(gold(item))) for item in items}
    assert len(models) == len(items)
    models[items[0].turns[0][0].text].made[-1] = []
    with served(models) as url:
        command = [
            sys.executable,
            "-m",
            "llm_tuner",
            "eval",
            "bfcl",
            "--base-url",
            url,
            "--model",
            "any",
            "--limit",
            "3",
        ]
        command += ["--categories", ",".join(chosen), "--out", str(tmp_path), "--json"]
        run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    first, second = document["reports"] if isinstance(document, dict) else document
    assert (first["suite"], second["suite"]) == ("bfcl:multi_turn_miss_func", "bfcl:multi_turn_long_context")
    assert (first["rates"]["ok"]["k"], first["rates"]["ok"]["n"], first["reasons"]) == (2, 3, {"ok": 2, "no_call": 1})
    assert (second["rates"]["ok"]["k"], second["rates"]["native_rate"]["value"]) == (3, 1.0)
    kept = read_jsonl(tmp_path / chosen[0] / "attempts.jsonl", Attempt)
    assert {a.task_id for a in kept} == {item.id for item in items[:3]}
    assert (tmp_path / chosen[1] / "report.html").is_file()


def test_an_unknown_category_is_named_with_the_known_ones() -> None:
    with pytest.raises(SetupError, match="multi_turn_miss_func"):
        load("multi_turn", {})


# ------------------------------------------------------------------------------------------------------ the environment


def test_what_a_model_wrote_is_never_evaluated(harbour: Environment) -> None:
    for name in (
        "__import__('os').getpid",
        "boats.clear",
        "find.__self__.leave",
        "_load_scenario",
        "__init__",
        "kill",
        "",
    ):
        assert harbour.call(name, {}).startswith("Error during execution:")
    text = "__import__('os').getpid() or find(name='Gull')"
    assert harbour.call("note", {"text": text}).startswith(
        "__import__('os').getpid() or model_eval_t_0_Harbour_instance"
    )
    assert harbour.call("arrive", {"name=1, berth": 2}).startswith("Error during execution:")
    assert harbour.call("add", {"a": float("nan"), "b": 1}).startswith("Error during execution:")


def test_of_two_classes_with_one_name_the_last_has_it(harbour: Environment) -> None:
    assert harbour.call("status", {}) == "sums"


def test_a_call_has_a_limit_of_time_and_the_state_stays(harbour: Environment) -> None:
    harbour.call("note", {"text": "before"})
    start = time.monotonic()
    assert "longer than 0.5 s" in harbour.call("sleep", {"seconds": 60})
    assert time.monotonic() - start < 5
    assert "before" in harbour.call("read", {})


def test_a_call_that_never_comes_back_is_ended_and_the_next_task_goes_on(bundle: Bundle) -> None:
    with Environment(bundle, QUICK.model_copy(update={"wait_seconds": 1.0})) as environment:
        environment.start("t_0", ["Harbour"], {}, False)
        with pytest.raises(EnvironmentLost):
            environment.call("stick", {})
        with pytest.raises(EnvironmentLost, match="Start the task again"):
            environment.call("status", {})
        item = toys()[0]
        attempt, error = converse(item, Scripted([[[("stick", {})]], [], []]), environment)
        assert (error, attempt.error) == (None, "")
        assert judge(item, attempt, environment).verdict.reason == "wrong_value"
        assert judge(item, agreement.attempt(item, gold(item)), environment).verdict.ok


def test_memory_results_files_and_the_network_are_limited(harbour: Environment, tmp_path: Path) -> None:
    assert harbour.call("fill", {"size": 1 << 33}).startswith("Error during execution:")
    assert "more than 10000 characters" in harbour.call("note", {"text": "x" * 10_001})
    (tmp_path / "secret").write_text("secret")
    assert "out of reach" in harbour.call("reach", {"path": str(tmp_path / "secret")})
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "out of reach" in harbour.call("connect", {"port": server.getsockname()[1]})
    assert harbour.call("parse", {"day": "2024-02-03"}) == "2024"  # imports of the standard library are not


def test_tasks_do_not_notice_each_other(environment: Environment) -> None:
    for _ in range(2):
        environment.start("t_0", ["Harbour"], {}, False)
        assert environment.call("light", {"place": "pier"}) == '{"on": true}'


def test_what_cannot_be_loaded_is_a_tool_error(environment: Environment, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="Lighthouse"):
        environment.start("t_0", ["Lighthouse"], {}, False)
    (tmp_path / "no.zip").write_bytes(b"no zip")
    with (
        pytest.raises(ToolError, match="did not start"),
        Environment(Bundle(archives=(tmp_path / "no.zip",), classes={})) as e,
    ):
        e.start("t_0", [], {}, False)


def test_the_process_ends_with_ours(bundle: Bundle) -> None:
    code = (
        "import os, sys; from pathlib import Path; from llm_tuner.evaluation.bfcl_environment import *;"
        "e = Environment(Bundle(archives=(Path(sys.argv[1]),), classes={'Sums': 'toy_environment'}));"
        "e.start('t_0', [], {}, False); print(e._child.process.pid, flush=True); os._exit(0)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(bundle.archives[0])],
        capture_output=True,
        text=True,
        env=os.environ,
        check=True,
    )
    end = time.monotonic() + 10
    while psutil.pid_exists(int(run.stdout)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not psutil.pid_exists(int(run.stdout))


def test_another_environment_than_the_pinned_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tampered(rest: str, part: Path, label: str) -> Iterator[Event]:
        part.write_bytes(b"something else")
        yield Event(step="fetch")

    monkeypatch.setattr(bfcl_environment.pypi, "pack", tampered)
    with pytest.raises(ChecksumMismatch, match=r"2026\.3\.23"):
        result(bfcl_environment.fetch(tmp_path))
    assert not list(tmp_path.iterdir())
