"""What this machine is and how busy it is: for reports and for watching a long step.

Not a monitor with a thread of its own: whoever wants a curve asks again. The rule it protects: a missing or broken
GPU library means "no GPU", never an error (https://pypi.org/project/nvidia-ml-py/, optional, imported when asked).
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from llm_tuner.types import Value


class Gpu(Value):
    """One GPU now: `utilisation` in percent, None where the driver does not say; memory in bytes; `celsius` and `watts`
    None where they are not said."""

    name: str
    utilisation: float | None
    memory_used: int
    memory_total: int
    celsius: float | None = None
    watts: float | None = None


class Served(Value):
    """The memory of a process that serves a model, in bytes: `runtime` is embedded, ollama or llama-server; `model` is
    its file, or what the process says of itself."""

    runtime: str
    model: str
    pid: int
    memory: int
    cpu: float = 0.0


class Snapshot(Value):
    """How busy the machine is now: `cpu` in percent of all cores, `cores` of each, memory, swap and disk in bytes."""

    cpu: float
    cores: tuple[float, ...] = ()
    memory_used: int
    memory_total: int
    swap_used: int = 0
    disk_free: int
    disk_total: int = 0
    gpus: tuple[Gpu, ...] = ()
    served: tuple[Served, ...] = ()


def machine() -> dict[str, str]:
    """What a report says about where it was measured: cpu, cores, memory, os, python, gpu ("none" without one)."""
    import psutil

    names = [gpu.name for gpu in gpus()]
    return {
        "cpu": _cpu_name(),
        "cores": str(usable_cores()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "gpu": ", ".join(names) or "none",
    }


def snapshot(folder: Path | None = None, seconds: float = 0.1) -> Snapshot:
    """Measures the CPU for `seconds` (0: since the last call), and the free space of the disk that holds `folder`
    (default: the home)."""
    import psutil

    cores = tuple(psutil.cpu_percent(interval=seconds or None, percpu=True))
    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(folder or Path.home())
    return Snapshot(
        cpu=round(sum(cores) / len(cores), 1) if cores else 0.0,
        cores=cores,
        memory_used=memory.total - memory.available,
        memory_total=memory.total,
        swap_used=psutil.swap_memory().used,
        disk_free=disk.free,
        disk_total=disk.total,
        gpus=gpus(),
        served=tuple(_served()),
    )


def warnings(now: Snapshot, *, memory: float = 0.9, disk: float = 0.1, gpu: float = 0.95) -> tuple[str, ...]:
    """What should worry: shares of memory and GPU memory in use beyond these, of the disk that is free below, swap."""
    said = []
    if (used := now.memory_used / now.memory_total) > memory:
        said.append(f"Memory is {used:.0%} full: unload a model, or serve a smaller window.")
    if now.disk_total and (free := now.disk_free / now.disk_total) < disk:
        said.append(f"Only {free:.0%} of the disk is free ({now.disk_free / 1e9:.1f} GB): llm-tuner models gc")
    if now.swap_used > now.memory_total * 0.05 and used > memory / 2:
        said.append(f"{now.swap_used / 1e9:.1f} GB are swapped out: models that are swapped are slow.")
    for card in now.gpus:
        if card.memory_total and card.memory_used / card.memory_total > gpu:
            said.append(f"The memory of {card.name} is {card.memory_used / card.memory_total:.0%} full.")
        if card.celsius is not None and card.celsius >= 87:
            said.append(f"{card.name} is at {card.celsius:.0f} °C and will slow down.")
    return tuple(said)


def _served() -> Iterator[Served]:
    """The processes of this machine that serve models, as far as this user may look."""
    import psutil

    for process in psutil.process_iter(["pid", "name", "cmdline", "memory_info"]):
        words = process.info["cmdline"] or []
        runtime = _runtime(process.info["name"] or "", words)
        if not runtime:
            continue
        memory = process.info["memory_info"]
        yield Served(
            runtime=runtime,
            model=words[words.index("--model") + 1] if "--model" in words[:-1] else "",
            pid=process.info["pid"],
            memory=memory.rss if memory else 0,
        )


def _runtime(name: str, words: list[str]) -> str:
    if "llm_tuner.models.llamacpp_child" in words:
        return "embedded"
    if "ollama" in name and "runner" in words:
        return "ollama"
    return "llama-server" if name.startswith("llama-server") else ""


def gpus() -> tuple[Gpu, ...]:
    """The GPUs of NVIDIA that the driver shows, and of AMD that the kernel shows; none when there is none, no driver or
    no nvidia-ml-py."""
    with _driver() as nvml:
        if nvml is None:
            return amd_gpus()
        try:
            return tuple(_gpu(nvml, number) for number in range(nvml.nvmlDeviceGetCount())) + amd_gpus()
        except nvml.NVMLError:
            return amd_gpus()


def amd_gpus(root: Path = Path("/sys/class/drm")) -> tuple[Gpu, ...]:
    """What the amdgpu driver says in sysfs (https://docs.kernel.org/gpu/amdgpu/thermal.html)."""
    found = []
    for device in sorted(root.glob("card*/device")):
        total = _number(device / "mem_info_vram_total")
        if total is None:
            continue
        heat = next((_number(path) for path in sorted(device.glob("hwmon/hwmon*/temp1_input"))), None)
        power = next((_number(path) for path in sorted(device.glob("hwmon/hwmon*/power1_average"))), None)
        found.append(
            Gpu(
                name=f"AMD {device.parent.name}",
                utilisation=_number(device / "gpu_busy_percent"),
                memory_used=int(_number(device / "mem_info_vram_used") or 0),
                memory_total=int(total),
                celsius=None if heat is None else heat / 1000,
                watts=None if power is None else power / 1e6,
            )
        )
    return tuple(found)


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


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
    return Gpu(
        name=text,
        utilisation=busy,
        memory_used=int(memory.used),
        memory_total=int(memory.total),
        celsius=_told(nvml, lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        watts=_told(nvml, lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
    )


def _told(nvml: ModuleType, ask: Callable[[], float]) -> float | None:
    try:
        return float(ask())
    except (nvml.NVMLError, AttributeError):
        return None


def _cpu_name() -> str:
    """The model that Linux names in /proc/cpuinfo, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def usable_cores() -> int:
    """The cores that this process may run on: in a container fewer than the machine has."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
