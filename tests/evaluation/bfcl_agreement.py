"""Ask the official BFCL checker and our own the same questions. Not a test: it writes what the test reads.

The official package pins about 150 others, so it lives in a virtual environment of its own, made once:

    python -m venv VENV
    VENV/bin/pip install --no-deps bfcl-eval==2026.3.23 tree_sitter==0.21.3 tree-sitter-java==0.21.0 \\
        tree-sitter-javascript==0.21.4 numpy

Then

    python tests/evaluation/bfcl_agreement.py VENV/bin/python          writes bfcl_agreement.json (our own small cases)
    python tests/evaluation/bfcl_agreement.py VENV/bin/python --all    compares on the whole data set, prints counts
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_tuner.evaluation import bfcl
from llm_tuner.scoring import gold_attempt, score
from llm_tuner.types import AllowedCalls, Attempt, Message, ToolCall

FIXTURE = Path(__file__).with_suffix(".json")

# The checker imports every vendor's SDK through one table of models; it reads one flag of it.
OFFICIAL = """
import json, sys, types
stub = types.ModuleType("bfcl_eval.constants.model_config")
class Flags: underscore_to_dot = True
class Models(dict):
    def __missing__(self, name): return Flags
stub.MODEL_CONFIG_MAPPING = Models()
sys.modules["bfcl_eval.constants.model_config"] = stub
from bfcl_eval.constants.enums import Language
from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker
for line in sys.stdin:
    q = json.loads(line)
    try:
        got = ast_checker(q["functions"], q["made"], q["answer"], Language.PYTHON, q["category"], "m")["valid"]
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
    print(json.dumps(got))
