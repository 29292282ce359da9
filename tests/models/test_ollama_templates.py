"""What Ollama renders of each family, under the template that was chosen by its bytes."""

from __future__ import annotations

import pytest

import ollama_current
import ollama_server
from llm_tuner.models.llamacpp import Embedded
from llm_tuner.models.ollama import OllamaServer
from llm_tuner.models.ollama_templates import kept
from llm_tuner.types import ChatOptions, Message, ToolSpec
from template_families import CONVERSATIONS, FAMILIES, ORDER, WEATHER, write
from template_tables import agrees, cells, on_ollama

pytest.importorskip("trl")

OTHERWISE = {
    "Qwen2.5": {"nested"},
    "Qwen3": {"nested"},
    "Qwen3 2507": {"nested"},
    "Granite 4": {"nested"},
    "Mistral Nemo": {"nested"},
    "Gemma 3": set(),
    "SmolLM2": {"result", "results"},
}
"""Families for which we have a Go template, and the conversations that Ollama changes, or refuses for their tools,
before any template sees them."""

SELDOM = ("Qwen3 2507", "Granite 4", "Gemma 3")
"""Left to the slow checks: their templates differ from the others' in words only."""


def test_what_ollama_keeps_of_a_tool():
    assert list(kept(WEATHER).parameters) == ["type", "required", "properties"]
    assert kept(WEATHER).parameters == WEATHER.parameters
    nested = kept(ORDER).parameters
    assert list(nested) == ["type", "$defs", "required", "properties"]
    assert nested["properties"] == {
        "lines": {"type": "array", "items": {"$ref": "#/$defs/Line"}},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    }
    assert list(nested["$defs"]["Line"]["properties"]) == ["n", "sku"]
    assert kept(ToolSpec(name="x", parameters={})).parameters == {"type": "", "properties": None}
    deep = {"type": "object", "properties": {"o": {"properties": {"b": {"type": ["string"]}}, "type": "object"}}}
    (inner,) = kept(ToolSpec(name="x", parameters=deep)).parameters["properties"].values()
    assert inner == {"type": "object", "properties": {"b": {"type": "string"}}}


@pytest.mark.ollama
@pytest.mark.weights
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.slow] if name in SELDOM else []) for name in OTHERWISE]
)
def test_our_template_renders_llama_cpps_bytes(family, ollama_url, smol_gguf, tmp_path):
    path = write(tmp_path / "m.gguf", smol_gguf, FAMILIES[family])
    with Embedded(path, context=4096) as embedded:
        trained = cells(embedded)
    with on_ollama(ollama_url, "fitting", path) as (model, template):
        assert template == f"our {family}"
        seen = cells(model)
    rows = {key: cell for key, cell in trained.items() if cell.row is not None}
    assert rows
    different = {key: agrees(seen[key], cell) for key, cell in rows.items()}
    assert {key for key, word in different.items() if word != "same"} == OTHERWISE[family]
    # Rows that training would take from this server are proven as well.
    assert family == "SmolLM2" or all(seen[key].row is not None for key in rows)
    assert not any(entry["name"].startswith("fitting:probe") for entry in OllamaServer(ollama_url).models())


CALL = '\n{"name": "get_weather", "arguments": {"city": "雨"}}\n'
SAYS = {
    "Qwen2.5": ("Ċ", "<tool_call>", CALL, "</tool_call>", "<|im_end|>"),
    "Qwen3": ("Ċ", "<tool_call>", CALL, "</tool_call>", "<|im_end|>"),
    "Granite 4": ("<|end_of_role|>", "<tool_call>", CALL, "</tool_call>", "<|end_of_text|>"),
    "Mistral Nemo": ("[/INST]", "[TOOL_CALLS]", f"[{CALL.strip()}]", "</s>"),
}
"""Models that write one call whatever they are asked, as their template would."""


@pytest.mark.ollama
@pytest.mark.weights
@pytest.mark.parametrize("family", SAYS)
def test_a_call_as_the_template_writes_it_is_surfaced(family, ollama_url, smol_gguf, tmp_path):
    path = write(tmp_path / "m.gguf", smol_gguf, FAMILIES[family], says=SAYS[family])
    asked = (Message(role="user", text="What is the weather?"),)
    with on_ollama(ollama_url, "speaking", path) as (model, template):
        assert template == f"our {family}"
        (call,) = model.chat(asked, (WEATHER,), ChatOptions(max_tokens=8)).message.tool_calls
    assert (call.name, call.arguments) == ("get_weather", {"city": "雨"})


@pytest.mark.ollama
@pytest.mark.weights
def test_a_base_that_no_template_of_ours_fits_is_told(ollama_url, smol_gguf, tmp_path):
    if OllamaServer(ollama_url).renders_jinja():
        pytest.skip("this server renders the file's own template")
    path = write(tmp_path / "m.gguf", smol_gguf, FAMILIES["Hermes 2 Pro"])
    with on_ollama(ollama_url, "unfitting", path) as (model, template):
        assert template == "the server's own"
        assert {cell.word for key, cell in cells(model).items() if CONVERSATIONS[key].tools} == {"refused"}


@pytest.mark.ollama
@pytest.mark.weights
@pytest.mark.parametrize("family", ["Gemma 3", "Qwen2.5"])
def test_the_leading_token_is_counted_as_the_server_feeds_it(family, ollama_url, smol_gguf, tmp_path):
    path = write(tmp_path / "m.gguf", smol_gguf, FAMILIES[family])
    hello = (Message(role="user", text="Hello."),)
    with on_ollama(ollama_url, "leading", path) as (model, _):
        text = model.render(hello)
        assert text.startswith("<bos>") == (family == "Gemma 3")
        assert len(model.tokenize(text)) == model.chat(hello, (), ChatOptions(max_tokens=1)).usage.prompt_tokens


@pytest.mark.skipif(not ollama_current.binary(), reason="no Ollama of 0.30 or later: just ollama-current")
@pytest.mark.ollama
@pytest.mark.weights
@pytest.mark.parametrize("family", ["Llama 3.2", "Hermes 2 Pro", "Qwen3", "Granite 4"])
def test_a_native_server_renders_what_it_is_trained_on(family, smol_gguf, tmp_path):
    path = write(tmp_path / "m.gguf", smol_gguf, FAMILIES[family])
    with Embedded(path, context=4096) as embedded:
        trained = cells(embedded)
    with (
        ollama_server.serve(tmp_path / "ollama", ollama_current.binary()) as url,
        on_ollama(url, "native", path) as (model, template),
    ):
        seen = cells(model)
        assert template == (f"our {family}" if family in OTHERWISE else "the server's own")
    assert {key: cell.word for key, cell in seen.items()} == {key: cell.word for key, cell in trained.items()}
    without_tools = [key for key, conversation in CONVERSATIONS.items() if not conversation.tools]
    assert [agrees(seen[key], trained[key]) for key in without_tools] == ["same"] * len(without_tools)
