"""One side of `train_vs_trl.py` in a process of its own: reads a job (JSON file), writes what it measured beside it.

Both sides are timed by the same two hooks of PyTorch itself: the clock starts at the first forward call of any module
and ticks after every optimizer step. So loading, tokenising and planning do not count, and a reference model's forward
passes (DPO) do. Peak memory is of the training alone: the mark is set back at the first forward call.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm_tuner.types import Pair, Row


class Clock:
    """Seconds from the first forward call to each optimizer step."""

    def __init__(self) -> None:
        import torch
        from torch.nn.modules.module import register_module_forward_pre_hook
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self._torch = torch
        self._start = 0.0
        self.ticks: list[float] = []
        self._first = register_module_forward_pre_hook(self._begin)
        register_optimizer_step_post_hook(self._tick)

    def _begin(self, module: Any, args: Any) -> None:
        self._first.remove()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM := VmRSS
        if self._torch.cuda.is_available():
            self._torch.cuda.synchronize()
            self._torch.cuda.reset_peak_memory_stats()
        self._start = time.perf_counter()

    def _tick(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._torch.cuda.is_available():
            self._torch.cuda.synchronize()
        self.ticks.append(time.perf_counter() - self._start)

    def found(self) -> dict[str, Any]:
        """`epoch_seconds` is the whole, `warm_up_seconds` the first step's part of it; memory in GB (10^9 bytes)."""
        cuda = self._torch.cuda.is_available()
        steps = [b - a for a, b in zip([0.0, *self.ticks], self.ticks, strict=False)]
        return {
            "epoch_seconds": self.ticks[-1],
            "warm_up_seconds": steps[0],
            "step_seconds": [round(s, 3) for s in steps],
            "peak_rss_gb": _high_water() / 1e9,
            "peak_rss_with_loading_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
            "peak_cuda_gb": self._torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
            "device": self._torch.cuda.get_device_name() if cuda else "cpu",
        }


def _high_water() -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ------------------------------------------------------------------------------------------------------- what is made


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Writes the GGUF's dequantised weights as a transformers folder, so that every other process loads the same."""
    import torch
    import trl

    from llm_tuner.training.base import choose_precision, load_base, quiet

    dtype = choose_precision(job["precision"])
    model = load_base(Path(job["gguf"]), dtype)
    with quiet():
        model.save_pretrained(job["weights"])
    return {
        "precision": str(dtype).removeprefix("torch."),
        "vocabulary": model.config.vocab_size,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {"torch": torch.__version__, "trl": trl.__version__},
    }


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """`llm_tuner.training` as it is: its defaults, with a longer row limit where a row needs it."""
    out, examples = Path(job["out"]), _examples(job)
    rows = [row for e in examples for row in ((e.chosen, e.rejected) if isinstance(e, Pair) else (e,))]
    if job["kind"] == "dpo":
        from llm_tuner.training.dpo import DPO as Config
        from llm_tuner.training.dpo import dpo as train
    else:
        from llm_tuner.training.sft import SFT as Config
        from llm_tuner.training.sft import sft as train
    settings = _room(Config, rows) | {"precision": job["precision"], "seed": job["seed"]}
    settings |= {"learning_rate": job["learning_rate"]} | job["settings"]
    clock, started = Clock(), time.perf_counter()
    steps = train(Config(**settings), Path(job["gguf"]), examples, out)
    while True:
        try:
            next(steps)
        except StopIteration:
            break
    curve = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
    found = clock.found() | {"wall_seconds": time.perf_counter() - started, "settings": settings}
    return found | {"losses": [point["loss"] for point in curve]}


def _room(config: Any, rows: list[Row]) -> dict[str, Any]:
    """A longer row limit where the rows need it."""
    longest = max(row.length for row in rows)
    return {"max_seq_length": longest} if longest > config.model_fields["max_seq_length"].default else {}


