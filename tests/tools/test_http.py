"""Servers behind a URL: streamable HTTP and SSE, on loopback, in a process that can be killed."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_tuner.tools.hub import Hub
from llm_tuner.tools.servers import ServerConfig
from llm_tuner.types import ServerStartError, ToolCall

SCRIPT = Path(__file__).parent / "http_server.py"
HEADERS = {"x-key": "open-sesame"}
PATHS = {"http": "/mcp", "sse": "/sse"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve(transport, port):
    process = subprocess.Popen([sys.executable, str(SCRIPT), transport, str(port)])
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.05)
    process.kill()
    raise AssertionError("the server did not open its port")


@pytest.fixture(params=["http", "sse"])
def transport(request):
    return request.param


@pytest.fixture
def running(transport):
    port, processes = free_port(), []

    def start():
        processes.append(serve(transport, port))
        return processes[-1]

    start()
    config = ServerConfig(
        name="web", url=f"http://127.0.0.1:{port}{PATHS[transport]}", headers=HEADERS, transport=transport
    )
    yield config, processes[0], start
    for process in processes:
        process.kill()
        process.wait()


def call(hub, name, **arguments):
    return hub.call(ToolCall(name=name, arguments=arguments))


def test_list_and_call(running):
    config, _, _ = running
    with Hub([config]) as hub:
        assert [spec.name for spec in hub.specs()] == ["add", "wait"]
        assert call(hub, "add", a=2, b=3).content == "5"


def test_a_slow_call_times_out_and_the_next_one_works(running):
    config, _, _ = running
    with Hub([config], call_timeout=1) as hub:
        assert call(hub, "wait", seconds=3).content == "`wait` did not answer within 1 s."
        assert call(hub, "add", a=2, b=3).content == "5"


def test_a_server_that_dies_is_reached_again_when_it_is_back(running, nasty):
    config, process, start = running
    with Hub([config, nasty("good")], call_timeout=5, start_timeout=10) as hub:
        process.kill()
        process.wait()
        began = time.monotonic()
        assert call(hub, "add", a=2, b=3).is_error
        assert time.monotonic() - began < 15
        assert call(hub, "echo", text="still here").content == "still here"
        start()
        results = [call(hub, "add", a=2, b=3).content for _ in range(2)]
        assert results[-1] == "5"


@pytest.mark.parametrize("headers", [{}, {"x-key": "wrong-password"}])
def test_a_refused_key_does_not_show_it(running, headers):
    config, _, _ = running
    with pytest.raises(ServerStartError) as caught:
        Hub([config.model_copy(update={"headers": headers})], start_timeout=10).start()
    message = str(caught.value)
    assert "URL: http://127.0.0.1:" in message
    assert "Check that the server runs, the URL and the headers" in message
    assert "wrong-password" not in message


def test_nobody_listens(transport):
    config = ServerConfig(name="web", url=f"http://127.0.0.1:{free_port()}/x", transport=transport)
    with pytest.raises(ServerStartError, match='"web" did not start'):
        Hub([config], start_timeout=10).start()
