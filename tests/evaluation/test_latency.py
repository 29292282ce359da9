"""Latency: cold prefixes are new, warm ones are shared, each time is what it says, a target needs its machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter, LlamaFileType

from llm_tuner.apps import cli
from llm_tuner.apps.settings import latency_targets
from llm_tuner.evaluation import latency, target
from llm_tuner.evaluation.figures import spreads
from llm_tuner.evaluation.latency import (
    TARGETS_MS,
    LatencyReport,
    Load,
    Spread,
    Workload,
    default_workload,
    goal,
    measure_latency,
    time_target,
    workload_of,
)
from llm_tuner.evaluation.render import latency_to_html, write_latency
from llm_tuner.evaluation.target import Located, Target
from llm_tuner.evaluation.wording import WORDS, Language
from llm_tuner.models.description import describe
from llm_tuner.models.ollama import Ollama, OllamaServer
from llm_tuner.models.ollama_templates import QWEN_TEMPLATE
from llm_tuner.store.suite import Suite, save
from llm_tuner.types import (
    GREEDY,
    ChatOptions,
    EmptyData,
    Event,
    Message,
    ModelError,
    NoCall,
    Reply,
    SetupError,
    Task,
    Timing,
    ToolSpec,
    Usage,
)
from ollama_server import VERSION
from pages import NASTY, Page

WORK = Workload(tools=(ToolSpec(name="t"),), requests=tuple(f"request {i}" for i in range(50)))


class Slow:
    """Answers after 20 ms, of which it says it generated for 15; remembers what it was asked and how many at a time."""

    name = "slow"

    def __init__(self, failing: int = 0, generate_ms: float | None = 15, tokens: int = 5) -> None:
        self.asked: list[tuple[str, str]] = []
        self.options = GREEDY
        self.failing = failing
        self.generate_ms = generate_ms
        self.tokens = tokens
        self.now = self.most = 0
        self.lock = threading.Lock()

    def chat(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), options: ChatOptions = GREEDY) -> Reply:
        with self.lock:
            self.asked.append((messages[0].text.split()[0], messages[-1].text))
            self.options = options
            self.now += 1
            self.most = max(self.most, self.now)
            fails = len(self.asked) <= self.failing
        time.sleep(0.02)
        with self.lock:
            self.now -= 1
        if fails:
            raise ModelError("no room")
        usage = Usage(prompt_tokens=100, cached_tokens=90, completion_tokens=self.tokens)
        return Reply(
            message=Message(role="assistant"), usage=usage, timing=Timing(prompt_ms=4, generate_ms=self.generate_ms)
        )


class Streams(Slow):
    def stream(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), options: ChatOptions = GREEDY
    ) -> Reply:
        reply = self.chat(messages, tools, options)
        return reply.model_copy(update={"timing": reply.timing.model_copy(update={"first_token_ms": 7.0})})


def result(steps: Generator[Event, None, Any]) -> tuple[Any, list[Event]]:
    events = []
    while True:
        try:
            events.append(next(steps))
        except StopIteration as end:
            return end.value, events


def test_cold_prefixes_are_all_new_and_warm_ones_shared() -> None:
    backend = Slow()
    loads, events = result(measure_latency(backend, WORK, requests=6))
    assert [(load.concurrency, load.prefix, load.n, load.errors) for load in loads] == [
        (1, "cold", 6, 0),
        (1, "warm", 6, 0),
    ]
    cold, warm = backend.asked[:6], backend.asked[6:]
    assert len({word for word, _ in cold}) == 6
    assert len(warm) == 7  # one before, that is not measured
    assert len({word for word, _ in warm}) == 1
    assert not {word for word, _ in cold} & {word for word, _ in warm}
    assert len({request for _, request in backend.asked}) == 13  # a repeated request would be cached whole
    assert [event.done for event in events] == list(range(1, 13))
    assert {event.total for event in events} == {12}
    assert backend.options.max_tokens == latency.MAX_TOKENS


def test_every_time_is_what_it_says() -> None:
    (cold, _), _ = result(measure_latency(Slow(), WORK, requests=4))
    assert cold.total.p50 is not None
    assert 20 <= cold.total.p50 <= cold.total.p95 <= cold.total.p99 < 2000
    assert cold.first_token.p50 == pytest.approx(cold.total.p50 - 15)
    assert (cold.prefill.p50, cold.per_token.p50) == (4, 3)
    assert (cold.prompt_tokens, cold.cached_tokens, cold.completion_tokens) == (100, 90, 5)
    assert 0 < cold.tokens_per_s < 5 / 0.02
    (cold, _), _ = result(measure_latency(Streams(), WORK, requests=2))
    assert cold.first_token == Spread(p50=7, p95=7, p99=7)
    (cold, _), _ = result(measure_latency(Slow(generate_ms=None), WORK, requests=2))
    assert (cold.first_token.p50, cold.per_token.p50) == (None, None)
    (cold, _), _ = result(measure_latency(Slow(generate_ms=None, tokens=1), WORK, requests=2))
    assert (cold.first_token.p50, cold.per_token.p50) == (cold.total.p50, None)  # its first token is all of it


def test_so_many_at_a_time() -> None:
    backend = Slow()
    loads, _ = result(measure_latency(backend, WORK, concurrency=(1, 4), requests=8))
    assert [load.concurrency for load in loads] == [1, 1, 4, 4]
    assert backend.most == 4
    assert loads[2].tokens_per_s > loads[0].tokens_per_s


def test_failed_requests_are_counted_and_never_timed() -> None:
    loads, _ = result(measure_latency(Slow(failing=2), WORK, requests=3))
    assert [(load.n, load.errors) for load in loads] == [(1, 2), (3, 0)]
    with pytest.raises(ModelError, match="no room"):
        result(measure_latency(Slow(failing=99), WORK, requests=3))


@pytest.mark.parametrize("words", [{"requests": 0}, {"concurrency": (0,)}, {"concurrency": ()}])
def test_numbers_below_one_are_refused(words: dict[str, Any]) -> None:
    with pytest.raises(SetupError, match="at least one"):
        result(measure_latency(Slow(), WORK, **words))


def load(ms: float, concurrency: int = 1, prefix: str = "warm") -> Load:
    spread = Spread(p50=ms, p95=ms, p99=ms)
    words = dict.fromkeys(("first_token", "prefill", "total", "per_token"), spread)
    numbers = dict.fromkeys(("errors", "tokens_per_s", "prompt_tokens", "cached_tokens", "completion_tokens"), 0)
    return Load.model_validate({"concurrency": concurrency, "prefix": prefix, "n": 1, **words, **numbers})


@pytest.mark.parametrize(
    ("ms", "parameters", "device", "target_ms", "verdict", "why"),
    [
        (400, 494_032_768, "gpu", 500, "met", ""),
        (600, 1_543_714_304, "gpu", 500, "not met", ""),
        (600, 3_085_938_688, "gpu", 2000, "met", ""),
        (2001, 7_615_616_512, "gpu", 2000, "not met", ""),
        (1, 32_000_000_000, "gpu", None, "not comparable", "no target for 32.0 billion"),
        (1, 1_543_714_304, "cpu", 500, "not comparable", "on a CPU"),
        (1, 1_543_714_304, "unknown", 500, "not comparable", "--gpu"),
        (1, 0, "gpu", None, "not comparable", "--size"),
    ],
)
def test_the_goal(ms: float, parameters: int, device: Any, target_ms: float | None, verdict: str, why: str) -> None:
    found = goal([load(9, 4), load(9, 1, "cold"), load(ms)], parameters, device)
    assert (found.target_ms, found.measured_ms, found.verdict) == (target_ms, ms, verdict)
    assert why in found.why


def test_the_goal_is_about_single_warm_requests() -> None:
    found = goal([load(1, 2), load(1, 1, "cold")], 1_000_000_000, "gpu")
    assert found.verdict == "not comparable"
    assert "add 1 to the concurrency" in found.why


def test_workloads() -> None:
    work = default_workload()
    assert len(set(work.requests)) == len(work.requests) == 200
    tools = (ToolSpec(name="a"), ToolSpec(name="b"))
    asked = [
        Task(messages=(Message(role="user", text=str(i)),), tools=tools[: 1 + i % 3], expect=NoCall()) for i in range(5)
    ]
    found = workload_of(Suite(name="s", tasks=tuple(asked)))
    assert (found.tools, found.requests) == (tools, ("1", "2", "4"))
    with pytest.raises(EmptyData):
        workload_of(Suite(name="s", tasks=()))


def gguf(path: Path, file_type: int | None) -> Path:
    writer = GGUFWriter(path, "llama")
    if file_type is not None:
        writer.add_file_type(file_type)
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), np.float32))
    writer.add_tensor("norm.weight", np.zeros((8,), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("file_type", "quantisation"), [(LlamaFileType.MOSTLY_Q4_K_M, "Q4_K_M"), (None, "F32"), (9999, "F32")]
)
def test_a_file_describes_itself(tmp_path: Path, file_type: int | None, quantisation: str) -> None:
    found = describe(gguf(tmp_path / "a.gguf", file_type))
    assert (found.parameters, found.quantisation, found.architecture) == (40, quantisation, "llama")


def opened_as(monkeypatch: pytest.MonkeyPatch, backend: Any, located: Located, slots: list[int]) -> None:
    def locate(asked: Target) -> Generator[Event, None, Located]:
        yield Event(step="fetch")
        return located

    class Opened:
        def __init__(self, where: Located, slots_: int) -> None:
            slots.append(slots_)

        def __enter__(self) -> Any:
            return backend

        def __exit__(self, *_: object) -> None:
            return

    monkeypatch.setattr(latency, "locate", locate)
    monkeypatch.setattr(latency, "opened", lambda where, slots: Opened(where, slots))


def test_a_file_is_timed_on_as_many_slots_as_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slots: list[int] = []
    located = Located(target=Target(model="m"), gguf=gguf(tmp_path / "a.gguf", None), sha256="ab")
    opened_as(monkeypatch, Slow(), located, slots)
    monkeypatch.setattr(latency, "machine", lambda: {"cpu": "c", "gpu": "none"})
    report, _ = result(time_target(Target(model="m"), WORK, concurrency=(1, 3), requests=2))
    assert slots == [3]
    assert (report.parameters, report.quantisation, report.device, report.tools) == (40, "F32", "cpu", 1)
    assert report.runtime.startswith("llama.cpp")
    assert (report.goal.target_ms, report.goal.verdict) == (500, "not comparable")
    assert report.machine == {"cpu": "c", "gpu": "none"}
    assert latency.LatencyReport.model_validate_json(report.model_dump_json()) == report


def test_of_a_foreign_server_the_user_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    opened_as(monkeypatch, Slow(), Located(target=Target(model="m", base_url="http://x")), [])
    steps = time_target(Target(model="m"), WORK, requests=2, parameters=1_500_000_000, gpu=True)
    report, _ = result(steps)
    assert (report.device, report.parameters, report.goal.verdict) == ("gpu", 1_500_000_000, "met")


@pytest.mark.parametrize(("in_vram", "device"), [(100, "gpu"), (40, "cpu")])
def test_ollama_says_what_it_serves(monkeypatch: pytest.MonkeyPatch, in_vram: int, device: str) -> None:
    answers = {
        "/api/version": {"version": "0.31.0"},
        "/api/show": {"details": {"quantization_level": "Q4_K_M"}, "model_info": {"general.parameter_count": 7_000}},
        "/api/ps": {"models": [{"name": "m:latest", "size": 100, "size_vram": in_vram}]},
        "/api/chat": {
            "message": {"content": "Hi"},
            "prompt_eval_duration": 1_000_000,
            "eval_duration": 2_000_000,
            "eval_count": 2,
            "prompt_eval_count": 9,
        },
    }
    backend = Ollama("m", "http://127.0.0.1:1")
    monkeypatch.setattr(backend.server, "ask", lambda method, path, body=None, **_: answers[path])
    opened_as(monkeypatch, backend, Located(target=Target(ollama="m")), [])
    report, _ = result(time_target(Target(ollama="m"), WORK, requests=1))
    assert (report.runtime, report.device, report.quantisation) == ("Ollama 0.31.0", device, "Q4_K_M")
    assert (report.parameters, report.loads[0].prefill.p50, report.loads[0].per_token.p50) == (7_000, 1, 1)
    backend.close()


def timed(*loads: Load, **words: Any) -> LatencyReport:
    facts = {"backend": "m", "runtime": "Ollama 0.24.0", "device": "cpu", "parameters": 1_540_000_000, "tools": 8}
    facts |= {"quantisation": "Q4_K_M", "model_sha256": "ab" * 32, "machine": {"cpu": "EPYC", "gpu": "none"}}
    facts |= {"loads": loads, "goal": goal(loads, 1_540_000_000, "cpu")} | words
    return LatencyReport.model_validate(facts)


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_pages_say_what_was_timed_and_on_what(tmp_path: Path, language: Language) -> None:
    slow = load(2345, 4, "cold").model_copy(update={"errors": 3, "first_token": Spread()})
    report = timed(load(123, 1, "cold"), load(77), slow, load(88, 4), backend=NASTY)
    paths = write_latency(tmp_path / "new", report, language)
    assert [path.name for path in paths] == ["latency.json", "latency.md", "latency.html"]
    assert LatencyReport.model_validate_json(paths[0].read_text(encoding="utf-8")) == report
    markdown, page = paths[1].read_text(encoding="utf-8"), Page(paths[2].read_text(encoding="utf-8"))
    words = WORDS[language]
    for text in (markdown, page.text):
        for said in (
            "Ollama 0.24.0",
            "cpu EPYC",
            "gpu none",
            "1.54B, Q4_K_M",
            words["not comparable"],
            "target is for",
        ):
            assert said in text
        assert text.count(words["cold"]) >= 2
        assert "123 / 123 / 123" in text
        assert "– / – / –" in text  # what was not reported is no zero
        assert f"(3 {words['failed']})" in text
    assert "<script" not in markdown
    facts, note, table = (part.splitlines() for part in markdown.split("\n\n")[1:])
    assert [line[:2] for line in facts] == ["- "] * 4
    assert (note, len(table)) == ([words["latency_note"]], 2 + 4)
    assert not {"script", "img"} & page.tags
    assert page.links == []


def test_the_picture_is_to_scale() -> None:
    loads = [load(100, 1, "cold"), load(400, 2), load(1, 4).model_copy(update={"total": Spread()})]
    picture = spreads(loads, "total")
    assert picture is not None
    assert [row.at for row in picture.rows] == [[285.0] * 3, [660.0] * 3]
    assert picture.ticks[0] == (160, "0")
    assert picture.ticks[-1] == (660, "400")
    assert spreads(loads[2:], "total") is None


def test_a_page_without_any_time_of_a_first_token(tmp_path: Path) -> None:
    silent = load(5).model_copy(update={"first_token": Spread()})
    page = latency_to_html(timed(silent, parameters=0, quantisation=""))
    assert page.count("<svg") == 1
    assert "size not known" in page


def test_the_user_s_own_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert latency_targets(None) == TARGETS_MS
    monkeypatch.setenv("LLM_TUNER_LATENCY_TARGETS", "0.5=300, 70=9000")
    assert latency_targets(None) == {5e8: 300, 7e10: 9000}
    own = latency_targets("1.5=100")
    assert own == {1.5e9: 100}
    assert goal([load(150)], 1_543_714_304, "gpu", own).verdict == "not met"
    assert "no target" in goal([load(150)], 7_000_000_000, "gpu", own).why
    for wrong in ("1.5", "1.5=", "a=b", "1=2=3", "0=5", "1=-5", "1=nan", "1=inf", ","):
        with pytest.raises(SetupError, match=r"such as 1\.5=500,7=2000"):
            latency_targets(wrong)
    monkeypatch.setenv("LLM_TUNER_LATENCY_TARGETS", "fast")
    with pytest.raises(SetupError, match="from LLM_TUNER_LATENCY_TARGETS"):
        latency_targets(None)


@pytest.mark.ollama
@pytest.mark.weights
def test_a_real_ollama_server_is_timed(
    ollama_url: str,
    smol_gguf: Path,
    qwen_gguf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where other models are loaded, one of them of the same file: that one's name stands in /api/ps."""
    server = OllamaServer(ollama_url)
    for name, file in (("smol-timed", smol_gguf), ("smol-first", smol_gguf), ("qwen-other", qwen_gguf)):
        list(server.create(name, file, template=QWEN_TEMPLATE))
    for name in ("qwen-other", "smol-first"):
        server.ask("POST", "/api/generate", {"model": name, "options": {"num_ctx": 1024}}, model=name)
    monkeypatch.setenv("OLLAMA_HOST", ollama_url)
    tool = ToolSpec(name="get_weather", description="The weather of a city, now and in the next days. " * 5)
    asked = (Message(role="user", text=f"What is the weather in {city}?") for city in ("Oslo", "Lima", "Rome", "Bern"))
    tasks = tuple(Task(messages=(message,), tools=(tool,), expect=NoCall()) for message in asked)
    save(Suite(name="small", tasks=tasks), tmp_path / "small.jsonl")
    words = ["--ollama", "smol-timed", "--suite", str(tmp_path / "small.jsonl"), "--requests", "2", "--max-tokens", "4"]
    words += ["--concurrency", "1,2", "--context", "1024", "--out", str(tmp_path), "--json"]
    assert cli.run(["eval", "latency", *words]) == 0
    report = LatencyReport.model_validate_json(capsys.readouterr().out)
    assert report == LatencyReport.model_validate_json((tmp_path / "latency.json").read_text(encoding="utf-8"))
    assert (report.runtime, report.quantisation) == (f"Ollama {VERSION}", "Q4_1")
    assert (report.device, report.parameters) == ("cpu", 134_515_008)
    assert [(one.concurrency, one.prefix, one.n, one.errors) for one in report.loads] == [
        (1, "cold", 2, 0),
        (1, "warm", 2, 0),
        (2, "cold", 2, 0),
        (2, "warm", 2, 0),
    ]
    cold, warm = report.loads[:2]
    for one in (cold, warm):
        assert one.first_token.p50 is not None
        assert one.total.p50 is not None
        assert one.prefill.p50 is not None
        assert 0 < one.prefill.p50 <= one.first_token.p50 < one.total.p50
        assert 0 < one.completion_tokens <= 4
    assert cold.prefill.p50 is not None
    assert warm.prefill.p50 is not None
    assert warm.prefill.p50 < cold.prefill.p50
    assert report.goal.verdict == "not comparable"


def test_the_door_is_the_one_of_every_measurement() -> None:
    assert latency.locate is target.locate
    assert latency.opened is target.opened
