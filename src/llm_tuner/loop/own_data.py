"""What a round learns from data sets of the user's own, such as recorded traffic, beside what it makes itself.

The rule it protects: what measures is not what was fed in. Examples of their training side are trained on; those of
their held-out side are a suite of their own ("recorded"), which may refuse a candidate and can promote none, so that
feedback that lies cannot vote itself in.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path

from llm_tuner.data.collect import usable
from llm_tuner.data.dataset import manifest, read_examples
from llm_tuner.data.examples import Example
from llm_tuner.data.intake import Intake, take_in
from llm_tuner.data.overlap import Reference
from llm_tuner.data.split import Withheld
from llm_tuner.store import RunFolder, Store, append_jsonl, resume_jsonl
from llm_tuner.store.suite import Suite, load, save
from llm_tuner.types import Attempt, DataError, EmptyData, Event, Run, Task, content_hash

SUITE = "recorded"

SET = "set"
"""The data set's folder within a recorded run."""


def data_hash(folders: Sequence[Path]) -> str:
    """What identifies these data sets: the hashes of their files. Raises DataError for a folder that is none."""
    return content_hash([manifest(folder)["hashes"] for folder in folders])


def add(folders: Sequence[Path], most: int, folder: RunFolder) -> None:
    """Adds the sets' training examples to the run's training suite, and at most `most` of their held-out ones as the
    suite "recorded". No request stands on both sides, whoever made it."""
    kept: dict[str, list[Task]] = {}
    for name in ("train", "held-out", "unseen"):
        path = folder.path / f"{name}.jsonl"
        kept[name] = list(load(path).tasks) if path.exists() else []
    measured = {_plain(task) for name in ("held-out", "unseen") for task in kept[name]}
    asked = [example for example in _usable(folders, "held-out") if _plain(example.task) not in measured]
    asked = sorted(_once(asked), key=lambda example: example.task.id)[:most]
    measured |= {_plain(example.task) for example in asked}
    known = {task.id for task in kept["train"]}
    learned = [e for e in _once(_usable(folders, "train")) if e.task.id not in known and _plain(e.task) not in measured]
    trained = {_plain(task) for task in [*kept["train"], *(example.task for example in learned)]}
    asked = [example for example in asked if _plain(example.task) not in trained]
    _append(folder.path / "reference-train.jsonl", learned)
    _write("train", [*kept["train"], *(example.task for example in learned)], folder)
    _write(SUITE, [example.task for example in asked], folder)
    folder.metrics[SUITE] = {"made": len(learned) + len(asked), "accepted": len(learned), "held_out": len(asked)}


def recorded_step(
    store: Store, journal: Path, references: dict[str, list[Reference]] | None = None
) -> Generator[Event, None, Run]:
    """The journal as a data set, scrubbed, judged, divided. Raises EmptyData where it holds no example."""
    if not journal.is_dir():
        raise EmptyData(
            f"No exchange is recorded in {journal} yet. Point an agent at: llm-tuner serve gateway, or name a journal."
        )
    files = {path.name: path.stat().st_size for path in sorted(journal.glob("*.jsonl"))}
    inputs = {"journal": content_hash(files), "references": content_hash(sorted(references or {}))}
    done = store.find("recorded", {}, inputs)
    if done is not None:
        yield Event(step="recorded", message=f"reusing {done.id}", data={"reused": done.id})
        return done
    with store.write("recorded", {}, inputs) as folder:
        # Traffic is of tools that serve: none is kept from training. Requests are held out by their hash.
        config = Intake(format="gateway", licence="own", withheld=Withheld(tools=0, servers=0))
        found = yield from take_in([journal], folder.path / SET, config, references)
        folder.metrics = {side: found["counts"][side] for side in ("train", "held-out")}
        folder.outputs[SET] = SET
    assert folder.run is not None
    return folder.run


def _usable(folders: Sequence[Path], side: str) -> Iterator[Example]:
    for folder in folders:
        if not (folder / f"{side}.jsonl").is_file():
            continue
        for example in read_examples(folder, side):
            if example.task.side != side:
                raise DataError(
                    f"{folder}: the task {example.task.id} of the {side} side is marked {example.task.side}."
                )
            if usable(example.attempt):
                yield example


def _once(examples: Iterable[Example]) -> list[Example]:
    return list({example.task.id: example for example in examples}.values())


def _plain(task: Task) -> str:
    return " ".join(task.request.split()).casefold()


def _append(path: Path, examples: Sequence[Example]) -> None:
    """Those that a killed run had appended are not appended twice."""
    there = {attempt.task_id for attempt in resume_jsonl(path, Attempt)}
    for example in examples:
        if example.task.id not in there:
            append_jsonl(path, example.attempt)


def _write(name: str, tasks: Sequence[Task], folder: RunFolder) -> None:
    if tasks:
        save(Suite(name=name, tasks=tuple(tasks)), folder.path / f"{name}.jsonl")
        folder.outputs[name] = f"{name}.jsonl"
