"""The dashboard, asked over HTTP and by a real browser: who may, what is shown, how soon."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import pytest
import uvicorn
from pydantic import Field
from starlette.testclient import TestClient

from llm_tuner.apps.dashboard import index as indexes
from llm_tuner.apps.dashboard import words
from llm_tuner.apps.dashboard.app import Dashboard
from llm_tuner.apps.gateway.running import bound
from llm_tuner.operations import Change, Operation
from llm_tuner.operations.table import OPERATIONS
from llm_tuner.serving.exchanges import Recorder
from llm_tuner.store import Store
from llm_tuner.store.scrub import Scrubber
from llm_tuner.store.suite import Suite, save
from llm_tuner.types import (
    AllowedCall,
    AllowedCalls,
    AnyCall,
    Attempt,
    Event,
    ExactCalls,
    Latency,
    Message,
    NoCall,
    Rate,
    Report,
    Task,
    Timing,
    ToolCall,
    UnknownModel,
    Verdict,
)
from pages import NASTY, Page
from recording import TOOLS, asked, call, calling, heard, user

LOCAL = "http://127.0.0.1:11536"
OURS = {"x-llm-tuner": "1"}
TOKEN = "correct-horse-battery-staple"

removed: list[str] = []
closed = threading.Event()
gate = threading.Event()


def add(first: Annotated[int, Field(description="A number.", ge=0)], second: int = 2) -> dict[str, int]:
    """Add two numbers.

    Example: llm-tuner add 1
    """
    return {"sum": first + second}


def count(until: int, seconds: float = 0) -> Generator[Event, None, int]:
    """Count slowly."""
    try:
        for number in range(1, until + 1):
            time.sleep(seconds)
            yield Event(step="count", message="counting", done=number, total=until, data={"loss": 1 / number})
    except GeneratorExit:
        closed.set()
        raise
    if until == 13:
        raise UnknownModel("Thirteen is no model.")
    return until


def remove(name: str = "old", confirm: bool = False) -> Change:
    """Remove something."""
    if confirm:
        removed.append(name)
    return Change(done=confirm, sentences=(f"{name} {'went' if confirm else 'would go'}.",))


def model_history(name: str) -> dict[str, Any]:
    """Versions."""
    return {
        "name": name,
        "aliases": {"stable": "v1", "candidate": "v2", "previous": "v0"},
        "versions": [
            {"version": version, "aliases": [], "size": 5, "sha256": "ab", "created": NASTY, "lineage": {"base": NASTY},
             "measured": {"promote": False, "sentences": [NASTY]}}
            for version in ("v2", "v1")
        ],
        "moves": [{"when": NASTY, "alias": NASTY, "before": "", "after": "v1", "by": "install"}],
    }  # fmt: skip


def model_diff(before: str, after: str) -> dict[str, Any]:
    """Differences."""
    changes = [
        {"field": NASTY, "before": 1, "after": 2, "difference": 1},
        {"field": "x", "before": None, "after": [NASTY]},
    ]
    return {"before": before, "after": after, "changes": changes}


def model_promote(name: str, force: bool = False, confirm: bool = False) -> Change:
    """Promote."""
    if confirm:
        removed.append(f"promoted {name}")
    return Change(done=confirm, sentences=(f"{name}: stable v1 -> v2.", NASTY))


def slow_status() -> dict[str, Any]:
    """Where things stand."""
    gate.wait(30)
    raise UnknownModel("Status was asked.")


TABLE = (
    Operation("add", add, ("add",), "二つの数を足します。"),
    Operation("count", count, ("count",), "数えます。"),
    Operation("remove", remove, ("remove",), "消します。", "destroys"),
    Operation("model_history", model_history, ("models", "history"), "版。"),
    Operation("model_diff", model_diff, ("models", "diff"), "違い。"),
    Operation("model_promote", model_promote, ("models", "promote"), "昇格。", "destroys"),
)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    removed.clear()
    closed.clear()
    gate.clear()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Dashboard]]:
    made: list[Dashboard] = []

    def dashboard(operations: tuple[Operation, ...] = TABLE, **more: Any) -> Dashboard:
        where = {"journal": tmp_path / "exchanges", "cache": tmp_path / "cache"}
        made.append(Dashboard(operations, Store(tmp_path / "runs"), **where, **more))
        return made[-1]

    yield dashboard
    for one in made:
        one.index.close()


def browser(board: Dashboard, **headers: str) -> TestClient:
    return TestClient(board.app, base_url=LOCAL, headers=headers, follow_redirects=False)


# --------------------------------------------------------------------------------------------------------- who may ask


def test_a_name_that_points_here_by_rebinding_reads_nothing(make: Callable[..., Dashboard]) -> None:
    client = browser(make())
    for path in ("/", "/api/operations", "/static/dashboard.js"):
        assert client.get(path, headers={"host": "evil.example"}).status_code == 403
        assert client.get(path, headers={"host": "localhost:11536"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "application/x-www-form-urlencoded", "origin": LOCAL},
        {**OURS, "origin": "http://evil.example"},
        {**OURS, "origin": "http://127.0.0.1:9999"},
        {**OURS, "origin": "null"},
        {**OURS, "origin": "http://["},
        {**OURS, "sec-fetch-site": "cross-site"},
        {**OURS, "sec-fetch-site": "same-site"},
        {**OURS, "host": "evil.example", "origin": "http://evil.example"},
    ],
)
@pytest.mark.parametrize("token", ["", TOKEN])
def test_what_is_not_its_own_page_changes_nothing(
    make: Callable[..., Dashboard], headers: dict[str, str], token: str
) -> None:
    client = browser(make(token=token))
    if token:
        client.post("/login", data={"token": token}, headers={"origin": LOCAL})
        if headers.get("host"):
            client.cookies.clear()  # a browser sends them to no other name
    answer = client.post("/api/operations/remove", content=b'{"confirm": true}', headers=headers)
    assert answer.status_code in ((401, 403) if token else (403,))
    assert removed == []
    own = {**OURS, "origin": LOCAL, "sec-fetch-site": "same-origin"}
    if not headers.get("host"):
        assert client.post("/api/operations/remove", json={"confirm": True}, headers=own).json()["done"]


def test_beyond_this_machine_a_token_opens_it_and_a_wrong_one_does_not(make: Callable[..., Dashboard]) -> None:
    client = browser(make(token=TOKEN), host="tuner.example:11536")
    assert client.get("/", headers={"accept": "text/html"}).headers["location"] == "/login"
    assert client.get("/api/operations").status_code == 401
    assert client.get("/", headers={"authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/", headers={"cookie": f"llm_tuner_session={TOKEN}"}).status_code == 401
    for wrong in ("wrong", "", "ü" * 40, TOKEN + " "):
        answer = client.post("/login", data={"token": wrong})
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
        assert "That token is wrong." in answer.text
    assert client.get("/api/operations", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    right = client.post("/login", data={"token": TOKEN})
    assert right.status_code == 303
    cookie = right.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    session = {"cookie": cookie.partition(";")[0]}
    assert client.get("/", headers=session).status_code == 200
    assert client.post("/login", data={"token": TOKEN}, headers={"origin": "http://evil.example"}).status_code == 403


def test_switches_lead_to_no_other_site(make: Callable[..., Dashboard]) -> None:
    client = browser(make())
    for to in ("//evil.example", "https://evil.example", "/\\evil.example", "/\nx", "evil"):
        assert client.get("/set/lang/ja", params={"to": to}).headers["location"] == "/"
    assert client.get("/set/lang/ja", params={"to": "/runs?kind=train"}).headers["location"] == "/runs?kind=train"
    assert "set-cookie" not in client.get("/set/lang/<b>").headers


# ------------------------------------------------------------------------------------------------------ what is shown

SPECS = TOOLS
EXPECTED = (
    ExactCalls(calls=(ToolCall(name="read_file", arguments={"path": NASTY}),)),
    NoCall(),
    AllowedCalls(calls=(AllowedCall(name="find_files", arguments={"word": ["a", "b"]}),)),
    AnyCall(),
)


def measured(store: Store, n: int = 8, *, key: str = "", right: bool = False) -> str:
    """An evaluate run with `n` tasks whose texts are nasty; its id."""
    tasks = tuple(
        Task(
            messages=(Message(role="system", text="Be brief."), Message(role="user", text=f"{NASTY} {number}")),
            tools=SPECS[: 1 + number % 2], expect=EXPECTED[number % 4], category="single", language="ja",
        )
        for number in range(n)
    )  # fmt: skip
    suite = Suite(name="held-out", tasks=tasks)
    verdicts = {
        task.id: Verdict(
            ok=good, selection_ok=good, parameters_ok=good, score=float(good),
            reason="ok" if good else "wrong_tool", detail=NASTY,
        )
        for number, task in enumerate(tasks)
        for good in [right or number % 2 == 0]
    }  # fmt: skip
    with store.write("evaluate", {}, {"model": key}) as folder:
        part = folder.path / "held-out"
        part.mkdir()
        save(suite, part / "suite.jsonl")
        with (part / "attempts.jsonl").open("w", encoding="utf-8") as file:
            for task in reversed(tasks):
                made = ToolCall(name="read_file", arguments={"path": NASTY}, raw=NASTY)
                said = Message(role="assistant", text=NASTY, tool_calls=(made,))
                verdict, timing = verdicts[task.id], Timing(total_ms=12)
                attempt = Attempt(task_id=task.id, backend=NASTY, messages=(said,), timing=timing, verdict=verdict)
                file.write(attempt.model_dump_json(exclude_defaults=True) + "\n")
        ok = sum(verdict.ok for verdict in verdicts.values())
        rate = Rate(k=ok, n=n, value=ok / n, low=0.1, high=0.9)
        rates = dict.fromkeys(("ok", "selection", "parameters", "native_rate", "ok_lenient"), rate)
        report = Report(
            suite="held-out", suite_hash=suite.hash, backend=NASTY, n=n, rates=rates, latency=Latency(n=n, p50_ms=12),
            verdicts=verdicts, wanted=tuple(verdicts),
        )  # fmt: skip
        (part / "report.json").write_text(report.model_dump_json(), encoding="utf-8")
        folder.outputs["held-out"] = "held-out/report.json"
        folder.metrics["held-out"] = {"selection": ok / n}
    assert folder.run is not None
    return folder.run.id


def recorded(folder: Path, times: int = 3) -> None:
    recorder = Recorder(folder, Scrubber("salt" * 8))
    for number in range(times):
        question, good = user(f"{NASTY} {number}"), calling(call("read_file", f"c{number}", path=f"{number}.txt"))
        recorder.record(asked(question, answer=good))
        result = heard("text", f"c{number}")
        recorder.record(asked(question, good, result, answer=Message(role="assistant", text=NASTY)))
        recorder.record(asked(user(f"Find {number}"), answer=calling(call("find_files", f"d{number}"))))
    recorder.flush()
    recorder.close()


def collected(store: Store) -> str:
    tasks = tuple(
        Task(messages=(user(f"{NASTY} {number}"),), tools=SPECS, expect=EXPECTED[number % 4], tags={"note": NASTY})
        for number in range(6)
    )
    with store.write("collect", {"note": NASTY}, {}) as folder:
        save(Suite(name="train", tasks=tasks), folder.path / "train.jsonl")
        (folder.path / "card.html").write_text("<style>p{}</style><p>A card<script>alert(1)</script>")
    assert folder.run is not None
    return folder.run.id


def complete(client: TestClient, path: str) -> Any:
    """The page, once it has read what it shows."""
    for _ in range(200):
        answer = client.get(path)
        if answer.headers.get("x-again", "0") == "0":
            return answer
        time.sleep(0.02)
    raise AssertionError(f"{path} never came to rest")


@pytest.fixture
def filled(make: Callable[..., Dashboard]) -> Dashboard:
    board = make()
    measured(board.store, key="a")
    measured(board.store, key="b", right=True)
    collected(board.store)
    recorded(board.journal)
    return board


def walk(client: TestClient) -> Iterator[tuple[str, str]]:
    """Every page that links lead to, once."""
    todo, seen = ["/", "/models/demo"], set[str]()
    while todo:
        path = todo.pop()
        if path in seen or path.startswith(("/set/", "/static/")) or path == "/compare" or "/html/" in path:
            continue
        seen.add(path)
        answer = complete(client, path)
        assert answer.status_code == 200, path
        yield path, answer.text
        todo += [link for link in Page(answer.text).links if link.startswith("/")]


@pytest.mark.parametrize("language", ["en", "ja"])
def test_every_page_holds_texts_as_texts_and_needs_nothing_from_elsewhere(filled: Dashboard, language: str) -> None:
    client, paths = browser(filled, **{"accept-language": language}), []
    for path, text in walk(client):
        paths.append(path)
        page = Page(text)
        assert not page.tags & {"img", "style", "iframe", "object"}, path
        assert text.count("<script") == 1, path
        assert not re.search(r"<[^>]*\s(?:style|on\w+)=", text), path
        assert all(link.startswith(("/", "?", "#", "data:,")) for link in page.links), path
        assert f'<html lang="{language}"' in text
        assert "None" not in page.text, path
        assert "bound method" not in page.text, path
    kinds = ("/evaluations/", "/data/", "/traffic/", "/runs/", "/models/", "/operations/")
    assert all(any(path.startswith(kind) for path in paths) for kind in kinds)
    assert len(paths) > 30


@pytest.mark.parametrize("language", ["en", "ja"])
def test_pages_that_only_operations_fill(make: Callable[..., Dashboard], language: str) -> None:
    names = {"resources", "resource_history", "models_advise", "models_list"}
    client = browser(make((*TABLE, *(one for one in OPERATIONS if one.name in names))), **{"accept-language": language})
    for path, known in (
        ("/resources", "coordinator"),
        ("/resources?hours=24", "coordinator"),
        ("/models", "qwen2.5-coder:0.5b"),
        ("/models/demo?before=v1&after=v2", f"demo:v2 {NASTY}"),
    ):
        for _ in range(100):
            page = Page((answer := client.get(path)).text)
            if known.split()[0] in page.text:
                break
            time.sleep(0.1)
        assert answer.status_code == 200
        assert all(word in page.text for word in known.split(" ", 1)), path
        assert not page.tags & {"img", "style"}


def test_every_answer_says_what_a_browser_may_do_with_it(filled: Dashboard) -> None:
    client = browser(filled)
    for answer in (client.get("/"), client.get("/nowhere"), client.get("/api/operations"), client.post("/api/x"),
                   client.get("/", headers={"host": "evil.example"})):  # fmt: skip
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


def test_a_page_that_a_run_wrote_gets_no_rights(filled: Dashboard) -> None:
    client, run = browser(filled), filled.store.runs("collect")[0].id
    card = client.get(f"/runs/{run}/html/card.html")
    assert "A card" in card.text
    assert "sandbox;" in card.headers["content-security-policy"]
    assert "script-src" not in card.headers["content-security-policy"]
    for name in ("run.json", "train.jsonl", "..%2frun.json", "%2e%2e"):
        assert client.get(f"/runs/{run}/html/{name}").status_code == 404


@pytest.mark.parametrize("run", ["..", "%2e%2e", "..%2f..", ".partial-x", "%00", "a" * 300, "<b>"])
def test_no_address_is_a_path(filled: Dashboard, run: str) -> None:
    client = browser(filled)
    for path in (f"/runs/{run}/held-out/x", f"/evaluations/{run}/held-out", f"/data/{run}/train", f"/traffic/{run}x"):
        assert client.get(path).status_code == 404


def test_languages_and_appearance(make: Callable[..., Dashboard]) -> None:
    client = browser(make())
    assert "実行" in client.get("/runs", headers={"accept-language": "ja,en;q=0.8"}).text
    assert "Runs" in client.get("/runs", headers={"accept-language": "fr, en;q=0.5, ja;q=0.1"}).text
    client.get("/set/lang/ja?to=/runs")
    client.get("/set/theme/dark?to=/runs")
    text = client.get("/runs", headers={"accept-language": "en"}).text
    assert '<html lang="ja" data-theme="dark">' in text
    assert all(all(pair) for table in (words._WORDS, words.NAMES, words.REASONS) for pair in table.values())


def test_an_attempt_shows_request_tools_answer_and_verdict(filled: Dashboard) -> None:
    client, run = browser(filled), filled.store.runs("evaluate")[-1].id
    base = f"/evaluations/{run}/held-out"
    suite = complete(client, base)
    ids = re.findall(rf"{base}/([0-9a-f]{{16}})", suite.text)
    assert len(set(ids)) == 8
    page = Page(client.get(f"{base}/{ids[0]}").text)
    for text in (f"{NASTY} 7", "Be brief.", "wrong tool", "read_file", "Find files by a word", "…"):
        assert text in page.text
    wrong = complete(client, f"{base}?reason=wrong_tool")
    assert len(re.findall(rf"{base}/([0-9a-f]{{16}})", wrong.text)) == 4
    none = complete(client, f"{base}?reason=nothing' OR 1=1 --")
    assert re.findall(rf"{base}/([0-9a-f]{{16}})", none.text) == []
    assert client.get(f"{base}/{'0' * 16}").status_code == 404


def test_two_measurements_are_compared(filled: Dashboard) -> None:
    client = browser(filled)
    after, before = (run.id for run in filled.store.runs("evaluate"))
    text = Page(complete(client, f"/compare?before={before}&after={after}").text).text
    assert "+50.0" in text
    assert text.count("gained") >= 4
    assert client.get(f"/compare?before={before}&after=../x").status_code == 404


def test_traffic_counts_calls_and_failures_by_tool_and_reason(filled: Dashboard) -> None:
    client = browser(filled)
    page = complete(client, "/traffic")
    text = "".join(Page(page.text).text.split())
    assert "Exchanges9right3wrong3unknown3error0" in text
    assert "find_files:wordismissingwrong3" in text
    ids = re.findall(r'"/traffic/([^"]+)"', complete(client, "/traffic?tool=read_file&state=right").text)
    assert len(ids) == 3
    assert "Read a file" not in client.get(f"/traffic/{ids[0]}").text  # names of the tools alone
    assert NASTY in Page(client.get(f"/traffic/{ids[0]}").text).text
    for file in filled.journal.glob("*.jsonl"):
        file.unlink()
    assert "No exchange is recorded" in complete(client, "/traffic").text


def test_data_shows_its_mix_and_samples(filled: Dashboard) -> None:
    client, run = browser(filled), filled.store.runs("collect")[0].id
    assert f"/data/{run}/train" in client.get("/data").text
    page = complete(client, f"/data/{run}/train?tool=read_file")
    samples = re.findall(rf"/data/{run}/train/([0-9a-f]{{16}})", page.text)
    assert len(samples) == 2
    assert "card.html" in page.text
    assert NASTY in Page(client.get(f"/data/{run}/train/{samples[0]}").text).text


def test_a_loss_curve_grows_while_it_trains(make: Callable[..., Dashboard]) -> None:
    board = make()
    client = browser(board)
    with board.store.write("train", {}, {}) as folder:
        path = f"/runs/{folder.path.name.removeprefix('.partial-')}"
        assert "No curve yet" in client.get(path).text
        found = []
        for done in (10, 20):
            lines = [f'{{"step":{n + 1},"loss":{1 / (n + 1)}}}' for n in range(done)]
            (folder.path / "curve.jsonl").write_text("\n".join([*lines, '{"step":']))
            answer = client.get(path)
            assert int(answer.headers["x-again"]) > 0
            found.append(len(re.search(r'<polyline[^>]*points="([^"]*)"', answer.text)[1].split()))  # type: ignore[index]
        assert found == [10, 20]
        assert "running" in client.get("/runs").text


def test_an_index_that_is_broken_or_old_is_made_anew(filled: Dashboard, make: Callable[..., Dashboard]) -> None:
    run = filled.store.runs("evaluate")[0].id
    before = complete(browser(filled), f"/evaluations/{run}/held-out").text
    filled.index.close()
    for file in (filled.cache).glob("*.sqlite*"):
        file.write_bytes(b"no database at all" * 100)
    assert complete(browser(make()), f"/evaluations/{run}/held-out").text == before


def test_what_a_running_measurement_appends_is_seen(make: Callable[..., Dashboard], tmp_path: Path) -> None:
    board = make()
    run = measured(board.store)
    file = board.store.root / run / "held-out" / "attempts.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:40])
    board.index.open(file, "attempts", wait=5)

    def seen() -> int:
        known = board.index.open(file, "attempts", wait=5)
        return int(board.index.rows("SELECT COUNT(*) FROM attempts WHERE file = ?", known.file)[0][0])

    assert seen() == 3
    with file.open("ab") as end:
        end.write(lines[3][40:] + b"".join(lines[4:]) + b"{broken\n")
    assert seen() == 8
    assert indexes.attempt(board.index, file, json.loads(lines[3])["task_id"]) is not None


# --------------------------------------------------------------------------------------------------------- operations


def test_the_api_offers_the_very_table(make: Callable[..., Dashboard]) -> None:
    listed = browser(make(OPERATIONS)).get("/api/operations").json()
    assert [one["name"] for one in listed] == [operation.name for operation in OPERATIONS]
    assert all(one["input_schema"]["type"] == "object" for one in listed)


def test_an_operation_is_performed_and_errors_say_what_is_wrong(make: Callable[..., Dashboard]) -> None:
    client = browser(make(), **OURS)
    assert client.post("/api/operations/add", json={"first": 2}).json() == {"sum": 4}
    wrong = client.post("/api/operations/add", json={"first": "two"})
    assert wrong.status_code == 422
    assert "first" in wrong.json()["error"]
    assert client.post("/api/operations/count", json={"until": []}).status_code == 422
    for body in (b"{", b"[1]", b'"x"', b"\xff", b"NaN", b"[" * 100_000):
        assert client.post("/api/operations/add", content=body).status_code == 400
    assert "add" in client.post("/api/operations/nothing", json={}).json()["error"]
    assert client.get("/api/operations/add").status_code == 405


def test_what_destroys_says_its_plan_first(make: Callable[..., Dashboard]) -> None:
    client = browser(make(), **OURS)
    plan = client.post("/api/operations/remove", json={}).json()
    assert (plan["done"], plan["sentences"], removed) == (False, ["old would go."], [])
    assert client.post("/api/operations/remove", json={"confirm": True}).json()["done"]
    assert removed == ["old"]


def test_a_long_one_is_a_job_with_events_and_a_result(make: Callable[..., Dashboard]) -> None:
    client = browser(make(), **OURS)
    answer = client.post("/api/operations/count", json={"until": 5})
    assert answer.status_code == 202
    where = answer.headers["location"]
    told = client.get(f"{where}/events").text
    assert [json.loads(one)["done"] for one in re.findall(r"event: progress\ndata: (.*)", told)] == [1, 2, 3, 4, 5]
    assert json.loads(re.search(r"event: end\ndata: (.*)", told)[1])["result"] == 5  # type: ignore[index]
    assert client.get(where).json()["state"] == "done"
    assert "polyline" in client.get(where.replace("/api", "")).text
    resumed = client.get(f"{where}/events", headers={"last-event-id": "2"}).text
    assert resumed.count("event: progress") == 2
    failed = client.post("/api/operations/count", json={"until": 13}).headers["location"]
    assert "Thirteen is no model." in client.get(f"{failed}/events").text
    assert client.get("/api/jobs/none").status_code == 404


def test_a_job_is_stopped(make: Callable[..., Dashboard]) -> None:
    client = browser(make(), **OURS)
    where = client.post("/api/operations/count", json={"until": 10_000, "seconds": 0.01}).headers["location"]
    assert client.post(f"{where}/cancel").status_code == 202
    assert closed.wait(5)
    assert '"state": "stopped"' in client.get(f"{where}/events").text


def test_the_overview_waits_for_nobody(make: Callable[..., Dashboard]) -> None:
    slow = Operation("status", slow_status, ("status",), "状態。")
    client = browser(make((*TABLE, slow)))
    clock = time.monotonic()
    answer = client.get("/")
    assert time.monotonic() - clock < 5
    assert "Asking…" in answer.text
    assert int(answer.headers["x-again"]) > 0
    gate.set()
    assert "Status was asked." in complete(client, "/").text


def test_the_overview_shows_what_the_last_dashboard_knew(make: Callable[..., Dashboard]) -> None:
    real = next(operation for operation in OPERATIONS if operation.name == "status")
    known = complete(browser(make((real,))), "/").text
    assert "Measured against targets" in known
    slow = Operation("status", slow_status, ("status",), "状態。")
    assert "Measured against targets" in browser(make((slow,))).get("/").text
    gate.set()


# -------------------------------------------------------------------------------------------------------------- limits


def test_pages_are_quick_with_many_attempts(make: Callable[..., Dashboard]) -> None:
    board = make()
    run = measured(board.store, 20_000)
    client, base = browser(board), f"/evaluations/{run}/held-out"
    for _ in range(1200):
        if client.get(base).headers["x-again"] == "0":
            break
        time.sleep(0.05)
    for path in (
        base,
        f"{base}?page=390",
        f"{base}?reason=wrong_tool&page=100",
        f"{base}?tool=read_file",
        "/evaluations",
    ):
        times = []
        for _ in range(7):
            clock = time.perf_counter()
            answer = client.get(path)
            times.append(time.perf_counter() - clock)
        assert answer.status_code == 200
        assert statistics.median(times) < 0.2, path
    assert "20,000" in answer.text or "20,000" in client.get(base).text


# ------------------------------------------------------------------------------------------------------- a real browser


UNNAMED = (
    "[...document.querySelectorAll('input,select,textarea,button,a')].filter(e => !(e.innerText.trim() || "
    "e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML)"
)
"""What a screen reader could not name."""


class Chromium:
    """A headless Chromium, spoken to over pipes (DevTools protocol)."""

    def __init__(self, binary: str, profile: Path) -> None:
        self._read, theirs_out = os.pipe()
        theirs_in, self._write = os.pipe()
        # The protocol wants 3 and 4; a shell puts them there without code between fork and exec.
        command = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        arguments = [binary, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]  # fmt: skip
        self.process = subprocess.Popen(
            ["bash", "-c", command, "bash", *arguments], pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._number, self._rest, self._session = 0, b"", ""
        self.events: list[dict[str, Any]] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: Any) -> Any:
        self._number += 1
        asked = {"id": self._number, "method": method, "params": params}
        os.write(
            self._write, json.dumps(asked | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def go(self, url: str) -> None:
        self.events.clear()
        self("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def js(self, text: str) -> Any:
        found = self("Runtime.evaluate", expression=text, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, text: str) -> Any:
        for _ in range(150):
            if value := self.js(text):
                return value
            time.sleep(0.05)
        raise AssertionError(f"never true: {text}\n{self.js('document.body.innerText')}")

    def press(self, key: str) -> None:
        code = {"Tab": 9, "Enter": 13, "Escape": 27}[key]
        for kind in ("keyDown", "keyUp"):
            more = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def picture(self) -> bytes:
        return base64.b64decode(self("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        os.close(self._read)
        os.close(self._write)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._read, 1 << 20)
            assert piece, "Chromium ended"
            self._rest += piece
        text, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        return found


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("no chromium or google-chrome on PATH (Debian: apt-get install chromium)")
    made = Chromium(binary, tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@contextmanager
def served(board: Dashboard) -> Iterator[str]:
    with bound("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(board.app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


def test_a_browser_shows_every_kind_of_page(filled: Dashboard, chromium: Chromium) -> None:
    run, data = filled.store.runs("evaluate")[0].id, filled.store.runs("collect")[0].id
    paths = ["/", "/models/demo", "/runs", f"/runs/{run}", "/evaluations", f"/evaluations/{run}/held-out", "/data",
             f"/data/{data}/train", "/traffic", "/operations", "/operations/add", "/operations/remove"]  # fmt: skip
    with served(filled) as url:
        for width in (390, 1280):
            chromium(
                "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
            )
            for language in ("en", "ja"):
                chromium.go(f"{url}/set/lang/{language}")
                for path in paths:
                    chromium.go(url + path)
                    assert chromium.js("document.documentElement.scrollWidth <= innerWidth"), (path, width)
                    assert chromium.js("[...document.querySelectorAll('main,nav,header,h1')].length") >= 4
                    assert chromium.js(UNNAMED) == [], path
                    told = [
                        event
                        for event in chromium.events
                        if event.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")
                    ]
                    assert told == [], path
        colours = set()
        for scheme in ("light", "dark"):
            chromium("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            colours.add(chromium.js("getComputedStyle(document.body).backgroundColor"))
        assert len(colours) == 2
        assert chromium.picture().startswith(b"\x89PNG")


def test_a_plan_is_agreed_to_with_the_keyboard_alone(filled: Dashboard, chromium: Chromium) -> None:
    with served(filled) as url:
        chromium.go(f"{url}/set/lang/en")
        chromium.go(f"{url}/models/demo")
        chromium.press("Tab")
        assert chromium.js("document.activeElement.className") == "skip"
        assert chromium.js("document.activeElement.getBoundingClientRect().left") >= 0
        for _ in range(40):
            chromium.press("Tab")
            if chromium.js("document.activeElement.dataset.operation || ''") == "model_promote":
                break
        chromium.press("Enter")
        chromium.until("document.querySelector('#plan').open")
        assert NASTY in chromium.js("document.querySelector('#plan').innerText")
        assert chromium.js("document.activeElement.value") == "no"
        chromium.press("Escape")
        chromium.until("!document.querySelector('#plan').open && !document.querySelector('[aria-busy]')")
        assert removed == []
        chromium.press("Enter")
        chromium.until("document.querySelector('#plan').open")
        chromium.press("Tab")
        chromium.press("Enter")
        chromium.until("document.querySelector('#said').innerText.includes('stable v1 -> v2')")
        assert removed == ["promoted demo"]


def test_a_form_starts_a_long_operation_and_tells_of_it(filled: Dashboard, chromium: Chromium) -> None:
    with served(filled) as url:
        chromium.go(f"{url}/operations/count")
        chromium.js("document.querySelector('[name=until]').value = '5'")
        chromium.js("document.querySelector('form[data-operation] button').click()")
        chromium.until("document.querySelector('#result').textContent === '5'")
        chromium.go(f"{url}/operations/add")
        chromium.js("document.querySelector('[name=first]').value = '40'")
        chromium.js("document.querySelector('form[data-operation] button').click()")
        chromium.until("document.querySelector('#result').textContent.includes('42')")
