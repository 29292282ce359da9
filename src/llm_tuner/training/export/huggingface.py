"""Folders for Hugging Face's libraries: the adapter for PEFT, and the merged model as safetensors with its tokenizer.

Not a second tokenizer: the one that transformers makes of the GGUF is proven on the training rows, token by token. The
rule that it protects: a folder that does not read text as the served model reads it does not come to be.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from llm_tuner.store import write_atomic
from llm_tuner.training.base import give_memory_back, load_base, quiet, require_torch
from llm_tuner.training.export.adapter import read_config
from llm_tuner.types import Row, TrainingError

Weights = Literal["bfloat16", "float16", "float32"]


def peft_folder(adapter: Path, out: Path, base: str) -> None:
    """The adapter as PEFT loads it; `base` is the repository (or the path) that `AutoPeftModel` takes the base from."""
    config = read_config(adapter)
    shutil.copyfile(adapter / "adapter_model.safetensors", out / "adapter_model.safetensors")
    write_atomic(out / "adapter_config.json", json.dumps(config | {"base_model_name_or_path": base}, indent=2) + "\n")


def safetensors_folder(base: Path, adapter: Path, out: Path, rows: Sequence[Row], weights: Weights) -> None:
    """The merged model (PEFT's own merge, in float32, rounded once to `weights`), its tokenizer with the chat template,
    and its generation settings, as `from_pretrained` loads them.

    Raises TrainingError where the tokenizer reads a row's prompt as other tokens than it was trained on.
    """
    from peft import PeftModel

    torch = require_torch()
    save_tokenizer(base, out, rows)
    with quiet():
        model = PeftModel.from_pretrained(load_base(base, torch.float32), str(adapter)).merge_and_unload(
            safe_merge=True
        )
        model = model.to(getattr(torch, weights))
        model.config.use_cache = True
        model.config.dtype = getattr(torch, weights)
        model.save_pretrained(str(out))
    del model
    give_memory_back()


def save_tokenizer(base: Path, out: Path, rows: Sequence[Row]) -> None:
    """The GGUF's tokenizer as transformers' files, proven on the rows."""
    try:
        with quiet():
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(str(base.parent), gguf_file=base.name)
    except Exception as error:  # the tokenizers library raises Exception itself
        raise TrainingError(
            f"transformers cannot read the tokenizer of {base.name}: {error}. Export a GGUF, which carries its own."
        ) from error
    for row in rows:
        refuse_other_tokens(tokenizer, row)
    with quiet():
        tokenizer.save_pretrained(str(out))


def refuse_other_tokens(tokenizer: Any, row: Row) -> None:
    """TrainingError unless this tokenizer makes the row's prompt ids of its prompt."""
    found = tuple(tokenizer(row.prompt, add_special_tokens=False).input_ids)
    if found == row.prompt_ids:
        return
    place = next(
        (n for n, (a, b) in enumerate(zip(found, row.prompt_ids, strict=False)) if a != b),
        min(len(found), len(row.prompt_ids)),
    )
    raise TrainingError(
        f"The tokenizer that transformers makes of the base reads the prompt of task {row.task_id} otherwise than the "
        f"server: from token {place} on it is {list(found[place : place + 3])}, trained was "
        f"{list(row.prompt_ids[place : place + 3])}. "
        "Export a GGUF, or the PEFT folder for the publisher's own tokenizer."
    )
