"""What the BFCL checkers are asked: our own small cases, and systematic mutations of gold answers. No verdicts.

A question is an entry of the data set with what a model made of it, as the official function-calling handlers record
it: `[{"name": "<JSON text of the arguments>"}, ...]`.
"""

from __future__ import annotations

import copy
import json
import unicodedata
from collections.abc import Iterator
from typing import Any, NamedTuple

from llm_tuner.evaluation import bfcl
from llm_tuner.scoring import gold_attempt
from llm_tuner.types import AllowedCalls, Task


class Question(NamedTuple):
    """An entry and an output. `made` is a list of `{name: arguments}`; arguments that are text stand for themselves.
    `measured` is the verdict that an evaluation gave, where the output is one of an evaluation."""

    functions: list[Any]
    answer: list[Any]
    category: str
    made: list[dict[str, Any]]
    measured: bool | None = None

    @property
    def result(self) -> list[dict[str, str]]:
        """The output as the official handlers record it."""
        return [{name: a if isinstance(a, str) else json.dumps(a) for name, a in call.items()} for call in self.made]


# -------------------------------------------------------------------------------------------------- our own small cases


def function(name: str, required: list[str], /, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "dict", "properties": properties, "required": required}
    return {"name": name, "description": "Made up for this test.", "parameters": parameters}


def typed(**kinds: str) -> dict[str, Any]:
    """Properties from `name="ArrayList of String"`."""
    out: dict[str, Any] = {}
    for name, kind in kinds.items():
        outer, _, inner = kind.partition(" of ")
        out[name] = {"type": outer, "description": f"The {name}."} | ({"items": {"type": inner}} if inner else {})
    return out


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
JAVA = function(
    "Harbour.book",
    ["name"],
    **typed(
        name="String",
        berth="integer",
        tonnage="long",
        length="float",
        draught="double",
        lit="boolean",
        mark="char",
        level="byte",
        crew="ArrayList of String",
        tides="ArrayList of double",
        buoys="Array of integer",
        signs="Array of String",
        cargo="HashMap",
        remark="any",
    ),
)
SCRIPT = function(
    "harbour.book",
    ["name"],
    **typed(
        name="String",
        berth="integer",
        length="float",
        tonnage="Bigint",
        lit="Boolean",
        crew="array of String",
        tides="array of float",
        grid="array of array",
        cargo="dict",
        remark="any",
    ),
)

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
IN_JAVA = [
    {"name": ["Sea Gull"], "berth": [3], "tonnage": [40, ""], "length": [7.5, ""], "draught": [1.25], "lit": [True]},
    {"name": ["x"], "mark": ["'b'"], "level": [-7], "crew": [["Ann", "Bo"]], "tides": [[1.5, 2.0]]},
    {"name": ["x"], "buoys": [[1, 2, 3]], "signs": [['"N"', '"S"'], ["N", "S"]], "remark": ["new Object()", ""]},
    {"name": ["x"], "cargo": [{"what": ["fish"], "kg": [2]}], "crew": [[], ""]},
    {"name": ["boat.name"], "berth": ["berthNumber"], "crew": ["crewList"], "cargo": ["cargoMap"]},
]
IN_SCRIPT = [
    {"name": ["Sea Gull"], "berth": [3], "length": [7.5], "tonnage": [40, ""], "lit": [False]},
    {"name": ["x"], "crew": [["Ann", "Bo"]], "tides": [[1.5, 2.0]], "grid": [[[1, 2], [3]]]},
    {"name": ["x"], "cargo": [{"what": ["fish"], "kg": [2], "for": [["Ann", "Bo"]], "iced": [True, ""]}]},
    {"name": ["boatName"], "crew": ["crewList"], "cargo": ["cargoObject"], "remark": ["() => 1", ""]},
]


def questions() -> Iterator[Question]:
    """Our own small cases, with their systematic mutations."""
    for answer in SIMPLE:
        yield from mutations([BOAT], [{"harbour.book": answer}], "simple_python")
    for answer in IN_JAVA:
        yield from mutations([JAVA], [{"Harbour.book": answer}], "simple_java")
    for answer in IN_SCRIPT:
        yield from mutations([SCRIPT], [{"harbour.book": answer}], "simple_javascript")
    light = {"lighthouse": {"height": [30], "colour": ["red", ""]}}
    other = {"lighthouse": {"height": [12, 13], "colour": ["green"]}}
    boat = {"harbour.book": {"name": ["Sea Gull"], "length": [7.5, ""]}}
    yield from mutations([LIGHT, BOAT], [boat], "multiple")
    yield from mutations([LIGHT], [light, other], "parallel")
    yield from mutations([LIGHT, BOAT], [boat, light, other], "parallel_multiple")
    # First fit: what the first wanted call takes may be what the second one needs.
    wide = {"lighthouse": {"height": [1, 2], "colour": ["red", ""]}}
    narrow = {"lighthouse": {"height": [1], "colour": ["red", ""]}}
    for pair in ([wide, narrow], [narrow, wide], [wide, narrow, wide]):
        yield from mutations([LIGHT], pair, "live_parallel")
    for category in ("irrelevance", "live_irrelevance", "live_relevance"):
        yield from relevance([LIGHT, BOAT], category)


