"""Where things stand: tool servers, what their tools take, models, what was measured against which target, what next.

The first thing that a person, a page and an agent ask. The rule it protects: it is quick, it changes nothing, and a
part that cannot be had (no Ollama, a server that hangs, a broken report) is named and does not hide the rest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from llm_tuner.operations import Operation
from llm_tuner.operations.hubs import Listed, hub_file, listed
from llm_tuner.types import Json, Report, ToolSpec, TunerError, Value, content_hash

if TYPE_CHECKING:
    from llm_tuner.models.signatures import Rendering
    from llm_tuner.models.window import Budget
    from llm_tuner.store import Store
    from llm_tuner.types import Run

TARGETS = {"selection": 0.90, "parameters": 0.85, "native_rate": 0.99, "no_call": 0.90}
"""What a served model should reach on your own catalogue, as shares."""

NAMES = {
    "selection": ("tool selection", "ツール選択"),
    "parameters": ("parameters", "引数"),
    "native_rate": ("native format", "ネイティブ形式"),
    "no_call": ("no call where none fits", "不要時に呼ばない"),
    "latency_p50": ("latency p50", "レイテンシ p50"),
    "tokens_per_s": ("generation", "生成速度"),
}
"""How the metrics are called, in English and Japanese."""

WINDOWS = (200_000, 32_768, 8_192)

MODEL = "qwen2.5-coder:0.5b"
"""Whose tokens are counted, where it is fetched; else those of any fetched model."""


class Action(Value):
    """What to do next, and why; `command` may be pasted into a terminal."""

    en: str
    ja: str
    command: str = ""


class Metric(Value):
    """One number against its target; `met` is None where nothing was measured. `unit` is "share" or "ms"; `low` and
    `high` are its 95 % interval; `since` is when it was measured."""

    name: str
    target: float | None
    unit: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    met: bool | None = None
    since: str = ""
    run: str = ""


def status(
    hub: Annotated[str, Field(description='An mcpServers JSON file, or "demo". Default: LLM_TUNER_HUB.')] = "",
    wait: Annotated[float, Field(gt=0, description="Seconds that a tool server has to answer.")] = 10,
    fresh: Annotated[bool, Field(description="Ask the tool servers now, also if they answered minutes ago.")] = False,
    host: Annotated[str, Field(description="Ollama server; OLLAMA_HOST when empty.")] = "",
) -> dict[str, Json]:
    """Where things stand: tool servers, tools, token budget, use of each context window, models, metrics against their
    targets, and what to do next.

    Tool servers are asked all at once; what they answered in the last five minutes is shown again without asking.

    Example: llm-tuner status --hub .mcp.json --json
    """
    from llm_tuner.store import Store

    file = hub_file(hub)
    store = Store()
    with ThreadPoolExecutor(3) as pool:
        asked = pool.submit(_servers, file, wait, fresh)
        ollama = pool.submit(_ollama, host)
        advised = pool.submit(_composition)
        runs = store.runs()
        models = _models()
        metrics = _metrics(store, runs)
        servers, trouble = asked.result()
        models["ollama"] = ollama.result()
        composition = advised.result()
    specs = tuple(spec for server in servers for spec in server.tools)
    counted, tokens = _budget(specs)
    document: dict[str, Any] = {
        "hub": file,
        "trouble": trouble,
        "servers_connected": sum(server.state == "connected" for server in servers),
        "servers": [_server(server, tokens) for server in servers],
        "tools_total": len(specs),
        "catalogue_tokens": dict(tokens.whole) if tokens else {},
        "counted": counted,
        "windows": _windows(tokens),
        "models": models,
        "composition": composition,
        "metrics": [metric.model_dump(mode="json") for metric in metrics],
        "runs": [{"id": run.id, "kind": run.kind, "seconds": run.seconds} for run in runs[:10]],
        "runs_bytes": _size(store.root),
        "runs_folder": str(store.root),
    }
    document["next_actions"] = [action.model_dump(mode="json") for action in _next(document)]
    return document


# ------------------------------------------------------------------------------------------------------- tools, tokens


def _servers(hub: str, wait: float, fresh: bool) -> tuple[tuple[Listed, ...], str]:
    if not hub:
        return (), ""
    try:
        return listed(hub, wait=wait, fresh=fresh), ""
    except TunerError as error:
        return (), str(error)


def _server(server: Listed, tokens: Budget | None) -> dict[str, Json]:
    return {
        "name": server.name,
        "address": server.address,
        "state": server.state,
        "tools": len(server.tools),
        "tokens": tokens.servers.get(server.name, {}).get("full") if tokens else None,
        "ms": round(server.seconds * 1000),
        "asked": server.asked,
        "why": server.why,
    }


def _budget(specs: Sequence[ToolSpec]) -> tuple[str, Budget | None]:
    """With whose tokens it was counted ("guessed" where no model is fetched), and the budget. Counted once for a
    catalogue and a model, then remembered."""
    from llm_tuner.models.sources import installed
    from llm_tuner.models.window import Budget

    if not specs:
        return "", None
    fetched = {model.name: model for model in installed()}
    model = fetched.get(MODEL) or next(iter(fetched.values()), None)
    if model is None:
        return "guessed", _guessed(specs)
    from platformdirs import user_cache_path

    key = content_hash([[spec.server, spec.fingerprint] for spec in specs] + [model.sha256, list(WINDOWS)])
    file = user_cache_path("llm-tuner", False) / "budgets" / f"{key}.json"
    with suppress(OSError, ValueError):
        return model.name, Budget.model_validate_json(file.read_bytes())
    try:
        found = _counted(specs, model.path)
    except TunerError:
        return "guessed", _guessed(specs)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        part.write_text(found.model_dump_json(), encoding="utf-8")
        os.replace(part, file)
    return model.name, found


def _counted(specs: Sequence[ToolSpec], gguf: Path) -> Budget:
    from llm_tuner.models.kv_cache import read_kv_cache
    from llm_tuner.models.llamacpp import Embedded
    from llm_tuner.models.window import Meter, budget

    with Embedded(gguf, context=512) as renderer:
        return budget(specs, Meter(renderer), WINDOWS, read_kv_cache(gguf))


def _guessed(specs: Sequence[ToolSpec]) -> Budget:
    from llm_tuner.models.signatures import RENDERINGS
    from llm_tuner.models.window import Budget, guessed, uses

    whole: dict[Rendering, int] = {form: guessed(specs, form) for form in RENDERINGS}
    servers: dict[str, dict[Rendering, int]] = {}
    for name in dict.fromkeys(spec.server for spec in specs):
        own = [spec for spec in specs if spec.server == name]
        servers[name] = {form: guessed(own, form) for form in RENDERINGS}
    return Budget(tools=(), servers=servers, around={}, whole=whole, windows=uses(whole, WINDOWS))


def _windows(tokens: Budget | None) -> list[dict[str, Json]]:
    if tokens is None:
        return []
    return [
        use.model_dump(mode="json") | {"kv_bytes": tokens.kv_bytes.get(use.window), "trained": tokens.trained}
        for use in tokens.windows
    ]


# ------------------------------------------------------------------------------------------------------------- models


def _models() -> dict[str, Any]:
    from llm_tuner.models.sources import installed
    from llm_tuner.models.versions import Versions

    versions, tuned = Versions(), {}
    for name in versions.names():
        with suppress(TunerError):
            tuned[name] = versions.aliases(name)
    return {"fetched": [model.name for model in installed()], "tuned": tuned}


def _ollama(host: str) -> dict[str, Json]:
    from llm_tuner.models.ollama import OllamaServer
    from llm_tuner.types import ModelError

    try:
        server = OllamaServer(host or None, timeout=2)
        version = server.version()
        names: list[Json] = [str(model["name"]) for model in server.models()]
        return {"url": server.url, "version": version, "models": names, "why": ""}
    except ModelError as error:
        return {"url": "", "version": None, "models": [], "why": str(error)}


def _composition() -> dict[str, Json]:
    """Which models this machine should serve as what."""
    from llm_tuner.models.advice import advise, this_machine

    return dict(advise(this_machine()).model_dump(mode="json"))


# ------------------------------------------------------------------------------------------------------------ metrics


def _metrics(store: Store, runs: Sequence[Run]) -> list[Metric]:
    """The newest measurement of a served model on a held-out suite, against the targets."""
    for run in runs:
        if run.kind == "evaluate" and "held-out" in run.outputs:
            with suppress(OSError, ValueError):
                text = (store.folder(run) / run.outputs["held-out"]).read_text(encoding="utf-8")
                return list(_of_report(Report.model_validate_json(text), run))
    return [Metric(name=name, target=target, unit="share") for name, target in TARGETS.items()] + [
        Metric(name="latency_p50", target=None, unit="ms")
    ]


def _of_report(report: Report, run: Run) -> Iterator[Metric]:
    since = run.finished
    for name, target in TARGETS.items():
        rate = report.rates.get(name)
        if rate is None:
            continue
        yield Metric(
            name=name, target=target, unit="share", value=rate.value, low=rate.low, high=rate.high, n=rate.n,
            met=None if rate.value is None else rate.value >= target, since=since, run=run.id,
        )  # fmt: skip
    took, target_ms = report.latency.p50_ms, _latency_target(report)
    yield Metric(
        name="latency_p50", target=target_ms, unit="ms", value=took, n=report.latency.n,
        met=None if took is None or target_ms is None else took <= target_ms, since=since, run=run.id,
    )  # fmt: skip
    if report.latency.tokens_per_s:
        yield Metric(
            name="tokens_per_s", target=None, unit="tokens/s", value=report.latency.tokens_per_s,
            n=report.latency.n, since=since, run=run.id,
        )  # fmt: skip


def _latency_target(report: Report) -> float | None:
    """Only a GPU has one, and only for a model whose size is known."""
    from llm_tuner.evaluation.latency import TARGETS_MS
    from llm_tuner.models.catalogue import KNOWN

    if report.machine.get("gpu", "none") == "none":
        return None
    weights = next((model.parameters for model in KNOWN if model.sha256 and model.sha256 == report.model_sha256), 0)
    return next((ms for size, ms in sorted(TARGETS_MS.items()) if weights and weights <= size * 1.25), None)


def _size(root: Path) -> int:
    total = 0
    for folder, _, files in os.walk(root):
        for name in files:
            with suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


# --------------------------------------------------------------------------------------------------------- what next


def _next(found: dict[str, Any]) -> Iterator[Action]:
    """From what is missing, the most basic first."""
    for rule in _RULES:
        yield from rule(found)


def _no_hub(found: dict[str, Any]) -> Iterator[Action]:
    if found["trouble"]:
        yield Action(en=f"The hub cannot be read: {found['trouble']}", ja=f"ハブを読めません: {found['trouble']}")
    elif not found["hub"]:
        yield Action(
            en="Say which tool servers are yours: --hub FILE, or LLM_TUNER_HUB.",
            ja="ツールサーバーを指定してください(--hub FILE または LLM_TUNER_HUB)。",
            command="llm-tuner tools list --discover",
        )


def _broken_servers(found: dict[str, Any]) -> Iterator[Action]:
    for server in found["servers"]:
        if server["state"] == "failed":
            why = server["why"].partition("\n")[0]
            yield Action(
                en=f'The server "{server["name"]}" does not answer: {why}',
                ja=f"サーバー「{server['name']}」が応答しません: {why}",
                command=f"llm-tuner tools list --hub {found['hub']}",
            )
    if slow := [server["name"] for server in found["servers"] if server["state"] == "slow"]:
        names = ", ".join(slow)
        yield Action(
            en=f"Too slow to answer: {names}. Give them more time.",
            ja=f"時間内に応答しなかったサーバー: {names}。待ち時間を延ばしてください。",
            command=f"llm-tuner status --hub {found['hub']} --fresh --wait 60",
        )


def _no_model(found: dict[str, Any]) -> Iterator[Action]:
    if not found["models"]["fetched"] and not found["models"]["ollama"]["models"]:
        yield Action(
            en="No model is here yet. Fetch one.",
            ja="モデルがまだありません。取得してください。",
            command=f"llm-tuner models pull {MODEL}",
        )


def _no_room(found: dict[str, Any]) -> Iterator[Action]:
    full = {use["window"]: use["verdict"] for use in found["windows"] if use["rendering"] == "full"}
    if full.get(8192, "fits") != "fits":
        tokens = found["catalogue_tokens"]["full"]
        yield Action(
            en=f"All {found['tools_total']} tools take {tokens:,} tokens and leave too little of a window of 8K: let "
            "the gateway choose and shorten them.",
            ja=f"全 {found['tools_total']} ツールで {tokens:,} トークンになり、8K のウィンドウでは余裕がありません。"
            "ゲートウェイに選択と短縮を任せてください。",
            command="llm-tuner serve gateway --show fit",
        )


def _unmeasured(found: dict[str, Any]) -> Iterator[Action]:
    hub = found["hub"] or "demo"
    if all(metric["value"] is None for metric in found["metrics"]):
        yield Action(
            en="Nothing is measured yet. See the whole loop once on the demo: it measures, trains and measures again.",
            ja="まだ何も測定していません。デモで一巡(測定・学習・再測定)を見てください。",
            command="llm-tuner demo",
        )
        if hub != "demo":
            yield Action(
                en="Then run a round on your own servers.",
                ja="次に、自分のサーバーで一巡を実行してください。",
                command=f"llm-tuner tune --hub {hub} --no-execute",
            )
        return
    below = [NAMES[metric["name"]] for metric in found["metrics"] if metric["met"] is False]
    if below:
        english, japanese = (", ".join(names) for names in zip(*below, strict=True))
        yield Action(
            en=f"Below target: {english}. Tune with more tasks, or go on with the model's own mistakes (train dpo).",
            ja=f"目標未達: {japanese}。課題を増やして学習するか、モデル自身の誤りで続けて (dpo) ください。",
            command=f"llm-tuner tune --hub {hub}",
        )


def _candidates(found: dict[str, Any]) -> Iterator[Action]:
    for name, aliases in found["models"]["tuned"].items():
        if "candidate" in aliases:
            yield Action(
                en=f"{name}:{aliases['candidate']} waits as a candidate: compare it, then promote it or leave it.",
                ja=f"{name}:{aliases['candidate']} が候補として待っています。比較して、昇格するか決めてください。",
                command=f"llm-tuner models history {name}",
            )


def _ready(found: dict[str, Any]) -> Iterator[Action]:
    measured = [metric for metric in found["metrics"] if metric["met"] is not None]
    stable = next((name for name, aliases in found["models"]["tuned"].items() if "stable" in aliases), "")
    if stable and measured and all(metric["met"] for metric in measured):
        yield Action(
            en="Every measured target is reached: point your agent at the gateway.",
            ja="測定した目標はすべて達成しています。エージェントをゲートウェイに接続してください。",
            command=f"llm-tuner serve gateway --model {stable}:stable",
        )


_RULES: tuple[Callable[[dict[str, Any]], Iterator[Action]], ...] = (
    _no_hub, _broken_servers, _no_model, _no_room, _unmeasured, _candidates, _ready,
)  # fmt: skip

OPERATIONS = (
    Operation(
        "status", status, ("status",), "ツールサーバー、トークン予算、モデル、目標に対する測定値、次の一手を示します。"
    ),
)
