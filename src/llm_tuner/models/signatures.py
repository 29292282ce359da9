"""Tools in few tokens: a compressed definition, or one typed signature line a tool.

Not a chat template. The rule it protects: whoever trains on a short form and whoever serves it take the very same bytes
from here, and a short form is only shown: calls are validated against the tool's own schema. All functions are pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, get_args

from llm_tuner.types import Json, Message, ToolSpec, canonical_json

Rendering = Literal["full", "compressed", "compact"]
RENDERINGS: tuple[Rendering, ...] = get_args(Rendering)

PURPOSE_WORDS = 4
"""How much of a description stands behind a signature: words that the signature's names do not say already."""
DESCRIPTION_CHARS, PARAMETER_CHARS = 160, 100
"""How long a compressed tool's and a compressed parameter's description may be."""
MOST_NODES, MOST_DEEP = 4000, 40
"""Parts of one schema that are looked at, in all and one inside the other: what multiplies or nests ends here."""

HEADER = """# Tools

You may call these functions, one signature a line (`?`: may be left out):
"""
FOOTER = """
Return each call as JSON with the function's name and arguments inside tags:
<tool_call>
{"name": <name>, "arguments": <arguments>}
</tool_call>"""

LIKELY = "Functions that may fit this:"
"""What stands before the signatures of likely tools in the hinted form."""

_TYPES = {"string": "str", "integer": "int", "number": "num", "boolean": "bool", "null": "null"}
_DEPTH = 3
_SAFE = 2**53 - 1
"""JavaScript's largest whole number: as a bound it says that there is none."""
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
"""Keys whose members are named by the server: a property may be called `title`."""
_NO_MEANING = frozenset({"title", "$schema", "$id", "$comment", "examples", "$defs", "definitions"})
_FILLER = frozenset(
    re.findall(
        r"\S+",
        """a an the this that these those it its their them of in on at to for from with by as and or be is are was
        which e.g i.e etc whose about all any each given specific specified single optional optionally required value
        parameter argument multiple new existing current your you use used using will can should must also into based
        detail details detailed information get gets show shows return returns retrieve retrieves fetch fetches
        provide provides allow allows""",
    )
)
_SHOWS = re.compile(
    r"[\d'\"`「『<:=]|\b(?:e\.g|such as|like|format|only|must|without|default|separated|ISO|IANA|UTC|unix|seconds|"
    r"milliseconds|bytes|percent|regex|glob|base64|markdown)\b|例|形式|単位|既定|のみ|必ず|区切り",
    re.IGNORECASE,
)
"""What a description holds that shows how a value looks: an example, a format, a unit, a restriction."""
_NO_SPACES = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")
"""Japanese or Chinese: four characters count as a word."""
_ABBREVIATED = re.compile(r"\b(?:e\.g|i\.e|etc|vs|cf|incl|max|min|approx)\.$", re.IGNORECASE)


def shown(
    messages: Sequence[Message], tools: Sequence[ToolSpec], rendering: str
) -> tuple[tuple[Message, ...], tuple[ToolSpec, ...]]:
    """The conversation and the tools as the chat template is to get them. `compact` puts the catalogue into the system
    message and gives the template no tools at all."""
    if rendering == "compressed":
        return tuple(messages), tuple(map(compressed, tools))
    if rendering != "compact" or not tools:
        return tuple(messages), tuple(tools)
    text = HEADER + catalogue_text(tools) + FOOTER
    if messages and messages[0].role == "system":
        first = messages[0].model_copy(update={"text": f"{messages[0].text}\n\n{text}"})
        return (first, *messages[1:]), ()
    return (Message(role="system", text=text), *messages), ()


def hinted(
    messages: Sequence[Message], tools: Sequence[ToolSpec], likely: Callable[[Sequence[Message]], Sequence[ToolSpec]]
) -> tuple[Message, ...]:
    """The compact rendering for models that were not trained on it: behind each thing that the user said stand the
    signatures of the tools that are `likely` for the conversation up to there. Nothing that stood before changes when a
    conversation grows, so that a server's prompt cache holds."""
    out: list[Message] = []
    for message in messages:
        out.append(message)
        if message.role == "user" and (found := likely(out)):
            text = f"{message.text}\n\n{LIKELY}\n{catalogue_text(found).rstrip()}"
            out[-1] = message.model_copy(update={"text": text})
    return shown(out, tools, "compact")[0]


