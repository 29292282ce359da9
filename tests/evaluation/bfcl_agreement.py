"""Ask the official BFCL checker and our own the same questions. Not a test: it writes what the test reads.

The official package pins about 150 others, so it lives in a virtual environment of its own, made once:

    python -m venv VENV
    VENV/bin/pip install --no-deps bfcl-eval==2026.3.23 tree_sitter==0.21.3 tree-sitter-java==0.21.0 \\
        tree-sitter-javascript==0.21.4 numpy

Then

    python tests/evaluation/bfcl_agreement.py VENV/bin/python          writes bfcl_agreement.json (our own small cases)
    python tests/evaluation/bfcl_agreement.py VENV/bin/python --all    compares on the whole data set, prints counts
    python tests/evaluation/bfcl_agreement.py VENV/bin/python --all --outputs PATH    and what models wrote

The official side decodes and judges a question (bfcl_questions.py) as its runner does. PATH holds rows as `llm-tuner
eval score` takes them, and may be a folder of such files, or of an evaluation (bfcl_outputs.py): then the verdicts that
the evaluation gave are compared, too.

Both sides' speed is that of judging alone, calls and entries in memory, processor time of one thread, the best of
ROUNDS for each SLICE, told apart by category and by whether the official verdict is valid.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from bfcl_outputs import written_rows
from bfcl_questions import Question, mutations, questions, relevance, task_of

from llm_tuner.evaluation import bfcl, score_file
from llm_tuner.scoring import made_calls, score
from llm_tuner.types import Attempt, Message, Task

FIXTURE = Path(__file__).with_suffix(".json")
BATCH = 20_000
"""Questions that are asked at once."""
ROUNDS, SLICE = 5, 500
"""How often the judging of so many questions in a row is timed. The best counts: other programs share the machine."""

# The package imports every vendor's SDK and more; what the checks do not use is stood in for.
OFFICIAL = """
import gc, importlib.abc, importlib.machinery, json, sys, time, types
from unittest.mock import MagicMock

class Flags: underscore_to_dot = True
class Models(dict):
    def __missing__(self, name): return Flags
stub = types.ModuleType("bfcl_eval.constants.model_config")
stub.MODEL_CONFIG_MAPPING = Models()
sys.modules["bfcl_eval.constants.model_config"] = stub

class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        return None if name.startswith("bfcl_eval") else importlib.machinery.ModuleSpec(name, self, is_package=True)
    def create_module(self, spec):
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__ = [], spec
        return module
    def exec_module(self, module): pass
sys.meta_path.append(Absent())

from bfcl_eval.constants.enums import Language, ReturnFormat
from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker
from bfcl_eval.model_handler.api_inference.openai_completion import OpenAICompletionsHandler
from bfcl_eval.utils import is_empty_output, is_function_calling_format_output, is_java, is_js

handler = object.__new__(OpenAICompletionsHandler)
handler.is_fc_model = True

def decoded(q):
    try:
        return handler.decode_ast(q["result"], ReturnFormat.PYTHON, False)
    except Exception:
        return None

def relevance(category, made):
    called = made is not None and not is_empty_output(made)
    return called != ("irrelevance" in category)

def language(category):
    return Language.JAVA if is_java(category) else Language.JAVASCRIPT if is_js(category) else Language.PYTHON

ROUNDS, SLICE = map(int, sys.argv[1:])
verdicts, asked, functions = [], [], []
for line in sys.stdin:
    q = json.loads(line)
    if "result" not in q:
        functions = q["functions"]
        continue
    made = decoded(q)
    if "relevance" in q["category"]:
        verdicts.append(relevance(q["category"], made))
    elif made is None or not is_function_calling_format_output(made):
        verdicts.append(False)
    else:
        asked.append((len(verdicts), functions, made, q["answer"], language(q["category"]), q["category"]))
        verdicts.append(None)

out, sys.stdout = sys.stdout, sys.stderr  # the checker prints
kinds = {"valid": [], "invalid": []}
for at, *question in asked:
    try:
        verdicts[at] = ast_checker(*question, "m")["valid"]
        kinds["valid" if verdicts[at] else "invalid"].append((at, question))
    except Exception as error:
        verdicts[at] = f"{type(error).__name__}: {error}"

def seconds(questions):
    best = 0.0
    for at in range(0, len(questions), SLICE):
        rounds = []
        for _ in range(ROUNDS):
            start = time.process_time()
            for _, question in questions[at : at + SLICE]:
                ast_checker(*question, "m")
            rounds.append(time.process_time() - start)
        best += min(rounds)
    return best

