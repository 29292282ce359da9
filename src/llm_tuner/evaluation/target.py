"""What the user wants measured: an installed or fetched model, one in Ollama, or one behind an OpenAI-style address.

Not a runtime: nothing is installed or promoted. The rule it protects: the command line, the script and anything else
that measures a model named by the user resolve that name in one way.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llm_tuner.evaluation.details import details
from llm_tuner.evaluation.measure import measure_all
from llm_tuner.evaluation.render import failures, write
from llm_tuner.evaluation.wording import Language
from llm_tuner.models import catalogue
from llm_tuner.models.resources import machine
from llm_tuner.models.sources import fetch
from llm_tuner.models.sources.weights import sha256_of
from llm_tuner.models.versions import Versions
from llm_tuner.scoring import Rules
from llm_tuner.store.suite import Suite, save
from llm_tuner.types import GREEDY, Backend, ChatOptions, Event, Report, SetupError, Value


class Target(Value):
    """One of: `model` (a catalogue name, "name:alias" of an installed version, "scheme:rest" or a path of a .gguf,
    served by the embedded runtime); `ollama` (a model's name in Ollama); `base_url` with `model` (an OpenAI-style
    server). `context` is in tokens; an OpenAI-style server has its own. `threads` is for the embedded runtime: 0 takes
    every core, which on a shared machine can be many times slower than leaving one free. `at_a_time` requests are sent
    at a time (measure), and the embedded runtime has so many slots."""

    model: str = ""
    ollama: str = ""
    base_url: str = ""
    context: int = 8192
    threads: int = 0
    at_a_time: int = 1


class Located(Value):
    """A target whose file, if it is one of ours, is on this machine; `sha256` is the file's."""

    target: Target
    gguf: Path | None = None
    sha256: str = ""


def locate(target: Target) -> Generator[Event, None, Located]:
    """Bring the model here if need be. Raises SetupError unless the target says one thing, and what `fetch` raises."""
    if bool(target.ollama) == bool(target.model):
        raise SetupError(
            "Say which model to measure: --model NAME, or --ollama NAME, or --base-url URL with --model NAME."
        )
    if target.ollama or target.base_url:
        if target.ollama and target.base_url:
            raise SetupError(
                "--ollama and --base-url name two servers. Choose one; Ollama's own address is OLLAMA_HOST."
            )
        return Located(target=target)
    versions, name = Versions(), target.model.partition(":")[0]
    if name in versions.names() and target.model not in catalogue.names():
        version = versions.version(target.model)
        return Located(target=target, gguf=versions.path(target.model), sha256=version.sha256)
    gguf = yield from fetch(target.model)
    return Located(target=target, gguf=gguf, sha256=(yield from sha256_of(gguf)))


@contextmanager
def opened(located: Located, slots: int = 0) -> Iterator[Backend]:
    """The backend, closed at the end. `slots`: so many requests at a time are served by the embedded runtime (0: the
    target's `at_a_time`); a server has its own number."""
    target, slots = located.target, slots or located.target.at_a_time
    if located.gguf is not None:
        from llm_tuner.models.llamacpp import Embedded

        context, threads = target.context, target.threads
        with Embedded(located.gguf, name=target.model, context=context, threads=threads, slots=slots) as embedded:
            yield embedded
    elif target.ollama:
        from llm_tuner.models.ollama import Ollama

        ollama = Ollama(target.ollama, context=target.context)
        try:
            yield ollama
        finally:
            ollama.close()
    else:
        from llm_tuner.models.openai_compatible import OpenAICompatible

        yield OpenAICompatible(target.model, base_url=target.base_url)


def evaluate(
    target: Target,
    suite: Suite,
    *,
    rules: Rules = "strict",
    options: ChatOptions = GREEDY,
    out: Path | None = None,
    language: Language = "en",
) -> Generator[Event, None, Report]:
    """As `evaluate_all` with one suite, whose `out` is the folder itself."""
    reports = yield from evaluate_all(target, [(suite, out)], rules=rules, options=options, language=language)
    return reports[0]


def evaluate_all(
    target: Target,
    suites: Sequence[tuple[Suite, Path | None]],
    *,
    rules: Rules = "strict",
    options: ChatOptions = GREEDY,
    language: Language = "en",
) -> Generator[Event, None, tuple[Report, ...]]:
    """Locate, open once, measure every suite; where one has a folder, also keep the suite and attempts.jsonl there and
    write report.json, .md, .html.

    A second call with the same folders goes on where the first one stopped.
    """
    located = yield from locate(target)
    with opened(located) as backend:
        measured = yield from measure_all(
            [suite for suite, _ in suites],
            backend,
            options=options,
            rules=rules,
            outs=[out for _, out in suites],
            machine=machine() | conditions(target, options),
            sha256=located.sha256,
            served=served(located, backend),
            at_a_time=target.at_a_time,
        )
    for (suite, out), (report, attempts) in zip(suites, measured, strict=True):
        if out is not None:
            save(suite, out / "suite.jsonl")
            write(out, report, failures(suite, attempts), language, details(suite.tasks, attempts))
    return tuple(report for report, _ in measured)


def served(located: Located, backend: Backend) -> str:
    """What names a served model beyond its name: a file's hash, Ollama's digest of what the name stands for now, the
    address of a foreign server."""
    from llm_tuner.models.ollama import Ollama

    if located.sha256 or not isinstance(backend, Ollama):
        address = located.target.base_url
        return located.sha256 or (f"{backend.name} at {address}" if address else "")
    names = (backend.name, f"{backend.name}:latest")
    digest = next((m.get("digest") for m in backend.server.models() if m.get("name") in names), None)
    return f"{backend.name} {digest}" if digest else ""


def conditions(target: Target, options: ChatOptions) -> dict[str, str]:
    """What a measurement ran under, beside the machine: it stands in the report with it."""
    runtime = "Ollama" if target.ollama else "OpenAI-compatible server" if target.base_url else "llama.cpp, embedded"
    found = {"runtime": runtime, "max_tokens": str(options.max_tokens)}
    if not target.base_url:
        found["context"] = str(target.context)
    if target.threads:
        found["threads"] = str(target.threads)
    return found