def in_words(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation for a chat template that knows nothing of tools: calls are text in the form that FOOTER asks
    for, and what a tool said is said by the user, in tags."""
    out: list[Message] = []
    for message in messages:
        if message.result is not None:
            text = f"<tool_response>\n{message.result.content}\n</tool_response>"
            message = Message(role="user", text=text)
        elif message.tool_calls:
            calls = (canonical_json({"name": call.name, "arguments": call.arguments}) for call in message.tool_calls)
            lines = [message.text, *(f"<tool_call>\n{call}\n</tool_call>" for call in calls)]
            message = message.model_copy(update={"text": "\n".join(filter(None, lines)), "tool_calls": ()})
        out.append(message)
    return tuple(out)


def catalogue_text(tools: Sequence[ToolSpec], words: int = PURPOSE_WORDS) -> str:
    """One line a tool, in their order: signature and `words` words of its purpose."""
    return "".join(f"{signature(tool)}{_behind(tool, words)}\n" for tool in tools)


def signature(tool: ToolSpec) -> str:
    """`name(required: type, optional?: type=default)`; enumerations as `a|b`, arrays as `[type]`, objects in braces."""
    return f"{tool.name}({_fields(inlined(tool.parameters), 0)})"


def compressed(tool: ToolSpec) -> ToolSpec:
    """The same tool with its first sentence for a description, and a schema that accepts what the tool's own accepts,
    except null where leaving it out says the same.

    `$ref`s are inlined; titles, null alternatives of what may be left out and bounds that are none are left out. Of a
    parameter's description its first sentence stays where it shows what a value looks like (an example, a format, a
    unit) and says more than the names do.
    """
    small = _compressed(inlined(tool.parameters), set(_stems(tool.name)), set())
    parameters: dict[str, Json] = small if isinstance(small, dict) else {}
    description = _cut(_first_sentence(tool.description), DESCRIPTION_CHARS)
    return tool.model_copy(update={"description": description, "parameters": parameters})


# -------------------------------------------------------------------------------------------------------- schemas


def inlined(schema: Json) -> Json:
    """The schema with every `$ref` into itself replaced by what it points at, and without `$defs`.

    One that contains itself, that points nowhere or elsewhere, or that stands behind MOST_NODES parts or inside
    MOST_DEEP others becomes the widest schema of its type.
    """
    left = MOST_NODES

    def whole(part: Json, inside: tuple[str, ...], depth: int, named: bool = False) -> Json:
        nonlocal left
        left -= 1
        if depth > MOST_DEEP:
            return _widest(part)
        if isinstance(part, list):
            return [whole(inner, inside, depth + 1) for inner in part]
        if not isinstance(part, dict):
            return part
        if not named and isinstance(reference := part.get("$ref"), str):
            target = _referred(reference, schema)
            rest = {key: inner for key, inner in part.items() if key != "$ref"}
            if reference in inside or left < 0 or not isinstance(target, dict):
                return _widest(target) | rest
            return whole(target | rest, (*inside, reference), depth + 1)
        if left < 0 and not named:
            return _widest(part)
        return {
            key: inner if key in ("default", "enum", "const") and not named
            else whole(inner, inside, depth + 1, key in _NAMED and not named)
            for key, inner in part.items()
            if named or key not in ("$defs", "definitions")
        }  # fmt: skip

    return whole(schema, (), 0)


def _widest(schema: Json) -> dict[str, Json]:
    kind = schema.get("type") if isinstance(schema, dict) else None
    return {"type": kind} if kind else {}


def _referred(reference: str, root: Json) -> Json:
    if not reference.startswith("#"):
        return None
    found: Json = root
    for part in filter(None, reference.removeprefix("#").split("/")):
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found


def _compressed(schema: Json, said: set[str], told: set[str], needed: bool = True, name: str = "") -> Json:
    """`said`: stems of the names around it; `told`: what descriptions told before; `needed`: it may not be left out."""
    if isinstance(schema, list):
        return [_compressed(inner, said, told) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    schema = schema if needed else _without_null(schema)
    wanted = schema.get("required")
    required = wanted if isinstance(wanted, list) else []
    out: dict[str, Json] = {}
    for key, inner in schema.items():
        if key == "properties" and isinstance(inner, dict):
            out[key] = {one: _compressed(value, said, told, one in required, one) for one, value in inner.items()}
        elif key == "description":
            if words := _told(str(inner), said | set(_stems(name)), told):
                out[key] = words
        elif key in _NO_MEANING or _says_nothing(key, inner):
            continue
        elif key in ("default", "enum", "const", "required", "type"):
            out[key] = inner
        else:
            out[key] = _compressed(inner, said, told)
    return out


def _says_nothing(key: str, value: Json) -> bool:
    """Whether a keyword restricts nothing, or only what a model would not do."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return abs(value) >= _SAFE
    return value in ([], {}) or (key == "default" and value is None) or (key == "additionalProperties" and not value)


