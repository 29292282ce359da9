"""Servers that misbehave, each beside one that must not notice. Bounds are generous: the machine may be busy."""

import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from llm_tuner.tools.hub import Hub
from llm_tuner.types import ServerStartError, ToolCall


def call(hub, name, **arguments):
    return hub.call(ToolCall(name=name, arguments=arguments))


@pytest.fixture(autouse=True)
def bounded():
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 20


@pytest.fixture
def beside(nasty):
    """A hub with the nasty server and a good one, which answers before and after the test."""
    hubs = []

    def start(script, *args, **options):
        hub = Hub([nasty(script, *args), nasty("good")], **{"start_timeout": 5, "call_timeout": 2, **options})
        hubs.append(hub)
        return hub.start(strict=False)

    yield start
    for hub in hubs:
        assert call(hub, "echo", text="still here").content == "still here"
        hub.close()


def test_hang_at_start(beside):
    hub = beside("hang_at_start", start_timeout=2)
    assert hub.failures == {"hang_at_start": "it did not answer within 2 s."}


def test_crash_at_start(nasty):
    server = nasty("crash_at_start", env={"TOKEN": "tok-123456"})
    with pytest.raises(ServerStartError) as caught:
        Hub([server, nasty("good")], start_timeout=10).start()
    message = str(caught.value)
    assert 'The MCP server "crash_at_start" did not start: it exited with code 1' in message
    assert "line 99999\n  the token *** has expired" in message
    assert "crash_at_start.py" in message
    assert "Run the command in a terminal" in message
    assert len(message) < 1500


def test_hang_on_call(beside):
    hub = beside("hang_on_call")
    began = time.monotonic()
    result = call(hub, "wait")
    assert 1.5 < time.monotonic() - began < 15
    assert (result.is_error, result.content) == (True, "`wait` did not answer within 2 s.")
    assert call(hub, "echo", text="meanwhile").content == "meanwhile"


def test_crash_on_call_is_restarted_once_then_down(beside):
    hub = beside("crash_on_call")
    first = call(hub, "die")
    assert first.is_error
    assert first.content.startswith('The server "crash_on_call" ended during `die`: it exited with code 3')
    assert "divided by zero[31m" in first.content
    assert "crash_on_call" in hub.failures
    assert call(hub, "live").content == "alive"
    assert hub.failures == {}
    assert call(hub, "die").is_error
    down = call(hub, "live")
    assert down.is_error
    assert down.content.startswith('The server "crash_on_call" is down: it exited with code 3')


def test_many_calls_meet_a_crash(nasty):
    with Hub([nasty("crash_on_call"), nasty("good")], call_timeout=5) as hub, ThreadPoolExecutor(8) as pool:
        dead = list(pool.map(lambda _: call(hub, "die"), range(16)))
        assert all(result.is_error for result in dead)
        assert not any("did not answer" in result.content for result in dead)
        assert "is down" in call(hub, "live").content
        assert call(hub, "echo", text="still here").content == "still here"


def test_a_line_without_end_stops_its_server(beside):
    hub = beside("flood_line", call_timeout=15)
    before = psutil.Process().memory_info().rss
    result = call(hub, "flood")
    assert result.is_error
    assert "a line of more than 8 MiB" in result.content
    assert psutil.Process().memory_info().rss - before < 500_000_000


def test_a_large_result_is_cut_and_says_so(beside):
    hub = beside("flood_result", max_result_bytes=1001)
    result = call(hub, "flood")
    assert result.content == "é" * 500 + "\n[cut: these are the first 1001 of 2000000 bytes]"
    assert not result.is_error


@pytest.mark.parametrize("tool", ["broken", "binary", "foreign"])
def test_an_answer_that_is_none(beside, tool):
    result = call(beside("nonsense"), tool)
    assert result.is_error
    assert result.content.startswith(f"`{tool}` did not answer within 2 s.")
    assert ("It wrote 1 lines that are not JSON-RPC" in result.content) == (tool != "foreign")


@pytest.mark.parametrize("tool", ["shape", "number"])
def test_a_result_of_the_wrong_shape(beside, tool):
    result = call(beside("nonsense"), tool)
    assert result.is_error
    assert "does not follow the protocol" in result.content


def test_a_refusal_says_what_the_server_said(beside):
    result = call(beside("nonsense"), "refused")
    assert (result.is_error, result.content) == (True, "`refused` failed: not today")


@pytest.mark.parametrize("script", ["stubborn", "orphan"])
def test_close_leaves_no_process_behind(nasty, script):
    with Hub([nasty(script)]) as hub:
        child = psutil.Process(int(call(hub, "child").content))
        began = time.monotonic()
    assert time.monotonic() - began < 8
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_garbage_before_the_protocol_is_passed_over(beside, capfd):
    assert call(beside("chatty"), "hello").content == "hello"
    assert capfd.readouterr() == ("", "")


def test_pages_without_end(beside):
    assert beside("liar", "pages").failures == {}


def test_close_during_a_call_ends_the_call(nasty):
    with ThreadPoolExecutor(1) as pool:
        with Hub([nasty("hang_on_call")], call_timeout=60) as hub:
            waiting = pool.submit(call, hub, "wait")
            time.sleep(0.5)
        assert waiting.result(timeout=10).is_error
