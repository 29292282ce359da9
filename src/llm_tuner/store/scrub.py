"""Secrets and personal data out of texts, before anything touches the disk.

Not anonymisation: names of people and what a text tells stay. A value becomes a placeholder of the same shape (length,
kinds of letters, separators), the same one wherever it stands, so that a call still fits its schema and still says what
its request says. The rule it protects: a value is replaced alike in every text, and a placeholder is recognised:
scrubbing twice changes nothing.

Placeholders are made with a key (`salt`). Without it a phone number could be found again by trying them all. A build's
key is random and thrown away, or named; what is written day after day takes one that is kept (`kept_salt`)."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from llm_tuner.types import Json, SetupError, ToolSpec

_MARK = "EXAMPLE"
_SHORTEST_KNOWN = 6
_BLOCK = 32_768
_CUT = re.compile(r"(?<=[^\s:=\"'\\])\n(?=[^\s:=\"'\\])")

# ---------------------------------------------------------------------------------------------------------- patterns

_KEYS = (
    r"sk-(?:ant-|proj-|svcacct-|or-)?[A-Za-z0-9_-]{16,}",
    r"[srp]k_(?:live|test)_[A-Za-z0-9]{16,}",
    r"gh[pousr]_[A-Za-z0-9]{30,}",
    r"github_pat_[A-Za-z0-9_]{30,}",
    r"glpat-[A-Za-z0-9_-]{16,}",
    r"xox[abeprs]-[A-Za-z0-9-]{10,}",
    r"xapp-[A-Za-z0-9-]{20,}",
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}",
    r"AIza[A-Za-z0-9_-]{35}",
    r"ya29\.[A-Za-z0-9_-]{20,}",
    r"hf_[A-Za-z0-9]{30,}",
    r"npm_[A-Za-z0-9]{30,}",
    r"pypi-[A-Za-z0-9_-]{30,}",
    r"dop_v1_[a-f0-9]{32,}",
    r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",
    r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
    r"(?<=\bBearer )[A-Za-z0-9._~+/-]{16,}=*",
)
_KEY = re.compile(rf"(?<![A-Za-z0-9_-])(?:{'|'.join(_KEYS)})")
_PREFIX = re.compile(
    r"sk-(?:ant-|proj-|svcacct-|or-)?|[srp]k_(?:live|test)_|gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|xapp-|A[KSBC][ICW]A|"
    r"AIza|ya29\.|hf_|npm_|pypi-|dop_v1_|SG\.|eyJ"
)
_PRIVATE_KEY = re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----([^-]*(?:-(?!----)[^-]*)*)-----END \1-----")
_PASSWORD = re.compile(r"(?<=://)([A-Za-z0-9._%+-]{1,64}):([^\s:/@\"']{1,128})(?=@)")
_ASSIGNED = re.compile(
    r"(?i)(?<![a-z])((?:api[_-]?key|access[_-]?token|auth[_-]?token|secret(?:[_-]?key)?|password|passwd|client[_-]?secret)"
    r"\\?[\"']?\s*[:=]\s*\\?[\"']?)([A-Za-z0-9_+/.~-]{12,})"
)
_DENSE = re.compile(r"(?<![A-Za-z0-9_+/=.-])[A-Za-z0-9_+/-]{24,}={0,2}(?![A-Za-z0-9_+/=.-])")
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])([A-Za-z0-9._%+-]{1,64})@([A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,24})"
)
_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_HOME = re.compile(r"((?:/home/|/Users/|[A-Za-z]:(?:\\{1,2}|/)Users(?:\\{1,2}|/)))([A-Za-z0-9][\w.-]*)")
_PHONE = re.compile(
    r"(?<![\w.+/-])(?:"
    r"\+\d{1,3}[ -]?(?:\(\d{1,4}\)[ -]?)?\d{1,4}(?:[ -]?\d{2,4}){2,4}"  # +44 20 7946 0958, +81-90-1234-5678
    r"|\(\d{3}\) ?\d{3}-\d{4}|\d{3}-\d{3}-\d{4}"  # (212) 555-0187, 212-555-0187
    r"|0\d{1,4}-\d{1,4}-\d{4}|0[5789]0\d{8}"  # 03-1234-5678, 09012345678
    r")(?![\w/-]|\.\d)"
)
_MAY = re.compile(r"[@+]|\d[.-]\d|\(\d|/home/|[Uu]sers|[A-Za-z0-9_+/-]{12}|0[5789]0\d{8}|PRIVATE KEY|://")
"""What any finding has: most texts have nothing of it, and are let through at once."""

_GENERIC = frozenset((
    "user", "username", "you", "me", "me.", "name", "yourname", "your-name", "your_name", "ubuntu", "root", "public",
    "shared", "default", "guest", "runner", "node", "app", "admin", "example", "test", "testuser", "documents",
    "dev", "developer", "vscode", "work", "demo",
))  # fmt: skip
_FILES = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "JVBERi0", "UEsDB", "PHN2Zy")
"""How PNG, JPEG, GIF, RIFF (WAV, WebP), PDF, ZIP and SVG begin in base64."""
_SAMPLE_DOMAINS = (".example", ".test", ".invalid", ".localhost", "example.com", "example.org", "example.net")
_LET_BE = tuple(
    ipaddress.ip_network(net)
    for net in ("0.0.0.0/8", "127.0.0.0/8", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "198.18.0.0/15",
                "224.0.0.0/3")
)  # fmt: skip
_OUR_HOME = re.compile(r"user-[a-z]{6}")
_HEX = re.compile(r"[0-9a-fA-F-]+")


# --------------------------------------------------------------------------------------------------------- scrubbing


class Scrubber:
    """Replaces what is found, and counts it by kind in `found` (every occurrence). `known` are secrets that no pattern
    has to find (a server's own token): they go wherever they stand; one of less than six letters is passed over."""

    def __init__(self, salt: str, known: Collection[str] = ()) -> None:
        self._salt = salt.encode()
        self._known = sorted((secret for secret in known if len(secret) >= _SHORTEST_KNOWN), key=len, reverse=True)
        self.found: Counter[str] = Counter()
        self._tool = lru_cache(4096)(self._scrubbed_tool)

    def text(self, text: str) -> str:
        """The text with placeholders."""
        for secret in self._known:
            if secret in text:
                self.found["key"] += text.count(secret)
                text = text.replace(secret, self._like("key", secret))
        if not _MAY.search(text):
            return text
        if len(text) <= _BLOCK:
            return self._block(text)
        text = _PRIVATE_KEY.sub(self._private_key, text)
        clean = []
        for block in _blocks(text):
            clean.append(self._block(block))
            time.sleep(0)  # a pattern holds the interpreter for as long as it looks: other threads' turn
        return "".join(clean)

    def _block(self, text: str) -> str:
        for pattern, replace in self._rules():
            text = pattern.sub(replace, text)
        return text

    def value(self, value: Json) -> Json:
        """A JSON value with placeholders in its texts and keys."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, dict):
            return {self.text(key): self.value(item) for key, item in value.items()}
        return value

    def tool(self, tool: ToolSpec) -> ToolSpec:
        """The tool with placeholders in its description and its schema; the very same where nothing is found."""
        return self._tool(tool.model_dump_json())

    def _scrubbed_tool(self, dump: str) -> ToolSpec:
        tool = ToolSpec.model_validate_json(dump)
        words = {"description": tool.description, "parameters": tool.parameters}
        clean = self.value(words)
        return tool if clean == words else tool.model_copy(update=clean)

    def _rules(self) -> Iterable[tuple[re.Pattern[str], Callable[[re.Match[str]], str]]]:
        return (
            (_PRIVATE_KEY, self._private_key),
            (_KEY, self._key),
            (_PASSWORD, self._password),
            (_ASSIGNED, self._assigned),
            (_EMAIL, self._email),
            (_HOME, self._home),
            (_IPV4, self._ipv4),
            (_PHONE, self._phone),
            (_DENSE, self._dense),
        )

    def _stream(self, kind: str, value: str) -> Iterator[int]:
        """Endless bytes that depend on the key, the kind and the value only."""
        block = 0
        while True:
            yield from hmac.new(
                self._salt, f"{kind}:{block}:{value}".encode("utf-8", "replace"), hashlib.sha256
            ).digest()
            block += 1

    def _like(self, kind: str, value: str, mark: str = _MARK) -> str:
        """A text of the same length and kinds of letters, with a mark by which it is known again."""
        stream = self._stream(kind, value)
        letters = []
        for letter in value:
            byte = next(stream)
            if letter.isdigit():
                letters.append(str(byte % 10))
            elif letter.isascii() and letter.isalpha():
                letters.append(chr((65 if letter.isupper() else 97) + byte % 26))
            else:
                letters.append(letter)
        made = "".join(letters)
        return made[: -len(mark)] + mark if mark and len(made) > len(mark) else made

    def _private_key(self, match: re.Match[str]) -> str:
        if _MARK in match.group(2):
            return match.group()
        self.found["private key"] += 1
        head, body = match.group(1), match.group(2)
        kept = body[: len(body) - len(body.lstrip("\\rn \r\n"))], body.rstrip()
        clean = self._like("private key", kept[1])
        return f"-----BEGIN {head}-----{clean}{body[len(body.rstrip()) :]}-----END {head}-----"

    def _key(self, match: re.Match[str]) -> str:
        text = match.group()
        if _MARK in text:
            return text
        self.found["key"] += 1
        prefix = _PREFIX.match(text)
        cut = prefix.end() if prefix else 0
        return text[:cut] + self._like("key", text[cut:])

    def _password(self, match: re.Match[str]) -> str:
        if match.group(2) == "password" or _MARK in match.group(2):
            return match.group()
        self.found["password"] += 1
        return f"{match.group(1)}:password"

    def _assigned(self, match: re.Match[str]) -> str:
        value = match.group(2)
        if _MARK in value or not (any(c.isdigit() for c in value) and any(c.isalpha() for c in value)):
            return match.group()
        self.found["key"] += 1
        return match.group(1) + self._like("key", value)

    def _dense(self, match: re.Match[str]) -> str:
        text = match.group()
        if _MARK in text or not looks_random(text):
            return text
        self.found["key"] += 1
        return self._like("key", text)

    def _email(self, match: re.Match[str]) -> str:
        name, domain = match.group(1), match.group(2).lower()
        if domain.endswith(_SAMPLE_DOMAINS) or name == "git":
            return match.group()
        self.found["e-mail"] += 1
        shape = name if len(name) >= 6 else "abcdef"  # a shorter one would soon be somebody else's, too
        made = self._like("e-mail", f"{shape}@{name.lower()}@{domain}", "")
        return f"{made[: len(shape)]}@example.com"

    def _home(self, match: re.Match[str]) -> str:
        name = match.group(2)
        if name.lower() in _GENERIC or _OUR_HOME.fullmatch(name):
            return match.group()
        self.found["home path"] += 1
        stream = self._stream("home path", name)
        return match.group(1) + "user-" + "".join(chr(97 + next(stream) % 26) for _ in range(6))

    def _ipv4(self, match: re.Match[str]) -> str:
        try:
            address = ipaddress.IPv4Address(match.group())
        except ValueError:
            return match.group()
        if any(address in network for network in _LET_BE):
            return match.group()
        self.found["IPv4"] += 1
        stream = self._stream("IPv4", match.group())
        return f"198.{18 + next(stream) % 2}.{next(stream)}.{next(stream)}"

    def _phone(self, match: re.Match[str]) -> str:
        """Country and area stay; the last four digits are made up, those between are zeros: nobody's number."""
        text = match.group()
        digits = [letter for letter in text if letter.isdigit()]
        if len(digits) < 9 or len(digits) > 15 or set(digits[3:-4]) <= {"0"}:
            return text
        self.found["phone"] += 1
        stream = self._stream("phone", "".join(digits))
        made = iter([*digits[:3], *("0" * (len(digits) - 7)), *(str(next(stream) % 10) for _ in range(4))])
        return "".join(next(made) if letter.isdigit() else letter for letter in text)


def _blocks(text: str) -> Iterator[str]:
    """A long text in pieces that end where a line does, and where no finding but a private key goes on."""
    start = 0
    while cut := _CUT.search(text, start + _BLOCK):
        yield text[start : cut.end()]
        start = cut.end()
    yield text[start:]


def looks_random(text: str) -> bool:
    """Whether a long word is no word but a secret: letters of both cases and digits, in no order (over 4 bits a
    letter). Hashes and UUIDs are left (tools are called with them, and they tell nothing), and files in base64, known
    by how they begin."""
    if text.startswith(_FILES):
        return False
    if _HEX.fullmatch(text) or "//" in text or text.count("/") > 2 or text.count("_") + text.count("-") > 3:
        return False
    kinds = (any(c.islower() for c in text), any(c.isupper() for c in text), sum(c.isdigit() for c in text) >= 2)
    if not all(kinds):
        return False
    counts = Counter(text)
    entropy = -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values())
    return entropy > 4.0


def kept_salt(file: Path) -> str:
    """The key in this file, which only its owner can read; a random one is made on the first call. Who loses the file
    gets other placeholders from then on. Raises SetupError where it cannot be read or written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            fresh = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
            with open(os.open(fresh, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w", encoding="ascii") as out:
                out.write(secrets.token_hex(32))
            try:
                os.link(fresh, file)  # whole or not at all, and the first of two wins
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
        if file.stat().st_mode & 0o077:
            file.chmod(0o600)
        salt = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(
            f"Cannot keep the key of the placeholders in {file}: {error}. Choose another folder."
        ) from error
    if len(salt) < 32:
        raise SetupError(f"{file} holds no key of placeholders ({len(salt)} letters). Delete it: a new one is made.")
    return salt
