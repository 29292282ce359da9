"""What a report comes to, in a sentence or two that a person can say to another.

Not a judgement and not a table. The rule it protects: a rate is said with its interval and with how many requests it is
of, and calls that the runtime did not surface are not passed off as calls.
"""

from __future__ import annotations

from collections.abc import Iterator

from llm_tuner.evaluation.wording import WORDS, Language
from llm_tuner.types import Rate, Report

_TOLD = 0.05
"""So much higher a lenient reading has to be to be told, too."""


def summary(report: Report, language: Language = "en") -> str:
    """One or two sentences; empty for a report that is not about calls."""
    words = WORDS[language]
    parts = list(_parts(report, words))
    if not parts:
        return ""
    first = words["summary"].format(model=report.backend, parts=words["summary_and"].join(parts))
    return " ".join(filter(None, (first, _text_calls(report, words), _failed(report, words))))


def _parts(report: Report, words: dict[str, str]) -> Iterator[str]:
    for metric in ("selection", "parameters", "no_call"):
        rate = report.rates.get(metric)
        if rate is not None and rate.n:
            yield words[f"summary_{metric}"].format(n=rate.n, rate=said(rate))
    if report.latency.p50_ms is not None and any(report.rates.get(m) for m in ("selection", "no_call")):
        yield words["summary_latency"].format(ms=f"{report.latency.p50_ms:,.0f}")


def _text_calls(report: Report, words: dict[str, str]) -> str:
    native, lenient = (report.rates.get(metric) for metric in ("selection", "selection_lenient"))
    if not native or not lenient or (lenient.value or 0) - (native.value or 0) < _TOLD:
        return ""
    parameters = report.rates.get("parameters_lenient")
    return words["summary_text"].format(rate=said(lenient), parameters=said(parameters) if parameters else "–")


def _failed(report: Report, words: dict[str, str]) -> str:
    failed = report.reasons.get("backend_error", 0)
    return words["summary_failed"].format(failed=failed, n=report.n) if failed else ""


def said(rate: Rate) -> str:
    """A rate in percent with its 95 % interval."""
    if rate.value is None or rate.low is None or rate.high is None:
        return "–"
    return f"{rate.value * 100:.1f} % ({rate.low * 100:.0f}–{rate.high * 100:.0f})"
