import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from llm_tuner.tools.servers import ServerConfig

NASTY = Path(__file__).parent / "nasty"
TAG = f"llm-tuner-test-{os.getpid()}"
"""Python takes `-X anything`: it tells our servers from those of a test run beside this one."""


@pytest.fixture
def nasty() -> Callable[..., ServerConfig]:
    """The configuration of one of the small scripts in nasty/."""

    def config(script: str, *args: str, name: str = "", **fields: object) -> ServerConfig:
        command = ("-X", TAG, str(NASTY / f"{script}.py"), *args)
        return ServerConfig(name=name or script, command=sys.executable, args=command, **fields)

    return config


@pytest.fixture(autouse=True)
def no_orphans() -> Iterator[None]:
    """After every test the servers that it started are gone, also those whose parent is gone. What ran before it (an
    Ollama server of the whole session) is not its business."""
    before = _left()
    yield
    deadline = time.monotonic() + 2
    while left := _left() - before:
        if time.monotonic() > deadline:
            pytest.fail(f"still running: {left}")
        time.sleep(0.05)


def _left() -> set[psutil.Process]:
    tagged = [p for p in psutil.process_iter(["cmdline"]) if TAG in (p.info["cmdline"] or [])]
    return {p for p in {*tagged, *psutil.Process().children(recursive=True)} if _runs(p)}


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