gc.freeze()  # the questions are not the checker's garbage
judged = {
    kind: {"places": [at for at, _ in found], "seconds": seconds(found)} for kind, found in kinds.items()
}
print(json.dumps({"verdicts": verdicts, "judged": judged}), file=out)
"""


# ------------------------------------------------------------------------------------------------------------- verdicts


class Verdicts(NamedTuple):
    """The verdicts on some questions (a string where the checker raised). `judged`, by "valid" and "invalid": the
    places of the questions whose arguments the official checker judges so, and the seconds of judging them once."""

    verdicts: list[bool | str]
    judged: dict[str, dict[str, Any]]


def official(python: str, asked: Iterable[Question]) -> Verdicts:
    """The official verdicts."""
    command = [python, "-c", OFFICIAL, str(ROUNDS), str(SLICE)]
    run = subprocess.run(command, input=_lines(asked), capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stderr[-2000:])
    return Verdicts(**json.loads(run.stdout))


def _lines(asked: Iterable[Question]) -> str:
    lines, functions = [], None
    for question in asked:
        if question.functions is not functions:
            functions = question.functions
            lines.append(json.dumps({"functions": functions}))
        document = {"answer": question.answer, "category": question.category, "result": question.result}
        lines.append(json.dumps(document))
    return "\n".join(lines) + "\n"


def ours(asked: Iterable[Question], theirs: Verdicts) -> Verdicts:
    """Our verdicts, and the time for those on which the official one spent its own."""
    pairs: list[tuple[Task, Attempt]] = []
    task, key = None, None
    for question in asked:
        if task is None or key != (id(question.functions), id(question.answer), question.category):
            task = task_of(question.functions, question.answer, question.category)
            key = (id(question.functions), id(question.answer), question.category)
        pairs.append((task, attempt_of(question)))
    verdicts: list[bool | str] = [score(*pair, rules="bfcl").ok for pair in pairs]
    gc.freeze()
    judged = {
        kind: {"places": found["places"], "seconds": _seconds([pairs[at] for at in found["places"]])}
        for kind, found in theirs.judged.items()
    }
    gc.unfreeze()
    assert not any(
        call.error for found in judged.values() for at in found["places"] for call in made_calls(pairs[at][1])
    )
    return Verdicts(verdicts, judged)


def _seconds(pairs: Sequence[tuple[Task, Attempt]]) -> float:
    best = 0.0
    for at in range(0, len(pairs), SLICE):
        rounds = []
        for _ in range(ROUNDS):
            start = time.process_time()
            for task, attempt in pairs[at : at + SLICE]:
                score(task, attempt, rules="bfcl")
            rounds.append(time.process_time() - start)
        best += min(rounds)
    return best


def attempt_of(question: Question) -> Attempt:
    calls = tuple(score_file.official_call(item) for item in question.result)
    return Attempt(task_id="x", backend="x", messages=(Message(role="assistant", tool_calls=calls),))


def whole_data_set(category: str) -> Iterator[Question]:
    for _, row, answer in bfcl.rows([category]):
        if "relevance" in category:
            yield from unique(relevance(row["function"], category))
        else:
            yield from unique(mutations(row["function"], answer, category))


def outputs(paths: Iterable[Path]) -> dict[str, list[Question]]:
    """What models wrote, by category."""
    entries = {row["id"]: (category, row, answer) for category, row, answer in bfcl.rows(bfcl.GROUPS["all"])}
    out: dict[str, list[Question]] = defaultdict(list)
    for written in chain.from_iterable(map(written_rows, paths)):
        if written["id"] not in entries:
            continue
        category, row, answer = entries[written["id"]]
        made = written["result"] if "result" in written else [{c["name"]: c["arguments"]} for c in written["calls"]]
        made = made if isinstance(made, list) else []
        out[category].append(Question(row["function"], answer, category, made, written.get("ok")))
    return out


def unique(asked: Iterable[Question]) -> Iterator[Question]:
    """Questions about one entry, or about entries that stay in memory, without repetitions."""
    seen: set[tuple[int, int, str]] = set()
    for question in asked:
        key = (id(question.functions), id(question.answer), json.dumps(question.made))
        if key not in seen:
            seen.add(key)
            yield question


# ----------------------------------------------------------------------------------------------------------------- main


def compare(python: str, categories: Sequence[str], everything: bool, written: Sequence[Path]) -> int:
    """Compare, print, return the number of disagreements."""
    real = outputs(written) if written else {}
    total: Counter[str] = Counter()
    speeds = Speeds()
    started = time.perf_counter()
    for category in categories:
        counts: Counter[str] = Counter({"of models": len(real.get(category, []))})
        asked = chain(real.get(category, []), whole_data_set(category) if everything else [])
        while batch := list(islice(asked, BATCH)):
            theirs = official(python, batch)
            mine = ours(batch, theirs)
            counts += tally(batch, theirs.verdicts, mine.verdicts)
            speeds.add(category, theirs, mine)
        total += counts
        print(f"{category}: {', '.join(f'{name} {count}' for name, count in counts.items())}", flush=True)
    print(f"all: {', '.join(f'{name} {count}' for name, count in total.items())}")
    print("\n".join(speeds.lines()))
    print(f"whole run: {time.perf_counter() - started:.0f} s")
    return total["DISAGREE"]


class Speeds:
    """Verdicts and both sides' seconds, by category and by the official verdict."""

    def __init__(self) -> None:
        self.spent: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)

    def add(self, category: str, theirs: Verdicts, mine: Verdicts) -> None:
        for kind, found in theirs.judged.items():
            if not found["places"]:
                continue
            spent = {"n": len(found["places"]), "official": found["seconds"], "ours": mine.judged[kind]["seconds"]}
            for key in ((category, kind), (category, "both"), ("all", kind), ("all", "both")):
                self.spent[key].update(spent)

    def lines(self) -> Iterator[str]:
        yield f"{'judging alone':24}{'official':10}{'pairs':>9}{'official/s':>12}{'ours/s':>12}{'ratio':>7}"
        for category in (*bfcl.GROUPS["all"], "all"):
            for kind in ("valid", "invalid", "both"):
                if spent := self.spent.get((category, kind)):
                    theirs, mine = (spent["n"] / max(spent[side], 1e-9) for side in ("official", "ours"))
                    yield f"{category:24}{kind:10}{spent['n']:9}{theirs:12,.0f}{mine:12,.0f}{mine / theirs:7.2f}"


