"""The words of a text, as tools are searched by them: English stems, halves of compound names, Japanese bigrams.

No dictionary and no model: rules that hold for any catalogue. The rule it protects: a tool's definition and a request
for it go through the same rules, so that what is written alike is found alike.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_HUMPS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_PLURAL = re.compile(r"(?<=[A-Z]{2})s\b")  # PRs, URLs
_PIECE = re.compile(r"[^\W_]+")
_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af々〆ー"
_RUN = re.compile(f"[{_CJK}]+")
_LATIN = re.compile(f"[^{_CJK}]+")
_HIRAGANA = re.compile(r"[\u3040-\u309f]+")

STOP = frozenset(
    re.findall(
        r"\S+",
        """a an the this that these those it its i me my mine we us our you your he she they them their there here
    is are was were be been being am do does did doing done has have had having will would can could should might
    must shall let lets and or but if then than so as of in on at to from for with by about into onto over per via
    not no yes please thanks thank hi hello hey ok okay just also too very really quick quickly now still again
    what how why when some any each one ones need needs want wants like use used using tool tools
    s t re ve ll d m don doesn didn isn aren won e g etc""",
    )
)
"""Words that say nothing about which tool is meant. `which`, `who`, `where` and `all` do."""

_NAMES = (
    r"(?<=[a-z,] )[A-Z][a-z]+ [A-Z][a-z]+\b",
    r"[\u3400-\u9fff]{1,3} [\u3400-\u9fff]{1,3}(?=[のにをがはと])",
)
SHAPES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("url link page web", re.compile(r"https?://[^\s\"'<>、。」）)]+|\bwww\.[^\s\"'<>、。」）)]+")),
    ("email mail address user", re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+")),
    ("timestamp thread message", re.compile(r"\b\d{10}\.\d{3,6}\b")),
    ("channel", re.compile(r"#[A-Za-z][\w-]*|\b[CG]0[A-Z0-9]{6,10}\b", re.ASCII)),
    ("user", re.compile(r"\bU0[A-Z0-9]{6,10}\b|(?<![\w@])@[A-Za-z][\w.-]*", re.ASCII)),
    ("number issue request", re.compile(r"(?:[\w.-]+/[\w.-]+)?#\d+|\b\d+番", re.ASCII)),
    ("time", re.compile(r"\b\d{1,2}:\d{2}\b|\d{1,2}時(?:\d{1,2}分|半)?|\b\d{1,2} ?(?:am|pm)\b", re.IGNORECASE)),
    ("pattern", re.compile(r"[\w./-]*\*[\w./*-]*", re.ASCII)),
    ("file path", re.compile(r"[\w./~-]*\.(?=[a-z])[a-z0-9]{1,8}\b(?![\w/])|(?:[\w.~-]+/)+[A-Z]\w+", re.ASCII)),
    ("path directory repository branch", re.compile(r"(?:[\w.~-]*/)+[\w.-]*", re.ASCII)),
    ("sha commit revision", re.compile(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{7,40}\b|\bHEAD\b[~^\d]*")),
    ("person user name entity", re.compile("|".join(_NAMES))),
)
"""What values look like, and the words that each stands for: the value itself is data, it says nothing about tools.
A Slack channel and user are told by their ids (C0..., U0...), a file by its ending."""


_SEVERAL = ("multipl", "several", "both")


def normal(text: str) -> str:
    """The text with full-width letters and half-width kana as the usual ones (NFKC)."""
    return unicodedata.normalize("NFKC", text)


def stem(word: str) -> str:
    """The word without the endings of English: `listed`, `listing`, `lists` and `list` are one. Not always a word."""
    word = word.lower()
    if word.isdigit() or len(word) < 4:
        return word
    if word.endswith("ies"):
        word = word[:-3] + "y"
    elif word.endswith(("sses", "shes", "ches", "xes", "zes")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending, least in (("ing", 3), ("ed", 3), ("ion", 4)):
        rest = word.removesuffix(ending)
        if (
            rest != word
            and len(rest) >= least
            and (ending != "ion" or rest[-1] in "ts")
            and re.search("[aeiouy]", rest)
        ):
            word = rest
            break
    word = word[:-1] if len(word) > 3 and word.endswith("e") else word
    return word[:-1] if len(word) > 2 and word[-1] == word[-2] else word


def pieces(text: str) -> Iterator[str]:
    """The Latin words in a text in their order, small: `readTextFile2` and `read_text_file 2` are the same."""
    for found in _PIECE.finditer(_HUMPS.sub(" ", _PLURAL.sub("", latin(text)))):
        yield found[0].lower()


def stems(text: str) -> list[str]:
    """The stems of a text's Latin words, without those that say nothing."""
    return [stem(piece) for piece in pieces(text) if piece not in STOP and (len(piece) > 1 or piece.isdigit())]


def bigrams(text: str) -> list[str]:
    """Two characters after the other, of each run of Japanese, Chinese or Korean; not those of hiragana alone, which
    are endings. A run of one character is itself."""
    out: list[str] = []
    for run in _RUN.findall(text):
        pairs = [run[i : i + 2] for i in range(len(run) - 1)] or [run]
        out += [pair for pair in pairs if not _HIRAGANA.fullmatch(pair)]
    return out


def latin(text: str) -> str:
    """The text without its runs of Japanese, Chinese or Korean."""
    return " ".join(_LATIN.findall(text))


def shaped(text: str) -> tuple[str, list[tuple[str, ...]]]:
    """The text without the values that can be told by their form, and the stems that each form stands for."""
    said: list[tuple[str, ...]] = []
    for words, pattern in SHAPES:
        text, count = pattern.subn(" ", text)
        if count:
            said.append(tuple(map(stem, words.split())))
        if count > 1 and words.startswith("file"):
            said.append(_SEVERAL)
    return text, said
