"""The training loop: the curve is the same however a step is cut, killed, or dealt to processes; NaN stops in time."""

import json
import random
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from llm_tuner.store import read_jsonl, write_jsonl  # noqa: E402
from llm_tuner.training import learner as learning  # noqa: E402
from llm_tuner.training.base import load_base, one_precision  # noqa: E402
from llm_tuner.training.launch import Job, launched  # noqa: E402
from llm_tuner.training.lora import compute_here, save_adapter, with_lora  # noqa: E402
from llm_tuner.training.loss import log_probabilities  # noqa: E402
from llm_tuner.training.packing import pack  # noqa: E402
from llm_tuner.training.recipe import Curve  # noqa: E402
from llm_tuner.training.sft import SFT, sft  # noqa: E402
from llm_tuner.types import DataError, EmptyData, Row, TrainingError, TrainingInterrupted  # noqa: E402

CONFIG = SFT(epochs=6, precision="float32", checkpoint_every=2, learning_rate=5e-3, batch=2, accumulation=2)


def rows(count=10, seed=0):
    """Two catalogues; the answer repeats a word of the request."""
    made = []
    for i in range(count):
        head = random.Random(f"{seed}{i % 2}").choices(range(40, 120), k=30)
        word = 40 + i
        made.append(
            Row(
                task_id=f"t{i}", prompt="p", completion="c", prompt_ids=(*head, word, 33),
                completion_ids=(word,) * (1 + i % 3) + (0,),
            )
        )  # fmt: skip
    return made


def run(config, gguf, out, data=None, stop_after=None, **more):
    """(events, metrics) of a training; None for metrics where it was closed after a step."""
    steps = sft(config, gguf, data or rows(), out, **more)
    events = []
    try:
        while True:
            events.append(next(steps))
            if stop_after and events[-1].done >= stop_after and "loss" in events[-1].data:
                steps.close()
                return events, None
    except StopIteration as stop:
        return events, stop.value


def curve(out):
    return [point.loss for point in read_jsonl(out / "curve.jsonl", Curve)]


