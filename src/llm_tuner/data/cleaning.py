"""The stages of cleaning, in their order: the same for what is imported and for what is made.

No rule of its own. The rule it protects: secrets are gone before anything else looks at an example or writes it, and
what is compared (duplicates, overlaps) is what will be written.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping

from llm_tuner.data.duplicates import drop_duplicates
from llm_tuner.data.examples import Stage
from llm_tuner.data.licences import exclude_noncommercial
from llm_tuner.data.overlap import Reference, References, drop_overlaps
from llm_tuner.data.quarantine import quarantine
from llm_tuner.data.scrub import scrub
from llm_tuner.data.split import Withheld, divide
from llm_tuner.data.validity import check_form
from llm_tuner.store.scrub import Scrubber


def cleaning(
    database: sqlite3.Connection,
    scrubber: Scrubber,
    withheld: Withheld,
    against: Mapping[str, Iterable[Reference]],
    *,
    commercial_only: bool = False,
    catalogues: bool = False,
) -> list[Stage]:
    """Every stage that looks at one example: licence, scrub, form, quarantine, duplicates, overlap with each benchmark,
    side. The indexes lie in `database`. `catalogues`: the same request with other tools is another example.

    One stage more needs the whole held-out side: `drop_overlaps` of the train side against it.
    """
    benchmarks = []
    for name, texts in against.items():
        known = References()
        for text in texts:
            known.add(text)
        benchmarks.append(drop_overlaps(known, name))
    return [
        *([exclude_noncommercial()] if commercial_only else []),
        scrub(scrubber),
        check_form(),
        quarantine(),
        drop_duplicates(database, catalogues=catalogues),
        *benchmarks,
        divide(withheld),
    ]
