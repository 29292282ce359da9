"""The Berkeley Function Calling Leaderboard's single-turn tasks, all 13 categories, as suites.

Not the official harness, and no multi-turn, web search or memory (`NOT_RUN` says why). The data set (Patil et al., ICML
2025, Apache-2.0) is read out of the wheel `bfcl-eval`, which is data here: it is never installed or imported (it pins
about 150 packages). The rule it protects: what is measured is exactly one published version (the bytes are pinned), and
it is never trained on (`source` is "bfcl", the side is held-out).

Tools are offered as the official handlers for OpenAI-style servers offer them: types as JSON Schema, dots in names as
underscores; Java and JavaScript parameters as strings whose description tells the type. Judge with `rules="bfcl"`
(scoring) to compare with published numbers; and mind that those of open models were mostly taken with a raw prompt,
whereas this measures the model as it is served. One difference is meant: the official harness adds "Note that the
provided function is in Python 3 syntax." to every Python function and " This is a float type value." to its floats.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_tuner.models.sources import pypi
from llm_tuner.store.suite import Suite
from llm_tuner.types import (
    AllowedCall,
    AllowedCalls,
    AnyCall,
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
CATEGORIES = (
    "simple_python",
    "simple_java",
    "simple_javascript",
    "multiple",
    "parallel",
    "parallel_multiple",
    "irrelevance",
)
"""The non-live ones: written by the benchmark's authors."""

LIVE_CATEGORIES = (
    "live_simple",
    "live_multiple",
    "live_parallel",
    "live_parallel_multiple",
    "live_irrelevance",
    "live_relevance",
)
"""Those that users contributed."""

GROUPS: dict[str, tuple[str, ...]] = {
    "all": (*CATEGORIES, *LIVE_CATEGORIES),
    "single_turn": (*CATEGORIES, *LIVE_CATEGORIES),
    "non_live": CATEGORIES,
    "live": LIVE_CATEGORIES,
    "python": tuple(c for c in (*CATEGORIES, *LIVE_CATEGORIES) if "java" not in c),
    "non_python": ("simple_java", "simple_javascript"),
    "hallucination": ("irrelevance", "live_irrelevance", "live_relevance"),
}
"""Names that stand for several categories; the benchmark's own words, but for `hallucination` (its site's word)."""

NOT_RUN: dict[str, str] = {
    "web_search": "it asks a paid search service, and what the web answers changes from day to day",
    "memory": "it plays long conversations over memory stores that need models of their own",
    "format_sensitivity": "it varies prompts in text, and counts for nothing in the overall score",
}
"""What is never run here, and why."""

_MEMBERS = f"bfcl-eval=={VERSION}#bfcl_eval/data/*BFCL_v4_*.json"
_SHA256 = "b7733e838d5be8fd33aad0666743b83c0cd4f1bdbf8376e89147cb05defad95f"
"""Of all members that match, one after the other, in the order in which `pypi.download` writes them."""

# bfcl_eval/constants/type_mappings.py, GORILLA_TO_OPENAPI: "any" is offered as a string there, too.
_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}

_SOURCE = {"simple_java": "java", "simple_javascript": "javascript"}
_HINT = {
    "java": " Note that the provided function is in Java 8 SDK syntax.",
    "javascript": " Note that the provided function is in JavaScript syntax.",
}
_LANGUAGE = {"java": "Java", "javascript": "JavaScript"}
_LISTS = ("Array", "ArrayList", "array")

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


