"""Which tools a request needs: all of a catalogue's tools, the likeliest first.

Lexical (BM25 over what a definition says, by ideas instead of words alone), fused with any dense scorer that is given.
Not a decision: how many of them are offered is the budget's to say (models/fitting.py). The rule it protects: pure and
without chance. The same catalogue and conversation give the same order, on every machine, without a model.

Sources: Robertson and Zaragoza 2009 (BM25 and its fields); Cormack et al. 2009 (reciprocal rank fusion).
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from llm_tuner.tools.lexicon import ideas, japanese_ideas, katakana, sound
from llm_tuner.tools.words import STOP, bigrams, normal, pieces, shaped, stem, stems
from llm_tuner.types import Json, Message, ToolSpec

Dense = Callable[[str, Sequence[ToolSpec]], Sequence[float]]
"""(request, tools) -> one score a tool, higher is likelier: an embedding model's cosine, say."""

NAME, PURPOSE, SAID, PARAMETER, VALUE, SERVER = 3.0, 1.5, 0.5, 1.0, 0.4, 0.5
"""How much a word counts by where it stands: the tool's name, the first sentence of its description, the rest of it,
the name of a parameter, a parameter's description and enumerated values, the server's name."""

K1, B = 1.2, 0.5
"""BM25's own: how soon a word said again adds nothing, how much longer definitions count less."""
SYNONYM = 0.8
"""Weight of a word that only means the same."""
QUOTED = 0.3
"""Weight of what stands in quotation marks: mostly data."""
EARLIER = 0.25
"""Weight of what the user said before the last request."""
CLEAR = 0.4
"""How much less a sentence counts by itself that says less than the clearest one: the power of what it says of that."""
COVERED = 1.0
"""How much more a tool counts whose name is said in full."""
LONG = 5
"""Letters from which on a word may have a slip."""
MOST_SENTENCES = 12
"""So many sentences of a request count by themselves."""
FUSED = 60
"""The constant of reciprocal rank fusion, from its paper."""

MOST_CHARS, MOST_DESCRIPTION, MOST_NODES = 20_000, 4_000, 2_000
"""Of one tool, of one description in it, and parts of one schema: a huge one must not cost more than it says."""
LONGEST = 4000
"""Characters of a message that are read, half of them from its end."""

_QUOTED = re.compile(
    r"\"[^\"\n]{1,200}\"|“[^”]{1,200}”|「[^」]{1,200}」|『[^』]{1,200}』|`[^`\n]{1,200}`|(?<!\w)'[^'\n]{1,200}'(?!\w)"
)
_END = re.compile(
    r"(?<=[.!?;])\s+|[。！？；\n]+|,? \b(?:and|then|also|besides|plus|after that|afterwards)\b,?|"
    r"それから|そのあと|その後|ついでに|あわせて|合わせて|加えて|さらに|次に|あと、|また、|まず、"
)


@dataclass(frozen=True)
class Clue:
    """One thing that a request says: the stem itself (`exact`, "" where it is in another language, or a form of
    value) and the stems of all that means the same."""

    exact: str
    alike: tuple[str, ...] = ()
    weight: float = 1.0


class Heard(NamedTuple):
    """The stems of a catalogue's words by how they sound, and by how they are written with one letter left out."""

    sounds: Mapping[str, frozenset[str]]
    slips: Mapping[str, frozenset[str]]
    words: frozenset[str]


