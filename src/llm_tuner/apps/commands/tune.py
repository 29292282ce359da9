"""`llm-tuner demo` and `llm-tuner tune`: the whole loop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from llm_tuner.apps.console import Json, drive, note, out
from llm_tuner.types import Value

if TYPE_CHECKING:
    from llm_tuner.loop import Outcome
    from llm_tuner.store import Store
    from llm_tuner.types import Report

ORDER = "last-round.json"
"""The file beside the runs in which an order is kept."""

RuntimeName = Annotated[str, typer.Option("--runtime", help="Where the model is served: embedded or ollama.")]


def demo(json: Json = False, runtime: RuntimeName = "embedded") -> None:
    """The whole loop on a real 0.5B model and four real tool servers, on a laptop CPU.

    Downloads Qwen2.5-Coder-0.5B (491 MB) once, measures it as served, collects examples on the servers git, time,
    fetch and sqlite, trains, installs, measures again, and promotes or refuses. A second run reuses what it can.

    Example: llm-tuner demo --json
    """
    from llm_tuner.loop import Tune

    _run(Order(config=Tune(name="demo").model_dump(mode="json"), runtime=runtime), json)


def tune(
    json: Json = False,
    runtime: RuntimeName = "embedded",
    config: Annotated[Path | None, typer.Option(help="A TOML file with the fields of the step (docs/tune.md).")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the tuned model.")] = None,
    base: Annotated[str | None, typer.Option(help="Base model: a name of `models list`, or a source.")] = None,
    hub: Annotated[str | None, typer.Option(help='An mcpServers JSON file, or "demo".')] = None,
    execute: Annotated[
        bool | None, typer.Option("--execute/--no-execute", help="Really call the servers, inside a throw-away folder.")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="A data set to learn from too, as `data import` wrote it. Repeatable.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="sft, or what goes on from it: sft,dpo  sft,grpo  sft,dpo,grpo.")
    ] = None,
    budget: Annotated[
        str, typer.Option(help='Time that a round may take, such as "2h": what does not fit is left out, and said.')
    ] = "",
    rounds: Annotated[
        int, typer.Option(min=1, help="So many, one after the other, each going on from recorded traffic.")
    ] = 1,
    journal: Annotated[
        Path | None, typer.Option(help="Recorded traffic for --rounds. Default: where `serve gateway` records.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the round that was begun last, as asked.")
    ] = False,
) -> None:
    """One round of the loop on your own tool servers, or several.

    With --execute the calls run for real: use it for servers that stay inside the folder they are started in.
    Flags win over the environment (LLM_TUNER_NAME, LLM_TUNER_BASE, LLM_TUNER_HUB), which wins over the file. A round
    that was killed goes on where it stopped, with --resume or when it is asked for again. Exit code 3: refused.

    Example: llm-tuner tune --hub .mcp.json --name mine --no-execute --budget 2h
    """
    from llm_tuner.apps.settings import resolve
    from llm_tuner.store import Store
    from llm_tuner.types import SetupError

    flags: dict[str, Any] = {"name": name, "base": base, "hub": hub, "execute": execute, "data": data or None}
    flags["methods"] = methods.replace(" ", "").split(",") if methods else None
    if resume:
        if config or budget or journal or rounds != 1 or any(value is not None for value in flags.values()):
            raise SetupError("--resume goes on with what was asked for; leave the other flags out.")
        order = Order.last(Store())
    else:
        resolved = resolve(config, flags).model_dump(mode="json")
        where = str(journal.absolute()) if journal else ""
        order = Order(config=resolved, runtime=runtime, budget=budget, rounds=rounds, journal=where)
    _run(order, json)


class Order(Value):
    """What was asked for, kept so that `--resume` asks for it again. A plan is made once."""

    config: dict[str, Any]
    runtime: str
    budget: str = ""
    rounds: int = 1
    journal: str = ""

    @staticmethod
    def last(store: Store) -> Order:
        from llm_tuner.types import SetupError

        try:
            return Order.model_validate_json((store.root / ORDER).read_bytes())
        except FileNotFoundError:
            raise SetupError("No round was begun here yet, so none can go on. Begin one: llm-tuner tune") from None
        except (OSError, ValidationError) as error:
            raise SetupError(f"{store.root / ORDER} cannot be read: {error}. Ask for the round again.") from error

    def keep(self, store: Store) -> None:
        from llm_tuner.store import write_atomic

        store.root.mkdir(parents=True, exist_ok=True)
        write_atomic(store.root / ORDER, self.model_dump_json())


def _run(order: Order, json: bool) -> None:
    from platformdirs import user_data_path

    from llm_tuner import loop
    from llm_tuner.apps.commands.data_sets import references
    from llm_tuner.loop.planning import plan, seconds_of
    from llm_tuner.models.runtimes import open_runtime
    from llm_tuner.operations.rounds import summary
    from llm_tuner.store import Store
    from llm_tuner.types import GATE_REFUSED

    config, store, runtime = loop.Tune.model_validate(order.config), Store(), open_runtime(order.runtime)
    budget = seconds_of(order.budget) if order.budget else None
    order.keep(store)
    if budget is not None:
        config, _ = drive(plan(config, budget, store, runtime))
        order = order.model_copy(update={"config": config.model_dump(mode="json"), "budget": ""})
        order.keep(store)
    if order.rounds == 1:
        outcomes: tuple[Outcome, ...] = (drive(loop.tune(config, store, runtime)),)
    else:
        journal = Path(order.journal) if order.journal else user_data_path("llm-tuner") / "exchanges"
        outcomes = drive(loop.rounds(config, order.rounds, store, runtime, journal, references=references(True)))
    if order.rounds == 1:
        out(summary(outcomes[0]), json, lambda: _text(outcomes[0]))
    else:
        document = {"rounds": [summary(outcome) for outcome in outcomes]}
        out(document, json, lambda: "\n\n".join(f"ROUND {n}\n{_text(o)}" for n, o in enumerate(outcomes, 1)))
    if not outcomes[-1].decision.promote:
        raise typer.Exit(GATE_REFUSED)


def _text(outcome: Outcome) -> str:
    from llm_tuner.apps.console import table

    rows = []
    for label, before, after in (
        ("held-out requests", outcome.before, outcome.after),
        ("tools never trained", outcome.unseen_before, outcome.unseen_after),
    ):
        if before is None or after is None:
            continue
        for key in ("native_rate", "selection", "parameters", "no_call"):
            if after.rates[key].n:
                rows.append([label, key, _rate(before, key), _rate(after, key), str(after.rates[key].n)])
    lines = [table(rows, ["suite", "rate", "before", "after", "n"]), ""]
    lines += [f"[{'ok' if check.passed else 'NO'}] {check.sentence}" for check in outcome.decision.checks]
    if len(outcome.stages) > 1:
        ends = ", ".join(f"{one.method} {'passed' if one.decision.promote else 'refused'}" for one in outcome.stages)
        lines += ["", f"By method: {ends}."]
    lines += ["", f"{'Promoted' if outcome.decision.promote else 'Not promoted'}: {outcome.stable}"]
    lines += [f"{name}: {path}" for name, path in outcome.files.items()]
    note(f"Took {outcome.minutes} minutes.")
    return "\n".join(lines)


def _rate(report: Report, key: str) -> str:
    rate = report.rates[key]
    if rate.value is None or rate.low is None or rate.high is None:
        return "-"
    return f"{rate.value * 100:5.1f} % ({rate.low * 100:.0f}-{rate.high * 100:.0f})"
