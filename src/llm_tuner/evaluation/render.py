"""Reports for people: one Markdown text, one HTML page. Nothing is measured or decided here.

The page is one file without scripts and without any address to load from, in light or dark as the reader's system
wishes. The rule it protects: everything that a model, a tool or a user wrote is untrusted text and is shown as text.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from llm_tuner.evaluation.details import Details, calls_text, expected
from llm_tuner.evaluation.figures import (
    Curve,
    bars,
    confusion_table,
    differences,
    number,
    plotted,
    points,
    spreads,
    tried,
    weighed,
)
from llm_tuner.evaluation.intervals import Metric, Paired, paired
from llm_tuner.evaluation.summary import summary
from llm_tuner.evaluation.wording import WORDS, Language
from llm_tuner.scoring import answer, made_calls
from llm_tuner.store import write_atomic
from llm_tuner.store.suite import Suite
from llm_tuner.types import Attempt, DataError, Decision, Rate, Report, Search, Value

if TYPE_CHECKING:
    from jinja2 import Template

    from llm_tuner.evaluation.compare import Comparison
    from llm_tuner.evaluation.latency import LatencyReport, Spread

RATES = (
    "ok",
    "ok_lenient",
    "native_rate",
    "selection",
    "parameters",
    "parameters_given_selection",
    "selection_lenient",
    "parameters_lenient",
    "no_call_lenient",
    "no_call",
    "valid_json",
    "schema_valid",
)
GROUP_RATES = ("ok", "selection", "parameters", "parameters_lenient", "no_call")
COMPARED: tuple[Metric, ...] = ("ok", "selection", "parameters")
LATENCIES = ("p50_ms", "p95_ms", "p99_ms", "first_token_p50_ms", "tokens_per_s")

TIMED: tuple[Literal["first_token", "total"], ...] = ("first_token", "total")

TOKENS = ("prompt_p50", "completion_p50", "prompt", "cached", "completion")

_LONGEST = 400
_SUMMARY = 120
_FLIPS = 300  # of each direction on a page


class Failure(Value):
    """One failed task as a reader wants to see it: four pieces of untrusted text and the reason."""

    request: str
    expected: str
    got: str
    reason: str
    detail: str


def failures(suite: Suite, attempts: Iterable[Attempt], limit: int = 12) -> tuple[Failure, ...]:
    """Failed attempts (by their own verdict), as many different reasons as possible before a second of the same."""
    tasks = {task.id: task for task in suite.tasks}
    by_reason: dict[str, list[Failure]] = {}
    for attempt in attempts:
        task, verdict = tasks.get(attempt.task_id), attempt.verdict
        if task is None or verdict is None or verdict.ok or len(by_reason.get(verdict.reason, ())) == limit:
            continue
        failure = Failure(
            request=_short(task.request),
            expected=_short(expected(task)),
            got=_short(_got(attempt)),
            reason=verdict.reason,
            detail=_short(verdict.detail),
        )
        by_reason.setdefault(verdict.reason, []).append(failure)
    rounds = zip_longest(*by_reason.values())
    return tuple(failure for row in rounds for failure in row if failure is not None)[:limit]


def to_markdown(
    before: Report | None,
    after: Report,
    decision: Decision | None = None,
    *,
    curve: Curve = (),
    failures: Sequence[Failure] = (),
    language: Language = "en",
) -> str:
    """The report as GitHub-flavoured Markdown. `before` None: one model alone. `curve`: (step, training loss)."""
    return _render("report.md", before, after, decision, curve, failures, None, language)


def to_html(
    before: Report | None,
    after: Report,
    decision: Decision | None = None,
    *,
    curve: Curve = (),
    failures: Sequence[Failure] = (),
    details: Details | None = None,
    language: Language = "en",
) -> str:
    """The report as one self-contained page: same content, with charts and, given `details`, the attempts."""
    return _render("report.html", before, after, decision, curve, failures, details, language)


def write(
    folder: Path,
    report: Report,
    failed: Sequence[Failure] = (),
    language: Language = "en",
    details: Details | None = None,
) -> tuple[Path, ...]:
    """Write report.json, report.md and report.html of one measurement into the folder; return their paths."""
    texts = {
        "report.json": report.model_dump_json(indent=1) + "\n",
        "report.md": to_markdown(None, report, failures=failed, language=language),
        "report.html": to_html(None, report, failures=failed, details=details, language=language),
    }
    return _written(folder, texts)


def comparison_to_markdown(comparison: Comparison, language: Language = "en") -> str:
    """A comparison as GitHub-flavoured Markdown: the flipped tasks with their requests and verdicts."""
    return _template("compare.md").render(_comparison_page(comparison, language))


def comparison_to_html(comparison: Comparison, language: Language = "en") -> str:
    """A comparison as one self-contained page: every flipped task opens to what both sides answered."""
    return _template("compare.html").render(_comparison_page(comparison, language))


def write_comparison(folder: Path, comparison: Comparison, language: Language = "en") -> tuple[Path, ...]:
    """Write compare.json, compare.md and compare.html into the folder; return their paths."""
    texts = {
        "compare.json": comparison.model_dump_json(indent=1) + "\n",
        "compare.md": comparison_to_markdown(comparison, language),
        "compare.html": comparison_to_html(comparison, language),
    }
    return _written(folder, texts)


def latency_to_markdown(report: LatencyReport, language: Language = "en") -> str:
    """What was timed, of what and on what, as GitHub-flavoured Markdown."""
    return _template("latency.md").render(_latency_page(report, language))


def latency_to_html(report: LatencyReport, language: Language = "en") -> str:
    """The same as one self-contained page, with the percentiles drawn."""
    return _template("latency.html").render(_latency_page(report, language))


def write_latency(folder: Path, report: LatencyReport, language: Language = "en") -> tuple[Path, ...]:
    """Write latency.json, latency.md and latency.html into the folder; return their paths."""
    texts = {
        "latency.json": report.model_dump_json(indent=1) + "\n",
        "latency.md": latency_to_markdown(report, language),
        "latency.html": latency_to_html(report, language),
    }
    return _written(folder, texts)


def search_to_markdown(search: Search, language: Language = "en") -> str:
    """The trials of a search and what its settings matter, as GitHub-flavoured Markdown."""
    return _template("search.md").render(_search_page(search, language))


def search_to_html(search: Search, language: Language = "en") -> str:
    """The same as one self-contained page, with the trials and the importances drawn."""
    return _template("search.html").render(_search_page(search, language))


def write_search(folder: Path, search: Search) -> tuple[Path, ...]:
    """Write search.json, and search.md and search.html in both languages, into the folder; return their paths."""
    texts = {"search.json": search.model_dump_json(indent=1) + "\n"}
    languages: tuple[tuple[Language, str], ...] = (("en", "search"), ("ja", "search.ja"))
    for language, name in languages:
        texts[f"{name}.md"] = search_to_markdown(search, language)
        texts[f"{name}.html"] = search_to_html(search, language)
    return _written(folder, texts)


def _written(folder: Path, texts: dict[str, str]) -> tuple[Path, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_atomic(folder / name, text)
    return tuple(folder / name for name in texts)


# ---------------------------------------------------------------------------------------------------- what is shown


class _Row(NamedTuple):
    label: str
    before: Rate | None
    after: Rate | None


def _render(
    name: Literal["report.md", "report.html"],
    before: Report | None,
    after: Report,
    decision: Decision | None,
    curve: Curve,
    failed: Sequence[Failure],
    details: Details | None,
    language: Language,
) -> str:
    words = WORDS[language]
    page: dict[str, Any] = {
        "t": words,
        "language": language,
        "page_title": f"{words['title']}: {after.backend}",
        "before": before,
        "after": after,
        "decision": decision,
        "summary": summary(after, language) if before is None else "",
        "rates": [row for metric in RATES if (row := _row(words[metric], before, after, metric))],
        "changes": [(words[change.metric], change) for change in _changes(before, after)],
        "group_rates": [words[metric] for metric in _group_rates(before, after)],
        "groups": [(words.get(name, name), _group(before, after, name)) for name in after.groups],
        "reasons": _reasons(before, after),
        "latency": [
            (words[name], getattr(before.latency, name) if before else None, getattr(after.latency, name))
            for name in LATENCIES
        ],
        "plot": bars(details.histogram, after) if details and details.histogram else None,
        "tokens": [
            (words[name], getattr(before.tokens, name) if before else None, getattr(after.tokens, name))
            for name in TOKENS
            if after.tokens.n
        ],
        "confused": confusion_table(after.confusion, words),
        "curve": plotted(curve) if len(curve) > 1 else None,
        "failures": failed,
        "details": details if details and details.sections else None,
    }
    return _template(name).render(page)


def _row(label: str, before: Report | None, after: Report, metric: str) -> _Row | None:
    old = before.rates.get(metric) if before is not None else None
    new = after.rates.get(metric)
    return _Row(label, old, new) if any(rate and rate.n for rate in (old, new)) else None


def _changes(before: Report | None, after: Report) -> list[Paired]:
    if before is None:
        return []
    try:
        return [paired(before, after, metric) for metric in COMPARED]
    except DataError:
        return []  # reports without a common task can be shown side by side, but not compared


def _group_rates(before: Report | None, after: Report) -> list[str]:
    """Those that speak of any task of the suite."""
    return [metric for metric in GROUP_RATES if _row("", before, after, metric)]


def _group(before: Report | None, after: Report, dimension: str) -> list[tuple[str, int, list[_Row]]]:
    old = before.groups.get(dimension, {}) if before is not None else {}
    return [
        (
            value,
            rates["ok"].n,
            [_Row("", old.get(value, {}).get(metric), rates.get(metric)) for metric in _group_rates(before, after)],
        )
        for value, rates in after.groups[dimension].items()
    ]


def _reasons(before: Report | None, after: Report) -> list[tuple[str, int | None, int]]:
    old = before.reasons if before is not None else {}
    names = dict.fromkeys((*after.reasons, *old))
    return [(name, old.get(name, 0) if before is not None else None, after.reasons.get(name, 0)) for name in names]


def _comparison_page(comparison: Comparison, language: Language) -> dict[str, Any]:
    words = WORDS[language]
    lost = [flip for flip in comparison.flips if not flip.gained]
    gained = [flip for flip in comparison.flips if flip.gained]
    return {
        "t": words,
        "language": language,
        "page_title": f"{words['compare_title']}: {comparison.before.backend}, {comparison.after.backend}",
        "c": comparison,
        "picture": differences(comparison.changes, words),
        "lost": lost[:_FLIPS],
        "lost_left_out": len(lost[_FLIPS:]),
        "gained": gained[:_FLIPS],
        "gained_left_out": len(gained[_FLIPS:]),
    }


def _latency_page(report: LatencyReport, language: Language) -> dict[str, Any]:
    words = WORDS[language]
    weights = f"{report.parameters / 1e9:.2f}B" if report.parameters else words["size_not_known"]
    pictures = [(words[of], spreads(report.loads, of)) for of in TIMED]
    return {
        "t": words,
        "language": language,
        "page_title": f"{words['latency_title']}: {report.backend}",
        "r": report,
        "served": ", ".join(filter(None, (weights, report.quantisation))),
        "pictures": [(label, picture) for label, picture in pictures if picture is not None],
    }


def _search_page(search: Search, language: Language) -> dict[str, Any]:
    words = WORDS[language]
    names = dict.fromkeys(name for trial in search.trials for name in trial.settings)
    return {
        "t": words,
        "language": language,
        "page_title": words["search_title"],
        "s": search,
        "best": next((trial for trial in search.trials if trial.number == search.best), None),
        "names": list(names),
        "picture": tried(search),
        "weighed": weighed(search.importance),
    }


def _got(attempt: Attempt) -> str:
    message = answer(attempt)
    calls = made_calls(attempt, "lenient")
    if attempt.error or message is None:
        return attempt.error
    return calls_text(calls) if calls else message.text


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


# ------------------------------------------------------------------------------------------------------------ writing


@cache
def _template(name: str) -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("llm_tuner.evaluation", "templates"),
        autoescape=name.endswith(".html"),
        finalize=None if name.endswith(".html") else _inert,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, interval=_interval, points=points, number=number, p=_p)
    environment.filters.update(short=_summary, share=_share, pairs=_pairs, spread=_spread)
    return environment.get_template(name)


def _inert(value: object) -> object:
    """Text that Markdown shows as text: no HTML, no emphasis, no named link or image, no table cell of its own."""
    if not isinstance(value, str):
        return value
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", html.escape(" ".join(value.split()), quote=False))


def _percent(rate: Rate | None) -> str:
    return "–" if rate is None or rate.value is None else f"{rate.value * 100:.1f} %"


def _interval(rate: Rate | None) -> str:
    if rate is None or rate.low is None or rate.high is None:
        return ""
    return f"{rate.low * 100:.0f}–{rate.high * 100:.0f} %, {rate.k}/{rate.n}"


def _share(value: float) -> str:
    return f"{value * 100:.1f} %"


def _spread(found: Spread) -> str:
    return " / ".join(number(value) for value in (found.p50, found.p95, found.p99))


def _pairs(words: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in words.items())


def _summary(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SUMMARY else line[: _SUMMARY - 1] + "…"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"
