"""`tools budget`: the table and the document, and what is wrong is said before anything is loaded."""

import json
import sys
from pathlib import Path

import pytest

from llm_tuner.apps.cli import run

HUB = str(Path(__file__).parents[2] / "examples" / "hub-8" / "tools.json")
GOOD = Path(__file__).parent.parent / "tools" / "nasty" / "good.py"


@pytest.mark.weights
def test_the_reference_hub(qwen_gguf, capsys):
    assert run(["tools", "budget", "--hub", HUB, "--model", str(qwen_gguf), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["tools"]) == 73
    assert found["whole"]["compact"] < 1900
    verdicts = {(use["window"], use["rendering"]): use["verdict"] for use in found["windows"]}
    assert verdicts[200_000, "full"] == "fits"
    assert verdicts[32_768, "full"] == "tight"
    assert verdicts[8_192, "full"] == "does not fit"
    assert verdicts[8_192, "compact"] == "fits"
    assert found["kv_bytes"]["8192"] == 96 * 2**20
    assert found["trained"] == 32_768

    windows = ["--windows", "8_192, 65536", "--cache", "q8_0"]
    assert run(["tools", "budget", "--hub", HUB, "--model", str(qwen_gguf), *windows]) == 0
    text = capsys.readouterr().out
    assert "does not fit" in text
    assert "65,536 *" in text
    assert "51 MiB" in text
    assert "KV cache (q8_0)" in text
    assert "200,000" not in text


@pytest.mark.weights
def test_the_tools_of_running_servers(qwen_gguf, tmp_path, capsys):
    hub = tmp_path / "mcp.json"
    hub.write_text(json.dumps({"mcpServers": {"good": {"command": sys.executable, "args": [str(GOOD)]}}}))
    assert run(["tools", "budget", "--hub", str(hub), "--model", str(qwen_gguf), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["servers"]) == {"good"}


@pytest.mark.weights
@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--windows", "many"], 4, "--windows is a list of whole numbers"),
        (["--windows", "0"], 4, "--windows"),
        (["--windows", ","], 4, "--windows"),
        (["--cache", "int3"], 4, "q8_0"),
        (["--hub", "none.json"], 4, "none.json"),
        (["--hub", "wrong.json"], 30, "no list of tools"),
        (["--hub", "empty.json"], 31, "no tool"),
        (["--model", "nosuch"], 11, "nosuch"),
    ],
)
def test_wrong_options(qwen_gguf, tmp_path, monkeypatch, capsys, options, code, said):
    monkeypatch.chdir(tmp_path)
    Path("wrong.json").write_text('[{"nam": "x"}]')
    Path("empty.json").write_text("[]")
    assert run(["tools", "budget", "--hub", HUB, "--model", str(qwen_gguf), *options]) == code
    assert said in capsys.readouterr().err
