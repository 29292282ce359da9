"""Ask the official multi-turn checker and our own the same questions. Not a test: it writes what the tests read.

The official package lives in a virtual environment of its own, made once:

    python -m venv VENV
    VENV/bin/pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0

Then

    python tests/evaluation/bfcl_multi_turn_agreement.py VENV/bin/python
        writes bfcl_multi_turn_agreement.json
    python tests/evaluation/bfcl_multi_turn_agreement.py VENV/bin/python --each 12
        compares on every entry, the ground truth in two forms and 12 damaged ones; prints counts

A question is what a model called: for each turn its answers, for each answer its calls, `[name, arguments]`. Damage is
done by rule and has a name, so that a verdict can be kept without the data.
"""

from __future__ import annotations

import ast
import copy
import json
import random
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_tuner.evaluation import bfcl, bfcl_environment
from llm_tuner.evaluation.bfcl_environment import Bundle, Environment
from llm_tuner.evaluation.bfcl_multi_turn import CATEGORIES, Entry, entry, judge, load
from llm_tuner.types import Attempt, Message, ToolCall, Verdict

HERE = Path(__file__).parent
FIXTURE = Path(__file__).with_suffix(".json")
TOY = HERE / "toy_environment.py"

Call = tuple[str, dict[str, Any]]
Made = list[list[list[Call]]]

# One process a question: the official objects share module-level values, and keep them from one entry to the next.
OFFICIAL = """
import json, os, sys
from pathlib import Path
import bfcl_eval
from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker
import mpmath
toy = sys.argv[1]
sys.path.append(toy)
multi_turn_utils.CLASS_FILE_PATH_MAPPING.update({"Harbour": "toy_environment", "Sums": "toy_environment"})
multi_turn_utils.STATELESS_CLASSES.append("Sums")
data = Path(bfcl_eval.__file__).parent / "data"
rows, truths = {}, {}
for path in data.glob("BFCL_v4_multi_turn_*.json"):
    for line in path.read_text().splitlines():
        rows[json.loads(line)["id"]] = line
    for line in (data / "possible_answer" / path.name).read_text().splitlines():
        truths[json.loads(line)["id"]] = line
for line in sys.stdin:
    q = json.loads(line)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        sys.stdout = open(os.devnull, "w")
        try:
            row = q.get("row") or json.loads(rows[q["id"]])
            truth = q.get("truth") or json.loads(truths[q["id"]])["ground_truth"]
            got = multi_turn_checker(q["made"], truth, row, q["id"].rsplit("_", 1)[0], "m")
            got = [got["valid"], got.get("error_type", "")]
        except Exception as error:
            got = f"{type(error).__name__}: {error}"
        os.write(write, json.dumps(got).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        print(answer.read(), flush=True)
    os.waitpid(child, 0)
"""

REASONS = {
    "": {"ok"},
    "multi_turn:empty_turn_model_response": {"no_call"},
    "multi_turn:instance_state_mismatch": {"wrong_state"},
    "multi_turn:execution_response_mismatch": {"missing_result"},
}
"""What our reason must be for each official error type."""

CHANGES_STATE = {
    "GorillaFileSystem": ("mkdir", {"dir_name": "surprise"}),
    "MessageAPI": ("add_contact", {"user_name": "Surprise"}),
    "TwitterAPI": ("comment", {"tweet_id": 0, "comment_content": "surprise"}),
    "TicketAPI": ("ticket_login", {"username": "surprise", "password": "x"}),
    "TradingBot": ("add_to_watchlist", {"stock": "SURPRISE"}),
    "TravelAPI": ("set_budget_limit", {"access_token": "x", "budget_limit": 1.0}),
    "VehicleControlAPI": ("setHeadlights", {"mode": "on"}),
    "MathAPI": ("logarithm", {"value": 10.0, "base": 2, "precision": 5}),
    "Harbour": ("note", {"text": "surprise"}),
    "Sums": ("add", {"a": 1, "b": 2}),
}


# ----------------------------------------------------------------------------------------------------- the ground truth


def gold(item: Entry) -> Made:
    """The ground truth as a model would have called it: all calls of a turn in one answer, arguments by name."""
    tools = {tool.name: tool for tool in (*item.tools, *(t for later in item.later.values() for t in later))}
    return [[[_named(text, tools) for text in turn]] if turn else [] for turn in item.truth]


def _named(text: str, tools: Mapping[str, Any]) -> Call:
    node = ast.parse(text, mode="eval").body
    assert isinstance(node, ast.Call), text
    assert isinstance(node.func, ast.Name), text
    named = {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg}
    if node.args:
        names = list(tools[node.func.id].parameters["properties"])
        named |= {name: ast.literal_eval(value) for name, value in zip(names, node.args, strict=False)}
    return node.func.id, json.loads(json.dumps(named))


def one_by_one(made: Made) -> Made:
    return [[[call] for answer in turn for call in answer] for turn in made]


# --------------------------------------------------------------------------------------------------------------- damage


