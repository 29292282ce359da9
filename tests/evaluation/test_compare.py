"""Comparing two measurements: differences on the same tasks only, flips with both answers, regressions called so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llm_tuner.evaluation.compare import Comparison, compare, open_parts
from llm_tuner.evaluation.details import details
from llm_tuner.evaluation.measure import tally
from llm_tuner.evaluation.render import comparison_to_html, comparison_to_markdown, failures, write, write_comparison
from llm_tuner.evaluation.wording import WORDS, Language
from llm_tuner.scoring import Rules, gold_attempt, score
from llm_tuner.store import Store, write_jsonl
from llm_tuner.store.suite import Suite, save
from llm_tuner.types import Attempt, DataError, ExactCalls, Message, NoCall, Report, Task, Timing, ToolCall, ToolSpec
from pages import NASTY, Page

CLOCK, FETCH = ToolSpec(name="clock", server="time"), ToolSpec(name="fetch", server="web")


def task(text: str, name: str = "clock", language: str = "en") -> Task:
    expect = ExactCalls(calls=(ToolCall(name=name),)) if name else NoCall()
    return Task(messages=(Message(role="user", text=text),), tools=(CLOCK, FETCH), expect=expect, language=language)


CLOCKS = [task(f"clock {i}") for i in range(20)]
FETCHES = [task(f"fetch {i}", "fetch", "ja") for i in range(10)]
QUIET = [task(f"quiet {i}", "") for i in range(5)]
ALL = [*CLOCKS, *FETCHES, *QUIET]


def attempt(one: Task, kind: str = "right", ms: float = 100) -> Attempt:
    made = {
        "right": gold_attempt(one).messages[0],
        "silent": Message(role="assistant", text=NASTY),
        "as text": Message(role="assistant", text="clock()", text_calls=(ToolCall(name="clock"),)),
        "talkative": Message(role="assistant", tool_calls=(ToolCall(name="fetch"),)),
    }[kind]
    tried = Attempt(task_id=one.id, backend="b", messages=(made,), timing=Timing(total_ms=ms))
    return tried.model_copy(update={"verdict": score(one, tried)})


def measured(
    folder: Path, attempts: list[Attempt], tasks: list[Task] = ALL, rules: Rules = "strict", cpu: str = "c"
) -> Path:
    folder.mkdir(parents=True)
    suite = Suite(name="hub", tasks=tuple(tasks))
    report = tally(suite, attempts, backend=folder.name, machine={"cpu": cpu}, rules=rules)
    save(suite, folder / "suite.jsonl")
    write_jsonl(folder / "attempts.jsonl", attempts)
    write(folder, report, failures(suite, attempts), details=details(tasks, attempts))
    return folder


def compared(before: Path, after: Path) -> Comparison:
    return compare(open_parts(str(before)), open_parts(str(after)))


def test_a_fall_beyond_its_interval_is_a_regression(tmp_path: Path) -> None:
    good = measured(tmp_path / "good", [attempt(one) for one in ALL])
    kinds = {one.id: "silent" for one in CLOCKS[:12]} | {QUIET[0].id: "talkative"}
    bad = measured(tmp_path / "bad", [attempt(one, kinds.get(one.id, "right"), ms=50) for one in ALL])
    found = compared(good, bad)
    by_metric = {change.metric: change for change in found.changes}
    assert {change.metric for change in found.regressions} == set(by_metric) - {"no_call", "no_call_lenient"}
    assert (by_metric["ok"].n, by_metric["ok"].lost, by_metric["ok"].gained) == (35, 13, 0)
    assert (by_metric["native_rate"].n, by_metric["native_rate"].lost) == (30, 12)
    assert (by_metric["no_call"].n, by_metric["no_call"].lost) == (5, 1)
    assert found.broke == {
        "reason": {"no_call": 12, "unwanted_call": 1},
        "tool": {"clock": 12, "(no call)": 1},
        "server": {"time": 12},
    }
    assert found.mended == {}
    assert {name: change.lost for name, change in found.groups["tool"].items()} == {"clock": 12, "fetch": 0}
    assert {name: change.lost for name, change in found.groups["language"].items()} == {"en": 13, "ja": 0}
    assert (found.times.n, found.times.ratio, found.notes) == (35, 0.5, ())
    back = compared(bad, good)
    assert back.regressions == ()
    assert back.mended == found.broke
    assert back.changes[0].difference == -found.changes[0].difference


def test_flipped_tasks_carry_both_answers(tmp_path: Path) -> None:
    before = measured(tmp_path / "a", [attempt(one, "as text" if one is CLOCKS[0] else "right") for one in ALL])
    after = measured(tmp_path / "b", [attempt(one, "silent" if one is FETCHES[0] else "right") for one in ALL])
    lost, gained = compared(before, after).flips
    assert (lost.gained, lost.reason_before, lost.reason_after, lost.tools) == (False, "ok", "no_call", ("fetch",))
    assert lost.before is not None
    assert lost.after is not None
    assert (lost.before.ok, lost.after.output, lost.after.request) == (True, NASTY, "fetch 0")
    assert (gained.gained, gained.reason_before, gained.task) == (True, "call_as_text", CLOCKS[0].id)


def test_the_lenient_reading_is_compared_on_its_own(tmp_path: Path) -> None:
    before = measured(tmp_path / "a", [attempt(one, "as text" if one in CLOCKS else "right") for one in ALL])
    after = measured(tmp_path / "b", [attempt(one) for one in ALL])
    found = {change.metric: change.gained for change in compared(before, after).changes}
    assert found["selection"] == found["native_rate"] == 20
    assert found["selection_lenient"] == found["parameters_lenient"] == 0
    assert len(compared(before, after).flips) == 20
    lenient = compare(open_parts(str(before)), open_parts(str(after)), reading="lenient")
    assert lenient.flips == ()
    assert lenient.changes == compared(before, after).changes
    assert {name: change.gained for name, change in lenient.groups["tool"].items()} == {"clock": 0, "fetch": 0}


def test_a_report_without_the_lenient_reading_is_compared_without_it(tmp_path: Path) -> None:
    before = measured(tmp_path / "a", [attempt(one, "as text") for one in CLOCKS], CLOCKS)
    after = measured(tmp_path / "b", [attempt(one) for one in CLOCKS], CLOCKS)
    path = before / "report.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    for name in ("lenient", "rules", "tokens", "confusion"):
        del document[name]
    path.write_text(json.dumps(document), encoding="utf-8")
    found = compared(before, after)
    assert [change.metric for change in found.changes] == ["ok", "native_rate", "selection", "parameters"]
    assert any("lenient" in note for note in found.notes)


def test_only_common_tasks_count_and_the_others_are_counted(tmp_path: Path) -> None:
    before = measured(tmp_path / "a", [attempt(one) for one in CLOCKS], CLOCKS)
    after = measured(tmp_path / "b", [attempt(one) for one in ALL[10:]], ALL[10:], cpu="other")
    found = compared(before, after)
    assert (found.common, found.only_before, found.only_after) == (10, 10, 15)
    assert found.notes[0] == "10 of 20 tasks of before have no partner and were left out."
    assert any("different machines" in note for note in found.notes)
    with pytest.raises(DataError, match="none of the same task"):
        compared(before, measured(tmp_path / "c", [attempt(one) for one in QUIET], QUIET))


def test_verdicts_by_different_rules_are_not_compared(tmp_path: Path) -> None:
    before = measured(tmp_path / "a", [attempt(one) for one in ALL])
    after = measured(tmp_path / "b", [attempt(one) for one in ALL], rules="bfcl")
    with pytest.raises(DataError, match='before was judged by "strict" rules, after by "bfcl" rules'):
        compared(before, after)


def test_folders_of_several_suites_are_taken_together(tmp_path: Path) -> None:
    for side, kind in (("a", "right"), ("b", "silent")):
        measured(tmp_path / side / "clocks", [attempt(one, kind) for one in CLOCKS], CLOCKS)
        measured(tmp_path / side / "fetches", [attempt(one) for one in FETCHES], FETCHES)
    found = compared(tmp_path / "a", tmp_path / "b")
    assert (found.common, found.before.name, found.before.suites) == (30, "a", ("hub", "hub"))
    assert {name: change.lost for name, change in found.groups["suite"].items()} == {"clocks": 20, "fetches": 0}
    sides = (open_parts(str(tmp_path / side), only="fetches") for side in "ab")
    assert compare(*sides).changes[0].n == 10
    with pytest.raises(DataError, match=r'no report of the suite "x" \(found: clocks, fetches\)'):
        open_parts(str(tmp_path / "a"), only="x")


def test_without_tasks_and_attempts_verdicts_are_still_compared(tmp_path: Path) -> None:
    files = []
    for name, kind in (("a", "right"), ("b", "silent")):
        folder = measured(tmp_path / name, [attempt(one, kind) for one in ALL])
        files.append(tmp_path / f"{name}.json")
        (folder / "report.json").rename(files[-1])
    found = compared(*files)
    assert len(found.flips) == 30
    assert found.flips[0].before is None
    assert found.broke == {"reason": {"no_call": 30}}
    assert found.times.n == 0
    assert any("suite.jsonl" in note for note in found.notes)
    assert CLOCKS[0].id in Page(comparison_to_html(found)).text


def test_evaluate_runs_are_named_by_id_last_and_previous(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    suite = Suite(name="held-out", tasks=tuple(CLOCKS))
    with store.write("collect", {}, {}) as folder:
        save(suite, folder.path / "held-out.jsonl")
        folder.outputs["held-out"] = "held-out.jsonl"
    ids = []
    for number, kind in enumerate(("right", "silent")):
        with store.write("evaluate", {"n": number}, {}) as folder:
            attempts = [attempt(one, kind) for one in CLOCKS]
            out = folder.path / "held-out"
            out.mkdir()
            write_jsonl(out / "attempts.jsonl", attempts)
            report = tally(suite, attempts, backend=kind)
            (out / "report.json").write_text(report.model_dump_json(), encoding="utf-8")
        assert folder.run is not None
        ids.append(folder.run.id)
    first, second = (open_parts(id_, store) for id_ in ids)
    found = compare(first, second)
    assert (found.before.name, found.before.backend, found.changes[0].lost) == (ids[0], "right", 20)
    assert all(flip.after for flip in found.flips)  # the tasks were found in the run that collected them
    newest = sorted(ids)[-1]
    assert open_parts("last", store)[0].of == newest
    assert open_parts("previous", store)[0].of != newest
    with pytest.raises(DataError, match=r'"none" \(runs found: '):
        open_parts("none", store)


@pytest.mark.parametrize(
    ("text", "says"), [("{", "report of this version"), ('{"suite": "x"}', "suite_hash"), (b"\xff", "Cannot read")]
)
def test_a_file_that_is_no_report(tmp_path: Path, text: str | bytes, says: str) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=says):
        open_parts(str(tmp_path))
    path.unlink()
    with pytest.raises(DataError, match=r"holds no report \(found: no report\.json\)"):
        open_parts(str(tmp_path))


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_pages_are_whole_self_contained_and_inert(tmp_path: Path, language: Language) -> None:
    before = measured(tmp_path / "a", [attempt(one, "silent" if one in FETCHES[:3] else "right") for one in ALL])
    after = measured(tmp_path / "b", [attempt(one, "silent" if one in CLOCKS else "right") for one in ALL])
    found = compared(before, after)
    paths = write_comparison(tmp_path / "out", found, language)
    assert [path.name for path in paths] == ["compare.json", "compare.md", "compare.html"]
    assert Comparison.model_validate_json(paths[0].read_text(encoding="utf-8")) == found
    text = paths[2].read_text(encoding="utf-8")
    page = Page(text)
    assert not page.tags & {"script", "img", "link", "iframe"}
    assert page.links == []
    assert "url(" not in text
    assert NASTY in page.text
    words = WORDS[language]
    for heading in ("compare_title", "regression", "changes", "broke", "mended", "lost_tasks", "gained_tasks"):
        assert words[heading] in page.text
    assert len(re.findall(r'id="t-[0-9a-f]{16}"', text)) == 23
    markdown = comparison_to_markdown(found, language)
    assert "<script" not in markdown
    for block in markdown.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) <= 1, block


def test_old_reports_are_still_read() -> None:
    old = {"suite": "s", "suite_hash": "h", "backend": "b", "n": 0, "rates": {}}
    assert Report.model_validate(old).lenient == {}
