"""What of a round fits into a time: `tune --budget 2h`.

Not a scheduler: nothing is cut off when the time is up. A plan is made of what one task, row or pair took on this
machine, out of the newest finished runs with the same base; where there is none yet, of times of another machine that
one short request sets in proportion. The rule it protects: what is left out is said before it is left out, and a round
that would be too small to decide anything is refused.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterator
from itertools import pairwise

from llm_tuner.loop.config import CHAINS, Method, Tune
from llm_tuner.loop.steps import report, stock_step
from llm_tuner.models.runtimes import Runtime, Served
from llm_tuner.store import Store
from llm_tuner.types import ChatOptions, Event, Message, Run, SetupError, Value

FEWEST_TRAINED, FEWEST_MEASURED = 120, 48
"""Tasks below which a round is not worth its time: few rows teach little, few measured tasks have wide intervals."""

SHARES = (1.0, 0.75, 0.5, 0.35, 0.25)

MARGIN = 1.15
"""Estimates are taken so much longer: a round that ends early is a smaller surprise."""

_SPAN = re.compile(r"(?:(\d+(?:\.\d+)?)\s*h(?:ours?)?)?\s*(?:(\d+(?:\.\d+)?)\s*m(?:in(?:utes?)?)?)?", re.IGNORECASE)

_PROBE = " ".join(f"Line {number} says that the pump holds {number * 7} bar." for number in range(30))
_PROBE_SECONDS = 6.3

_ELSEWHERE = {
    "collect": 0.05, "own": 4.0, "evaluate": 4.1, "train": 1.37, "fixed": 150.0, "pairs": 6.0, "dpo": 1.1,
    "grpo": 230.0, "general": 100.0,
}  # fmt: skip
"""Seconds of each, and of that request, on two cores of an Intel Xeon with AMX, Qwen2.5-Coder-0.5B (2026-11-30,
2026-12-01; docs/log.md)."""


class Plan(Value):
    """A round that fits. `steps` are seconds by step; `share` is that of the tasks that were asked for, `measured` the
    steps whose times are of this machine."""

    budget: float
    seconds: float
    steps: dict[str, float]
    share: float
    methods: tuple[Method, ...]
    measured: tuple[str, ...]

    def sentences(self, asked: Tune, planned: Tune) -> Iterator[str]:
        """What the plan says to a person, left out things first."""
        left = asked.methods[len(planned.methods) :]
        if left:
            yield f"Without {', '.join(left)}: no time for it."
        if self.share < 1:
            yield (
                f"{planned.train.tasks} training tasks instead of {asked.train.tasks}, "
                f"{planned.held_out.tasks} measured instead of {asked.held_out.tasks}."
            )
        parts = ", ".join(f"{name} {seconds / 60:.0f}" for name, seconds in self.steps.items())
        source = "measured on this machine" if len(self.measured) > 1 else "estimated from one short request"
        yield f"About {self.seconds / 60:.0f} of {self.budget / 60:.0f} minutes ({source}): {parts}."


def seconds_of(text: str) -> float:
    """Seconds of "2h", "90m", "1h30m". Raises SetupError for anything else."""
    found = _SPAN.fullmatch(text.strip())
    hours, minutes = (float(part or 0) for part in found.groups()) if found else (0.0, 0.0)
    if hours + minutes <= 0:
        raise SetupError(f'A budget is written like "2h", "90m" or "1h30m", found "{text}".')
    return hours * 3600 + minutes * 60


def plan(config: Tune, budget: float, store: Store, runtime: Runtime) -> Generator[Event, None, tuple[Tune, Plan]]:
    """The largest round of those that `config` allows which takes `budget` seconds or less: first the later methods are
    left out, then there are fewer tasks. Raises SetupError where the smallest is too long, with its time."""
    stock = yield from stock_step(config, runtime)
    known = _known(store, runtime, stock)
    if missing := _ELSEWHERE.keys() - known.keys() - _unused(config):
        yield Event(step="plan", message="how fast this machine is: one short request")
        factor = _probe(runtime, stock)
        costs = {**{name: _ELSEWHERE[name] * factor for name in missing}, **known}
    else:
        costs = known
    for methods, share in _ladder(config):
        smaller = _smaller(config, methods, share)
        steps = _steps(smaller, costs)
        found = Plan(
            budget=budget, seconds=sum(steps.values()), steps=steps, share=share, methods=methods,
            measured=tuple(sorted(known)),
        )  # fmt: skip
        if found.seconds <= budget:
            for sentence in found.sentences(config, smaller):
                yield Event(step="plan", message=sentence)
            return smaller, found
    raise SetupError(
        f"The smallest round ({smaller.train.tasks} training tasks, {smaller.held_out.tasks} measured) takes about "
        f"{found.seconds / 60:.0f} minutes here, the budget is {budget / 60:.0f}. Give it more, or take a smaller base."
    )


def _unused(config: Tune) -> set[str]:
    later = {"dpo": {"pairs", "dpo"}, "grpo": {"grpo"}}
    unused = {name for method, names in later.items() if method not in config.methods for name in names}
    return unused | (set() if config.general else {"general"})


def _ladder(config: Tune) -> Iterator[tuple[tuple[Method, ...], float]]:
    chains = [chain for chain in CHAINS if chain == config.methods[: len(chain)]]
    for chain in reversed(chains[1:]):
        yield chain, 1.0
    for share in SHARES:
        if share == 1 or _smaller(config, chains[0], share) != config:
            yield chains[0], share


def _smaller(config: Tune, methods: tuple[Method, ...], share: float) -> Tune:
    if share == 1:
        return config.model_copy(update={"methods": methods})

    def scaled(count: int, fewest: int) -> int:
        return min(count, max(fewest, round(count * share)))

    train, held_out = config.train, config.held_out
    return config.model_copy(
        update={
            "methods": methods,
            "train": train.model_copy(
                update={"tasks": scaled(train.tasks, FEWEST_TRAINED), "catalogues": scaled(train.catalogues, 4)}
            ),
            "held_out": held_out.model_copy(update={"tasks": scaled(held_out.tasks, FEWEST_MEASURED)}),
            "unseen_tasks": scaled(config.unseen_tasks, 0),
        }
    )


def _steps(config: Tune, costs: dict[str, float]) -> dict[str, float]:
    """Seconds of each step of the round. Every method measures its candidate."""
    measured = config.held_out.tasks + config.unseen_tasks + (config.recorded_tasks if config.data else 0)
    steps = {
        "collect": costs["collect"] * (config.train.tasks + measured) + costs["own"] * config.own_attempts,
        "measure": costs["evaluate"] * measured * (1 + len(config.methods)),
        "sft": costs["fixed"] + costs["train"] * config.train.tasks * config.sft.epochs,
    }
    if "dpo" in config.methods:
        pairs = costs["dpo"] * config.train.tasks * config.dpo.epochs
        steps["dpo"] = costs["pairs"] * config.pairing.own_attempts + pairs + costs["fixed"]
    if "grpo" in config.methods:
        steps["grpo"] = costs["grpo"] * config.grpo.iterations + costs["fixed"]
    if config.general:
        steps["general"] = costs["general"] * (1 + len(config.methods))
    return {name: seconds * MARGIN for name, seconds in steps.items()}


def _known(store: Store, runtime: Runtime, stock: Served) -> dict[str, float]:
    """Seconds of one of each, out of the newest finished runs with this base on this runtime."""
    runs = [run for run in store.runs() if runtime.identity().items() <= run.inputs.items()]
    ours = [run for run in runs if stock.sha256 in (run.inputs.get("base"), run.inputs.get("model"))]
    known: dict[str, float] = {}
    rules: dict[str, tuple[str, Callable[[Run], float]]] = {
        "collect": ("collect", lambda run: run.seconds / sum(_number(part, "made") for part in run.metrics.values())),
        "evaluate": ("evaluate", lambda run: run.seconds / sum(report(store, run, name).n for name in run.outputs)),
        "general": ("general", lambda run: run.seconds),
        "train": ("train", lambda run: _number(run, "train_seconds") / _number(run, "rows") / _epochs(run)),
        "fixed": ("train", lambda run: max(0.0, run.seconds - _number(run, "train_seconds"))),
        "dpo": ("dpo", lambda run: _number(run, "train_seconds") / _number(run, "pairs") / _epochs(run)),
        "grpo": ("grpo", lambda run: run.seconds / _number(run, "iterations")),
        "pairs": ("pairs", lambda run: run.seconds / _number(run.metrics.get("own"), "made")),
    }
    for name, (kind, cost) in rules.items():
        for run in ours:
            if run.kind == kind and name not in known:
                try:
                    known[name] = cost(run)
                except (ZeroDivisionError, ValueError):
                    continue
    return known | ({"own": known["collect"]} if "collect" in known else {})


def _number(of: object, key: str) -> float:
    found = of.metrics.get(key) if isinstance(of, Run) else of.get(key) if isinstance(of, dict) else None
    if not isinstance(found, int | float) or isinstance(found, bool):
        raise ValueError(key)
    return float(found)


def _epochs(run: Run) -> float:
    epochs = run.config.get("epochs", 1)
    return float(epochs) if isinstance(epochs, int | float) else 1.0


def _probe(runtime: Runtime, stock: Served) -> float:
    """How much slower than the machine of `_ELSEWHERE` a short request is here: another one first, to load the file."""
    said = [Message(role="user", text=text) for text in ("Hello", _PROBE)]
    times = [0.0]
    with runtime.open(stock) as model:
        for message in said:
            model.chat([message], (), ChatOptions(max_tokens=24))
            times.append(time.monotonic())
    return [late - early for early, late in pairwise(times)][-1] / _PROBE_SECONDS
