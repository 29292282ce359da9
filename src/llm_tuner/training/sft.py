"""Supervised fine-tuning: LoRA on packs of rows, loss on the completions only. Read it top to bottom.

transformers.Trainer does the loop (schedule, clipping, checkpoints, resume) through its public arguments; ours are the
packs (packing.py) and the loss below.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from llm_tuner.store import write_atomic, write_jsonl
from llm_tuner.training.base import (
    LINEAR_LAYERS,
    Precision,
    bound_memory,
    choose_precision,
    give_memory_back,
    load_base,
    one_precision,
    quiet,
    with_lora,
)
from llm_tuner.training.packing import Pack, plan, tensors
from llm_tuner.types import Event, Row, TrainingError, TrainingInterrupted, Value


class SFT(Value):
    """How to fine-tune. One optimizer step sees about `batch * accumulation` rows: those of a catalogue are packed into
    sequences of at most `pack_tokens` tokens (memory grows with it), and as many packs as that takes make a step.
    `max_seq_length` bounds a single row."""

    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] = LINEAR_LAYERS
    learning_rate: float = Field(2e-4, gt=0)
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    batch: int = Field(2, ge=1)
    accumulation: int = Field(8, ge=1)
    epochs: float = Field(1.0, gt=0)
    max_seq_length: int = Field(2048, ge=16)
    pack_tokens: int = Field(1536, ge=16)
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Precision = "auto"
    gradient_checkpointing: bool = False
    checkpoint_every: int = Field(10, ge=1)
    seed: int = 0


class Curve(Value):
    """One optimizer step: mean loss a target token (nats), learning rate, gradient norm before clipping."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float


def sft(config: SFT, gguf: Path, rows: Sequence[Row], out: Path) -> Generator[Event, None, dict[str, Any]]:
    """Trains an adapter into `out/adapter` and writes `out/curve.jsonl`; returns metrics.

    A run killed in the middle goes on from `out/checkpoints` when called again with the same arguments. Raises
    DataError for rows that do not fit, TrainingInterrupted when the caller stops consuming events.
    """
    packs = plan(
        rows,
        max_row=config.max_seq_length,
        max_tokens=config.pack_tokens,
        max_rows=config.batch * config.accumulation,
        seed=config.seed,
    )
    dtype = choose_precision(config.precision)
    yield Event(step="train", message=f"loading {gguf.name} dequantised to {str(dtype).removeprefix('torch.')}")
    bound_memory()
    model = load_base(gguf, dtype)
    trainer, curve, stop = _trainer(config, model, packs, out)
    checkpoint = last_checkpoint(out / "checkpoints")
    if checkpoint is not None:
        yield Event(step="train", message=f"resuming from {checkpoint.name}")
    yield from _run(trainer, curve, stop, checkpoint)
    if not curve or any(point.loss != point.loss for point in curve):  # NaN is the only value unequal to itself
        raise TrainingError("The loss became NaN. Lower learning_rate or train with precision = float32.")
    metrics = _metrics(config, packs, rows, curve, dtype)
    write_jsonl(out / "curve.jsonl", curve)
    write_atomic(out / "metrics.json", json.dumps(metrics, indent=1))
    with quiet():
        trainer.model.save_pretrained(str(out / "adapter.partial"))
    os.replace(out / "adapter.partial", out / "adapter")  # last: its presence says that training is done
    del trainer, model
    give_memory_back()  # the model is measured next, in a process of its own
    return metrics


def _metrics(
    config: SFT, packs: Sequence[Pack], rows: Sequence[Row], curve: Sequence[Curve], dtype: Any
) -> dict[str, Any]:
    alone = sum(row.length for row in rows)
    packed = sum(len(pack.ids) for pack in packs)
    return {
        "rows": len(rows),
        "packs": len(packs),
        "steps": curve[-1].step,
        "row_tokens": alone,
        "packed_tokens": packed,
        "prefix_sharing": round(alone / packed, 2),
        "target_tokens": sum(len(pack.targets) for pack in packs),
        "first_loss": curve[0].loss,
        "last_loss": curve[-1].loss,
        "precision": str(dtype).removeprefix("torch."),
        "epochs": config.epochs,
    }


