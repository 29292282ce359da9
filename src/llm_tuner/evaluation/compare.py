"""Two measurements of the same tasks, held against each other: what changed, how surely, and on which tasks.

Not the gate (loop.py decides about promotion) and not a page (render.py). The rule it protects: every difference is
over the very same tasks and carries its interval, and a fall beyond its interval is called a regression.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from pydantic import ValidationError

from llm_tuner.evaluation.attempts import ATTEMPTS
from llm_tuner.evaluation.counts import servers_of, tools_of
from llm_tuner.evaluation.details import Entry, cut, entry
from llm_tuner.evaluation.intervals import METRICS, Metric, Paired, common, paired
from llm_tuner.evaluation.perplexity import TextChange, compare_texts
from llm_tuner.scoring import Reading
from llm_tuner.store import Store, read_jsonl
from llm_tuner.store import suite as suites
from llm_tuner.types import Attempt, DataError, Perplexity, Report, Task, Value, Verdict

REPORT, SUITE = "report.json", "suite.jsonl"
LONGEST_DETAIL = 300
"""Characters of a flipped task's verdict; its entries have the whole of it."""


class Part(NamedTuple):
    """One measured suite of the measurement `of`: its report, the folder with its attempts, and the file of its tasks
    if that was kept."""

    of: str
    name: str
    report: Report
    folder: Path
    tasks: Path | None


_TIMED_BY = ("cpu", "cores", "gpu", "threads", "runtime", "requests_at_a_time")


class Side(Value):
    """Which measurement stands on a side of the comparison."""

    name: str
    backend: str
    suites: tuple[str, ...]
    n: int
    rules: str
    machine: dict[str, str]
    model_sha256: str


class Change(Paired):
    """A metric's change; `regression`: worse, and the whole 95 % interval is below zero."""

    regression: bool


class Flip(Value):
    """A task that one side has right and the other wrong. No entries where attempts or tasks were not kept."""

    task: str
    suite: str
    gained: bool
    tools: tuple[str, ...]
    reason_before: str
    reason_after: str
    detail_before: str
    detail_after: str
    before: Entry | None = None
    after: Entry | None = None


class Times(Value):
    """End-to-end medians in milliseconds over the `n` tasks that both sides answered; `ratio` is after / before."""

    n: int
    before_p50_ms: float | None = None
    after_p50_ms: float | None = None
    ratio: float | None = None
    same_machine: bool = True


