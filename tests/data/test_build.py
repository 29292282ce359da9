"""The whole build on small real servers: counted rejections, a kill, servers that change their mind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from llm_tuner.data.build import JOURNAL, build
from llm_tuner.data.plan import HubMix
from llm_tuner.data.rejections import Rejection
from llm_tuner.store import read_jsonl
from llm_tuner.store.suite import load
from llm_tuner.tools.servers import ServerConfig
from llm_tuner.types import Attempt, ServerStartError, SetupError, ToolSpec

NASTY = Path(__file__).parent.parent / "tools" / "nasty"


def server(script, name=""):
    return ServerConfig(name=name or script, command=sys.executable, args=(str(NASTY / f"{script}.py"),))


def drain(steps):
    try:
        while True:
            next(steps)
    except StopIteration as stop:
        return stop.value


@pytest.fixture(scope="module")
def wild(tmp_path_factory):
    """A set made of servers from the wild, two of which have the same tools."""
    out = tmp_path_factory.mktemp("wild")
    mix = HubMix(count=60, seed=1, sizes=(3, 9), catalogue_tasks=6, kinds={"single": 0.8, "irrelevant": 0.2})
    servers = [server("schemas"), server("schemas", "again")]
    return out, mix, servers, drain(build(servers, mix, out, benches=1))


def test_bad_schemas_and_refusals_are_counted_and_the_build_goes_on(wild):
    out, _, _, document = wild
    assert 40 <= document["tasks"]["made"] <= document["tasks"]["wanted"] == 60  # some catalogues hold no usable tool
    reasons = document["rejected"]
    assert reasons["format"]["no value for the schema"] > 0
    assert reasons["execution"]["refused"] > 0
    assert sum(sum(part.values()) for part in reasons.values()) == len(read_jsonl(out / "rejected.jsonl", Rejection))
    called = set(document["calls"])
    assert not any("endless" in name or "elsewhere" in name or "refusing" in name for name in called)
    assert any("flooding" in name for name in called)


def test_recorded_tools_make_a_set_without_a_server(tmp_path):
    tools = tuple(
        ToolSpec(
            name=name,
            description=f"{name.replace('_', ' ').capitalize()}.",
            parameters={"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]},
            server="notes" if "note" in name else "plans",
        )
        for name in ("create_note", "find_note", "delete_note", "create_plan", "find_plan", "delete_plan")
    )
    mix = HubMix(count=24, seed=1, sizes=(3, 6), catalogue_tasks=6, unseen_tools=(), unseen_servers=())
    made = drain(build((), mix, tmp_path / "set", tools=tools))
    assert made["tasks"]["made"] == 24
    assert set(made["verified"]) == {"schema only", "no call"}
    assert set(made["calls"]) <= {tool.name for tool in tools}
    assert made["kinds"].keys() <= {"single", "look_alike", "several", "missing", "irrelevant"}


def test_equal_names_are_told_apart_by_their_server(wild):
    called = {name for name in wild[3]["calls"] if name.endswith("__bare")}
    assert called <= {"schemas__bare", "again__bare"}
    assert all("__" in name for name in wild[3]["calls"])


def test_the_folder_is_a_data_set(wild):
    out, _, _, document = wild
    tasks = [*load(out / "train.jsonl").tasks, *load(out / "held-out.jsonl").tasks]
    attempts = read_jsonl(out / "attempts.jsonl", Attempt)
    assert [task.id for task in tasks] == [attempt.task_id for attempt in attempts]
    assert len({task.id for task in tasks}) == len(tasks) == wild[3]["tasks"]["made"]
    assert all(attempt.verdict.ok for attempt in attempts)
    assert all(not result.is_error for attempt in attempts for result in attempt.results)
    assert max(len(result.content.encode()) for attempt in attempts for result in attempt.results) < 21_000
    requests = [task.request.casefold() for task in tasks]
    assert len(set(requests)) == len(requests)
    sides = [{task.request for task in tasks if task.side == side} for side in ("train", "held-out")]
    assert not sides[0] & sides[1]
    assert document == json.loads((out / "data.json").read_text())
    assert str(Path.home()) not in (out / "train.jsonl").read_text()


def test_a_finished_set_is_not_made_again_and_another_one_is_not_overwritten(wild):
    out, mix, servers, document = wild
    assert drain(build(servers, mix, out, benches=1)) == document
    with pytest.raises(SetupError, match="made with other settings"):
        drain(build(servers, mix.model_copy(update={"seed": 2}), out, benches=1))


def test_a_server_that_lists_another_schema_each_time(tmp_path):
    mix = HubMix(count=12, seed=1, sizes=(4,), kinds={"single": 1.0}, unseen_tools=(), unseen_servers=())
    document = drain(build([server("moody"), server("good")], mix, tmp_path, benches=2))
    assert "weigh" not in document["calls"]
    assert document["tasks"]["made"] >= 6  # the good server has tools that refuse or that crash without arguments


def test_a_server_that_does_not_start_is_named(tmp_path):
    with pytest.raises(ServerStartError, match="crash_at_start"):
        drain(build([server("good"), server("crash_at_start")], HubMix(count=5), tmp_path, benches=1))


def test_a_killed_build_goes_on_without_a_lost_or_a_double_row(tmp_path):
    hub = tmp_path / "mcp.json"
    entry = {"command": sys.executable, "args": [str(NASTY / "schemas.py")]}
    hub.write_text(json.dumps({"mcpServers": {"schemas": entry}}))
    out = tmp_path / "set"
    command = [sys.executable, "-m", "llm_tuner", "data", "synthesize", "--hub", str(hub), "--out", str(out)]
    command += ["--count", "120", "--seed", "4", "--benches", "1", "--json"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    journal, deadline = out / JOURNAL, time.monotonic() + 300
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 30):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (out / "data.json").exists()
    kept = journal.read_bytes().count(b"\n")
    with journal.open("a") as file:
        file.write('{"number": 29')
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=True)
    document = json.loads(done.stdout)
    tasks = [*load(out / "train.jsonl").tasks, *load(out / "held-out.jsonl").tasks]
    assert document["tasks"]["made"] == len(tasks) == len({task.id for task in tasks})
    assert document["tasks"]["made"] > 80
    tries = Counter(rejection.source for rejection in read_jsonl(out / "rejected.jsonl", Rejection))
    assert max(tries.values()) == 1
    assert len(tasks) + sum(tries.values()) > kept
    assert not journal.exists()
