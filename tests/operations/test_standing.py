"""Where things stand: real small tool servers, some of which fail; what is remembered; what follows from it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llm_tuner.operations import perform
from llm_tuner.operations.hubs import hub_file, listed
from llm_tuner.operations.standing import OPERATIONS, _next
from llm_tuner.store import Store
from llm_tuner.types import Latency, Rate, Report, SetupError

SCRIPTS = Path(__file__).parents[1] / "tools" / "nasty"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of our own, no model, and an Ollama address where nobody answers."""
    for name in ("DATA", "CACHE", "CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    monkeypatch.delenv("LLM_TUNER_HUB", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def hub(folder: Path, *scripts: str) -> str:
    servers = {name: {"command": sys.executable, "args": [str(SCRIPTS / f"{name}.py")]} for name in scripts}
    file = folder / "hub.json"
    file.write_text(json.dumps({"mcpServers": servers}), encoding="utf-8")
    return str(file)


def status(**arguments: Any) -> dict[str, Any]:
    steps = perform(OPERATIONS[0], arguments)
    with pytest.raises(StopIteration) as end:
        next(steps)
    return dict(end.value.value)


def commands(found: dict[str, Any]) -> list[str]:
    return [action["command"] for action in found["next_actions"]]


def test_on_an_empty_machine_it_says_where_to_begin(home: Path) -> None:
    found = status()
    assert (found["servers_connected"], found["tools_total"], found["windows"], found["hub"]) == (0, 0, [], "")
    assert found["models"]["ollama"]["version"] is None
    assert "127.0.0.1:9" in found["models"]["ollama"]["why"]
    assert {metric["name"]: metric["target"] for metric in found["metrics"]}["selection"] == 0.9
    assert commands(found) == [
        "llm-tuner tools list --discover", "llm-tuner models pull qwen2.5-coder:0.5b", "llm-tuner demo",
    ]  # fmt: skip
    assert all(action["en"] and action["ja"] for action in found["next_actions"])


def test_servers_are_asked_at_once_and_the_slow_and_the_broken_are_named(home: Path) -> None:
    file = hub(home, "good", "hang_at_start", "crash_at_start")
    start = time.monotonic()
    found = status(hub=file, wait=4)
    assert time.monotonic() - start < 12
    states = {server["name"]: server["state"] for server in found["servers"]}
    assert states == {"good": "connected", "hang_at_start": "slow", "crash_at_start": "failed"}
    assert found["servers_connected"] == 1
    assert found["tools_total"] > 0
    assert found["counted"] == "guessed"
    assert found["catalogue_tokens"]["full"] > found["catalogue_tokens"]["compact"] > 0
    assert {use["verdict"] for use in found["windows"]} == {"fits"}
    said = " ".join(action["en"] for action in found["next_actions"])
    assert "hang_at_start" in said
    assert '"crash_at_start" does not answer' in said


def test_an_answer_is_remembered_and_asked_anew_when_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = hub(home, "good")
    first = listed(file)
    assert listed(file) == first
    assert listed(file, fresh=True)[0].asked > first[0].asked
    again = listed(file)[0].asked
    later = time.time() + 301
    monkeypatch.setattr(time, "time", lambda: later)
    assert listed(file)[0].asked == later > again


def test_a_slow_server_keeps_its_tools_and_is_asked_again_with_more_time(home: Path) -> None:
    file = hub(home, "good")
    tools = listed(file)[0].tools
    assert tools
    slow = listed(file, wait=0.001, fresh=True)[0]
    assert (slow.state, slow.tools) == ("slow", tools)
    assert listed(file, wait=0.001)[0].asked == slow.asked
    assert listed(file, wait=20)[0].state == "connected"


def test_what_is_remembered_is_of_this_very_file(home: Path) -> None:
    file = hub(home, "good")
    listed(file)
    Path(file).write_text(Path(file).read_text().replace('"good"', '"renamed"'), encoding="utf-8")
    assert listed(file)[0].name == "renamed"


def test_which_hub_is_meant(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_file() == ""
    (home / ".mcp.json").write_text("{}")
    assert hub_file() == ""  # nobody said that its commands may run
    monkeypatch.setenv("LLM_TUNER_HUB", "other.json")
    assert (hub_file(), hub_file("given.json")) == ("other.json", "given.json")


def test_a_hub_that_cannot_be_read_is_trouble_and_hides_nothing(home: Path) -> None:
    found = status(hub="nowhere.json")
    assert "nowhere.json" in found["trouble"]
    assert "nowhere.json" in found["next_actions"][0]["en"]
    assert found["metrics"]
    with pytest.raises(SetupError, match=r"nowhere\.json"):
        listed("nowhere.json")


def _measured(selection: int) -> None:
    store = Store()
    with store.write("evaluate", {"selection": selection}, {}) as folder:
        rates = {
            name: Rate(k=k, n=100, value=k / 100, low=round(k / 100 - 0.05, 2), high=k / 100 + 0.05)
            for name, k in {"selection": selection, "parameters": 90, "native_rate": 100, "no_call": 95}.items()
        }
        report = Report(
            suite="held-out", suite_hash="a", backend="b", n=100, rates=rates, latency=Latency(n=1, p50_ms=9)
        )
        (folder.path / "report.json").write_text(report.model_dump_json(), encoding="utf-8")
        folder.outputs["held-out"] = "report.json"


def test_metrics_are_those_of_the_newest_measurement_and_decide_what_is_next(home: Path) -> None:
    _measured(95)
    metrics = {metric["name"]: metric for metric in status()["metrics"]}
    assert (metrics["selection"]["met"], metrics["selection"]["low"], metrics["latency_p50"]["value"]) == (True, 0.9, 9)
    assert metrics["latency_p50"]["met"] is None  # a target is a GPU's
    time.sleep(1.1)  # runs are in order of seconds
    _measured(60)
    found = status()
    assert {metric["name"]: metric["met"] for metric in found["metrics"]}["selection"] is False
    assert any("Below target: tool selection." in action["en"] for action in found["next_actions"])
    assert any("目標未達: ツール選択。" in action["ja"] for action in found["next_actions"])


def test_a_damaged_report_is_as_none(home: Path) -> None:
    with Store().write("evaluate", {}, {}) as folder:
        (folder.path / "report.json").write_text("{", encoding="utf-8")
        folder.outputs["held-out"] = "report.json"
    assert {metric["value"] for metric in status()["metrics"]} == {None}


def test_a_catalogue_too_long_candidates_and_all_reached() -> None:
    found: dict[str, Any] = {
        "hub": "h.json", "trouble": "", "servers": [], "tools_total": 73, "catalogue_tokens": {"full": 12140},
        "windows": [{"window": 8192, "rendering": "full", "verdict": "does not fit"}],
        "models": {"fetched": ["a"], "ollama": {"models": []}, "tuned": {"demo": {"stable": "v1", "candidate": "v2"}}},
        "metrics": [{"name": "selection", "value": 0.95, "met": True}],
    }  # fmt: skip
    assert [action.command for action in _next(found)] == [
        "llm-tuner serve gateway --show fit", "llm-tuner models history demo",
        "llm-tuner serve gateway --model demo:stable",
    ]  # fmt: skip