def completion_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    """Cross entropy over the target tokens, summed and divided by all target tokens of the optimizer step, so that
    gradient accumulation weighs tokens and not packs."""
    from llm_tuner.training.loss import target_loss

    total = target_loss(outputs.logits.flatten(0, 1), labels.flatten())
    return total / (num_items_in_batch if num_items_in_batch is not None else labels.numel())


def _trainer(config: SFT, model: Any, packs: Sequence[Pack], out: Path) -> tuple[Any, list[Curve], threading.Event]:
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

    set_seed(config.seed)
    model = with_lora(model, r=config.r, alpha=config.alpha, dropout=config.dropout, targets=config.target_modules)
    if config.gradient_checkpointing:
        model.enable_input_require_grads()
    rows_a_pack = sum(len(pack.spans) for pack in packs) / len(packs)
    packs_a_step = max(1, round(config.batch * config.accumulation / rows_a_pack))
    steps = max(1, round(len(packs) * config.epochs / packs_a_step))
    curve: list[Curve] = []
    stop = threading.Event()

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            curve[:] = [_point(entry) for entry in state.log_history if "loss" in entry]

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                curve.append(_point({**logs, "step": state.global_step}))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            give_memory_back()
            if stop.is_set():
                control.should_save = True
                control.should_training_stop = True

    arguments = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=packs_a_step,
        max_steps=steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(steps * config.warmup_ratio),
        weight_decay=0.0,
        max_grad_norm=config.max_grad_norm,
        activation_checkpointing=config.gradient_checkpointing,
        bf16=False,
        logging_steps=1,
        save_strategy="steps",
        save_steps=config.checkpoint_every,
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=False,
        seed=config.seed,
        data_seed=config.seed,
    )
    dtype = next(model.get_base_model().parameters()).dtype
    with quiet():
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=list(packs),
            data_collator=lambda batch: tensors(batch[0], dtype),
            compute_loss_func=completion_loss,
            callbacks=[Watch()],
        )
    trainer.remove_callback(PrinterCallback)
    return trainer, curve, stop


def _point(entry: Any) -> Curve:
    return Curve(
        step=int(entry["step"]),
        loss=float(entry["loss"]),
        learning_rate=float(entry.get("learning_rate", 0.0)),
        gradient_norm=float(entry.get("grad_norm", 0.0)),
    )


def _run(
    trainer: Any, curve: Sequence[Curve], stop: threading.Event, checkpoint: Path | None
) -> Generator[Event, None, None]:
    """Trains in a thread and yields an event a step. Closing the generator saves a checkpoint and stops."""
    failed: list[BaseException] = []
    finished = threading.Event()

    def work() -> None:
        try:
            dtype = next(trainer.model.get_base_model().parameters()).dtype
            with quiet(), one_precision(trainer.model, dtype):  # here: autocast belongs to a thread
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except BaseException as error:  # handed to the caller's thread below
            failed.append(error)
        finally:
            finished.set()

    thread = threading.Thread(target=work, name="llm-tuner-train", daemon=True)
    thread.start()
    total = trainer.args.max_steps
    shown = 0
    try:
        while not finished.wait(0.5):
            for point in curve[shown:]:
                shown += 1
                yield Event(
                    step="train", done=point.step, total=total, unit="step", data={"loss": point.loss},
                    message=f"loss {point.loss:.3f}",
                )  # fmt: skip
    except (GeneratorExit, KeyboardInterrupt) as error:
        stop.set()
        thread.join()
        if isinstance(error, KeyboardInterrupt):
            raise TrainingInterrupted(
                "Training was interrupted; a checkpoint is saved. Run the command again."
            ) from None
        raise
    if failed:
        raise TrainingError(f"Training failed: {failed[0]!r}") from failed[0]


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint. One that was killed while it was written has no trainer_state.json and is passed."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json") if _is_json(path)]
    return max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True