@dataclass(frozen=True)
class Index:
    """A catalogue made ready for searching; `index(tools)` makes one. Use it again for the same tools."""

    tools: tuple[ToolSpec, ...]
    weights: Mapping[str, Mapping[int, float]] = field(repr=False)
    """Stem -> place of the tool -> BM25's saturated weight, before the stem's rarity."""
    named: Mapping[str, tuple[int, ...]] = field(repr=False)
    """Stem -> places of the tools in whose names it stands."""
    name_words: tuple[int, ...] = field(repr=False)
    heard: Heard = field(repr=False)

    def rank(self, messages: Sequence[Message], dense: Dense | None = None) -> tuple[ToolSpec, ...]:
        """All tools, the likeliest first; those that nothing speaks for stand at the end in the catalogue's order."""
        order = _ordered(self.scores(messages))
        if dense is not None:
            order = fused([order, _ordered(dense(request(messages), self.tools), least=-math.inf)])
        places = dict.fromkeys([*order, *range(len(self.tools))])
        return tuple(self.tools[place] for place in places)

    def search(self, query: str, most: int = 8) -> tuple[ToolSpec, ...]:
        """The tools that a search for these words finds, the likeliest first: what `search_tool` answers with."""
        order = _ordered(self.scores([Message(role="user", text=query)]))
        return tuple(self.tools[place] for place in order[:most])

    def scores(self, messages: Sequence[Message]) -> list[float]:
        """One score a tool, 0 where nothing of the conversation speaks for it, 1 for the likeliest.

        A request may ask for several things: each of its sentences counts by itself too, if it says enough.
        """
        whole, *parts = [self._summed(part) for part in clues(messages, self.heard)]
        high = max(whole, default=0.0)
        if not high:
            return [0.0] * len(self.tools)
        out = [score / high for score in whole]
        clearest = max((max(part) for part in parts), default=0.0)
        for part in parts:
            if not (high := max(part)):
                continue
            clear = (high / clearest) ** CLEAR
            out = [max(so_far, clear * score / high) for so_far, score in zip(out, part, strict=True)]
        return out

    def _summed(self, found: Iterable[Clue]) -> list[float]:
        """What the clues say for each tool: the sum of their scores, and more where they cover its whole name."""
        out = [0.0] * len(self.tools)
        covered: list[dict[str, float]] = [{} for _ in self.tools]
        for clue in found:
            for place, score in self._scored(clue).items():
                out[place] += clue.weight * score
            for word, share in ((clue.exact, 1.0), *((word, SYNONYM if clue.exact else 1.0) for word in clue.alike)):
                for place in self.named.get(word, ()):
                    covered[place][word] = max(covered[place].get(word, 0.0), share * min(1.0, clue.weight))
        return [
            score * (1 + COVERED * sum(words.values()) / max(1, self.name_words[place]))
            for place, (score, words) in enumerate(zip(out, covered, strict=True))
        ]

    def _scored(self, clue: Clue) -> Mapping[int, float]:
        """An idea is as rare as the tools that say it in any way, a word as those that say that very word."""
        best: dict[int, float] = {}
        for word in clue.alike:
            for place, weight in self.weights.get(word, {}).items():
                best[place] = max(best.get(place, 0.0), weight)
        common = self._rarity(len(best)) * (SYNONYM if clue.exact else 1.0)
        scores = {place: common * weight for place, weight in best.items()}
        exact = self.weights.get(clue.exact, {})
        rarity = self._rarity(len(exact))
        for place, weight in exact.items():
            scores[place] = max(scores.get(place, 0.0), rarity * weight)
        return scores

    def _rarity(self, found_in: int) -> float:
        return math.log(1 + (len(self.tools) - found_in + 0.5) / (found_in + 0.5))


def index(tools: Sequence[ToolSpec]) -> Index:
    """Reads every definition once. Names may be double, descriptions empty, schemas anything."""
    counted = [Counter[str]() for _ in tools]
    raw: set[str] = set()
    for count, tool in zip(counted, tools, strict=True):
        for text, weight in _said(tool):
            raw.update(piece for piece in pieces(text) if piece not in STOP and len(piece) > 2)
            for word in _words(text):
                count[word] += weight  # type: ignore[assignment]
    lengths = [sum(count.values()) for count in counted]
    usual = sum(lengths) / max(1, len(lengths)) or 1.0
    weights: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for place, (count, length) in enumerate(zip(counted, lengths, strict=True)):
        for word, often in count.items():
            weights[word][place] = often * (K1 + 1) / (often + K1 * (1 - B + B * length / usual))
    names = [set(stems(normal(tool.name))) for tool in tools]
    named: defaultdict[str, list[int]] = defaultdict(list)
    for place, words in enumerate(names):
        for word in words:
            named[word].append(place)
    heard = Heard(
        _grouped((sound(word), stem(word)) for word in raw if len(sound(word)) > 2), _slips(raw), frozenset(raw)
    )
    return Index(
        tuple(tools), dict(weights), {word: tuple(places) for word, places in named.items()},
        tuple(map(len, names)), heard,
    )  # fmt: skip


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, frozenset[str]]:
    out: defaultdict[str, set[str]] = defaultdict(set)
    for key, word in pairs:
        out[key].add(word)
    return {key: frozenset(words) for key, words in out.items()}


