"""Rows that share tokens become one sequence in which whatever they share stands once.

The rows' tokens form a forest: a node is a run of tokens, its children go on from it in different ways. Written depth
first, with position ids that go on from the parent, a token may look at exactly those before it whose subtree it lies
in: `k <= q < ends[k]`. That one rule keeps branches apart, so losses and gradients equal those of separate rows
(tests/training/test_packing.py proves it). Tool-use rows are nearly all prefix: the system prompt and the tool
catalogue are computed once for many requests, a request once for its chosen and rejected answers, a conversation once
for all of its turns.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llm_tuner.types import DataError, Row

SHORTEST = 8
"""Shared runs of fewer tokens are written twice: a node costs more than they do."""


@dataclass(frozen=True)
class Node:
    """Tokens `start` to `end` of a pack; those of its descendants follow, up to `last`."""

    start: int
    end: int
    last: int


@dataclass(frozen=True)
class Pack:
    """One sequence of L tokens holding n rows.

    ids, positions: length L. nodes: depth first, parents before their children. predicts, targets, owners: at sequence
    position `predicts[i]` the model must put `targets[i]` for row `owners[i]` (0..n-1); completions only, row by row.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    nodes: tuple[Node, ...]
    predicts: tuple[int, ...]
    targets: tuple[int, ...]
    owners: tuple[int, ...]

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """For each token the end of its node's subtree: query q sees key k when `k <= q < ends[k]`."""
        out = [0] * len(self.ids)
        for node in self.nodes:
            out[node.start : node.end] = [node.last] * (node.end - node.start)
        return tuple(out)


@dataclass(frozen=True)
class Unit:
    """What must stay together in one pack: a row, or the two rows of a pair.

    `weight` is what it counts in the mean over an optimizer step; `data` is what its loss needs besides the rows.
    """

    rows: tuple[Row, ...]
    weight: float
    data: Any = None


def pack(rows: Sequence[Row]) -> Pack:
    """One pack of these rows; `owners` count them in the order given."""
    texts = [(*row.prompt_ids, *row.completion_ids) for row in rows]
    order = sorted(range(len(rows)), key=texts.__getitem__)
    ids: list[int] = []
    positions: list[int] = []
    nodes: list[Node] = []
    places: list[list[int]] = [[] for _ in rows]  # the sequence position of each row's tokens

    def write(members: Sequence[int], depth: int) -> None:
        """The tokens of these rows from `depth` on, as nodes."""
        for run in _runs(members, texts, depth):
            common = len(texts[run[0]]) if len(run) == 1 else _agree(texts[run[0]], texts[run[-1]])
            start, number = len(ids), len(nodes)
            ids.extend(texts[run[0]][depth:common])
            positions.extend(range(depth, common))
            for member in run:
                places[member].extend(range(start, len(ids)))
            nodes.append(Node(start, len(ids), 0))
            write([member for member in run if len(texts[member]) > common], common)
            nodes[number] = Node(start, start + common - depth, len(ids))

    write(order, 0)
    predicts: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for owner, row in enumerate(rows):
        first = len(row.prompt_ids) - 1
        predicts.extend(places[owner][first : first + len(row.completion_ids)])
        targets.extend(row.completion_ids)
        owners.extend([owner] * len(row.completion_ids))
    return Pack(tuple(ids), tuple(positions), tuple(nodes), tuple(predicts), tuple(targets), tuple(owners))


def _runs(members: Sequence[int], texts: Sequence[tuple[int, ...]], depth: int) -> list[list[int]]:
    """Sorted rows, cut where neighbours share fewer than SHORTEST tokens beyond `depth`."""
    runs: list[list[int]] = []
    for member in members:
        if runs and _agree(texts[runs[-1][-1]], texts[member]) >= depth + SHORTEST:
            runs[-1].append(member)
        else:
            runs.append([member])
    return runs


def _agree(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens that both start with."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low < high:  # the slices compare in C; a loop over 12,000 tokens would not
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def packs(units: Sequence[Unit], max_tokens: int) -> list[list[Unit]]:
    """Units dealt to packs of at most `max_tokens` tokens each, neighbours together, about equally many in each.

    A pack may always be a quarter longer than its longest row: where a catalogue alone exceeds `max_tokens`, sharing it
    costs little memory and saves nearly all of the work.
    """
    ordered = sorted(units, key=lambda unit: unit.rows[0].prompt_ids)
    most = -(-len(ordered) // len(_cut(ordered, max_tokens, len(ordered)))) if ordered else 0
    return _cut(ordered, max_tokens, most)


def _cut(units: Sequence[Unit], max_tokens: int, most: int) -> list[list[Unit]]:
    parts: list[list[Unit]] = []
    size = longest = 0
    before: tuple[int, ...] = ()
    for unit in units:
        own = max(row.length for row in unit.rows)
        prompt = unit.rows[0].prompt_ids
        alone = own + sum(len(row.completion_ids) for row in unit.rows[1:])
        shared = _agree(before, prompt) if before else 0
        grown = size + alone - shared
        longest = max(longest, own)
        if parts and len(parts[-1]) < most and grown <= max(max_tokens, longest + longest // 4):
            parts[-1].append(unit)
            size = grown
        else:
            parts.append([unit])
            size, longest = alone, own
        before = prompt
    return parts


def plan(units: Sequence[Unit], *, units_a_step: int, seed: str) -> list[list[Unit]]:
    """Optimizer steps of about `units_a_step` units for one pass over the data, in an order that `seed` fixes.

    Units of one catalogue (prompts that agree in at least half of the shorter one) stand in as few steps as possible:
    what they share is computed once a step.
    """
    pieces: list[list[Unit]] = []
    for group in _groups(units):
        random.Random(f"{seed}:{group[0].rows[0].task_id}").shuffle(group)
        count = -(-len(group) // units_a_step)
        pieces.extend(group[len(group) * i // count : len(group) * (i + 1) // count] for i in range(count))
    random.Random(seed).shuffle(pieces)
    steps: list[list[Unit]] = []
    for piece in pieces:
        if steps and 2 * len(steps[-1]) + len(piece) <= 2 * units_a_step:  # nearer to the wanted size with it
            steps[-1].extend(piece)
        else:
            steps.append(list(piece))
    return steps


def _groups(units: Sequence[Unit]) -> list[list[Unit]]:
    groups: list[list[Unit]] = []
    for unit in sorted(units, key=lambda u: u.rows[0].prompt_ids):
        prompt = unit.rows[0].prompt_ids
        last = groups[-1][0].rows[0].prompt_ids if groups else ()
        if groups and _agree(last, prompt) * 2 >= min(len(last), len(prompt)):
            groups[-1].append(unit)
        else:
            groups.append([unit])
    return groups


def without_too_long(units: Sequence[Unit], max_row: int, drop: bool) -> list[Unit]:
    """Units whose rows have at most `max_row` tokens each. Longer ones are left out where `drop` says so, else they are
    a DataError: rows are never cut, half a call teaches half a call."""
    fits = [unit for unit in units if all(row.length <= max_row for row in unit.rows)]
    if len(fits) == len(units) or (drop and fits):
        return fits
    longest = max(row.length for unit in units for row in unit.rows)
    raise DataError(
        f"{len(units) - len(fits)} of {len(units)} rows are longer than max_seq_length = {max_row} tokens (longest: "
        f"{longest}). Offer fewer tools in these tasks, raise max_seq_length, or leave them out (too_long = drop)."
    )
