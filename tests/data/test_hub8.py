"""The reference hub itself: installed once (examples/hub-8/install.sh), all 73 tools, a small set executed."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from llm_tuner.data.bench import bench, lists_only
from llm_tuner.data.build import build
from llm_tuner.data.plan import HubMix
from llm_tuner.data.values import pool
from llm_tuner.store.suite import load as load_suite
from llm_tuner.tools.sandbox import available
from llm_tuner.tools.servers import load
from llm_tuner.types import ToolCall

HUB = Path(__file__).parents[2] / "examples" / "hub-8"
pytestmark = [pytest.mark.servers, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def configs():
    if not (HUB / "servers" / "python").is_dir():
        done = subprocess.run([HUB / "install.sh"], capture_output=True, text=True, timeout=600)
        if done.returncode:
            pytest.skip(f"the reference hub cannot be installed here: {done.stderr[-300:]}")
    return load(HUB / "mcp.json")


def drain(steps):
    try:
        while True:
            next(steps)
    except StopIteration as stop:
        return stop.value


def test_eight_servers_list_73_tools_and_the_box_is_put_back(configs):
    with bench(configs) as place:
        specs = place.specs()
        assert len(specs) == 73
        assert len({tool.server for tool in specs}) == 8
        assert str(place.box.path) not in json.dumps([tool.model_dump() for tool in specs])

        def call(name, **arguments):
            result = place.call(ToolCall(name=name, arguments=arguments))
            return result.content, result.is_error

        path = f"projects/{pool('project')[0]}/README.md"
        before, failed = call("read_text_file", path=path)
        assert not failed
        assert not call("write_file", path=path, content="changed")[1]
        assert not call("create_directory", path="projects/new/deep")[1]
        assert not call("git_commit", repo_path="repos/blog", message="x")[1]
        assert not call("delete_entities", entityNames=[pool("person")[0]])[1]
        place.box.restore()
        assert call("read_text_file", path=path) == (before, False)
        assert call("list_directory", path="projects/new")[1]
        assert "Changes to be committed" in call("git_status", repo_path="repos/blog")[0]
        assert pool("person")[0] in call("read_graph")[0]
        assert "/home/dev/work" in call("list_allowed_directories")[0]
        if available():
            url = f"http://{pool('host')[0]}/{pool('page')[0]}"
            assert "what you need to know" in call("fetch", url=url)[0]


def test_a_small_set_is_executed_in_both_languages(configs, tmp_path):
    document = drain(build(configs, HubMix(count=60, seed=9), tmp_path, benches=1))
    assert document["tasks"]["made"] == 60
    assert document["languages"]["ja"] >= 18
    offline = lists_only(configs, ())
    assert {"github", "slack"} <= offline
    for side in ("train", "held-out"):
        for task in load_suite(tmp_path / f"{side}.jsonl").tasks:
            assert task.tags["verified"] in ("executed", "schema only", "no call")
            if task.category in ("sequence", "error") and len(task.messages) > 1:
                assert task.messages[2].result.is_error is (task.category == "error")
            assert os.fspath(HUB) not in task.model_dump_json()
