"""Stub."""

from __future__ import annotations

from llm_tuner.operations import Operation

OPERATIONS: tuple[Operation, ...] = ()
