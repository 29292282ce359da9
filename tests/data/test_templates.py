"""Every template family, rendered by the real llama.cpp: what is trained of each conversation, token by token."""

from __future__ import annotations

import json

import pytest

from llm_tuner.models.chat_template import chat_template, require_chat_template
from llm_tuner.models.llamacpp import Embedded
from llm_tuner.models.runtimes import EmbeddedRuntime
from llm_tuner.types import Message, TemplateMismatch
from template_families import CONVERSATIONS, FAMILIES, SKY, write
from template_tables import cells, sees_tools

pytest.importorskip("trl")
pytestmark = pytest.mark.weights

PLAIN = ("words", "special text")
CALLS = ("call", "calls", "text and call", "no arguments", "result, call", "two turns", "system", "thinking, call")
CALLS += ("Japanese", "emoji, marks", "nested")
NO_TOOLS = dict.fromkeys(CALLS, "calls dropped") | {"thinking": "yes, no thinking"}
NO_THINKING = {"thinking": "yes, no thinking", "thinking, call": "yes, no thinking"}
NO_TEXT = NO_THINKING | {"text and call": "yes, no text"}
NOT_CONTINUED = dict.fromkeys(CONVERSATIONS, "not continued")

OTHERWISE = {
    "Qwen2.5": NO_THINKING,
    "Qwen3": {},
    "Qwen3 2507": NO_THINKING,
    "Qwen3.5 thinking": dict.fromkeys(CONVERSATIONS, "one token") | {"thinking": "yes", "thinking, call": "yes"},
    "Llama 3.1": NO_TEXT | {"calls": "refused", "results": "refused"},
    "Llama 3.2": NO_TEXT | {"calls": "refused", "results": "refused"},
    "Mistral Nemo": NO_TEXT,
    "Hermes 2 Pro": NO_TEXT,
    "Gemma 3": NO_TOOLS | dict.fromkeys(("result", "results", "result, call", "two turns"), "refused"),
    "Granite 4": NO_THINKING,
    "Phi 3.5": NO_TOOLS | {"result": "result dropped", "results": "result dropped"},
    "DeepSeek V3": NOT_CONTINUED | {"result": "yes", "results": "yes"},
    "gpt-oss": {
        "words": "no end", "special text": "no end", "thinking": "no end", "result": "no end", "results": "no end",
        "calls": "calls dropped",
    },
    "GLM 4": dict.fromkeys(CONVERSATIONS, "no end"),
    "SmolLM2": NO_TOOLS,
}  # fmt: skip
"""Conversations of which not all is trained, or nothing, and the word for why; "yes" wherever nothing stands."""

BLIND = {"Gemma 3", "Phi 3.5", "DeepSeek V3", "SmolLM2"}
"""Families whose template shows the model no tools."""

