"""Reading configurations: each client's format, variables, faults, secrets."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llm_tuner.tools import servers
from llm_tuner.tools.servers import ServerConfig, demo_servers, discover, load
from llm_tuner.types import SetupError


@pytest.fixture
def write(tmp_path):
    def write(text, name="mcp.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if isinstance(text, str) else json.dumps(text, indent=1), encoding="utf-8")
        return path

    return write


def one(path, **options):
    (server,) = load(path, **options)
    return server


FORMATS = {
    "claude": ({"mcpServers": {"s": {"command": "npx", "args": ["-y", "p"], "env": {"K": "v"}}}}, "stdio"),
    "claude-http": ({"mcpServers": {"s": {"type": "http", "url": "https://e.org/mcp", "headers": {"A": "b"}}}}, "http"),
    "claude-sse": ({"mcpServers": {"s": {"type": "sse", "url": "https://e.org/x"}}}, "sse"),
    "cursor-url": ({"mcpServers": {"s": {"url": "https://e.org/mcp"}}}, "http"),
    "cursor-sse-url": ({"mcpServers": {"s": {"url": "https://e.org/sse"}}}, "sse"),
    "vscode": ({"inputs": [], "servers": {"s": {"type": "stdio", "command": "uvx", "args": ["p"]}}}, "stdio"),
    "vscode-http": ({"servers": {"s": {"type": "http", "url": "https://e.org/mcp"}}}, "http"),
    "streamable": ({"mcpServers": {"s": {"transport": "streamable-http", "url": "https://e.org/mcp"}}}, "http"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_clients_format(write, name):
    data, transport = FORMATS[name]
    server = one(write(data))
    entry = next(iter((data.get("mcpServers") or data["servers"]).values()))
    assert (server.name, server.transport) == ("s", transport)
    assert (server.command, list(server.args)) == (entry.get("command", ""), entry.get("args", []))
    assert (server.url, server.env, server.headers) == (
        entry.get("url", ""),
        entry.get("env", {}),
        entry.get("headers", {}),
    )


def test_comments_and_trailing_commas(write):
    text = """{
      // VS Code writes these
      "servers": { /* and
      these */ "s": {"command": "a", "args": ["http://x", "/* kept */", ",]",],},
    }}"""
    assert one(write(text)).args == ("http://x", "/* kept */", ",]")


def test_the_order_is_the_files_and_disabled_servers_are_left_out(write):
    entry = {"command": "a"}
    data = {"mcpServers": {"z": entry, "off": {**entry, "disabled": True}, "a": {**entry, "disabled": False}}}
    assert [server.name for server in load(write(data))] == ["z", "a"]


def test_a_disabled_server_needs_no_variables(write):
    assert load(write({"mcpServers": {"s": {"command": "${NO_SUCH_VARIABLE}", "disabled": True}}})) == ()


def test_variables(write, monkeypatch):
    monkeypatch.setenv("WORD", "value-1")
    monkeypatch.setenv("EMPTY", "")
    args = ["${WORD}", "${env:WORD}", "a${WORD}b", "${NOPE:-else}", "${EMPTY:-else}", "${EMPTY}", "$WORD", "{box}"]
    server = one(write({"mcpServers": {"s": {"command": "a", "args": args, "env": {"K": "${WORD}"}}}}))
    assert server.args == ("value-1", "value-1", "avalue-1b", "else", "else", "", "$WORD", "{box}")
    assert server.env == {"K": "value-1"}


def test_the_editors_own_variables(write, tmp_path):
    data = {"servers": {"s": {"command": "a", "args": ["${workspaceFolder}/x", "${userHome}"]}}}
    assert one(write(data, ".vscode/mcp.json")).args == (f"{tmp_path}/x", str(Path.home()))


FAULTS = {
    '{\n "mcpServers": {\n  "s": {"command": "a"\n }\n': r"line 5: not JSON",
    "[]": r"line 1: it holds a list\. Write an object",
    "{}": r'neither "mcpServers" nor "servers"',
    '{"mcpServers": []}': r"the servers are a list",
    '{"mcpServers": {\n"s": "npx"}}': r'line 2: server "s" is a text',
    '{"mcpServers": {\n\n"s": {"command": "a", "args": "b"}}}': r'line 3: "args" of server "s" is a text',
    '{"mcpServers": {"s": {"command": "a", "env": {"A": {}}}}}': r'"env" of server "s" is an object',
    '{"mcpServers": {"s": {}}}': r"neither a command nor a URL",
    '{"mcpServers": {"s": {"command": "a", "url": "b"}}}': r"both a command and a URL",
    '{"mcpServers": {"s": {"url": "b", "type": "stdio"}}}': r'has a "url" and type "stdio"',
    '{"mcpServers": {"s": {"url": "b", "type": "websocket"}}}': r"Use stdio, http or sse",
    '{"mcpServers": {"s": {"command": "${NO_SUCH_VARIABLE}"}}}': r"needs the variable NO_SUCH_VARIABLE.*export",
    '{"servers": {"s": {"command": "a", "env": {"A": "${input:key}"}}}}': r'asks for the input "key"',
}


@pytest.mark.parametrize("text", FAULTS)
def test_a_fault_names_file_line_and_what_to_do(write, text):
    path = write(text)
    with pytest.raises(SetupError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}, line ")
    assert re.search(FAULTS[text], str(caught.value))


def test_a_missing_file(tmp_path):
    with pytest.raises(SetupError, match="No MCP configuration at"):
        load(tmp_path / "none.json")


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SetupError, match="could not be read as UTF-8"):
        load(tmp_path / "x.json")


# ----------------------------------------------------------------------------------------------------------- discover

PLACES = [
    "home/.config/Claude/claude_desktop_config.json",
    "home/Library/Application Support/Claude/claude_desktop_config.json",
    "home/AppData/Roaming/Claude/claude_desktop_config.json",
    "home/.config/Code/User/mcp.json",
    "home/Library/Application Support/Code/User/mcp.json",
    "home/AppData/Roaming/Code/User/mcp.json",
    "home/.claude.json",
    "home/.cursor/mcp.json",
    "work/.mcp.json",
    "work/.cursor/mcp.json",
    "work/.vscode/mcp.json",
]


@pytest.mark.parametrize("place", PLACES)
def test_every_clients_place(write, tmp_path, place):
    path = write({"servers" if "Code" in place or "vscode" in place else "mcpServers": {"s": {"command": "a"}}}, place)
    found = discover(tmp_path / "home", tmp_path / "work")
    assert {p: [s.name for s in servers] for p, servers in found.items()} == {path: ["s"]}


def test_files_without_servers_are_passed_over(write, tmp_path):
    write({"theme": "dark"}, "home/.claude.json")
    write({"mcpServers": {}}, "work/.mcp.json")
    assert discover(tmp_path / "home", tmp_path / "work") == {}


def test_claude_codes_project_servers(write, tmp_path):
    entry = {"command": "a"}
    project = {str(tmp_path / "work"): {"mcpServers": {"mine": entry}}, "/other": {"mcpServers": {"theirs": entry}}}
    path = write({"mcpServers": {"all": entry}, "projects": project}, "home/.claude.json")
    assert [s.name for s in discover(tmp_path / "home", tmp_path / "work")[path]] == ["all", "mine"]


def test_a_broken_file_is_named_not_hidden(write, tmp_path):
    path = write("{", "work/.mcp.json")
    with pytest.raises(SetupError, match=re.escape(str(path))):
        discover(tmp_path / "home", tmp_path / "work")


# ------------------------------------------------------------------------------------------------------------ secrets


def test_secrets_do_not_show(write, monkeypatch):
    monkeypatch.setenv("TOKEN", "tok-from-shell")
    url, bearer = "https://user:pass-word@e.org/m?key=query-key", {"Authorization": "Bearer head-key"}
    data = {
        "a": {"command": "c", "args": ["--token", "${TOKEN}"], "env": {"K": "key-in-file"}},
        "b": {"url": url, "headers": bearer},
    }
    hidden = {"a": ["tok-from-shell", "key-in-file"], "b": ["pass-word", "query-key", "head-key"]}
    for server in load(write({"mcpServers": data})):
        said = f"{server!r} {server} {server.address} {[server]}"
        said += server.redacted(f"tok-from-shell key-in-file {url} head-key")
        assert not [secret for secret in hidden[server.name] if secret in said]


def test_a_rejected_value_does_not_show():
    with pytest.raises(ValueError) as caught:
        ServerConfig(name="s", command="a", env={"K": ["secret-value"]})
    assert "secret-value" not in str(caught.value)


# --------------------------------------------------------------------------------------------------- filled, argv, demo


def test_filled_replaces_the_named_braces_only():
    server = ServerConfig(name="s", command="a", args=('{"x": {box}}', "{other}"), env={"K": "{box}"}, cwd="{box}")
    filled = server.filled(box=Path("/b"))
    assert (filled.args, filled.env, filled.cwd) == (('{"x": /b}', "{other}"), {"K": "/b"}, "/b")


def test_uvx_comes_from_the_uv_package_where_it_is_not_on_the_path(monkeypatch):
    uv = type(sys)("uv")
    uv.find_uv_bin = lambda: "/somewhere/uv"
    monkeypatch.setitem(sys.modules, "uv", uv)
    server = ServerConfig(name="s", command="uvx", args=("p",), env={"PATH": "/nowhere"})
    assert server.argv() == ("/somewhere/uv", "tool", "run", "p")


def test_without_uv_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "uv", None)
    with pytest.raises(SetupError, match="pip install uv"):
        ServerConfig(name="s", command="uvx", env={"PATH": "/nowhere"}).argv()


def test_the_demos_servers_live_in_their_box(tmp_path):
    found = demo_servers(tmp_path)
    assert [server.name for server in found] == ["git", "time", "fetch", "sqlite"]
    assert {server.cwd for server in found} == {str(tmp_path)}
    assert found[3].args[-2:] == ("--db-path", f"{tmp_path}/shop.db")
    assert all(re.search(r"==\d", " ".join(server.args)) for server in found)


def test_the_demos_file_is_a_configuration_like_any_other(tmp_path):
    listed = load(Path(servers.__file__).parent / "hub_demo.json")
    assert [s.filled(box=tmp_path).address for s in listed] == [s.address for s in demo_servers(tmp_path)]


def test_reading_a_configuration_does_not_load_the_sdk():
    code = "import sys, llm_tuner.tools.servers; sys.exit('mcp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
