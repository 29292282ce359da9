"""A trained run -> formats: made once, measured as served, refused by name, never half there; and what people get."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from llm_tuner import exports  # noqa: E402
from llm_tuner.exports import Base, Export, export, find_trained  # noqa: E402
from llm_tuner.models.ollama_templates import QWEN_TEMPLATE  # noqa: E402
from llm_tuner.store import Store, write_jsonl  # noqa: E402
from llm_tuner.training.base import load_base  # noqa: E402
from llm_tuner.types import (  # noqa: E402
    DataError,
    DiskFull,
    Pair,
    Rollout,
    Row,
    SetupError,
    TrainingError,
    content_hash,
)
from peft_adapters import drain, peft_model, save  # noqa: E402

SHA = "0" * 64


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    from importlib import util

    spec = util.spec_from_file_location("tiny", Path(__file__).parent / "training" / "conftest.py")
    tiny = util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    return tiny.write_gguf(tmp_path_factory.mktemp("base") / "tiny.gguf", "qwen2", "Q8_0")


def text(n):
    return "".join(chr(40 + (n * 7 + k * k) % 50) for k in range(8))


def rows(count=8):
    return [
        Row(
            task_id=f"t{n}",
            prompt=text(n),
            completion=text(n + 50),
            prompt_ids=tuple(map(ord, text(n))),
            completion_ids=(*map(ord, text(n + 50)), 0),
        )
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory, gguf):
    """A store with one run as the training leaves it: an adapter that changes most answers, rows, metrics."""
    store = Store(tmp_path_factory.mktemp("runs"))
    with store.write("train", {"r": 4, "learning_rate": 5e-4}, {"base": SHA, "context": "8192"}) as folder:
        save(peft_model(gguf, strength=0.3), folder.path / "adapter")
        write_jsonl(folder.path / "rows.jsonl", rows())
        folder.outputs.update(adapter="adapter", rows="rows.jsonl")
        folder.metrics.update(precision="float32", rows=8, first_loss=2.5, last_loss=0.5)
    return store, folder.run


BASE_NAME = "tiny"


def base(gguf, **fields):
    return Base(gguf=gguf, sha256=SHA, name=BASE_NAME, licence="Apache-2.0", repository="someone/tiny", **fields)


def run(config, place, gguf, out):
    seen = []
    steps = export(config, *place, base(gguf), out)
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as stop:
            return stop.value, seen


def test_every_format_agrees_with_the_trainer_as_it_is_served_and_is_made_once(place, gguf, tmp_path):
    config = Export(kinds=("f16", "q8_0", "adapter", "safetensors", "peft"), weights="float32")
    made, _ = run(config, place, gguf, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(config.kinds)
    for one in made:
        if one.kind == "peft":
            assert one.agreement is None
            assert "nothing to compare" in one.why
            continue
        assert one.agreement.word == "holds", one.agreement.sentence
        assert one.agreement.rows == 8
        assert one.agreement.same.value > 0.95
        assert one.agreement.changed > 20
        assert one.agreement.same_as_base.value < 0.7
        assert one.agreement.sentence.startswith(f"{one.kind.upper()} holds the adapter")
    assert made[0].agreement.mean_difference < made[1].agreement.mean_difference < 0.05
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again, seen = run(config, place, gguf, tmp_path)
    assert again == made
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert {event.data.get("reused") for event in seen} >= set(config.kinds)


def test_a_file_without_the_adapter_is_refused_and_the_next_size_up_is_made(place, gguf, tmp_path, monkeypatch):
    """The fault is real: the 4-bit file that is served holds the base's weights."""
    merge = exports.merge

    def losing(source, adapter, out, kind):
        digest = yield from merge(source, adapter, out, kind)
        if kind == "q6_k":
            out.write_bytes(gguf.read_bytes())
        return digest

    monkeypatch.setattr(exports, "merge", losing)
    made, seen = run(Export(kinds=("q6_k",)), place, gguf, tmp_path)
    assert [one.kind for one in made] == ["q6_k", "q8_0"]
    lost, larger = (one.agreement for one in made)
    assert lost.word == "lost"
    assert lost.sentence.startswith("Q6_K loses the adapter: the trainer's own token at ")
    assert lost.same_as_base.value == 1.0
    assert lost.stayed.value == 1.0
    assert larger.word == "holds"
    assert {path.name for path in tmp_path.iterdir()} == {"q6_k.refused", "q8_0"}
    assert any("q6_k is refused: making q8_0 instead" in event.message for event in seen)
    again, _ = run(Export(kinds=("q6_k",)), place, gguf, tmp_path)
    assert again == made
    (alone,), _ = run(Export(kinds=("q6_k",), larger=False), place, gguf, tmp_path / "alone")
    assert alone.refused


