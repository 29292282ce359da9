"""Values written as Java or JavaScript source text: what BFCL's Java and JavaScript tasks take for every argument.

Not a parser of either language: it reads the few forms that the benchmark reads, and takes everything else as the text
that it is. Written from the behaviour of bfcl-eval 2026.3.23 (`type_convertor/java_type_converter.py` and
`js_type_converter.py`). A type is a tuple: the language, the type's name in BFCL's own words, and the name of the type
of the items where there is one. The rule it protects: no text, however odd, stops the judge or keeps it for long.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from llm_tuner.types import Json

LONGEST = 20_000
"""A text with more characters than this is not read but taken as it stands."""

_JAVA: dict[str, type] = {
    "byte": int,
    "short": int,
    "integer": int,
    "long": int,
    "float": float,
    "double": float,
    "boolean": bool,
    "char": str,
    "String": str,
    "any": str,
    "Array": list,
    "ArrayList": list,
    "HashMap": dict,
}
_JAVASCRIPT: dict[str, type] = {
    "String": str,
    "integer": int,
    "float": float,
    "Bigint": int,
    "Boolean": bool,
    "dict": dict,
    "array": list,
    "any": str,
}
_KINDS = {"java": _JAVA, "javascript": _JAVASCRIPT}
_WITH_ITEMS = ("Array", "ArrayList", "array")


@lru_cache(maxsize=256)
def kinds_of(written: tuple[str, ...]) -> tuple[type, type | None] | None:
    """What a value of this type is as a JSON value, and what its items are (for the list types).

    None for a type that is not read: BFCL names some that no checker reads (`Set`, `Queue`).
    """
    kinds = _KINDS.get(written[0], {})
    if len(written) < 2 or any(name not in kinds for name in written[1:]):
        return None
    items = kinds[written[2]] if len(written) > 2 and written[1] in _WITH_ITEMS else None
    return kinds[written[1]], items


def read(text: str, written: Sequence[str]) -> Json:
    """The value that a text stands for; the text itself where it is not written like one of this type."""
    if len(text) > LONGEST:
        return text
    language, name, *rest = written
    items = rest[0] if rest else ""
    try:
        return _java(text, name, items) if language == "java" else _javascript(text, name, items)
    except ValueError:  # an integer of more digits than Python reads
        return text


def write(value: Json, written: Sequence[str]) -> str:
    """A text that `read` takes for this value, as far as there is one. A string stands for itself: it is either the
    value of a string or the name of a variable."""
    if isinstance(value, str):
        return value
    language, name, *rest = written
    items = rest[0] if rest else "any"
    return _java_text(value, name, items) if language == "java" else _javascript_text(value, name, items)


# --------------------------------------------------------------------------------------------------------------- Java

# One trailing newline is let through everywhere: the original's `$` does.
_INTEGER = re.compile(r"(-?\d+)\n?")
_LONG = re.compile(r"(-?\d+)[lL]\n?")
_FLOAT = re.compile(r"(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)[fF]\n?")
_DOUBLE = re.compile(r"(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\n?")
_JAVA_NUMBERS: dict[str, tuple[re.Pattern[str], Callable[[str], int | float]]] = {
    "byte": (_INTEGER, int),
    "short": (_INTEGER, int),
    "integer": (_INTEGER, int),
    "long": (_LONG, int),
    "float": (_FLOAT, float),
    "double": (_DOUBLE, float),
}
_TRUTH = {"true": True, "false": False}

_LIST_OF = re.compile(r"new\s+ArrayList<\w*>\(Arrays\.asList\((.+?)\)\)")
_LIST_BLOCK = re.compile(r"new\s+ArrayList<\w*>\(\)\s*\{\{")
_LIST_EMPTY = re.compile(r"new\s+ArrayList<\w*>\(\)")
_ADDED = re.compile(r"add\((.+?)\)")
_ARRAY_OF = re.compile(r"new\s+\w+\[\]\s*\{(.*?)\}")
_MAP_EMPTY = re.compile(r"new\s+HashMap<.*?>\s*\(\)")
_MAP_BLOCK = re.compile(r"new\s+HashMap<.*?>\s*\(\)\s*\{", re.DOTALL)
_PUT = re.compile(r'put\("(.*?)",\s*(.*?)\)')


def _java(text: str, name: str, items: str = "") -> Json:
    if name in _JAVA_NUMBERS:
        pattern, number = _JAVA_NUMBERS[name]
        match = pattern.fullmatch(text)
        return number(match[1]) if match else text
    if name == "boolean":
        return _TRUTH.get(text, text)
    if name == "Array":
        return _java_array(text, items)
    if name == "ArrayList":
        return _java_list(text, items)
    return _java_map(text) if name == "HashMap" else text


def _java_array(text: str, items: str) -> Json:
    match = _ARRAY_OF.search(text)
    if match is None:
        return text
    return [_java_item(item.strip(), items) for item in match[1].split(",") if item.strip()]


def _java_list(text: str, items: str) -> Json:
    if match := _LIST_OF.search(text):
        return [_java_list_item(item.strip(), items) for item in match[1].split(",")]
    if (block := _LIST_BLOCK.search(text)) and "}}" in text[block.end() + 1 :]:
        inside = text[block.end() :].lstrip()
        end = inside.find("}}", 1)
        return [_java_list_item(item.strip(), items) for item in _ADDED.findall(inside[: max(end, 0)])]
    return [] if _LIST_EMPTY.search(text) else text


def _java_list_item(text: str, items: str) -> Json:
    return text[1:-1] if items in ("char", "String") else _java_item(text, items)


def _java_item(text: str, items: str) -> Json:
    return _java(text, items) if items else _java_guess(text)


def _java_map(text: str) -> Json:
    # The original's pattern is satisfied by any closing brace after the opening ones.
    if (block := _MAP_BLOCK.search(text)) and "}" in text[block.end() :]:
        inside = text[block.end() :].lstrip().removeprefix("{")
        return {key: _java_guess(value.strip()) for key, value in _PUT.findall(inside[: inside.find("}")])}
    return {} if _MAP_EMPTY.search(text) else text


def _java_guess(text: str) -> Json:
    """A value whose type is not told."""
    if text in _TRUTH:
        return _TRUTH[text]
    if text.startswith('"') and text.endswith('"'):
        return text[1:-1]
    if match := _LONG.fullmatch(text):
        return int(match[1])
    if match := _FLOAT.fullmatch(text):
        return float(match[1])
    return _number(text)


def _number(text: str) -> Json:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _java_text(value: Json, name: str, items: str) -> str:
    if name in ("Array", "ArrayList"):
        inside = ", ".join(_java_text_of_item(item, items, quoted=name == "ArrayList") for item in value)
        if name == "Array":
            return f"new {items}[]{{{inside}}}"
        return f"new ArrayList<>(Arrays.asList({inside}))" if value else "new ArrayList<>()"
    if isinstance(value, dict):
        puts = " ".join(f"put({json.dumps(key)}, {_java_plain(item)});" for key, item in value.items())
        return f"new HashMap<>() {{{{ {puts} }}}}"
    return _java_plain(value) + {"long": "L", "float": "f"}.get(name, "")


def _java_text_of_item(item: Json, items: str, *, quoted: bool) -> str:
    if isinstance(item, str):
        return f'"{item}"' if quoted and items in ("String", "char") else item
    return _java_text(item, items, "any")


def _java_plain(value: Json) -> str:
    return f'"{value}"' if isinstance(value, str) else json.dumps(value)


# --------------------------------------------------------------------------------------------------------- JavaScript

_JS_FLOAT = re.compile(r"(-?\d+(?:\.\d+)?)\n?")
_BIGINT = re.compile(r"(-?\d+)n\n?")
_JS_NUMBERS: dict[str, tuple[re.Pattern[str], Callable[[str], int | float]]] = {
    "integer": (_INTEGER, int),
    "float": (_JS_FLOAT, float),
    "Bigint": (_BIGINT, int),
}
_ROWS = re.compile(r"(?:\[|new\s+Array\()\s*\[")
_ROW = re.compile(r"\[(.*?)\]")
_ARRAY = re.compile(r"\[(.*?)\]|new\s+Array\((.*?)\)")
_OBJECT = re.compile(r"\{(.*?)\}")
_PAIR = re.compile(r"([^:]+):\s*(.*?)(?:,\s*(?=[^,]+:)|$)")


def _javascript(text: str, name: str, items: str = "") -> Json:
    if name in _JS_NUMBERS:
        pattern, number = _JS_NUMBERS[name]
        match = pattern.fullmatch(text)
        return number(match[1]) if match else text
    if name == "String":
        return text[1:-1] if _is_quoted(text) else text
    if name == "Boolean":
        return _TRUTH.get(text, text)
    if name == "array":
        return _js_array(text.strip(), items)
    return _js_object(text.strip()) if name == "dict" else text


def _is_quoted(text: str) -> bool:
    return text[:1] == text[-1:] and text[:1] in ("'", '"')


def _js_array(code: str, items: str) -> Json:
    if rows := _array_of_arrays(code):
        inside = [row.strip() for row in _ROW.findall(rows)]
        if inside[0].startswith("["):
            inside[0] = inside[0][1:]
        return [[_js_guess(item.strip()) for item in row.split(",")] for row in inside]
    match = _ARRAY.match(code)
    if match is None:
        return code
    inside_text = (match[1] if match[1] is not None else match[2]).strip()
    pieces = [piece.strip() for piece in inside_text.split(",")] if inside_text else []
    try:
        return [_javascript(piece, items) if items else _js_guess(piece) for piece in pieces]
    except ValueError:
        return code


def _array_of_arrays(code: str) -> str:
    """The part at the start of the text that is an array of arrays, "" where there is none.

    The original asks a pattern whose time doubles with every row of a text that does not match in the end; this finds
    the same part: a row ends at the first bracket from which the rest can still be read.
    """
    start = _ROWS.match(code)
    if start is None:
        return ""
    closing = "]" if code.startswith("[") else ")"
    ends: list[tuple[int, int]] = []  # a bracket that can end a row, and where the array then ends
    for place in range(code.rfind("]"), start.end() - 1, -1):
        if code[place] != "]":
            continue
        after = _skip_space(code, place + 1)
        if code[after : after + 1] == closing:
            ends.append((place, after + 1))
        elif code[after : after + 1] == ",":
            opened = _skip_space(code, after + 1)
            if code[opened : opened + 1] == "[" and (end := _array_end(code, opened + 1, ends)):
                ends.append((place, end))
    return code[: _array_end(code, start.end(), ends)]


def _array_end(code: str, row: int, ends: Sequence[tuple[int, int]]) -> int:
    """Where the array ends whose next row's items start at `row`; 0 where it does not. A row stands on one line."""
    if not ends or code.find("\n", row, ends[-1][0]) >= 0:
        return 0
    return ends[-1][1]


def _skip_space(code: str, at: int) -> int:
    while at < len(code) and code[at].isspace():
        at += 1
    return at


def _js_object(code: str) -> Json:
    match = _OBJECT.match(code)
    if code == "{}" or match is None:
        return {} if match else code
    out: dict[str, Json] = {}
    for key, value in _PAIR.findall(match[1]):
        value = value.strip()
        is_array = value.startswith("[") and value.endswith("]")
        out[key.strip().strip("'\"")] = _js_array(value, "") if is_array else _js_guess(value.strip("'\""))
    return out


def _js_guess(text: str) -> Json:
    """A value whose type is not told."""
    text = text.strip()
    if text in _TRUTH:
        return _TRUTH[text]
    return text[1:-1] if _is_quoted(text) else _number(text)


def _javascript_text(value: Json, name: str, items: str) -> str:
    if name == "array" and isinstance(value, list):
        return f"[{', '.join(_javascript_text(item, items, '') for item in value)}]"
    return json.dumps(value, ensure_ascii=False) + ("n" if name == "Bigint" else "")
