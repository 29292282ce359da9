"""Our losses against TRL's own trainers on the same tokens, weights and adapter, step after step.

SFT and DPO are compared from outside, both by their public calls: every row stands in every optimizer step, so that
their order says nothing, and both start from the same adapter weights. The losses of the later steps then depend on the
gradients of the earlier ones. A long run of GRPO would need a server on both sides; there the two loss functions are
given the same numbers (TRL's is a private method of its trainer: `GRPOTrainer._compute_loss`).
"""

from __future__ import annotations

import json
import math
import random

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("datasets")

from llm_tuner.training.base import load_base, quiet  # noqa: E402
from llm_tuner.training.sft import LINEAR_LAYERS, SFT, sft  # noqa: E402
from llm_tuner.types import Pair, Row  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the libraries, about each other
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

STEPS = 4
RATE = 5e-3


def some_rows(count=6):
    """Rows of two catalogues, with completions of different lengths."""
    rng = random.Random(3)
    heads = [[rng.randrange(40, 120) for _ in range(size)] for size in (30, 24)]
    made = []
    for number in range(count):
        prompt = (*heads[number % 2], *(rng.randrange(40, 120) for _ in range(3 + number)))
        completion = (*(rng.randrange(40, 120) for _ in range(2 + number)), 0)
        made.append(Row(task_id=f"t{number}", prompt="p", completion="c", prompt_ids=prompt, completion_ids=completion))
    return made


def some_pairs():
    rows = some_rows()
    others = [*rows[1:], rows[0]]
    return [
        Pair(
            chosen=row,
            rejected=row.model_copy(update={"completion_ids": other.completion_ids}),
            reason="wrong_tool",
            origin="made",
        )
        for row, other in zip(rows, others, strict=True)
    ]


def words():
    """A tokenizer whose words are the token ids themselves."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(WordLevel({f"<{i}>": i for i in range(256)}, unk_token="<1>"))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<0>", eos_token="<0>")


def spelled(ids):
    return "".join(f" <{i}>" for i in ids)


def lora():
    from peft import LoraConfig

    return LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.0, target_modules=list(LINEAR_LAYERS), bias="none", task_type="CAUSAL_LM"
    )


def common(out, count, batch, **more):
    """What TRL's trainers are told so that they take the steps that ours does."""
    return {
        "output_dir": str(out),
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": count // batch,
        "num_train_epochs": STEPS,
        "learning_rate": RATE,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 0,
        **more,
    }


def trained(trainer):
    """The losses of each step, and the adapter's weights after the last one."""
    with quiet():
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, {n: w.detach().clone() for n, w in trainer.model.named_parameters() if w.requires_grad}


def ours(steps, out):
    """The same of our side."""
    from safetensors.torch import load_file

    while True:
        try:
            next(steps)
        except StopIteration:
            break
    losses = [json.loads(line)["loss"] for line in (out / "curve.jsonl").read_text().splitlines()]
    saved = load_file(out / "adapter" / "adapter_model.safetensors")
    return losses, {name.replace(".weight", ".default.weight"): weight for name, weight in saved.items()}


def assert_same(found, wanted, rel):
    """Both curves, and the adapters in the direction and length of what was learned."""
    assert len(found[0]) == len(wanted[0]) == STEPS
    assert found[0] == pytest.approx(wanted[0], rel=rel)
    assert found[1].keys() == wanted[1].keys()
    a, b = (torch.cat([weights[name].flatten() for name in sorted(found[1])]) for weights in (found[1], wanted[1]))
    assert torch.linalg.norm(a - b) / torch.linalg.norm(b) < 1e-3


CONFIG = {
    "epochs": STEPS,
    "precision": "float32",
    "learning_rate": RATE,
    "warmup_ratio": 0.0,
    "batch": 2,
    "accumulation": 3,
    "seed": 0,
}


