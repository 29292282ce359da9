import pytest

from llm_tuner.tools.recorded import RecordedTools
from llm_tuner.types import DataError, Toolbox, ToolCall, ToolResult, ToolSpec

SPEC = ToolSpec(name="add", parameters={"type": "object"})


def ask(**arguments):
    return ToolCall(name="add", arguments=arguments, id="x")


@pytest.fixture
def tools():
    pairs = [(ask(a=1, b=2), ToolResult(content="3\u2028")), (ask(a=1), ToolResult(content="b?", is_error=True))]
    return RecordedTools([SPEC], pairs)


def test_it_is_a_toolbox(tools):
    assert isinstance(tools, Toolbox)


def test_a_recorded_call_is_answered_under_its_own_id(tools):
    asked = ToolCall(name="add", arguments={"b": 2, "a": 1}, id="other")
    assert tools.call(asked) == ToolResult(call_id="other", content="3\u2028")


def test_an_unrecorded_call_is_an_error(tools):
    result = tools.call(ask(a=9))
    assert result.is_error
    assert result.content == 'No answer was recorded for `add` with {"a":9}.'


def test_several_answers_come_in_their_order_and_the_last_stays():
    tools = RecordedTools([], [(ask(), ToolResult(content=c)) for c in "ab"])
    assert [tools.call(ask()).content for _ in range(3)] == ["a", "b", "b"]


def test_what_is_saved_is_what_is_loaded(tools, tmp_path):
    tools.save(tmp_path / "r.jsonl")
    again = RecordedTools.load(tmp_path / "r.jsonl")
    assert again.specs() == (SPEC,)
    assert again.answers == tools.answers


def test_recording_another_toolbox(tools):
    again = RecordedTools.record(tools, [ask(a=1, b=2), ask(a=9)])
    assert [again.call(c).is_error for c in (ask(a=1, b=2), ask(a=9))] == [False, True]


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"spec": {"name": 1}}'])
def test_a_broken_line_is_named(tmp_path, line):
    path = tmp_path / "r.jsonl"
    path.write_text('{"spec": {"name": "a"}}\n' + line + "\n")
    with pytest.raises(DataError, match=r"r\.jsonl, line 2: not a recorded answer"):
        RecordedTools.load(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="could not be read"):
        RecordedTools.load(tmp_path / "none")
