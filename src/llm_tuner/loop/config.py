"""What a round of the loop is told: one class, whose fields are the keys of tune.toml (docs/tune.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from llm_tuner.data.pairs import Pairing
from llm_tuner.data.synthesize import Mix
from llm_tuner.loop.gate import Rules
from llm_tuner.training.dpo import DPO
from llm_tuner.training.grpo import GRPO
from llm_tuner.training.search import Space
from llm_tuner.training.sft import SFT
from llm_tuner.types import Value

Method = Literal["sft", "dpo", "grpo"]

CHAINS: tuple[tuple[Method, ...], ...] = (("sft",), ("sft", "dpo"), ("sft", "grpo"), ("sft", "dpo", "grpo"))


class Tune(Value):
    """One round of the loop. `hub` is "demo" or the path of an mcpServers JSON file; `execute` false keeps collecting
    from calling the servers (calls are then verified by their schema only); `seed_folder` is copied into the box.
    `pairing`, `dpo`, `grpo` are of what comes after a first training (feedback.py). An answer in a rollout has
    `answer_tokens` tokens at most; `groups_at_a_time` groups are asked at once where no prompt can be forked. With
    `rollouts_url` a vLLM server there, which serves the same base, is asked instead of the runtime. SFT and DPO run in
    `processes` processes on this machine. `keep`: by category, the share of the training tasks that sft trains on (all
    where none is named). `methods`: sft, then what goes on from it, each with a candidate of its own. `general`: a
    candidate that passed is asked about other things than tools, too. `search`: between what to search. `data`: folders
    of data sets (recorded traffic, imports) whose training side is learned too; `recorded_tasks` of their held-out side
    are a suite of their own.

    A table given in part (`{"sft": {"epochs": 2}}`) changes this class's default of it, not the table's own: a round of
    a few hundred rows wants smaller steps and a higher rate than SFT's defaults (docs/log.md, 2026-11-23)."""

    name: str = Field("tuned", pattern=r"^[A-Za-z0-9][\w.-]*$")
    base: str = "qwen2.5-coder:0.5b"
    hub: str = "demo"
    execute: bool = True
    seed_folder: Path | None = None
    data: tuple[Path, ...] = ()
    recorded_tasks: int = Field(96, ge=0)
    train: Mix = Mix(tasks=480, catalogues=30, sizes=(3, 7), catalogue_chars=2800)
    held_out: Mix = Mix(tasks=96, catalogues=4, sizes=(4, 8), catalogue_chars=40_000, whole_hub=True, seed=2)
    unseen_tasks: int = Field(24, ge=0)
    own_attempts: int = Field(16, ge=0)
    methods: tuple[Method, ...] = ("sft",)
    general: bool = True
    sft: SFT = SFT(batch=1, learning_rate=5e-4)
    rules: Rules = Rules()
    pairing: Pairing = Pairing()
    dpo: DPO = DPO()
    grpo: GRPO = GRPO()
    answer_tokens: int = Field(192, ge=1)
    groups_at_a_time: int = Field(2, ge=1)
    rollouts_url: str = ""
    processes: int = Field(1, ge=1)
    keep: dict[str, float] = Field(default_factory=dict)
    search: Space = Space()

    @field_validator("methods")
    @classmethod
    def _in_order(cls, methods: tuple[Method, ...]) -> tuple[Method, ...]:
        if methods not in CHAINS:
            chains = "; ".join(", ".join(chain) for chain in CHAINS)
            raise ValueError(f"methods are one of: {chains}; found {', '.join(methods) or 'none'}")
        return methods

    @model_validator(mode="before")
    @classmethod
    def _tables_in_part(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        defaults = {name: field.default for name, field in cls.model_fields.items() if isinstance(field.default, Value)}
        tables = {name: value for name, value in data.items() if isinstance(value, dict) and name in defaults}
        return data | {name: defaults[name].model_dump() | table for name, table in tables.items()}
