"""Packs: same loss and same gradients as separate rows, on tiny models of three architectures and on a real one."""

import random

import pytest

from llm_tuner.training.packing import SHORTEST, Unit, pack, packs, plan, without_too_long
from llm_tuner.types import DataError, Row

torch = pytest.importorskip("torch")


def row(prompt, completion, name="t"):
    return Row(task_id=name, prompt="p", completion="c", prompt_ids=tuple(prompt), completion_ids=tuple(completion))


def units(rows):
    return [Unit((one,), weight=len(one.completion_ids)) for one in rows]


def rows_with_prefix(count, prefix=40, seed=0):
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


def forest(seed=0):
    """Two catalogues; requests with two answers each (as in pairs); a conversation whose later prompt holds its earlier
    answer; a row that is another one's beginning; two rows that are the same."""
    rng = random.Random(seed)

    def text(n):
        return [rng.randrange(3, 90) for _ in range(n)]

    rows = []
    for _ in range(2):
        catalogue = text(30)
        for _ in range(3):
            request = catalogue + text(12)
            right, wrong = text(11), text(5)
            rows += [row(request, right), row(request, wrong), row(request, right[:9] + text(4))]
            rows.append(row(request + right + text(10), text(6)))
        rows.append(row(catalogue[:15], catalogue[15:28]))
    rows.append(rows[0])
    random.Random(seed).shuffle(rows)
    return rows


def tiny(architecture, **more):
    from transformers import AutoConfig, AutoModelForCausalLM

    from llm_tuner.training import attention

    attention.register()
    sizes = {
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, **more,
    }  # fmt: skip
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **sizes)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention.NAME)


def loss_together(model, rows):
    """Mean cross entropy a target token over one pack of all rows."""
    from llm_tuner.training.loss import log_probabilities

    return -log_probabilities(model, pack(rows), "cpu").mean()


def loss_alone(model, rows):
    """The same, row by row, with transformers' own attention and masks, and torch's own cross entropy."""
    model.set_attn_implementation("eager")
    total, count = 0.0, 0
    for one in rows:
        ids = torch.tensor([[*one.prompt_ids, *one.completion_ids]])
        logits = model(input_ids=ids, use_cache=False).logits[0]
        first = len(one.prompt_ids) - 1
        wanted = torch.tensor(one.completion_ids)
        guesses = logits[first : first + len(wanted)]
        total = total + torch.nn.functional.cross_entropy(guesses, wanted, reduction="sum")
        count += len(wanted)
    return total / count


def distance(model, rows):
    """(relative difference of the loss, relative difference of the whole gradient) between together and alone."""
    results = []
    for loss_of in (loss_together, loss_alone):
        model.zero_grad()
        loss = loss_of(model, rows)
        loss.backward()
        slope = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((loss.item(), slope))
    (together, g1), (alone, g2) = results
    return abs(together - alone) / alone, float(torch.linalg.norm(g1 - g2) / torch.linalg.norm(g2))


@pytest.mark.parametrize("make", [lambda: rows_with_prefix(7), forest], ids=["one prefix", "forest"])
@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        ("qwen2", {}),
        ("llama", {}),
        ("qwen3", {}),
        ("gemma3_text", {"sliding_window": 512}),
        ("gemma3_text", {"sliding_window": 16}),  # shorter than the rows: its local layers see less
    ],
    ids=["qwen2", "llama", "qwen3", "gemma3", "gemma3 short window"],
)
def test_loss_and_gradients_equal_separate_rows(architecture, more, make):
    loss, slope = distance(tiny(architecture, **more), make())
    assert loss < 1e-5
    assert slope < 1e-4


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_changes_nothing(checkpointing):
    model = tiny("qwen2")
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    loss, slope = distance(model, forest())
    assert loss < 1e-5
    assert slope < 1e-4


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_rule_of_flexattention_is_the_same():
    """The block mask that CUDA takes, computed without compiling."""
    from torch.nn.attention.flex_attention import flex_attention

    from llm_tuner.training.attention import Layout, _TreeAttention

    one = pack(forest())
    layout = Layout(one, torch.device("cpu"))
    q, k, v = (torch.randn(1, heads, len(one.ids), 16) for heads in (4, 2, 2))
    flex = flex_attention(q, k, v, block_mask=layout.blocks(), enable_gqa=True)
    assert torch.allclose(flex, _TreeAttention.apply(q, k, v, 0.25, layout), atol=1e-5)


