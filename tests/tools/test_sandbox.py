"""Inside bubblewrap: the box is writable, the rest is not, and there is no network but loopback."""

import json
import sys
from pathlib import Path

import pytest

from llm_tuner.tools.hub import Hub
from llm_tuner.tools.sandbox import available, sandboxed
from llm_tuner.tools.servers import ServerConfig
from llm_tuner.types import ToolCall

pytestmark = pytest.mark.skipif(not available(), reason="no bubblewrap that works here")

SERVER = """
import json, pathlib, socket, sys, urllib.request
sys.path.insert(0, sys.argv[1])
from wire import serve, text

def write(request):
    try:
        pathlib.Path(request["params"]["arguments"]["path"]).write_text("x")
        return text("written")
    except OSError as error:
        return text(type(error).__name__)

def reach(request):
    try:
        return text(urllib.request.urlopen(request["params"]["arguments"]["url"], timeout=3).read().decode())
    except OSError as error:
        return text("unreachable")

serve({"write": write, "reach": reach})
"""


def test_walls(tmp_path):
    box, web = tmp_path / "box", tmp_path / "web"
    box.mkdir()
    web.mkdir()
    (web / "a.html").write_text("hello")
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    nasty = str(Path(__file__).parent / "nasty")
    config = ServerConfig(name="s", command=sys.executable, args=(str(script), nasty))
    with Hub([sandboxed(config, box, web, ["pages.example"])], cwd=box) as hub:

        def call(name, **arguments):
            return hub.call(ToolCall(name=name, arguments=arguments)).content

        assert call("write", path=str(box / "in")) == "written"
        assert (box / "in").read_text() == "x"
        assert call("write", path=str(tmp_path / "out")) == "OSError"
        assert not (tmp_path / "out").exists()
        assert call("reach", url="http://192.0.2.1/") == "unreachable"
        for _ in range(50):
            if (said := call("reach", url="http://pages.example/a.html")) == "hello":
                break
        assert said == "hello"


def test_a_server_by_url_is_left_as_it_is(tmp_path):
    config = ServerConfig(name="s", url="http://127.0.0.1:9/mcp", transport="http")
    assert sandboxed(config, tmp_path) is config
    assert json.dumps(config.address)
