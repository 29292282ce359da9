"""How long a model takes, cold and warm, alone and under load.

Not a measurement of quality (measure.py is): the answers are thrown away. The rule it protects: every time says what it
is, from the client's side, and a target is only met on the kind of machine that it was set for.

What is measured, in milliseconds of wall clock seen from here:

- total: from sending the request to having the whole answer.
- first token: from sending the request until the first piece of the answer came. A server that is asked through its
  OpenAI-style address streams, and the first piece is timed. The embedded runtime and Ollama report how long they
  generated, and the first token is the total less that time: waiting in line, rendering, reading the prompt.
- prefill: how long the runtime says it read the prompt; without waiting in line. Not every server says.
- per token: the time that was spent generating over the generated tokens, one answer at a time.
- tokens/s: generated tokens of all answers over the wall time of the whole batch, waiting included.

A *cold* prefix is one that the runtime cannot have kept: the conversation begins with a system message whose first word
is new in every request. A *warm* one is the same for all requests, and was sent once to every slot before.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from llm_tuner.evaluation.measure import percentile
from llm_tuner.evaluation.target import Located, Target, locate, opened
from llm_tuner.models.description import describe
from llm_tuner.models.resources import machine
from llm_tuner.store import versions
from llm_tuner.store.suite import Suite, catalogue_key
from llm_tuner.types import (
    Backend,
    ChatOptions,
    EmptyData,
    Event,
    Json,
    Message,
    ModelError,
    Reply,
    SetupError,
    ToolSpec,
    Value,
)

if TYPE_CHECKING:
    from llm_tuner.models.ollama import Ollama

Prefix = Literal["cold", "warm"]
Device = Literal["cpu", "gpu", "unknown"]

MAX_TOKENS = 64
TARGETS_MS = {1.5e9: 500.0, 7e9: 2000.0}
"""Weights -> milliseconds that a request should take on a GPU, warm and alone (median), unless the user sets others."""
_SLACK = 1.25  # a "7B" has up to 8.2 billion weights

_CITIES = ("Tokyo", "Lima", "Oslo", "Cairo", "Quito", "Hanoi", "Accra", "Perth", "Turin", "Delhi", "Natal", "Kyoto")


class Spread(Value):
    """Milliseconds: the median, and what 95 and 99 of 100 requests do not exceed. None where nothing was reported."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


class Load(Value):
    """`n` answered requests, so many at a time; `errors` more failed."""

    concurrency: int
    prefix: Prefix
    n: int
    errors: int
    first_token: Spread
    prefill: Spread
    total: Spread
    per_token: Spread
    tokens_per_s: float
    prompt_tokens: float
    cached_tokens: float
    completion_tokens: float


class Goal(Value):
    """The target for a model of this size, and whether the warm median of single requests met it."""

    target_ms: float | None = None
    measured_ms: float | None = None
    verdict: Literal["met", "not met", "not comparable"] = "not comparable"
    why: str = ""


class LatencyReport(Value):
    """What was measured of a model as served, and on what."""

    backend: str
    runtime: str
    device: Device
    parameters: int
    quantisation: str
    model_sha256: str
    machine: dict[str, str]
    tools: int
    loads: tuple[Load, ...]
    goal: Goal


@runtime_checkable
class Streaming(Protocol):
    """A backend that can time the first token itself."""

    def stream(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), options: ChatOptions = ...
    ) -> Reply: ...


class Workload(Value):
    """What is asked: requests to one catalogue of tools, different each."""

    tools: tuple[ToolSpec, ...]
    requests: tuple[str, ...]
    system: str = "You are a helpful assistant."

    def messages(self, number: int, first_word: str) -> tuple[Message, ...]:
        """The conversation of a request; `first_word` stands before everything else."""
        asked = self.requests[number % len(self.requests)]
        return (
            Message(role="system", text=f"{first_word} {self.system}"),
            Message(role="user", text=asked),
        )


def measure_latency(
    backend: Backend,
    workload: Workload,
    *,
    concurrency: Sequence[int] = (1,),
    requests: int = 20,
    max_tokens: int = MAX_TOKENS,
) -> Generator[Event, None, tuple[Load, ...]]:
    """For each number of requests at a time, `requests` cold ones and then `requests` warm ones; an event an answer.

    Raises SetupError for numbers below 1, and the runtime's own error where not one request was answered.
    """
    if requests < 1 or not concurrency or min(concurrency) < 1:
        raise SetupError("Latency needs at least one request, and at least one at a time.")
    options = ChatOptions(max_tokens=max_tokens)
    ask = backend.stream if isinstance(backend, Streaming) else backend.chat
    words, numbers = _first_words(), itertools.count()
    loads: list[Load] = []
    total = 2 * requests * len(concurrency)

    def send(first_word: str, number: int) -> _Timed:
        return _timed(lambda: ask(workload.messages(number, first_word), workload.tools, options))

    for at_a_time in concurrency:
        for prefix in ("cold", "warm"):
            kept = next(words)
            with ThreadPoolExecutor(at_a_time) as pool:
                if prefix == "warm":
                    list(pool.map(lambda number, word=kept: send(word, number), itertools.islice(numbers, at_a_time)))
                started = time.perf_counter()
                waiting = [
                    pool.submit(send, kept if prefix == "warm" else next(words), next(numbers)) for _ in range(requests)
                ]
                done = []
                for future in as_completed(waiting):
                    done.append(future.result())
                    message = f"{prefix}, {at_a_time} at a time"
                    yield Event(step="latency", message=message, done=len(loads) * requests + len(done), total=total)
                seconds = time.perf_counter() - started
            loads.append(_load(at_a_time, "warm" if prefix == "warm" else "cold", done, seconds))
    return tuple(loads)