def weights(out):
    return load_file(out / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def straight(tiny_gguf, tmp_path_factory):
    out = tmp_path_factory.mktemp("straight")
    return out, run(CONFIG, tiny_gguf(), out)[1]


def test_the_loss_falls_and_every_step_is_kept(straight):
    out, metrics = straight
    losses = curve(out)
    assert metrics["steps"] == len(losses) >= 12
    assert losses[-1] < losses[0] / 2
    assert not (out / "checkpoints").exists()


@pytest.mark.parametrize("after", [1, 4, 7])
def test_a_stopped_run_goes_on_with_the_same_curve(after, tiny_gguf, tmp_path, straight):
    _, nothing = run(CONFIG, tiny_gguf(), tmp_path, stop_after=after)
    assert nothing is None
    assert not (tmp_path / "adapter").exists()
    assert curve(tmp_path) == curve(straight[0])[:after]  # a line a step, for whoever watches
    events, _ = run(CONFIG, tiny_gguf(), tmp_path)
    assert any(event.message == f"going on after step {after}" for event in events)
    assert curve(tmp_path) == curve(straight[0])
    assert all(torch.equal(weights(tmp_path)[name], tensor) for name, tensor in weights(straight[0]).items())


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_learner import CONFIG, rows, sft
for event in sft(CONFIG, Path({gguf!r}), rows(), Path({out!r})):
    if event.done >= 7 and "loss" in event.data:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_goes_on_with_the_same_curve(tiny_gguf, tmp_path, straight):
    code = KILLED.format(tests=str(__file__).rsplit("/", 1)[0], gguf=str(tiny_gguf()), out=str(tmp_path))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert ended.returncode == -9, ended.stderr
    assert len(curve(tmp_path)) == 7
    events, _ = run(CONFIG, tiny_gguf(), tmp_path)
    assert any(event.message == "going on after step 6" for event in events)  # its newest checkpoint
    assert curve(tmp_path) == curve(straight[0])


def test_dropout_draws_the_same_after_a_stop(tiny_gguf, tmp_path):
    config = CONFIG.model_copy(update={"dropout": 0.2, "epochs": 2.0})
    run(config, tiny_gguf(), tmp_path / "a")
    run(config, tiny_gguf(), tmp_path / "b", stop_after=2)
    run(config, tiny_gguf(), tmp_path / "b")
    assert curve(tmp_path / "a") == curve(tmp_path / "b")


def test_a_checkpoint_of_other_settings_is_refused(tiny_gguf, tmp_path):
    run(CONFIG, tiny_gguf(), tmp_path, stop_after=3)
    with pytest.raises(TrainingError, match="made with other settings"):
        run(CONFIG.model_copy(update={"learning_rate": 1e-3}), tiny_gguf(), tmp_path)


def test_interrupting_keeps_the_step_and_says_so(tiny_gguf, tmp_path):
    steps = sft(CONFIG, tiny_gguf(), rows(), tmp_path)
    while "loss" not in next(steps).data:
        continue
    with pytest.raises(TrainingInterrupted, match="Run the command again"):
        steps.throw(KeyboardInterrupt)
    assert (tmp_path / "checkpoints" / "step-000001" / "state.json").exists()


def test_out_of_memory_halves_the_packs_and_the_curve_stays(tiny_gguf, tmp_path, straight, monkeypatch):
    plain = learning.log_probabilities

    def small_machine(model, one, device):
        values = plain(model, one, device)
        if len(one.ids) > 60:
            raise torch.OutOfMemoryError("no room")
        return values

    monkeypatch.setattr(learning, "log_probabilities", small_machine)
    events, metrics = run(CONFIG, tiny_gguf(), tmp_path)
    assert any(event.message == "out of memory: going on with packs of 64 tokens" for event in events)
    assert metrics["pack_tokens"] == 64
    assert curve(tmp_path) == pytest.approx(curve(straight[0]), rel=1e-4)


def test_out_of_memory_with_one_row_says_what_to_do(tiny_gguf, tmp_path, monkeypatch):
    def no_machine(*_):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(learning, "log_probabilities", no_machine)
    with pytest.raises(TrainingError, match="gradient_checkpointing"):
        run(CONFIG, tiny_gguf(), tmp_path)


def test_nan_stops_before_the_weights_change_and_keeps_the_rows(tiny_gguf, tmp_path, monkeypatch):
    plain = learning.log_probabilities
    calls = []

    def third_is_bad(model, one, device):
        calls.append(one)
        return plain(model, one, device) * (float("nan") if len(calls) >= 5 else 1.0)

    monkeypatch.setattr(learning, "log_probabilities", third_is_bad)
    with pytest.raises(TrainingError, match=r"is not a number .*bad-step\.jsonl"):
        run(CONFIG, tiny_gguf(), tmp_path)
    assert 0 < len(read_jsonl(tmp_path / "bad-step.jsonl", Row)) <= 6
    kept = next((tmp_path / "checkpoints").iterdir())
    assert all(torch.isfinite(tensor).all() for tensor in load_file(kept / "weights.safetensors").values())


def test_seeds_reproduce_and_differ(tiny_gguf, tmp_path, straight):
    run(CONFIG, tiny_gguf(), tmp_path / "same")
    run(CONFIG.model_copy(update={"seed": 1}), tiny_gguf(), tmp_path / "other")
    assert curve(tmp_path / "same") == curve(straight[0])
    assert curve(tmp_path / "other") != curve(straight[0])


def test_patience_stops_and_keeps_the_best(tiny_gguf, tmp_path):
    config = CONFIG.model_copy(update={"epochs": 60.0, "evaluate_every": 2, "patience": 2, "learning_rate": 2e-2})
    unlike = [one.model_copy(update={"completion_ids": (7, 8, 9)}) for one in rows(6, seed=5)]
    events, metrics = run(config, tiny_gguf(), tmp_path, held_out=unlike)
    measured = [event.data["held_out_loss"] for event in events if "held_out_loss" in event.data]
    assert metrics["steps"] < 120
    assert metrics["held_out_loss"] == min(measured)
    assert metrics["best_step"] == 2 * (measured.index(min(measured)) + 1) == metrics["steps"] - 4
    model = with_lora(load_base(tiny_gguf(), torch.float32), config, tmp_path / "adapter")
    with torch.no_grad():
        again = -log_probabilities(model, pack(unlike), "cpu").mean().item()
    assert again == pytest.approx(min(measured), rel=1e-4)


def test_going_on_from_an_adapter(tiny_gguf, tmp_path, straight):
    config = CONFIG.model_copy(update={"epochs": 1.0})
    _, metrics = run(config, tiny_gguf(), tmp_path, start=straight[0] / "adapter")
    assert metrics["first_loss"] < straight[1]["first_loss"] / 2
    with pytest.raises(TrainingError, match="holds no adapter"):
        run(config, tiny_gguf(), tmp_path / "x", start=tmp_path / "nothing")


def test_two_processes_make_the_same_curve(tiny_gguf, tmp_path, straight):
    write_jsonl(tmp_path / "rows.jsonl", rows())
    config = CONFIG.model_copy(update={"pack_tokens": 64}).model_dump(mode="json")
    job = Job(recipe="sft", config=config, gguf=tiny_gguf(), rows=tmp_path / "rows.jsonl", out=tmp_path / "out")
    seen = list(launched(job, 2))
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["processes"] == 2
    assert curve(tmp_path / "out") == pytest.approx(curve(straight[0]), rel=1e-4)
    assert sum("loss" in event.data for event in seen) == len(curve(straight[0]))  # told once, by the first process


def test_an_error_in_the_processes_is_the_recipes_own(tiny_gguf, tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", rows())
    config = CONFIG.model_copy(update={"max_seq_length": 16}).model_dump(mode="json")
    job = Job(recipe="sft", config=config, gguf=tiny_gguf(), rows=tmp_path / "rows.jsonl", out=tmp_path / "out")
    with pytest.raises(DataError, match="longer than max_seq_length"):
        list(launched(job, 2))


def test_bad_input_is_told(tiny_gguf, tmp_path):
    with pytest.raises(TrainingError, match=r"no layers qkv_proj to adapt \(found: down_proj, gate_proj"):
        run(CONFIG.model_copy(update={"target_modules": ("qkv_proj",)}), tiny_gguf(), tmp_path)
    with pytest.raises(EmptyData):
        list(sft(CONFIG, tiny_gguf(), [], tmp_path))
    with pytest.raises(TrainingError, match="PiSSA"):
        run(CONFIG.model_copy(update={"variant": "pissa", "precision": "bfloat16"}), tiny_gguf(), tmp_path)


def test_an_adapter_of_another_base_is_refused(tiny_gguf, tmp_path):
    adapter = tmp_path / "a"
    save_adapter(with_lora(load_base(tiny_gguf(), torch.float32), CONFIG), adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    from safetensors.torch import save_file

    save_file(
        {k: torch.zeros(16, 99) if "q_proj.lora_A" in k else v for k, v in tensors.items()},
        adapter / "adapter_model.safetensors",
    )
    with pytest.raises(TrainingError, match="belongs to another base"):
        with_lora(load_base(tiny_gguf(), torch.float32), CONFIG, adapter)


@pytest.mark.parametrize("variant", ["lora", "rslora", "dora", "pissa"])
def test_every_variant_learns_and_resumes(variant, tiny_gguf, tmp_path):
    config = CONFIG.model_copy(update={"variant": variant, "epochs": 3.0, "learning_rate": 2e-3})
    run(config, tiny_gguf(), tmp_path / "a")
    run(config, tiny_gguf(), tmp_path / "b", stop_after=3)
    run(config, tiny_gguf(), tmp_path / "b")
    losses = curve(tmp_path / "a")
    assert losses[-1] < losses[0]
    assert curve(tmp_path / "b") == pytest.approx(losses, rel=1e-4)


def test_what_pissa_writes_is_a_plain_adapter_of_the_untouched_base(tiny_gguf, tmp_path):
    config = CONFIG.model_copy(update={"variant": "pissa", "epochs": 2.0, "learning_rate": 2e-3})
    run(config, tiny_gguf(), tmp_path)
    with torch.no_grad():
        plain = with_lora(load_base(tiny_gguf(), torch.float32), config, tmp_path / "adapter")
        found = -log_probabilities(plain, pack(rows()), "cpu").mean().item()
    run(config, tiny_gguf(), tmp_path / "more", start=tmp_path / "adapter")
    assert curve(tmp_path / "more")[0] < curve(tmp_path)[0]
    assert found < curve(tmp_path)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_our_lora_layers_compute_what_pefts_do(dtype, tiny_gguf, monkeypatch):
    from llm_tuner.training import lora

    results = []
    for ours in (False, True):
        torch.manual_seed(0)
        with monkeypatch.context() as patch:
            if not ours:
                patch.setattr(lora, "compute_here", lambda model: 0)
            model = with_lora(load_base(tiny_gguf(), dtype), SFT(variant="rslora"))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.05)
        assert (compute_here(model) == 14) if ours else True
        with one_precision(model):
            loss = -log_probabilities(model, pack(rows()), "cpu").mean()
            loss.backward()
        slopes = torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None])
        results.append((loss.item(), slopes))
    (theirs, g1), (mine, g2) = results
    near = {torch.float32: (1e-6, 1e-5), torch.bfloat16: (5e-3, 5e-2)}[dtype]
    assert mine == pytest.approx(theirs, rel=near[0])
    assert torch.linalg.norm(g1 - g2) < near[1] * torch.linalg.norm(g1)


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gemma3"])
def test_keeping_less_changes_nothing(architecture, tiny_gguf):
    from llm_tuner.training.lean import lean

    results = []
    for less in (False, True):
        torch.manual_seed(0)
        model = with_lora(load_base(tiny_gguf(architecture), torch.float32), SFT())
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.05)
        assert not less or lean(model) >= 2 + 4  # gated blocks and norms of two layers
        kept = []
        keep = lambda t, kept=kept: kept.append(t.numel()) or t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            loss = -log_probabilities(model, pack(rows()), "cpu").mean()
        loss.backward()
        slopes = torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None])
        results.append((loss.item(), slopes, sum(kept)))
    (plain, g1, much), (same, g2, little) = results
    assert same == pytest.approx(plain, rel=1e-6)
    assert torch.linalg.norm(g1 - g2) < 1e-5 * torch.linalg.norm(g1)
    assert little < 0.9 * much


def test_ln_p_of_targets_equals_torchs_own_with_its_gradient():
    from llm_tuner.training.loss import CHUNK, target_log_probabilities

    torch.manual_seed(0)
    labels = torch.randint(0, 500, (2 * CHUNK + 7,))
    first, second = (torch.randn(len(labels), 500).requires_grad_() for _ in "12")
    with torch.no_grad():
        second.copy_(first)
    wanted = second.log_softmax(-1).gather(1, labels[:, None])[:, 0]
    found = target_log_probabilities(first * 1.0, labels)
    assert torch.allclose(found, wanted, atol=1e-6)
    weight = torch.randn(len(labels))
    (wanted * weight).sum().backward()
    (found * weight).sum().backward()
    assert torch.allclose(first.grad, second.grad, atol=1e-6)


def test_what_out_of_memory_looks_like():
    assert learning.out_of_memory(MemoryError())
    assert learning.out_of_memory(torch.OutOfMemoryError("x"))
    assert learning.out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried"))
    assert not learning.out_of_memory(RuntimeError("shape mismatch"))
