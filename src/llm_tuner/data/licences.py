"""The licences that publishers declare for the public sets, and which licences forbid commercial use.

Not legal advice: a licence here is what the set's publisher says of it; what went into the set is the publisher's word,
too. A set of your own has the licence that you name.
"""

from __future__ import annotations

import re

from llm_tuner.data.examples import Example, Item, Stage, each, refused

DECLARED = {
    "glaive-function-calling-v2": "Apache-2.0",
    "xlam-function-calling-60k": "CC-BY-4.0",  # CC-BY-NC-4.0 when it first came out; gated
    "ToolACE": "Apache-2.0",
    "hermes-function-calling-v1": "Apache-2.0",
    "When2Call": "CC-BY-4.0",
    "Toucan-1.5M": "Apache-2.0",
}
"""Licence by source, as declared by the publisher."""

_NONCOMMERCIAL = re.compile(r"(?i)(?:^|[^a-z])nc(?:[^a-z]|$)|non-?commercial|research")


def licence_of(source: str) -> str:
    """The declared licence of a public set; nothing for what is not one."""
    return DECLARED.get(source, "")


def is_noncommercial(licence: str) -> bool:
    return bool(_NONCOMMERCIAL.search(licence))


def exclude_noncommercial() -> Stage:
    """A stage that refuses examples whose licence forbids commercial use."""
    return each(_commercial)


def _commercial(example: Example) -> Item:
    if is_noncommercial(example.task.licence):
        return refused(example, "licence", "noncommercial", f"licence {example.task.licence}")
    return example
