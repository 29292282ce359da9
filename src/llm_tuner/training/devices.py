"""Where training runs: one process, or several started by `accelerate launch` or `torchrun`.

Every process holds the base and the adapter; the packs of a step are dealt out, and the adapter's gradients, a few
megabytes, are added up. So the curve is that of one process. `accelerate` finds the devices and joins the processes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from llm_tuner.types import Json

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among `size` of them. `device` is where its model lives."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and tells progress."""
        return self.rank == 0

    def share(self, packs: Sequence[T]) -> list[T]:
        """This process's packs."""
        return list(packs[self.rank :: self.size])

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        return bool(self._sum(torch.tensor([float(flag)]))[0])

    def sums(self, values: dict[str, float]) -> dict[str, float]:
        """Each value added up over the processes. Names that only some processes know count as zero elsewhere."""
        if self.size == 1:
            return values
        known = self.gather(values)
        names = sorted({name for one in known for name in one})
        return {name: sum(one.get(name, 0.0) for one in known) for name in names}

    def gather(self, value: Json) -> list[Json]:
        """Each process's JSON value, in their order. As bytes: torch would pickle objects."""
        if self.size == 1:
            return [value]
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self.device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        torch.distributed.all_gather(sizes, torch.tensor([len(own)], device=self.device))
        longest = int(max(sizes))
        texts = [torch.zeros(longest, dtype=torch.uint8, device=self.device) for _ in range(self.size)]
        torch.distributed.all_gather(texts, torch.nn.functional.pad(own, (0, longest - len(own))))
        return [json.loads(bytes(t[: int(n)].tolist())) for t, n in zip(texts, sizes, strict=True)]

    def add_gradients(self, weights: Iterable[Any]) -> None:
        """Adds up the gradients of all processes, in place; a process without packs adds zero."""
        if self.size == 1:
            return
        parameters = list(weights)
        flat = torch.cat([_slope(p).flatten() for p in parameters])
        torch.distributed.all_reduce(flat)
        for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = piece.view_as(parameter).clone()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()

    def _sum(self, values: Any) -> Any:
        if self.size > 1:
            values = values.to(self.device)
            torch.distributed.all_reduce(values)
        return values


def _slope(parameter: Any) -> Any:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)


def world() -> World:
    """This process's place, from the launcher's environment; alone where there is none."""
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return World(torch.device(state.device), state.process_index, state.num_processes)
