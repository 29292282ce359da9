"""What a gateway recorded becomes a data set, and pairs: only what is known to be right is learned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rows import take

from llm_tuner.data.dataset import read_examples
from llm_tuner.data.importers import named, recognise
from llm_tuner.data.importers.gateway import to_attempts
from llm_tuner.data.pairs import Pairing, prefer
from llm_tuner.data.reading import rows
from llm_tuner.data.rejections import Rejection
from llm_tuner.serving.exchanges import Exchange, Feedback, Recorder, Repair, Try, read
from llm_tuner.serving.outcomes import outcomes
from llm_tuner.store import read_jsonl
from llm_tuner.store.scrub import Scrubber
from llm_tuner.types import Attempt, ExactCalls, Message, NoCall, Task
from recording import TOOLS, asked, call, calling, heard, user

TEXT = '<tool_call>\n{"name": "read_file", "arguments": {"path": "b.txt"}}\n</tool_call>'


def conversation(number: int, request: str = "Read {n}, then find メモ") -> list[Exchange]:
    """Three exchanges: a call, another tool's call, words."""
    said = [user(request.format(n=number))]
    one = calling(call("read_file", f"x{number}", path=f"{number}.txt"))
    two = calling(call("find_files", f"y{number}", word="メモ"))
    out = [asked(*said, answer=one)]
    said += [one, heard(f"text {number}", f"x{number}")]
    out.append(asked(*said, answer=two))
    said += [two, heard("none", f"y{number}")]
    return [*out, asked(*said, answer=Message(role="assistant", text="None."))]


def journal(folder: Path, exchanges: list[Exchange]) -> Path:
    one = Recorder(folder, Scrubber("test"))
    for exchange in exchanges:
        one.record(exchange)
        if exchange.feedback is not None:
            one.feedback(exchange.id, exchange.feedback.right, exchange.feedback.calls)
    one.close()
    return folder


def marked(exchange: Exchange, right: bool, *calls: object) -> Exchange:
    said = Feedback.model_validate({"exchange": exchange.id, "right": right, "calls": calls or None})
    return exchange.model_copy(update={"feedback": said})


def attempts_of(exchanges: list[Exchange]) -> tuple[list[Task], list[Attempt]]:
    return to_attempts(outcomes(exchanges))


# ------------------------------------------------------------------------------------------------------------- import


def test_a_journal_becomes_a_data_set(tmp_path: Path) -> None:
    given = [exchange for number in range(8) for exchange in conversation(number)]
    given += [asked(user("Nothing came of it"), answer=calling(call("read_file", path="q")))]
    given += [asked(user("Wrong"), answer=calling(call("read_fil", path="q")))]
    given += [
        marked(asked(user("いいえ、何もしないで"), answer=Message(role="assistant", text="わかりました。")), True)
    ]
    folder = journal(tmp_path / "journal", given)
    found = take([folder], tmp_path / "set", withheld={"tools": 0, "servers": 0})
    assert found["files"][0]["format"] == "gateway"
    assert found["counts"]["rows"] == len(given)
    assert found["counts"]["train"] + found["counts"]["held-out"] == 17
    assert found["counts"]["rejected"] == {"read:outcome_unknown": 9, "read:outcome_wrong": 1}
    examples = [e for side in ("train", "held-out") for e in read_examples(tmp_path / "set", side)]
    assert {(e.task.source, e.task.licence) for e in examples} == {("gateway", "own")}
    assert sorted(e.task.category for e in examples) == ["no_call"] + ["sequence"] * 8 + ["single"] * 8
    assert {e.task.language for e in examples} == {"ja"}
    ids = {exchange.id for exchange in given}
    assert all(e.task.tags["row"] == f"journal:{e.task.tags['exchange']}" for e in examples)
    assert {e.task.tags["exchange"] for e in examples} <= ids
    single = next(e for e in examples if e.task.category == "single")
    assert single.attempt.backend == "qwen"
    assert single.attempt.verdict is not None
    assert single.attempt.verdict.ok
    assert single.attempt.results[0].call_id == single.answer.tool_calls[0].id == "call_1"
    refused = read_jsonl(tmp_path / "set" / "rejected.jsonl", Rejection)
    assert "read_fil was not offered" in [r.detail for r in refused]


def test_one_file_of_a_journal_is_read_too_and_damage_is_a_rejection(tmp_path: Path) -> None:
    folder = journal(tmp_path / "journal", conversation(1) + conversation(2))
    (file,) = folder.iterdir()
    with file.open("ab") as more:
        more.write(b'not JSON\n{"exchange": {"half')
    for path in (folder, file):
        found = list(rows(path))
        assert len(found) == 7
        assert isinstance(found[-1].value, Rejection)
        assert found[-1].value.reason == "not_recorded"
        assert recognise([r.value for r in found if not isinstance(r.value, Rejection)], path.name) == named("gateway")


def test_the_command_imports_a_journal(tmp_path: Path) -> None:
    folder = journal(tmp_path / "journal", [e for n in range(5) for e in conversation(n)])
    command = [sys.executable, "-m", "llm_tuner", "data", "import", str(folder), "--out", str(tmp_path / "set")]
    command += ["--no-benchmark", "--held-out-tools", "0", "--held-out-servers", "0", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)["counts"]
    assert (counts["rows"], counts["train"] + counts["held-out"]) == (15, 10)


