"""The loop: the only place that knows the order of the steps, the gate, promotion and rollback.

config.py is what a round is told, steps.py and feedback.py are its steps, gate.py decides, round.py is their order,
planning.py fits a round into a time, watch.py runs rounds by themselves.
"""

from __future__ import annotations

from llm_tuner.loop.config import CHAINS, Method, Tune
from llm_tuner.loop.gate import Rules, decide
from llm_tuner.loop.round import Outcome, Stage, method_step, rounds, tune
from llm_tuner.loop.steps import (
    BESIDE,
    DEMO_UNSEEN,
    collect_step,
    evaluate_step,
    export,
    find_run,
    general_step,
    hub_hash,
    loss_curve,
    parity_step,
    promote_step,
    render_rows,
    report,
    stock_step,
    train_step,
    workshop,
)

__all__ = [
    "BESIDE",
    "CHAINS",
    "DEMO_UNSEEN",
    "Method",
    "Outcome",
    "Rules",
    "Stage",
    "Tune",
    "collect_step",
    "decide",
    "evaluate_step",
    "export",
    "find_run",
    "general_step",
    "hub_hash",
    "loss_curve",
    "method_step",
    "parity_step",
    "promote_step",
    "render_rows",
    "report",
    "rounds",
    "stock_step",
    "train_step",
    "tune",
    "workshop",
]
