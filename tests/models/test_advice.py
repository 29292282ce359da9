"""What fits which machine: shapes against real files, the calculation against what the runtime takes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from llm_tuner.apps.gateway.opening import RoleSettings
from llm_tuner.models.advice import Card, Machine, advise, fit
from llm_tuner.models.catalogue import find
from llm_tuner.models.kv_cache import read_kv_cache
from llm_tuner.operations.machine import models_fit
from llm_tuner.types import SetupError, UnknownModel

G = 1 << 30


def machine(memory: float = 24, cores: int = 2, gpu: float = 0) -> Machine:
    cards = (Card(name="card", memory=round(gpu * G), free=round(gpu * G * 0.95)),) if gpu else ()
    available = round(memory * G * 0.9)
    return Machine(cores=cores, memory=round(memory * G), available=available, disk_free=100 * G, gpus=cards)


@pytest.mark.weights
@pytest.mark.parametrize("name", ["qwen2.5-coder:0.5b", "smollm2:135m"])
def test_the_catalogues_shapes_are_those_of_the_files(name: str, qwen_gguf: Path, smol_gguf: Path) -> None:
    gguf = qwen_gguf if name.startswith("qwen") else smol_gguf
    known = find(name)
    assert known.shape.cache(known.context) == read_kv_cache(gguf)
    by_name, by_file = fit(name, 8192, machine()), fit(name, 8192, machine(), gguf=gguf)
    assert by_name.total == pytest.approx(by_file.total, rel=0.05)


@pytest.mark.weights
@pytest.mark.parametrize("window", [2048, 8192])
def test_the_calculation_is_what_the_runtime_takes(window: int, qwen_gguf: Path) -> None:
    steps = models_fit(str(qwen_gguf), ctx=window, measure=True)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found = end.value
            break
    assert abs(found["off"]) < 0.15


def test_a_7b_on_different_machines() -> None:
    big = fit("qwen2.5-coder:7b", 32768, machine(24))
    assert (big.verdict, big.where, big.estimated) == ("fits", "memory", True)
    assert 8e9 < big.total < 11e9
    assert fit("qwen2.5-coder:7b", 32768, machine(8)).verdict == "no"
    assert fit("qwen2.5-coder:7b", 8192, machine(10)).verdict == "tight"
    on_card = fit("qwen2.5-coder:7b", 32768, machine(8, gpu=24))
    assert (on_card.where, on_card.repacked) == ("gpu", 0)
    assert fit("qwen2.5-coder:7b", 32768, machine(), quantisation="Q8_0").weights > 1.5 * big.weights
    assert fit("qwen2.5-coder:7b", 65536, machine()).beyond_trained
    assert fit("qwen2.5-coder:7b", 8192, machine(), slots=4).cache == big.cache
    with pytest.raises(SetupError, match="Q4_K_M"):
        fit("qwen2.5-coder:7b", 8192, machine(), quantisation="Q9")
    with pytest.raises(UnknownModel):
        fit("nobody", 8192, machine())


def test_compositions_for_machines() -> None:
    def names(one: Machine, window: int = 32768) -> list[str]:
        return [part.fit.model for part in advise(one, window).parts]

    mission = ["qwen2.5-coder:7b", "qwen2.5-coder:1.5b", "deepseek-coder:1.3b"]
    assert names(machine(64, cores=16)) == mission
    assert names(machine(16, gpu=24)) == mission
    assert names(machine(24, cores=2))[0] == "qwen2.5-coder:1.5b"
    assert names(machine(4, cores=4)) == ["qwen2.5-coder:0.5b"] * 3
    assert names(machine(1.5)) == []
    small = advise(machine(1.5))
    assert "No composition fits" in small.sentences[0]
    slow = advise(machine(24, cores=2))
    assert any("too slow on 2 cores" in why for why in slow.rejected)
    assert slow.total < 24 * G


def test_one_model_in_two_roles_is_counted_once_and_the_toml_is_the_gateways() -> None:
    found = advise(machine(24, cores=2))
    coordinator, worker, fallback = found.parts
    assert coordinator.fit == worker.fit
    assert coordinator.fit.slots == 2
    assert found.total == coordinator.fit.total + fallback.fit.total
    roles = tomllib.loads(found.toml)["roles"]
    assert {name: RoleSettings.model_validate(one).window for name, one in roles.items()} == {
        "coordinator": 32768, "worker": 32768, "fallback": 8192,
    }  # fmt: skip
    assert all(one.en and one.ja for one in found.parts)
    assert len(found.sentences) == len(found.sentences_ja) == 4
