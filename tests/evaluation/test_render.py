"""Reports for people: complete in both languages, self-contained, and inert whatever a model wrote."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llm_tuner.evaluation.details import details
from llm_tuner.evaluation.intervals import METRICS, rate
from llm_tuner.evaluation.measure import tally
from llm_tuner.evaluation.render import (
    LATENCIES,
    RATES,
    TOKENS,
    Failure,
    failures,
    search_to_html,
    search_to_markdown,
    to_html,
    to_markdown,
    write,
)
from llm_tuner.evaluation.wording import WORDS
from llm_tuner.scoring import gold_attempt, score
from llm_tuner.store.suite import Suite
from llm_tuner.types import (
    AllowedCall,
    AllowedCalls,
    Attempt,
    Check,
    Decision,
    ExactCalls,
    Message,
    NoCall,
    Report,
    Search,
    Task,
    Timing,
    ToolCall,
    ToolSpec,
    Trial,
    Usage,
)
from pages import NASTY, Page

CLOCK = ToolSpec(name="clock", server="time", parameters={"type": "object", "properties": {"zone": {"type": "string"}}})


def task(text: str, call: bool = True) -> Task:
    wanted = ExactCalls(calls=(ToolCall(name="clock", arguments={"zone": "JST"}),)) if call else NoCall()
    return Task(messages=(Message(role="user", text=text),), tools=(CLOCK,), expect=wanted, language="ja")


SUITE = Suite(name="hub & more", tasks=(task(NASTY), task("b"), task("c"), task("d", call=False)))


def attempts(right: int) -> list[Attempt]:
    out = []
    for number, one in enumerate(SUITE.tasks):
        wrong = Attempt(task_id=one.id, backend="old", messages=(Message(role="assistant", text=NASTY),))
        attempt = gold_attempt(one) if number < right else wrong
        out.append(attempt.model_copy(update={"verdict": score(one, attempt)}))
    return out


def report(right: int, name: str) -> Report:
    return tally(SUITE, attempts(right), backend=name, machine={"cpu": NASTY}, sha256="ab" * 32)


BEFORE, AFTER = report(1, "old"), report(3, "new")
DECISION = Decision(
    promote=False,
    checks=(Check(rule="a", passed=True, sentence="It is better."), Check(rule="b", passed=False, sentence=NASTY)),
)
CURVE = [(1, 2.5), (2, 1.25), (3, 0.5)]


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_page_is_whole_self_contained_and_inert(language: str) -> None:
    failed = failures(SUITE, attempts(0))
    text = to_html(BEFORE, AFTER, DECISION, curve=CURVE, failures=failed, language=language)  # type: ignore[arg-type]
    page = Page(text)
    assert not page.tags & {"script", "img", "link", "iframe"}
    assert page.links == []
    assert "url(" not in text
    assert "@import" not in text
    assert NASTY in page.text
    assert "prefers-color-scheme: dark" in text
    assert {"svg", "polyline"} <= page.tags
    words = WORDS["ja" if language == "ja" else "en"]
    for heading in ("title", "refused", "rates", "changes", "groups", "reasons", "latency", "curve", "failures"):
        assert words[heading] in page.text
    assert "50.0 %" in page.text  # two of four right before: the first, and the one that wants no call
    assert "hub & more" in page.text


def test_every_attempt_is_on_the_page_and_inert() -> None:
    made = [one.model_copy(update={"timing": Timing(total_ms=10 + 5 * i)}) for i, one in enumerate(attempts(1))]
    text = to_html(None, AFTER, details=details(SUITE.tasks, made), language="ja")
    page = Page(text)
    assert page.links == []
    assert "script" not in page.tags
    assert [one.id in text for one in SUITE.tasks] == [True] * 4
    assert {"details", "summary", "pre", "i"} <= page.tags
    assert page.text.count(NASTY) >= 4  # a request, and the raw output of the wrong ones
    words = WORDS["ja"]
    for heading in ("attempts", "confusion", "histogram_note"):
        assert words[heading] in page.text
    small = Page(to_html(None, AFTER, details=details(SUITE.tasks, made, room=300)))
    assert f"3 {WORDS['en']['attempts_left_out']}" in small.text


def test_tokens_are_shown_where_the_runtime_counted_them() -> None:
    assert WORDS["en"]["tokens"] not in [line.strip("# ") for line in to_markdown(None, AFTER).splitlines()]
    counted = [one.model_copy(update={"usage": Usage(prompt_tokens=700, completion_tokens=20)}) for one in attempts(3)]
    text = to_markdown(BEFORE, tally(SUITE, counted, backend="b"))
    assert "| prompts, all | 0 | 2,800 |" in text


def test_confused_tools_are_a_table_or_a_list() -> None:
    many = {f"t{i}": {f"t{i}": 3, "t0": 1, "(nothing)": 1} for i in range(40)}
    page = Page(to_html(None, AFTER.model_copy(update={"confusion": many})))
    assert f"16 {WORDS['en']['more_tools']}" in page.text
    once = {f"t{i}": {"t0": 1} for i in range(40)}
    page = Page(to_html(None, AFTER.model_copy(update={"confusion": once})))
    assert WORDS["en"]["more_tools"] not in page.text
    assert "t39" not in page.text  # the first 20 of equally frequent ones
    right = {f"t{i}": {f"t{i}": 1} for i in range(40)}
    assert WORDS["en"]["confusion"] not in Page(to_html(None, AFTER.model_copy(update={"confusion": right}))).text


def test_one_model_alone_has_no_before() -> None:
    text = to_html(None, AFTER)
    page = Page(text)
    assert WORDS["en"]["changes"] not in page.text
    assert 'rect class="before"' not in text
    markdown = to_markdown(None, AFTER)
    assert "| before |" not in markdown
    assert "right tool | 100.0 % (44–100 %, 3/3)" in markdown


def test_reports_of_different_tasks_stand_side_by_side_without_a_comparison() -> None:
    other = AFTER.model_copy(update={"verdicts": {}})
    assert WORDS["en"]["changes"] not in to_markdown(BEFORE, other)


def test_markdown_keeps_its_tables_and_shows_text_as_text() -> None:
    text = to_markdown(BEFORE, AFTER, DECISION, curve=CURVE, failures=failures(SUITE, attempts(0)))
    assert "<script" not in text
    assert "<img" not in text
    assert not re.search(r"(?<!\\)\]\(", text)
    assert "✓ It is better." in text
    columns: list[int] = []
    for line in text.splitlines():
        bars = len(re.findall(r"(?<!\\)\|", line))
        if not line.startswith("|"):
            columns = []
            continue
        columns.append(bars)
        assert columns[0] == bars, line


def test_every_word_exists_in_both_languages() -> None:
    assert WORDS["en"].keys() == WORDS["ja"].keys()
    assert set(RATES) <= WORDS["en"].keys()
    assert {*METRICS, *LATENCIES, *TOKENS} <= WORDS["en"].keys()


def test_failures_show_every_reason_before_a_second_of_one() -> None:
    broken = Message(role="assistant", tool_calls=(ToolCall(name="clock", raw="{oops", error="broken JSON"),))
    made = [
        *attempts(0)[:3],
        Attempt(task_id=SUITE.tasks[0].id, backend="b", messages=(broken,)),
        Attempt(task_id=SUITE.tasks[1].id, backend="b", error="timed out"),
        gold_attempt(SUITE.tasks[2]),
        Attempt(task_id="elsewhere", backend="b"),
    ]
    judged = [
        attempt.model_copy(update={"verdict": score(one, attempt)})
        for attempt in made
        for one in SUITE.tasks
        if one.id == attempt.task_id
    ]
    found = failures(SUITE, judged)
    assert [failure.reason for failure in found] == ["no_call", "broken_call", "backend_error", "no_call", "no_call"]
    assert [failure.got for failure in found[1:3]] == ["{oops", "timed out"]
    assert found[0].expected == 'clock({"zone": "JST"})'
    assert len(failures(SUITE, judged, limit=2)) == 2


def test_long_texts_are_cut_and_allowed_values_are_shown() -> None:
    wanted = AllowedCalls(calls=(AllowedCall(name="clock", arguments={"zone": ["JST", ""]}),))
    one = Task(messages=(Message(role="user", text="x" * 5000),), tools=(CLOCK,), expect=wanted)
    attempt = Attempt(task_id=one.id, backend="b")
    attempt = attempt.model_copy(update={"verdict": score(one, attempt)})
    (failure,) = failures(Suite(name="s", tasks=(one,)), [attempt])
    assert failure == Failure(
        request="x" * 399 + "…",
        expected='clock({"zone": ["JST", ""]})',
        got="",
        reason="no_call",
        detail="Expected clock; nothing was called.",
    )


def test_a_report_without_answers_renders() -> None:
    empty = Report(suite="s", suite_hash="h", backend="b", n=0, rates={"ok": rate(0, 0)})
    assert Page(to_html(empty, empty, curve=[(1, 1.0), (2, 1.0)])).text
    assert to_markdown(empty, empty)


def test_write(tmp_path: Path) -> None:
    paths = write(tmp_path / "r", AFTER)
    assert [path.name for path in paths] == ["report.json", "report.md", "report.html"]
    assert Report.model_validate_json(paths[0].read_text(encoding="utf-8")) == AFTER


def test_a_search_is_drawn_in_both_languages_and_what_failed_is_shown_as_text() -> None:
    def trial(number: int, accuracy: float | None, state: str = "done", **more: object) -> Trial:
        settings = {"r": 8.0 + number, "learning_rate": 1e-4}
        return Trial.model_validate(
            {"number": number, "settings": settings, "state": state, "accuracy": accuracy, **more}
        )

    search = Search(
        trials=(
            trial(0, 0.5, losses=((1.0, 0.25),)),
            trial(1, None, "pruned"),
            trial(2, 0.75),
            trial(3, None, "failed", why="<script>alert(1)</script>"),
        ),
        best=2,
        importance={"learning_rate": 0.75, "r": 0.25},
        tasks=40,
    )
    for language in ("en", "ja"):
        page, text = search_to_html(search, language), search_to_markdown(search, language)
        assert page.count("<circle") == 4
        assert page.count('<rect class="bin"') == 2
        assert 'width="375.0"' in page  # 0.75 of 500
        assert "<script" not in page + text
        assert "0.750" in page
        assert "0.750" in text
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert len(rows) == 6
        assert len({line.count("|") for line in rows}) == 1
    assert WORDS["ja"]["state_pruned"] in search_to_html(search, "ja")
    empty = search_to_html(Search(trials=(trial(0, None, "failed"),)))
    assert WORDS["en"]["no_trial"] in empty
    assert "<svg" not in empty