"""

Question = dict[str, Any]


def function(name: str, required: list[str], /, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "dict", "properties": properties, "required": required}
    return {"name": name, "description": "Made up for this test.", "parameters": parameters}


BOAT = function(
    "harbour.book",
    ["name"],
    name={"type": "string"},
    berth={"type": "integer", "default": 1},
    length={"type": "float"},
    shore_power={"type": "boolean", "default": False},
    crew={"type": "array", "items": {"type": "string"}},
    tides={"type": "array", "items": {"type": "float"}},
    position={"type": "tuple", "items": {"type": "float"}},
    owner={"type": "dict", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}},
    cargo={"type": "array", "items": {"type": "dict", "properties": {"what": {"type": "string"}}}},
    grid={"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    remark={"type": "any"},
)
LIGHT = function("lighthouse", [], height={"type": "integer"}, colour={"type": "string"})

SIMPLE = [
    {"name": ["Sea Gull", "the gull"], "berth": [3, ""], "length": [7.5]},
    {"name": ["O'Hara-2"], "shore_power": [True], "length": [7]},
    {"name": ["x"], "berth": ["", "berth_number"], "length": ["", "boat.length"]},
    {"name": ["x"], "crew": [["Ann Lee", "Bo"], ["Bo", "Ann Lee"]]},
    {"name": ["x"], "crew": ["", ["Ann"]]},
    {"name": ["x"], "crew": ["crew_list"]},
    {"name": ["x"], "tides": [[1.5, 2.0]], "position": [[35.0, 139.5]]},
    {"name": ["x"], "tides": [[1, 2]]},
    {"name": ["x"], "owner": [{"name": ["Kim", "Kim B."], "age": [40, ""]}]},
    {"name": ["x"], "owner": [{"name": ["Kim"]}, ""]},
    {"name": ["x"], "owner": ["", {}]},
    {"name": ["x"], "cargo": [[{"what": ["fish"], "kg": [2]}, {"what": ["ice", ""]}]]},
    {"name": ["x"], "cargo": [[], ""]},
    {"name": ["x"], "grid": [[[1, 2], [3]]]},
    {"name": ["x"], "remark": ["fine", ""]},
    {"name": ["x"], "remark": [["fine"]]},
    {"name": ["x"], "remark": [None, ""]},
    {"name": ["x"], "berth": [""]},
    {"name": ["x"], "berth": [2], "gone": [1, ""]},
    {"name": [""]},
    {},
]


def questions() -> Iterator[Question]:
    """Our own small cases, with their systematic mutations."""
    for answer in SIMPLE:
        yield from mutations([BOAT], [{"harbour.book": answer}], "simple_python")
    light = {"lighthouse": {"height": [30], "colour": ["red", ""]}}
    other = {"lighthouse": {"height": [12, 13], "colour": ["green"]}}
    boat = {"harbour.book": {"name": ["Sea Gull"], "length": [7.5, ""]}}
    yield from mutations([LIGHT, BOAT], [boat], "multiple")
    yield from mutations([LIGHT], [light, other], "parallel")
    yield from mutations([LIGHT, BOAT], [boat, light, other], "parallel_multiple")


# ------------------------------------------------------------------------------------------------------------ mutations


def mutations(functions: list[Any], answer: list[Any], category: str) -> Iterator[Question]:
    """The gold answer, and what comes of changing one thing about it."""
    row = {"id": f"{category}_0", "question": [[{"role": "user", "content": "?"}]], "function": functions}
    task = bfcl.task(row, answer, category)
    gold = [(c.name, c.arguments) for c in gold_attempt(task).messages[0].tool_calls]
    tools = {tool.name: tool for tool in task.tools}
    for made in [gold, *_calls_changed(gold, functions)]:
        yield _question(functions, answer, category, made)
    assert isinstance(task.expect, AllowedCalls)
    for i, ((name, arguments), wanted) in enumerate(zip(gold, task.expect.calls, strict=True)):
        properties = tools[name].parameters["properties"] if name in tools else {}
        for changed in _arguments_changed(arguments, wanted.arguments, properties):
            made = [*gold[:i], (name, changed), *gold[i + 1 :]]
            yield _question(functions, answer, category, made)


def _question(functions: list[Any], answer: list[Any], category: str, made: list[Any]) -> Question:
    output = [{name: copy.deepcopy(arguments)} for name, arguments in made]
    return {"functions": functions, "answer": answer, "category": category, "made": output}


def _calls_changed(gold: list[Any], functions: list[Any]) -> Iterator[list[Any]]:
    yield []
    yield gold[::-1]
    yield gold[1:] + gold[:1]
    yield gold[:-1]
    yield gold[1:]
    yield [*gold, gold[0]]
    yield [gold[0]] * len(gold)
    name, arguments = gold[0]
    for wrong in (name + "x", name.upper(), name.replace("_", "."), *(f["name"].replace(".", "_") for f in functions)):
        yield [(wrong, arguments), *gold[1:]]


def _arguments_changed(
    gold: dict[str, Any], wanted: dict[str, list[Any]], properties: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    for name in gold:
        yield {key: value for key, value in gold.items() if key != name}
        for value in _values_changed(gold[name]):
            yield {**gold, name: value}
        yield {**{k: v for k, v in gold.items() if k != name}, name + "_x": gold[name]}
    for name, options in wanted.items():
        for option in options:
            yield {**gold, name: option}
    for name, words in properties.items():
        if name not in gold:
            for value in (words.get("default"), None, "", 0, [], {}, "x", 1, 1.5, True, ["x"], {"x": 1}):
                yield {**gold, name: value}
    yield {**gold, "surprise": 1}
    yield {}
    yield dict(reversed(gold.items()))


def _values_changed(value: Any) -> Iterator[Any]:
    yield from ([value], {"value": value}, None, "", [], {}, True, 0, 1, 1.5, "x")
    yield json.dumps(value) if isinstance(value, list | dict) else str(value)
    if isinstance(value, bool):
        yield from (not value, int(value), str(value).lower())
    elif isinstance(value, int | float):
        yield from (value + 1, -value, float(value), int(value), value + 0.5)
    elif isinstance(value, str):
        yield from (value.upper(), f" {value}. ", value.replace(" ", "-"), value + "x", value[::-1], value[:-1])
        yield from (value.replace("'", '"'), value.replace(",", ";"))
    elif isinstance(value, list):
        yield from (
            value[::-1],
            value[1:],
            [*value, *value[:1]],
            [*value, "x"],
            [*value, None],
            tuple_of_strings(value),
        )
        for i, item in enumerate(value[:3]):
            for changed in _values_changed(item):
                yield [*value[:i], changed, *value[i + 1 :]]
    elif isinstance(value, dict):
        yield {**value, "surprise": 1}
        for key in value:
            yield {k: v for k, v in value.items() if k != key}
            for changed in _values_changed(value[key]):
                yield {**value, key: changed}


def tuple_of_strings(value: list[Any]) -> list[str]:
    return [str(item) for item in value]


# ------------------------------------------------------------------------------------------------------------- verdicts


def official(python: str, asked: list[Question]) -> list[bool | str]:
    """The official verdicts; a string where the checker raised."""
    text = "".join(json.dumps(question) + "\n" for question in asked)
    run = subprocess.run([python, "-c", OFFICIAL], input=text, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in run.stdout.splitlines()]


def ours(question: Question) -> bool:
    row = {"id": "x_0", "question": [[{"role": "user", "content": "?"}]], "function": question["functions"]}
    task = bfcl.task(row, question["answer"], question["category"])
    calls = tuple(ToolCall(name=name, arguments=args) for made in question["made"] for name, args in made.items())
    attempt = Attempt(task_id=task.id, backend="x", messages=(Message(role="assistant", tool_calls=calls),))
    return score(task, attempt, rules="bfcl").ok


def whole_data_set() -> Iterator[Question]:
    categories = [c for c in (*bfcl.CATEGORIES, *bfcl.LIVE_CATEGORIES) if "irrelevance" not in c]
    for category, row, answer in bfcl.rows(categories):
        yield from mutations(row["function"], answer, category)


def main(python: str, everything: bool) -> None:
    asked = list(whole_data_set() if everything else questions())
    unique = list({json.dumps(question, sort_keys=True): question for question in asked}.values())
    verdicts = official(python, unique)
    counts: Counter[str] = Counter()
    for question, verdict in zip(unique, verdicts, strict=True):
        mine = ours(question)
        outcome = "official raised" if isinstance(verdict, str) else "agree" if mine == verdict else "DISAGREE"
        counts[outcome] += 1
        counts[f"  official {'valid' if verdict is True else 'invalid'}"] += verdict in (True, False)
        counts["  official raised, ours ok"] += isinstance(verdict, str) and mine
        if outcome == "DISAGREE" and counts[outcome] <= 40:
            print(
                f"official {verdict}, ours {mine}: {json.dumps(question['answer'])[:300]} <- {question['made']}"[:700]
            )
    print(*(f"{name}: {count}" for name, count in counts.items()), f"pairs: {len(unique)}", sep="\n")
    if not everything:
        write(unique, verdicts)


def write(asked: list[Question], verdicts: list[bool | str]) -> None:
    """One case a line; the function documents once. All valid ones, and every twelfth of the others."""
    catalogues: list[Any] = []
    lines = []
    for number, (question, verdict) in enumerate(zip(asked, verdicts, strict=True)):
        if isinstance(verdict, str) or (verdict is False and number % 12):
            continue
        if question["functions"] not in catalogues:
            catalogues.append(question["functions"])
        place = catalogues.index(question["functions"])
        case = [place, question["category"], question["answer"], question["made"], verdict]
        lines.append(json.dumps(case, ensure_ascii=False))
    note = f"Official verdicts of bfcl-eval {bfcl.VERSION} on our own cases, written by bfcl_agreement.py."
    head = f'{{"note": {json.dumps(note)},\n"functions": {json.dumps(catalogues)},\n"cases": [\n'
    FIXTURE.write_text(head + ",\n".join(lines) + "\n]}\n", encoding="utf-8")
    print(f"wrote {len(lines)} cases to {FIXTURE.name}")


if __name__ == "__main__":
    main(sys.argv[1], "--all" in sys.argv[2:])
