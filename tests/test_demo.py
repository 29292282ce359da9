"""The demo as a user runs it, with the thresholds that it is meant to reach. Slow: twenty minutes on two cores."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.servers
@pytest.mark.timeout(3000)
def test_the_demo_reaches_its_thresholds(tmp_path):
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "llm_tuner", "demo", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2900, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["before"]["native_rate"] == 0.0
    assert result["after"]["native_rate"] >= 0.95
    assert result["after"]["selection"] >= 0.85
    assert result["after"]["parameters"] >= 0.75
    assert result["decision"]["promote"] is True
    assert set(result["after"]["intervals_95"]) >= {"native_rate", "selection", "parameters"}
