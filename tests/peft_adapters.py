"""Real PEFT adapters on tiny models, of every option that export knows, with weights as if they had been trained."""

import torch

from llm_tuner.training.base import load_base, quiet
from llm_tuner.training.recipe import LINEAR_LAYERS

OPTIONS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dora_rslora": {"use_dora": True, "use_rslora": True},
    "patterns": {"rank_pattern": {"v_proj": 2, r"layers\.0\.mlp\.up_proj": 8}, "alpha_pattern": {"k_proj": 3}},
}


def peft_model(gguf, *, r=4, alpha=6, seed=0, strength=0.05, **options):
    """A PEFT model on the float32 weights of a GGUF, its adapter moved away from the start by `strength`."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=list(LINEAR_LAYERS), task_type="CAUSAL_LM", **options)
    with quiet():
        model = get_peft_model(load_base(gguf, torch.float32), config)
    if strength:
        move(model, strength)
    return model.eval()


def move(model, strength):
    """What training does, without its time: every trainable number moves."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if "magnitude" in name:
                parameter *= 1 + strength * torch.randn_like(parameter)
            else:
                parameter += strength * torch.randn_like(parameter)


def save(model, folder):
    with quiet():
        model.save_pretrained(str(folder))
    return folder


def drain(steps):
    """The result of a long step."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value
