"""Every operation, by name. To add one: write the function in one of these modules and add it to its OPERATIONS."""

from __future__ import annotations

import difflib

from llm_tuner.operations import Operation, machine, ollama, rounds, standing, versions
from llm_tuner.types import SetupError

OPERATIONS: tuple[Operation, ...] = (
    *standing.OPERATIONS,
    *ollama.OPERATIONS,
    *versions.OPERATIONS,
    *machine.OPERATIONS,
    *rounds.OPERATIONS,
)


def find(name: str) -> Operation:
    """The operation of this name. Raises SetupError that names the nearest."""
    for operation in OPERATIONS:
        if operation.name == name:
            return operation
    near = difflib.get_close_matches(name, [operation.name for operation in OPERATIONS], n=1)
    raise SetupError(f'No operation "{name}".' + (f' Did you mean "{near[0]}"?' if near else ""))
