"""What is trained of a conversation, with a template that one can see: a character a token."""

from itertools import pairwise

import pytest

from llm_tuner.data.masks import Turn, left_out, require_place_for_tools, row, turns
from llm_tuner.data.rows import build_rows
from llm_tuner.types import (
    Attempt,
    DataError,
    ExactCalls,
    Message,
    ModelError,
    RuntimeUnavailable,
    Task,
    ToolCall,
    ToolResult,
    ToolSpec,
    Verdict,
)

TOOL = ToolSpec(name="add", parameters={"type": "object", "properties": {"a": {"type": "integer"}}})
OK = Verdict(ok=True, selection_ok=True, parameters_ok=True, score=1.0, reason="ok")


class Template:
    """Each message as <role>text, calls as {name:id}, results as their text; "$" ends a turn and generation."""

    def message(self, m):
        calls = "".join(f"{{{c.name}:{c.id}}}" for c in m.tool_calls)
        result = f"({m.result.call_id}){m.result.content}" if m.result else ""
        return f"<{m.role}>{m.text}{calls}{result}$\n"

    def render(self, messages, tools=(), generation_prompt=True):
        said = "".join(map(self.message, messages))
        return f"[{','.join(t.name for t in tools)}]{said}" + ("<assistant>" if generation_prompt else "")

    def tokenize(self, text):
        return [ord(c) for c in text]

    def detokenize(self, tokens):
        return "".join(map(chr, tokens))

    def end_tokens(self):
        return frozenset({ord("$")})


def user(text):
    return Message(role="user", text=text)


def said(text="", *calls, thinking=""):
    return Message(role="assistant", text=text, tool_calls=calls, thinking=thinking)


def add(number, **arguments):
    return ToolCall(name="add", arguments=arguments, id=f"id{number}")


def result(number, content):
    return ToolResult(call_id=f"id{number}", content=content)


TASK = Task(messages=(user("sum"),), tools=(TOOL,), expect=ExactCalls(calls=(add(0),)), split="train")
STEPS = (said("", add(1), add(2)), said("", add(3)), said("done"))
RESULTS = (result(2, "two"), result(1, "one"), result(3, "three"))


def attempt(*messages, results=()):
    return Attempt(task_id=TASK.id, backend="b", messages=messages, results=results, verdict=OK)


def drain(steps, seen=None):
    while True:
        try:
            event = next(steps)
            if seen is not None:
                seen.append(event)
        except StopIteration as stop:
            return stop.value


def only(*conversation, template=None, cuts=None):
    *before, answer = conversation
    return row(TASK, Turn(0, tuple(before), answer), template or Template(), cuts)


# -------------------------------------------------------------------------------------------------------------- turns


def test_every_answer_of_an_attempt_is_a_row_behind_what_the_server_renders_at_that_moment():
    rows = drain(build_rows([TASK], [attempt(*STEPS, results=RESULTS)], Template()))
    assert [r.turn for r in rows] == [0, 1, 2]
    assert [r.completion for r in rows] == ["{add:000000000}{add:000000001}$", "{add:000000002}$", "done$"]
    assert rows[0].prompt == "[add]<user>sum$\n<assistant>"
    assert rows[1].prompt == rows[0].prompt + rows[0].completion + (
        "\n<tool>(000000000)one$\n<tool>(000000001)two$\n<assistant>"
    )
    assert rows[2].prompt == rows[1].prompt + rows[1].completion + "\n<tool>(000000002)three$\n<assistant>"
    for shorter, longer in pairwise(rows):
        known = (*shorter.prompt_ids, *shorter.completion_ids)
        assert longer.prompt_ids[: len(known)] == known


def test_results_among_the_messages_are_taken_as_they_stand():
    told = Message(role="tool", result=result(1, "one"))
    found = list(turns(TASK, attempt(said("", add(1)), told, said("done"), user("more"), said("no"))))
    assert [t.place for t in found] == [0, 1, 2]
    assert found[1].before == (*TASK.messages, said("", add(1)), told)
    assert found[2].before[-2:] == (said("done"), user("more"))


def test_results_without_ids_are_taken_in_order():
    calls = said("", ToolCall(name="add"), ToolCall(name="add"))
    found = list(turns(TASK, attempt(calls, said("done"), results=(ToolResult(content="a"), ToolResult(content="b")))))
    assert [m.result.content for m in found[1].before[-2:]] == ["a", "b"]
    made = row(TASK, found[1], Template())
    assert "(000000000)a$\n<tool>(000000001)b$" in made.prompt


def test_a_last_turn_needs_no_result_but_one_in_the_middle_does():
    assert len(list(turns(TASK, attempt(said("", add(1)))))) == 1
    with pytest.raises(DataError, match=rf"Task {TASK.id}, turn 1: .* call of add has no result"):
        list(turns(TASK, attempt(said("", add(1)), said("done"))))


def test_what_the_template_leaves_out_is_counted():
    class Deaf(Template):
        def message(self, m):
            return super().message(m.model_copy(update={"text": ""}) if m.tool_calls else m)

    seen = []
    answer = said("I add.", add(1), thinking="hm")
    assert left_out(Turn(0, (user("x"),), answer), only(user("x"), answer)) == ("thinking",)
    drain(build_rows([TASK], [attempt(answer)], Deaf()), seen)
    assert seen[-1].data == {"left_out": {"text": 1, "thinking": 1}}
    assert "leaves out the text of 1 answers" in seen[-1].message


# -------------------------------------------------------------------------------------------------------------- proof