def time_target(
    target: Target,
    workload: Workload,
    *,
    concurrency: Sequence[int] = (1,),
    requests: int = 20,
    max_tokens: int = MAX_TOKENS,
    parameters: int = 0,
    gpu: bool = False,
    targets_ms: Mapping[float, float] = TARGETS_MS,
) -> Generator[Event, None, LatencyReport]:
    """Locate, open, measure, and hold the result against the target for the model's size.

    `parameters` (weights) and `gpu` say what cannot be found out of a server; they win over what is found.
    `targets_ms` are milliseconds by weights.
    """
    located = yield from locate(target)
    here = machine()
    with opened(located, slots=max(concurrency, default=1)) as backend:
        steps = measure_latency(backend, workload, concurrency=concurrency, requests=requests, max_tokens=max_tokens)
        loads = yield from steps
        served = _served(located, backend, here)
    served = served.model_copy(update={"parameters": parameters or served.parameters})
    device = "gpu" if gpu else served.device
    return LatencyReport(
        backend=backend.name,
        runtime=served.runtime,
        device=device,
        parameters=served.parameters,
        quantisation=served.quantisation,
        model_sha256=located.sha256,
        machine=here,
        tools=len(workload.tools),
        loads=loads,
        goal=goal(loads, served.parameters, device, targets_ms),
    )


def goal(
    loads: Sequence[Load], parameters: int, device: Device, targets_ms: Mapping[float, float] = TARGETS_MS
) -> Goal:
    """Holds the warm median of single requests against the target for this many weights."""
    alone = next((load for load in loads if load.prefix == "warm" and load.concurrency == 1), None)
    found = Goal(measured_ms=alone.total.p50 if alone else None)
    if alone is None or alone.total.p50 is None:
        return found.model_copy(update={"why": "No single warm request was measured: add 1 to the concurrency."})
    if not parameters:
        return found.model_copy(update={"why": "The model's size is not known: say it (--size, in billions)."})
    target = next((ms for size, ms in sorted(targets_ms.items()) if parameters <= size * _SLACK), None)
    if target is None:
        return found.model_copy(update={"why": f"There is no target for {parameters / 1e9:.1f} billion weights."})
    found = found.model_copy(update={"target_ms": target})
    if device != "gpu":
        where = "This ran on a CPU" if device == "cpu" else "It is not known whether a GPU was used (say it: --gpu)"
        return found.model_copy(update={"why": f"{where}; the target is for a GPU."})
    return found.model_copy(update={"verdict": "met" if alone.total.p50 <= target else "not met"})


def default_workload(requests: int = 200) -> Workload:
    """Eight small tools and requests about the weather, all different: about 900 prompt tokens."""
    text, number = {"type": "string"}, {"type": "integer"}
    tools = [
        _tool("get_forecast", "The weather forecast for a city.", city=text, days=number),
        _tool("get_air_quality", "The air quality of a city now.", city=text),
        _tool("search_flights", "Flights between two cities on a day.", origin=text, destination=text, date=text),
        _tool("book_table", "Book a table at a restaurant.", restaurant=text, people=number, time=text),
        _tool("send_message", "Send a message to a person.", recipient=text, body=text),
        _tool("create_reminder", "Remind the user of something.", title=text, minutes=number),
        _tool("convert_currency", "Convert an amount of money.", amount={"type": "number"}, source=text, target=text),
        _tool("read_file", "Read a text file.", path=text),
    ]
    asked = (f"What will the weather be in {_CITIES[i % 12]} in the next {i // 12 + 2} days?" for i in range(requests))
    return Workload(tools=tuple(tools), requests=tuple(asked))


def workload_of(suite: Suite) -> Workload:
    """The requests of the suite's most used catalogue. Raises EmptyData for a suite without tasks."""
    catalogues: dict[str, list[int]] = {}
    for place, task in enumerate(suite.tasks):
        catalogues.setdefault(catalogue_key(task.tools), []).append(place)
    if not catalogues:
        raise EmptyData(f'The suite "{suite.name}" holds no task: there is nothing to ask.')
    chosen = [suite.tasks[place] for place in max(catalogues.values(), key=len)]
    return Workload(tools=chosen[0].tools, requests=tuple(dict.fromkeys(task.request for task in chosen)))


# ------------------------------------------------------------------------------------------------------ what is served


