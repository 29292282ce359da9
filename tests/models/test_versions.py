"""Installing, promoting, rolling back; and what still serves when a step in between fails."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from llm_tuner.models.versions import Version, Versions
from llm_tuner.types import CorruptModel, ModelError, SetupError, UnknownModel

NAME = "hub-tools"


def gguf(path: Path, seed: int) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("w", np.full((8, 32), seed, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions(tmp_path / "root")


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [gguf(tmp_path / f"{seed}.gguf", seed) for seed in range(4)]


def serve(versions: Versions, model: Path, run: str = "run") -> Version:
    versions.install(NAME, model, {"run": run})
    return versions.promote(NAME)


def test_install_promote_rollback(versions: Versions, models: list[Path]) -> None:
    first = versions.install(NAME, models[0], {"run": "a"})
    assert (first.version, first.lineage, first.size) == ("v1", {"run": "a"}, models[0].stat().st_size)
    assert versions.path(f"{NAME}:candidate").read_bytes() == models[0].read_bytes()
    with pytest.raises(UnknownModel, match="stable"):
        versions.path(NAME)
    assert versions.promote(NAME) == first
    assert versions.aliases(NAME) == {"stable": "v1"}

    second = serve(versions, models[1], "b")
    assert versions.aliases(NAME) == {"stable": "v2", "previous": "v1"}
    assert versions.path(NAME).read_bytes() == models[1].read_bytes()
    assert versions.rollback(NAME) == first
    assert versions.path(f"{NAME}:stable").read_bytes() == models[0].read_bytes()
    assert versions.path(f"{NAME}:v2").read_bytes() == models[1].read_bytes()
    assert versions.history(NAME) == (first, second)
    assert versions.names() == (NAME,)


def test_rollbacks_go_back_one_by_one(versions: Versions, models: list[Path]) -> None:
    for model in models[:3]:
        serve(versions, model)
    assert [versions.rollback(NAME).version, versions.rollback(NAME).version] == ["v2", "v1"]
    with pytest.raises(UnknownModel, match="no earlier stable"):
        versions.rollback(NAME)
    assert versions.aliases(NAME) == {"stable": "v1"}


def test_nothing_to_promote(versions: Versions, models: list[Path]) -> None:
    with pytest.raises(UnknownModel, match="found: none"):
        versions.promote(NAME)
    serve(versions, models[0])
    with pytest.raises(UnknownModel, match="no candidate"):
        versions.promote(NAME)


def test_a_version_says_all_of_this_after_a_restart(versions: Versions, models: list[Path]) -> None:
    version = serve(versions, models[0])
    again = Versions(versions.root)
    assert again.history(NAME) == (version,)
    assert again.path(NAME) == versions.path(NAME)


def test_a_repeated_install_is_the_same_version(versions: Versions, models: list[Path]) -> None:
    first = versions.install(NAME, models[0], {"run": "a"})
    assert versions.install(NAME, models[0], {"run": "a"}) == first
    assert versions.install(NAME, models[0], {"run": "b"}).version == "v2"
    assert len(list((versions.root / "files").glob("*"))) == 1


def test_writing_over_the_exported_file_does_not_touch_what_serves(versions: Versions, models: list[Path]) -> None:
    before = models[0].read_bytes()
    serve(versions, models[0])
    models[0].write_bytes(b"half written")
    assert versions.path(NAME).read_bytes() == before


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_crash_between_steps_leaves_stable_serving(
    versions: Versions, models: list[Path], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Three renames make an install: the weights, the version, the aliases."""
    serve(versions, models[0])
    before = versions.aliases(NAME)
    calls = 0
    real = os.replace

    def crash(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="Input/output"):
        versions.install(NAME, models[1], {"run": "b"})
    assert calls == step
    monkeypatch.setattr(os, "replace", real)
    assert versions.aliases(NAME) == before
    assert versions.path(NAME).read_bytes() == models[0].read_bytes()
    assert not list(versions.root.rglob("*.tmp"))
    versions.install(NAME, models[1], {"run": "b"})
    assert versions.path(f"{NAME}:candidate").read_bytes() == models[1].read_bytes()
    assert [version.version for version in versions.history(NAME)] == ["v1", "v2"]


