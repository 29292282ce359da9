"""Export against PEFT's own merge, against llama.cpp's own mix, and against what must be refused."""

import json
import re
import shutil
from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import gguf  # noqa: E402

from llm_tuner.models.llamacpp import Embedded  # noqa: E402
from llm_tuner.training.base import load_base, quiet  # noqa: E402
from llm_tuner.training.export import Adapter, adapter_gguf, merge  # noqa: E402
from llm_tuner.training.export.mix import BY_SIZE, FORMATS, mix, next_size  # noqa: E402
from llm_tuner.types import DiskFull, TrainingError  # noqa: E402
from peft_adapters import OPTIONS, drain, move, peft_model, save  # noqa: E402

ARCHITECTURES = ("qwen2", "llama", "gemma3", "qwen3")


def weights(model):
    return {name: tensor.float() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("option", OPTIONS)
def test_the_merged_weights_are_those_of_pefts_own_merge(architecture, option, tiny_gguf, tmp_path):
    base = tiny_gguf(architecture, "F32")
    model = peft_model(base, **OPTIONS[option])
    adapter = save(model, tmp_path / "adapter")
    drain(merge(base, adapter, tmp_path / "m.gguf"))
    with quiet():
        wanted = weights(model.merge_and_unload())
    found, before = weights(load_base(tmp_path / "m.gguf", torch.float32)), weights(load_base(base, torch.float32))
    assert found.keys() == wanted.keys()
    for name in found:
        torch.testing.assert_close(found[name], wanted[name], atol=2e-6, rtol=1e-5)
    changed = {name for name in found if not torch.equal(found[name], before[name])}
    assert len(changed) == 2 * 7


def test_pissa_is_refused_as_it_is_and_exact_once_peft_made_it_plain(tiny_gguf, tmp_path):
    base = tiny_gguf("llama", "F32")
    model = peft_model(base, strength=0.0, init_lora_weights="pissa")
    save(model, tmp_path / "start")
    move(model, 0.01)
    save(model, tmp_path / "pissa")
    with pytest.raises(TrainingError, match="path_initial_model_for_weight_conversion"):
        drain(merge(base, tmp_path / "pissa", tmp_path / "m.gguf"))
    with quiet():
        model.save_pretrained(str(tmp_path / "plain"), path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    drain(merge(base, tmp_path / "plain", tmp_path / "m.gguf"))
    with quiet():
        wanted = weights(model.merge_and_unload())
    found = weights(load_base(tmp_path / "m.gguf", torch.float32))
    for name in found:
        torch.testing.assert_close(found[name], wanted[name], atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gemma3"])
@pytest.mark.parametrize("option", ["lora", "rslora", "patterns"])
def test_llama_cpp_computes_with_the_adapter_file_what_it_computes_with_the_merged_one(
    architecture, option, tiny_gguf, tmp_path
):
    base = tiny_gguf(architecture, "F32")
    adapter = save(peft_model(base, **OPTIONS[option]), tmp_path / "adapter")
    drain(merge(base, adapter, tmp_path / "m.gguf"))
    adapter_gguf(base, adapter, tmp_path / "a.gguf")
    prompt, completion = (40, 41, 42), (50, 60, 70, 0)
    said = []
    for file, adapters in ((tmp_path / "m.gguf", ()), (base, (tmp_path / "a.gguf",)), (base, ())):
        with Embedded(file, adapters=adapters, context=128, threads=1) as model:
            said.append(np.array(model.predict(prompt, completion)[0]))
    merged, beside, alone = said
    assert np.abs(beside - merged).max() < 0.01 * np.abs(alone - merged).max()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_served_by_llama_cpp_and_is_nearer_to_the_tuned_model_the_larger_it_is(
    kind, tiny_gguf, tmp_path
):
    base = tiny_gguf("qwen2", "Q8_0")
    model = peft_model(base)
    drain(merge(base, save(model, tmp_path / "adapter"), tmp_path / "m.gguf", kind))
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert (
        reader.fields["tokenizer.ggml.tokens"].contents()
        == gguf.GGUFReader(base).fields["tokenizer.ggml.tokens"].contents()
    )
    ids = torch.tensor([[40, 41, 42, 50, 60, 70]])
    with torch.no_grad():
        wanted = model(input_ids=ids).logits[0, 2:-1].log_softmax(-1).gather(-1, ids[0, 3:, None])[:, 0]
    with Embedded(tmp_path / "m.gguf", context=128, threads=1) as served:
        found, _ = served.predict((40, 41, 42), (50, 60, 70))
    bounds = {"f16": 0.01, "q8_0": 0.05, "as_base": 0.05, "q6_k": 0.2}
    assert (torch.tensor(found) - wanted).abs().max() < bounds.get(kind, 0.6)


def test_the_formats_differ_in_size_and_say_their_type(tiny_gguf, tmp_path):
    base = tiny_gguf("qwen2", "F16")
    adapter = save(peft_model(base), tmp_path / "adapter")
    sizes, types = [], []
    for kind in BY_SIZE:
        drain(merge(base, adapter, tmp_path / "m.gguf", kind))
        sizes.append((tmp_path / "m.gguf").stat().st_size)
        types.append(gguf.GGUFReader(tmp_path / "m.gguf").fields["general.file_type"].contents())
    assert sizes == sorted(sizes)
    assert types == [14, 15, 17, 18, 7, 1]
    assert [next_size(kind) for kind in FORMATS] == ["q8_0", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16", None]


# What llama_model_quantize (llama.cpp b11434) chose for such models: the types of the values and of the projections
# down, block by block; then of the output, of an ordinary matrix, and of the embedding.
MORE = {13: "6..6..6..6.66", 16: "66..6..6..6..666", 9: "6..6..666"}
MIXES = [
    (13, 256, False, "q4_k_s", "5555.........", "5............", "Q6_K", "Q4_K", "Q4_K"),
    (13, 256, False, "q4_k_m", MORE[13], MORE[13], "Q6_K", "Q4_K", "Q4_K"),
    (13, 256, False, "q5_k_m", MORE[13], MORE[13], "Q6_K", "Q5_K", "Q5_K"),
    (13, 256, False, "q6_k", "." * 13, "." * 13, "Q6_K", "Q6_K", "Q6_K"),
    (13, 256, False, "q8_0", "." * 13, "." * 13, "Q8_0", "Q8_0", "Q8_0"),
    (16, 256, True, "q4_k_s", "5555............", "55..............", "Q6_K", "Q4_K", "Q6_K"),
    (16, 256, True, "q4_k_m", MORE[16], MORE[16], "Q6_K", "Q4_K", "Q6_K"),
    (16, 256, True, "q5_k_m", MORE[16], MORE[16], "Q6_K", "Q5_K", "Q6_K"),
    # Rows of 224 do not divide into blocks of 256: each type has a substitute, but the projections down have 512.
    (9, 224, False, "q4_k_s", "1111.....", "5........", "Q8_0", "Q5_0", "Q5_0"),
    (9, 224, False, "q4_k_m", "8..8..888", MORE[9], "Q8_0", "Q5_0", "Q5_0"),
    (9, 224, True, "q5_k_m", "8..8..888", MORE[9], "Q8_0", "Q5_1", "Q8_0"),
    (9, 224, True, "q6_k", "." * 9, "." * 9, "Q8_0", "Q8_0", "Q8_0"),
]
LETTERS = {"5": "Q5_K", "6": "Q6_K", "8": "Q8_0", "1": "Q5_1"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("row", MIXES, ids=lambda row: f"{row[0]}x{row[1]}-{row[2]}-{row[3]}")
def test_the_mix_is_llama_cpps_own(row, architecture, tiny_gguf):
    layers, width, tied, kind, values, down, output, ordinary, embedding = row
    base = gguf.GGUFReader(tiny_gguf(architecture, "F32", layers=layers, width=width, tied=tied))
    types = {name: type_.name for name, type_ in mix(base, kind, ()).items()}
    wide = {"q4_k_s": "Q4_K", "q4_k_m": "Q4_K", "q5_k_m": "Q5_K", "q6_k": "Q6_K", "q8_0": "Q8_0"}[kind]
    for name, letters, default in (("attn_v", values, ordinary), ("ffn_down", down, wide)):
        found = [types[f"blk.{block}.{name}.weight"] for block in range(layers)]
        assert found == [LETTERS.get(letter, default) for letter in letters], name
    assert types["blk.0.attn_q.weight"] == types["blk.0.ffn_up.weight"] == ordinary
    assert types["token_embd.weight" if tied else "output.weight"] == output
    assert types["token_embd.weight"] == embedding
    assert {types[name] for name in types if "norm" in name or name.endswith("bias")} == {"F32"}


def test_the_mix_of_an_unknown_kind_of_model_is_refused(tiny_gguf):
    with pytest.raises(TrainingError, match="llama-quantize"):
        mix(gguf.GGUFReader(tiny_gguf("starcoder2", "F32")), "q4_k_m", ())


def test_a_finished_file_is_the_only_one_that_appears(tiny_gguf, tmp_path):
    base = tiny_gguf("qwen2", "Q8_0")
    adapter = save(peft_model(base), tmp_path / "adapter")
    steps = merge(base, adapter, tmp_path / "m.gguf", "q4_k_m")
    for _ in range(5):
        next(steps)
    steps.close()
    assert not (tmp_path / "m.gguf").exists()
    drain(merge(base, adapter, tmp_path / "m.gguf", "q4_k_m"))
    assert [path.name for path in tmp_path.glob("m.*")] == ["m.gguf"]


def test_a_full_disk_is_told_before_anything_is_written(tiny_gguf, tmp_path, monkeypatch):
    base = tiny_gguf("qwen2", "Q8_0")
    adapter = save(peft_model(base), tmp_path / "adapter")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(DiskFull, match=r"needs 0\.00 GB"):
        drain(merge(base, adapter, tmp_path / "m.gguf"))
    assert list(tmp_path.glob("m.*")) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"an_option_of_tomorrow": 3}, "an_option_of_tomorrow"),
        ({"bias": "all"}, "biases"),
        ({"init_lora_weights": "olora"}, "fit a base"),
        ({"init_lora_weights": "pissa_niter_16"}, "fit a base"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"fan_in_fan_out": True}, "Conv1D"),
        ({"lora_alpha": 0}, "alpha is 0"),
    ],
)
def test_what_would_not_be_exact_is_refused_with_the_reason(change, reason, tiny_gguf, tmp_path):
    base = tiny_gguf("qwen2", "F32")
    adapter = save(peft_model(base), tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    for step in (
        lambda: drain(merge(base, adapter, tmp_path / "m.gguf")),
        lambda: adapter_gguf(base, adapter, tmp_path / "a.gguf"),
    ):
        with pytest.raises(TrainingError, match=reason):
            step()
    assert list(tmp_path.glob("*.gguf")) == []


def test_dora_has_no_adapter_file_and_says_what_to_do(tiny_gguf, tmp_path):
    base = tiny_gguf("qwen2", "F32")
    adapter = save(peft_model(base, use_dora=True), tmp_path / "adapter")
    with pytest.raises(TrainingError, match="Export a merged GGUF"):
        adapter_gguf(base, adapter, tmp_path / "a.gguf")


def test_another_models_adapter_is_refused(tiny_gguf, tmp_path):
    adapter = save(peft_model(tiny_gguf("qwen2", "F32", layers=3)), tmp_path / "deep")
    with pytest.raises(TrainingError, match="another model"):
        drain(merge(tiny_gguf("qwen2", "F32"), adapter, tmp_path / "m.gguf"))
    adapter = save(peft_model(tiny_gguf("qwen2", "F32", width=224)), tmp_path / "narrow")
    with pytest.raises(TrainingError, match=r"does not fit a weight of \(256, 256\)"):
        drain(merge(tiny_gguf("qwen2", "F32"), adapter, tmp_path / "m.gguf"))


def test_a_damaged_or_diverged_adapter_is_refused(tiny_gguf, tmp_path):
    from safetensors.torch import load_file, save_file

    base = tiny_gguf("qwen2", "F32")
    adapter = save(peft_model(base), tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    whole, tensors = file.read_bytes(), load_file(file)
    key = next(key for key in tensors if "lora_B" in key)
    save_file(tensors | {key: torch.full_like(tensors[key], float("nan"))}, file)
    with pytest.raises(TrainingError, match="NaN or infinity"):
        drain(merge(base, adapter, tmp_path / "m.gguf"))
    save_file({name: tensor for name, tensor in tensors.items() if name != key}, file)
    with pytest.raises(TrainingError, match="damaged"):
        drain(merge(base, adapter, tmp_path / "m.gguf"))
    save_file(tensors | {key: tensors[key] * 1e7}, file)
    with pytest.raises(TrainingError, match="F16 cannot hold"):
        drain(merge(base, adapter, tmp_path / "m.gguf", "f16"))
    file.write_bytes(whole[:1000])
    with pytest.raises(TrainingError, match="Cannot read the adapter"):
        drain(merge(base, adapter, tmp_path / "m.gguf"))
    shutil.rmtree(adapter)
    with pytest.raises(TrainingError, match="no PEFT adapter"):
        drain(merge(base, adapter, tmp_path / "m.gguf"))


def test_a_bfloat16_adapter_is_read(tiny_gguf, tmp_path):
    from safetensors.torch import load_file, save_file

    base = tiny_gguf("qwen2", "F32")
    adapter = save(peft_model(base), tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    save_file({key: tensor.bfloat16() for key, tensor in load_file(file).items()}, file)
    delta = Adapter(adapter, gguf.GGUFReader(base)).deltas["blk.0.attn_q.weight"]
    assert delta.a.dtype == np.float32
    assert delta.scale == 1.5


@pytest.mark.weights
def test_the_mix_of_q4_k_m_is_that_of_the_publishers_file(qwen_gguf):
    """Made by llama.cpp itself; rows of 896 do not divide into K-blocks. The llama.cpp of 2024 counted the blocks in
    the order of their names (10 before 2), today's by number: as many tensors of each type, but not the same blocks."""
    reader = gguf.GGUFReader(qwen_gguf)
    types = mix(reader, "q4_k_m", ())
    found, wanted = (
        Counter((re.sub(r"\d+", "N", tensor.name), kind(tensor)) for tensor in reader.tensors)
        for kind in (lambda tensor: types[tensor.name], lambda tensor: tensor.tensor_type)
    )
    assert found == wanted
