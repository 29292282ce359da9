"""The process that alone loads the benchmark's environment classes and calls their methods.

Started by `bfcl_environment.Environment`, not by people, with no more than the standard library on its path; it
imports nothing of llm-tuner. One JSON line in (the settings), one out (ready, or the error), then one line out for
each line in. It ends when its standard input does.

The rule it protects: what a model wrote is never code. A call is a name, looked up among the public methods of the
open objects, and arguments that are literals. While it serves, files, programs and the network are out of reach, a call
has a limit of time, the process one of memory.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import json
import os
import re
import signal
import sys
import zipfile
from collections.abc import Iterator, Sequence
from types import CodeType, FrameType, ModuleType
from typing import Any

FORBIDDEN = frozenset({"kill", "exit", "quit", "remove", "unlink", "popen", "Popen", "run"})
"""Names that the official executor refuses, whoever has them."""

_SHOWN = 120
_MISSING = object()
_CALLED = re.compile(r"\b([a-zA-Z_]\w*)\s*(?=\()")
_CLOSED = ("socket.", "subprocess.", "os.", "shutil.", "ctypes.", "webbrowser.", "urllib.", "ftplib.", "http.")
_READING = frozenset({"os.listdir", "os.scandir"})  # what a late import of the standard library does


class TooLong(BaseException):
    """A call used up its time. No Exception: the classes' own handlers must not swallow it."""


