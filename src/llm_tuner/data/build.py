"""A data set from a hub: every slot of the plan drafted, verified in three stages, written down as it is done.

Not the plan and not the wording. The rule it protects: each try has one line in the journal, as a task or as a
rejection; a build that was killed goes on after its last whole line, and what is finished is written in the order of
the plan. So nothing is lost, nothing stands twice, and one bad row stops nothing.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

from pydantic import Field

from llm_tuner.data import card, rejections
from llm_tuner.data.bench import Bench, Limits, bench, lists_only
from llm_tuner.data.dataset import MANIFEST, write_manifest
from llm_tuner.data.drafts import Draft, Impossible, draft
from llm_tuner.data.examples import REFERENCE, Example
from llm_tuner.data.overlap import Reference
from llm_tuner.data.plan import HubMix, Plan, Slot, plan
from llm_tuner.data.rejections import Rejection
from llm_tuner.data.schema_values import Unfillable
from llm_tuner.data.sieve import Sieve
from llm_tuner.data.verify import format_fault, meaning_fault, rejection
from llm_tuner.data.writer import Writer
from llm_tuner.scoring import gold_attempt, score
from llm_tuner.store import append_jsonl, read_json, resume_jsonl, versions, write_atomic, write_jsonl
from llm_tuner.store.suite import Suite
from llm_tuner.store.suite import save as save_suite
from llm_tuner.tools.sandbox import available
from llm_tuner.tools.servers import ServerConfig
from llm_tuner.types import (
    Attempt,
    Event,
    ExactCalls,
    Expectation,
    Json,
    Message,
    NoCall,
    SetupError,
    Task,
    ToolCall,
    ToolResult,
    ToolSpec,
    Value,
    canonical_json,
    content_hash,
)

FORMAT = 2
JOURNAL, STARTED = ".journal", ".started"
"""While it is made: every try, a line each; and which build it is."""
TRIES = 30
"""Tries of one slot before it stays empty; from OTHER_KIND on as a single call."""
OTHER_KIND = 12
AT_ONCE = 24
"""Slots that are drafted before any of them is executed."""
HISTORY_CHARS = 2500
"""A longer result does not go into a conversation."""


class Outcome(Value):
    """What one try of one slot came to: a task (its tools are the plan's) with its attempt, or a rejection."""

    number: int
    tries: int
    messages: tuple[Message, ...] = ()
    calls: tuple[ToolCall, ...] = ()
    reply: str = ""
    category: str = ""
    tags: dict[str, str] = Field(default_factory=dict)
    attempt: Attempt | None = None
    rejection: Rejection | None = None


def build(
    configs: Sequence[ServerConfig],
    mix: HubMix,
    out: Path,
    *,
    tools: Sequence[ToolSpec] = (),
    writer: Writer | None = None,
    benches: int = 2,
    limits: Limits | None = None,
    against: Mapping[str, Iterable[Reference]] | None = None,
) -> Generator[Event, None, dict[str, Json]]:
    """Makes the data set in the folder `out` and returns what its data.json says. `tools`: recorded ones, which cannot
    be called, in place of servers. `against`: by name, texts that no request may overlap with (a benchmark's).

    The same call goes on with a build that was killed, and returns at once where it is done. Raises SetupError where
    the folder holds another data set, ServerStartError where a server does not start.
    """
    clock = time.monotonic()
    listed = lists_only(configs, mix.list_only)
    if not tools:
        yield Event(step="synthesize", message="starting the tool servers")
    with ExitStack() as stack:
        first = stack.enter_context(bench(configs, limits=limits))
        specs = tuple(tools) or first.specs()
        key = content_hash([FORMAT, mix.model_dump(mode="json"), [t.model_dump() for t in specs], bool(available())])
        sieve = Sieve(against)
        key = content_hash([key, writer.name if writer else "", sieve.sizes])
        if (old := _finished(out, key)) is not None:
            return old
        callable_tools = frozenset(t.name for t in specs if mix.execute and not tools and t.server not in listed)
        the_plan = plan(specs, mix, callable_tools)
        work = [first]
        names = frozenset(t.server for t in specs if t.name in callable_tools)
        for _ in range(benches - 1 if callable_tools else 0):
            work.append(stack.enter_context(bench(configs, names, limits)))
        run = _Build(the_plan, mix, out / JOURNAL, callable_tools, work, writer, sieve)
        run.note_changed_schemas()
        yield from run.go()
    facts = _written(out, key, run, mix, round(time.monotonic() - clock, 1))
    card.write(out, (yield from card.describe(out, facts, seed=mix.seed)))
    document = write_manifest(out, facts)
    (out / JOURNAL).unlink(missing_ok=True)
    (out / STARTED).unlink(missing_ok=True)
    return document


def _finished(out: Path, key: str) -> dict[str, Json] | None:
    """data.json of this very build; None where there is work to do. SetupError for a folder of another one."""
    out.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST, STARTED):
        if (out / name).exists():
            found = read_json(out / name)
            if found.get("key") != key:
                raise SetupError(
                    f"{out} holds a data set that was made with other settings, tools or versions ({name}). "
                    "Give another folder, or move this one away."
                )
            if name == MANIFEST:
                return dict(found)
    write_atomic(out / STARTED, canonical_json({"key": key}))
    return None