# ------------------------------------------------------------------------------------------------------------- attempts


def test_tasks_do_not_depend_on_ids_and_are_there_once() -> None:
    def renamed(exchange: Exchange) -> Exchange:
        text = exchange.model_dump_json(exclude={"id"}).replace('"x1"', '"other"').replace('"y1"', '"another"')
        return Exchange.model_validate_json(text)

    once = attempts_of(conversation(1))
    twice = attempts_of([*conversation(1), *map(renamed, conversation(1))])
    assert once == twice or [t.id for t in once[0]] == [t.id for t in twice[0]]
    tasks, attempts = twice
    assert [len(task.messages) for task in tasks] == [1, 3]  # each turn once, with what was before it
    assert [attempt.task_id for attempt in attempts] == [task.id for task in tasks]
    assert all(task.split is None for task in tasks)


def test_a_lifted_call_is_right_in_its_repaired_form_and_wrong_as_it_was_written() -> None:
    answer = calling(call("read_file", "c1", path="b.txt"))
    written = Message(role="assistant", text=TEXT)
    repaired = asked(
        user("Read b"),
        answer=answer,
        tries=(Try(backend="qwen", message=written),),
        repairs=(Repair(kind="lifted"),),
    )
    later = asked(user("Read b"), answer, heard("text", "c1"), answer=Message(role="assistant", text="ok"))
    (task,), attempts = attempts_of([repaired, later])
    assert isinstance(task.expect, ExactCalls)
    assert [(a.backend, a.verdict and a.verdict.reason) for a in attempts] == [
        ("reference", "ok"),
        ("qwen", "call_as_text"),
    ]
    ((one,), _) = prefer(Pairing(made=False), [task], attempts)
    assert (one.reason, one.itself, one.wrong.text) == ("call_as_text", True, TEXT)
    assert one.right.tool_calls[0].arguments == {"path": "b.txt"}
    assert attempts_of([repaired]) == ([], [])  # repaired, but nobody knows whether it was right


def test_a_refused_and_a_coerced_call_are_wrong_answers_to_the_same_task() -> None:
    answer = calling(call("read_file", "c1", path="b.txt", lines=3))
    wrong = [calling(call("read_fil", path="b.txt")), calling(call("read_file", path="b.txt", lines="3"))]
    exchange = asked(
        user("Read 3 lines of b"),
        answer=answer,
        tries=tuple(Try(backend=f"m{n}", message=message) for n, message in enumerate(wrong)),
        repairs=(Repair(kind="retried"), Repair(kind="coerced")),
    )
    _, attempts = attempts_of([marked(exchange, True)])
    assert [(a.backend, a.verdict and a.verdict.reason) for a in attempts] == [
        ("reference", "ok"),
        ("m0", "unknown_tool"),
        ("m1", "wrong_type"),
    ]


def test_a_correction_makes_the_answer_a_wrong_one() -> None:
    exchange = asked(user("bを読んで"), answer=calling(call("read_file", "c1", path="a.txt")))
    (task,), attempts = attempts_of([marked(exchange, False, call("read_file", path="b.txt"))])
    assert task.language == "ja"
    assert [(a.backend, a.verdict and a.verdict.reason) for a in attempts] == [
        ("reference", "ok"),
        ("qwen", "wrong_value"),
    ]
    talked = exchange.model_copy(update={"answer": Message(role="assistant", text="どれですか")})
    _, attempts = attempts_of([marked(talked, False, call("read_file", path="b.txt"))])
    assert [a.verdict and a.verdict.reason for a in attempts] == ["ok", "no_call"]
    assert attempts_of([marked(exchange, False)]) == ([], [])  # wrong, but nobody said what would be right


def test_words_are_right_only_where_somebody_said_so() -> None:
    exchange = asked(user("Delete it all"), answer=Message(role="assistant", text="I cannot."))
    assert attempts_of([exchange]) == ([], [])
    (task,), (attempt,) = attempts_of([marked(exchange, True)])
    assert task.expect == NoCall(reply="I cannot.")
    assert attempt.verdict is not None
    assert attempt.verdict.ok


@pytest.mark.parametrize(
    "exchange",
    [
        asked(user("x"), answer=calling(call("read_file", path="a")), tools=()),
        asked(heard("orphan", "z"), user("x"), answer=calling(call("read_file", path="a"))),
        asked(Message(role="system", text="x"), answer=calling(call("read_file", path="a"))),
        asked(user("x"), answer=Message(role="assistant")),
        asked(user("x"), answer=None),
    ],
)
def test_what_is_no_task_is_left_out(exchange: Exchange) -> None:
    assert attempts_of([marked(exchange, True)]) == ([], [])


def test_a_compact_catalogue_is_trained_as_it_was_served() -> None:
    exchange = asked(user("Read a"), answer=calling(call("read_file", path="a")), rendering="compact")
    (task,), _ = attempts_of([marked(exchange, True)])
    assert task.tags["rendering"] == "compact"
    assert task.tools == TOOLS


def test_reading_and_telling_again_give_the_same(tmp_path: Path) -> None:
    given = [exchange for number in range(20) for exchange in conversation(number)]
    folder = journal(tmp_path / "journal", given)
    one, two = attempts_of(list(read(folder))), attempts_of(given)
    assert [task.id for task in one[0]] == [task.id for task in two[0]]
    assert len(one[0]) == 40
