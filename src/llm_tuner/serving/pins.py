"""Which of a server's slots holds which beginning of a prompt, so that a beginning is read once.

A slot is llama.cpp's place for one conversation. The rule it protects: whatever goes wrong with a state on disk
(another build, a cut file, a full disk) costs reading the prompt again and nothing else; and a state holds the
beginning alone, nothing that anybody asked or answered.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from llm_tuner.types import ModelError

log = logging.getLogger("llm_tuner.gateway")

MOST_BYTES = 2 << 30
"""Of all states in a folder; the ones used longest ago go first."""

WORTH = 2
"""So often a beginning must have been used to be saved: tools that are chosen for one request rarely come again."""

_REMEMBERED = 1000

SUFFIX = ".state"

Act = Callable[[int, str, str], Awaitable[object]]
"""(slot, "save" or "restore", file name) -> asks the server to do so. Raises ModelError where it cannot."""

Bare = Callable[[int], Awaitable[object]]
"""Has the server forget what stands behind the beginning in this slot. Raises ModelError."""


@dataclass
class Slot:
    """One slot. Who asks sets `read` once its prompt is read, which is when the first piece of the answer comes."""

    number: int
    beginning: str = ""
    read: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)


class Pins:
    """The slots of one server. `folder` is where it keeps states, None where it cannot."""

    def __init__(self, slots: int, act: Act, folder: Path | None = None, most: int = MOST_BYTES) -> None:
        self._slots: OrderedDict[int, Slot] = OrderedDict((n, Slot(n)) for n in range(slots))
        self._act, self._folder, self._most = act, folder, most
        self._saving: set[asyncio.Task[None]] = set()
        self._used: OrderedDict[str, int] = OrderedDict()
        self.restored = 0
        """How often a beginning came from disk."""

    @asynccontextmanager
    async def slot(self, beginning: str, bare: Bare | None = None) -> AsyncIterator[Slot]:
        """A slot for a prompt with this beginning: the one that holds it, else the one used longest ago, with the
        beginning's state put back where there is one. Read for the second time, a beginning gets a state, unless `bare`
        is None."""
        slot = self._chosen(beginning)
        async with slot.lock:
            if slot.beginning != beginning:
                await self._restore(slot, beginning)
            slot.beginning, slot.read = "", False
            try:
                yield slot
            finally:
                self._slots.move_to_end(slot.number)
                if slot.read:
                    slot.beginning = beginning
                    if bare is not None:
                        self._save_later(slot, beginning, bare)

    def _save_later(self, slot: Slot, beginning: str, bare: Bare) -> None:
        self._used[beginning] = self._used.pop(beginning, 0) + 1
        if len(self._used) > _REMEMBERED:
            self._used.popitem(last=False)
        file = self._file(beginning)
        if file is not None and self._used[beginning] >= WORTH and not file.exists():
            task = asyncio.create_task(self._save(slot, beginning, file, bare))
            self._saving.add(task)
            task.add_done_callback(self._saving.discard)

    def forget(self) -> None:
        """The server began anew: its slots are empty."""
        for slot in self._slots.values():
            slot.beginning = ""

    async def close(self) -> None:
        """Waits for what is being saved."""
        await asyncio.gather(*self._saving, return_exceptions=True)

    def _chosen(self, beginning: str) -> Slot:
        free = [slot for slot in self._slots.values() if not slot.lock.locked()] or list(self._slots.values())
        return next((slot for slot in free if slot.beginning == beginning), free[0])

    async def _restore(self, slot: Slot, beginning: str) -> None:
        file = self._file(beginning)
        if file is None or not file.exists():
            return
        try:
            await self._act(slot.number, "restore", file.name)
        except ModelError as error:
            log.warning("a saved prompt cannot be used and is dropped: %s", error)
            with suppress(OSError):
                file.unlink()
            return
        self.restored += 1
        with suppress(OSError):
            os.utime(file)

    async def _save(self, slot: Slot, beginning: str, file: Path, bare: Bare) -> None:
        async with slot.lock:
            if file.exists() or slot.beginning != beginning:
                return
            part = file.with_suffix(".part")
            try:
                await bare(slot.number)
                await self._act(slot.number, "save", part.name)
                os.replace(part, file)
            except (ModelError, OSError) as error:
                log.warning("a prompt was not saved, and is read again after a restart: %s", error)
                with suppress(OSError):
                    part.unlink()
        await asyncio.to_thread(_trim, file.parent, self._most)

    def _file(self, beginning: str) -> Path | None:
        return self._folder / f"{beginning}{SUFFIX}" if self._folder is not None and beginning else None


def _trim(folder: Path, most: int) -> None:
    """Removes the states used longest ago until the rest has at most so many bytes."""
    found = []
    for file in folder.glob(f"*{SUFFIX}"):
        with suppress(OSError):
            found.append((file.stat().st_mtime, file.stat().st_size, file))
    total = sum(size for _, size, _ in found)
    for _, size, file in sorted(found):
        if total <= most:
            return
        with suppress(OSError):
            file.unlink()
            total -= size
