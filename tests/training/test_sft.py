"""SFT on a tiny real GGUF: it learns, it reproduces, it resumes after a kill, and the export holds what was trained."""

import random
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llm_tuner.training.base import choose_precision, load_base, quiet  # noqa: E402
from llm_tuner.training.export import Adapter, adapter_gguf, merge, quantise  # noqa: E402
from llm_tuner.training.sft import SFT, sft  # noqa: E402
from llm_tuner.types import CorruptModel, DataError, Row, TrainingError  # noqa: E402

CONFIG = SFT(epochs=12, precision="float32", checkpoint_every=2, learning_rate=5e-3, batch=2, accumulation=2)


def rows(count=8):
    rng = random.Random(0)
    head = tuple(rng.randrange(40, 120) for _ in range(30))
    made = []
    for i in range(count):
        word = 40 + i
        made.append(
            Row(
                task_id=f"t{i}",
                prompt="p",
                completion="c",
                prompt_ids=(*head, word, 33),
                completion_ids=(word, word, 0),
            )
        )
    return made


def run(config, gguf, out, stop_after=None):
    steps = sft(config, gguf, rows(), out)
    seen = []
    try:
        while True:
            event = next(steps)
            if "loss" in event.data:
                seen.append(event.done)
                if stop_after and event.done >= stop_after:
                    steps.close()
                    return seen, None
    except StopIteration as stop:
        return seen, stop.value


def answers(model, row):
    """ln p of every token of the vocabulary at the positions that predict the completion."""
    first = len(row.prompt_ids) - 1
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*row.prompt_ids, *row.completion_ids]]), use_cache=False).logits[0]
    return logits[first : first + len(row.completion_ids)].log_softmax(-1)


def logits(gguf, row):
    return answers(load_base(gguf, torch.float32).eval(), row)


@pytest.fixture(scope="module")
def trained(tiny_gguf, tmp_path_factory):
    out = tmp_path_factory.mktemp("sft")
    _, metrics = run(CONFIG, tiny_gguf(), out)
    return out, metrics


def test_the_loss_falls_and_the_curve_is_kept(trained):
    out, metrics = trained
    curve = (out / "curve.jsonl").read_text().splitlines()
    assert metrics["last_loss"] < metrics["first_loss"] / 2
    assert len(curve) == metrics["steps"] == 24
    assert metrics["prefix_sharing"] > 2


def test_training_refuses_nothing_silently(tiny_gguf, tmp_path):
    with pytest.raises(DataError, match="longer than max_seq_length"):
        run(CONFIG.model_copy(update={"max_seq_length": 16}), tiny_gguf(), tmp_path)
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(tiny_gguf().read_bytes()[:4000])
    with pytest.raises(CorruptModel, match=r"bad\.gguf"):
        run(CONFIG, bad, tmp_path)


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_the_merged_file_computes_what_base_and_adapter_compute(architecture, tiny_gguf, tmp_path):
    base = tiny_gguf(architecture)
    _, metrics = run(CONFIG.model_copy(update={"epochs": 3.0}), base, tmp_path)
    assert metrics
    drain(merge(base, tmp_path / "adapter", tmp_path / "m.gguf"))
    from peft import PeftModel

    row = rows()[0]
    with quiet():
        model = PeftModel.from_pretrained(load_base(base, torch.float32), tmp_path / "adapter").eval()
    wanted = answers(model, row)
    found = logits(tmp_path / "m.gguf", row)
    far = logits(base, row)
    assert torch.linalg.norm(found - wanted) < 0.05 * torch.linalg.norm(far - wanted)


def test_only_adapted_tensors_change_and_metadata_stays(tiny_gguf, trained, tmp_path):
    import gguf

    base, out = tiny_gguf(), tmp_path / "m.gguf"
    digest = drain(merge(base, trained[0] / "adapter", out))
    assert len(digest) == 64
    before, after = gguf.GGUFReader(base), gguf.GGUFReader(out)
    changed = {a.name for a, b in zip(before.tensors, after.tensors, strict=True) if not np.array_equal(a.data, b.data)}
    assert changed == set(Adapter(trained[0] / "adapter", before).deltas)
    keys = [key for key in before.fields if not key.startswith("GGUF.")]
    assert keys == [key for key in after.fields if not key.startswith("GGUF.")]
    assert all(before.fields[key].contents() == after.fields[key].contents() for key in keys)


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0"])
def test_a_light_adapter_does_not_vanish_in_a_coarse_base(kind, tiny_gguf, tmp_path):
    """The base lies on its own grid: in its own type a delta under half a step would round back to nothing."""
    base = tiny_gguf("qwen2", kind)
    config = CONFIG.model_copy(update={"epochs": 2.0, "learning_rate": 2e-4})
    run(config, base, tmp_path)
    drain(merge(base, tmp_path / "adapter", tmp_path / "m.gguf"))
    from peft import PeftModel

    row = rows()[0]
    with quiet():
        model = PeftModel.from_pretrained(load_base(base, torch.float32), tmp_path / "adapter").eval()
    wanted = answers(model, row) - logits(base, row)
    found = logits(tmp_path / "m.gguf", row) - logits(base, row)
    assert torch.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.8


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q5_0", "Q8_0", "F16", "F32"])
def test_quantising_what_was_dequantised_changes_next_to_nothing(kind):
    import gguf

    weight = np.random.default_rng(0).normal(size=(8, 512)).astype(np.float32)
    quant = getattr(gguf.GGMLQuantizationType, kind)

    def trip(w):
        raw = np.frombuffer(quantise(w, quant), dtype=np.uint8)
        if kind in ("F16", "F32"):
            return raw.view(np.float16 if kind == "F16" else np.float32).astype(np.float32).reshape(w.shape)
        return gguf.dequantize(raw.reshape(8, -1), quant)

    once = trip(weight)
    assert np.abs(once - weight).mean() / np.abs(weight).mean() < (0.12 if kind == "Q4_K" else 0.06)
    assert np.abs(trip(once) - once).mean() / np.abs(once).mean() < 2e-3


def test_an_adapter_of_another_model_or_an_inexact_one_is_refused(tiny_gguf, trained, tmp_path):
    import json

    folder = tmp_path / "adapter"
    shutil.copytree(trained[0] / "adapter", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_qalora": True}))
    with pytest.raises(TrainingError, match="use_qalora"):
        drain(merge(tiny_gguf(), folder, tmp_path / "m.gguf"))
    assert not (tmp_path / "m.gguf").exists()


def test_the_adapter_file_says_what_llama_cpp_needs(tiny_gguf, trained, tmp_path):
    import gguf

    reader = gguf.GGUFReader(adapter_gguf(tiny_gguf(), trained[0] / "adapter", tmp_path / "a.gguf"))
    assert reader.fields["general.type"].contents() == "adapter"
    assert reader.fields["adapter.type"].contents() == "lora"
    assert reader.fields["adapter.lora.alpha"].contents() == 32.0
    shapes = {t.name: tuple(t.shape) for t in reader.tensors}
    assert shapes["blk.0.ffn_down.weight.lora_a"] == (512, 16)
    assert shapes["blk.0.ffn_down.weight.lora_b"] == (16, 256)


def test_precision_is_chosen_by_measuring_and_can_be_given():
    assert choose_precision("float32") is torch.float32
    assert choose_precision("auto") in (torch.float32, torch.bfloat16)


def drain(steps):
    try:
        while True:
            next(steps)
    except StopIteration as stop:
        return stop.value
