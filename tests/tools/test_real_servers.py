"""The servers that people run: list, call, values. Installed into the cache on first use (tests/mcp_servers.py)."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_tuner.tools.hub import Hub
from llm_tuner.tools.servers import demo_servers
from llm_tuner.types import ToolCall
from mcp_servers import Unavailable, node_server, python_server

pytestmark = pytest.mark.servers
START_SECONDS = 180  # a first start downloads


def call(hub, name, **arguments):
    return hub.call(ToolCall(name=name, arguments=arguments))


def node(*args, **options):
    try:
        return node_server(*args, **options)
    except Unavailable as why:
        pytest.skip(str(why))


@pytest.fixture
def box(tmp_path):
    repository = tmp_path / "repos" / "blog"
    repository.mkdir(parents=True)
    (repository / "post.md").write_text("# Hello\n")
    who = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
    for command in (["init", "-q", "-b", "main"], ["add", "."], [*who, "commit", "-q", "-m", "First post"]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    return tmp_path


def test_filesystem(box):
    server = node("@modelcontextprotocol/server-filesystem", str(box))
    with Hub([server], start_timeout=START_SECONDS) as hub:
        assert {"read_text_file", "write_file", "list_directory"} <= {spec.name for spec in hub.specs()}
        path = str(box / "note.txt")
        assert not call(hub, "write_file", path=path, content="Grüße").is_error
        assert Path(path).read_text() == "Grüße"
        assert call(hub, "read_text_file", path=path).content == "Grüße"
        outside = call(hub, "read_text_file", path="/etc/passwd")
        assert outside.is_error
        assert "root:" not in outside.content
        assert call(hub, "read_text_file").is_error


def test_memory(tmp_path):
    server = node("@modelcontextprotocol/server-memory", env={"MEMORY_FILE_PATH": str(tmp_path / "memory.jsonl")})
    with Hub([server], start_timeout=START_SECONDS) as hub:
        entity = {"name": "Ada", "entityType": "person", "observations": ["writes programs"]}
        assert not call(hub, "create_entities", entities=[entity]).is_error
        found = json.loads(call(hub, "search_nodes", query="Ada").content)
        assert [e["name"] for e in found["entities"]] == ["Ada"]
        assert json.loads(call(hub, "search_nodes", query="nobody").content)["entities"] == []
        wrong = call(hub, "create_entities", entities=[{"name": "Bob"}])
        assert wrong.is_error
        assert "at `entities.0`" in wrong.content


def test_sequential_thinking():
    with Hub([node("@modelcontextprotocol/server-sequential-thinking")], start_timeout=START_SECONDS) as hub:
        (spec,) = hub.specs()
        result = call(hub, spec.name, thought="so", nextThoughtNeeded=False, thoughtNumber=1, totalThoughts=1)
        assert json.loads(result.content)["thoughtHistoryLength"] == 1


def test_git(box):
    with Hub([python_server("mcp-server-git")], cwd=box, start_timeout=START_SECONDS) as hub:
        assert "nothing to commit" in call(hub, "git_status", repo_path="repos/blog").content
        assert "First post" in call(hub, "git_log", repo_path="repos/blog").content
        assert call(hub, "git_status", repo_path="repos/none").is_error


def test_time():
    with Hub([python_server("mcp-server-time")], start_timeout=START_SECONDS) as hub:
        asked = {"source_timezone": "Asia/Tokyo", "time": "09:00", "target_timezone": "UTC"}
        converted = json.loads(call(hub, "convert_time", **asked).content)
        assert converted["time_difference"] == "-9.0h"
        assert "T00:00:00" in converted["target"]["datetime"]
        assert call(hub, "get_current_time", timezone="Nowhere/None").is_error


def test_the_demos_hub(box):
    with Hub(demo_servers(box), start_timeout=START_SECONDS) as hub:
        assert {spec.server for spec in hub.specs()} == {"git", "time", "fetch", "sqlite"}
        assert "On branch main" in call(hub, "git_status", repo_path="repos/blog").content
        assert not call(hub, "create_table", query="CREATE TABLE item (name TEXT)").is_error
        assert not call(hub, "write_query", query="INSERT INTO item VALUES ('pen')").is_error
        assert "pen" in call(hub, "read_query", query="SELECT * FROM item").content
        assert (box / "shop.db").is_file()
        began = time.monotonic()
    assert time.monotonic() - began < 8


def test_the_examples_page_runs(tmp_path):
    page = Path(__file__).parents[2] / "examples" / "hub-demo" / "README.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "git_status" in done.stdout
    assert '"timezone": "UTC"' in done.stdout


def test_one_hub_over_node_and_python_servers(box):
    servers = [
        node("@modelcontextprotocol/server-filesystem", str(box)),
        node("@modelcontextprotocol/server-memory", env={"MEMORY_FILE_PATH": str(box / "memory.jsonl")}),
        python_server("mcp-server-git"),
        python_server("mcp-server-time"),
    ]
    with Hub(servers, cwd=box, start_timeout=START_SECONDS) as hub:
        assert hub.failures == {}
        assert len({spec.name for spec in hub.specs()}) == len(hub.specs()) > 30
        assert "post.md" in call(hub, "list_directory", path=str(box / "repos" / "blog")).content
        assert "UTC" in call(hub, "get_current_time", timezone="UTC").content
