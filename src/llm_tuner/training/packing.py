"""Rows that share a token prefix become one sequence: the prefix once, then each row's rest as a branch.

A branch has position ids that go on from the prefix and sees the prefix and itself, nothing of its siblings, so the
loss and the gradients equal those of separate rows (tests/training/test_packing.py proves it on real weights).
Tool-use rows are nearly all prefix (system prompt and tool catalogue), so most of the work is done once a group.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from llm_tuner.types import DataError, Row


@dataclass(frozen=True)
class Pack:
    """One sequence of L tokens holding n rows.

    ids, positions: length L. spans: (start, end) of each branch; what comes before the first start is the prefix.
    predicts, targets: at sequence position `predicts[i]` the model must put `targets[i]`; completions only.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    predicts: tuple[int, ...]
    targets: tuple[int, ...]

    @property
    def prefix(self) -> int:
        """Tokens of the shared prefix."""
        return self.spans[0][0]


def shared_prefix(rows: Sequence[Row]) -> int:
    """Tokens that all prompts start with, at most the shortest prompt less one: the token that predicts the first
    completion token must lie in the branch."""
    columns = zip(*(row.prompt_ids for row in rows), strict=False)
    common = sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, columns))
    return min(common, min(len(row.prompt_ids) for row in rows) - 1)


def pack(rows: Sequence[Row]) -> Pack:
    """One pack of these rows, in their order."""
    start = shared_prefix(rows)
    ids = list(rows[0].prompt_ids[:start])
    positions = list(range(start))
    spans: list[tuple[int, int]] = []
    predicts: list[int] = []
    targets: list[int] = []
    for row in rows:
        rest = (*row.prompt_ids[start:], *row.completion_ids)
        begin = len(ids)
        first = begin + len(row.prompt_ids) - start - 1
        ids.extend(rest)
        positions.extend(range(start, start + len(rest)))
        spans.append((begin, begin + len(rest)))
        predicts.extend(range(first, first + len(row.completion_ids)))
        targets.extend(row.completion_ids)
    return Pack(tuple(ids), tuple(positions), tuple(spans), tuple(predicts), tuple(targets))


def plan(rows: Sequence[Row], *, max_row: int, max_tokens: int, max_rows: int, seed: int) -> list[Pack]:
    """Groups rows by catalogue and packs them, at most `max_rows` rows and `max_tokens` tokens a pack; a row that alone
    is longer than `max_tokens` has a pack of its own.

    Rows are shuffled inside their group with `seed`, and a group's packs are about equally large. DataError if a row is
    longer than `max_row` tokens: cutting it would train on half a call.
    """
    too_long = [row for row in rows if row.length > max_row]
    if too_long:
        longest = max(row.length for row in too_long)
        raise DataError(
            f"{len(too_long)} of {len(rows)} rows are longer than max_seq_length = {max_row} tokens (longest: "
            f"{longest}). Offer fewer tools in these tasks or raise max_seq_length; rows are never cut."
        )
    packs: list[Pack] = []
    for group in _groups(rows, seed):
        needed = len(_cut(group, max_tokens, max_rows))
        packs.extend(pack(part) for part in _cut(group, max_tokens, -(-len(group) // needed)))
    return packs


def _cut(group: Sequence[Row], max_tokens: int, max_rows: int) -> list[list[Row]]:
    parts: list[list[Row]] = [[]]
    for row in group:
        trial = [*parts[-1], row]
        if parts[-1] and (len(trial) > max_rows or _size(trial) > max_tokens):
            parts.append([row])
        else:
            parts[-1] = trial
    return parts


def _groups(rows: Sequence[Row], seed: int) -> list[list[Row]]:
    """Rows whose prompts agree in at least half of the shorter one's tokens, shuffled inside each group."""
    groups: list[list[Row]] = []
    for row in sorted(rows, key=lambda r: r.prompt_ids):
        last = groups[-1][0] if groups else None
        if last is not None and shared_prefix([last, row]) * 2 >= min(len(last.prompt_ids), len(row.prompt_ids)):
            groups[-1].append(row)
        else:
            groups.append([row])
    for group in groups:
        random.Random(f"{seed}:{group[0].task_id}").shuffle(group)
    return groups


def _size(rows: Sequence[Row]) -> int:
    start = shared_prefix(rows)
    return start + sum(row.length - start for row in rows)


def tensors(pack: Pack, dtype: Any) -> dict[str, Any]:
    """What a transformers causal model takes, batch 1: input_ids, position_ids (1, L); attention_mask (1, 1, L, L)
    additive in `dtype`; logits_to_keep (k,): the positions that predict; labels (1, k): what they must predict."""
    import torch

    length = len(pack.ids)
    sees = torch.zeros(length, length, dtype=torch.bool)
    sees[:, : pack.prefix] = True
    for begin, end in pack.spans:
        sees[begin:end, begin:end] = True
    sees &= torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.zeros(length, length, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)
    return {
        "input_ids": torch.tensor([pack.ids]),
        "position_ids": torch.tensor([pack.positions]),
        "attention_mask": mask[None, None],
        "logits_to_keep": torch.tensor(pack.predicts),
        "labels": torch.tensor([pack.targets]),
    }