class Comparison(Value):
    """Before and after on their `common` tasks.

    `groups[dimension][value]` is the change of `ok` in a part of them; `broke` and `mended` count flipped tasks by
    `reason` (of the wrong answer), `tool` and `server`; all of these, and the flips, by the `reading` that was asked
    for. `texts` are the changes of bits a byte, where both sides read the same text. `notes` are sentences about what
    limits the comparison.
    """

    before: Side
    after: Side
    reading: Reading
    common: int
    only_before: int
    only_after: int
    changes: tuple[Change, ...]
    groups: dict[str, dict[str, Change]]
    broke: dict[str, dict[str, int]]
    mended: dict[str, dict[str, int]]
    flips: tuple[Flip, ...]
    times: Times
    texts: tuple[TextChange, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def regressions(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.regression)

    @property
    def worse(self) -> tuple[str, ...]:
        """The names of everything that decides and is worse beyond its interval: metrics, and "bits_per_byte" of the
        whole text (of its kinds, as of groups, some lie beyond by chance)."""
        text = [change for change in self.texts[:1] if change.regression]
        return (*(change.metric for change in self.regressions), *("bits_per_byte" for _ in text))


def open_parts(which: str, store: Store | None = None, only: str = "") -> tuple[Part, ...]:
    """The measurements that `which` names: a report.json, a folder that holds one (or folders that do), the id of an
    evaluate run, "last" or "previous". `only` takes the suite of that name (its folder's, "held-out") alone.

    Raises DataError where there is none, or where a report cannot be read.
    """
    path, store = (Path(which), None) if Path(which).exists() else _run_folder(which, store or Store())
    if path.is_file() or (path / REPORT).is_file():
        found = [_part(path if path.is_file() else path / REPORT, store)]
        found = [part._replace(name=part.report.suite) for part in found]
    else:
        found = [_part(file, store) for file in sorted(path.glob(f"*/{REPORT}"))]
    kept = tuple(part._replace(of=path.name or which) for part in found if only in ("", part.name))
    if not kept:
        there = ", ".join(part.name for part in found) or "no report.json"
        wanted = f' of the suite "{only}"' if only else ""
        raise DataError(f"{which} holds no report{wanted} (found: {there}). Measure with --out FOLDER first.")
    return kept


def compare(
    before: Sequence[Part], after: Sequence[Part], *, reading: Reading = "native", most_flips: int = 1000
) -> Comparison:
    """Compare task by task, all suites of a side together. At most `most_flips` flipped tasks carry their attempts.

    Raises DataError where the sides share no task, or were judged by different rules.
    """
    old, new = _together(before), _together(after)
    if old.rules and new.rules and old.rules != new.rules:
        raise DataError(
            f'Cannot compare: before was judged by "{old.rules}" rules, after by "{new.rules}" rules. '
            "Measure both in the same way."
        )
    ids = common(old, new)
    changes = tuple(_changes(old, new))
    if reading == "lenient":
        old, new = _leniently(old), _leniently(new)
    tasks = _tasks((*after, *before), ids)
    where = {id_: part.name for part in before for id_ in part.report.verdicts}
    flips, times = _flips(_Pair(old, new, tuple(before), tuple(after)), tasks, where, most_flips)
    texts, of_texts = _texts(before, after)
    return Comparison(
        before=_side(before, old),
        after=_side(after, new),
        reading=reading,
        common=len(ids),
        only_before=len(old.verdicts.keys() - ids),
        only_after=len(new.verdicts.keys() - ids),
        changes=changes,
        groups=_groups(old, new, tasks, where),
        broke=_tally(tasks, (flip for flip in flips if not flip.gained)),
        mended=_tally(tasks, (flip for flip in flips if flip.gained)),
        flips=flips,
        times=times,
        texts=texts,
        notes=(*_notes(old, new, ids, tasks, flips, times), *of_texts),
    )


# ------------------------------------------------------------------------------------------------------------- reading


def _run_folder(which: str, store: Store) -> tuple[Path, Store]:
    runs = store.runs("evaluate")
    order = {"last": 0, "previous": 1}
    for number, run in enumerate(runs):
        if run.id == which or order.get(which) == number:
            return store.folder(run), store
    found = ", ".join(run.id for run in runs[:5]) or "none"
    raise DataError(
        f'No folder, report.json or evaluate run "{which}" (runs found: {found}). Give the --out folder of an eval.'
    )


def _part(file: Path, store: Store | None) -> Part:
    try:
        report = Report.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {file}: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{file} is not a report of this version: {where}: {first['msg']}. Measure again.") from error
    beside = file.parent / SUITE
    tasks = beside if beside.is_file() else _collected(store, report)
    return Part("", file.parent.name, report, file.parent, tasks)


def _collected(store: Store | None, report: Report) -> Path | None:
    """The suite's file in the collect run that made it: an evaluate run of an earlier version kept no copy."""
    if store is None:
        return None
    written = (store.folder(run) / output for run in store.runs("collect") for output in run.outputs.values())
    header = f'"hash":"{report.suite_hash}"'
    return next((path for path in written if path.suffix == ".jsonl" and header in _first_line(path)), None)


def _first_line(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8") as file:
        return file.readline()


def _together(parts: Sequence[Part]) -> Report:
    """The verdicts of all suites of a side as one report, for counting only."""
    first = parts[0].report
    rules = {part.report.rules for part in parts}
    return first.model_copy(
        update={
            "verdicts": {id_: verdict for part in parts for id_, verdict in part.report.verdicts.items()},
            "lenient": {id_: verdict for part in parts for id_, verdict in part.report.lenient.items()},
            "wanted": tuple(id_ for part in parts for id_ in part.report.wanted),
            "rules": first.rules if len(rules) == 1 else "+".join(sorted(rules)),
        }
    )


def _leniently(report: Report) -> Report:
    """The lenient verdicts in place of the native ones. The lenient metrics stay what they are."""
    return report.model_copy(update={"verdicts": report.verdicts | report.lenient})


def _tasks(parts: Iterable[Part], ids: set[str]) -> dict[str, Task]:
    out: dict[str, Task] = {}
    for path in dict.fromkeys(part.tasks for part in parts if part.tasks):
        if ids - out.keys():
            out |= {task.id: task for task in suites.load(path).tasks if task.id in ids}
    return out


def _attempts(parts: Iterable[Part]) -> Iterator[Attempt]:
    for part in parts:
        if (part.folder / ATTEMPTS).is_file():
            yield from read_jsonl(part.folder / ATTEMPTS, Attempt, partial=True)


# ------------------------------------------------------------------------------------------------------------ counting


def _changes(old: Report, new: Report) -> Iterator[Change]:
    readings_kept = _readings_kept(old) and _readings_kept(new)
    for metric in _metrics(new):
        if metric.endswith("_lenient") and not readings_kept:
            continue
        if metric == "ok" or common(old, new, metric):
            yield _change(paired(old, new, metric))


def _metrics(report: Report) -> Sequence[Metric]:
    if report.rates.keys() == {"ok"}:  # not about calls (general.py)
        return ("ok",)
    return METRICS if report.wanted else ("ok", "no_call", "ok_lenient", "no_call_lenient")


def _change(found: Paired) -> Change:
    return Change(**found.model_dump(), regression=found.high < 0)


def _readings_kept(report: Report) -> bool:
    """Whether the report says what a lenient reading finds wherever that can differ."""
    return all(id_ in report.lenient for id_, verdict in report.verdicts.items() if verdict.reason == "call_as_text")


def _groups(
    old: Report, new: Report, tasks: Mapping[str, Task], where: Mapping[str, str]
) -> dict[str, dict[str, Change]]:
    parts: dict[str, dict[str, set[str]]] = {}
    for id_ in common(old, new):
        task = tasks.get(id_)
        values: dict[str, tuple[str, ...]] = {"suite": (where[id_],)}
        if task is not None:
            values |= {"language": (task.language,), "category": (task.category,), "tool": tools_of(task)}
            values |= {"server": (servers_of(task),)}
        for dimension, names in values.items():
            for name in filter(None, names):
                parts.setdefault(dimension, {}).setdefault(name, set()).add(id_)
    return {
        dimension: {name: _change(paired(old, new, "ok", ids)) for name, ids in sorted(values.items())}
        for dimension, values in sorted(parts.items())
        if len(values) > 1 and sum(map(len, values.values())) >= 2 * len(values)
    }


class _Pair(NamedTuple):
    old: Report
    new: Report
    before: tuple[Part, ...]
    after: tuple[Part, ...]


def _flips(
    pair: _Pair, tasks: Mapping[str, Task], where: Mapping[str, str], most: int
) -> tuple[tuple[Flip, ...], Times]:
    """The flipped tasks, lost ones first, and how long the common ones took: both read the attempts, once."""
    old, new = pair.old.verdicts, pair.new.verdicts
    ids = common(pair.old, pair.new)
    flipped = [id_ for id_ in old if id_ in ids and old[id_].ok != new[id_].ok]
    flipped.sort(key=lambda id_: (new[id_].ok, where[id_], new[id_].reason, old[id_].reason))
    shown = set(flipped[:most]) & tasks.keys()
    first, before_ms = _look_up(pair.before, pair.old, ids, {id_: tasks[id_] for id_ in shown})
    second, after_ms = _look_up(pair.after, pair.new, ids, {id_: tasks[id_] for id_ in shown})
    flips = tuple(
        _flip(id_, where[id_], tasks.get(id_), old[id_], new[id_]).model_copy(
            update={"before": first.get(id_), "after": second.get(id_)}
        )
        for id_ in flipped
    )
    return flips, _times(pair.old, pair.new, before_ms, after_ms)


def _look_up(
    parts: Sequence[Part], report: Report, ids: set[str], shown: Mapping[str, Task]
) -> tuple[dict[str, Entry], dict[str, float]]:
    """The entries of the shown tasks, and the milliseconds of all that were answered."""
    entries, taken = dict[str, Entry](), dict[str, float]()
    for attempt in _attempts(parts):
        if attempt.task_id in shown:
            task, verdict = shown[attempt.task_id], report.verdicts[attempt.task_id]
            entries[attempt.task_id] = entry(task, attempt, verdict)
        if attempt.task_id in ids and not attempt.error and attempt.timing.total_ms > 0:
            taken[attempt.task_id] = attempt.timing.total_ms
    return entries, taken


def _flip(id_: str, suite: str, task: Task | None, old: Verdict, new: Verdict) -> Flip:
    return Flip(
        task=id_,
        suite=suite,
        gained=new.ok,
        tools=tools_of(task) if task else (),
        reason_before=old.reason,
        reason_after=new.reason,
        detail_before=cut(old.detail, LONGEST_DETAIL),
        detail_after=cut(new.detail, LONGEST_DETAIL),
    )


def _tally(tasks: Mapping[str, Task], flips: Iterable[Flip]) -> dict[str, dict[str, int]]:
    reasons, tools, servers = Counter[str](), Counter[str](), Counter[str]()
    for flip in flips:
        reasons[flip.reason_before if flip.gained else flip.reason_after] += 1
        task = tasks.get(flip.task)
        if task is not None and task.tools:
            tools.update(flip.tools or ("(no call)",))
            servers.update(filter(None, (servers_of(task),)))
    counted = {"reason": reasons, "tool": tools, "server": servers}
    return {name: dict(counter.most_common()) for name, counter in counted.items() if counter}


def _times(old: Report, new: Report, before: Mapping[str, float], after: Mapping[str, float]) -> Times:
    same = all(old.machine.get(key) == new.machine.get(key) for key in _TIMED_BY)
    both = before.keys() & after.keys()
    if not both:
        return Times(n=0, same_machine=same)
    first, second = median(before[id_] for id_ in both), median(after[id_] for id_ in both)
    return Times(n=len(both), before_p50_ms=first, after_p50_ms=second, ratio=second / first, same_machine=same)


def _texts(before: Sequence[Part], after: Sequence[Part]) -> tuple[tuple[TextChange, ...], list[str]]:
    """What changed of the perplexity, and what is to be said where it cannot be compared."""
    sides = {name: _perplexity(parts) for name, parts in (("before", before), ("after", after))}
    if not any(sides.values()):
        return (), []
    notes = [f"Perplexity of {name}: {found.why if found else 'not in the report.'}" for name, found in sides.items()]
    missing = [note for note, found in zip(notes, sides.values(), strict=True) if found is None or found.why]
    old, new = sides["before"], sides["after"]
    if missing or old is None or new is None:
        return (), missing
    if old.text != new.text:
        return (), ["The two sides read different texts: their perplexities are not compared."]
    return compare_texts(old, new), []


def _perplexity(parts: Sequence[Part]) -> Perplexity | None:
    return next((part.report.perplexity for part in parts if part.report.perplexity), None)


def _side(parts: Sequence[Part], together: Report) -> Side:
    return Side(
        name=", ".join(dict.fromkeys(part.of for part in parts)),
        backend=", ".join(dict.fromkeys(part.report.backend for part in parts)),
        suites=tuple(part.report.suite for part in parts),
        n=len(together.verdicts),
        rules=together.rules,
        machine=together.machine,
        model_sha256=together.model_sha256,
    )


def _notes(
    old: Report, new: Report, ids: set[str], tasks: Mapping[str, Task], flips: Sequence[Flip], times: Times
) -> Iterator[str]:
    for name, report in (("before", old), ("after", new)):
        left_out = len(report.verdicts) - len(ids)
        if left_out:
            yield f"{left_out} of {len(report.verdicts)} tasks of {name} have no partner and were left out."
    if not (_readings_kept(old) and _readings_kept(new)):
        yield "A report of an earlier version lacks the lenient reading: only the native one is compared."
    for name, report in (("before", old), ("after", new)):
        if failed := sum(report.verdicts[id_].reason == "backend_error" for id_ in ids):
            yield f"{failed} of {len(ids)} requests of {name} failed and count as wrong: not the model's doing."
    if missing := len(ids - tasks.keys()):
        yield f"The tasks of {missing} verdicts were not kept ({SUITE}): their tools and requests are not shown."
    if without := sum(flip.before is None or flip.after is None for flip in flips):
        yield f"{without} of {len(flips)} flipped tasks are shown without their attempts."
    if not times.same_machine:
        yield "The two sides ran on different machines or under other loads: their times say little about the models."