def named(categories: str | Sequence[str]) -> tuple[str, ...]:
    """The categories that these names stand for: categories and groups, in one text with commas or one by one.

    Each comes once, in the order in which it was named. Raises SetupError for a name that is neither, and says why for
    what is never run.
    """
    words = categories.split(",") if isinstance(categories, str) else categories
    out: dict[str, None] = {}
    for word in filter(None, map(str.strip, words)):
        reason = next((why for name, why in NOT_RUN.items() if word.startswith(name)), "")
        if reason:
            raise SetupError(f'BFCL\'s "{word}" is not run: {reason}. Name other categories.')
        if word not in GROUPS and word not in GROUPS["all"]:
            known = ", ".join(GROUPS["all"])
            raise SetupError(
                f'No BFCL category "{word}" (found {len(GROUPS["all"])}: {known}; groups: {", ".join(GROUPS)}).'
            )
        out |= dict.fromkeys(GROUPS.get(word, (word,)))
    if not out:
        raise SetupError(f"No BFCL category named. Name some of {', '.join(GROUPS['all'])}.")
    return tuple(out)


def load(
    categories: str | Sequence[str] = CATEGORIES, limit: int | None = None, seed: int = 0, *, cache: Path | None = None
) -> Suite:
    """The tasks of these categories or groups, fetched if need be; `limit` takes so many of each at random, `seed` says
    which.

    `tags["id"]` is BFCL's own id. Raises what `named` and `fetch` raise.
    """
    wanted = named(categories)
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
    source = _SOURCE.get(category, "")
    return Task(
        messages=tuple(Message(role=turn["role"], text=turn["content"]) for turn in row["question"][0]),
        tools=tuple(_source_tool(document, source) if source else tool(document) for document in row["function"]),
        expect=_expectation(row, answers, category),
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
    return ToolSpec(name=offered_name(document["name"]), description=document["description"], parameters=parameters)


def _source_tool(document: Mapping[str, Any], language: str) -> ToolSpec:
    """A Java or JavaScript function: every parameter is a string that holds source text of its type."""
    parameters = document["parameters"]
    described = {name: _described(words, language) for name, words in parameters["properties"].items()}
    schema = {key: value for key, value in parameters.items() if key != "optional"}
    return ToolSpec(
        name=offered_name(document["name"]),
        description=document["description"] + _HINT[language],
        parameters=schema | {"type": "object", "properties": described},
    )


def _described(words: Mapping[str, Any], language: str) -> dict[str, Json]:
    kind, called = words["type"], _LANGUAGE[language]
    text = words.get("description", "")
    if kind == "any":
        text += f" This parameter can be of any type of {called} object in string representation."
    else:
        text += f" This is {called} {kind} type parameter in string representation."
    told = {"optional"}
    if kind in _LISTS and "items" in words:
        told.add("items")
        text += f" The list elements are of type {words['items']['type']}; they are not in string representation."
    if language == "javascript" and kind == "dict" and "properties" in words:
        told.add("properties")
        text += " The dictionary entries have the following schema; they are not in string representation. "
        text += json.dumps(words["properties"])
    kept = {key: value for key, value in words.items() if key not in told}
    return kept | {"type": "string", "description": text}


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


def _expectation(row: Row, answers: Sequence[Answer], category: str) -> Expectation:
    if category.endswith("irrelevance"):
        return NoCall()
    if category.endswith("relevance"):
        return AnyCall()
    calls = [
        AllowedCall(
            name=offered_name(name),
            arguments=dict(arguments),
            source_types=_source_types(row, name, arguments, category),
        )
        for answer in answers
        for name, arguments in answer.items()
    ]
    return AllowedCalls(calls=tuple(calls))


def _source_types(row: Row, function: str, arguments: Mapping[str, Any], category: str) -> dict[str, tuple[str, ...]]:
    if category not in _SOURCE:
        return {}
    document = next((d for d in row["function"] if d["name"] == function), None)
    properties = document["parameters"]["properties"] if document else {}
    return {name: _source_type(properties[name], _SOURCE[category]) for name in arguments if name in properties}


def _source_type(words: Mapping[str, Any], language: str) -> tuple[str, ...]:
    items = words.get("items", {}).get("type") if words["type"] in _LISTS else None
    return (language, words["type"], items) if items else (language, words["type"])


def offered_name(name: str) -> str:
    """The name under which a function is offered: dots, which chat APIs refuse, are underscores."""
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