@pytest.mark.parametrize("batch", [1, 3])
def test_sft_is_that_of_sft_trainer(batch, tiny_gguf, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = some_rows()
    data = Dataset.from_dict(
        {
            "input_ids": [[*row.prompt_ids, *row.completion_ids] for row in rows],
            "labels": [[*[-100] * len(row.prompt_ids), *row.completion_ids] for row in rows],
        }
    )
    with quiet():
        trainer = SFTTrainer(
            model=load_base(tiny_gguf(), torch.float32),
            args=SFTConfig(**common(tmp_path / "trl", len(rows), batch), max_length=None),
            train_dataset=data,
            processing_class=words(),
            peft_config=lora(),
        )
    wanted = trained(trainer)
    found = ours(sft(SFT(**CONFIG), tiny_gguf(), rows, tmp_path / "ours"), tmp_path / "ours")
    assert wanted[0][-1] < wanted[0][0] - 0.05  # it learns, so that equal curves say something
    assert_same(found, wanted, rel=1e-4)


def test_dpo_is_that_of_dpo_trainer(tiny_gguf, tmp_path):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    module = pytest.importorskip("llm_tuner.training.dpo")
    pairs = some_pairs()
    data = Dataset.from_dict(
        {
            "prompt": [spelled(pair.chosen.prompt_ids) for pair in pairs],
            "chosen": [spelled(pair.chosen.completion_ids) for pair in pairs],
            "rejected": [spelled(pair.rejected.completion_ids) for pair in pairs],
        }
    )
    with quiet():
        trainer = DPOTrainer(
            model=load_base(tiny_gguf(), torch.float32),
            args=DPOConfig(**common(tmp_path / "trl", len(pairs), 2), beta=0.1, loss_type=["sigmoid"], max_length=None),
            train_dataset=data,
            processing_class=words(),
            peft_config=lora(),
        )
    assert [tuple(ids) for ids in trainer.train_dataset["prompt_ids"]] == [p.chosen.prompt_ids for p in pairs]
    wanted = trained(trainer)
    steps = module.dpo(module.DPO(**CONFIG, beta=0.1), tiny_gguf(), pairs, tmp_path / "ours")
    found = ours(steps, tmp_path / "ours")
    assert found[0][0] == pytest.approx(math.log(2), rel=1e-5)
    assert wanted[0][-1] < 0.9 * wanted[0][0]
    assert_same(found, wanted, rel=1e-3)


@pytest.mark.parametrize("kl", [0.0, 0.04])
@pytest.mark.parametrize("older", [False, True])
def test_the_policy_loss_is_that_of_grpo_trainer(kl, older, tiny_gguf, tmp_path):
    """Value and gradient by the log-probabilities, for the token mean (`bnpo`), which is what ours divides by, and the
    KL of the paper. TRL's default multiplies that by the ratio (`use_bias_correction_kl`, DeepSeek-V3.2)."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    module = pytest.importorskip("llm_tuner.training.grpo")
    packing = pytest.importorskip("llm_tuner.training.packing")
    more = {"num_generations": 2, "beta": kl, "loss_type": "bnpo", "epsilon": 0.2, "max_completion_length": 16}
    more |= {"use_bias_correction_kl": False}
    with quiet():
        trainer = GRPOTrainer(
            model=load_base(tiny_gguf(), torch.float32),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=GRPOConfig(**common(tmp_path / "trl", 2, 2), **more),
            train_dataset=Dataset.from_dict({"prompt": [spelled((50, 51, 52))] * 2}),
            processing_class=words(),
            peft_config=lora(),
        )
    random_numbers = torch.Generator().manual_seed(0)
    lengths = (3, 7, 5)
    advantages = (1.2, -0.7, 0.4)
    mask = torch.tensor([[float(i < length) for i in range(max(lengths))] for length in lengths])
    new = -3 * torch.rand(mask.shape, generator=random_numbers)
    old = new + 0.4 * torch.randn(mask.shape, generator=random_numbers)
    reference = new + 0.2 * torch.randn(mask.shape, generator=random_numbers)

    theirs = new.clone().requires_grad_()
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (theirs, torch.zeros_like(new), None)
    trainer.current_gradient_accumulation_steps = 1
    inputs = {
        "prompt_ids": torch.ones(3, 2, dtype=torch.long),
        "prompt_mask": torch.ones(3, 2, dtype=torch.long),
        "completion_ids": torch.ones(mask.shape, dtype=torch.long),
        "completion_mask": mask,
        "advantages": torch.tensor(advantages),
        "ref_per_token_logps": reference,
    }
    if older:
        inputs["old_per_token_logps"] = old
    wanted = trainer._compute_loss(trainer.model, inputs)
    wanted.backward()

    units = []
    for number, length in enumerate(lengths):
        row = Row(task_id="t", prompt="", completion="", prompt_ids=(1, 2), completion_ids=tuple(range(length)))
        share = module.Share(
            advantages[number],
            tuple(reference[number, :length].tolist()) if kl else (),
            tuple(old[number, :length].tolist()) if older else (),
        )
        units.append(packing.Unit((row,), weight=length, data=share))
    flat = torch.cat([new[i, :n] for i, n in enumerate(lengths)]).requires_grad_()
    total, measured = module.policy_loss(module.GRPO(kl=kl, clip=0.2), flat, units)
    found = total / sum(unit.weight for unit in units)
    found.backward()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-7)
    slope = torch.cat([theirs.grad[i, :n] for i, n in enumerate(lengths)])
    assert torch.allclose(flat.grad, slope, atol=1e-6)
    assert slope.abs().sum() > 0.1
    assert (measured["clipped"] > 0) is older


@pytest.mark.parametrize("scaled", [True, False])
def test_group_advantages_are_the_papers(scaled):
    """(r - mean) / deviation (Shao et al. 2024, section 4.1.2); TRL computes it inside of its generation step. It takes
    the sample deviation and adds 1e-4, the paper names neither; ours is the population's, of which n / (n - 1)
    is the only difference."""
    module = pytest.importorskip("llm_tuner.training.grpo")
    from llm_tuner.types import Rollout

    rewards = [0.0, 1.0, 0.5, 1.0]
    rows = some_rows(4)
    rollouts = [Rollout(task_id="a", rows=(row,), reward=r) for row, r in zip(rows, rewards, strict=True)]
    units, _ = module.advantages(module.GRPO(scaled=scaled), rollouts)
    values = torch.tensor(rewards)
    wanted = values - values.mean()
    if scaled:
        wanted = wanted / values.std(correction=0)
    assert [unit.data.advantage for unit in units] == pytest.approx(wanted.tolist(), rel=1e-5)