def damaged(entry: Entry) -> Iterator[tuple[str, Made]]:
    """Every damage to the ground truth that the rules know, each with its name."""
    right = one_by_one(gold(entry))
    for t, turn in enumerate(right):
        yield f"silent turn {t}", [*right[:t], [], *right[t + 1 :]]
        yield f"reversed turn {t}", [*right[:t], turn[::-1], *right[t + 1 :]]
        for name, call in _extra_calls(entry):
            yield f"{name} first in turn {t}", [*right[:t], [[call], *turn], *right[t + 1 :]]
            yield f"{name} last in turn {t}", [*right[:t], [*turn, [call]], *right[t + 1 :]]
        for c, [call] in enumerate(turn):
            without = [*turn[:c], *turn[c + 1 :]]
            yield f"no call {t}.{c}", [*right[:t], without, *right[t + 1 :]]
            yield f"twice call {t}.{c}", [*right[:t], [*turn[:c], [call, call], *turn[c + 1 :]], *right[t + 1 :]]
            if t:
                yield (
                    f"early call {t}.{c}",
                    [*right[: t - 1], [*right[t - 1], [call]], without, *right[t + 1 :]],
                )
                yield f"also early call {t}.{c}", [*right[: t - 1], [*right[t - 1], [call]], turn, *right[t + 1 :]]
            if t + 1 < len(right):
                yield f"late call {t}.{c}", [*right[:t], without, [[call], *right[t + 1]], *right[t + 2 :]]
            for name, changed in _changed(call):
                yield f"{name} call {t}.{c}", [*right[:t], [*turn[:c], [changed], *turn[c + 1 :]], *right[t + 1 :]]


def _extra_calls(entry: Entry) -> Iterator[tuple[str, Call]]:
    for name in entry.classes:
        yield f"state of {name}", CHANGES_STATE[name]
    yield "unknown", ("surprise", {"x": 1})
    yield "private", ("_load_scenario", {"scenario": {}})
    yield "forbidden", ("kill", {})


def _changed(call: Call) -> Iterator[tuple[str, Call]]:
    name, arguments = call
    for key, value in arguments.items():
        rest = {k: v for k, v in arguments.items() if k != key}
        yield f"without {key}", (name, rest)
        yield f"renamed {key}", (name, {**rest, key + "_x": value})
        for number, other in enumerate(_values(value)):
            yield f"{key} changed {number}", (name, {**arguments, key: other})
    yield "surplus", (name, {**arguments, "surprise": 1})


def _values(value: Any) -> Iterator[Any]:
    yield from (None, [value], {"x": value}, json.dumps(value))
    if isinstance(value, bool):
        yield from (not value, int(value))
    elif isinstance(value, int | float):
        yield from (value + 1, -value, float(value), str(value))
    elif isinstance(value, str):
        yield from (value + "x", value.upper(), f" {value}", "please find (it) with ls(1)", "quoted ' \" \\ \n ü 漢")
    elif isinstance(value, list):
        yield from (value[::-1], value[1:], [*value, *value[:1]])


# ------------------------------------------------------------------------------------------------------------- verdicts


def official(python: str, asked: Sequence[tuple[Entry, Made]]) -> list[list[Any] | str]:
    """[valid, error type] of each; a string where the checker raised."""
    lines = []
    for item, made in asked:
        question: dict[str, Any] = {"id": item.id, "made": [[_texts(a) for a in turn if a] for turn in made]}
        if item.id in TOYS:
            question |= {"row": TOYS[item.id], "truth": TOYS[item.id]["truth"]}
        lines.append(json.dumps(question) + "\n")
    run = subprocess.run([python, "-c", OFFICIAL, str(HERE)], input="".join(lines), capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr)
    return [json.loads(line) for line in run.stdout.splitlines()]


def _texts(answer: list[Call]) -> list[str]:
    """As `convert_to_function_call` writes calls."""
    return [f"{name}({','.join(f'{key}={value!r}' for key, value in args.items())})" for name, args in answer]


def ours(entry: Entry, made: Made, environment: Environment) -> Verdict:
    return judge(entry, attempt(entry, made), environment).verdict


def attempt(entry: Entry, made: Made) -> Attempt:
    """The record of a model that made these calls."""
    messages: list[Message] = []
    for said, turn in zip(entry.turns, made, strict=True):
        messages += said
        for answer in turn:
            calls = tuple(ToolCall(name=name, arguments=arguments) for name, arguments in answer)
            messages.append(Message(role="assistant", tool_calls=calls))
        messages.append(Message(role="assistant", text="Done."))
    return Attempt(task_id=entry.id, backend="scripted", messages=tuple(messages))


def agrees(verdict: Verdict, asked: list[Any] | str) -> bool:
    """The same verdict for the same reason. Where the official checker raises nothing is right."""
    if isinstance(asked, str):
        return not verdict.ok
    return verdict.ok == asked[0] and verdict.reason in REASONS[asked[1]]


# ----------------------------------------------------------------------------------------------------------------- toys