def trl(job: dict[str, Any]) -> dict[str, Any]:
    """TRL's trainer with the settings of the job, on the same token ids, weights and optimizer settings."""
    os.environ["HF_DATASETS_CACHE"] = str(Path(job["out"]) / "datasets")  # or reference log-probs come from a disk
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    from llm_tuner.training.base import quiet
    from llm_tuner.training.sft import LINEAR_LAYERS

    examples, settings, cuda = _examples(job), job["settings"], torch.cuda.is_available()
    dtype = getattr(torch, job["precision"])
    attention = settings.get("attention", "sdpa")
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(job["weights"], dtype=dtype, attn_implementation=attention)
    batch = settings["batch"]
    packs = _packs(settings, examples)
    accumulation = max(1, round(min(16, len(examples)) / (packs["rows"] if packs else 1) / batch))
    steps = max(1, -(-(packs["count"] if packs else len(examples)) // (batch * accumulation)))
    common = {
        "output_dir": str(Path(job["out"]) / "trainer"),
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": settings.get("epochs", 1),
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "cosine",
        "warmup_steps": round(steps * settings.get("epochs", 1) * 0.05),
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": settings.get("checkpointing", False),
        "bf16": settings.get("autocast", False),
        "use_cpu": not cuda,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": cuda,
        "seed": job["seed"],
    }
    lora = LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.0, target_modules=list(LINEAR_LAYERS), bias="none", task_type="CAUSAL_LM"
    )
    words = _words(model.config.vocab_size, _ending(examples[0]))
    make = _dpo_trainer if job["kind"] == "dpo" else _sft_trainer
    clock, started = Clock(), time.perf_counter()
    with quiet():
        trainer = make(model, common, settings, examples, words, lora)
    with quiet():
        trainer.train()
    found = clock.found() | {"wall_seconds": time.perf_counter() - started, "settings": settings}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    trainer.save_model(str(Path(job["out"]) / "adapter"))
    return found | {"losses": losses, "rows_a_step": batch * accumulation * (packs["rows"] if packs else 1)}


def _packs(settings: dict[str, Any], rows: list[Any]) -> dict[str, float] | None:
    """How many packs TRL's `bfd` makes of the rows, and rows a pack on average."""
    if not settings.get("packing"):
        return None
    from datasets import Dataset
    from trl import pack_dataset

    made = pack_dataset(Dataset.from_dict({"input_ids": [[0] * r.length for r in rows]}), _pack_length(settings, rows))
    return {"count": len(made), "rows": len(rows) / len(made)}


def _pack_length(settings: dict[str, Any], rows: list[Any]) -> int:
    return int(settings["packing"]) * max(row.length for row in rows)


def _sft_trainer(model: Any, common: Any, settings: Any, rows: list[Row], words: Any, lora: Any) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    packing = bool(settings.get("packing"))
    data = Dataset.from_dict(
        {
            "input_ids": [[*row.prompt_ids, *row.completion_ids] for row in rows],
            "labels": [[*[-100] * len(row.prompt_ids), *row.completion_ids] for row in rows],
        }
    )
    config = SFTConfig(
        **common,
        packing=packing,
        packing_strategy="bfd",
        padding_free=settings.get("padding_free", False),
        max_length=_pack_length(settings, rows) if packing else None,
    )
    trainer = SFTTrainer(model=model, args=config, train_dataset=data, processing_class=words, peft_config=lora)
    kept = sum(len(ids) for ids in trainer.train_dataset["input_ids"])
    if kept != sum(row.length for row in rows):
        raise SystemExit(f"TRL kept {kept} of {sum(row.length for row in rows)} tokens: not the same training")
    return trainer


def _dpo_trainer(model: Any, common: Any, settings: Any, pairs: list[Pair], words: Any, lora: Any) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    def text(ids: tuple[int, ...]) -> str:
        return "".join(f" <{i}>" for i in ids)

    data = Dataset.from_dict(
        {
            "prompt": [text(p.chosen.prompt_ids) for p in pairs],
            "chosen": [text(p.chosen.completion_ids) for p in pairs],
            "rejected": [text(p.rejected.completion_ids) for p in pairs],
        }
    )
    config = DPOConfig(**common, beta=0.1, max_length=None, precompute_ref_log_probs=settings.get("precompute", False))
    trainer = DPOTrainer(model=model, args=config, train_dataset=data, processing_class=words, peft_config=lora)
    for pair, made in zip(pairs, trainer.train_dataset, strict=True):
        rows = (pair.chosen.prompt_ids, pair.chosen.completion_ids, pair.rejected.completion_ids)
        if rows != tuple(tuple(made[key]) for key in ("prompt_ids", "chosen_ids", "rejected_ids")):
            raise SystemExit(f"TRL trains on other tokens than ours: task {pair.chosen.task_id}")
    return trainer


def _words(size: int, ending: int) -> Any:
    """A tokenizer whose words are the token ids themselves: TRL wants one, and its DPO takes text only."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(WordLevel({f"<{i}>": i for i in range(size)}, unk_token="<0>"))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=f"<{ending}>", eos_token=f"<{ending}>")


def _ending(example: Row | Pair) -> int:
    return (example.chosen if isinstance(example, Pair) else example).completion_ids[-1]


def judge(job: dict[str, Any]) -> dict[str, Any]:
    """A third reading, by plain transformers and row by row in float32: the loss on the same rows of the base and of
    both sides' adapters. Mean nats a completion token; for pairs the DPO loss, beta 0.1, of the pair."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from llm_tuner.training.base import quiet

    examples = _examples(job)
    with quiet(), torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(job["weights"], dtype=torch.float32, attn_implementation="sdpa")
        base = base.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        names = list(job["adapters"])
        found: dict[str, Any] = {"base": [_nats(base, e) for e in examples]}
        model = PeftModel.from_pretrained(base, job["adapters"][names[0]], adapter_name=names[0])
        for name in names:
            if name != names[0]:
                model.load_adapter(job["adapters"][name], adapter_name=name)
            model.set_adapter(name)
            model.eval()
            found[name] = [_nats(model, e) for e in examples]
    return {name: _loss(examples, nats, found["base"]) for name, nats in found.items()}


def _nats(model: Any, example: Row | Pair) -> list[float]:
    """-ln p of the completion; for a pair, of the chosen and of the rejected one."""
    import torch

    nats = []
    for row in (example.chosen, example.rejected) if isinstance(example, Pair) else (example,):
        ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]], device=model.device)
        count = len(row.completion_ids)
        logits = model(input_ids=ids, logits_to_keep=count + 1, use_cache=False).logits[0, :-1]
        nats.append(torch.nn.functional.cross_entropy(logits.float(), ids[0, -count:], reduction="sum").item())
    return nats


def _loss(examples: list[Any], nats: list[list[float]], base: list[list[float]]) -> float:
    import math

    if isinstance(examples[0], Row):
        return sum(n[0] for n in nats) / sum(len(row.completion_ids) for row in examples)
    margins = [0.1 * ((b[0] - n[0]) - (b[1] - n[1])) for n, b in zip(nats, base, strict=True)]
    return sum(math.log1p(math.exp(-m)) for m in margins) / len(margins)


def _examples(job: dict[str, Any]) -> list[Any]:
    kind = Pair if job["kind"] == "dpo" else Row
    lines = Path(job["examples"]).read_text(encoding="utf-8").splitlines()
    return [kind.model_validate_json(line) for line in lines]


def _first_use(torch: Any) -> None:
    """One step of next to nothing: what PyTorch imports and starts at its first step is no part of either side."""
    layer = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 8)).sum().backward()
    torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
    optimizer.step()


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    import torch

    if job["threads"]:
        torch.set_num_threads(job["threads"])
    _first_use(torch)
    side = {"prepare": prepare, "ours": ours, "trl": trl, "judge": judge}[job["side"]]
    Path(sys.argv[2]).write_text(json.dumps(side(job)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
