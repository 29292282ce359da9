"""What every recipe can be told. One flat frozen class; SFT, DPO and GRPO add their own fields."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from llm_tuner.types import Value

Precision = Literal["auto", "float32", "bfloat16"]
Variant = Literal["lora", "rslora", "dora", "pissa"]

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What LoRA adapts: every linear layer of a Llama-like block (QLoRA, Dettmers et al. 2023, section 4)."""


class Recipe(Value):
    """How to fine-tune. One optimizer step sees about `batch * accumulation` rows (pairs in DPO): those of a catalogue
    stand in the same step and share its tokens.

    `pack_tokens` bounds what is computed at once, and so memory, not what is learned; a row longer than that has a pack
    of its own. `max_seq_length` bounds a single row: longer ones are refused, or left out (`too_long`), never cut.
    `variant`: LoRA (Hu et al. 2021), rsLoRA (Kalajdzievski 2023), DoRA (Liu et al. 2024), PiSSA (Meng et al. 2024, in
    float32 only). `loraplus` is the learning rate of B over that of A (LoRA+, Hayou et al. 2024).
    `weights`: "blocks" keeps the base in the GGUF's own 4 to 8 bits and unpacks what it needs (blocks.py): the memory
    of QLoRA, with the very weights that are served. `patience`: training stops when that many measurements of the
    held-out loss in a row, `evaluate_every` steps apart, were no better; the best adapter is kept. 0: never. `memory`:
    what training may take, such as "8GB"; `weights`, `precision`, `gradient_checkpointing` and `pack_tokens` are then
    derived from it (memory.py). "": they are as they stand here.
    """

    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] = Field(LINEAR_LAYERS, min_length=1)
    variant: Variant = "lora"
    loraplus: float = Field(1.0, gt=0)
    learning_rate: float = Field(2e-4, gt=0)
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    batch: int = Field(2, ge=1)
    accumulation: int = Field(8, ge=1)
    epochs: float = Field(1.0, gt=0)
    max_seq_length: int = Field(2048, ge=16)
    too_long: Literal["refuse", "drop"] = "refuse"
    pack_tokens: int = Field(4096, ge=16)
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Precision = "auto"
    weights: Literal["dense", "blocks"] = "dense"
    gradient_checkpointing: bool = False
    memory: str = ""
    checkpoint_every: int = Field(10, ge=1)
    evaluate_every: int = Field(10, ge=1)
    patience: int = Field(0, ge=0)
    seed: int = 0

    @property
    def units_a_step(self) -> int:
        """Rows (pairs) an optimizer step."""
        return self.batch * self.accumulation

    @property
    def scale(self) -> float:
        """What B A is multiplied with: alpha / r, in rsLoRA alpha / sqrt(r)."""
        return self.alpha / (math.sqrt(self.r) if self.variant == "rslora" else self.r)

    def rate(self, step: int, total: int) -> float:
        """The learning rate of step 0 .. total - 1: linear warm-up, then a cosine to zero."""
        warm = round(total * self.warmup_ratio)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


class Curve(Value):
    """One optimizer step. `loss`: the recipe's, a mean over the step's targets (SFT: nats a token; GRPO) or pairs
    (DPO); `gradient_norm` before clipping; `tokens` computed by this process, for rows of `row_tokens`; `seconds`; what
    else was measured."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int = 0
    row_tokens: int = 0
    seconds: float = 0.0
    held_out_loss: float | None = None
    measured: dict[str, float] = Field(default_factory=dict)