TAGGED = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "unit": "C"}}\n</tool_call>'
LLAMA = '{"name": "get_weather", "parameters": {"city": "Paris", "unit": "C"}}<|eot_id|>'
TRAINED = {
    ("Qwen2.5", "call"): f"{TAGGED}<|im_end|>",
    ("Qwen2.5", "text and call"): f"I look it up.\n{TAGGED}<|im_end|>",
    ("Qwen2.5", "no arguments"): '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call><|im_end|>',
    ("Qwen3", "call"): f"<think>\n\n</think>\n\n{TAGGED}<|im_end|>",
    ("Qwen3", "thinking"): "<think>\nTwo and two are four.\n</think>\n\n4.<|im_end|>",
    ("Qwen3", "thinking, call"): f"<think>\nI need the weather.\n</think>\n\n{TAGGED}<|im_end|>",
    ("Qwen3 2507", "call"): f"{TAGGED}<|im_end|>",
    ("Qwen3.5 thinking", "thinking"): "Two and two are four.\n</think>\n\n4.<|im_end|>",
    ("Llama 3.1", "call"): LLAMA,
    ("Llama 3.2", "call"): LLAMA,
    ("Mistral Nemo", "calls"): '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris", "unit": "C"}, '
    '"id": "000000000"}, {"name": "get_weather", "arguments": {"city": "Rome"}, "id": "000000001"}]</s>',
    ("Hermes 2 Pro", "call"): f"{TAGGED}<|im_end|>",
    ("Hermes 2 Pro", "result"): "It is clear.<|im_end|>",
    ("Gemma 3", "words"): "Hello! How can I help?<end_of_turn>",
    ("Granite 4", "call"): f"{TAGGED}<|end_of_text|>",
    ("Phi 3.5", "words"): "Hello! How can I help?<|end|>",
    ("DeepSeek V3", "result"): "It is clear.<｜end▁of▁sentence｜>",
    ("gpt-oss", "no arguments"): " to=functions.now<|channel|>commentary json<|message|>{}<|call|>",
    ("SmolLM2", "special text"): "They end a turn.<|im_end|>",
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, smol_gguf, tmp_path_factory):
    name = request.param
    path = write(tmp_path_factory.mktemp("family") / "m.gguf", smol_gguf, FAMILIES[name])
    with Embedded(path, context=4096) as embedded:
        yield name, embedded, cells(embedded)


def test_what_is_trained_and_what_is_refused(family):
    name, embedded, found = family
    assert {key: cell.word for key, cell in found.items()} == dict.fromkeys(CONVERSATIONS, "yes") | OTHERWISE[name]
    assert sees_tools(embedded) == (name not in BLIND)
    for (which, key), text in TRAINED.items():
        if which == name:
            assert found[key].row.completion == text


def test_every_token_of_a_row_is_the_servers(family):
    _, embedded, found = family
    ends = embedded.end_tokens()
    for key, cell in found.items():
        if cell.row is None:
            continue
        conversation, row = CONVERSATIONS[key], cell.row
        answer = conversation.messages[-1]
        assert row.prompt_ids == tuple(embedded.tokenize(row.prompt))
        assert (*row.prompt_ids, *row.completion_ids) == tuple(embedded.tokenize(row.prompt + row.completion))
        assert embedded.detokenize(row.completion_ids) == row.completion
        assert row.completion_ids[-1] in ends
        assert ends.isdisjoint(row.completion_ids[:-1])
        for call in answer.tool_calls:
            assert call.name in row.completion
            for value in call.arguments.values():
                text = json.dumps(value, ensure_ascii=False).strip('"')
                assert text in row.completion or str(value) in row.completion
        if cell.word == "yes":
            assert answer.text in row.completion
            assert answer.thinking in row.completion


def test_what_was_trained_is_what_the_next_prompt_holds(family):
    """Where a template keeps its past as it was written, the second turn's prompt begins with the first row."""
    name, _, found = family
    first, second = found["call"].row, found["result"].row
    if first is None or second is None:
        pytest.skip("refused")
    if name in ("Qwen3", "gpt-oss"):  # drops the (empty) thought of an earlier turn
        assert not second.prompt.startswith(first.prompt + first.completion)
    else:
        assert second.prompt.startswith(first.prompt + first.completion)
    assert SKY in second.prompt or json.dumps(SKY)[1:-1] in second.prompt


def test_a_file_without_a_template_is_refused_before_anything_is_made_of_it(smol_gguf, tmp_path):
    bare = write(tmp_path / "bare.gguf", smol_gguf, FAMILIES["Gemma 3"], template="")
    assert chat_template(bare) == ""
    with pytest.raises(TemplateMismatch, match=r"bare\.gguf has no chat template.*gguf-new-metadata"):
        next(EmbeddedRuntime(context=512).stock("x", bare, "0"))
    with Embedded(bare, context=512) as embedded:  # the silent fallback that is refused: another model's template
        assert "<|im_start|>" in embedded.render((Message(role="user", text="hi"),))
    require_chat_template(smol_gguf)
    assert chat_template(smol_gguf).startswith("{% for message in messages %}")