def _without_null(schema: Mapping[str, Json]) -> dict[str, Json]:
    """What may be left out need not be null: the schema without that alternative."""
    out = dict(schema)
    if isinstance(kinds := out.get("type"), list) and len(kinds) > 1:
        rest = [kind for kind in kinds if kind != "null"]
        out["type"] = rest[0] if len(rest) == 1 else rest
    for key in ("anyOf", "oneOf"):
        if not isinstance(parts := out.get(key), list):
            continue
        rest = [part for part in parts if part != {"type": "null"}]
        if len(rest) == 1 and isinstance(rest[0], dict) and not set(rest[0]) & (set(out) - {"description"}):
            del out[key]
            out = rest[0] | out
        elif rest:
            out[key] = rest
    return out


# ------------------------------------------------------------------------------------------------------- signatures


def _fields(schema: Json, depth: int) -> str:
    if not isinstance(schema, dict) or not isinstance(properties := schema.get("properties"), dict):
        return ""
    wanted = schema.get("required")
    needed = wanted if isinstance(wanted, list) else []
    return ", ".join(_field(name, inner, name in needed, depth) for name, inner in properties.items())


def _field(name: str, schema: Json, needed: bool, depth: int) -> str:
    default = schema.get("default") if isinstance(schema, dict) else None
    said = f"={_literal(default)}" if default not in (None, "", [], {}) else ""
    return f"{name}{'' if needed else '?'}: {_type(schema, depth)}{said}"


def _literal(value: Json) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _type(schema: Json, depth: int) -> str:
    if not isinstance(schema, dict) or depth > _DEPTH:
        return "any"
    if isinstance(values := schema.get("enum"), list) and values:
        return "|".join(map(_literal, values))
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            parts = [_type(part, depth + 1) for part in schema[key]]
            return "|".join(dict.fromkeys(part for part in parts if part != "null")) or "null"
    kind = schema.get("type", "object" if "properties" in schema else "any")
    if isinstance(kind, list):
        return "|".join(_TYPES.get(str(one), str(one)) for one in kind if one != "null") or "null"
    if kind == "array":
        return f"[{_type(schema.get('items', {}), depth + 1)}]"
    if kind == "object":
        return "{" + _fields(schema, depth + 1) + "}" if schema.get("properties") else "obj"
    return _TYPES.get(str(kind), str(kind))


# ------------------------------------------------------------------------------------------------------------ words


def _behind(tool: ToolSpec, words: int) -> str:
    named = {*_stems(tool.name), *(stem for one in _named(tool.parameters) for stem in _stems(one))}
    sentence = _first_sentence(tool.description)
    if words and _NO_SPACES.search(sentence):
        return f" # {_cut(sentence.rstrip('。'), 4 * words)}"
    said: dict[str, str] = {}
    for word in _words(sentence):
        if word.lower() not in _FILLER and not set(_stems(word)) <= named:
            said.setdefault(word.lower(), word)
    chosen = list(said.values())[:words]
    return f" # {' '.join(chosen)}" if chosen else ""


def _named(schema: Mapping[str, Json]) -> Iterator[str]:
    if isinstance(properties := schema.get("properties"), dict):
        yield from properties


def _words(text: str) -> Iterator[str]:
    """The words of a text without what stands around them."""
    for word in text.split():
        if word := word.strip(".,;:!?()[]{}\"'`"):
            yield word


def _stems(text: str) -> list[str]:
    """The words of a name or a text, small, without the plural."""
    parts = re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text))
    return [part.lower().rstrip("s") or part.lower() for part in parts]


def _first_sentence(text: str) -> str:
    line = next(iter(text.strip().splitlines()), "")
    for end in re.finditer(r"[.!?](?=\s)|[。！？]", line):
        if not _ABBREVIATED.search(line[: end.end()]):
            return line[: end.end()]
    return line


def _told(description: str, said: set[str], told: set[str]) -> str:
    """A parameter's description in its first words; "" where it shows nothing, or what names say or was told before."""
    if not _SHOWS.search(first := _first_sentence(description)):
        return ""
    short = _cut(first, PARAMETER_CHARS).rstrip(".。")
    meaning = canonical_json(sorted({stem for stem in _stems(short) if stem not in _FILLER} - said))
    if meaning == "[]" or meaning in told:
        return ""
    told.add(meaning)
    return short


def _cut(text: str, most: int) -> str:
    """The text, ended after a word where it is too long."""
    if len(text) <= most:
        return text
    return (text[:most].rsplit(" ", 1)[0] if " " in text[:most] else text[:most]).rstrip(" ,;:([") + "…"
