"""The command line as a user meets it: help, exit codes, JSON, and one clear message for each kind of bad input."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

COMMANDS = [
    "demo", "tune", "watch", "train", "search", "export", "rollback", "status", "doctor",
    "models list", "models pull", "models rm", "models versions", "models promote", "models rollback",
    "models history", "models diff", "models alias", "models gc", "models advise", "models fit", "top", "resources",
    "ollama list", "ollama run", "ollama rm", "ollama update", "ollama generate", "ollama code", "tools budget",
    "tools list", "tools call", "data collect", "data show", "data import", "data export",
    "data check", "data card", "eval suite", "eval score", "eval bfcl", "eval compare", "eval latency", "eval general",
]  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Empty XDG folders of our own, and an Ollama address where nobody answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("DATA", "CACHE", "CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{port}")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path


def llm_tuner(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "llm_tuner", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def test_help_is_fast_and_loads_neither_torch_nor_transformers():
    code = (
        "import sys, llm_tuner.apps.cli as c; c.run(['--help']); c.run(['models', 'list', '--help']);"
        "heavy = {'torch', 'transformers', 'numpy', 'mcp'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    times = []
    for _ in range(5):
        start = time.perf_counter()
        assert llm_tuner("--help").returncode == 0
        times.append(time.perf_counter() - start)
    assert min(times) < 1.5  # 0.4 s on an idle machine without compiled files; the bound leaves room for a busy one


def test_models_list_loads_neither_torch_nor_transformers(home):
    code = (
        "import sys, llm_tuner.apps.cli as c; c.run(['models', 'list', '--json']);"
        "heavy = {'torch', 'transformers'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert {model["name"] for model in document["known"]} >= {"qwen2.5-coder:0.5b", "deepseek-coder:1.3b"}
    assert document["tuned"] == []
    assert document["ollama"] is None


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    done = llm_tuner(*command.split(), "--help")
    assert done.returncode == 0
    assert "Example: llm-tuner" in " ".join(done.stdout.split())
    assert "\x1b" not in done.stdout


BAD = [
    ("no such command", ["nope"], 2, "No such command"),
    ("unknown model", ["models", "pull", "qwen2.5-coder:05b"], 11, "qwen2.5-coder:0.5b"),
    ("no such version", ["rollback", "mine"], 11, "mine"),
    ("no such suite", ["eval", "suite", "none.jsonl"], 30, "none.jsonl"),
    ("nothing to compare", ["eval", "compare", "none", "last"], 30, 'evaluate run "none" (runs found: none)'),
    ("latency of no requests at a time", ["eval", "latency", "--concurrency", "1,x"], 4, 'found "1,x"'),
    ("no collect run", ["train"], 30, 'No collect run "last" (found: none)'),
    ("nothing to search on", ["search"], 30, 'No collect run "last" (found: none)'),
    ("no such method", ["train", "--method", "ppo"], 4, 'No method "ppo". Choose sft, dpo, grpo.'),
    ("no such file of answers", ["eval", "score", "none.jsonl"], 30, "none.jsonl"),
    ("no such category", ["eval", "score", os.devnull, "--categories", "simple"], 4, "simple_python"),
    ("a category that is not run", ["eval", "bfcl", "--categories", "memory_kv"], 4, "not run"),
    ("no such configuration", ["tune", "--config", "none.toml"], 4, "none.toml"),
    ("unknown runtime", ["tune", "--runtime", "vllm"], 4, "embedded or ollama"),
    ("arguments that are no JSON", ["tools", "call", "x", "{"], 4, "not JSON"),
    ("Ollama is not running", ["models", "rollback", "mine", "--runtime", "ollama"], 15, "ollama serve"),
    ("no such hub", ["tune", "--hub", "none.json"], 4, "none.json"),
    ("a rate of zero", ["train", "--learning-rate", "0", "--collect", "x"], 30, "No collect run"),
    ("a name with a path", ["tune", "--name", "../up"], 4, "name"),
    ("no such folder", ["tools", "list", "--hub", "none.json"], 4, "none.json"),
    ("unreachable source", ["models", "pull", "hf:a/b/c.gguf"], 14, "hf"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_has_one_clear_message_and_its_exit_code(home, arguments, code, words):
    done = llm_tuner(*arguments, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_errors_are_documents_with_json(home):
    done = llm_tuner("models", "pull", "nosuch", "--json")
    assert done.returncode == 11
    error = json.loads(done.stdout)["error"]
    assert error["kind"] == "UnknownModel"
    assert error["exit_code"] == 11
    assert error["message"] in done.stderr


def test_a_corrupt_gguf_is_refused_and_nothing_is_lost(home):
    broken = home / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(200))
    for command in (["models", "pull", str(broken)], ["eval", "bfcl", "--model", str(broken), "--limit", "1"]):
        done = llm_tuner(*command)
        assert done.returncode == 13, done.stderr
        assert "broken.gguf" in done.stderr
    assert broken.exists()


def test_a_server_that_does_not_start_is_named(home):
    hub = home / "mcp.json"
    hub.write_text(
        json.dumps({"mcpServers": {"bad": {"command": sys.executable, "args": ["-c", "raise SystemExit('no!')"]}}})
    )
    done = llm_tuner("tools", "list", "--hub", str(hub))
    assert done.returncode == 21, done.stderr
    assert "bad" in done.stderr
    assert "no!" in done.stderr


def test_a_malformed_hub_file_names_the_line(home):
    hub = home / "mcp.json"
    hub.write_text('{"mcpServers": {\n "a": ')
    done = llm_tuner("tools", "list", "--hub", str(hub))
    assert done.returncode == 4
    assert "line 2" in done.stderr


def test_an_unknown_key_of_the_configuration_gets_a_suggestion(home):
    config = home / "tune.toml"
    config.write_text("[sft]\nlearning_rat = 1e-4\n")
    done = llm_tuner("tune", "--config", str(config))
    assert done.returncode == 4
    assert "unknown key sft.learning_rat; did you mean learning_rate?" in done.stderr
    config.write_text("[sft]\nr = 0\n")
    done = llm_tuner("tune", "--config", str(config))
    assert done.returncode == 4
    assert "sft.r" in done.stderr


def test_a_malformed_suite_names_the_line(home):
    suite = home / "suite.jsonl"
    suite.write_text('{"messages": []}\nnot json\n')
    done = llm_tuner("data", "show", str(suite))
    assert done.returncode == 30
    assert "suite.jsonl" in done.stderr


def test_flags_win_over_environment_over_file(home, monkeypatch):
    from llm_tuner.apps.settings import resolve

    config = home / "tune.toml"
    config.write_text('name = "file"\nbase = "file-base"\nhub = "file-hub"\n[train]\ntasks = 7\n')
    monkeypatch.setenv("LLM_TUNER_BASE", "env-base")
    monkeypatch.setenv("LLM_TUNER_HUB", "env-hub")
    found = resolve(config, {"hub": "flag-hub", "name": None})
    assert (found.name, found.base, found.hub, found.train.tasks) == ("file", "env-base", "flag-hub", 7)


def test_a_training_has_the_methods_own_defaults_then_the_file_then_flags(home):
    from llm_tuner.apps.settings import resolve_training
    from llm_tuner.training.dpo import DPO
    from llm_tuner.training.sft import SFT
    from llm_tuner.types import SetupError

    assert resolve_training(None, "sft", {}, {}).sft == SFT()
    assert resolve_training(None, "dpo", {"beta": None}, {"base": None}).dpo == DPO()
    config = home / "train.toml"
    config.write_text('base = "b"\n[dpo]\nbeta = 0.5\nepochs = 3\n[pairing]\nmost = 0.5\n')
    found = resolve_training(config, "dpo", {"epochs": 2.0}, {"base": "c", "pairing": {"own_attempts": 7}})
    assert found.dpo == DPO(beta=0.5, epochs=2.0)
    assert (found.base, found.pairing.most, found.pairing.own_attempts) == ("c", 0.5, 7)
    for method, recipe, words in (("sft", {"beta": 0.1}, "unknown key sft.beta"), ("dpo", {"beta": 0.0}, "dpo.beta")):
        with pytest.raises(SetupError, match=words):
            resolve_training(None, method, recipe, {})
    config.write_text("dpo = 3\n")
    with pytest.raises(SetupError, match="dpo must be a table"):
        resolve_training(config, "dpo", {}, {})


def test_status_and_doctor_on_an_empty_machine(home):
    done = llm_tuner("status", "--json")
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert status["models"]["tuned"] == {}
    assert "llm-tuner demo" in [action["command"] for action in status["next_actions"]]
    page = llm_tuner("status", LC_ALL="ja_JP.UTF-8").stdout
    assert "次の一手" in page
    assert "まだ何も測定していません" in page
    doctor = json.loads(llm_tuner("doctor", "--json").stdout)
    assert {check["name"] for check in doctor["checks"]} >= {"xllamacpp", "torch", "git", "ollama", "disk"}
    assert next(c for c in doctor["checks"] if c["name"] == "ollama")["ok"] is False


def test_a_watch_without_traffic_says_where_it_comes_from(home):
    done = llm_tuner("watch", "--once", "--quiet", "", "--memory-gb", "0", "--cpu", "100", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"round": None}
    assert "llm-tuner serve gateway" in done.stderr
    assert llm_tuner("watch", "--once", "--quiet", "night").returncode == 4


@pytest.mark.servers
def test_tools_list_and_call_on_the_demos_real_servers():
    """Not in an empty home: the servers come from uv's cache."""
    listed = json.loads(llm_tuner("tools", "list", "--json").stdout)
    assert len(listed) == 21
    assert {tool["server"] for tool in listed} == {"git", "time", "fetch", "sqlite"}
    done = llm_tuner("tools", "call", "git_log", '{"repo_path": "repos/blog", "max_count": 2}', "--json")
    assert done.returncode == 0, done.stderr
    assert "Add config.yaml" in json.loads(done.stdout)["content"]
    done = llm_tuner("tools", "call", "git_log", '{"repo_path": "nowhere"}')
    assert done.returncode == 1
