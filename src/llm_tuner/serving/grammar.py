"""The grammar of the offered tools: the model may say what it likes until it begins a call; then it must be one.

In Lark's language as llguidance reads it, which llama.cpp is built with here (github.com/guidance-ai/llguidance,
docs/syntax.md). Pure. The rule it protects: whether to call is the model's to decide; how a call looks is not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from llm_tuner.types import Json, ToolSpec, canonical_json

# Text without the two ways in which models begin a call; a run of other text may stop at any place.
_FREE = r"/(?s:.*)/ & ~/(?s:.*)(<tool_call>|```json|```xml|\{\s*\"name\")(?s:.*)/"


class Grammar(NamedTuple):
    """`lark` is for llama.cpp. `whole` is a JSON Schema of an answer that is one call and nothing else, for servers
    that know no more (Ollama's `format`); None where the model is free to answer in text."""

    lark: str
    whole: Json | None

    def llama_cpp(self) -> dict[str, Json]:
        """What llama.cpp's server takes beside a prompt."""
        return {"grammar": self.lark}


def grammar_of(tools: Sequence[ToolSpec], *, required: bool, parallel: bool, open_schema: bool = False) -> Grammar:
    """Of these tools. `required`: a call must be made. `open_schema`: any JSON object does for the arguments, for
    schemas that no grammar can express."""
    shapes = [_shape(tool, open_schema) for tool in tools]
    key = canonical_json(shapes)
    return Grammar(_lark(key, required, parallel), {"anyOf": shapes} if required else None)


def _shape(tool: ToolSpec, open_schema: bool) -> dict[str, Json]:
    arguments: dict[str, Json] = {"type": "object"} if open_schema else {"type": "object", **tool.parameters}
    # `#/$defs/...` means the root, which is one step further out now.
    shared: dict[str, Json] = {key: arguments[key] for key in ("$defs", "definitions") if key in arguments}
    arguments = {key: inner for key, inner in arguments.items() if key not in shared and key != "$schema"}
    return {
        **shared,
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": _closed(arguments)},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _closed(schema: dict[str, Json]) -> dict[str, Json]:
    """The same schema, with no arguments but those that it names, where it names any."""
    if not isinstance(schema.get("properties"), dict) or "additionalProperties" in schema:
        return schema
    return schema | {"additionalProperties": False}


@lru_cache(64)
def _lark(shapes: str, required: bool, parallel: bool) -> str:
    kinds = json.loads(shapes)
    calls = " | ".join(f"call_{number}" for number in range(len(kinds)))
    rules = [f"call_{number}: %json {json.dumps(kind, ensure_ascii=False)}" for number, kind in enumerate(kinds)]
    more = '(/\\s*/ "<tool_call>" /\\n?/ call /\\n?/ "</tool_call>")*' if parallel else ""
    start = "start: call_block" if required else "start: free call_block?"
    block = f'call_block: "<tool_call>" /\\n?/ call /\\n?/ "</tool_call>" {more}'
    if not required:
        block += ' | "```json" /\\s*/ call /\\s*/ "```" | call'
    return "\n".join(["%llguidance {}", start, f"free: {_FREE}", block, f"call: {calls}", *rules])
