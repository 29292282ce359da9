"""The recorded tools of many servers (examples/hub-many): what they hold, and that tasks can be made of them."""

import re
from collections import Counter
from pathlib import Path

import pytest

from llm_tuner.data.build import build
from llm_tuner.data.plan import HubMix
from llm_tuner.tools.recorded import read_list
from llm_tuner.types import DataError

FOLDER = Path(__file__).parents[2] / "examples" / "hub-many"


@pytest.fixture(scope="module")
def tools():
    return read_list(FOLDER / "tools.json")


def test_the_table_says_what_the_file_holds(tools):
    rows = re.findall(
        r"^\| (\S+) \| \S+ \| (?:npm|PyPI) \| (\d+) \| (\S+) \|$", (FOLDER / "README.md").read_text(), re.M
    )
    counted = Counter(tool.server for tool in tools)
    assert {re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_"): int(n) for name, n, _ in rows} == counted
    assert {licence for _, _, licence in rows} <= {"MIT", "ISC", "Apache-2.0", "BSD-3-Clause"}
    assert len({tool.name for tool in tools}) == len(tools) == sum(counted.values())


def test_tasks_are_made_of_tools_without_a_wording(tools, tmp_path):
    steps = build((), HubMix(count=40, seed=1, sizes=(4, 9)), tmp_path / "set", tools=tools)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            made = end.value
            break
    assert made["tasks"]["made"] == 40
    assert len(made["calls"]) > 15
    assert made["verified"].keys() <= {"schema only", "no call"}


def test_another_list_is_refused(tmp_path):
    (tmp_path / "list.json").write_text('[{"what": 1}]')
    with pytest.raises(DataError, match="no list of tools"):
        read_list(tmp_path / "list.json")
    (tmp_path / "hub.json").write_text('{"mcpServers": {}}')
    assert read_list(tmp_path / "hub.json") is None