def test_a_token_sees_its_own_row_and_nothing_else():
    rows = forest()
    one = pack(rows)
    sees = [[k for k in range(q + 1) if q < one.ends[k]] for q in range(len(one.ids))]
    assert all(one.positions[q] == len(keys) - 1 for q, keys in enumerate(sees))
    at = 0
    for number, r in enumerate(rows):
        text = [*r.prompt_ids, *r.completion_ids]
        for step, token in enumerate(r.completion_ids):
            assert one.owners[at] == number
            assert one.targets[at] == token
            seen = [one.ids[k] for k in sees[one.predicts[at]]]
            assert seen == text[: len(r.prompt_ids) + step]  # exactly what comes before the token, in its order
            at += 1
    assert at == len(one.targets)


def test_what_is_shared_stands_once():
    head, a, b = list(range(3, 43)), [50] * 20, [60] * 20
    pair = [row(head + a, [70] * 10), row(head + a, [71] * 10), row(head + b, [70] * 10)]
    assert len(pack(pair).ids) == 40 + 20 + 20 + 10 + 10 + 10
    some = [40 + i for i in range(SHORTEST - 1)]  # after the head a run too short for a node of its own
    short = [row(head, [*some, 1]), row(head, [*some, 2]), row(head, [90])]
    assert len(pack(short).ids) == 40 + 2 * SHORTEST + 1
    assert len(pack([pair[0], pair[0]]).ids) == 70
    assert len(pack([pair[0], pair[0]]).targets) == 20


def test_packs_keep_every_unit_once_within_the_budget():
    rows = [*rows_with_prefix(20, seed=1), *rows_with_prefix(9, seed=2)]
    parts = packs(units(rows), 120)
    assert sorted(u.rows[0].task_id for part in parts for u in part) == sorted(r.task_id for r in rows)
    assert all(len(pack([u.rows[0] for u in part]).ids) <= 120 + SHORTEST * len(part) for part in parts)
    assert packs(units(rows), 10_000) == [sorted(units(rows), key=lambda u: u.rows[0].prompt_ids)]


def test_a_catalogue_longer_than_the_budget_is_still_shared():
    rows = rows_with_prefix(16, prefix=400)
    parts = packs(units(rows), 100)
    assert len(parts) < len(rows) / 3
    assert all(len(pack([u.rows[0] for u in part]).ids) <= 1.3 * 415 for part in parts)


def test_plan_keeps_catalogues_together_and_the_seed_fixes_the_order():
    rows = [*rows_with_prefix(20, seed=1), *rows_with_prefix(9, seed=2), *rows_with_prefix(3, seed=3)]
    steps = plan(units(rows), units_a_step=10, seed="0")
    assert sorted(u.rows[0].prompt_ids for step in steps for u in step) == sorted(r.prompt_ids for r in rows)
    assert all(5 <= len(step) <= 15 for step in steps)
    catalogues = [{u.rows[0].prompt_ids[:40] for u in step} for step in steps]
    assert sum(map(len, catalogues)) == 4  # 20 rows in two steps of 10, 9 and 3 each in one
    assert plan(units(rows), units_a_step=10, seed="0") == steps
    assert plan(units(rows), units_a_step=10, seed="1") != steps


def test_rows_longer_than_the_limit_are_refused_or_left_out_never_cut():
    mixed = units([row([1, 2], [3]), row(list(range(60)), [3])])
    with pytest.raises(DataError, match=r"1 of 2 rows are longer than max_seq_length = 50 tokens \(longest: 61\)"):
        without_too_long(mixed, 50, drop=False)
    assert without_too_long(mixed, 50, drop=True) == mixed[:1]
    with pytest.raises(DataError, match="2 of 2"):
        without_too_long(mixed, 2, drop=True)
