"""The rows of `train_vs_trl.py`: requests over the reference hub as the serving runtime renders them, cached as JSONL.

Not a data set: reference answers are checked by their schemas only, nothing is executed. Starting the hub's servers
(once, for their tool list) and an embedded llama.cpp (once a case, for template and tokenizer) is all it asks of a
machine; a timing run finds the files and starts neither.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llm_tuner.data.bench import bench
from llm_tuner.data.collect import collect
from llm_tuner.data.rows import build_rows
from llm_tuner.data.synthesize import Mix, synthesize
from llm_tuner.models.llamacpp import Embedded
from llm_tuner.models.sources import fetch
from llm_tuner.models.vocabulary import indistinct_tokens
from llm_tuner.store import read_jsonl, write_jsonl
from llm_tuner.tools.servers import load
from llm_tuner.types import Event, Pair, Row, Task, ToolSpec

HUB = Path(__file__).parents[1] / "examples" / "hub-8" / "mcp.json"
TEMPLATE = "qwen2.5-coder:0.5b"
"""Whose chat template writes the rows of a model that has none for tools; the token ids are the model's own."""

CASES = ("eight", "hub", "own", "dpo")


def rows_of(
    case: str, work: Path, gguf: Path, catalogues: int, requests: int, tools: int = 8
) -> list[Row] | list[Pair]:
    """The rows of a case (pairs for `dpo`), from `work` where they are there already.

    `eight`, `dpo`: `catalogues` catalogues of `tools` tools, `requests` requests each. `hub`: `requests` requests over
    all definitions. `own`: twice `requests` rows, each with 3 to `tools` tools of its own.
    """
    file = work / f"{gguf.stem}-{case}-{catalogues}x{requests}x{tools}.jsonl"
    if not file.exists():
        made = _made("eight" if case == "dpo" else case, work, gguf, catalogues, requests, tools)
        write_jsonl(file, paired(made) if case == "dpo" else made)
    return read_jsonl(file, Pair) if case == "dpo" else read_jsonl(file, Row)


def paired(rows: Sequence[Row]) -> list[Pair]:
    """Each row against the answer to another request of the same catalogue: a well-formed call, and a wrong one."""
    rng = random.Random(0)
    pairs = []
    for row in rows:
        head = row.prompt_ids[: len(row.prompt_ids) // 2]
        others = [r for r in rows if r.prompt_ids[: len(head)] == head and r.completion_ids != row.completion_ids]
        other = rng.choice(others or [r for r in rows if r.completion_ids != row.completion_ids])
        update = {"completion": other.completion, "completion_ids": other.completion_ids}
        pairs.append(Pair(chosen=row, rejected=row.model_copy(update=update), reason="wrong_tool", origin="made"))
    return pairs


def invented(case: str, vocabulary: int, catalogues: int, requests: int) -> list[Row] | list[Pair]:
    """Rows of random token ids in the shapes of a case, for a model that has no words."""
    rng = random.Random(f"{case}")

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(1, vocabulary) for _ in range(count))

    made = []
    for catalogue in range(catalogues if case != "own" else catalogues * requests):
        head = ids(120)
        for request in range(requests if case != "own" else 1):
            made.append(
                Row(
                    task_id=f"{catalogue}-{request}",
                    prompt="",
                    completion="",
                    prompt_ids=(*head, *ids(10)),
                    completion_ids=(*ids(6), 0),
                )
            )
    return paired(made) if case == "dpo" else made


def _made(case: str, work: Path, gguf: Path, catalogues: int, requests: int, tools: int) -> list[Row]:
    specs = tool_list(work / "tools.json")
    everything = 10_000_000
    mixes = {
        "eight": Mix(
            tasks=catalogues * requests, catalogues=catalogues, sizes=(tools, tools), catalogue_chars=everything
        ),
        "hub": Mix(tasks=requests, catalogues=1, whole_hub=True),
        "own": Mix(
            tasks=2 * requests, catalogues=2 * requests, sizes=(min(3, tools), tools), catalogue_chars=everything
        ),
    }
    tasks = synthesize(specs, mixes[case], "train", pages="http://127.0.0.1:8000")
    rows = _rendered(tasks, gguf)
    wanted = {task.id: [call.name for call in getattr(task.expect, "calls", ())] for task in tasks}
    if all(name in row.completion for row in rows for name in wanted[row.task_id]):
        return rows
    print(f"The template of {gguf.name} knows no calls: rows are rendered by that of {TEMPLATE}", file=sys.stderr)
    rows = _rendered(tasks, drive(fetch(TEMPLATE)))
    with Embedded(gguf, context=512) as model:
        return [
            row.model_copy(
                update={
                    "prompt_ids": tuple(model.tokenize(row.prompt)),
                    "completion_ids": tuple(model.tokenize(row.completion)),
                }
            )
            for row in rows
        ]


def _rendered(tasks: Sequence[Task], gguf: Path) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="train-vs-trl-") as folder, Embedded(gguf, context=512) as model:
        attempts = drive(collect(tasks, None, Path(folder) / "attempts.jsonl"))
        return list(drive(build_rows(tasks, attempts, model, indistinct_tokens(gguf))))


def tool_list(file: Path) -> list[ToolSpec]:
    """The hub's tools; its servers (examples/hub-8/install.sh) are started when the file is not there."""
    if not file.exists():
        with bench(load(HUB)) as started:
            file.write_text(json.dumps([spec.model_dump() for spec in started.specs()]), encoding="utf-8")
    return [ToolSpec(**spec) for spec in json.loads(file.read_text(encoding="utf-8"))]


def drive(steps: Any, show: Callable[[Event], None] | None = None) -> Any:
    """The result of a step. Its events go to `show`; without one, what is not counted goes to stderr."""
    while True:
        try:
            event: Event = next(steps)
        except StopIteration as end:
            return end.value
        if show is not None:
            show(event)
        elif not event.unit:
            print(f"{event.step}: {event.message}", file=sys.stderr)
