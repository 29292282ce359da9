"""The hub with servers that behave: list, call, values, names, arguments, life."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from llm_tuner.tools.hub import Hub
from llm_tuner.types import ServerStartError, SetupError, Toolbox, ToolCall, ToolError


def call(hub, name, **arguments):
    return hub.call(ToolCall(name=name, arguments=arguments, id="c1"))


def test_a_hub_is_a_toolbox(nasty):
    assert isinstance(Hub([]), Toolbox)


def test_an_empty_hub(nasty):
    with Hub([]) as hub:
        assert hub.specs() == ()
        assert call(hub, "x").content == "There is no tool `x`."


def test_call_gives_the_value_under_the_calls_id(nasty):
    with Hub([nasty("good")]) as hub:
        result = call(hub, "echo", text="Zürich 東京")
        assert (result.call_id, result.content, result.is_error) == ("c1", "Zürich 東京", False)


def test_a_tools_own_error_is_an_error_result(nasty):
    with Hub([nasty("good")]) as hub:
        assert call(hub, "refuse").is_error


def test_blocks_are_joined_and_structured_content_is_json(nasty):
    with Hub([nasty("good")]) as hub:
        many = call(hub, "many").content
        assert many == "one\n[image, image/png, 3 bytes]\ntwo\n[three: file:///b]"
        assert json.loads(call(hub, "structured").content) == {"town": "Zürich"}


def test_the_schema_is_the_servers_own(nasty):
    with Hub([nasty("good", "numbers", name="n")]) as hub:
        (spec,) = hub.specs()
        assert (spec.name, spec.server) == ("double", "n")
        assert spec.parameters == {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def test_names_that_two_servers_share_carry_the_server(nasty):
    servers = [nasty("good", name="one"), nasty("good", name="my two"), nasty("good", "numbers", name="three")]
    with Hub(servers) as hub:
        names = [spec.name for spec in hub.specs()]
        assert "one__echo" in names
        assert "my_two__echo" in names
        assert "echo" not in names
        assert "double" in names
        assert call(hub, "my_two__echo", text="hi").content == "hi"


def test_arguments_that_do_not_fit_are_not_sent(nasty):
    with Hub([nasty("good", "numbers")]) as hub:
        assert (
            call(hub, "double", n="4").content
            == "The arguments do not fit `double` at `n`: '4' is not of type 'integer'"
        )
        assert "required" in call(hub, "double").content
        assert call(hub, "double", n=4).content == "8"


def test_validation_can_be_left_to_the_server(nasty):
    with Hub([nasty("good", "numbers")], validate=False) as hub:
        assert call(hub, "double", n="4").content == "44"


def test_an_unusable_schema_is_left_to_the_server_and_fetches_nothing(nasty):
    with Hub([nasty("liar")]) as hub:
        assert call(hub, "tool", a=1, b=2).content == "taken"


def test_an_unknown_tool_names_near_ones(nasty):
    with Hub([nasty("good")]) as hub:
        result = call(hub, "ecko", text="a")
        assert result.is_error
        assert result.content == "There is no tool `ecko`. Near names: echo."


def test_a_broken_call_is_not_sent(nasty):
    with Hub([nasty("good")]) as hub:
        result = hub.call(ToolCall(name="echo", raw="{", error="no closing brace"))
        assert result.is_error
        assert "no closing brace" in result.content


def test_only_the_allowlist_and_the_configured_environment_reach_a_server(nasty, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-pass")
    with Hub([nasty("good", env={"TOKEN": "pass-this"})]) as hub:
        environment = json.loads(call(hub, "environment").content)
    assert environment["TOKEN"] == "pass-this"
    assert "AWS_SECRET_ACCESS_KEY" not in environment


def test_cwd_is_the_servers_own_or_the_hubs(nasty, tmp_path):
    (tmp_path / "own").mkdir()
    servers = [nasty("good", name="a"), nasty("good", name="b", cwd=str(tmp_path / "own"))]
    with Hub(servers, cwd=tmp_path) as hub:
        assert call(hub, "a__folder").content == str(tmp_path)
        assert call(hub, "b__folder").content == str(tmp_path / "own")


def test_calls_from_many_threads(nasty):
    with Hub([nasty("good")]) as hub, ThreadPoolExecutor(8) as pool:
        results = pool.map(lambda i: call(hub, "echo", text=str(i)).content, range(100))
        assert list(results) == [str(i) for i in range(100)]


def test_a_hub_can_be_started_again_after_close(nasty):
    hub = Hub([nasty("good")])
    for _ in range(2):
        with hub:
            assert call(hub, "echo", text="a").content == "a"
    hub.close()
    with pytest.raises(ToolError, match="not started"):
        call(hub, "echo", text="a")


def test_no_thread_survives_close(nasty):
    with Hub([nasty("good")]):
        assert "mcp hub" in {t.name for t in threading.enumerate()}
    assert "mcp hub" not in {t.name for t in threading.enumerate()}


def test_a_hub_that_nobody_closed_does_not_keep_python_from_ending(nasty):
    server = nasty("good")
    code = (
        "from llm_tuner.tools.hub import Hub; from llm_tuner.tools.servers import ServerConfig\n"
        f"hub = Hub([ServerConfig(name='s', command={server.command!r}, args={server.args!r})]).start()\n"
        "print(len(hub.specs()))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "6\n", "")


def test_servers_start_at_the_same_time(nasty):
    hub = Hub([nasty("hang_at_start", name=f"s{i}") for i in range(4)], start_timeout=1)
    began = time.monotonic()
    with pytest.raises(ServerStartError) as caught:
        hub.start()
    assert time.monotonic() - began < 8
    assert str(caught.value).count("did not start") == 4
    assert len(hub.failures) == 4


def test_two_servers_with_one_name_are_refused(nasty):
    with pytest.raises(SetupError, match="Rename one"):
        Hub([nasty("good"), nasty("good")])


def test_a_missing_command_says_what_to_install(nasty):
    server = nasty("good").model_copy(update={"command": "no-such-command", "env": {"KEY": "hunter22"}})
    with pytest.raises(ServerStartError) as caught:
        Hub([server]).start()
    message = str(caught.value)
    assert 'The MCP server "good" did not start: the command `no-such-command` is not on the PATH' in message
    assert "Command: no-such-command" in message
    assert "hunter22" not in message


def test_a_missing_folder_is_a_failure_not_an_exception(nasty):
    hub = Hub([nasty("good", cwd="/no/such/folder"), nasty("good", name="fine")])
    with hub.start(strict=False):
        assert "/no/such/folder" in hub.failures["good"]
        assert call(hub, "echo", text="a").content == "a"


def test_a_server_that_runs_out_of_time_in_the_middle_of_its_start_leaves_nothing(nasty):
    """That nothing is left, the fixture of this folder sees."""
    for milliseconds in (0, 1, 2, 4, 8):
        hub = Hub([nasty("good"), nasty("moody")], start_timeout=milliseconds / 1000)
        assert set(hub.start(strict=False).failures) == hub.slow == {"good", "moody"}
        hub.close()