class _Build:
    """One build while it runs."""

    def __init__(
        self,
        the_plan: Plan,
        mix: HubMix,
        journal: Path,
        callable_tools: frozenset[str],
        work: Sequence[Bench],
        writer: Writer | None,
        sieve: Sieve,
    ) -> None:
        self.sieve, self.slots = sieve, {slot.number: slot for slot in the_plan.slots}
        self.plan, self.mix, self.journal, self.work, self.writer = the_plan, mix, journal, work, writer
        self.callable_tools = callable_tools
        self.kept: dict[int, Outcome] = {}
        self.rejected: list[Rejection] = []
        self.tried: Counter[int] = Counter()
        self.requests: set[str] = set()
        self.changed: set[str] = set()
        self._free: SimpleQueue[Bench] = SimpleQueue()
        for one in work:
            self._free.put(one)
        for outcome in resume_jsonl(journal, Outcome):
            self._count(self._sifted(outcome))

    def note_changed_schemas(self) -> None:
        """Tools that another start of the same servers listed otherwise, or no longer."""
        for other in self.work[1:]:
            found = {tool.name: tool.fingerprint for tool in other.specs()}
            for name in self.callable_tools:
                if found.get(name) != self.plan.tools[name].fingerprint:
                    self.changed.add(name)

    def go(self) -> Generator[Event, None, None]:
        """Every slot, until it is filled or has had its tries; the held-out ones first (sieve.py)."""
        open_ = (slot for slot in self.plan.slots if slot.number not in self.kept)
        waiting = sorted(open_, key=lambda slot: slot.side == "train")
        with ThreadPoolExecutor(max(1, len(self.work))) as pool:
            while waiting:
                now, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
                drafted = [self._drafted(slot) for slot in now]
                for outcome in map(self._sifted, pool.map(self._outcome, drafted)):
                    append_jsonl(self.journal, outcome)
                    self._count(outcome)
                again = [s for s in now if s.number not in self.kept and self.tried[s.number] < TRIES]
                waiting = again + waiting
                total, refused = len(self.plan.slots), len(self.rejected)
                yield Event(
                    step="synthesize", message=f"{refused} refused", done=len(self.kept), total=total, unit="task"
                )  # fmt: skip

    def _sifted(self, outcome: Outcome) -> Outcome:
        if outcome.attempt is None:
            return outcome
        task = _task(self.slots[outcome.number], outcome)
        refusal = self.sieve.refusal(Example(task, outcome.attempt))
        if refusal is None:
            return outcome
        refusal = refusal.model_copy(update={"source": f"slot {outcome.number}, try {outcome.tries}"})
        return Outcome(number=outcome.number, tries=outcome.tries, rejection=refusal)

    def _count(self, outcome: Outcome) -> None:
        self.tried[outcome.number] = max(self.tried[outcome.number], outcome.tries + 1)
        if outcome.rejection is not None:
            self.rejected.append(outcome.rejection)
        else:
            self.kept[outcome.number] = outcome
            self.requests.add(_request_key(outcome.messages))

    # ------------------------------------------------------------------------------------------------------ one try

    def _drafted(self, slot: Slot) -> tuple[Slot, int, Draft | Rejection]:
        """In the order of the plan and in one thread: what is drafted depends on nothing that runs beside it."""
        tries = self.tried[slot.number]
        source = f"slot {slot.number}, try {tries}"
        if tries >= OTHER_KIND and slot.kind != "single":
            slot = replace(slot, kind="single")
        elif slot.target in self.changed or (tries >= 3 and slot.kind in ("single", "look_alike", "several")):
            names = sorted(slot.catalogue.names - self.changed)
            slot = replace(slot, target=names[(slot.number + tries) % len(names)]) if names else slot
        try:
            made = draft(slot, tries, self.plan.tools_of(slot.side), self.mix.seed)
        except (Impossible, Unfillable) as why:
            reason = "no value for the schema" if isinstance(why, Unfillable) else "no draft of this kind"
            return slot, tries, rejection("format", (reason, str(why)), None, source)
        if self.writer is not None and made.calls and made.first is None:
            made = self.writer.reworded(made, slot)
        key = " ".join(f"{made.request}\n{made.again}".split()).casefold()
        if key in self.requests:
            return (
                slot,
                tries,
                rejection("duplicate", ("request", "this request stands in the set already"), made, source),
            )
        self.requests.add(key)
        return slot, tries, made

    def _outcome(self, drafted: tuple[Slot, int, Draft | Rejection]) -> Outcome:
        slot, tries, made = drafted
        if isinstance(made, Rejection):
            return Outcome(number=slot.number, tries=tries, rejection=made)
        source = f"slot {slot.number}, try {tries}"
        place = self._free.get()
        called = made.first is not None or any(call.name in self.callable_tools for call in made.calls)
        try:
            found = _tried(slot, made, place, self.callable_tools, self.changed)
        except Exception as error:  # a defect in one row must not cost the others; it is counted, with its words
            found = ("execution", ("unexpected", f"{type(error).__name__}: {error}"[:300]))
        finally:
            if called:
                place.box.restore()
            self._free.put(place)
        if isinstance(found, Outcome):
            return found.model_copy(update={"tries": tries})
        return Outcome(number=slot.number, tries=tries, rejection=rejection(*found, made, source))


