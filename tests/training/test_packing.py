"""Prefix-shared packs: same loss and same gradients as separate rows, on tiny models of three architectures."""

import random

import pytest

from llm_tuner.training.packing import pack, plan, shared_prefix, tensors
from llm_tuner.types import DataError, Row

torch = pytest.importorskip("torch")


def row(prompt: list[int], completion: list[int], name: str = "t") -> Row:
    return Row(task_id=name, prompt="p", completion="c", prompt_ids=tuple(prompt), completion_ids=tuple(completion))


def rows_with_prefix(count: int, prefix: int = 40, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    head = [rng.randrange(3, 90) for _ in range(prefix)]
    return [
        row(
            head + [rng.randrange(3, 90) for _ in range(rng.randrange(1, 9))],
            [rng.randrange(3, 90) for _ in range(rng.randrange(2, 7))],
            f"t{i}",
        )
        for i in range(count)
    ]


def tiny(architecture: str):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **sizes)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")


def loss_of(model, packs):
    """Mean cross entropy a target token over all packs."""
    total, count = 0.0, 0
    for one in packs:
        batch = tensors(one, torch.float32)
        labels = batch.pop("labels")
        logits = model(**batch, use_cache=False).logits[0]
        total = total + torch.nn.functional.cross_entropy(logits, labels[0], reduction="sum")
        count += labels.numel()
    return total / count


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gemma3_text"])
def test_packed_loss_and_gradients_equal_separate_rows(architecture):
    model = tiny(architecture)
    rows = rows_with_prefix(7)
    results = []
    for packs in ([pack(rows)], [pack([one]) for one in rows]):
        model.zero_grad()
        loss = loss_of(model, packs)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((loss.item(), gradient))
    (together, g1), (alone, g2) = results
    assert together == pytest.approx(alone, rel=1e-5)
    assert torch.linalg.norm(g1 - g2) / torch.linalg.norm(g2) < 1e-4


def test_a_branch_does_not_see_its_siblings():
    model = tiny("qwen2")
    rows = rows_with_prefix(3)
    changed = [rows[0], rows[1], row([*rows[2].prompt_ids[:-1], 1], list(rows[2].completion_ids))]
    first = pack(rows)
    batch, other = (tensors(p, torch.float32) for p in (first, pack(changed)))
    batch.pop("labels"), other.pop("labels")
    cut = len(rows[0].completion_ids) + len(rows[1].completion_ids)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits[0, :cut], model(**other).logits[0, :cut])
        assert not torch.equal(model(**batch).logits[0, cut:], model(**other).logits[0, cut:])


def test_the_mask_token_by_token():
    """Every completion token is a target exactly once, predicted from the token before it; no prompt token is."""
    rows = rows_with_prefix(5)
    one = pack(rows)
    batch = tensors(one, torch.float32)
    assert batch["labels"][0].tolist() == [t for r in rows for t in r.completion_ids]
    index = 0
    for r, (begin, end) in zip(rows, one.spans, strict=True):
        branch = list(one.ids[begin:end])
        assert [*one.ids[: one.prefix], *branch] == [*r.prompt_ids, *r.completion_ids]
        assert list(one.positions[begin:end]) == list(range(one.prefix, one.prefix + len(branch)))
        for step in range(len(r.completion_ids)):
            at = one.predicts[index]
            assert begin <= at < end - 1
            assert one.ids[at + 1] == r.completion_ids[step]
            sees = (batch["attention_mask"][0, 0, at] == 0).nonzero().flatten().tolist()
            assert sees == [*range(one.prefix), *range(begin, at + 1)]
            index += 1
    assert index == len(one.predicts)


def test_the_predictor_of_the_first_completion_token_stays_in_the_branch():
    same = [row([5, 6, 7], [8, 2]), row([5, 6, 7], [9, 2])]
    assert shared_prefix(same) == 2
    assert pack(same).ids == (5, 6, 7, 8, 2, 7, 9, 2)


def test_plan_keeps_every_row_once_and_groups_catalogues():
    rows = [*rows_with_prefix(20, seed=1), *rows_with_prefix(9, seed=2)]
    packs = plan(rows, max_row=120, max_tokens=120, max_rows=6, seed=0)
    assert sorted(t for p in packs for t in p.targets) == sorted(t for r in rows for t in r.completion_ids)
    assert all(len(p.ids) <= 120 and len(p.spans) <= 6 for p in packs)
    assert all(p.prefix >= 40 for p in packs if len(p.spans) > 1)
    assert max(len(p.spans) for p in packs) - min(len(p.spans) for p in packs) <= 2
    assert plan(rows, max_row=120, max_tokens=120, max_rows=6, seed=0) == packs
    assert plan(rows, max_row=120, max_tokens=120, max_rows=6, seed=1) != packs


def test_a_row_longer_than_the_budget_is_refused_not_cut():
    with pytest.raises(DataError, match=r"1 of 2 rows are longer than max_seq_length = 50"):
        plan([row([1, 2], [3]), row(list(range(60)), [3])], max_row=50, max_tokens=50, max_rows=4, seed=0)
