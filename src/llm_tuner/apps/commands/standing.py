"""`llm-tuner status` as text: the mission's page, in English or, where the terminal's locale says so, in Japanese."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from llm_tuner.apps.console import table
from llm_tuner.apps.face import command
from llm_tuner.operations.standing import NAMES, OPERATIONS

EN = {
    "servers": "MCP servers", "connected": "connected", "slow": "slow", "failed": "failed", "tools": "tools",
    "server": "server", "state": "state", "tokens": "tokens", "answered": "answered in", "none": "none",
    "no_hub": "MCP servers: no hub is named", "budget": "Token budget", "counted": "counted with {}",
    "guessed": "guessed, no model is fetched", "window": "window", "cache": "KV cache", "models": "Models",
    "fetched": "fetched", "tuned": "tuned", "ollama": "Ollama", "absent": "does not answer",
    "composition": "Recommended composition", "metrics": "Metrics", "metric": "metric", "target": "target",
    "now": "now",
    "interval": "95 % interval", "since": "measured", "met": "reached", "below": "below", "unmeasured": "not measured",
    "runs": "Runs use {:.1f} GB in {}", "next": "Next actions", "nothing": "Nothing is left to do.",
    "fits": "fits", "tight": "tight", "does not fit": "does not fit", "full": "full", "compressed": "compressed",
    "compact": "compact", "trained": "* longer than the {:,} tokens that the model was trained on",
}  # fmt: skip
JA = {
    "servers": "MCPサーバー", "connected": "接続", "slow": "遅い", "failed": "失敗", "tools": "ツール",
    "server": "サーバー", "state": "状態", "tokens": "トークン", "answered": "応答時間", "none": "なし",
    "no_hub": "MCPサーバー: ハブが指定されていません", "budget": "トークン予算", "counted": "{} で計数",
    "guessed": "推定値(モデル未取得)", "window": "ウィンドウ", "cache": "KVキャッシュ", "models": "モデル",
    "fetched": "取得済み", "tuned": "学習済み", "ollama": "Ollama", "absent": "応答なし",
    "composition": "推奨構成", "metrics": "測定値", "metric": "指標", "target": "目標", "now": "現在",
    "interval": "95 % 区間", "since": "測定日時", "met": "達成", "below": "未達", "unmeasured": "未測定",
    "runs": "実行記録は {1} に {0:.1f} GB", "next": "次の一手", "nothing": "することはありません。",
    "fits": "収まる", "tight": "余裕なし", "does not fit": "収まらない", "full": "全文", "compressed": "圧縮",
    "compact": "簡潔", "trained": "* モデルの学習長 {:,} トークンを超えます",
}  # fmt: skip


def language() -> str:
    """ "ja" where the terminal's locale is Japanese, else "en"."""
    given = next(filter(None, (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))), "")
    return "ja" if given.startswith("ja") else "en"


def text(found: dict[str, Any]) -> str:
    """The page."""
    spoken = language()
    words = JA if spoken == "ja" else EN
    parts = [
        *_servers(found, words), *_budget(found, words), *_models(found, words), *_composition(found, words),
        *_metrics(found, words, spoken), words["runs"].format(found["runs_bytes"] / 1e9, found["runs_folder"]),
    ]  # fmt: skip
    parts.append(_next(found["next_actions"], words, spoken))
    return "\n\n".join(parts)


def _servers(found: dict[str, Any], words: dict[str, str]) -> Sequence[str]:
    if not found["servers"]:
        return [words["no_hub"]]
    count = f"{found['servers_connected']} / {len(found['servers'])} {words['connected']}"
    rows = [
        [one["name"], words[one["state"]], str(one["tools"]), _number(one["tokens"]), f"{one['ms'] / 1000:.1f} s"]
        for one in found["servers"]
    ]
    head = [words[key] for key in ("server", "state", "tools", "tokens", "answered")]
    return [f"{words['servers']}: {count}, {found['tools_total']} {words['tools']}", table(rows, head)]


def _budget(found: dict[str, Any], words: dict[str, str]) -> Sequence[str]:
    if not found["windows"]:
        return []
    by = words["guessed"] if found["counted"] == "guessed" else words["counted"].format(found["counted"])
    forms = list(found["catalogue_tokens"])
    whole = ", ".join(f"{words[form]} {found['catalogue_tokens'][form]:,}" for form in forms)
    uses = {(use["window"], use["rendering"]): use for use in found["windows"]}
    rows, long = [], 0
    for window in dict.fromkeys(use["window"] for use in found["windows"]):
        first = uses[window, forms[0]]
        beyond = 0 < first["trained"] < window
        long = first["trained"] if beyond else long
        cells = [f"{uses[window, form]['share']:.0%} {words[uses[window, form]['verdict']]}" for form in forms]
        rows.append([f"{window:,}{' *' if beyond else ''}", *cells, _memory(first["kv_bytes"])])
    shown = [f"{words['budget']} ({by}): {whole}"]
    shown.append(table(rows, [words["window"], *(words[form] for form in forms), words["cache"]]))
    return [*shown, *([words["trained"].format(long)] if long else [])]


def _models(found: dict[str, Any], words: dict[str, str]) -> Sequence[str]:
    models = found["models"]
    tuned = [
        f"{name} ({', '.join(f'{a} = {v}' for a, v in sorted(of.items()))})" for name, of in models["tuned"].items()
    ]
    ollama = models["ollama"]
    served = ", ".join(ollama["models"]) or words["none"]
    rows = [
        [words["fetched"], ", ".join(models["fetched"]) or words["none"]],
        [words["tuned"], ", ".join(tuned) or words["none"]],
        [words["ollama"], f"{ollama['version']}: {served}" if ollama["version"] else words["absent"]],
    ]
    return [table(rows, [words["models"], ""])]


def _composition(found: dict[str, Any], words: dict[str, str]) -> Sequence[str]:
    composition = found["composition"]
    lines = composition["sentences_ja" if words is JA else "sentences"]
    return [f"{words['composition']}:\n" + "\n".join(f"  {line}" for line in lines)] if lines else []


def _metrics(found: dict[str, Any], words: dict[str, str], spoken: str) -> Sequence[str]:
    rows = []
    for one in found["metrics"]:
        state = {
            True: words["met"],
            False: words["below"],
            None: "" if one["value"] is not None else words["unmeasured"],
        }
        interval = f"{one['low'] * 100:.1f}-{one['high'] * 100:.1f}" if one["low"] is not None else ""
        rows.append(
            [
                NAMES[one["name"]][spoken == "ja"],
                _value(one["target"], one["unit"]), _value(one["value"], one["unit"]), interval,
                one["since"][:16].replace("T", " "), state[one["met"]],
            ]
        )  # fmt: skip
    head = [words[key] for key in ("metric", "target", "now", "interval", "since")]
    return [f"{words['metrics']}:", table(rows, [*head, ""])]


def _next(actions: list[dict[str, str]], words: dict[str, str], spoken: str) -> str:
    if not actions:
        return words["nothing"]
    lines = [f"{words['next']}:"]
    for number, action in enumerate(actions, start=1):
        lines.append(f"{number}. {action[spoken]}")
        lines += [f"   {action['command']}"] if action["command"] else []
    return "\n".join(lines)


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _memory(size: int | None) -> str:
    return "" if size is None else f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _value(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{value * 100:.1f} %" if unit == "share" else f"{value:,.0f} {unit}"


status = command(OPERATIONS[0], text)
status.__doc__ = OPERATIONS[0].help
