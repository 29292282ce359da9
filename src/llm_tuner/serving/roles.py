"""Roles: who answers for which name, how many at a time, and who when that one fails.

Not a load balancer. The rule it protects: a model that keeps failing is left alone for a while, and a client never
waits in line longer than it was told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from llm_tuner.serving.upstreams import Upstream
from llm_tuner.types import RuntimeUnavailable, UnknownModel

FAILURES = 3
"""Failures in a row after which a role is left alone."""

REST = 30.0
"""Seconds that it is left alone; then one request may try."""

LINE = 120.0
"""Seconds that a request waits for its turn."""


class Busy(RuntimeUnavailable):
    """All places are taken, or the role is being left alone."""


@dataclass
class Role:
    """A name that clients ask for, and the model behind it. `at_once` requests run at a time, others wait in line.
    `also` are other names of the same (the model's own, mostly)."""

    name: str
    upstream: Upstream
    at_once: int = 1
    also: tuple[str, ...] = ()
    waiting: int = 0
    running: int = 0
    failures: int = 0
    opened: float = 0.0
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    _places: asyncio.Semaphore | None = field(default=None, repr=False)

    @property
    def resting(self) -> bool:
        """Whether it failed so often that it is left alone now."""
        return self.failures >= FAILURES and self.clock() - self.opened < REST

    @asynccontextmanager
    async def place(self, line: float = LINE) -> AsyncIterator[Upstream]:
        """The upstream, for one request. Raises Busy after `line` seconds of waiting."""
        if self._places is None:
            self._places = asyncio.Semaphore(self.at_once)
        self.waiting += 1
        try:
            async with asyncio.timeout(line):
                await self._places.acquire()
        except TimeoutError:
            raise Busy(f"{self.name} is busy: {line:g} s in line for {self.at_once} places. Try again.") from None
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield self.upstream
        finally:
            self.running -= 1
            self._places.release()

    def failed(self) -> None:
        """The upstream did not answer, or broke off."""
        self.failures += 1
        self.opened = self.clock()

    def worked(self) -> None:
        self.failures = 0


class Roles:
    """All roles, by name. The first is what an unnamed or unknown "auto" gets; `fallback` helps the others out."""

    def __init__(self, roles: Sequence[Role], *, fallback: str = "fallback") -> None:
        self.all = tuple(roles)
        self._by_name = {name: role for role in reversed(self.all) for name in (*role.also, role.name)}
        self._fallback = self._by_name.get(fallback)

    def names(self) -> list[str]:
        """What clients may ask for."""
        return list(dict.fromkeys(name for role in self.all for name in (role.name, *role.also)))

    def chain(self, name: str) -> tuple[Role, ...]:
        """Who may answer, in this order. Raises UnknownModel."""
        role = self._by_name.get(name) or self._by_name.get(name.removesuffix(":latest"))
        if role is None and name in ("", "auto", "default"):
            role = self.all[0]
        if role is None:
            raise UnknownModel(f'No model "{name}" here (found {len(self.names())}: {", ".join(self.names())}).')
        helper = self._fallback
        return (role,) if helper is None or helper is role else (role, helper)

    async def close(self) -> None:
        for role in self.all:
            await role.upstream.close()  # twice where roles share one, which is harmless