class _Served(Value):
    """What the runtime or the file says about the model; `device` is where it computes."""

    runtime: str
    device: Device = "unknown"
    parameters: int = 0
    quantisation: str = ""


def _served(located: Located, backend: Backend, here: dict[str, str]) -> _Served:
    from llm_tuner.models.ollama import Ollama

    if located.gguf is not None:
        found = describe(located.gguf)
        runtime = f"llama.cpp (xllamacpp {versions().get('xllamacpp', '?')})"
        # Where there is a GPU, a build of llama.cpp with its support may use it: that is not asked here.
        device: Device = "cpu" if here["gpu"] == "none" else "unknown"
        return _Served(runtime=runtime, device=device, parameters=found.parameters, quantisation=found.quantisation)
    if isinstance(backend, Ollama):
        return _served_by_ollama(backend)
    return _Served(runtime="OpenAI-compatible server")


def _served_by_ollama(backend: Ollama) -> _Served:
    shown = backend.server.show(backend.name)
    details, info = shown.get("details") or {}, shown.get("model_info") or {}
    loaded = _loaded_by_ollama(backend, str(shown.get("modelfile", "")))
    device: Device = "unknown"
    if loaded is not None and loaded.get("size"):  # partly on the CPU counts as CPU: the slower part decides
        device = "gpu" if loaded.get("size_vram", 0) >= loaded["size"] else "cpu"
    return _Served(
        runtime=f"Ollama {backend.server.version()}",
        device=device,
        parameters=int(info.get("general.parameter_count") or 0),
        quantisation=str(details.get("quantization_level") or ""),
    )


def _loaded_by_ollama(backend: Ollama, modelfile: str) -> dict[str, Json] | None:
    """The entry of `/api/ps`: of a file that two names share, Ollama lists only the one that loaded it."""
    running = backend.server.running()
    for model in running:
        if model.get("name") in (backend.name, f"{backend.name}:latest"):
            return model
    files = _files(modelfile)
    for model in running:
        if files and files == _files(str(backend.server.show(str(model.get("name"))).get("modelfile", ""))):
            return model
    return None


def _files(modelfile: str) -> list[str]:
    return [line for line in modelfile.splitlines() if line.startswith("FROM ")]


# ------------------------------------------------------------------------------------------------------------- timing


@dataclass(frozen=True)
class _Timed:
    total_ms: float
    reply: Reply | None = None
    error: ModelError | None = None

    @property
    def first_token_ms(self) -> float | None:
        if self.reply is None:
            return None
        timing = self.reply.timing
        if timing.first_token_ms is not None:
            return timing.first_token_ms
        if timing.generate_ms is None:  # of an answer that is one token, Ollama leaves it out
            return self.total_ms if self.reply.usage.completion_tokens == 1 else None
        return max(0.0, self.total_ms - timing.generate_ms)

    @property
    def per_token_ms(self) -> float | None:
        if self.reply is None or not self.reply.timing.generate_ms or not self.reply.usage.completion_tokens:
            return None
        return self.reply.timing.generate_ms / self.reply.usage.completion_tokens


def _timed(ask: Callable[[], Reply]) -> _Timed:
    started = time.perf_counter()
    try:
        reply = ask()
    except ModelError as error:
        return _Timed(total_ms=(time.perf_counter() - started) * 1000, error=error)
    return _Timed(total_ms=(time.perf_counter() - started) * 1000, reply=reply)


def _load(concurrency: int, prefix: Prefix, done: Sequence[_Timed], seconds: float) -> Load:
    answered = [(one, one.reply) for one in done if one.reply is not None]
    if not answered:
        raise next(one.error for one in done if one.error is not None)
    return Load(
        concurrency=concurrency,
        prefix=prefix,
        n=len(answered),
        errors=len(done) - len(answered),
        first_token=_spread([one.first_token_ms for one, _ in answered]),
        prefill=_spread([reply.timing.prompt_ms for _, reply in answered]),
        total=_spread([one.total_ms for one, _ in answered]),
        per_token=_spread([one.per_token_ms for one, _ in answered]),
        tokens_per_s=sum(reply.usage.completion_tokens for _, reply in answered) / seconds,
        prompt_tokens=median(reply.usage.prompt_tokens for _, reply in answered),
        cached_tokens=median(reply.usage.cached_tokens for _, reply in answered),
        completion_tokens=median(reply.usage.completion_tokens for _, reply in answered),
    )


def _spread(values: Sequence[float | None]) -> Spread:
    known = [value for value in values if value is not None]
    return Spread(p50=percentile(known, 50), p95=percentile(known, 95), p99=percentile(known, 99))


def _first_words() -> Iterator[str]:
    """Never the same twice, not even in another process: the runtime may have kept what that one sent."""
    start = time.time_ns()
    return (f"{(start + i) * 2_654_435_761 % (1 << 40):010x}" for i in itertools.count())


def _tool(name: str, description: str, **properties: dict[str, str]) -> ToolSpec:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return ToolSpec(name=name, description=description, parameters=parameters)
