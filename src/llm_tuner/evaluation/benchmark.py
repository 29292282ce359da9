"""BFCL asked of a target: any of its categories and groups, single-turn and multi-turn, one report each.

Not the tasks (bfcl.py, bfcl_multi_turn.py) and not the scores (leaderboard.py). The rule it protects: whoever asks for
the same categories, the command line or a script, measures the same in the same way.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from llm_tuner.evaluation import bfcl
from llm_tuner.evaluation import bfcl_multi_turn as conversations
from llm_tuner.evaluation.target import Target, evaluate
from llm_tuner.evaluation.wording import Language
from llm_tuner.scoring import Reading
from llm_tuner.types import Event, Report

KNOWN = (*bfcl.GROUPS, "multi_turn", *bfcl.GROUPS["all"], *conversations.CATEGORIES)
"""The names of groups and categories."""


def evaluate_categories(
    target: Target,
    categories: str,
    limit: int | None = None,
    *,
    seed: int = 0,
    reading: Reading = "native",
    out: Path | None = None,
    language: Language = "en",
) -> Generator[Event, None, tuple[Report, ...]]:
    """Measure each category that the text with commas names (`bfcl_multi_turn.named`), `limit` tasks of each.

    `reading` says which calls of a conversation are carried out; a single turn is judged by both. With `out` each
    category has a folder of its name there, and a second call goes on where the first one stopped. Raises SetupError
    for a name that is no category, before anything is fetched.
    """
    reports = []
    for category in conversations.named(categories):
        folder = out / category if out is not None else None
        if category in conversations.CATEGORIES:
            report = yield from conversations.evaluate(
                target, category, limit, seed=seed, reading=reading, out=folder, language=language
            )
        else:
            yield from bfcl.fetch()
            tasks = bfcl.load(category, limit, seed)
            report = yield from evaluate(target, tasks, rules="bfcl", out=folder, language=language)
        reports.append(report)
    return tuple(reports)