# ------------------------------------------------------------------------------------------------------------ mutations


def mutations(functions: list[Any], answer: list[Any], category: str) -> Iterator[Question]:
    """The gold answer, and what comes of changing one thing about it."""
    task = task_of(functions, answer, category)
    gold = [(c.name, c.arguments) for c in gold_attempt(task).messages[0].tool_calls]
    tools = {tool.name: tool for tool in task.tools}
    for made in [gold, *_calls_changed(gold, functions), *_text_changed(gold)]:
        yield _question(functions, answer, category, made)
    assert isinstance(task.expect, AllowedCalls)
    for i, ((name, arguments), wanted) in enumerate(zip(gold, task.expect.calls, strict=True)):
        properties = tools[name].parameters["properties"] if name in tools else {}
        for changed in _arguments_changed(arguments, wanted.arguments, properties):
            made = [*gold[:i], (name, changed), *gold[i + 1 :]]
            yield _question(functions, answer, category, made)
        for key, types in wanted.source_types.items():
            for text in _source_texts(arguments.get(key, "x"), types):
                yield _question(
                    functions, answer, category, [*gold[:i], (name, {**arguments, key: text}), *gold[i + 1 :]]
                )


def relevance(functions: list[Any], category: str) -> Iterator[Question]:
    """Calls where none is wanted, or any."""
    names = [f["name"].replace(".", "_") for f in functions[:3]] or ["made_up"]
    calls: list[Any] = [(name, arguments) for name in [*names, "no such tool", ""] for arguments in ({}, {"x": 1})]
    yield _question(functions, [], category, [])
    for call in calls:
        yield _question(functions, [], category, [call])
    yield _question(functions, [], category, calls)
    for text in ("", "{", "[]", "1", "null", '"x"', '{"x": NaN}', '{"x": 1} ', "{'x': 1}", '{"x": 1}{', '[{"x": 1}]'):
        yield _question(functions, [], category, [(names[0], text)])
        yield _question(functions, [], category, [(names[0], {}), (names[0], text)])


def task_of(functions: list[Any], answer: list[Any], category: str) -> Task:
    row = {"id": f"{category}_0", "question": [[{"role": "user", "content": "?"}]], "function": functions}
    return bfcl.task(row, answer, category)


def _question(functions: list[Any], answer: list[Any], category: str, made: list[Any]) -> Question:
    return Question(functions, answer, category, [{name: copy.deepcopy(arguments)} for name, arguments in made])


def _calls_changed(gold: list[Any], functions: list[Any]) -> Iterator[list[Any]]:
    yield []
    yield gold[::-1]
    yield gold[1:] + gold[:1]
    yield gold[:-1]
    yield gold[1:]
    yield [*gold, gold[0]]
    yield [gold[0]] * len(gold)
    name, arguments = gold[0]
    others = [f["name"].replace(".", "_") for f in functions]
    for wrong in (name + "x", name.upper(), name.replace("_", "."), "", *others):
        yield [(wrong, arguments), *gold[1:]]
    yield [("no such tool", {}), *gold]
    for i in range(1, len(gold)):
        yield [gold[i], *gold[1:i], gold[0], *gold[i + 1 :]]
        yield [*gold[:i], gold[0], *gold[i + 1 :]]


