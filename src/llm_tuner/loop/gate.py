"""The gate: two measurements and rules in, a decision with sentences out. It is pure.

The rule it protects: what serves is replaced only by what every rule speaks for, and each rule says in a sentence what
it saw.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import Field

from llm_tuner.evaluation.intervals import paired
from llm_tuner.evaluation.perplexity import compare_texts
from llm_tuner.types import Check, Decision, Report, Value


class Rules(Value):
    """What a candidate must show to be promoted. Rates are 0..1, `slowdown` is median latency over the incumbent's.

    Selection and parameters must rise by `min_gain` or more; where that is 0 or less, no change is enough as long as
    the 95 % interval of the difference lies above -`margin`. `forget` is how much a fixed text may become harder to
    foresee than for the untuned base (bits a byte, as a share).
    """

    min_native: float = Field(0.95, ge=0, le=1)
    min_gain: float = Field(0.0, ge=-1, le=1)
    margin: float = Field(0.1, ge=0, le=1)
    slowdown: float = Field(1.5, gt=0)
    forget: float = Field(0.02, ge=0)


def decide(
    before: Report,
    after: Report,
    rules: Rules,
    others: Mapping[str, tuple[Report, Report]] | None = None,
    general: tuple[Report, Report] | None = None,
) -> Decision:
    """Promote only if every rule holds. Compared are the same tasks, one by one; on the `others` (before and after, by
    suite) no rate may fall beyond chance. `general` is the check of general skill of the untuned base and of the
    candidate: against the base, since what is lost a little in every round is lost."""
    checks = [*_checks(before, after, rules), *(_not_worse(name, *pair) for name, pair in (others or {}).items())]
    if general is not None:
        checks += _general(*general, rules)
    return Decision(promote=all(check.passed for check in checks), checks=tuple(checks))


def _general(stock: Report, after: Report, rules: Rules) -> Iterator[Check]:
    change = paired(stock, after, "ok")
    yield Check(
        rule="general answers",
        passed=change.high >= 0,
        sentence=f"Without tools, {_percent(change.after)} of {change.n} short questions about code are answered "
        f"right, by the untuned base {_percent(change.before)} ({change.difference * 100:+.1f} points, 95 % interval "
        f"{change.low * 100:+.1f} to {change.high * 100:+.1f}).",
    )
    texts = compare_texts(stock.perplexity, after.perplexity) if stock.perplexity and after.perplexity else ()
    if not texts:
        why = (after.perplexity and after.perplexity.why) or "there is no measurement"
        yield Check(rule="general text", passed=True, sentence=f"A fixed text was not compared: {why}.")
        return
    whole = texts[0]
    yield Check(
        rule="general text",
        passed=whole.ratio <= 1 + rules.forget,
        sentence=f"A fixed text of {whole.n} passages takes {whole.after:.3f} bits a byte, with the untuned base "
        f"{whole.before:.3f}: {(whole.ratio - 1) * 100:+.1f} % (allowed {rules.forget * 100:+.1f} %).",
    )


def _not_worse(suite: str, before: Report, after: Report) -> Check:
    changes = {metric: paired(before, after, metric) for metric in ("selection", "parameters")}
    worse = [
        f"{metric} of the suite {suite} fell from {_percent(change.before)} to {_percent(change.after)}"
        for metric, change in changes.items()
        if change.n and change.high < 0
    ]
    old, new = before.rates["no_call"], after.rates["no_call"]
    if new.high is not None and old.low is not None and new.high < old.low:
        worse.append(f"no call where none fits fell from {_percent(old.value)} to {_percent(new.value)} in {suite}")
    said = "; ".join(worse) if worse else f"Nothing of the suite {suite} got worse beyond chance ({after.n} tasks)"
    return Check(rule=f"{suite} not worse", passed=not worse, sentence=f"{said}.")


def _checks(before: Report, after: Report, rules: Rules) -> Iterator[Check]:
    yield _native(after, rules)
    for metric in ("selection", "parameters"):
        change = paired(before, after, metric)
        enough = change.difference >= rules.min_gain and change.low > (0 if rules.min_gain > 0 else -rules.margin)
        yield Check(
            rule=metric,
            passed=enough,
            sentence=f"{metric.capitalize()} went from {_percent(change.before)} to {_percent(change.after)} of "
            f"{change.n} tasks: {change.difference * 100:+.1f} points (95 % interval {change.low * 100:+.1f} to "
            f"{change.high * 100:+.1f}, McNemar p = {change.p:.2g}).",
        )
    yield from _groups_not_worse(before, after)
    yield _latency(before, after, rules)


def _native(after: Report, rules: Rules) -> Check:
    """Of the calls that the candidate wrote where one was wanted, how many an agent gets. Calls that it did not write
    count in selection."""
    reasons = [after.verdicts[task].reason for task in after.wanted if task in after.verdicts]
    written = [reason for reason in reasons if reason not in ("no_call", "backend_error")]
    share = sum(reason != "call_as_text" for reason in written) / len(written) if written else None
    return Check(
        rule="native",
        passed=share is not None and share >= rules.min_native,
        sentence=f"The runtime surfaced {_percent(share)} of the calls in {len(written)} answers to requests that want "
        f"one (at least {_percent(rules.min_native)} are asked for).",
    )


def _groups_not_worse(before: Report, after: Report) -> Iterator[Check]:
    """No category, language or no-call rate may fall beyond chance: the intervals may not lie apart."""
    worse = []
    for dimension in ("category", "language"):
        for value, rates in after.groups.get(dimension, {}).items():
            old = before.groups.get(dimension, {}).get(value, {}).get("ok")
            new = rates["ok"]
            if old and new.high is not None and old.low is not None and new.high < old.low:
                worse.append(f"{dimension} {value} fell from {_percent(old.value)} to {_percent(new.value)}")
    old, new = before.rates["no_call"], after.rates["no_call"]
    if new.high is not None and old.low is not None and new.high < old.low:
        worse.append(
            f"requests that want no call were left alone in {_percent(new.value)}, before {_percent(old.value)}"
        )
    yield Check(
        rule="no part worse",
        passed=not worse,
        sentence="No category or language got worse beyond chance." if not worse else "; ".join(worse) + ".",
    )


def _latency(before: Report, after: Report, rules: Rules) -> Check:
    old, new = before.latency.p50_ms, after.latency.p50_ms
    if not old or not new:
        return Check(rule="latency", passed=True, sentence="Latency was not measured on both sides.")
    return Check(
        rule="latency",
        passed=new <= old * rules.slowdown,
        sentence=f"The median request takes {new:.0f} ms, before {old:.0f} ms (allowed: {rules.slowdown:g} times).",
    )


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value * 100:.1f} %"
