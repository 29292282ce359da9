"""Measuring, collecting, tuning, as operations: what `eval`, `data collect` and `tune` do, with fewer knobs.

Where a file is asked for, it is one of this machine. All that they make lies in the store and is reused: an operation
that was stopped goes on when it is asked for again.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from llm_tuner.operations import Operation
from llm_tuner.types import EmptyData, Event, Json, SetupError

if TYPE_CHECKING:
    from llm_tuner.loop import Outcome
    from llm_tuner.types import Report

HubFile = Annotated[str, Field(description='An mcpServers JSON file, or "demo".')]
Runtime = Annotated[Literal["embedded", "ollama"], Field(description="Where the model is served.")]
Base = Annotated[str, Field(description="Base model: a name of `models list`, or a source.")]


def budget(
    hub: Annotated[str, Field(description='An mcpServers JSON file, "demo", or what `tools list --json` wrote.')] = (
        "demo"
    ),
    model: Annotated[
        str, Field(description="Whose template and tokenizer count: a known or installed model, or a .gguf path.")
    ] = "qwen2.5-coder:0.5b",
    windows: Annotated[str, Field(description="Context windows in tokens, with commas.")] = "200000,32768,8192",
    cache: Annotated[str, Field(description="Type of the KV cache: f16, q8_0, q4_0 and others.")] = "f16",
) -> Generator[Event, None, dict[str, Json]]:
    """What tools take of a context window: tokens of every tool, server and the whole in the model's own template, in
    full and in two short forms, and whether that leaves room in a window; with the memory that the window takes.

    Example: llm-tuner tools budget --hub .mcp.json --model qwen2.5-coder:0.5b --windows 32768,8192
    """
    from llm_tuner.evaluation.target import Target, locate
    from llm_tuner.models.kv_cache import read_kv_cache
    from llm_tuner.models.llamacpp import Embedded
    from llm_tuner.models.window import Meter
    from llm_tuner.models.window import budget as counted
    from llm_tuner.operations.hubs import tools_of

    sizes = window_sizes(windows)
    gguf = (yield from locate(Target(model=model))).gguf
    if gguf is None:
        raise SetupError(f"{model} has no file here. Name a known or installed model, or a .gguf.")
    kept = read_kv_cache(gguf)
    kept.bytes(1, cache)
    specs = tools_of(hub)
    if not specs:
        raise EmptyData(f"The hub lists no tool. Run: llm-tuner tools list --hub {hub}")
    with Embedded(gguf, name=model, context=512) as renderer:
        found = counted(specs, Meter(renderer), sizes, kept, cache)
    return {"model": model, "hub": hub, "cache": cache, **found.model_dump(mode="json")}


def window_sizes(text: str) -> tuple[int, ...]:
    """Numbers of tokens with commas between them. Raises SetupError for anything else."""
    try:
        sizes = tuple(int(part.replace("_", "")) for part in text.split(",") if part.strip())
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise SetupError(f'--windows is a list of whole numbers of tokens like 32768,8192, found "{text}".')
    return sizes


def evaluate(
    file: Annotated[str, Field(description="A suite file, as `data collect` writes it.")],
    model: Annotated[str, Field(description="A known model, NAME:stable, or a .gguf path.")] = "",
    ollama: Annotated[str, Field(description="Or a model of the Ollama server.")] = "",
    base_url: Annotated[str, Field(description="Or MODEL is served by this OpenAI-compatible URL.")] = "",
    context: Annotated[int, Field(ge=512, description="Window of the model, in tokens.")] = 8192,
    out_folder: Annotated[str, Field(description="Folder for the attempts and the report; resumes there.")] = "",
) -> Generator[Event, None, dict[str, Json]]:
    """Ask every task of a suite of a model as served: selection, parameters, native format, latency, with intervals.

    Example: llm-tuner eval suite held-out.jsonl --model demo:stable --out report
    """
    from llm_tuner.evaluation.target import Target
    from llm_tuner.evaluation.target import evaluate as measured
    from llm_tuner.store.suite import load

    suite = load(Path(file))
    named = model or ("" if ollama else "qwen2.5-coder:0.5b")
    target = Target(model=named, ollama=ollama, base_url=base_url, context=context)
    report = yield from measured(target, suite, out=Path(out_folder) if out_folder else None)
    return report.model_dump(mode="json", exclude={"verdicts"})


def compare(
    before: Annotated[str, Field(description="An --out folder, a report.json, an evaluate run's id, last, previous.")],
    after: Annotated[str, Field(description="The same, of what is held against it.")],
    only: Annotated[str, Field(description="Only this suite (held-out, simple_python).")] = "",
    reading: Annotated[Literal["native", "lenient"], Field(description="lenient: calls in text count.")] = "native",
) -> dict[str, Json]:
    """Two measurements task by task: what changed and how surely, which tasks flipped, what broke.

    Example: llm-tuner eval compare previous last
    """
    from llm_tuner.evaluation.compare import compare as compared
    from llm_tuner.evaluation.compare import open_parts

    found = compared(open_parts(before, only=only), open_parts(after, only=only), reading=reading)
    return {**found.model_dump(mode="json"), "regressions": list(found.worse)}


def collect(
    hub: HubFile = "demo",
    base: Base = "qwen2.5-coder:0.5b",
    tasks: Annotated[int, Field(ge=1, description="Training tasks to make.")] = 160,
    own: Annotated[int, Field(ge=0, description="How many of them the model itself tries.")] = 16,
    execute: Annotated[bool, Field(description="Really call the servers, inside a throw-away folder.")] = True,
    runtime: Runtime = "embedded",
) -> Generator[Event, None, dict[str, Json]]:
    """Make tasks from a hub's schemas, try every reference answer on the servers, keep what they accept.

    Example: llm-tuner data collect --tasks 100 --own 0
    """
    from llm_tuner import loop
    from llm_tuner.models.runtimes import open_runtime
    from llm_tuner.store import Store

    default = loop.Tune()
    mix = default.train.model_copy(update={"tasks": tasks, "catalogues": max(1, tasks // 16)})
    config = loop.Tune(hub=hub, base=base, execute=execute, own_attempts=own, train=mix)
    store, serving = Store(), open_runtime(runtime)
    stock = yield from loop.stock_step(config, serving)
    run = yield from loop.collect_step(config, store, serving, stock)
    return {"run": run.id, "folder": str(store.folder(run)), "counts": run.metrics}


def tune(
    hub: HubFile = "demo",
    name: Annotated[str, Field(description="Name of the tuned model.")] = "tuned",
    base: Base = "qwen2.5-coder:0.5b",
    execute: Annotated[bool, Field(description="Really call the servers: for those that stay in their folder.")] = True,
    runtime: Runtime = "embedded",
    data: Annotated[list[str], Field(description="Folders of data sets to learn from too.")] = [],  # noqa: B006
    methods: Annotated[
        Literal["sft", "sft,dpo", "sft,grpo", "sft,dpo,grpo"], Field(description="sft, and what goes on from it.")
    ] = "sft",
    budget: Annotated[str, Field(description='Time it may take, such as "2h"; what does not fit is left out.')] = "",
) -> Generator[Event, None, dict[str, Json]]:
    """One round of the loop: collect, measure, train, export, install, measure again; promote only if the gate agrees.

    Takes from minutes to hours. What serves is replaced only by a model that measured better.

    Example: llm-tuner tune --hub .mcp.json --name mine --no-execute
    """
    from llm_tuner import loop
    from llm_tuner.loop.planning import plan, seconds_of
    from llm_tuner.models.runtimes import open_runtime
    from llm_tuner.store import Store

    sets = tuple(Path(folder) for folder in data)
    asked = {"hub": hub, "name": name, "base": base, "execute": execute, "data": sets, "methods": methods.split(",")}
    config, store, serving = loop.Tune.model_validate(asked), Store(), open_runtime(runtime)
    if budget:
        config, _ = yield from plan(config, seconds_of(budget), store, serving)
    return summary((yield from loop.tune(config, store, serving)))


def summary(outcome: Outcome) -> dict[str, Any]:
    """A round's outcome as a document: numbers first, then where the details are."""
    document: dict[str, Any] = {"before": _numbers(outcome.before), "after": _numbers(outcome.after)}
    if outcome.unseen_before and outcome.unseen_after:
        document["unseen_tools"] = {
            "before": _numbers(outcome.unseen_before),
            "after": _numbers(outcome.unseen_after),
        }
    document["decision"] = {
        "promote": outcome.decision.promote,
        "sentences": list(outcome.decision.sentences),
        "stable": outcome.stable,
    }
    document["stages"] = [
        {"method": one.method, "train": one.train, "promote": one.decision.promote} for one in outcome.stages
    ]
    document["files"] = outcome.files
    document["minutes"] = outcome.minutes
    return document


def _numbers(report: Report) -> dict[str, Any]:
    keys = ("native_rate", "selection", "parameters", "no_call", "selection_lenient", "parameters_lenient")
    rates = {key: report.rates[key].value for key in keys}
    intervals = {key: [report.rates[key].low, report.rates[key].high] for key in keys}
    return {**rates, "latency_p50_ms": report.latency.p50_ms, "n": report.n, "intervals_95": intervals}


OPERATIONS = (
    Operation("budget", budget, ("tools", "budget"), "ツール定義がコンテキストをどれだけ使うかを数えます。"),
    Operation("evaluate", evaluate, ("eval", "suite"), "提供中のモデルを評価セットで測ります。", "changes"),
    Operation("compare", compare, ("eval", "compare"), "二つの測定を課題ごとに比べます。"),
    Operation("collect", collect, ("data", "collect"), "ハブから学習データを集めて検証します。", "changes"),
    Operation("tune", tune, ("tune",), "収集・測定・学習・再測定を行い、良くなったときだけ昇格します。", "changes"),
)