class Modules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Python modules out of zip files. Compiled once, executed anew after each `forget`: the classes' module-level
    values are shared by their objects and would carry what one task did into the next."""

    def __init__(self, archives: Sequence[str]) -> None:
        self.sources: dict[str, tuple[str, str]] = {}
        self.packages: set[str] = set()
        self.compiled: dict[str, CodeType] = {}
        for archive in archives:
            self._read(archive)

    def _read(self, archive: str) -> None:
        with zipfile.ZipFile(archive) as members:
            for member in members.namelist():
                if not member.endswith(".py"):
                    continue
                parts = member[:-3].split("/")
                self.packages.update(".".join(parts[:i]) for i in range(1, len(parts)))
                name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                self.sources[name] = (f"{archive}/{member}", members.read(member).decode("utf-8"))

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in self.sources and name not in self.packages:
            return None
        return importlib.util.spec_from_loader(name, self, is_package=name in self.packages)

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        if name in self.sources:
            if name not in self.compiled:
                file, text = self.sources[name]
                self.compiled[name] = compile(text, file, "exec", dont_inherit=True)
            exec(self.compiled[name], module.__dict__)  # the pinned source, never a model's text

    def forget(self) -> None:
        for name in self.packages | self.sources.keys():
            sys.modules.pop(name, None)


class Side:
    """One set of objects: the model's, or the ground truth's. `label` names them in texts, as officially."""

    def __init__(self, label: str, task: dict[str, Any], settings: dict[str, Any]) -> None:
        self.objects: dict[str, Any] = {}
        self.owners: dict[str, str] = {}
        for name in task["classes"]:
            instance = getattr(importlib.import_module(settings["classes"][name]), name)()
            if name not in settings["stateless"]:
                config = copy.deepcopy(task["config"].get(name, {}))
                instance._load_scenario(config, long_context=task["long_context"])
            self.objects[name] = instance
            for method, _ in inspect.getmembers(instance, predicate=inspect.ismethod):
                if not method.startswith("_"):
                    self.owners[method] = name  # the last class of two that share a name has it
        self.names = {name: re.sub(r"[-./:]", "_", f"{label}_{task['id']}_{name}_instance") for name in self.objects}

    def call(self, name: str, positional: Sequence[Any], named: dict[str, Any]) -> str:
        """What the call gives, as the text that a model is shown; an error is such a text, too."""
        try:
            if name in FORBIDDEN:
                raise PermissionError(f"Function call {name} is not allowed.")
            if name not in self.owners:
                raise NameError(f"name '{name}' is not defined")
            return _text(getattr(self.objects[self.owners[name]], name)(*positional, **named))
        except Exception as error:
            return f"Error during execution: {error}"

    def call_named(self, name: str, arguments: dict[str, Any]) -> str:
        """A model's call."""
        try:
            read = {key: self._as_read(value) for key, value in arguments.items()}
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return "Error during execution: an argument is no value."
        return self.call(name, (), read)

    def call_written(self, expression: str) -> str:
        """A call of the ground truth, written as a Python expression with literals for arguments."""
        node = ast.parse(_CALLED.sub(self._owned, expression), mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            raise ValueError(f"{expression} is no call")
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        positional = [ast.literal_eval(value) for value in node.args]
        return self.call(name, positional, {word.arg or "": ast.literal_eval(word.value) for word in node.keywords})

    def _as_read(self, value: Any) -> Any:
        """A value as the official executor reads it. It writes every call as Python text and puts the object's name
        before each method's name that a bracket follows, inside of quoted text, too."""
        written = repr(value)
        read = _CALLED.sub(self._owned, written)
        return value if read == written and _is_literal(value) else ast.literal_eval(read)

    def _owned(self, match: re.Match[str]) -> str:
        method = match.group(1)
        return f"{self.names[self.owners[method]]}.{method}" if method in self.owners else method


def differences(model: Side, truth: Side) -> list[dict[str, str]]:
    """The public attributes of the ground truth's objects that the model's have not, or have another value of."""
    found = []
    for name, wanted in truth.objects.items():
        for attribute, value in vars(wanted).items():
            if attribute.startswith("_"):
                continue
            made = getattr(model.objects[name], attribute, _MISSING)
            if _differ(made, value):
                shown = "nothing" if made is _MISSING else _short(made)
                found.append({"attribute": f"{name}.{attribute}", "made": shown, "wanted": _short(value)})
    return found


def _differ(made: Any, wanted: Any) -> bool:
    try:
        return made is _MISSING or bool(made != wanted)
    except Exception:  # what cannot be compared, as with an endless depth, is not the same
        return True


def _is_literal(value: Any) -> bool:
    """Whether a JSON value's Python text is a literal: all but NaN and the infinities."""
    if isinstance(value, float):
        return value - value == 0
    if isinstance(value, list):
        return all(map(_is_literal, value))
    return all(map(_is_literal, value.values())) if isinstance(value, dict) else True


def _text(result: Any) -> str:
    if type(result) is str:
        return result
    if type(result) is dict:
        with contextlib.suppress(Exception):
            return json.dumps(result)
    return str(result)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


# -------------------------------------------------------------------------------------------------------------- limits


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """TooLong after so many seconds of the processor. Code that never comes back to Python is ended by the system."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    _limit_processor(seconds + 2)
    signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TooLong


def _limit_processor(seconds: float) -> None:
    import resource

    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    wanted = int(used + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _limit_memory(size: int) -> None:
    try:
        import resource
    except ImportError:
        return
    for limit, wanted in ((resource.RLIMIT_AS, size), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(limit)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


class Seal:
    """While closed, no file is opened but the standard library's, no program started, nothing sent."""

    def __init__(self) -> None:
        self.closed = False
        self.library = os.path.dirname(os.__file__) + os.sep
        sys.addaudithook(self._watch)

    def _watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.closed or event in _READING or not (event == "open" or event.startswith(_CLOSED)):
            return
        if event != "open" or not str(arguments[0]).startswith(self.library) or arguments[1] not in ("r", "rb", None):
            raise PermissionError(f"{event} is out of reach in the benchmark's environment")

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        self.closed = True
        try:
            yield
        finally:
            self.closed = False


# -------------------------------------------------------------------------------------------------------------- serving


class Server:
    """Answers requests, each a JSON object with `op`: start, call, truth or compare."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.modules = Modules(settings["archives"])
        sys.meta_path[:0] = [self.modules, Modules(settings["libraries"])]
        self.seal = Seal()
        self.task: dict[str, Any] = {}
        self.sides: dict[str, Side] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        op = request["op"]
        if op == "start":
            self.modules.forget()
            self.task, self.sides = request["task"], {}
            self._side("model")
            return {"ok": True}
        if op == "compare":
            return {"differences": differences(self._side("model"), self._side("truth"))}
        side = self._side("model" if op == "call" else "truth")
        with self.seal():
            try:
                with _limited(self.settings["call_seconds"]):
                    if op == "call":
                        result = side.call_named(request["name"], request["arguments"])
                    else:
                        result = side.call_written(request["expression"])
            except TooLong:
                return {"result": self._refused(f"it took longer than {self.settings['call_seconds']:g} s")}
        if len(result) > self.settings["result_characters"]:
            result = self._refused(f"its result has more than {self.settings['result_characters']} characters")
        return {"result": result}

    def _refused(self, why: str) -> str:
        return f"Error during execution: the call was refused, {why}."

    def _side(self, name: str) -> Side:
        if name not in self.sides:
            label = "model_eval" if name == "model" else "model_ground_truth_eval"
            self.sides[name] = Side(label, self.task, self.settings)
        return self.sides[name]


def main() -> None:
    """Serve until standard input ends."""
    # The classes may print; the answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        settings = json.loads(sys.stdin.readline())
        _limit_memory(settings["memory_bytes"])
        server = Server(settings)
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})
        return
    say({"ok": True})
    for line in sys.stdin:
        try:
            answer = server.answer(json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        say(answer)


if __name__ == "__main__":
    main()
