"""Any OpenAI-compatible server: a real one (the embedded model's own), and one that answers as badly as it can."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_tuner.models import openai_wire
from llm_tuner.models.openai_compatible import OpenAICompatible
from llm_tuner.types import (
    GREEDY,
    Backend,
    ChatOptions,
    Message,
    ModelError,
    RuntimeUnavailable,
    ToolCall,
    UnknownModel,
    Written,
)

HELLO = (Message(role="user", text="Say hello."),)
KEY = "sk-very-secret"


def answer(**message: object) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", **message}, "finish_reason": "stop"}]}


def call(name: object, arguments: object) -> dict[str, object]:
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.weights
def test_a_real_server_says_the_same_as_the_embedded_model(qwen, weather, conversations):
    options = ChatOptions(max_tokens=48)
    model = OpenAICompatible("qwen", f"{qwen.address}/v1", api_key="")
    assert isinstance(model, Backend)
    for point in ("asked", "answered"):
        there, here = (m.chat(conversations[point], [weather], options) for m in (model, qwen))
        assert there.message == here.message
        assert there.usage.prompt_tokens == here.usage.prompt_tokens


# id, the arguments as the server sent them, the arguments, what the error contains
ARGUMENTS = [
    ("text", '{"city": "東京"}', {"city": "東京"}, ""),
    ("an object", {"city": "東京"}, {"city": "東京"}, ""),
    ("nothing", "", {}, ""),
    ("null", None, {}, ""),
    ("cut off", '{"city": "東', {}, "no JSON"),
    ("a list", '["東京"]', {}, "not an object"),
]


@pytest.mark.parametrize(("given", "arguments", "error"), [row[1:] for row in ARGUMENTS], ids=[r[0] for r in ARGUMENTS])
def test_surfaced_calls(answering, given, arguments, error):
    url = answering(completions=(200, answer(content=None, tool_calls=[call("get_weather", given)])))
    model = OpenAICompatible("m", url)
    (seen,) = model.chat(HELLO).message.tool_calls
    assert (seen.name, seen.arguments, seen.id) == ("get_weather", arguments, "c1")
    assert error in seen.error
    assert bool(error) == bool(seen.error)


def test_a_call_without_arguments_that_the_limit_cut_off_is_broken():
    body = answer(content="", tool_calls=[call("list_all", "")])
    assert openai_wire.reply(body, (), 0.0).message.tool_calls[0].error == ""
    body["choices"][0]["finish_reason"] = "length"
    assert "cut the call off" in openai_wire.reply(body, (), 0.0).message.tool_calls[0].error


def test_a_surfaced_call_without_a_name_is_broken():
    assert openai_wire.incoming_call({"function": {"arguments": "{}"}}).error == "the call has no name"


def test_the_schema_and_the_history_go_out_unchanged(weather, conversations):
    body = openai_wire.request(conversations["answered"], [weather], GREEDY)
    assert body["tools"][0]["function"]["parameters"] == weather.parameters
    assert body["parallel_tool_calls"] is True
    assert body["messages"][1]["tool_calls"][1] == {
        "type": "function",
        "id": "2",
        "function": {"name": "get_weather", "arguments": '{"city": "パリ"}'},
    }
    assert body["messages"][3] == {"role": "tool", "tool_call_id": "2", "content": "雨 & 風"}
    assert "tools" not in openai_wire.request(HELLO, (), GREEDY)


def test_calls_found_in_text_stay_text():
    message = Message(role="assistant", text='{"name": "a"}', text_calls=(ToolCall(name="a"),))
    assert openai_wire.outgoing(message) == {"role": "assistant", "content": '{"name": "a"}'}


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, ModelError, "OPENAI_API_KEY"),
        (400, {"error": {"message": f"bad request of {KEY}"}}, ModelError, r"bad request of \*\*\*"),
        (404, {"error": {"message": "The model m does not exist"}}, UnknownModel, "does not exist"),
        (500, "<html>oops</html>", ModelError, "HTTP 500"),
        (200, f"<html>{KEY}</html>", ModelError, "ends in the version"),
        (200, {"choices": []}, ModelError, "does not speak"),
    ],
)
def test_what_a_server_may_answer(answering, status, body, kind, words):
    model = OpenAICompatible("m", answering(completions=(status, body)), api_key=KEY)
    with pytest.raises(kind, match=words) as caught:
        model.chat(HELLO)
    assert KEY not in str(caught.value)


def test_nobody_there():
    model = OpenAICompatible("m", "http://127.0.0.1:9/v1", api_key=KEY)
    with pytest.raises(RuntimeUnavailable, match=r"127\.0\.0\.1:9"):
        model.chat(HELLO)


def test_the_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1/")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    model = OpenAICompatible("m")
    assert repr(model) == "OpenAICompatible('m', 'http://127.0.0.1:9/v1')"
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert OpenAICompatible("m").url == "https://api.openai.com/v1"


def stream(*chunks: object) -> str:
    lines = [c if isinstance(c, str) else f"data: {json.dumps(c)}" for c in chunks]
    return "\n\n".join([": a comment", *lines, "data: [DONE]"]) + "\n\n"


def delta(finish: str | None = None, **words: object) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": words, "finish_reason": finish}]}


def piece(arguments: str, **words: object) -> dict[str, object]:
    return {"index": 0, **words, "function": {"arguments": arguments, **({"name": "clock"} if words else {})}}


def test_a_streamed_answer_is_the_same_as_a_whole_one(answering):
    usage = {"prompt_tokens": 9, "completion_tokens": 4}
    url = answering(
        completions=(
            200,
            stream(
                delta(role="assistant", content=None),
                delta(content="Let me "),
                delta(content="see."),
                delta(tool_calls=[piece("", id="c1")]),
                delta(tool_calls=[piece('{"zone": ')]),
                delta(tool_calls=[piece('"JST"}')]),
                delta("tool_calls"),
                {"choices": [], "usage": usage},
            ),
        )
    )
    reply = OpenAICompatible("m", url).stream(HELLO)
    whole = answer(content="Let me see.", tool_calls=[call("clock", '{"zone": "JST"}')]) | {"usage": usage}
    whole["choices"][0]["finish_reason"] = "tool_calls"
    same = openai_wire.reply(whole, (), 0.0)
    assert (reply.message, reply.usage, reply.finish) == (same.message, same.usage, same.finish)
    assert reply.timing.first_token_ms is not None
    assert reply.timing.generate_ms == pytest.approx(reply.timing.total_ms - reply.timing.first_token_ms)


def test_the_first_piece_is_not_the_role(answering):
    url = answering(completions=(200, stream(delta(role="assistant", content=""), delta("stop"))))
    reply = OpenAICompatible("m", url).stream(HELLO)
    assert reply.timing.first_token_ms is None
    assert reply.message.text == ""


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (200, "data: {oops\n\n", ModelError, "streams no JSON"),
        (200, 'data: {"error": {"message": "out of memory"}}\n\n', ModelError, "out of memory"),
        (200, "{}", ModelError, "does not stream"),
        (404, "no such model", UnknownModel, "no such model"),
        (401, f"bad key {KEY}", ModelError, "refuses the key"),
        (500, f"bad key {KEY}", ModelError, r"\*\*\*"),
    ],
)
def test_a_stream_that_fails(answering, status, body, kind, words):
    with pytest.raises(kind, match=words) as raised:
        OpenAICompatible("m", answering(completions=(status, body)), api_key=KEY).stream(HELLO)
    assert KEY not in str(raised.value)


def test_nobody_to_stream_from():
    with pytest.raises(RuntimeUnavailable, match="No server answers"):
        OpenAICompatible("m", "http://127.0.0.1:9/v1").stream(HELLO)


@pytest.mark.weights
def test_a_real_server_streams_what_it_says_at_once(qwen, weather, conversations):
    options = ChatOptions(max_tokens=48)
    model = OpenAICompatible("qwen", f"{qwen.address}/v1", api_key="")
    there, here = (
        model.stream(conversations["asked"], [weather], options),
        qwen.chat(conversations["asked"], [weather], options),
    )
    assert there.message == here.message
    assert there.usage.completion_tokens == here.usage.completion_tokens
    assert there.timing.first_token_ms is not None
    assert 0 < there.timing.first_token_ms <= there.timing.total_ms


def test_an_adapter_is_loaded_for_as_long_as_it_is_asked(answering, tmp_path):
    told = "Success: LoRA adapter added successfully."
    url = answering(
        load_lora_adapter=(200, told), unload_lora_adapter=(200, told), completions=(200, answer(content="Hi"))
    )
    base = OpenAICompatible("base", url)
    with base.with_adapter("policy-3", tmp_path) as model:
        assert (model.name, model.url) == ("policy-3", base.url)
        assert model.chat((Message(role="user", text="Hi"),)).message.text == "Hi"
    with pytest.raises(ModelError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        OpenAICompatible("base", answering(load_lora_adapter=(404, ""))).with_adapter("p", tmp_path).__enter__()
    refusing = answering(load_lora_adapter=(400, {"message": "no such folder"}))
    with pytest.raises(ModelError, match="no such folder"):
        OpenAICompatible("base", refusing).with_adapter("p", tmp_path).__enter__()


@pytest.mark.parametrize(
    "said",
    [
        {"choices": [{"message": {"content": "Hi"}, "token_ids": [5, 6, 2]}]},  # vLLM
        {"choices": [{"message": {"content": "Hi"}}], "__verbose": {"content": "Hi", "tokens": [5, 6, 2]}},  # llama.cpp
    ],
)
def test_on_policy_asks_for_the_whole_distribution_and_reads_the_written_tokens(answering, said):
    url = answering(completions=(200, said))
    options = ChatOptions(temperature=1.0, on_policy=True)
    assert OpenAICompatible("m", url).chat((Message(role="user", text="Hi"),), (), options).written == Written(
        text="Hi", ids=(5, 6, 2)
    )
    body = openai_wire.request((), (), options)
    assert (body["top_k"], body["top_p"], body["min_p"], body["temperature"]) == (0, 1.0, 0.0, 1.0)
    assert "top_k" not in openai_wire.request((), (), ChatOptions())