def _toy(number: int, truth: list[list[str]], category: str = "multi_turn_base", **more: Any) -> dict[str, Any]:
    return {
        "id": f"{category}_{9000 + number}",
        "question": [[{"role": "user", "content": f"Turn {i}."}] for i in range(len(truth))],
        "initial_config": {"Harbour": {"boats": ["Gull", "Tern"]}},
        "involved_classes": ["Harbour", "Sums"],
        "truth": truth,
        **more,
    }


_ROWS = [
    _toy(0, [["arrive('Kite', berth=3)", "find(name='Kite')"], ["leave(name='Gull')", "status()"], ["read()"]]),
    _toy(1, [["add(a=1, b=2)"], [], ["leave('Gull')", "note(text='lit')"]]),
    _toy(2, [["arrive(name='Gull')"], ["leave(name='Kite')"], ["arrive(name='Auk', berth=-2)", "light('pier')"]]),
    _toy(3, [["read()"], ["add(a=[1], b=[2])", "note(text='a \\n b')"]], category="multi_turn_long_context"),
]
TOYS = {row["id"]: row for row in _ROWS}


def _document(name: str, *parameters: str) -> dict[str, Any]:
    properties = {key: {"type": "string", "description": ""} for key in parameters}
    return {"name": name, "description": name, "parameters": {"type": "dict", "properties": properties, "required": []}}


TOY_DOCUMENTS = {
    "Harbour": [
        _document("arrive", "name", "berth"),
        _document("leave", "name"),
        _document("find", "name"),
        _document("note", "text"),
        _document("read"),
        _document("light", "place"),
        _document("status"),
    ],
    "Sums": [_document("add", "a", "b"), _document("status")],
}


def toys() -> list[Entry]:
    return [entry(row, row["truth"], TOY_DOCUMENTS) for row in _ROWS]


def toy_bundle(folder: Path) -> Bundle:
    archive = folder / "toy.zip"
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr("toy_environment.py", TOY.read_text(encoding="utf-8"))
    classes = {"Harbour": "toy_environment", "Sums": "toy_environment"}
    return Bundle(archives=(archive,), classes=classes, stateless=("Sums",))


# ----------------------------------------------------------------------------------------------------------------- main


def real_bundle() -> Bundle:
    steps = bfcl_environment.fetch()
    while True:
        try:
            next(steps)
        except StopIteration as end:
            bundle: Bundle = end.value
            return bundle


def questions(entries: Sequence[Entry], each: int | None) -> Iterator[tuple[Entry, str, Made]]:
    for item in entries:
        yield item, "gold", gold(item)
        yield item, "gold one by one", one_by_one(gold(item))
        all_of_them = list(damaged(item))
        if each is not None and each < len(all_of_them):
            all_of_them = random.Random(item.id).sample(all_of_them, each)
        for name, made in all_of_them:
            yield item, name, made


def compare(python: str, asked: list[tuple[Entry, str, Made]], bundle: Bundle) -> list[list[Any]]:
    """Print the counts; return the rows [id, damage, valid, error type] to keep."""
    start = time.perf_counter()
    theirs = official(python, [(item, made) for item, _, made in asked])
    middle = time.perf_counter()
    counts: Counter[str] = Counter()
    rows = []
    with Environment(bundle) as environment:
        for (item, name, made), verdict in zip(asked, theirs, strict=True):
            mine = ours(item, copy.deepcopy(made), environment)
            counts["pairs"] += 1
            counts["agree" if agrees(mine, verdict) else "DISAGREE"] += 1
            counts[f"  official {verdict if isinstance(verdict, str) else verdict[1] or 'valid'}"[:90]] += 1
            if not agrees(mine, verdict):
                print(f"{item.id}, {name}: official {verdict}, ours {mine.reason}: {mine.detail}"[:600])
            elif not isinstance(verdict, str):
                rows.append([item.id, name, *verdict])
    took = time.perf_counter() - middle
    print(*(f"{name}: {count}" for name, count in counts.items()), sep="\n")
    print(f"seconds: official {middle - start:.0f} (one process a pair), ours {took:.0f}")
    return rows


def main(python: str, each: int | None, folder: Path) -> None:
    bundle = real_bundle()
    entries = {category: load(category, bundle.documents) for category in CATEGORIES}
    if each is not None:
        for category, found in entries.items():
            print(f"== {category}")
            compare(python, list(questions(found, each)), bundle)
        return
    toy_rows = compare(python, list(questions(toys(), None)), toy_bundle(folder))
    few = [item for found in entries.values() for item in found[::40]]
    rows = compare(python, list(questions(few, 8)), bundle)
    note = f"Official verdicts of bfcl-eval {bfcl.VERSION}, written by bfcl_multi_turn_agreement.py."
    lines = ",\n".join(json.dumps(row) for row in [*toy_rows, *rows])
    FIXTURE.write_text(f'{{"note": {json.dumps(note)},\n"verdicts": [\n{lines}\n]}}\n', encoding="utf-8")
    print(f"wrote {len(toy_rows)} and {len(rows)} verdicts to {FIXTURE.name}")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1], int(sys.argv[3]) if "--each" in sys.argv[2:3] else None, Path(temporary))