Fault = tuple[str, tuple[str, str]]


def _tried(slot: Slot, made: Draft, place: Bench, callable_tools: frozenset[str], changed: set[str]) -> Outcome | Fault:
    """The three stages: format, execution, meaning. A fault is its stage, reason and sentence."""
    catalogue = slot.catalogue
    history: list[Message] = [Message(role="user", text=made.request)]
    found, results = "", []
    if made.first is not None:
        result = place.call(made.first)
        if fault := _first_fault(made, result):
            return "execution", fault
        if made.take:
            matches = _matches(made.take, result.content)
            if len(matches) != 1:
                return "execution", (
                    "no value in the result",
                    f"{len(matches)} of {made.take!r} in {result.content[:120]!r}",
                )
            found = matches[0]
        shown_first = catalogue.shown_call(made.first).model_copy(update={"id": "call_0"})
        history.append(Message(role="assistant", tool_calls=(shown_first,)))
        history.append(Message(role="tool", result=result.model_copy(update={"call_id": "call_0"})))
        results.append(result.content)
        if made.again:
            history += [Message(role="assistant", text=made.answered), Message(role="user", text=made.again)]
    calls = tuple(_with_found(call, found) for call in made.calls)
    made = replace(made, calls=calls, reply=made.reply.replace("{found}", found))
    shown = tuple(catalogue.shown_call(call) for call in calls)
    if fault := format_fault(shown, catalogue.shown):
        return "format", fault
    if fault := meaning_fault(made, found, catalogue.names, results):
        return "meaning", fault
    executed = []
    for call in calls:
        if call.name in changed:
            return "execution", ("schema changed", f"`{call.name}` was listed otherwise at another start")
        if call.name in callable_tools:
            result = place.call(call)
            if result.is_error:
                return "execution", ("refused", f"`{call.name}`: {result.content[:300]}")
            executed.append(result)
    return _accepted(slot, made, tuple(history), shown, executed, all(c.name in callable_tools for c in calls))


def _first_fault(made: Draft, result: ToolResult) -> tuple[str, str] | None:
    if result.is_error is not made.fails:
        return ("no error", "the call worked") if made.fails else ("refused", result.content[:300])
    if len(result.content) > HISTORY_CHARS:
        return "result too long", f"{len(result.content)} characters"
    return None


def _matches(pattern: str, text: str) -> list[str]:
    return list(dict.fromkeys(match["found"] for match in re.finditer(pattern, text)))


def _with_found(call: ToolCall, found: str) -> ToolCall:
    arguments = {
        k: v.replace("{found}", found) if isinstance(v, str) else _inner(v, found) for k, v in call.arguments.items()
    }
    return call.model_copy(update={"arguments": arguments})


def _inner(value: Json, found: str) -> Json:
    if isinstance(value, list):
        return [_inner(inner, found) for inner in value]
    if isinstance(value, dict):
        return {key: _inner(inner, found) for key, inner in value.items()}
    return value.replace("{found}", found) if isinstance(value, str) else value


