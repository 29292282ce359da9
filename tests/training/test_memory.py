"""The memory dial: it reads amounts, chooses what fits and the fastest of that, refuses with what would be needed."""

import pytest

from llm_tuner.training.memory import Shape, derive, estimate, parsed
from llm_tuner.training.recipe import Recipe
from llm_tuner.training.sft import SFT, sft
from llm_tuner.types import CorruptModel, Row, SetupError

SPEED = ("weights", "gradient_checkpointing", "precision", "pack_tokens")


def slowness(chosen):
    """The smaller, the faster."""
    return (
        chosen.weights == "blocks",
        chosen.gradient_checkpointing,
        chosen.precision == "bfloat16",
        -chosen.pack_tokens,
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8e9), ("6.5 GiB", 6.5 * 2**30), (" 900 mb ", 9e8), ("1 TB", 1e12), ("512MiB", 2**29), ("7000000000", 7e9)],
)
def test_amounts_are_read_as_people_write_them(text, size):
    assert parsed(text) == size


@pytest.mark.parametrize("text", ["", "much", "8 G", "-3GB", "0GB", "8GB of RAM", "eight GB"])
def test_other_words_are_refused_with_an_example(text, tiny_gguf):
    with pytest.raises(SetupError, match="8GB"):
        derive(text, tiny_gguf())


def test_more_memory_is_never_slower_and_what_is_chosen_fits(tiny_gguf):
    gguf = tiny_gguf("llama", layers=12)
    found = []
    for size in range(760, 2400, 5):
        try:
            found.append((size, derive(f"{size}MB", gguf)))
        except SetupError:
            assert not found, "more memory was refused after less was enough"
    assert all(chosen.estimate.total <= size * 1e6 for size, chosen in found)
    order = [slowness(chosen) for _, chosen in found]
    assert order == sorted(order, reverse=True)
    assert len(set(order)) > 5
    first, last = found[0][1], found[-1][1]
    assert (first.gradient_checkpointing, first.precision, first.pack_tokens) == (True, "bfloat16", 512)
    assert (last.weights, last.precision, last.gradient_checkpointing) == ("dense", "float32", False)
    assert last.pack_tokens == 4096


def test_blocks_and_checkpointing_are_what_brings_a_big_model_into_a_small_machine():
    """Llama 3 8B in Q4_K_M: 32 layers, keys of 8 heads of 128."""
    blocks = int(4.9e9)
    eight = Shape("llama", 32, 4096, 4096, 1024, 14336, 128256, 8_030_000_000, 2_621_440, 266_240, blocks, 525_336_576)
    dense = estimate(eight, 16, "dense", "bfloat16", True, 512)
    light = estimate(eight, 16, "blocks", "bfloat16", True, 512)
    assert dense.weights > 16e9
    assert blocks < light.weights < 1.15 * blocks
    kept = estimate(eight, 16, "blocks", "bfloat16", False, 512)
    assert kept.activations > 5 * light.activations
    assert light.adapter == 16 * 16 * 2_621_440


def test_what_was_asked_for_stays(tiny_gguf):
    gguf = tiny_gguf()
    for size in ("1GB", "1.5GB", "8GB"):
        assert derive(size, gguf, Recipe(precision="bfloat16")).precision == "bfloat16"
        assert derive(size, gguf, Recipe(pack_tokens=1024)).pack_tokens <= 1024
        assert derive(size, gguf, Recipe(weights="blocks")).weights == "blocks"
        assert derive(size, gguf, Recipe(gradient_checkpointing=True)).gradient_checkpointing
        assert derive(size, gguf, Recipe(variant="dora")).weights == "dense"
    assert derive("1GB", gguf, Recipe(variant="pissa")).precision == "float32"
    assert derive("8GB", gguf, Recipe(r=64)).estimate.adapter == 4 * derive("8GB", gguf).estimate.adapter


def test_the_adapter_is_counted_by_the_layers_that_the_file_has(tiny_gguf):
    """Two layers of width 256, keys and values 128, inner width 512; 16 bytes for each of r (in + out)."""
    sums = (256 + 256) * 2 + (256 + 128) * 2 + (256 + 512) * 3
    assert derive("8GB", tiny_gguf()).estimate.adapter == 16 * 16 * 2 * sums
    only = Recipe(target_modules=("q_proj",))
    assert derive("8GB", tiny_gguf(), only).estimate.adapter == 16 * 16 * 2 * 512


def test_too_little_is_refused_with_what_is_needed(tiny_gguf):
    with pytest.raises(SetupError, match=r"at least [\d.]+ GB are needed \(weights ") as refused:
        derive("100MB", tiny_gguf())
    enough = str(refused.value).partition('memory = "')[2].partition('"')[0]
    assert derive(enough, tiny_gguf()).pack_tokens >= 512


def test_a_file_without_a_shape_is_refused(tmp_path):
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF but nothing else")
    with pytest.raises(CorruptModel, match=r"x\.gguf"):
        derive("8GB", file)


def test_training_takes_the_derived_settings_tells_them_and_goes_on_with_them(tiny_gguf, tmp_path):
    pytest.importorskip("torch")
    head = tuple(range(40, 70))
    rows = [
        Row(task_id=str(w), prompt="p", completion="c", prompt_ids=(*head, w, 33), completion_ids=(w, w, 0))
        for w in range(80, 92)
    ]
    gguf, budget = tiny_gguf("llama"), "900MB"
    chosen = derive(budget, gguf, longest=max(row.length for row in rows))
    assert chosen.weights == "blocks" or chosen.pack_tokens < 4096
    config = SFT(memory=budget, batch=2, accumulation=2, checkpoint_every=1)
    steps = sft(config, gguf, rows, tmp_path)
    told = [next(steps) for _ in range(3)]
    assert {event.message for event in told} >= set(chosen.sentences)
    while not (event := next(steps)).data.get("loss"):
        pass
    steps.close()
    resumed = []
    steps = sft(config, gguf, rows, tmp_path)
    try:
        while True:
            resumed.append(next(steps).message)
    except StopIteration as end:
        metrics = end.value
    assert f"going on after step {event.done:.0f}" in resumed
    assert metrics["pack_tokens"] == chosen.pack_tokens


def test_what_the_estimate_knows_of_other_modules_is_still_so():
    pytest.importorskip("torch")
    from llm_tuner.training import blocks, loss, memory

    assert memory.IN_BLOCKS == blocks.ARCHITECTURES
    assert memory.PIECE == blocks.PIECE
    assert memory.CHUNK == loss.CHUNK


def test_the_longest_row_counts(tiny_gguf):
    gguf = tiny_gguf("llama", layers=12)
    short, long = derive("2400MB", gguf, longest=100), derive("2400MB", gguf, longest=20_000)
    assert short == derive("2400MB", gguf, longest=4096)
    assert long.estimate.total <= 2400e6
    assert long.estimate.activations > short.estimate.activations or long.gradient_checkpointing
    assert "20000 tokens" in long.sentences[1]
    assert "take more" not in long.sentences[1]
    with pytest.raises(SetupError, match=r"100000 tokens.*leave out the longest rows \(max_seq_length\)"):
        derive("2400MB", gguf, longest=1_000_000 // 10)
