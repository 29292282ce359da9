"""Slots of a server and the beginnings that they hold."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from llm_tuner.serving.pins import SUFFIX, Bare, Pins
from llm_tuner.types import ModelError


class Server:
    """Saves and restores by name, as llama.cpp does; says no on demand."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.told, self.broken = folder, list[tuple[int, str, str]](), ""
        self.bared: list[int] = []

    async def bare(self, slot: int) -> None:
        self.bared.append(slot)

    async def act(self, slot: int, action: str, file: str) -> object:
        self.told.append((slot, action, file))
        if action == self.broken:
            raise ModelError("no")
        if action == "save":
            (self.folder / file).write_text("state")
        return None


async def _nothing(slot: int) -> None:
    return


async def use(pins: Pins, beginning: str, *, read: bool = True, bare: Bare | None = _nothing) -> int:
    async with pins.slot(beginning, bare) as slot:
        slot.read = read
        return slot.number


def test_a_beginning_keeps_its_slot_and_the_slot_used_longest_ago_is_given_away(tmp_path: Path) -> None:
    async def main() -> None:
        pins = Pins(2, Server(tmp_path).act)
        first, second = await use(pins, "a"), await use(pins, "b")
        assert {first, second} == {0, 1}
        assert await use(pins, "a") == first
        assert await use(pins, "c") == second
        assert await use(pins, "a") == first

    asyncio.run(main())


def test_a_state_is_saved_once_and_put_back_in_the_next_life(tmp_path: Path) -> None:
    server = Server(tmp_path)

    async def life(*beginnings: str) -> Pins:
        pins = Pins(1, server.act, tmp_path)
        for beginning in beginnings:
            await use(pins, beginning)
            await pins.close()
        return pins

    assert asyncio.run(life("a", "b")).restored == 0
    assert server.told == []  # a beginning that was used once is not worth it
    assert asyncio.run(life("a", "a", "a")).restored == 0
    assert server.told == [(0, "save", "a.part")]
    assert asyncio.run(life("a", "b", "b", "a")).restored == 2
    assert [one[1:] for one in server.told[1:]] == [
        ("restore", f"a{SUFFIX}"),
        ("save", "b.part"),
        ("restore", f"a{SUFFIX}"),
    ]


@pytest.mark.parametrize("broken", ["save", "restore"])
def test_a_state_that_is_no_use_costs_nothing_but_itself(tmp_path: Path, broken: str) -> None:
    server = Server(tmp_path)
    (tmp_path / f"a{SUFFIX}").write_text("of another build")
    server.broken = broken

    async def main() -> Pins:
        pins = Pins(1, server.act, tmp_path)
        await use(pins, "a")
        await use(pins, "b")
        await use(pins, "b")
        await pins.close()
        return pins

    asyncio.run(main())
    assert {file.name for file in tmp_path.iterdir()} == ({f"a{SUFFIX}"} if broken == "save" else {f"b{SUFFIX}"})


def test_what_was_not_read_is_not_taken_for_read(tmp_path: Path) -> None:
    server = Server(tmp_path)

    async def main() -> None:
        pins = Pins(1, server.act, tmp_path)
        await use(pins, "a")
        await use(pins, "a", read=False)
        with pytest.raises(ZeroDivisionError):
            async with pins.slot("a"):
                raise ZeroDivisionError
        await pins.close()

    asyncio.run(main())
    assert server.told == []


def test_two_requests_at_a_time_have_two_slots_and_a_third_waits(tmp_path: Path) -> None:
    async def main() -> None:
        pins = Pins(2, Server(tmp_path).act)
        async with pins.slot("a") as one, pins.slot("a") as two:
            assert one.number != two.number
            third = asyncio.create_task(use(pins, "a"))
            await asyncio.sleep(0.01)
            assert not third.done()
        assert await third in (0, 1)

    asyncio.run(main())


def test_the_oldest_states_go_first(tmp_path: Path) -> None:
    for age, name in enumerate("abc"):
        (tmp_path / f"{name}{SUFFIX}").write_bytes(bytes(100))
        os.utime(tmp_path / f"{name}{SUFFIX}", (1000 - age, 1000 - age))

    async def main() -> None:
        pins = Pins(1, Server(tmp_path).act, tmp_path, most=210)
        await use(pins, "d")
        await use(pins, "d")
        await pins.close()

    asyncio.run(main())
    assert sorted(file.stem for file in tmp_path.iterdir()) == ["a", "b", "d"]


def test_what_was_asked_is_forgotten_before_a_state_is_saved_and_what_is_private_never_is(tmp_path: Path) -> None:
    server = Server(tmp_path)

    async def main() -> None:
        pins = Pins(1, server.act, tmp_path)
        for _ in range(3):
            await use(pins, "a", bare=None)
        await pins.close()
        assert (server.bared, server.told) == ([], [])
        for _ in range(2):
            await use(pins, "b", bare=server.bare)
        await pins.close()

    asyncio.run(main())
    assert (server.bared, server.told) == ([0], [(0, "save", "b.part")])