def tally(asked: list[Question], theirs: list[bool | str], mine: list[bool | str]) -> Counter[str]:
    counts: Counter[str] = Counter(pairs=len(asked))
    for question, verdict, own in zip(asked, theirs, mine, strict=True):
        if isinstance(verdict, str):
            outcome = "official raised"
        else:
            outcome = "agree" if own == verdict and question.measured in (None, verdict) else "DISAGREE"
        counts[outcome] += 1
        counts["official valid"] += verdict is True
        counts["official raised, ours ok"] += isinstance(verdict, str) and own is True
        if outcome == "DISAGREE" and counts[outcome] <= 8:
            said = f"official {verdict}, ours {own}, the evaluation's {question.measured}"
            text = f"  {said}: {json.dumps(question.answer)[:300]} <- {question.made}"
            print(text[:700].encode("utf-8", "replace").decode())
    return counts


def write(python: str) -> int:
    """Write the fixture: one case a line, the function documents once. A sample of each category, valid ones first."""
    asked = list(unique(questions()))
    verdicts = official(python, asked)
    counts = tally(asked, verdicts.verdicts, ours(asked, verdicts).verdicts)
    by_kind: dict[tuple[str, bool], list[list[Any]]] = defaultdict(list)
    catalogues: list[Any] = []
    for question, verdict in zip(asked, verdicts.verdicts, strict=True):
        if isinstance(verdict, str):
            continue
        if question.functions not in catalogues:
            catalogues.append(question.functions)
        case = [catalogues.index(question.functions), question.category, question.answer, question.made, verdict]
        by_kind[question.category, verdict].append(case)
    most = {True: 90, False: 60}
    chosen = [random.Random(0).sample(c, min(most[kind[1]], len(c))) for kind, c in by_kind.items()]
    lines = [json.dumps(case) for cases in chosen for case in cases]
    note = f"Official verdicts of bfcl-eval {bfcl.VERSION} on our own cases, written by bfcl_agreement.py."
    head = f'{{"note": {json.dumps(note)},\n"functions": {json.dumps(catalogues)},\n"cases": [\n'
    FIXTURE.write_text(head + ",\n".join(lines) + "\n]}\n", encoding="utf-8")
    print(f"{dict(counts)}\nwrote {len(lines)} cases to {FIXTURE.name}")
    return counts["DISAGREE"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="the Python of the virtual environment that has bfcl-eval")
    parser.add_argument("--all", action="store_true", help="mutations of the whole data set")
    parser.add_argument("--outputs", type=Path, nargs="+", default=(), help="what models wrote: files or folders")
    parser.add_argument("--categories", default="all", help="of --all and --outputs, with commas")
    chosen = parser.parse_args()
    if not chosen.all and not chosen.outputs:
        sys.exit(min(1, write(chosen.python)))
    sys.exit(min(1, compare(chosen.python, bfcl.named(chosen.categories), chosen.all, chosen.outputs)))
