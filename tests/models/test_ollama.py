"""Ollama: the real server, and what a server may say that a good one does not."""

from __future__ import annotations

import json
import re

import pytest

from llm_tuner.models.ollama import Ollama, OllamaServer, base_url
from llm_tuner.models.ollama_templates import QWEN_TEMPLATE
from llm_tuner.types import (
    Backend,
    ChatOptions,
    CorruptModel,
    Json,
    Message,
    ModelError,
    RuntimeTooOld,
    RuntimeUnavailable,
    TemplateMismatch,
    ToolSpec,
    UnknownModel,
    canonical_json,
)

HELLO = (Message(role="user", text="Say hello."),)
SHORT = ChatOptions(max_tokens=4)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("192.0.2.1", "http://192.0.2.1:11434"),
        ("box:8080", "http://box:8080"),
        (":8080", "http://127.0.0.1:8080"),
        ("http://box", "http://box:80"),
        ("https://box/", "https://box:443"),
        ("https://box:1/ollama", "https://box:1/ollama"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("http://0.0.0.0:1", "http://127.0.0.1:1"),
        ("::1", "http://[::1]:11434"),
        ("[::]:1", "http://[::1]:1"),
    ],
)
def test_every_form_of_ollama_host(host, url, monkeypatch):
    assert base_url(host) == url
    monkeypatch.setenv("OLLAMA_HOST", host)
    assert OllamaServer().url == url


def test_no_address():
    with pytest.raises(RuntimeUnavailable, match="host:port"):
        OllamaServer("box:port")


def test_not_running():
    for ask in (OllamaServer("127.0.0.1:9").version, lambda: Ollama("m", "127.0.0.1:9").chat(HELLO)):
        with pytest.raises(RuntimeUnavailable, match=r"127\.0\.0\.1:9 .*ollama serve"):
            ask()


def test_too_old(answering):
    with pytest.raises(RuntimeTooOld, match=r"0\.9\.6.*0\.12\.6"):
        Ollama("m", answering(version=(200, {"version": "0.9.6"}))).chat(HELLO)


def test_a_development_build_is_trusted(answering):
    assert OllamaServer(answering(version=(200, {"version": "0.0.0"}))).version() == "0.0.0"


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (200, '{"status": "pulling"}\n{"error": "disk full"}\n', ModelError, "disk full"),
        (500, {"error": "disk full"}, ModelError, "disk full"),
        (500, "gateway", ModelError, "gateway"),
        (200, '{"status": "pulling"}\n', ModelError, "stopped in the middle"),
        (200, '{"error": "pull model manifest: file does not exist"}', UnknownModel, "registry"),
    ],
)
def test_an_error_is_an_error_wherever_it_stands(answering, status, body, kind, words):
    with pytest.raises(kind, match=words):
        list(OllamaServer(answering(pull=(status, body))).pull("m"))


def test_pull_reports_bytes(answering):
    body = '{"status": "pulling", "total": 10, "completed": 5}\n{"status": "success"}\n'
    first, last = OllamaServer(answering(pull=(200, body))).pull("m")
    assert (first.done, first.total, first.unit) == (5, 10, "bytes")
    assert last.message == "success"


def test_native_calls(answering):
    call = {"id": "c1", "function": {"index": 0, "name": "get_weather", "arguments": {"city": "東京"}}}
    chat = {"message": {"role": "assistant", "content": "", "tool_calls": [call]}, "done_reason": "stop"}
    chat |= {"prompt_eval_count": 7, "eval_count": 3, "prompt_eval_duration": 2_000_000, "eval_duration": 1_500_000}
    reply = Ollama("m", answering(version=(200, {"version": "0.24.0"}), chat=(200, chat))).chat(HELLO)
    (seen,) = reply.message.tool_calls
    assert (seen.name, seen.arguments, seen.id, seen.error) == ("get_weather", {"city": "東京"}, "c1", "")
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (7, 3)
    assert (reply.timing.prompt_ms, reply.timing.generate_ms) == (2.0, 1.5)


# ------------------------------------------------------------------------------------------------------ a real server


@pytest.fixture(scope="module")
def server(ollama_url):
    return OllamaServer(ollama_url)


@pytest.fixture(scope="module")
def tuned(server, qwen_gguf):
    """Qwen under our template."""
    events = list(server.create("qwen-tools:v1", qwen_gguf, template=QWEN_TEMPLATE, parameters={"temperature": 0}))
    assert events[-1].message == "success"
    sent = [event for event in events if event.message.startswith("uploading")]
    if sent:  # nothing is sent where another test has uploaded this file
        assert sent[-1].done == sent[-1].total == qwen_gguf.stat().st_size
    return Ollama("qwen-tools:v1", server.url, context=1024)


@pytest.mark.ollama
@pytest.mark.weights
def test_a_call_written_as_text_is_read(tuned, weather):
    assert isinstance(tuned, Backend)
    request = [Message(role="user", text="What is the weather in Paris?")]
    reply = tuned.chat(request, [weather], ChatOptions(max_tokens=64))
    assert reply.message.tool_calls == ()
    assert [(call.name, call.arguments["city"]) for call in reply.message.text_calls] == [("get_weather", "Paris")]
    assert reply.finish == "stop"
    assert reply.usage.prompt_tokens > reply.usage.completion_tokens > 0
    assert reply.timing.total_ms >= reply.timing.generate_ms > 0


@pytest.mark.ollama
@pytest.mark.weights
def test_where_nothing_differs_the_render_is_the_models_own(tuned, qwen, weather, conversations):
    system = Message(role="system", text="Be brief.")
    for before in ((), (system,)):
        for point, prompt in (("asked", True), ("answered", True), ("called", False), ("finished", False)):
            messages = before + conversations[point]
            for tools in ((), (weather,)):
                assert tuned.render(messages, tools, prompt) == qwen.render(messages, tools, prompt)


