"""Weights in the GGUF's own blocks: bit for bit the dequantised model, the same gradients, and LoRA trains on them."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llm_tuner.training import blocks as blocks_module  # noqa: E402
from llm_tuner.training.base import load_base, one_precision  # noqa: E402
from llm_tuner.training.blocks import BlockLinear, load_blocks, unpack, unpack_five_bits  # noqa: E402
from llm_tuner.training.lora import with_lora  # noqa: E402
from llm_tuner.training.recipe import Recipe  # noqa: E402
from llm_tuner.types import CorruptModel, SetupError  # noqa: E402

IDS = torch.randint(3, 200, (1, 40), generator=torch.Generator().manual_seed(0))


def loss_and_gradients(model):
    torch.manual_seed(0)
    model = with_lora(model, Recipe(r=4, alpha=8, target_modules=("q_proj", "k_proj", "down_proj")))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    with one_precision(model):
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(("architecture", "kind"), [("qwen2", "Q8_0"), ("qwen2", "Q5_0"), ("llama", "Q4_1")])
def test_blocks_give_the_loss_and_gradients_of_the_dense_model(architecture, kind, tiny_gguf, monkeypatch):
    monkeypatch.setattr(blocks_module, "PIECE", 3000)  # so that every matrix takes several pieces
    gguf = tiny_gguf(architecture, kind)
    model = load_blocks(gguf, torch.float32)
    assert sum(isinstance(module, BlockLinear) for module in model.modules()) == 15  # 2 x 7, and the output
    assert not any(p.device.type == "meta" for p in model.parameters())
    loss, gradients = loss_and_gradients(model)
    wanted, true = loss_and_gradients(load_base(gguf, torch.float32))
    assert loss == pytest.approx(wanted, rel=1e-6)
    assert torch.linalg.norm(gradients - true) / torch.linalg.norm(true) < 1e-5


def test_bfloat16_blocks_compute_what_a_bfloat16_base_computes(tiny_gguf):
    loss, gradients = loss_and_gradients(load_blocks(tiny_gguf(), torch.bfloat16))
    wanted, true = loss_and_gradients(load_base(tiny_gguf(), torch.bfloat16))
    assert loss == pytest.approx(wanted, rel=2e-3)
    assert torch.cosine_similarity(gradients, true, dim=0) > 0.999


def test_a_step_of_lora_learns_and_the_blocks_stay(tiny_gguf):
    model = with_lora(
        load_blocks(tiny_gguf(), torch.float32), Recipe(r=4, alpha=8, target_modules=("q_proj", "v_proj"))
    )
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    model.enable_input_require_grads()
    model.activation_checkpointing_enable()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(6):
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if not p.requires_grad)


@pytest.mark.parametrize("kind", ["Q5_0", "Q5_1", "Q4_0", "Q8_0", "Q4_K", "Q6_K", "Q3_K", "IQ4_NL"])
def test_unpacking_equals_ggufs_own(kind):
    import gguf

    from llm_tuner.training.export import quantise

    quant = getattr(gguf.GGMLQuantizationType, kind)
    weight = np.random.default_rng(0).normal(size=(6, 512)).astype(np.float32)
    raw = np.frombuffer(quantise(weight, quant), dtype=np.uint8).reshape(6, -1)
    wanted = torch.from_numpy(gguf.dequantize(raw, quant))
    blocks = torch.from_numpy(raw.copy())
    assert torch.equal(unpack(blocks, quant, 512, torch.float32), wanted)
    if kind.startswith("Q5"):
        assert torch.allclose(unpack_five_bits(blocks, kind, torch.float32).reshape(6, 512), wanted, rtol=1e-6)


def test_a_model_that_it_does_not_know_or_cannot_read_is_named(tiny_gguf, tmp_path, monkeypatch):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(tiny_gguf().read_bytes()[:4000])
    with pytest.raises(CorruptModel, match=r"bad\.gguf"):
        load_blocks(bad, torch.float32)
    monkeypatch.setattr(blocks_module, "ARCHITECTURES", ("gemma3",))
    with pytest.raises(SetupError, match="is a qwen2 model"):
        load_blocks(tiny_gguf(), torch.float32)