def test_a_killed_export_leaves_nothing_that_looks_whole_and_goes_on(place, gguf, tmp_path):
    steps = export(Export(kinds=("q8_0",)), *place, base(gguf), tmp_path)
    while next(steps).message != "served":
        continue
    steps.close()
    (partial,) = tmp_path.iterdir()
    assert partial.name.startswith(".partial-q8_0-")
    before = (partial / "model.gguf").stat().st_mtime_ns
    run(Export(kinds=("q8_0",)), place, gguf, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"q8_0"}
    assert (tmp_path / "q8_0" / "model.gguf").stat().st_mtime_ns == before
    assert {path.name for path in (tmp_path / "q8_0").iterdir()} == {
        "model.gguf", "Modelfile", "README.md", "export.json"
    }  # fmt: skip


def test_the_modelfile_and_the_card_say_what_the_records_say(place, gguf, tmp_path):
    (made,), _ = run(Export(kinds=("q8_0",)), place, gguf, tmp_path)
    modelfile = (tmp_path / "q8_0" / "Modelfile").read_text().splitlines()
    assert modelfile[:4] == [
        "FROM ./model.gguf", "PARAMETER num_ctx 512", "PARAMETER temperature 0", 'PARAMETER stop "<0x00>"'
    ]  # fmt: skip
    card = (tmp_path / "q8_0" / "README.md").read_text()
    for part in (
        "license: apache-2.0", "base_model: someone/tiny", f"`{SHA}`", place[1].id, "| training: last_loss | 0.5 |",
        "| setting: learning_rate | 0.0005 |", made.sha256["model.gguf"],
        made.agreement.sentence.split(":")[0], "## 日本語",
    ):  # fmt: skip
        assert part in card, part
    assert "## Before and after" not in card


def test_a_run_rendered_by_ollama_gets_its_template(place, gguf, tmp_path):
    store, trained = place
    given = {"runtime": "ollama", "template": content_hash(QWEN_TEMPLATE)}
    rendered = trained.model_copy(update={"inputs": trained.inputs | given})
    drain(export(Export(kinds=("q8_0",), rows=0), store, rendered, base(gguf), tmp_path))
    assert 'TEMPLATE """' in (tmp_path / "q8_0" / "Modelfile").read_text()


def test_huggingface_loads_the_folders_with_the_trainers_logits(place, gguf, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llm_tuner.training.base import quiet

    store, trained = place
    run(Export(kinds=("safetensors", "peft"), weights="float32"), place, gguf, tmp_path)
    row = rows()[0]
    ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
    with quiet(), torch.no_grad():
        model = PeftModel.from_pretrained(load_base(gguf, torch.float32), store.folder(trained) / "adapter").eval()
        wanted = model(input_ids=ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "safetensors").eval()
        found = merged(input_ids=ids).logits
        again = (
            PeftModel.from_pretrained(load_base(gguf, torch.float32), tmp_path / "peft").eval()(input_ids=ids).logits
        )
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "safetensors")
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again, wanted, atol=1e-6, rtol=1e-6)
    assert tuple(tokenizer(row.prompt, add_special_tokens=False).input_ids) == row.prompt_ids
    assert merged.generation_config.eos_token_id == 0
    assert (
        json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["base_model_name_or_path"] == "someone/tiny"
    )


def test_a_tokenizer_that_reads_otherwise_is_refused(place, gguf, tmp_path):
    from llm_tuner.training.export.huggingface import save_tokenizer

    wrong = rows()[0].model_copy(update={"prompt_ids": (1, 2, 3)})
    with pytest.raises(TrainingError, match="reads the prompt of task t0 otherwise"):
        save_tokenizer(gguf, tmp_path, [wrong])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["dpo", "grpo on an sft run", "grpo on the base"])
