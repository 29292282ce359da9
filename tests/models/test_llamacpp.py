"""The embedded model: what it answers, what it renders, and what happens when something breaks."""

from __future__ import annotations

import importlib.util
import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
import pytest

from llm_tuner.models import openai_wire
from llm_tuner.models.llamacpp import Embedded
from llm_tuner.types import (
    Backend,
    ChatOptions,
    CorruptModel,
    Forking,
    Message,
    MissingExtra,
    ModelError,
    Renderer,
    RuntimeUnavailable,
    SetupError,
)

HELLO = (Message(role="user", text="Say hello."),)
SHORT = ChatOptions(max_tokens=8)


def gone(pid: int, seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_missing_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'llm-tuner\[serve\]'"):
        Embedded(tmp_path / "a.gguf")


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04", b"GGUF\x03\x00\x00\x00"])
def test_no_model_at_all(tmp_path, content):
    path = tmp_path / "a.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CorruptModel, match=r"a\.gguf"):
        Embedded(path)


@pytest.mark.weights
def test_truncated_copy(smol_gguf, tmp_path):
    path = tmp_path / "cut.gguf"
    path.write_bytes(smol_gguf.read_bytes()[:50_000_000])
    with pytest.raises(CorruptModel, match="98362432"):
        Embedded(path)


@pytest.mark.weights
def test_what_llama_cpp_cannot_load_comes_with_its_last_words(smol_gguf, tmp_path):
    path = tmp_path / "odd.gguf"
    key = b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0"
    path.write_bytes(smol_gguf.read_bytes().replace(key + b"llama", key + b"lxama", 1))
    with pytest.raises(CorruptModel, match="unknown model architecture: 'lxama'"):
        Embedded(path)


@pytest.mark.weights
def test_a_call_written_as_text_is_read(qwen, weather):
    assert isinstance(qwen, Backend)
    assert isinstance(qwen, Renderer)
    reply = qwen.chat(
        [Message(role="user", text="What is the weather in Paris?")], [weather], ChatOptions(max_tokens=64)
    )
    assert reply.message.tool_calls == ()
    assert [(call.name, call.arguments["city"], call.error) for call in reply.message.text_calls] == [
        ("get_weather", "Paris", "")
    ]
    assert reply.finish == "stop"
    assert reply.usage.prompt_tokens > reply.usage.completion_tokens > 0
    assert reply.timing.total_ms >= reply.timing.generate_ms > 0
    assert reply.timing.prompt_ms > 0


@pytest.mark.weights
def test_calls_that_the_runtime_surfaces(qwen, weather):
    # The untuned model never opens <tool_call> by itself: lean on that token, then llama.cpp's grammar takes over.
    (opening,) = qwen.tokenize("<tool_call>")
    messages = [Message(role="user", text="Weather in Paris, London and Rome?")]
    for limit in (60, *range(4, 14)):
        body = openai_wire.request(messages, [weather], ChatOptions(max_tokens=limit)) | {"logit_bias": [[opening, 24]]}
        answer = httpx2.post(f"{qwen.address}/v1/chat/completions", json=body, timeout=300, trust_env=False).json()
        calls = openai_wire.reply(answer, [weather], 0.0).message.tool_calls
        assert all(call.error for call in calls[-1:]), "the limit cut the last call off"
        if limit == 60:
            assert (calls[0].name, calls[0].arguments["city"], calls[0].error) == ("get_weather", "Paris", "")
            assert len({call.id for call in calls}) == len(calls) > 1


@pytest.mark.weights
def test_the_prefix_is_cached(qwen, weather):
    qwen.chat(HELLO, [weather], SHORT)
    again = qwen.chat(HELLO, [weather], SHORT)
    assert again.usage.cached_tokens > 0.9 * again.usage.prompt_tokens


@pytest.mark.weights
@pytest.mark.parametrize("point", ["asked", "called", "answered", "finished"])
@pytest.mark.parametrize("offered", [0, 1])
def test_the_rendered_text_is_what_the_model_reads(qwen, weather, conversations, point, offered):
    messages, tools = conversations[point], [weather] * offered
    fed = qwen.chat(messages, tools, ChatOptions(max_tokens=1)).usage.prompt_tokens
    assert len(qwen.tokenize(qwen.render(messages, tools))) == fed


@pytest.mark.weights
def test_every_point_of_a_conversation_is_a_prefix_of_the_whole(qwen, weather, conversations):
    whole = qwen.render(conversations["finished"], [weather], generation_prompt=False)
    assert whole.endswith("<|im_start|>assistant\n東京は晴れ、パリは雨です。<|im_end|>\n")
    for point in ("asked", "answered"):
        assert whole.startswith(qwen.render(conversations[point], [weather]))
    for point in ("asked", "called", "answered"):
        assert whole.startswith(qwen.render(conversations[point], [weather], generation_prompt=False))
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "パリ"}}\n</tool_call><|im_end|>' in whole
    assert "<tool_response>\n雨 & 風\n</tool_response><|im_end|>" in whole


