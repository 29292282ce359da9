"""What this machine is and how busy it is: for reports and for watching a long step.

Not a monitor with a thread of its own: whoever wants a curve asks again. The rule it protects: a missing or broken
GPU library means "no GPU", never an error (https://pypi.org/project/nvidia-ml-py/, optional, imported when asked).
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from llm_tuner.types import Value


class Gpu(Value):
    """One NVIDIA GPU now: `utilisation` in percent, None where the driver does not say; memory in bytes."""

    name: str
    utilisation: float | None
    memory_used: int
    memory_total: int


class Snapshot(Value):
    """How busy the machine is now: `cpu` in percent of all cores, memory and disk in bytes."""

    cpu: float
    memory_used: int
    memory_total: int
    disk_free: int
    gpus: tuple[Gpu, ...] = ()


def machine() -> dict[str, str]:
    """What a report says about where it was measured: cpu, cores, memory, os, python, gpu ("none" without one)."""
    import psutil

    names = [gpu.name for gpu in gpus()]
    return {
        "cpu": _cpu_name(),
        "cores": str(_usable_cores()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "gpu": ", ".join(names) or "none",
    }


def snapshot(folder: Path | None = None, seconds: float = 0.1) -> Snapshot:
    """Measures the CPU for `seconds`, and the free space of the disk that holds `folder` (default: the home)."""
    import psutil

    cpu = psutil.cpu_percent(interval=seconds)
    memory = psutil.virtual_memory()
    return Snapshot(
        cpu=cpu,
        memory_used=memory.total - memory.available,
        memory_total=memory.total,
        disk_free=shutil.disk_usage(folder or Path.home()).free,
        gpus=gpus(),
    )


def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that the driver shows; none when there is no driver or no nvidia-ml-py."""
    with _driver() as nvml:
        if nvml is None:
            return ()
        try:
            return tuple(_gpu(nvml, number) for number in range(nvml.nvmlDeviceGetCount()))
        except nvml.NVMLError:
            return ()


@contextmanager
def _driver() -> Iterator[ModuleType | None]:
    """NVML while it is open, or None."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, no driver, a driver that does not fit: all mean no GPU
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _gpu(nvml: ModuleType, number: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(number)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    name = nvml.nvmlDeviceGetName(handle)
    try:
        busy: float | None = float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    except nvml.NVMLError:  # a MIG slice has no rate of its own
        busy = None
    text = name.decode() if isinstance(name, bytes) else str(name)
    return Gpu(name=text, utilisation=busy, memory_used=int(memory.used), memory_total=int(memory.total))


def _cpu_name() -> str:
    """The model that Linux names in /proc/cpuinfo, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _usable_cores() -> int:
    """The cores that this process may run on: in a container fewer than the machine has."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