def _slips(words: Iterable[str]) -> dict[str, frozenset[str]]:
    """Two words that differ by one slip of the keyboard are the same with one letter left out of each."""
    long = (word for word in words if len(word) >= LONG and word.isascii())
    return _grouped((word[:at] + word[at + 1 :], stem(word)) for word in long for at in range(len(word)))


def _words(text: str) -> Iterator[str]:
    """A definition's words; of a Japanese one also what they mean in English, so that either language finds it."""
    yield from stems(text)
    yield from bigrams(text)
    for _, alike in japanese_ideas(text):
        yield from alike[:3]


def _said(tool: ToolSpec) -> Iterator[tuple[str, float]]:
    """What a definition says, piece by piece with its weight, up to MOST_CHARS."""
    left = MOST_CHARS
    for text, weight in _pieces_said(tool):
        yield normal(text[:left]), weight
        if (left := left - len(text)) <= 0:
            return


def _pieces_said(tool: ToolSpec) -> Iterator[tuple[str, float]]:
    first, _, rest = tool.description[:MOST_DESCRIPTION].strip().partition("\n")
    sentences = re.split(r"(?<=[.!?。])\s*", first, maxsplit=1)
    yield tool.name, NAME
    yield sentences[0], PURPOSE
    yield tool.server, SERVER
    yield " ".join([*sentences[1:], rest]), SAID
    yield from _parameters(tool.parameters)


def _parameters(schema: Json) -> Iterator[tuple[str, float]]:
    """The names of all parameters at any depth, their descriptions and values; a `$ref`'s target stands in `$defs`."""
    waiting: deque[Json] = deque([schema])
    for _ in range(MOST_NODES):
        if not waiting:
            return
        part = waiting.popleft()
        if isinstance(part, list):
            waiting.extend(part)
        if not isinstance(part, dict):
            continue
        if part is not schema and isinstance(description := part.get("description"), str):
            yield description[:MOST_DESCRIPTION], VALUE
        if isinstance(values := part.get("enum"), list):
            yield " ".join(value for value in values[:50] if isinstance(value, str)), VALUE
        for key in ("properties", "$defs", "definitions"):
            if isinstance(found := part.get(key), dict):
                if key == "properties":
                    yield from ((str(name), PARAMETER) for name in found)
                waiting.extend(found.values())
        waiting.extend(part.get(key) for key in ("items", "anyOf", "oneOf", "allOf", "additionalProperties"))


# ---------------------------------------------------------------------------------------------------- the request


def request(messages: Sequence[Message]) -> str:
    """The last thing that the user said."""
    return next((m.text for m in reversed(messages) if m.role == "user"), "")


def used(messages: Sequence[Message]) -> tuple[str, ...]:
    """The names of the tools that the conversation has called, each once, in their order: they stay offered."""
    calls = (call for m in messages if m.role == "assistant" for call in (*m.tool_calls, *m.text_calls))
    return tuple(dict.fromkeys(call.name for call in calls if call.name))