@pytest.mark.weights
def test_special_tokens_are_read_as_such(qwen):
    assert len(qwen.tokenize("<|im_end|>")) == 1


@pytest.mark.weights
def test_a_leading_token_is_part_of_the_rendered_text(smol_gguf, tmp_path):
    path = tmp_path / "bos.gguf"
    key = b"tokenizer.ggml.add_bos_token\x07\0\0\0"
    content = smol_gguf.read_bytes()
    assert content.count(key + b"\0") == 1
    path.write_bytes(content.replace(key + b"\0", key + b"\1"))
    with Embedded(path, context=512) as embedded:
        text = embedded.render(HELLO)
        assert text.startswith("<|im_start|>system\n")
        assert len(embedded.tokenize(text)) == embedded.chat(HELLO, (), SHORT).usage.prompt_tokens


@pytest.mark.weights
def test_a_prompt_that_does_not_fit_is_refused(qwen, weather):
    with pytest.raises(ModelError, match=r"has \d{4} tokens with 1 tools, but qwen has a context of 1024"):
        qwen.chat([Message(role="user", text="word " * 2000)], [weather])


@pytest.mark.weights
def test_slots_each_have_the_whole_context(smol_gguf):
    with Embedded(smol_gguf, context=512, slots=2) as embedded, ThreadPoolExecutor(2) as pool:
        long = (Message(role="user", text="word " * 400),)
        replies = list(pool.map(lambda _: embedded.chat(long, (), SHORT), range(4)))
    assert {reply.usage.prompt_tokens for reply in replies} == {replies[0].usage.prompt_tokens}
    assert replies[0].usage.prompt_tokens > 400


@pytest.mark.weights
def test_adapters_are_applied(smol_gguf, tmp_path):
    path = tmp_path / "adapter.gguf"
    _write_adapter(path)
    with Embedded(smol_gguf, context=512) as plain, Embedded(smol_gguf, context=512, adapters=[path]) as adapted:
        loaded = httpx2.get(f"{adapted.address}/lora-adapters", trust_env=False).json()
        assert [adapter["scale"] for adapter in loaded] == [1.0]
        assert plain.chat(HELLO, (), SHORT).message.text != adapted.chat(HELLO, (), SHORT).message.text


@pytest.mark.weights
def test_memory_is_given_back(smol_gguf):
    with Embedded(smol_gguf, context=512) as embedded:
        assert psutil.pid_exists(embedded.pid)
    assert gone(embedded.pid, 0.1)
    with pytest.raises(RuntimeUnavailable, match="closed"):
        embedded.chat(HELLO)
    embedded.close()


@pytest.mark.weights
def test_a_killed_child_is_a_clear_error(smol_gguf):
    with Embedded(smol_gguf, name="smol", context=512) as embedded:
        embedded.chat(HELLO, (), SHORT)
        os.kill(embedded.pid, signal.SIGKILL)
        with pytest.raises(RuntimeUnavailable, match="served smol ended with code -9"):
            embedded.chat(HELLO, (), SHORT)


@pytest.mark.weights
def test_a_child_killed_in_the_middle_of_an_answer(smol_gguf):
    with Embedded(smol_gguf, context=2048) as embedded, ThreadPoolExecutor(1) as pool:
        os.kill(embedded.pid, signal.SIGSTOP)  # however fast the machine is, the answer is not finished
        answer = pool.submit(embedded.chat, HELLO, (), ChatOptions(max_tokens=20))
        time.sleep(0.5)
        os.kill(embedded.pid, signal.SIGKILL)
        with pytest.raises(RuntimeUnavailable, match="ended with code -9"):
            answer.result(timeout=30)


