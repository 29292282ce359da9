"""The scripts are commands in a row: what they run, and that they end with the command's own code."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "scripts" / "local-llm"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """No runs, and no network to fetch anything with."""
    for name in ("DATA", "CACHE", "CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))


def recorded(module, monkeypatch, codes=()):
    ran, left = [], list(codes)

    def run(words):
        ran.append(words)
        return left.pop(0) if left else 0

    monkeypatch.setattr(module, "run", run)
    return ran


def test_dpo_is_the_command_with_the_same_options_and_its_code(empty, capsys):
    module = script("run_dpo")
    assert module.main(["--from", "last"]) == 30
    assert 'No collect run "last"' in capsys.readouterr().err
    assert module.main(["--betta", "1"]) == 2


def test_dpo_hands_every_option_on(monkeypatch):
    module = script("run_dpo")
    ran = recorded(module, monkeypatch)
    assert module.main(["--from", "base", "--own", "5", "--json"]) == 0
    assert ran == [["train", "--method", "dpo", "--from", "base", "--own", "5", "--json"]]


def test_training_goes_on_with_the_methods_that_are_named(monkeypatch):
    module = script("train_tool_use")
    ran = recorded(module, monkeypatch)
    words = ["--hub", "h.json", "--no-execute", "--base", "b", "--epochs", "2", "--then", "dpo,grpo", "--json"]
    assert module.main(words) == 0
    shared = ["--from", "last", "--base", "b", "--hub", "h.json", "--no-execute", "--json"]
    assert ran == [
        [
            "data",
            "collect",
            "--hub",
            "h.json",
            "--base",
            "b",
            "--tasks",
            "320",
            "--own",
            "0",
            "--no-execute",
            "--quiet",
        ],
        ["train", "--base", "b", "--epochs", "2", "--json"],
        ["train", "--method", "dpo", *shared],
        ["train", "--method", "grpo", *shared],
    ]


def test_what_fails_ends_it_with_its_code_and_an_unknown_method_is_wrong_usage(monkeypatch, capsys):
    module = script("train_tool_use")
    ran = recorded(module, monkeypatch, codes=[0, 31])
    assert module.main(["--then", "dpo"]) == 31
    assert len(ran) == 2
    with pytest.raises(SystemExit) as end:
        module.main(["--then", "ppo"])
    assert end.value.code == 2
    assert "no method 'ppo'" in capsys.readouterr().err
