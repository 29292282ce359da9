"""Values written as Java and JavaScript source text."""

from __future__ import annotations

import time
from typing import Any

import pytest

from llm_tuner.scoring.source_text import kinds_of, read, write

JAVA = [
    ("integer", "-12", -12),
    ("integer", "12\n", 12),
    ("integer", "1.5", "1.5"),
    ("integer", "0x10", "0x10"),
    ("byte", "7", 7),
    ("long", "12L", 12),
    ("long", "12", "12"),
    ("float", "1.5f", 1.5),
    ("float", "3e-3F", 0.003),
    ("float", "1.5", "1.5"),
    ("double", "1.5", 1.5),
    ("double", "2", 2.0),
    ("double", ".5", ".5"),
    ("boolean", "true", True),
    ("boolean", "True", "True"),
    ("char", "'a'", "'a'"),
    ("String", '"a"', '"a"'),
    ("any", "new Object()", "new Object()"),
    ("Array of integer", "new int[]{1, 2, x}", [1, 2, "x"]),
    ("Array of integer", "new int[] { }", []),
    ("Array of String", 'new String[]{"a"}', ['"a"']),
    ("Array of long", "new long[]{1L,2}", [1, "2"]),
    ("Array of integer", "{1, 2}", "{1, 2}"),
    ("ArrayList of String", 'new ArrayList<>(Arrays.asList("a", "b"))', ["a", "b"]),
    ("ArrayList of integer", "new ArrayList<Integer>(Arrays.asList(1, 2))", [1, 2]),
    ("ArrayList of double", "new ArrayList<Double>() {{ add(1.0); add(2.5); }}", [1.0, 2.5]),
    ("ArrayList of char", "new ArrayList<>() {{add('a');}}", ["a"]),
    ("ArrayList of integer", "new ArrayList<>() {{ }}", []),
    ("ArrayList of integer", "new ArrayList<>() {{}} add(1); }}", [1]),
    ("ArrayList of integer", "new ArrayList<>()", []),
    ("ArrayList of integer", "Arrays.asList(1)", "Arrays.asList(1)"),
    (
        "HashMap",
        'new HashMap<String, Object>() {{ put("a", 1); put("b", "x"); put("c", true); }}',
        {"a": 1, "b": "x", "c": True},
    ),
    ("HashMap", 'new HashMap<>() {{ put("a", 2L); put("b", 1.5f); put("c", y); }}', {"a": 2, "b": 1.5, "c": "y"}),
    ("HashMap", "new HashMap<>() {{ }}", {}),
    ("HashMap", "new HashMap<>()", {}),
    ("HashMap", "new HashMap()", "new HashMap()"),
]
JAVASCRIPT = [
    ("String", "'a'", "a"),
    ("String", '"a"', "a"),
    ("String", "a", "a"),
    ("integer", "12", 12),
    ("integer", "12n", "12n"),
    ("float", "1.5", 1.5),
    ("float", "1e5", "1e5"),
    ("Bigint", "12n", 12),
    ("Boolean", "false", False),
    ("any", "() => 1", "() => 1"),
    ("array of integer", " [1, 2] ", [1, 2]),
    ("array of String", "['a', \"b\", c]", ["a", "b", "c"]),
    ("array of integer", "new Array(4, 5)", [4, 5]),
    ("array of integer", "[]", []),
    ("array of integer", "nothing", "nothing"),
    ("array of array", "[[1, 2], ['a']]", [[1, 2], ["a"]]),
    ("array of array", "[ [ 1 ],\n[2] ] rest", [[1], [2]]),
    ("array of array", "new Array([1], [2, 3])", [[1], [2, 3]]),
    ("array of array", "[[1], [2]", ["[1"]),
    ("dict", "{}", {}),
    ("dict", "{a: 1, 'b': 'x', \"c\": true}", {"a": 1, "b": "x", "c": True}),
    ("dict", "{a: [1, 'x'], b: y}", {"a": [1, "x"], "b": "y"}),
    ("dict", "a: 1", "a: 1"),
]
ALL = [("java", *case) for case in JAVA] + [("javascript", *case) for case in JAVASCRIPT]


def written(language: str, kind: str) -> tuple[str, ...]:
    outer, _, items = kind.partition(" of ")
    return (language, outer, items) if items else (language, outer)


@pytest.mark.parametrize(("language", "kind", "text", "value"), ALL)
def test_read(language: str, kind: str, text: str, value: Any) -> None:
    got = read(text, written(language, kind))
    assert (got, type(got)) == (value, type(value))
    kinds = kinds_of(written(language, kind))
    assert kinds is not None
    if type(value) is kinds[0] and text != "[[1], [2]":
        assert read(write(value, written(language, kind)), written(language, kind)) == value


def test_kinds() -> None:
    assert kinds_of(("java", "ArrayList", "long")) == (list, int)
    assert kinds_of(("java", "HashMap")) == (dict, None)
    assert kinds_of(("javascript", "array", "Bigint")) == (list, int)
    for unread in (("java", "Set"), ("java", "Array", "Queue"), ("cobol", "integer"), ("java",)):
        assert kinds_of(unread) is None


@pytest.mark.parametrize(
    "text",
    [
        "[[1]" + ",\n [1]" * 3000 + "\n,\n x",
        "[[" + "],[" * 4000,
        "new HashMap<>() {" + " " * 15000,
        "new ArrayList<>() {{" + " " * 15000,
        "new HashMap<" * 1200,
        "[" * 19000,
        "{" + "a" * 3000 + "}",
        "9" * 15000,
        "new ArrayList<>(Arrays.asList(" * 500,
    ],
)
def test_no_text_keeps_the_judge_for_long(text: str) -> None:
    start = time.perf_counter()
    for language, kind in (("java", "HashMap"), ("java", "ArrayList of integer"), ("java", "Array of integer")):
        read(text, written(language, kind))
    for kind in ("array of array", "array of integer", "dict", "integer"):
        read(text, written("javascript", kind))
    assert time.perf_counter() - start < 3