@pytest.mark.parametrize("move", ["promote", "rollback"])
def test_a_crash_while_an_alias_moves(
    versions: Versions, models: list[Path], monkeypatch: pytest.MonkeyPatch, move: str
) -> None:
    serve(versions, models[0])
    serve(versions, models[1])
    versions.install(NAME, models[2], {})
    before = versions.aliases(NAME)

    def crash(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="Input/output"):
        getattr(versions, move)(NAME)
    assert versions.aliases(NAME) == before


def test_a_broken_model_is_not_installed(versions: Versions, models: list[Path]) -> None:
    serve(versions, models[0])
    models[1].write_bytes(models[1].read_bytes()[:-100])
    with pytest.raises(CorruptModel):
        versions.install(NAME, models[1], {})
    assert versions.aliases(NAME) == {"stable": "v1"}
    assert len(versions.history(NAME)) == 1


def test_a_candidate_whose_file_is_gone_is_not_promoted(versions: Versions, models: list[Path]) -> None:
    serve(versions, models[0])
    versions.install(NAME, models[1], {})
    versions.path(f"{NAME}:candidate").unlink()
    with pytest.raises(CorruptModel, match="found 0"):
        versions.promote(NAME)
    assert versions.aliases(NAME)["stable"] == "v1"


@pytest.mark.parametrize("name", ["v1.json", "aliases.json"])
def test_a_damaged_note_is_named_with_what_to_do(versions: Versions, models: list[Path], name: str) -> None:
    serve(versions, models[0])
    (versions.root / NAME / name).write_text('{"half')
    with pytest.raises(CorruptModel, match=rf"{name} is damaged .* Move the folder .*{NAME} away"):
        versions.path(NAME)


def test_remove_refuses_what_serves(versions: Versions, models: list[Path]) -> None:
    for model in models[:3]:
        serve(versions, model)
    versions.install(NAME, models[3], {})
    for served in ("v2", "v3", "v4"):
        with pytest.raises(ModelError, match="not removed"):
            versions.remove(f"{NAME}:{served}")
    path = versions.path(f"{NAME}:v1")
    assert versions.remove(f"{NAME}:v1").version == "v1"
    assert not path.exists()
    assert versions.rollback(NAME).version == "v2"
    with pytest.raises(UnknownModel, match="no earlier stable"):
        versions.rollback(NAME)
    with pytest.raises(SetupError, match="NAME:v3"):
        versions.remove(f"{NAME}:stable")


def test_remove_keeps_weights_that_another_name_shares(versions: Versions, models: list[Path]) -> None:
    versions.install("other", models[0], {}, alias="stable")
    versions.install(NAME, models[0], {})
    versions.install(NAME, models[1], {})
    versions.remove(f"{NAME}:v1")
    assert versions.path("other").read_bytes() == models[0].read_bytes()


def test_a_number_never_comes_back(versions: Versions, models: list[Path]) -> None:
    versions.install(NAME, models[0], {})
    versions.install(NAME, models[1], {})
    versions.install(NAME, models[0], {})
    versions.remove(f"{NAME}:v2")
    assert versions.install(NAME, models[2], {}).version == "v3"


def test_installing_as_stable_can_be_rolled_back(versions: Versions, models: list[Path]) -> None:
    versions.install(NAME, models[0], {}, alias="stable")
    versions.install(NAME, models[1], {}, alias="stable")
    assert versions.rollback(NAME).version == "v1"


@pytest.mark.parametrize(("name", "alias"), [("a/b", "candidate"), ("..", "stable"), ("files", "x"), ("ok", "v3")])
def test_names_that_cannot_be(versions: Versions, models: list[Path], name: str, alias: str) -> None:
    with pytest.raises(SetupError):
        versions.install(name, models[0], {}, alias=alias)


def test_installs_at_the_same_time_get_numbers_of_their_own(versions: Versions, models: list[Path]) -> None:
    threads = [threading.Thread(target=versions.install, args=(NAME, model, {})) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [version.version for version in versions.history(NAME)] == ["v1", "v2", "v3", "v4"]


def test_the_default_root_is_the_user_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert Versions().root == tmp_path / "llm-tuner" / "models"