def test_nothing_behind_the_end_token_is_trained():
    class Closing(Template):
        def render(self, messages, tools=(), generation_prompt=True):
            return super().render(messages, tools, generation_prompt) + ("" if generation_prompt else " $\n")

    made = only(user("x"), said("yes"), template=Closing())
    assert made.completion == "yes$"
    assert made.completion_ids[-1] in Template().end_tokens()
    assert Template().end_tokens().isdisjoint(made.completion_ids[:-1])


def test_a_template_that_renders_its_end_otherwise_is_proven_behind_a_plain_request():
    class Breaking(Template):
        """A line break stands behind a tool's message, but not behind the last one."""

        def render(self, messages, tools=(), generation_prompt=True):
            text = "".join(self.message(m) + ("~" if m.role == "tool" else "") for m in messages)
            return text.removesuffix("~") + ("<assistant>" if generation_prompt else "")

    before = (user("x"), said("", add(1)), Message(role="tool", result=result(1, "one")))
    made = only(*before, said("done"), template=Breaking())
    assert made.prompt.endswith("(000000000)one$\n<assistant>")
    assert made.completion == "done$"


def test_an_answer_behind_another_opening_is_refused():
    class Headless(Template):
        """Behind a tool's result a finished answer has no header, though the prompt asks with one."""

        def render(self, messages, tools=(), generation_prompt=True):
            text = super().render(messages, tools, generation_prompt)
            return text if generation_prompt else text.replace("one$\n<assistant>", "one$\n")

    before = (user("x"), said("", add(1)), Message(role="tool", result=result(1, "one")))
    with pytest.raises(DataError, match="does not continue its own prompt"):
        only(*before, said("done"), template=Headless())


def test_a_thought_that_is_opened_and_not_kept_is_refused():
    class Thinking(Template):
        def render(self, messages, tools=(), generation_prompt=True):
            return super().render(messages, tools, generation_prompt) + ("<think>" if generation_prompt else "")

    with pytest.raises(DataError, match=rf"task {TASK.id}, turn 1.*<user>x\$\\n<assistant><think>'"):
        only(user("x"), said("yes"), template=Thinking())


def test_a_token_across_the_boundary_is_refused():
    class Merging(Template):
        def tokenize(self, text):
            return [ord(c) for c in text.replace("> ", "_")]

    assert only(user("x"), said("yes"), template=Merging()).completion == "yes$"
    with pytest.raises(DataError, match=r"are one .*turn 1\).*Take the white space"):
        only(user("x"), said(" yes"), template=Merging())


def test_an_answer_without_an_end_is_refused():
    class Endless(Template):
        def message(self, m):
            return super().message(m).replace("$", "")

    with pytest.raises(DataError, match=r"Nothing ends the answer \(task .*turn 1\).*eos_token_id"):
        only(user("x"), said("yes"), template=Endless())


def test_an_end_inside_the_answer_is_refused_but_not_inside_the_request():
    with pytest.raises(DataError, match=r"before its end .*: '\$', and then ' left"):
        only(user("x"), said("5 $ left"))
    assert only(user("5 $ left"), said("yes")).completion == "yes$"


def test_dropped_calls_and_results_are_refused():
    class OneCall(Template):
        def message(self, m):
            return super().message(m.model_copy(update={"tool_calls": m.tool_calls[:1]}))

    assert only(user("x"), said("", add(1)), template=OneCall()).completion == "{add:000000000}$"
    with pytest.raises(DataError, match=r"drops calls .*: of 2 of add"):
        only(user("x"), said("", add(1), add(2)), template=OneCall())

    class NoResults(Template):
        def message(self, m):
            return "" if m.role == "tool" else super().message(m)

    told = Message(role="tool", result=result(1, "forty-two"))
    with pytest.raises(DataError, match=r"drops a tool's result .*'forty-two'"):
        only(user("x"), said("", add(1)), told, said("done"), template=NoResults())


def test_what_the_server_refuses_names_the_task_but_a_dead_server_is_no_fault_of_it():
    class Refusing(Template):
        error = ModelError("single calls only.")

        def render(self, messages, tools=(), generation_prompt=True):
            raise self.error

    with pytest.raises(DataError, match=rf"task {TASK.id}, turn 1\): single calls only"):
        only(user("x"), said("yes"), template=Refusing())
    Refusing.error = RuntimeUnavailable("gone")
    with pytest.raises(RuntimeUnavailable):
        only(user("x"), said("yes"), template=Refusing())


def test_tokens_that_do_not_spell_the_answer_are_refused_but_for_spaces():
    class Spaced(Template):
        def detokenize(self, tokens):
            return " " + super().detokenize(tokens) if len(tokens) > 1 else super().detokenize(tokens)

    assert only(user("x"), said("yes"), template=Spaced()).completion == "yes$"

    class Lossy(Template):
        def tokenize(self, text):
            return [ord(c) if ord(c) < 128 else ord("?") for c in text]

    with pytest.raises(DataError, match=r"do not spell it .*'\?\$' for '雨\$'"):
        only(user("x"), said("雨"), template=Lossy())


def test_a_template_that_shows_no_tools_is_refused_unless_they_stand_in_the_system_message():
    class Blind(Template):
        def render(self, messages, tools=(), generation_prompt=True):
            return super().render(messages, (), generation_prompt)

    with pytest.raises(DataError, match=r'no place for tools.*"compact"'):
        drain(build_rows([TASK], [attempt(said("", add(1)))], Blind()))
    require_place_for_tools((), Blind())
    compact = TASK.model_copy(update={"tags": {"rendering": "compact"}})
    (made,) = drain(build_rows([compact], [attempt(said("", add(1)))], Blind()))
    assert "add(a?: int)" in made.prompt
