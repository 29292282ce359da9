"""The machine as it is, and GPUs as NVML would tell of them."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from llm_tuner.models import resources


def nvml(**changes: object) -> ModuleType:
    """NVML with one GPU."""
    module = ModuleType("pynvml")
    error = type("NVMLError", (Exception,), {})
    calls = {
        "NVMLError": error,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda number: number,
        "nvmlDeviceGetName": lambda handle: b"NVIDIA H100",
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=3, total=80),
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=42, memory=1),
    }
    for name, value in (calls | changes).items():
        setattr(module, name, value)
    return module


def raising(error: BaseException) -> object:
    def call(*_: object) -> None:
        raise error

    return call


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


@pytest.mark.usefixtures("no_gpu")
def test_the_machine_in_words() -> None:
    words = resources.machine()
    assert set(words) == {"cpu", "cores", "memory", "os", "python", "gpu"}
    assert words["gpu"] == "none"
    assert words["python"] == platform.python_version()
    assert 1 <= int(words["cores"]) <= (os.cpu_count() or 1)
    assert float(words["memory"].removesuffix(" GiB")) > 0.2
    assert words["cpu"]


@pytest.mark.usefixtures("no_gpu")
def test_a_snapshot_measures(tmp_path: Path) -> None:
    now = resources.snapshot(tmp_path, seconds=0.05)
    assert 0 <= now.cpu <= 100
    assert 0 < now.memory_used < now.memory_total
    assert now.disk_free > 0
    assert now.gpus == ()


def test_a_gpu_is_named_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    assert resources.machine()["gpu"] == "NVIDIA H100"
    assert resources.gpus() == (resources.Gpu(name="NVIDIA H100", utilisation=42, memory_used=3, memory_total=80),)


def test_a_broken_driver_means_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlInit=raising(RuntimeError("driver/library version mismatch"))))
    assert resources.gpus() == ()
    module = nvml()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    module.nvmlDeviceGetMemoryInfo = raising(module.NVMLError("lost"))
    assert resources.machine()["gpu"] == "none"


def test_a_slice_without_a_rate_is_still_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nvml()
    module.nvmlDeviceGetUtilizationRates = raising(module.NVMLError("not supported"))
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert resources.gpus()[0].utilisation is None