@pytest.mark.weights
def test_the_child_does_not_outlive_a_killed_parent(smol_gguf):
    code = (
        "import sys, time; from pathlib import Path; from llm_tuner.models.llamacpp import Embedded\n"
        "e = Embedded(Path(sys.argv[1]), context=512); print(e.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(smol_gguf)], stdout=subprocess.PIPE, text=True)
    with parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    assert gone(pid)


@pytest.mark.weights
def test_a_start_that_takes_too_long(smol_gguf):
    with pytest.raises(RuntimeUnavailable, match=r"within 0\.001 s"):
        Embedded(smol_gguf, startup_timeout=0.001)


@pytest.mark.weights
def test_an_unused_one_is_collected(smol_gguf):
    embedded = Embedded(smol_gguf, context=512)
    pid = embedded.pid
    del embedded
    assert gone(pid)


def _write_adapter(path: Path) -> None:
    import gguf
    import numpy

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 64.0)
    random = numpy.random.default_rng(0)
    for layer in range(30):
        name = f"blk.{layer}.attn_q.weight"
        writer.add_tensor(f"{name}.lora_a", random.normal(size=(2, 576)).astype(numpy.float32))
        writer.add_tensor(f"{name}.lora_b", random.normal(size=(576, 2)).astype(numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.weights
def test_log_probabilities_are_those_of_the_models_own_distribution(smol_gguf):
    text = "The capital of France is Paris, 東"
    with Embedded(smol_gguf, context=256) as embedded:
        tokens = embedded.tokenize(text)
        said = embedded.log_probabilities(text)
        assert len(said) == len(tokens)
        body = {"n_predict": 1, "temperature": 0, "n_probs": 1 << 20}
        for place in (5, len(tokens) - 2):  # " Paris"; the first byte of a character
            before = embedded.tokenize("<|im_start|>") + tokens[:place]
            answer = httpx2.post(f"{embedded.address}/completion", json={"prompt": before} | body, timeout=120).json()
            whole = {one["id"]: one["logprob"] for one in answer["completion_probabilities"][0]["top_logprobs"]}
            assert sum(map(math.exp, whole.values())) == pytest.approx(1, abs=1e-3)
            assert said[place] == pytest.approx(whole[tokens[place]], abs=1e-3)
        assert embedded.log_probabilities("The capital of France is") == pytest.approx(said[:5], abs=1e-3)
        assert embedded.log_probabilities("") == []


@pytest.mark.weights
def test_log_probabilities_of_what_does_not_fit_are_refused(smol_gguf):
    with Embedded(smol_gguf, context=256) as embedded, pytest.raises(ModelError, match="context of 256"):
        embedded.predict(embedded.tokenize("word " * 300), [1])


@pytest.mark.weights
def test_forks_share_the_prompt_and_say_what_they_wrote(smol_gguf, weather):
    """Three answers to one prompt: it is read once; each says its very tokens, the end of the turn among them."""
    messages = (Message(role="user", text="Write one line about the rain. " * 20),)
    with Embedded(smol_gguf, context=1024, slots=3) as model:
        assert isinstance(model, Forking)
        forks = model.fork(messages, [weather], 3)
        prompt = len(model.tokenize(model.render(messages, [weather])))
        with ThreadPoolExecutor(3) as pool:
            options = [ChatOptions(temperature=1.0, max_tokens=40, seed=n, on_policy=True) for n in range(3)]
            replies = list(pool.map(lambda fork, option: fork.chat(messages, [weather], option), forks, options))
        assert [reply.usage.cached_tokens for reply in replies] == [prompt - 1] * 3
        assert len({reply.written.ids for reply in replies}) == 3
        end = model.tokenize("<|im_end|>")[0]
        for reply in replies:
            ids = reply.written.ids
            assert len(ids) == reply.usage.completion_tokens
            assert (ids[-1] == end) == (reply.finish != "length")
        assert model.chat(messages, [weather], SHORT).written is None
        with pytest.raises(SetupError, match="Start it with slots=4"):
            model.fork(messages, [weather], 4)


@pytest.mark.weights
def test_ctrl_c_in_a_terminal_does_not_reach_the_child(smol_gguf):
    """It goes to every process of the terminal; who asked decides what to give up."""
    with Embedded(smol_gguf, context=256) as model:
        os.kill(model.pid, signal.SIGINT)
        assert model.chat(HELLO, (), SHORT).usage.completion_tokens > 0


@pytest.mark.weights
def test_guessing_changes_no_answer(smol_gguf):
    path = "/srv/data/reports/2026/quarterly-summary.md"
    asked = [Message(role="user", text=f"Repeat this path three times, each on a line of its own: {path}")]
    said = []
    for speculation in (False, True):
        with Embedded(smol_gguf, context=512, speculation=speculation) as model:
            said.append(model.chat(asked, options=ChatOptions(max_tokens=80)).message.text)
    assert said[0] == said[1]
    assert path in said[0]


@pytest.mark.weights
def test_a_model_that_died_is_revived_also_after_a_revival_that_failed(smol_gguf, monkeypatch):
    with Embedded(smol_gguf, context=512) as model:
        alive = model.revive()
        assert alive == model.address
        child = psutil.Process(model.pid)
        child.kill()
        child.wait(10)
        monkeypatch.setitem(model._settings, "gguf", "/nowhere.gguf")
        with pytest.raises(CorruptModel):
            model.revive()
        monkeypatch.setitem(model._settings, "gguf", str(smol_gguf))
        assert model.revive() != alive
        assert model.chat([Message(role="user", text="Hi")], options=SHORT).message.text
    with pytest.raises(RuntimeUnavailable, match="is closed"):
        model.revive()
