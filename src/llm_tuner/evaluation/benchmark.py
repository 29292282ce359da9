"""BFCL asked of a target: any of its categories and groups, single-turn and multi-turn, one report each.

Not the tasks (bfcl.py, bfcl_multi_turn.py) and not the scores (leaderboard.py). The rule it protects: whoever asks for
the same categories, the command line or a script, measures the same in the same way.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from llm_tuner.evaluation import bfcl
from llm_tuner.evaluation import bfcl_multi_turn as conversations
from llm_tuner.evaluation.bfcl_table import table
from llm_tuner.evaluation.target import Target, evaluate_all
from llm_tuner.evaluation.wording import Language
from llm_tuner.scoring import Reading
from llm_tuner.store import write_atomic
from llm_tuner.types import ChatOptions, Event, Report

MAX_TOKENS = 1024
"""The longest right answer of the data set has about 500 tokens."""

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
    max_tokens: int = MAX_TOKENS,
) -> Generator[Event, None, tuple[Report, ...]]:
    """Measure each category that the text with commas names (`bfcl_multi_turn.named`), `limit` tasks of each.

    `max_tokens` is the longest answer; officially there is no limit. The single-turn ones are one measurement, asked in
    the order of their prompts. `reading` says which calls of a conversation are carried out; a single turn is judged by
    both. With `out` each category has a folder of its name there, a second call goes on where the first one stopped,
    and `out/bfcl.md` is the table of all reports there.
    Raises SetupError for a name that is no category, before anything is fetched.
    """
    wanted = conversations.named(categories)
    folders = {category: out / category if out is not None else None for category in wanted}
    single = [category for category in wanted if category not in conversations.CATEGORIES]
    reports: list[Report] = []
    if single:
        yield from bfcl.fetch()
        suites = [(bfcl.load(category, limit, seed), folders[category]) for category in single]
        options = ChatOptions(max_tokens=max_tokens)
        steps = evaluate_all(target, suites, rules="bfcl", options=options, language=language)
        reports.extend((yield from steps))
    for category in wanted[len(single) :]:
        conversation = conversations.evaluate(
            target,
            category,
            limit,
            seed=seed,
            reading=reading,
            options=ChatOptions(max_tokens=max_tokens),
            out=folders[category],
            language=language,
        )
        reports.append((yield from conversation))
    if out is not None:
        write_atomic(out / "bfcl.md", table(_written(out)))
    return tuple(reports)


def _written(out: Path) -> list[Report]:
    """The reports of all categories that were ever measured into this folder, in the benchmark's order."""
    files = (out / category / "report.json" for category in (*bfcl.GROUPS["all"], *conversations.CATEGORIES))
    return [Report.model_validate_json(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
