"""Words that mean nearly the same, English and Japanese: what lets a request find a tool that says it otherwise.

Not a translator: a bridge of a few hundred ideas (lexicon.txt) and, for loanwords that are not among them, the sounds
of katakana (`sound`). The rule it protects: the lexicon knows tool catalogues in general and no request that anything
is measured with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import NamedTuple

from llm_tuner.tools.words import stems

_KANJI = re.compile(r"[\u3400-\u9fff々]")
_ENDING = re.compile(r"(?<=[\u3400-\u9fff々])[\u3040-\u309f]$")
_KATAKANA = re.compile(r"[\u30a1-\u30faー]{3,}")


class Lexicon(NamedTuple):
    """`english` and `japanese`: a word (several stems with spaces; as it is written) -> the stems of its ideas, those
    of one word kept together. `longest`: characters of the longest Japanese word."""

    english: Mapping[str, tuple[str, ...]]
    japanese: Mapping[str, tuple[str, ...]]
    longest: int


@cache
def lexicon() -> Lexicon:
    """The ideas of lexicon.txt."""
    text = resources.files("llm_tuner.tools").joinpath("lexicon.txt").read_text(encoding="utf-8")
    return read(text)


def read(text: str) -> Lexicon:
    """Lines `english words = japanese words`, all of which mean nearly the same, and `words > english words`, which are
    said for these; `a_b` is one word of two parts, `#` begins a remark."""
    english: dict[str, dict[str, None]] = {}
    japanese: dict[str, dict[str, None]] = {}
    for line in text.splitlines():
        said, one_way, meant = line.partition("#")[0].partition(">")
        if not one_way:
            meant, _, kana = said.partition("=")
            said = f"{meant} {kana}"
        idea = dict.fromkeys(part for word in meant.split() for part in stems(word))
        for word in said.split():
            if not word.isascii():
                japanese.setdefault(word, {}).update(idea)
            elif parts := stems(word):
                english.setdefault(" ".join(parts), {}).update(idea)
    for word, meaning in japanese.items():  # 開い is 開, too
        if (kanji := _ENDING.sub("", word)) != word:
            meaning.update(japanese.get(kanji, {}))
    return Lexicon(
        {word: tuple(idea) for word, idea in english.items()},
        {word: tuple(idea) for word, idea in japanese.items()},
        max(map(len, japanese), default=0),
    )


def ideas(stems: Sequence[str]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The words of an English text, the longest that the lexicon knows, each with the stems of its ideas."""
    english, out, at = lexicon().english, [], 0
    while at < len(stems):
        for length in (3, 2, 1):
            word = tuple(stems[at : at + length])
            if length == 1 or " ".join(word) in english:
                out.append((word, english.get(" ".join(word), ())))
                at += len(word)
                break
    return out


def japanese_ideas(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """The Japanese words of a text that the lexicon knows, from left to right, the longest first, each with the stems
    of its ideas. A single kanji counts where no other kanji is beside it, unless that belongs to a known word."""
    known, out, at, end = lexicon(), [], 0, 0
    while at < len(text):
        for length in range(min(known.longest, len(text) - at), 0, -1):
            word = text[at : at + length]
            if word in known.japanese and (length > 1 or _alone(text, at, end)):
                out.append((word, known.japanese[word]))
                at = end = at + length
                break
        else:
            at += 1
    return out


def _alone(text: str, at: int, end: int) -> bool:
    before, after = text[max(end, at - 1) : at], text[at + 1 : at + 2]
    return not (_KANJI.match(before) or _KANJI.match(after))


# ------------------------------------------------------------------------------------------------------- loanwords

_ROWS = {
    "アカサタナハマヤラワガザダバパァャヮ": "a",
    "イキシチニヒミリヰギジヂビピィ": "i",
    "ウクスツヌフムユルグズヅブプゥュヴ": "u",
    "エケセテネヘメレヱゲゼデベペェ": "e",
    "オコソトノホモヨロヲゴゾドボポォョ": "o",
}
_LINES = {
    "カキクケコ": "k",
    "サシスセソ": "s",
    "ザジズゼゾヂヅ": "z",
    "タテト": "t",
    "チ": "c",
    "ツ": "ts",
    "ナニヌネノン": "n",
    "ハヒヘホ": "h",
    "フ": "f",
    "マミムメモ": "m",
    "ラリルレロ": "r",
    "ガギグゲゴ": "g",
    "ダデド": "d",
    "バビブベボヴ": "b",
    "パピプペポ": "p",
}
_KANA = {kana: letter for line, letter in _LINES.items() for kana in line}
_ENGLISH = (
    (r"tion|sion|cian", "sn"), (r"ture", "Cr"), (r"sch", "sk"), (r"tch|ch", "C"), (r"sh", "s"), (r"ph|gh(?!t)", "f"),
    (r"ght", "t"), (r"th", "s"), (r"ck|q|c(?![eiy])", "k"), (r"c", "s"), (r"x", "ks"), (r"wr", "r"), (r"kn", "n"),
    (r"dge|g(?=[ei])|j", "s"), (r"v", "b"), (r"(?<=[aeiou])r(?![aeiouy])", ""), (r"l", "r"),
)  # fmt: skip


def katakana(text: str) -> list[str]:
    """The katakana words of three characters or more."""
    return _KATAKANA.findall(text)


@cache
def sound(word: str) -> str:
    """The consonants of a word as Japanese hears them, doubled ones once: ブランチ and `branch` are both `brnc`.

    A vowel that begins the word stays as `a`. English r after a vowel is not heard, as in サーバー.
    """
    if _KATAKANA.fullmatch(word):
        heard = "".join(_KANA.get(kana, "") for kana in word.rstrip("ー"))
        first = "a" if word[0] in "アイウエオ" else ""
    else:
        heard, first = word.lower(), "a" if word[:1].lower() in "aeiou" else ""
        for spelled, said in _ENGLISH:
            heard = re.sub(spelled, said, heard)
    heard = first + re.sub(r"[^bcdfghkmnprst]", "", heard.lower().replace("z", "s"))
    heard = re.sub(r"n(?=[bmp])", "m", heard)
    return re.sub(r"(.)\1+", r"\1", heard)