def test_a_run_of_feedback_is_compared_on_what_it_learned_from(kind, place, gguf, tmp_path):
    store, trained = Store(tmp_path / "runs"), place[1]
    inputs, wanted = {"base": SHA}, rows(3)
    if kind == "dpo":
        pairs = [Pair(chosen=row, rejected=rows(9)[8], reason="wrong_tool") for row in (*wanted, wanted[0])]
        with store.write("pairs", {}, {}) as folder:
            write_jsonl(folder.path / "pairs.jsonl", pairs)
            folder.outputs.update(pairs="pairs.jsonl")
        inputs |= {"pairs": folder.run.id, "start": "base"}
    if kind == "grpo on an sft run":
        with store.write("train", {}, {"base": SHA}) as folder:
            write_jsonl(folder.path / "rows.jsonl", wanted)
            folder.outputs.update(rows="rows.jsonl")
        inputs |= {"start": folder.run.id}
    with store.write(kind.split()[0], {}, inputs) as folder:
        shutil.copytree(place[0].folder(trained) / "adapter", folder.path / "adapter")
        folder.outputs.update(adapter="adapter")
        folder.metrics.update(precision="float32")
        if kind.startswith("grpo"):
            tries = [Rollout(task_id=row.task_id, rows=(row,), reward=1.0) for row in (*wanted, wanted[0])]
            tries.append(Rollout(task_id="t8", rows=(rows(9)[8],), reward=0.0))
            (folder.path / "rollouts" / "000").mkdir(parents=True)
            write_jsonl(folder.path / "rollouts" / "000" / "rollouts.jsonl", tries)
            folder.outputs.update(rollouts="rollouts")
    (made,), _ = run(Export(kinds=("f16",)), (store, folder.run), gguf, tmp_path / "out")
    assert made.agreement is not None
    assert made.agreement.rows == 3
    assert made.agreement.same.n == sum(len(row.completion_ids) for row in wanted)


def test_loading_a_base_writes_nothing_of_its_own_to_the_terminal(gguf, capfd):
    load_base(gguf, torch.float32)
    assert capfd.readouterr() == ("", "")


def test_what_is_wrong_is_told_before_anything_is_written(place, gguf, tmp_path, monkeypatch):
    store, trained = place
    other = base(gguf).model_copy(update={"sha256": "1" * 64})
    with pytest.raises(SetupError, match="Give its own base"):
        drain(export(Export(), store, trained, other, tmp_path / "a"))
    with pytest.raises(DataError, match=rf"No run \"nothing\" with an adapter \(found: {trained.id}\)"):
        find_trained(store, "nothing")
    assert find_trained(store, "last") == trained
    (tmp_path / "b" / "q4_k_m").mkdir(parents=True)
    with pytest.raises(SetupError, match="holds another export"):
        drain(export(Export(rows=0), store, trained, base(gguf), tmp_path / "b"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(DiskFull, match="are free"):
        drain(export(Export(kinds=("q8_0", "f16")), store, trained, base(gguf), tmp_path / "c"))
    assert not (tmp_path / "a").exists()
    assert list((tmp_path / "c").iterdir()) == []


def test_the_command_exports_and_names_an_unknown_format(place, gguf, tmp_path):
    store, trained = place

    def llm_tuner(*arguments):
        code = "import sys; from llm_tuner.apps import cli; from llm_tuner import store; from pathlib import Path\n"
        code += "root = store.Store; store.Store = lambda: root(Path(sys.argv[1]))\nsys.exit(cli.run(sys.argv[2:]))"
        command = [sys.executable, "-c", code, str(store.root), "export", *arguments, "--out", str(tmp_path), "--json"]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    done = llm_tuner("last", "--as", "q5_k", "--base", f"file:{gguf}")
    assert done.returncode == 4
    assert 'Did you mean "q5_k_m"?' in done.stderr
    done = llm_tuner(trained.id)
    assert done.returncode == 4
    assert "--base file:" in done.stderr
    done = llm_tuner(trained.id, "--base", f"file:{gguf}")
    assert done.returncode == 4
    assert "was trained on a base with SHA-256 000000000000" in done.stderr
