"""Readings of the machine, kept and thinned; AMD's sysfs, served models, warnings; and what a reading costs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from llm_tuner.models.resources import Gpu, Snapshot, amd_gpus, snapshot, warnings
from llm_tuner.operations import perform
from llm_tuner.operations.machine import reading, values
from llm_tuner.operations.table import find
from llm_tuner.store.readings import Readings


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    return tmp_path


def do(operation: str, /, **arguments: Any) -> Any:
    steps = perform(find(operation), arguments)
    with pytest.raises(StopIteration) as end:
        next(steps)
    return end.value.value


def test_a_reading_is_kept_and_comes_back(home: Path) -> None:
    found = do("resources")
    assert 0 <= found["cpu"] <= 100
    assert len(found["cores"]) == psutil.cpu_count()
    assert 0 < found["memory_used"] < found["memory_total"]
    assert found["ollama"] is None
    series = do("resource_history", hours=1)["series"]
    assert series["memory"][0][1] == found["memory_used"]
    assert "tokens_per_s" not in series  # no gateway


def test_readings_are_thinned_with_age_and_given_as_so_many_points(tmp_path: Path) -> None:
    kept, now = Readings(tmp_path), 10_000_000.0
    for ago in range(0, 4 * 86_400, 300):
        kept.add({"cpu": float(ago), "none": None}, now - ago)
    kept.add({"cpu": -1.0}, now + 700)  # thins
    raw = kept.since(80_000, 2000, now)["cpu"]
    assert len(raw) == pytest.approx(80_000 / 300, abs=2)
    old = [point for point in kept.since(4 * 86_400, 2000, now)["cpu"] if point[0] < now - 2 * 86_400]
    assert len(old) == pytest.approx(2 * 86_400 / 600, abs=3)
    assert len(kept.since(4 * 86_400, 50, now)["cpu"]) <= 51
    assert list(kept.since(4 * 86_400, 50, now)) == ["cpu"]
    kept.add({"cpu": 0.0}, now + 40 * 86_400)
    assert len(kept.since(80 * 86_400, 2000, now + 40 * 86_400)["cpu"]) == 1


def test_a_damaged_file_costs_readings_only(tmp_path: Path) -> None:
    (tmp_path / "readings.sqlite").write_bytes(b"no database" * 100)
    kept = Readings(tmp_path)
    kept.add({"cpu": 1.0})
    assert kept.since(60) == {}


def test_amd_cards_are_read_from_sysfs(tmp_path: Path) -> None:
    device = tmp_path / "card1" / "device"
    (device / "hwmon" / "hwmon3").mkdir(parents=True)
    (tmp_path / "card0" / "device").mkdir(parents=True)  # a display without memory of its own
    for name, text in (
        ("mem_info_vram_total", "17163091968\n"), ("mem_info_vram_used", "1048576\n"), ("gpu_busy_percent", "37\n"),
        ("hwmon/hwmon3/temp1_input", "51000\n"), ("hwmon/hwmon3/power1_average", "28000000\n"),
    ):  # fmt: skip
        (device / name).write_text(text)
    (card,) = amd_gpus(tmp_path)
    assert card == Gpu(
        name="AMD card1", utilisation=37, memory_used=1 << 20, memory_total=17163091968, celsius=51, watts=28
    )


def test_what_should_worry() -> None:
    calm = Snapshot(cpu=99, memory_used=50, memory_total=100, disk_free=50, disk_total=100)
    assert warnings(calm) == ()
    full = calm.model_copy(update={"memory_used": 95, "swap_used": 20, "disk_free": 5, "gpus": (
        Gpu(name="card", utilisation=1, memory_used=99, memory_total=100, celsius=90),)})  # fmt: skip
    said = " ".join(warnings(full))
    for words in ("Memory is 95% full", "5% of the disk", "swapped", "memory of card is 99%", "90 °C"):
        assert words in said


@pytest.mark.weights
def test_the_memory_of_a_served_model_is_shown_with_its_file(smol_gguf: Path) -> None:
    from llm_tuner.models.llamacpp import Embedded

    with Embedded(smol_gguf, context=512):
        served = [one for one in snapshot(seconds=0).served if smol_gguf.name in one.model]
    assert served[0].runtime == "embedded"
    assert served[0].memory > smol_gguf.stat().st_size / 2


def test_top_is_light() -> None:
    """2 % of a core at an interval of 2 s are 40 ms; 7 ms on an idle machine."""
    before: dict[str, float] = {}
    reading("127.0.0.1:9", 0, before)
    spent = []
    for _ in range(5):
        start = time.process_time()
        found = reading("127.0.0.1:9", 0, before)
        Readings().add(values(found))
        spent.append(time.process_time() - start)
    assert min(spent) < 0.04


def test_top_writes_a_line_a_reading() -> None:
    command = [sys.executable, "-m", "llm_tuner", "top", "--json", "--watch", "2", "--interval", "0.2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["memory_total"] > 0 for line in done.stdout.splitlines()] == [True, True]
    assert "memory" in subprocess.run([*command[:4]], capture_output=True, text=True, timeout=60).stdout