def clues(messages: Sequence[Message], heard: Heard) -> list[list[Clue]]:
    """What the user's messages say: first the whole of the last one with a little of two before it, then each sentence
    of the last one, where it has several."""
    said = [m.text for m in messages if m.role == "user"][-3:][::-1]
    texts = [normal(t if len(t) <= LONGEST else t[: LONGEST // 2] + "\n" + t[-LONGEST // 2 :]) for t in said]
    whole: dict[str, Clue] = {}
    for text, weight in zip(texts, (1.0, EARLIER, EARLIER), strict=False):
        for key, clue in _sentence(text, heard, weight).items():
            whole.setdefault(key, clue)
    out = [list(whole.values())]
    sentences = [one for one in _sentences(texts[0]) if one.strip()] if texts else []
    if len(sentences) > 1:
        each = (_sentence(one, heard, 1.0).values() for one in sentences[:MOST_SENTENCES])
        out += [[clue for clue in found if clue.weight > QUOTED] for found in each]
    return out


def _sentences(text: str) -> list[str]:
    """Cut where a sentence ends or another thing is asked for; not inside quotation marks."""
    kept: list[str] = []

    def keep(found: re.Match[str]) -> str:
        kept.append(found[0])
        return f"\0{len(kept) - 1}\0"

    parts = _END.split(_QUOTED.sub(keep, text))
    return [re.sub("\0(\\d+)\0", lambda found: kept[int(found[1])], part) for part in parts]


def _sentence(text: str, heard: Heard, weight: float) -> dict[str, Clue]:
    best: dict[str, Clue] = {}
    quoted = " ".join(_QUOTED.findall(text))
    for part, share in ((_QUOTED.sub(" ", text), 1.0), (quoted, QUOTED)):
        for key, clue in _clues(part, heard, weight * share):
            best.setdefault(key, clue)
    return best


def _clues(text: str, heard: Heard, weight: float) -> Iterator[tuple[str, Clue]]:
    plain, shapes = shaped(text)
    for words, alike in ideas(stems(plain)):
        for word in words:
            yield word, Clue(word, alike, weight)
    for alike in shapes:
        yield f"shape {alike[0]}", Clue("", alike, weight)
    known = japanese_ideas(plain)
    for word, alike in known:
        yield word, Clue("", alike, weight)
    for word in bigrams(plain):
        yield f"2 {word}", Clue(word, (), weight)
    spoken = {word for word, _ in known}
    for word in katakana(plain):
        if word not in spoken and (alike := tuple(sorted(heard.sounds.get(sound(word), ())))):
            yield word, Clue("", alike, weight)
    for word in sorted(set(pieces(plain)) - heard.words - STOP):
        if len(word) >= LONG and not ideas([stem(word)])[0][1]:
            near = {one for at in range(len(word)) for one in heard.slips.get(word[:at] + word[at + 1 :], ())}
            if near:
                yield f"slip {word}", Clue("", tuple(sorted(near)), weight * SYNONYM)


# --------------------------------------------------------------------------------------------------------- fusing


def _ordered(scores: Sequence[float], least: float = 0.0) -> list[int]:
    """The places above `least`, the highest score first."""
    places = (place for place, score in enumerate(scores) if score > least)
    return sorted(places, key=lambda place: (-scores[place], place))


def fused(orders: Sequence[Sequence[int]]) -> list[int]:
    """Several orders of places as one, by reciprocal ranks; between equals the first order decides."""
    points: defaultdict[int, float] = defaultdict(float)
    for order in orders:
        for rank, place in enumerate(order, start=1):
            points[place] += 1 / (FUSED + rank)
    return sorted(points, key=lambda place: -points[place])  # stable: in the order in which they were met


# --------------------------------------------------------------------------------------------------- a tool to search


def search_tool(taken: Iterable[str] = (), name: str = "search_tools") -> ToolSpec:
    """The tool that puts all others in reach: a query in, definitions out. Whoever offers it answers it, with
    `Index.search`. A name that is `taken` gets a number."""
    names, number, free = set(taken), 2, name
    while free in names:
        free, number = f"{name}_{number}", number + 1
    query = {"type": "string", "description": "What the tool should do, in a few words."}
    return ToolSpec(
        name=free,
        description="Finds more tools. Call it when none of the tools here fits the request.",
        parameters={"type": "object", "properties": {"query": query}, "required": ["query"]},
    )
