"""Versions as operations: plans before deeds, what differs, what can go; and that a crash or a second process costs
nothing that serves."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from llm_tuner.models.ollama import OllamaServer
from llm_tuner.models.runtimes import OllamaRuntime
from llm_tuner.models.versions import Versions
from llm_tuner.operations import perform
from llm_tuner.operations.table import find
from llm_tuner.types import SetupError, TunerError, UnknownModel

RATES = {"selection": [0.9, 0.8, 0.95]}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Versions:
    """Three versions: v1 was stable, v2 is, v3 is a candidate that the gate refused."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    versions = Versions()
    for seed in (1, 2, 3):
        lineage: dict[str, Any] = {"config": {"sft": {"epochs": seed}, "base": "b"}, "data": {"rows": "same"}}
        versions.install("demo", weights(tmp_path / f"{seed}.gguf", seed), lineage)
        versions.note("demo:candidate", {"rates": RATES, "promote": seed < 3, "sentences": [f"Reason {seed}."]})
        if seed < 3:
            versions.promote("demo")
    return versions


def weights(path: Path, seed: int) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("w", np.full((8, 32), seed, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def do(operation: str, /, **arguments: Any) -> Any:
    steps = perform(find(operation), arguments)
    with pytest.raises(StopIteration) as end:
        next(steps)
    return end.value.value


def test_history_says_what_serves_what_was_measured_and_every_move(store: Versions) -> None:
    found = do("model_history", name="demo")
    assert found["aliases"] == {"stable": "v2", "candidate": "v3", "previous": "v1"}
    assert [v["measured"]["promote"] for v in found["versions"]] == [True, True, False]
    assert [(m["alias"], m["before"], m["after"], m["by"]) for m in found["moves"]] == [
        ("candidate", "", "v1", "install"), ("candidate", "v1", "", "promote"), ("stable", "", "v1", "promote"),
        ("candidate", "", "v2", "install"), ("candidate", "v2", "", "promote"), ("stable", "v1", "v2", "promote"),
        ("candidate", "", "v3", "install"),
    ]  # fmt: skip
    with (store.root / "demo" / "moves.jsonl").open("a") as file:
        file.write('{"when": "2026')  # a crash in the middle of a line
    assert len(do("model_history", name="demo")["moves"]) == 7


def test_a_refused_candidate_is_promoted_only_by_force_and_only_when_confirmed(store: Versions) -> None:
    with pytest.raises(SetupError, match=r"Reason 3\..*--force"):
        do("model_promote", name="demo")
    plan = do("model_promote", name="demo", force=True)
    assert (plan["done"], plan["sentences"][0]) == (False, "demo: stable v2 -> v3.")
    assert store.aliases("demo")["stable"] == "v2"
    assert do("model_promote", name="demo", force=True, confirm=True)["facts"] == {"name": "demo", "stable": "v3"}
    plan = do("model_rollback", name="demo")
    assert (plan["done"], plan["sentences"]) == (False, ["demo: stable v3 -> v2."])
    assert do("model_rollback", name="demo", confirm=True)["facts"]["stable"] == "v2"


def test_aliases_are_any_word_but_stable_always_serves(store: Versions) -> None:
    assert do("model_alias", reference="demo:worker", version="v1")["aliases"]["worker"] == "v1"
    assert do("model_alias", reference="demo:worker", version="stable")["aliases"]["worker"] == "v2"
    assert "worker" not in do("model_alias", reference="demo:worker", version="none")["aliases"]
    moved = do("model_alias", reference="demo:stable", version="v1")["aliases"]
    assert (moved["stable"], moved["previous"]) == ("v1", "v2")
    for reference, version in (("demo:stable", "none"), ("demo:nobody", "none"), ("demo", "v1"), ("demo:v9", "v1")):
        with pytest.raises(SetupError):
            do("model_alias", reference=reference, version=version)
    with pytest.raises(UnknownModel, match="v9"):
        do("model_alias", reference="demo:worker", version="v9")


def test_the_difference_of_two_versions_is_what_is_not_the_same(store: Versions) -> None:
    found = do("model_diff", before="demo:previous", after="demo:stable")
    changes = {change["field"]: change for change in found["changes"]}
    assert (found["before"], found["after"]) == ("demo:v1", "demo:v2")
    assert changes["lineage.config.sft.epochs"] == {
        "field": "lineage.config.sft.epochs", "before": 1, "after": 2, "difference": 1,
    }  # fmt: skip
    assert "sha256" in changes
    assert not {"lineage.config.base", "lineage.data.rows", "measured.rates.selection", "size"} & changes.keys()
    assert do("model_diff", before="demo:v1", after="demo:v1")["changes"] == []


def test_garbage_is_what_no_alias_reaches_and_bytes_are_counted_once(store: Versions, tmp_path: Path) -> None:
    nothing = do("model_gc")
    assert (nothing["done"], nothing["sentences"]) == (True, ["Nothing to remove."])
    store.promote("demo")  # v3 stable, v2 previous, v1 before it
    plan = do("model_gc")
    assert plan["facts"]["versions"] == ["demo:v1"]
    assert (plan["done"], plan["facts"]["bytes"]) == (False, (tmp_path / "1.gguf").stat().st_size)
    assert do("model_gc", keep=2)["facts"]["versions"] == []
    store.install("other", tmp_path / "1.gguf", {}, alias="stable")  # shares the weights of demo:v1
    (store.root / "files" / "999999999.tmp").write_bytes(b"12345")  # a killed install
    done = do("model_gc", confirm=True)
    assert (done["facts"]["versions"], done["facts"]["bytes"]) == (["demo:v1"], 5)
    assert [v.version for v in store.history("demo")] == ["v2", "v3"]
    assert store.path("other").read_bytes() == (tmp_path / "1.gguf").read_bytes()
    assert store.aliases("demo") == {"stable": "v3", "previous": "v2"}
    assert do("model_gc", keep=0, confirm=True)["facts"]["versions"] == ["demo:v2"]
    assert store.aliases("demo") == {"stable": "v3"}


def test_removing_asks_first_and_refuses_what_serves(store: Versions) -> None:
    assert do("model_remove", name="demo:v2")["done"] is False
    with pytest.raises(TunerError, match="stable"):
        do("model_remove", name="demo:v2", confirm=True)
    store.promote("demo")
    store.alias("demo", "stable", "v2")
    assert do("model_remove", name="demo:v1", confirm=True)["facts"]["removed"] == ["demo:v1"]


KILLED = """
import sys, os, time
from pathlib import Path
from llm_tuner.models import versions as v
store = v.Versions()
real = {name: getattr(v, name) for name in ("replace_text", "check_gguf")}
def stop(*a, **k):
    print("there", flush=True)
    time.sleep(60)
setattr(v, sys.argv[1], stop)
if sys.argv[2] == "install":
    store.install("demo", Path(sys.argv[3]), {"run": "new"})
else:
    store.promote("demo")
"""


@pytest.mark.parametrize(
    ("place", "step"), [("check_gguf", "install"), ("replace_text", "install"), ("replace_text", "promote")]
)
def test_a_killed_step_leaves_stable_serving_and_the_same_again_ends_it(
    store: Versions, tmp_path: Path, place: str, step: str
) -> None:
    new = weights(tmp_path / "new.gguf", 9)
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, place, step, str(new)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "there\n"
    child.kill()
    child.wait()
    child.stdout.close()
    assert store.aliases("demo")["stable"] == "v2"
    assert store.path("demo:stable").stat().st_size > 0
    if step == "install":
        store.install("demo", new, {"run": "new"})
        assert store.path("demo:candidate").read_bytes() == new.read_bytes()
    store.promote("demo")
    assert store.path("demo:stable").exists()


def test_two_processes_that_promote_at_once_agree(store: Versions) -> None:
    command = [sys.executable, "-m", "llm_tuner", "models", "promote", "demo", "--force", "--yes", "--json"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [(*child.communicate(timeout=60), child.returncode) for child in both]
    codes = sorted(code for *_, code in ended)
    assert codes[0] == 0
    assert store.aliases("demo") == {"stable": "v3", "previous": "v2"}
    if codes[1]:
        (failed,) = (out for out, _, code in ended if code)
        assert "no candidate" in json.loads(failed)["error"]["message"] or "candidate" in failed


@pytest.mark.ollama
@pytest.mark.weights
@pytest.mark.parametrize("verb", ["promote", "rollback"])
def test_in_ollama_a_crash_after_any_request_leaves_a_stable(
    verb: str, ollama_url: str, smol_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, name = OllamaServer(ollama_url), f"crash{time.time_ns() % 1000000}"

    def make(tag: str, value: int) -> str:
        for _ in server.create(f"{name}:{tag}", smol_gguf, parameters={"num_ctx": 512 + value}):
            pass
        return {str(m["name"]): str(m["digest"]) for m in server.models()}[f"{name}:{tag}"]

    class Crash(Exception):
        pass

    for requests in range(1, 4):
        digests = {tag: make(tag, n) for n, tag in enumerate(("stable", "candidate", "previous"))}
        done = 0
        real = OllamaServer.ask

        def ask(self: OllamaServer, method: str, *a: Any, **k: Any) -> Any:
            nonlocal done
            if method != "GET":
                if done == requests:  # noqa: B023
                    raise Crash
                done += 1
            return real(self, method, *a, **k)  # noqa: B023

        with monkeypatch.context() as patch:
            patch.setattr(OllamaServer, "ask", ask)
            with suppress(Crash):
                getattr(OllamaRuntime(ollama_url), verb)(name)
        wanted = digests["candidate" if verb == "promote" else "previous"]
        now = {str(m["name"]): str(m["digest"]) for m in server.models()}
        assert now[f"{name}:stable"] in (digests["stable"], wanted)
        if (f"{name}:candidate" if verb == "promote" else f"{name}:previous") in now:
            getattr(OllamaRuntime(ollama_url), verb)(name)
        now = {str(m["name"]): str(m["digest"]) for m in server.models()}
        assert now[f"{name}:stable"] == wanted
    for tag in [model for model in now if model.startswith(name)]:
        server.delete(tag)
    server.close()
