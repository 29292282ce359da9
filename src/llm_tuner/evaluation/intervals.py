"""How sure a rate is, and whether two rates of the same tasks differ. Pure arithmetic.

Not a statistics library: the two questions that a report asks. The rule it protects: no rate without its interval, and
no before/after without the tasks being the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Literal, get_args

from llm_tuner.types import DataError, Rate, Reason, Report, Value

Metric = Literal[
    "ok",
    "native_rate",
    "selection",
    "parameters",
    "no_call",
    "ok_lenient",
    "selection_lenient",
    "parameters_lenient",
    "no_call_lenient",
]
METRICS: tuple[Metric, ...] = get_args(Metric)

_NOT_SURFACED: tuple[Reason, ...] = ("no_call", "call_as_text", "backend_error")

Z95 = 1.959963984540054
"""The 97.5 % point of the standard normal distribution."""


class Paired(Value):
    """Two reports on their `n` common tasks: `gained` went from wrong to right, `lost` from right to wrong.

    `difference` is after minus before (-1..1) with its 95 % interval; `p` is the exact McNemar p of no difference.
    """

    metric: Metric
    n: int
    both: int
    gained: int
    lost: int
    neither: int
    before: float
    after: float
    difference: float
    low: float
    high: float
    p: float


def rate(k: int, n: int) -> Rate:
    """`k` of `n` with the Wilson score interval at 95 % (Wilson 1927, JASA 22:209-212); all None where n = 0."""
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is not a rate")
    if n == 0:
        return Rate(k=0, n=0, value=None, low=None, high=None)
    low, high = _wilson(k, n)
    return Rate(k=k, n=n, value=k / n, low=low, high=high)


def paired(before: Report, after: Report, metric: Metric = "ok", tasks: Collection[str] | None = None) -> Paired:
    """Compare two reports task by task on the ids that both have (and that `tasks` names, where given).

    `ok` is compared over all tasks, `no_call` over those that want no call (both also as `_lenient`), everything else
    over those that want one (`Report.wanted`; over all in a report that names none). The p value is McNemar's exact
    test (McNemar 1947,
    Psychometrika 12:153-157): two-sided binomial over the tasks that changed. The interval is Newcombe's for paired
    proportions, method 10 (Newcombe 1998, Statistics in Medicine 17:2635-2650). Raises DataError where the reports
    share no task.
    """
    ids = common(before, after, metric)
    if tasks is not None:
        ids &= set(tasks)
    if not ids:
        found = f"{len(before.verdicts)} and {len(after.verdicts)} verdicts, none of the same task"
        raise DataError(f"Cannot compare {before.backend} with {after.backend}: found {found}. Measure the same suite.")
    outcomes = [(right(before, i, metric), right(after, i, metric)) for i in ids]
    both, lost = outcomes.count((True, True)), outcomes.count((True, False))
    gained, neither = outcomes.count((False, True)), outcomes.count((False, False))
    n = len(outcomes)
    low, high = newcombe(both, gained, lost, neither)
    return Paired(
        metric=metric,
        n=n,
        both=both,
        gained=gained,
        lost=lost,
        neither=neither,
        before=(both + lost) / n,
        after=(both + gained) / n,
        difference=(gained - lost) / n,
        low=low,
        high=high,
        p=mcnemar(gained, lost),
    )


def common(before: Report, after: Report, metric: Metric = "ok") -> set[str]:
    """The ids of the tasks that both reports have and that the metric speaks of."""
    ids, wanted = before.verdicts.keys() & after.verdicts.keys(), set(after.wanted)
    if metric.startswith("no_call"):
        return ids - wanted
    return ids if metric.startswith("ok") or not wanted else ids & wanted


def right(report: Report, task: str, metric: Metric) -> bool:
    """Whether the report has this task right by this metric. Where its lenient reading is not written down, it is the
    native one."""
    verdict = report.verdicts[task]
    if metric == "native_rate":  # the judge gives one of these reasons exactly where the runtime surfaced no call
        return verdict.reason not in _NOT_SURFACED
    if metric.endswith("_lenient"):
        verdict = report.lenient.get(task, verdict)
    if metric.startswith("selection"):
        return verdict.selection_ok
    return verdict.parameters_ok if metric.startswith("parameters") else verdict.ok


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p that gains and losses are equally likely; 1.0 where nothing changed."""
    changed = gained + lost
    tail = sum(math.comb(changed, i) for i in range(min(gained, lost) + 1))
    return min(1.0, 2.0 * (tail / (1 << changed)))


def newcombe(both: int, gained: int, lost: int, neither: int) -> tuple[float, float]:
    """95 % interval of the difference of two paired proportions, (gained - lost) / n."""
    n = both + gained + lost + neither
    after, before = (both + gained) / n, (both + lost) / n
    after_low, after_high = _wilson(both + gained, n)
    before_low, before_high = _wilson(both + lost, n)
    phi = _phi(both, gained, lost, neither)
    down, up = after - after_low, before_high - before
    down_up = down**2 - 2 * phi * down * up + up**2
    over, under = after_high - after, before - before_low
    over_under = over**2 - 2 * phi * over * under + under**2
    difference = (gained - lost) / n
    return difference - math.sqrt(max(0.0, down_up)), difference + math.sqrt(max(0.0, over_under))


def student(freedom: int) -> float:
    """The 97.5 % point of Student's t (Abramowitz and Stegun 1964, 26.7.5): to 0.2 % from 3 degrees of freedom on, and
    11 % too small for one."""
    z, n = Z95, freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(n**power) for power, term in enumerate(terms, 1))


def _phi(both: int, gained: int, lost: int, neither: int) -> float:
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    if margins == 0:
        return 0.0
    excess = float(both * neither - gained * lost)
    if excess > 0:  # Newcombe's continuity correction
        excess = max(excess - (both + gained + lost + neither) / 2, 0)
    return excess / math.sqrt(margins)


def _wilson(k: int, n: int) -> tuple[float, float]:
    share, z2 = k / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At the ends the interval touches 0 or 1 exactly; rounding must not say otherwise.
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)
