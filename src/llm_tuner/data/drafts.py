"""Drafts: the words and values of one task, before any server was asked.

Not verified and not executed. The rule it protects: a draft says where each value of its calls comes from (`said`), so
that what checks it does not have to trust it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from llm_tuner.data.catalogues import Catalogue
from llm_tuner.data.plan import Slot
from llm_tuner.data.schema_values import by_schema, name_words
from llm_tuner.data.values import draw
from llm_tuner.data.wording import Sample, side_of
from llm_tuner.data.wordings import (
    Lack,
    Recipe,
    Sentences,
    ToolWording,
    Way,
    fill,
    phrases,
    recipes,
    wording_of,
    wordings,
)
from llm_tuner.types import Json, ToolCall, ToolSpec, canonical_json

FRAMED = 0.3
"""Share of requests with something around them: an opening, a closing, what went before."""
TYPED_QUICKLY = 0.08
"""Share of requests with a slip of the keyboard, no capitals or an emoji."""

Said = dict[str, tuple[str, ...]]
"""Canonical JSON of a value -> how it was said."""


@dataclass(frozen=True)
class Draft:
    """A request and what answers it. Calls have the tools' own names.

    `first` is a call of the history, really made before the task is complete; with `fails` its result has to be an
    error. `take` is searched in its result and gives `{found}` to `then`. `again` is what the user says after it.
    """

    request: str
    calls: tuple[ToolCall, ...] = ()
    reply: str = ""
    said: Said = field(default_factory=dict)
    first: ToolCall | None = None
    fails: bool = False
    take: str = ""
    answered: str = ""
    again: str = ""
    generic: bool = False
    """Made from schema and description alone."""
    writer: str = ""
    """The backend that put the request into other words."""
    constants: tuple[str, ...] = ()
    """Canonical JSON of what the sentences themselves ask for ("as raw HTML"), without naming a value."""


class Impossible(Exception):
    """There is no draft of this kind here; the message says why."""


def draft(slot: Slot, tries: int, tools: Mapping[str, ToolSpec], seed: int) -> Draft:
    """The draft of a slot. The same arguments give the same draft; another `tries` another one. Raises Impossible, or
    Unfillable for a schema that no value could be made for."""
    return _MAKERS[slot.kind](slot, tools, random.Random(f"{seed}:{slot.number}:{tries}"))


# ---------------------------------------------------------------------------------------------------- one request


def ask(tool: ToolSpec, slot: Slot, rng: random.Random) -> Draft:
    """A request for this tool."""
    wording = wording_of(tool)
    if wording is None:
        return _generic(tool, slot, rng)
    return ask_way(tool.name, rng.choice(wording.ways), slot, rng)[0]


def ask_way(name: str, way: Way, slot: Slot, rng: random.Random) -> tuple[Draft, dict[str, Sample]]:
    samples = _samples(way.say, slot, rng)
    request = _worded(way, samples, slot, rng)
    values = {key: sample.value for key, sample in samples.items()}
    made = Draft(
        request=request,
        calls=(ToolCall(name=name, arguments=way.call_arguments(values)),),
        said=_said(samples),
        constants=_constants(way.arguments),
    )
    return made, samples


def _samples(say: Mapping[str, str], slot: Slot, rng: random.Random) -> dict[str, Sample]:
    """A value for each name, no two alike."""
    for _ in range(20):
        samples = {name: draw(spec, rng, slot.side, slot.language) for name, spec in say.items()}
        if len({canonical_json(sample.value) for sample in samples.values()}) == len(samples):
            break
    return samples


def _worded(sentences: Sentences, samples: Mapping[str, Sample], slot: Slot, rng: random.Random) -> str:
    """One of the sentences with the values in it."""
    language = slot.language
    if language == "mixed" and not sentences.mixed:
        language = "en"
    template = rng.choice(sentences.of(language, slot.side))
    if language == "en" and rng.random() < TYPED_QUICKLY:
        template = _typed_quickly(template, rng)
    words = {name: sample.ja if language == "ja" else sample.en for name, sample in samples.items()}
    return template.format(**words)


_WORD = re.compile(r"(?<![\w/{.\"=])[A-Za-z]{5,}(?![\w/}.\"=])")


def _typed_quickly(template: str, rng: random.Random) -> str:
    """Small letters only, or two letters of a word in the wrong order; never inside a value."""
    if rng.random() < 0.5:
        return template[0].lower() + template[1:].rstrip(".") if not template.startswith("{") else template.rstrip(".")
    words = list(_WORD.finditer(template))
    if not words:
        return template
    word = rng.choice(words)
    at = word.start() + rng.randrange(1, len(word[0]) - 2)
    return template[:at] + template[at + 1] + template[at] + template[at + 2 :]


def tongue(language: str) -> str:
    """The language of what surrounds and answers a request: who mixes English into Japanese is answered in Japanese."""
    return "en" if language == "en" else "ja"


def _framed(made: Draft, slot: Slot, rng: random.Random) -> Draft:
    """The draft with something said around its request, now and then."""
    said, language = phrases(), tongue(slot.language)
    mixes = slot.language == "mixed" and made.request.isascii()  # a Japanese word beside an English request
    if rng.random() >= FRAMED and not mixes:
        return made
    where = rng.choice(("opening", "closing", "context"))
    if where == "closing":
        gap = "" if language == "ja" and made.request[-1:] in "。？！" else " "
        request = made.request + gap + rng.choice(side_of(said.closings[language], slot.side))
    else:
        pool = said.openings if where == "opening" else said.contexts
        gap = "" if language == "ja" else " "
        request = rng.choice(side_of(pool[language], slot.side)) + gap + made.request
    return replace(made, request=request)


def _said(samples: Mapping[str, Sample]) -> Said:
    said: Said = {}
    for sample in samples.values():
        forms = (sample.en, sample.ja)
        said[canonical_json(sample.value)] = forms
        if isinstance(sample.value, list):
            said |= {canonical_json(item): (str(item),) for item in sample.value}
    return said


def _constants(shape: Json) -> tuple[str, ...]:
    """What the arguments of a way hold besides its values."""
    if isinstance(shape, dict):
        return tuple(c for inner in shape.values() for c in _constants(inner))
    if isinstance(shape, list):
        return tuple(c for inner in shape for c in _constants(inner))
    return () if shape is None or (isinstance(shape, str) and "{" in shape) else (canonical_json(shape),)


_GENERIC = {
    "en": (
        "I need this done: {what}.{given}",
        "Please do the following. {what}.{given}",
        "{what}.{given} Can you do it?",
        "Next job: {what}.{given}",
        "Could you help me with this? {what}.{given}",
    ),
    "ja": (
        "次のことをお願いします。{what}。{given}",
        "これをやってください: {what}。{given}",
        "{what}。{given}頼めますか？",
        "次の作業です。{what}。{given}",
        "これを手伝ってもらえますか？ {what}。{given}",
    ),
}


_GIVEN = {
    "en": ("{key} = {value}", "{key}: {value}", "the {words} is {value}", "with {value} as the {words}"),
    "ja": ("{key} = {value}", "{key}: {value}", "{words} は {value}", "{words} には {value} を"),
}
"""How a value is given, the last way on the held-out side only."""

OPTIONAL = 0.4
"""How often a request gives a value that it need not give."""


def _generic(tool: ToolSpec, slot: Slot, rng: random.Random) -> Draft:
    """A request made of the tool's description and of values by their names. In Japanese only what stands around
    them is: a description is not translated."""
    language = "ja" if slot.language == "ja" else "en"
    values = by_schema(tool.parameters, slot.side, rng, OPTIONAL)
    held_out = slot.side == "held-out"
    way = _GIVEN[language][-1] if held_out else rng.choice(_GIVEN[language][:-1])
    joint, end = ("、", "。") if language == "ja" else (", ", ".")
    texts = {key: value if isinstance(value, str) else canonical_json(value) for key, value in values.items()}
    given = joint.join(
        way.format(key=key, words=" ".join(name_words(key)) or key, value=text) for key, text in texts.items()
    )
    given = given[:1].upper() + given[1:] if way.startswith(("the", "with")) else given
    sentences = _GENERIC[language]
    template = sentences[-1] if held_out else rng.choice(sentences[:-1])
    request = template.format(what=_purpose(tool), given=f" {given}{end}" if given else "")
    said: Said = {canonical_json(value): (str(value), canonical_json(value)) for value in values.values()}
    return Draft(request, (ToolCall(name=tool.name, arguments=values),), said=said, generic=True)


_LONGEST_PURPOSE = 140


def _purpose(tool: ToolSpec) -> str:
    """What a tool is for: the first sentence of its description that is one, without marks around it."""
    for line in tool.description.splitlines():
        text = re.sub(r"^\W+", "", line).split(". ")[0].rstrip(" .")
        if len(text.split()) > 1 and not text.endswith(":"):
            break
    else:
        return " ".join(name_words(tool.name)) or tool.name
    for joint in ("; ", " (", ", "):
        if len(text) > _LONGEST_PURPOSE:
            text = text.split(joint)[0]
    return text


# ----------------------------------------------------------------------------------------------------------- kinds


def _single(slot: Slot, tools: Mapping[str, ToolSpec], rng: random.Random) -> Draft:
    return _framed(ask(tools[slot.target], slot, rng), slot, rng)


def _several(slot: Slot, tools: Mapping[str, ToolSpec], rng: random.Random) -> Draft:
    """Two requests in one, sometimes three; of tools that do not hinder each other."""
    offered = [tool for tool in slot.catalogue.own if not _ambiguous(tool.name, slot.catalogue)]
    target = tools[slot.target]
    others = [tool for tool in offered if wording_of(tool) is not None]
    count = 3 if rng.random() < 0.15 else 2
    chosen = [target, *(rng.choice(others or [target]) for _ in range(count - 1))]
    parts = [ask(tool, slot, rng) for tool in chosen]
    calls = tuple(call for part in parts for call in part.calls)
    if len({canonical_json([c.name, c.arguments]) for c in calls}) < len(calls):
        raise Impossible("the same call twice in one request")
    if _entangled(calls):
        raise Impossible("calls that change what another one of them sees")
    if _mergeable(calls, slot.catalogue):
        raise Impossible("calls that one call could make")
    joins = phrases().joins[tongue(slot.language)]
    request = parts[0].request
    if count > 2:
        joins = tuple(join for join in joins if join.startswith("{a}"))  # none that says "two"
    for part in parts[1:]:
        request = _joined(rng.choice(side_of(joins, slot.side)), request, part.request)
    merged: Said = {key: forms for part in parts for key, forms in part.said.items()}
    constants = tuple(c for part in parts for c in part.constants)
    return Draft(request, calls, said=merged, constants=constants, generic=any(part.generic for part in parts))


_TOGETHER = {"read_text_file": "read_multiple_files", "read_file": "read_multiple_files"}
"""Tools whose calls another tool makes in one."""


def _mergeable(calls: Sequence[ToolCall], catalogue: Catalogue) -> bool:
    """Whether two of the calls could as well be one: they differ in lists only, or a tool for many is offered."""
    names = [call.name for call in calls]
    if any(names.count(one) > 1 and many in catalogue.names for one, many in _TOGETHER.items()):
        return True
    rest = [canonical_json([c.name, {k: v for k, v in c.arguments.items() if not isinstance(v, list)}]) for c in calls]
    listed = [any(isinstance(value, list) for value in call.arguments.values()) for call in calls]
    return any(has and rest.count(plain) > 1 for plain, has in zip(rest, listed, strict=True))


def _joined(join: str, a: str, b: str) -> str:
    """Two requests as one text, with one full stop between them and a small letter after a comma."""
    if join.split("{b}")[0].endswith(", ") and len(b) > 1 and b[0].isupper() and b[1].islower():
        b = b[0].lower() + b[1:]
    text = join.format(a=a.rstrip("。. "), b=b)
    for double, one in (("?.", "?"), ("!.", "!"), ("？。", "？"), ("！。", "！"), ("?。", "？"), ("？.", "？")):
        text = text.replace(double, one)
    return re.sub(r"(?<=[!-~])。(?=[A-Z])", ". ", text)  # two English sentences


_CHANGES = re.compile(
    r"^(write_|edit_|move_|create_|add_|delete_|git_(add|commit|reset|checkout|create)|push_|fork_|merge_|update_)"
)


def _entangled(calls: Sequence[ToolCall]) -> bool:
    """Whether one call changes a place that another one works on: then their order would count."""
    for call in calls:
        if not _CHANGES.match(call.name):
            continue
        places = set(_texts(call.arguments))
        if any(other is not call and places & set(_texts(other.arguments)) for other in calls):
            return True
    return False


def _texts(value: Json) -> list[str]:
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _texts(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _texts(inner)]
    return [value] if isinstance(value, str) else []


def _follow_up(slot: Slot, tools: Mapping[str, ToolSpec], rng: random.Random) -> Draft:
    """A call that was made, and then the same for another value; or thanks, which want no call."""
    tool = tools[slot.target]
    wording = wording_of(tool)
    ways = [way for way in wording.ways if way.say and way.arguments is None] if wording else []
    if not ways or (wording and wording.volatile):
        raise Impossible(f"`{tool.name}` has no way that can be asked once more")
    way = rng.choice(ways)
    before, samples = ask_way(tool.name, way, slot, rng)
    language = tongue(slot.language)
    said = phrases()
    answered = rng.choice(said.answered[language])
    if rng.random() < 0.15:
        again, reply = rng.choice(side_of(said.thanks[language], slot.side))
        return replace(before, calls=(), reply=reply, first=before.calls[0], answered=answered, again=again)
    name = next(iter(way.say))
    other = draw(way.say[name], rng, slot.side, slot.language)
    if other.value == samples[name].value:
        raise Impossible("the same value again")
    words = other.ja if language == "ja" else other.en
    again = rng.choice(side_of(said.follow_ups[language], slot.side)).format(x=words)
    changed = {key: sample.value for key, sample in samples.items()} | {name: other.value}
    return replace(
        before,
        calls=(ToolCall(name=tool.name, arguments=way.call_arguments(changed)),),
        said=before.said | _said({name: other}),
        first=before.calls[0],
        answered=answered,
        again=again,
    )


def _missing(slot: Slot, tools: Mapping[str, ToolSpec], rng: random.Random) -> Draft:
    """A request that leaves out what the call needs, and a reply that asks for it."""
    wording = wordings().get(slot.target)
    if wording is None or not wording.missing:
        raise Impossible(f"`{slot.target}` has no request that leaves something out")
    lack: Lack = rng.choice(wording.missing)
    samples = _samples(lack.say, slot, rng)
    request = _worded(lack, samples, slot, rng)
    reply = rng.choice(lack.ask_en if slot.language == "en" else lack.ask_ja)
    return _framed(Draft(request, reply=reply, said=_said(samples)), slot, rng)


def _irrelevant(slot: Slot, tools: Mapping[str, ToolSpec], rng: random.Random) -> Draft:
    """Nothing that is offered fits: talk, another world, or a tool that is known elsewhere and looks like these."""
    said = phrases()
    language = tongue(slot.language)
    absent = sorted(name for name in tools if _absent(name, slot))
    what = rng.random()
    if absent and what < 0.5:
        made = ask(tools[rng.choice(absent)], slot, rng)
        return _framed(Draft(made.request, reply=rng.choice(said.declines[language]), said=made.said), slot, rng)
    if what < 0.75:
        request, reply = rng.choice(side_of(said.small_talk[slot.language], slot.side))
        return Draft(request, reply=reply)
    template = rng.choice(side_of(said.out_of_reach[slot.language], slot.side))
    request = re.sub(r"\{([a-z-]+)\}", lambda hole: _words_of(hole[1], slot, rng), template)
    return _framed(Draft(request, reply=rng.choice(said.declines[language])), slot, rng)


def _words_of(spec: str, slot: Slot, rng: random.Random) -> str:
    sample = draw(spec, rng, slot.side, slot.language)
    return sample.ja if slot.language == "ja" else sample.en


def _absent(name: str, slot: Slot) -> bool:
    """Whether this tool is not offered here, and nothing offered could do its work."""
    wording = wordings().get(name)
    if wording is None or name in slot.catalogue.names:
        return False
    return not {*wording.rivals, *wording.near} & slot.catalogue.names


def _recipe(slot: Slot, tools: Mapping[str, ToolSpec], rng: random.Random) -> Draft:
    fails = slot.kind == "error"
    fitting = [r for r in recipes() if r.fails is fails and set(r.tools) <= slot.catalogue.names]
    if not fitting:
        raise Impossible(f"no {slot.kind} recipe fits this catalogue")
    recipe: Recipe = rng.choice(fitting)
    samples = _samples(recipe.say, slot, rng)
    values = {name: sample.value for name, sample in samples.items()}
    first = ToolCall(name=recipe.first.tool, arguments=fill(recipe.first.arguments, values))
    made = Draft(
        request=_worded(recipe, samples, slot, rng),
        said=_said(samples),
        first=first,
        fails=fails,
        take=fill(recipe.take, {name: re.escape(str(value)) for name, value in values.items()}),
        constants=_constants(recipe.first.arguments) + _constants(recipe.then.arguments if recipe.then else None),
    )
    if recipe.then is None:
        replies = recipe.reply_en if slot.language == "en" else recipe.reply_ja
        return _framed(replace(made, reply=fill(rng.choice(replies), values)), slot, rng)
    if not fails and rng.random() < 0.25:  # the first step of the two
        return _framed(replace(made, first=None, calls=(first,)), slot, rng)
    then = ToolCall(name=recipe.then.tool, arguments=fill(recipe.then.arguments, values))
    return _framed(replace(made, calls=(then,)), slot, rng)


def _ambiguous(name: str, catalogue: Catalogue) -> bool:
    wording: ToolWording | None = wordings().get(name)
    return wording is not None and bool(set(wording.rivals) & catalogue.names)


_MAKERS = {
    "single": _single,
    "look_alike": _single,
    "several": _several,
    "sequence": _recipe,
    "follow_up": _follow_up,
    "missing": _missing,
    "irrelevant": _irrelevant,
    "error": _recipe,
}