@pytest.mark.ollama
@pytest.mark.weights
def test_where_the_render_differs_it_differs_as_documented(tuned, qwen, conversations):
    tool = ToolSpec(
        name="search",
        description="a <b> & c",
        parameters={
            "$defs": {"Kind": {"enum": ["x"], "type": "string"}},
            "title": "Search",
            "properties": {
                "z": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None, "title": "Z"},
                "a": {"type": "array", "items": {"type": "string"}, "minItems": 1},
                "o": {"type": "object", "properties": {"p": {"type": "integer", "minimum": 0}}, "required": ["p"]},
                "n": {"minimum": 1, "type": "integer", "description": "how many"},
            },
            "required": ["z"],
            "type": "object",
            "additionalProperties": False,
        },
    )
    call = {"z": "<&>", "o": {"p": 1, "q": [1, 2]}, "a": ["東京", "b"]}
    asked, called, *rest = conversations["finished"]
    calls = tuple(c.model_copy(update={"arguments": call}) for c in called.tool_calls)
    messages = (asked, called.model_copy(update={"tool_calls": calls}), *rest)
    ours, own = (model.render(messages, [tool], False) for model in (tuned, qwen))
    assert ours != own
    assert "a <b> & c" in ours
    assert '{"a": ["東京", "b"], "o": {"p": 1, "q": [1, 2]}, "z": "<&>"}' in ours
    assert _normal(ours) == _normal(own)


@pytest.mark.ollama
@pytest.mark.weights
def test_the_end_of_a_render_is_the_templates(tuned, conversations):
    with pytest.raises(ModelError, match="generation prompt"):
        tuned.render(conversations["asked"], generation_prompt=False)
    with pytest.raises(ModelError, match="generation prompt"):
        tuned.render(conversations["finished"])


@pytest.mark.ollama
@pytest.mark.weights
def test_a_prompt_that_does_not_fit_is_refused(tuned, weather):
    with pytest.raises(ModelError, match="with 1 tools does not fit the context"):
        tuned.chat([Message(role="user", text="word " * 2000)], [weather])


@pytest.mark.ollama
@pytest.mark.weights
def test_a_failed_create_leaves_the_previous_model_serving(server, smol_gguf, tmp_path):
    list(server.create("keep", smol_gguf))
    before = server.show("keep")["modelfile"]
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(smol_gguf.read_bytes()[:50_000_000])
    with pytest.raises(CorruptModel, match="cut short"):
        list(server.create("keep", cut))
    with pytest.raises(ModelError, match="template error"):
        list(server.create("keep", smol_gguf, template="{{ nonsense"))
    with pytest.raises(ModelError, match="invalid model name"):
        list(server.create("k e e p", smol_gguf))
    assert server.show("keep")["modelfile"] == before
    assert Ollama("keep", server.url, context=512).chat(HELLO, (), SHORT).usage.completion_tokens > 0
    assert any(entry["name"] == "keep:latest" for entry in server.running())


@pytest.mark.ollama
@pytest.mark.weights
def test_a_template_without_a_place_for_tools(server, smol_gguf, weather):
    list(server.create("deaf", smol_gguf))
    with pytest.raises(TemplateMismatch, match="no place for tools"):
        Ollama("deaf", server.url).chat(HELLO, [weather])


@pytest.mark.ollama
@pytest.mark.weights
def test_copy_and_delete(server, smol_gguf):
    list(server.create("first", smol_gguf))
    again = list(server.create("first", smol_gguf, system="Be brief."))
    assert not any(event.message.startswith("uploading") for event in again)
    assert server.show("first")["system"] == "Be brief."
    server.copy("first", "second")
    server.delete("first")
    names = {entry["name"] for entry in server.models()}
    assert "second:latest" in names
    assert "first:latest" not in names
    assert server.show("second")["system"] == "Be brief."


@pytest.mark.ollama
@pytest.mark.weights
def test_an_unknown_model(server, smol_gguf):
    list(server.create("there", smol_gguf))
    asks = (
        lambda: Ollama("nope", server.url).chat(HELLO),
        lambda: server.show("nope"),
        lambda: server.delete("nope"),
        lambda: server.copy("nope", "other"),
    )
    for ask in asks:
        with pytest.raises(UnknownModel, match=r'No model "nope".*there:latest.*ollama pull nope'):
            ask()


# -------------------------------------------------------------------------------------------- the named differences


def _normal(prompt: str) -> str:
    """The prompt with every line of JSON in one spelling, tool definitions cut down to what Ollama keeps."""
    return re.sub(r"^\{.*\}$", lambda line: _spelled(line.group()), prompt, flags=re.MULTILINE)


def _spelled(line: str) -> str:
    try:
        value = json.loads(line)
    except ValueError:
        return line  # the instructions' placeholder
    if "function" in value:
        parameters = value["function"]["parameters"]
        kept = {key: parameters[key] for key in ("type", "required", "$defs") if key in parameters}
        kept["properties"] = _properties(parameters["properties"])
        value["function"]["parameters"] = kept
    return canonical_json(value)


def _properties(properties: dict[str, Json]) -> dict[str, Json]:
    return {name: _property(schema) for name, schema in properties.items()}


def _property(schema: dict[str, Json]) -> dict[str, Json]:
    kept = {k: schema[k] for k in ("type", "description", "enum", "items", "anyOf", "required") if k in schema}
    if "properties" in schema:
        kept["properties"] = _properties(schema["properties"])
    return kept