def _accepted(
    slot: Slot,
    made: Draft,
    history: tuple[Message, ...],
    shown: tuple[ToolCall, ...],
    executed: Sequence[ToolResult],
    all_called: bool,
) -> Outcome | Fault:
    verified = ("executed" if all_called else "schema only") if shown else "no call"
    tags = {
        "tools_offered": str(len(slot.catalogue.own)),
        "rendering": slot.catalogue.rendering,
        "verified": verified,
        **({"wording": "generic"} if made.generic else {}),
        **({"writer": made.writer} if made.writer else {}),
        **slot.catalogue.tags(),
    }
    outcome = Outcome(
        number=slot.number,
        tries=0,
        messages=history,
        calls=shown,
        reply="" if shown else made.reply,
        category=slot.kind,
        tags=tags,
    )
    task = _task(slot, outcome)
    attempt = gold_attempt(task).model_copy(update={"backend": REFERENCE, "results": tuple(executed)})
    attempt = attempt.model_copy(update={"verdict": score(task, attempt)})
    if attempt.verdict is None or not attempt.verdict.ok:
        detail = attempt.verdict.detail if attempt.verdict else ""
        return "format", ("judge", detail[:300])
    return outcome.model_copy(update={"attempt": attempt})


def _task(slot: Slot, outcome: Outcome) -> Task:
    expect: Expectation = ExactCalls(calls=outcome.calls) if outcome.calls else NoCall(reply=outcome.reply)
    return Task(
        messages=outcome.messages,
        tools=slot.catalogue.shown,
        expect=expect,
        category=outcome.category,
        source="synthetic",
        licence="Apache-2.0",
        language=slot.language,
        split=slot.side,
        tags=outcome.tags,
    )


def _request_key(messages: Sequence[Message]) -> str:
    """What the user said, as it is compared."""
    said = [message.text for message in messages if message.role == "user"]
    return " ".join("\n".join(said if len(said) > 1 else [*said, ""]).split()).casefold()


# --------------------------------------------------------------------------------------------------------- the files


def _written(out: Path, key: str, run: _Build, mix: HubMix, seconds: float) -> dict[str, Json]:
    """Writes the four files and returns what data.json is to say about them."""
    pairs = [(slot, run.kept[slot.number]) for slot in run.plan.slots if slot.number in run.kept]
    tasks = [_task(slot, outcome) for slot, outcome in pairs]
    attempts = [outcome.attempt for _, outcome in pairs if outcome.attempt is not None]
    for side in ("train", "held-out"):
        of_side = tuple(task for task in tasks if task.split == side)
        if of_side:
            save_suite(Suite(name=side, tasks=of_side), out / f"{side}.jsonl")
    write_jsonl(out / "attempts.jsonl", attempts)
    write_jsonl(out / "rejected.jsonl", run.rejected)
    refused = rejections.table(run.rejected)
    wanting = [task for task in tasks if task.tags["verified"] != "no call"]
    called = Counter(own for task in tasks for own in _own_names(task))
    return {
        "key": key,
        "made": "data synthesize",
        "config": mix.model_dump(mode="json"),
        "seed": mix.seed,
        "versions": versions(),
        "sandbox": available() or "none",
        "unseen_servers": list(run.plan.unseen_servers),
        "unseen_tools": sorted(run.plan.unseen),
        "tasks": {"wanted": mix.count, "made": len(tasks), **Counter(str(task.split) for task in tasks)},
        "kinds": dict(Counter(task.category for task in tasks).most_common()),
        "languages": dict(Counter(task.language for task in tasks).most_common()),
        "renderings": dict(Counter(task.tags["rendering"] for task in tasks).most_common()),
        "renamed": sum("renamed" in task.tags for task in tasks),
        "generic_wording": sum("wording" in task.tags for task in tasks),
        "tools": {
            "listed": len(run.plan.tools),
            "called": len(called),
            "never": sorted(set(run.plan.tools) - set(called)),
        },
        "calls": dict(called.most_common()),
        "verified": dict(Counter(task.tags["verified"] for task in tasks).most_common()),
        "executed_share": _share(sum(t.tags["verified"] == "executed" for t in wanting), len(wanting)),
        "rejected": refused,
        "counts": {"rejected": {f"{stage}:{reason}": n for stage, why in refused.items() for reason, n in why.items()}},
        "against": run.sieve.sizes,
        "writer": run.writer.counts() if run.writer else {},
        "seconds": seconds,
    }


def _own_names(task: Task) -> Iterator[str]:
    """The tools that a task calls, by their own names."""
    own = {shown: name for name, shown in json.loads(task.tags.get("renamed", "{}")).items()}
    for call in getattr(task.expect, "calls", ()):
        yield own.get(call.name, call.name)


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0
