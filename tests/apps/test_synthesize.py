"""The command's options: what is wrong is said before any server starts."""

import json
import sys
from pathlib import Path

import pytest

from llm_tuner.apps.cli import run

GOOD = Path(__file__).parent.parent / "tools" / "nasty" / "good.py"


@pytest.fixture
def hub(tmp_path):
    path = tmp_path / "mcp.json"
    entry = {"command": sys.executable, "args": [str(GOOD)]}
    path.write_text(json.dumps({"mcpServers": {"good": entry}}))
    return path


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--mix", "single"], "--mix is NAME=SHARE"),
        (["--mix", "sing=0.5"], "kinds.sing"),
        (["--languages", "fr=1"], "languages.fr"),
        (["--sizes", "1,many"], "--sizes is a list of whole numbers"),
        (["--sizes", "0"], "at least one tool"),
        (["--rendering", "tiny"], "rendering"),
        (["--writer", "gpt"], "--writer is"),
        (["--unseen-server", "nope"], "No server 'nope' in the hub (found: good)"),
    ],
)
def test_wrong_options(hub, tmp_path, capsys, options, said):
    code = run(["data", "synthesize", "--hub", str(hub), "--out", str(tmp_path / "out"), "--count", "4", *options])
    assert code in (4, 30)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "data.json").exists()


def test_a_set_without_execution(hub, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--count", "12", "--seed", "2", "--no-execute", "--irrelevance", "0.5", "--sizes", "4", "--json"]
    assert run(["data", "synthesize", "--hub", str(hub), "--out", str(out), *options]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["tasks"]["made"] == 12
    assert document["kinds"]["irrelevant"] == 6
    assert document["verified"] == {"schema only": 6, "no call": 6}
    assert document["executed_share"] == 0
    assert document["folder"] == str(out)
