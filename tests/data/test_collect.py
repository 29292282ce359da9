"""Attempts are executed and judged; only what the judge and the server accept becomes a training row."""

import pytest
from template import Tags, Template

from llm_tuner.data.collect import REFERENCE, collect, usable
from llm_tuner.data.rows import build_rows, parity, refuse_untrainable
from llm_tuner.store import read_jsonl
from llm_tuner.tools.recorded import RecordedTools
from llm_tuner.types import (
    Attempt,
    DataError,
    ExactCalls,
    Message,
    NoCall,
    Reply,
    RuntimeUnavailable,
    Task,
    ToolCall,
    ToolResult,
    ToolSpec,
)

TOOL = ToolSpec(
    name="add",
    parameters={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
)


def task(text, call=None, **words):
    expect = ExactCalls(calls=(call,)) if call else NoCall(reply="No.")
    return Task(messages=(Message(role="user", text=text),), tools=(TOOL,), expect=expect, split="train", **words)


def call(a):
    return ToolCall(name="add", arguments={"a": a})


TASKS = [task("add 1", call(1)), task("add 2", call(2)), task("hello")]
TOOLS = RecordedTools([TOOL], [(call(1), ToolResult(content="ok")), (call(2), ToolResult(content="no", is_error=True))])


def drain(steps):
    try:
        while True:
            next(steps)
    except StopIteration as stop:
        return stop.value


class Answers:
    """A backend that answers with given messages."""

    name = "answers"

    def __init__(self, *messages):
        self.messages = list(messages)
        self.asked = 0

    def chat(self, messages, tools=(), options=None):
        self.asked += 1
        message = self.messages.pop(0)
        if isinstance(message, Exception):
            raise message
        return Reply(message=message)


def test_a_reference_answer_counts_only_when_the_server_accepts_it(tmp_path):
    restored = []
    attempts = drain(collect(TASKS, TOOLS, tmp_path / "a.jsonl", restore=lambda: restored.append(1)))
    assert [usable(a) for a in attempts] == [True, False, True]
    assert attempts[1].verdict.ok
    assert attempts[1].results[0].is_error
    assert {a.backend for a in attempts} == {REFERENCE}
    assert len(restored) == 3
    assert read_jsonl(tmp_path / "a.jsonl", Attempt) == attempts


def test_a_models_text_calls_are_executed_but_are_not_native(tmp_path):
    said = Message(role="assistant", text="{...}", text_calls=(call(1),))
    backend = Answers(said, RuntimeUnavailable("gone"), Message(role="assistant", text="hi"))
    attempts = drain(collect(TASKS, TOOLS, tmp_path / "a.jsonl", backend=backend))
    assert attempts[0].results[0].content == "ok"
    assert [a.verdict.reason for a in attempts] == ["call_as_text", "backend_error", "ok"]
    assert [usable(a) for a in attempts] == [False, False, True]


def test_collecting_goes_on_where_it_was_killed(tmp_path):
    steps = collect(
        TASKS, TOOLS, tmp_path / "a.jsonl", backend=Answers(Message(role="assistant", tool_calls=(call(1),)))
    )
    next(steps)
    steps.close()
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"task_id": "hal')
    rest = Answers(Message(role="assistant", tool_calls=(call(2),)), Message(role="assistant", text="hi"))
    assert len(drain(collect(TASKS, TOOLS, tmp_path / "a.jsonl", backend=rest))) == 3
    assert rest.asked == 2
    assert len(read_jsonl(tmp_path / "a.jsonl", Attempt)) == 3


def rows_of(tasks, tmp_path, renderer):
    attempts = drain(collect(tasks, TOOLS, tmp_path / "r.jsonl"))
    return drain(build_rows(tasks, attempts, renderer))


def test_rows_hold_the_servers_bytes_and_end_with_the_end_of_turn(tmp_path):
    first, second = rows_of(TASKS, tmp_path, Template())
    assert first.prompt == "[add]<user>add 1$\n<assistant>"
    assert first.completion == "add$"
    assert second.completion == "No.$"
    assert "".join(map(chr, (*first.prompt_ids, *first.completion_ids))) == first.prompt + first.completion
    assert [first.task_id, second.task_id] == [TASKS[0].id, TASKS[2].id]


def test_tags_that_the_model_cannot_tell_apart_are_spelled(tmp_path):
    attempts = drain(collect(TASKS, TOOLS, tmp_path / "r.jsonl"))
    plain = drain(build_rows(TASKS, attempts, Tags()))[0]
    spelled = drain(build_rows(TASKS, attempts, Tags(), {"<t>", "</t>"}))[0]
    assert plain.completion == spelled.completion == "<t>add</t>\n<t>add</t>$"
    assert {0, 1} <= set(plain.completion_ids)
    assert "".join(map(chr, spelled.completion_ids)) == spelled.completion
    assert (plain.prompt, plain.prompt_ids) == (spelled.prompt, spelled.prompt_ids)


def test_parity_says_where_another_server_differs(tmp_path):
    rows = rows_of(TASKS, tmp_path, Template())
    tasks, attempts = {t.id: t for t in TASKS}, read_jsonl(tmp_path / "r.jsonl", Attempt)
    assert parity(rows, tasks, attempts, Template()) == []
    other = Template()
    other.end = "$$\n"
    problems = parity(rows, tasks, attempts, other)
    assert len(problems) == 2
    assert "'$\\n<assistant>'" in problems[0]
    other = Template()
    other.tokenize = lambda text: [ord(c) + 1 for c in text]
    other.detokenize = lambda tokens: "".join(chr(t - 1) for t in tokens)
    other.end_tokens = lambda: frozenset({ord("$") + 1})
    assert "other token ids" in parity(rows, tasks, attempts, other)[0]


def test_parity_compares_completions_too(tmp_path):
    rows = rows_of(TASKS, tmp_path, Template())
    tasks, attempts = {t.id: t for t in TASKS}, read_jsonl(tmp_path / "r.jsonl", Attempt)
    changed = [rows[0].model_copy(update={"completion": "sub$"}), rows[1]]
    assert parity(changed, tasks, attempts, Template()) == [
        f"task {TASKS[0].id}: from character 0 on the server renders 'add$' where 'sub$' was trained"
    ]


def test_a_template_that_rewrites_its_prompt_is_refused(tmp_path):
    broken = Template()
    plain = broken.render
    broken.render = lambda m, t=(), g=True: plain(m, t, g) if g else "X" + plain(m, t, g)
    with pytest.raises(DataError, match="does not continue its own prompt"):
        rows_of(TASKS, tmp_path, broken)


def test_held_out_and_benchmark_tasks_are_never_trained_on():
    with pytest.raises(DataError, match="held-out side"):
        refuse_untrainable([TASKS[0].model_copy(update={"split": "held-out"})])
    with pytest.raises(DataError, match="benchmark bfcl"):
        refuse_untrainable([task("x", call(1), source="bfcl")])
    refuse_untrainable(TASKS)
