"""What did not become an example, and why: one record for every stage that can refuse one.

Not an error: a build goes on. The rule it protects: whatever goes in comes out again, as an example or as a rejection
with its reason, so that the counts add up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from llm_tuner.types import Value

Stage = Literal["read", "format", "execution", "meaning", "duplicate", "overlap", "quarantine", "licence"]
"""Where an example fell: reading its line; the tool's schema; the real server; request and call determine each other;
the same example again; too close to a benchmark or to the held-out side; instructions in untrusted text; its
licence."""


class Rejection(Value):
    """One refused example. `reason` is a short closed word within its stage, `detail` a sentence; `source` is where it
    came from (a file and line, or a generator) and `task_id` is set where it had become a task already."""

    stage: Stage
    reason: str
    detail: str = ""
    source: str = ""
    task_id: str = ""
    request: str = ""


def table(rejections: Iterable[Rejection]) -> dict[str, dict[str, int]]:
    """Stage -> reason -> how many, the most frequent first."""
    counts: dict[str, Counter[str]] = {}
    for rejection in rejections:
        counts.setdefault(rejection.stage, Counter())[rejection.reason] += 1
    return {stage: dict(counter.most_common()) for stage, counter in counts.items()}
