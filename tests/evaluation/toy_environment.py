"""A small environment of our own, made as the benchmark's are: classes with a scenario and public methods.

It has on purpose what makes checking hard: a value that all objects share, a name that two classes have, results that
are no JSON, an attribute that only a call makes, errors, time and memory without end.
"""

from __future__ import annotations

import time
from typing import Any

LIGHTS: dict[str, dict[str, Any]] = {"pier": {"on": False}}


class Boat:
    def __init__(self, name: str) -> None:
        self.name = name
        self.seen = time.time_ns()

    def __repr__(self) -> str:
        return f"<boat {self.name}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Boat) and other.name == self.name


class Harbour:
    def _load_scenario(self, scenario: dict[str, Any], long_context: bool = False) -> None:
        self.boats = {name: Boat(name) for name in scenario.get("boats", [])}
        self.log: list[str] = ["calm"] * (1000 if long_context else 1)
        self.lights = LIGHTS
        self._asked = 0

    def arrive(self, name: str, berth: int = 1) -> dict[str, Any]:
        if name in self.boats:
            return {"error": f"{name} is here"}
        self.boats[name] = Boat(name)
        self.last_berth = berth
        return {"berth": berth, "boats": len(self.boats)}

    def leave(self, name: str) -> None:
        del self.boats[name]

    def find(self, name: str) -> dict[str, Any]:
        self._asked += 1
        return {"boat": self.boats.get(name)}

    def note(self, text: str) -> str:
        self.log.append(text)
        return text

    def read(self) -> list[str]:
        return self.log

    def light(self, place: str) -> dict[str, Any]:
        self.lights[place]["on"] = not self.lights[place]["on"]
        return dict(self.lights[place])

    def status(self) -> str:
        return "harbour"

    def sleep(self, seconds: float) -> str:
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                pass
        except Exception:
            return "swallowed"
        return "slept"

    def stick(self) -> int:
        return sum(iter(int, 1))  # never comes back to Python

    def fill(self, size: int) -> int:
        return len("x" * size)

    def reach(self, path: str) -> str:
        import subprocess

        with open(path) as file:
            return file.read() + subprocess.__name__

    def connect(self, port: int) -> str:
        import socket

        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return "connected"

    def parse(self, day: str) -> str:
        from datetime import datetime

        return str(datetime.strptime(day, "%Y-%m-%d").year)


class Sums:
    def add(self, a: float, b: float) -> dict[str, Any]:
        return {"sum": a + b}

    def status(self) -> str:
        return "sums"