def _text_changed(gold: list[Any]) -> Iterator[list[Any]]:
    name, arguments = gold[0]
    text = json.dumps(arguments)
    for wrong in (
        "",
        text[:-1],
        text + " ",
        f"[{text}]",
        json.dumps(text),
        text.replace('"', "'"),
        text + text,
        "null",
    ):
        yield [(name, wrong), *gold[1:]]


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
    yield from ([value], [[value]], {"value": value}, None, "", [], {}, True, 0, 1, 1.5, "x")
    yield json.dumps(value) if isinstance(value, list | dict) else str(value)
    if isinstance(value, bool):
        yield from (not value, int(value), str(value).lower())
    elif isinstance(value, int | float):
        yield from (value + 1, -value, float(value), int(value), value + 0.5, value * 10**20, value / 3)
        yield from (f"{value:e}", f"{value:,}", f" {value}", float("inf"), float("nan"), -0.0)
    elif isinstance(value, str):
        yield from (value.upper(), f" {value}. ", value.replace(" ", "-"), value + "x", value[::-1], value[:-1])
        yield from (value.replace("'", '"'), value.replace(",", ";"), value.swapcase(), value + "\n", f'"{value}"')
        yield from (unicodedata.normalize(form, value + "é") for form in ("NFC", "NFD", "NFKC"))
        yield from (value.replace(" ", "\u00a0"), value.replace("-", "\u2013"), value + "\U0001f30a", "İ" + value)
        yield "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in value)
    elif isinstance(value, list):
        yield from (value[::-1], value[1:], [*value, *value[:1]], [*value, "x"], [*value, None], [*map(str, value)])
        for i, item in enumerate(value[:3]):
            for changed in _values_changed(item):
                yield [*value[:i], changed, *value[i + 1 :]]
    elif isinstance(value, dict):
        yield {**value, "surprise": 1}
        for key in value:
            yield {k: v for k, v in value.items() if k != key}
            for changed in _values_changed(value[key]):
                yield {**value, key: changed}


def _source_texts(text: Any, types: tuple[str, ...]) -> Iterator[str]:
    """Forms of Java and JavaScript values, of this type and of others."""
    yield from (f'"{text}"', f"'{text}'", f"{text}\n", f" {text} ", f"{text};", f"({text})", f"{text}L", f"{text}f")
    yield from (f"{text}n", f"{text}d", f"{text}.0", f"{text}e2", f"-{text}", f"+{text}", str(text).rstrip("LfFn"))
    yield from ("true", "True", "TRUE", "false", "null", "undefined", "0", "-1", "1.5", "1.5f", "2L", "3n", "1e5", "٣")
    yield from ("'a'", "a", '"', "''", "1_000", "0x10", "NaN", "Infinity", "[", "]", "{", "}", "()")
    inner = str(text).partition("{")[2].rpartition("}")[0] or str(text).partition("[")[2].rpartition("]")[0]
    for items in (
        inner,
        "",
        "1",
        "1, 2",
        "1,2,",
        '"a", "b"',
        "'a', 'b'",
        "1L, 2",
        "1.5, 2.0",
        "a, b",
        "true, 1",
        " 1 , 2 ",
    ):
        yield from (f"new int[]{{{items}}}", f"new String[] {{ {items} }}", f"new Object[2]{{{items}}}", f"{{{items}}}")
        yield from (
            f"[{items}]",
            f" [ {items} ] ",
            f"[[{items}]]",
            f"[[{items}], [{items}]]",
            f"[\n[{items}],\n[{items}]\n]",
        )
        yield from (f"new Array({items})", f"new Array([{items}], [{items}])", f"new  Array(\n{items})", f"[[{items}]")
        yield from (f"Arrays.asList({items})", f"new ArrayList<>(Arrays.asList({items}))", f"List.of({items})")
        yield from (f"new ArrayList<String>(Arrays.asList({items}));", f"new ArrayList<List<String>>({items})")
        added = " ".join(f"add({item.strip()});" for item in items.split(","))
        yield from (f"new ArrayList<>() {{{{ {added} }}}}", f"new ArrayList<Integer>(){{{{\n{added}\n}}}}")
        yield f"new ArrayList<>() {{{{}}}} {added} }}}}"
    yield from ("new ArrayList<>()", "new ArrayList<String>()", "new ArrayList()", "new HashMap<>()", "new HashMap()")
    for pairs in (
        "",
        '"what", "fish"',
        '"what", "fish"|"kg", 2',
        '"kg", 2L|"what", "fish"',
        '"kg", 2.0f',
        '"a", "}"',
        "a, 1",
    ):
        puts = " ".join(f"put({pair});" for pair in pairs.split("|"))
        yield from (f"new HashMap<>() {{{{ {puts} }}}}", f"new HashMap<String, Object>(){{{{\n{puts}\n}}}}")
        yield from (f"new HashMap<>() {{ {puts} }}", f"new HashMap<>() {{{{ {puts} ", f"Map.of({pairs})")
        colons = ", ".join(pair.replace(", ", ": ", 1) for pair in pairs.split("|"))
        yield from (
            f"{{{colons}}}",
            f"{{ {colons}, }}",
            f"{{\n{colons}\n}}",
            f"{colons}",
            f"{{{colons}",
            f"[{{{colons}}}]",
        )
        yield from (f"{{'what': ['fish', 1], {colons}}}", f"{{what: fish, kg: 2, for: [Ann, Bo], {colons}}}")
