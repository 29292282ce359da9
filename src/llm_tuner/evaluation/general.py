"""A small check of general skill: short questions about code, each with one exact answer, and the perplexity of a text.

Not a benchmark, and it executes nothing: the answer's text is compared, and no tools are offered. The rule it protects:
a model that was tuned to call tools is not promoted for calls while it forgets the rest unnoticed. Forty questions show
a collapse, the perplexity shows a scratch.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Generator, Iterable, Iterator
from importlib import resources
from pathlib import Path

from llm_tuner.evaluation.details import details
from llm_tuner.evaluation.intervals import rate
from llm_tuner.evaluation.measure import measure
from llm_tuner.evaluation.perplexity import measure_perplexity
from llm_tuner.evaluation.render import failures, write
from llm_tuner.evaluation.target import Target, locate, opened
from llm_tuner.models.resources import machine
from llm_tuner.scoring import answer
from llm_tuner.store.suite import Suite, save
from llm_tuner.types import Attempt, Backend, ChatOptions, Event, Message, NoCall, Report, Task, Verdict

RULES = "general"
"""What such a report says instead of the rules for calls: the two are never compared with each other."""

_MAX_TOKENS = 48
_LONGEST = 400
_ANSWER_IS = re.compile(r"\b(?:answer|result|output)(?: is\b|:)", re.IGNORECASE)
_EVALUATES_TO = re.compile(r"\bevaluates? to\b", re.IGNORECASE)
_GOES_ON = re.compile(r"\.(?=\s|$)|,? (?=(?:which|because|since|as|so)\b)|;")
_ASK = "Answer with the value only, no explanation."


def questions() -> Suite:
    """The questions that the package carries, as tasks without tools; `expect.reply` is the answer."""
    text = resources.files("llm_tuner.evaluation").joinpath("general.jsonl").read_text(encoding="utf-8")
    return Suite(name="general", tasks=tuple(_tasks(text)))


def _tasks(text: str) -> Iterator[Task]:
    for row in map(json.loads, text.splitlines()):
        asked = row.get("question") or f"What does the Python expression `{row['expression']}` evaluate to?"
        yield Task(
            messages=(Message(role="user", text=f"{asked} {_ASK}"),),
            tools=(),
            expect=NoCall(reply=row["answer"]),
            category=row["id"].rpartition("-")[0],
            source="general",
            language="en",
            split="held-out",
            tags={"id": row["id"]},
        )


def general(target: Target, *, out: Path | None = None) -> Generator[Event, None, Report]:
    """Ask all questions, then measure the perplexity; with `out` keep both and write the report.

    A second call with the same `out` goes on where the first one stopped.
    """
    located = yield from locate(target)
    with opened(located) as backend:
        return (yield from ask(backend, out=out, sha256=located.sha256))


def ask(backend: Backend, *, out: Path | None = None, sha256: str = "") -> Generator[Event, None, Report]:
    """The same of a model that is open."""
    suite, options = questions(), ChatOptions(max_tokens=_MAX_TOKENS)
    measured, attempts = yield from measure(
        suite, backend, options=options, out=out, machine=machine(), sha256=sha256, judge=judge
    )
    perplexity = yield from measure_perplexity(backend, out=out)
    report = _report(measured, suite, attempts).model_copy(update={"perplexity": perplexity})
    if out is not None:
        save(suite, out / "suite.jsonl")
        write(out, report, failures(suite, attempts), details=details(suite.tasks, attempts))
    return report


def judge(task: Task, attempt: Attempt) -> Verdict:
    """Whether the answer's text is the expected value: the whole of it, its code, or what its last line ends in."""
    message, expected = answer(attempt), task.expect.reply if isinstance(task.expect, NoCall) else ""
    if attempt.error or message is None:
        return Verdict(
            ok=False, selection_ok=False, parameters_ok=False, score=0, reason="backend_error", detail=attempt.error
        )
    right = any(_same(said, expected) for said in _readings(message.text[-_LONGEST:]))
    return Verdict(
        ok=right,
        selection_ok=right,
        parameters_ok=right,
        score=float(right),
        reason="ok" if right else "wrong_value",
        detail=f"Expected {expected}.",
    )


def _report(measured: Report, suite: Suite, judged: Iterable[Attempt]) -> Report:
    verdicts = {attempt.task_id: attempt.verdict for attempt in judged if attempt.verdict is not None}
    reasons = [verdict.reason for verdict in verdicts.values()]
    categories: dict[str, list[bool]] = {}
    for task in suite.tasks:
        categories.setdefault(task.category, []).append(verdicts[task.id].ok)
    return measured.model_copy(
        update={
            "rates": {"ok": rate(sum(v.ok for v in verdicts.values()), len(verdicts))},
            "groups": {"category": {name: {"ok": rate(sum(ok), len(ok))} for name, ok in categories.items()}},
            "reasons": {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
            "rules": RULES,
            "verdicts": verdicts,
            "lenient": {},
        }
    )


def _readings(text: str) -> Iterator[str]:
    """The places in an answer where the value may stand. Where it says what the answer is, only there: the reasons that
    follow speak of other values, too."""
    yield text
    if stated := _stated(text):
        yield from stated
        return
    yield from re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)[-1:]
    yield from re.findall(r"`([^`\n]+)`", text)[-1:]
    if lines := text.strip().splitlines():
        yield lines[0]  # the value, then an explanation that nobody asked for
        yield lines[-1]
        yield re.split(r":| is | to | = | equals | returns | prints | gives ", lines[-1])[-1]


def _stated(text: str) -> list[str]:
    """What follows the last "the answer is", or else the first "evaluates to": marked as code, or up to where the
    sentence goes on."""
    found = _ANSWER_IS.split(text)[1:][-1:] or _EVALUATES_TO.split(text, maxsplit=1)[1:]
    if not found:
        return []
    rest = found[0].lstrip(": \n")
    if code := re.match(r"```\w*\n(.*?)```|`([^`\n]+)`", rest, flags=re.DOTALL):
        return [code[1] or code[2]]
    line = rest.partition("\n")[0]
    return [line, *(line[: cut.start()] for cut in _GOES_ON.finditer(line))]


def _same(said: str, expected: str) -> bool:
    said = said.strip().strip("`*").strip()
    for form in (said, said.removesuffix(".")):
        if form == expected or (_value(form) is not None and _value(form) == _value(expected)):
            return True
        if form == _literal(expected):  # a string without its quotes
            return True
    return False


def _value(text: str) -> tuple[str, object] | None:
    """A literal with its type's name: 1, 1.0 and True are different answers. None where it is no literal."""
    value = _literal(text)
    return None if isinstance(value, _No) else (type(value).__name__, value)


class _No:
    """No literal."""


def _literal(text: str) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd escapes in what a model wrote
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return _No()
