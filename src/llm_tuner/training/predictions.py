"""What the trainer itself foresees: the yardstick that every exported file is held against.

Not an evaluation: no task is judged, and nothing is generated. The rule that it protects: base and adapter are computed
as they were trained (PEFT's own forward pass, in the trainer's precision), never a merged or exported form of them.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from llm_tuner.store import append_jsonl, resume_jsonl
from llm_tuner.training.base import choose_precision, give_memory_back, load_base, quiet, require_torch
from llm_tuner.training.recipe import Precision
from llm_tuner.types import Event, Prediction, Row


def predict(
    gguf: Path, adapter: Path, rows: Sequence[Row], out: Path, *, precision: Precision = "auto"
) -> Generator[Event, None, tuple[Prediction, ...]]:
    """The trainer's predictions of these rows, in their order, kept in `out` (JSONL).

    What `out` has already is not computed again, so a killed call goes on, and a finished one loads nothing.
    """
    done = {prediction.row: prediction for prediction in resume_jsonl(out, Prediction)}
    missing = [row for row in rows if row.fingerprint not in done]
    if missing:
        dtype = choose_precision(precision)
        yield Event(step="predict", message=f"loading {gguf.name} and its adapter")
        model = _load(gguf, adapter, dtype)
        for number, row in enumerate(missing, start=1):
            done[row.fingerprint] = prediction_of(model, row)
            append_jsonl(out, done[row.fingerprint])
            yield Event(step="predict", message="the trainer", done=number, total=len(missing), unit="rows")
        del model
        give_memory_back()
    return tuple(done[row.fingerprint] for row in rows)


def predict_folder(folder: Path, rows: Sequence[Row], out: Path) -> Generator[Event, None, tuple[Prediction, ...]]:
    """The same of a safetensors folder, as `AutoModelForCausalLM.from_pretrained` loads it."""
    from transformers import AutoModelForCausalLM

    done = {prediction.row: prediction for prediction in resume_jsonl(out, Prediction)}
    missing = [row for row in rows if row.fingerprint not in done]
    if missing:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(str(folder)).eval()
        for number, row in enumerate(missing, start=1):
            done[row.fingerprint] = prediction_of(model, row)
            append_jsonl(out, done[row.fingerprint])
            yield Event(step="agreement", message=folder.name, done=number, total=len(missing), unit="rows")
        del model
        give_memory_back()
    return tuple(done[row.fingerprint] for row in rows)


def prediction_of(model: Any, row: Row) -> Prediction:
    """One row through a causal model of transformers, in its own precision; the softmax in float32."""
    torch = require_torch()
    ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]], device=model.device)
    predicts = torch.arange(len(row.prompt_ids) - 1, row.length - 1, device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, logits_to_keep=predicts).logits[0].float()
        said = logits.log_softmax(-1).gather(-1, ids[0, len(row.prompt_ids) :, None])[:, 0]
    return Prediction(
        row=row.fingerprint,
        log_probabilities=tuple(round(float(value), 6) for value in said),
        greedy=tuple(int(token) for token in logits.argmax(-1)),
    )


def _load(gguf: Path, adapter: Path, dtype: Any) -> Any:
    from peft import PeftModel

    model = load_base(gguf, dtype)
    with quiet():
        return PeftModel.from_pretrained(model, str(adapter)).eval()
