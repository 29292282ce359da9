"""The three faces offer the same operations, with the same arguments; and the agent's card names only what exists."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import typer.main
from mcp import Client

from llm_tuner.apps.cli import app
from llm_tuner.apps.mcp_face import server
from llm_tuner.operations import Change, Operation
from llm_tuner.operations.table import OPERATIONS, find

CARD = Path(__file__).parents[2] / "agents" / "llm-tuner.md"


def _command(words: tuple[str, ...]) -> Any:
    found: Any = typer.main.get_command(app)
    for word in words:
        found = found.commands[word]
    return found


def _arguments(operation: Operation) -> set[str]:
    return set(operation.parameters) - {"confirm"}


def test_the_terminal_has_a_command_for_each_with_its_arguments() -> None:
    for operation in OPERATIONS:
        options = {parameter.name for parameter in _command(operation.command).params}
        assert _arguments(operation) <= options, operation.name
        assert "json" in options, operation.name
        assert ("yes" in options) == (operation.effect == "destroys"), operation.name


def test_mcp_has_a_tool_for_each_with_its_arguments() -> None:
    async def main() -> None:
        async with Client(server(OPERATIONS)) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert list(tools) == [operation.name for operation in OPERATIONS]
        for operation in OPERATIONS:
            properties = tools[operation.name].input_schema.get("properties", {})
            assert set(properties) == set(operation.parameters)
            assert all(one.get("description") for name, one in properties.items() if name != "confirm"), operation.name

    asyncio.run(main())


def test_each_has_a_summary_in_both_languages_an_example_and_what_its_effect_asks_for() -> None:
    assert len({operation.name for operation in OPERATIONS}) == len(OPERATIONS)
    for operation in OPERATIONS:
        assert re.search(r"[ぁ-んァ-ン一-龥]", operation.ja), operation.name
        assert f"Example: llm-tuner {' '.join(operation.command)}" in operation.help, operation.name
        destroys = operation.effect == "destroys"
        assert ("confirm" in operation.parameters) == destroys, operation.name
        if destroys:
            assert operation.parameters["confirm"].default is False
            assert operation.run.__annotations__["return"] in ("Change", Change) or operation.long


def test_the_agents_card_names_operations_that_exist() -> None:
    text = CARD.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:ollama|models?)_[a-z_]+|status|evaluate|compare|tune|resources)`", text))
    assert len(named) > 12
    for name in named:
        assert find(name).name == name
