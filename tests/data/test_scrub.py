"""Secrets and personal data are replaced everywhere alike, keep their shape, and what is none is let be."""

from __future__ import annotations

import random
import re
import string
import time

import pytest
from rows import MAIL, asked, call, made

from llm_tuner.data.examples import Example, piped
from llm_tuner.data.rejections import Rejection
from llm_tuner.data.scrub import Scrubber, findings, scrub, scrubbed
from llm_tuner.data.validity import faults
from llm_tuner.store.scrub import looks_random
from llm_tuner.types import Message, ToolCall, ToolResult, ToolSpec

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"
SECRETS = {
    "e-mail": ["hanako.sato@corp.co.jp", "j@x.io", "first+tag@mail.gmail.com"],
    "phone": ["+81 90-1234-5678", "03-1234-5678", "09012345678", "(212) 736-5000", "212-736-5000", "+44 20 7946 0018"],
    "home path": ["/home/hanako/notes.txt", "/Users/hsato/Desktop", "C:\\Users\\Hanako\\x", "C:\\\\Users\\\\Hanako\\\\x"],
    "IPv4": ["10.1.2.3", "203.0.114.9", "192.168.178.44"],
    "key": [
        "sk-proj-abcdEFGH1234ijklMNOP5678", "ghp_16C7e42F292c6912E7710c838347Ae178B4a", "AKIAIOSFODNN7ABCDEFG",
        "AIzaSyA1234567890abcdefghijklmnopqrstuvw", "xoxb-123456789012-abcdefGHIJKL", "glpat-abcdEFGH1234ijkl", JWT,
        "api_key=9f8e7d6c5b4a39281706", "Bearer abcDEF123456ghiJKL789", "Zk3Tq9Lw8Xv2Rb7Yp4Nd6Mc1Hs5Jf0Ga",
    ],
    "password": ["postgres://app:hunter2xyz@db/main"],
}  # fmt: skip
HARMLESS = [
    "127.0.0.1", "0.0.0.0", "192.0.2.44", "198.51.100.1", "300.1.2.3", "version 1.2.3.4.5", "me@example.com",
    "git@github.com:a/b.git", "/home/user/x", "/Users/Shared/x", "2024-01-15", "05-12-2023", "4172.80", "1234567890",
    "a1b2c3d4-e5f6-7890-abcd-ef1234567890", "9fceb02d0ae598e95dc970b74767f19372d61af8", "978-3-16-148410-0",
    "maximum_number_of_results_per_page", "InternationalizationConfigurationManager", "src/llm_tuner/data/scrub.py:12",
    "https://en.wikipedia.org/wiki/Tool_(Disambiguation)/Page_Title_2", "10:30-11:45", "BTC-USDT", "03/04/2024",
    "東京都千代田区1-1-1", "$1,234.56", "+1", "a+b@", "100-200-300", "SHA256:abc",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in SECRETS.items() for text in texts])
def test_what_is_found(kind: str, text: str) -> None:
    scrubber = Scrubber("k")
    clean = scrubber.text(f"see {text} there")
    assert scrubber.found == {kind: 1}
    assert text not in clean
    assert Scrubber("other").text(clean) == clean  # a placeholder is known again
    assert Scrubber("k").text(f"see {text} there") == clean
    assert Scrubber("other").text(f"see {text} there") != clean or kind == "password"


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_let_be(text: str) -> None:
    scrubber = Scrubber("k")
    assert scrubber.text(f"see {text} there") == f"see {text} there"


def test_shapes_stay() -> None:
    text = Scrubber("k").text
    assert re.fullmatch(r"\+81 90-0000-\d{4}", text("+81 90-1234-5678"))
    assert re.fullmatch(r"\(212\) 000-\d{4}", text("(212) 736-5000"))
    assert re.fullmatch(r"/home/user-[a-z]{6}/notes\.txt", text("/home/hanako/notes.txt"))
    assert re.fullmatch(r"198\.1[89]\.\d+\.\d+", text("10.1.2.3"))
    assert re.fullmatch(r"AKIA[A-Z0-9]{9}EXAMPLE", text("AKIAIOSFODNN7ABCDEFG"))
    assert len(text(JWT)) == len(JWT)
    assert re.fullmatch(r"[a-z]{6}\.[a-z]{4}@example\.com", text("hanako.sato@corp.co.jp"))
    assert text("HANAKO.sato@corp.co.jp") != "HANAKO.sato@corp.co.jp"


def test_a_private_key_keeps_its_frame_only() -> None:
    body = "\n".join(["MIIEpAIBAAKCAQEAx7g9Q2t5V8nB"] * 4)
    clean = Scrubber("k").text(f"-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----")
    assert clean.startswith("-----BEGIN RSA PRIVATE KEY-----\n")
    assert clean.endswith("\n-----END RSA PRIVATE KEY-----")
    assert "MIIEpAIBAAKC" not in clean
    assert Scrubber("z").text(clean) == clean


def talk() -> Example:
    """A request, a call, its result and a second call, all with the same values."""
    tool = MAIL.model_copy(
        update={
            "description": "Mails from /home/hanako/outbox, as hanako.sato@corp.co.jp",
            "parameters": {
                "type": "object",
                "properties": {
                    "to": {"type": "string", "format": "email", "pattern": "^[^@]+@[^@]+$"},
                    "from_ip": {"type": "string", "pattern": r"^\d+\.\d+\.\d+\.\d+$"},
                    "attach": {"type": "array", "items": {"type": "string", "pattern": "^/home/[^/]+/"}},
                    "phone": {"type": "string", "minLength": 12, "maxLength": 13},
                },
                "required": ["to"],
            },
        }
    )
    values = {
        "to": "hanako.sato@corp.co.jp",
        "from_ip": "10.1.2.3",
        "attach": ["/home/hanako/a.txt"],
        "phone": "090-1234-5678",
    }
    before = (
        Message(role="user", text="Mail /home/hanako/a.txt to hanako.sato@corp.co.jp (090-1234-5678) from 10.1.2.3, twice"),
        Message(role="assistant", tool_calls=(ToolCall(name="send_mail", arguments=values, id="call_1"),)),
        Message(role="tool", result=ToolResult(call_id="call_1", content='{"sent_to": "hanako.sato@corp.co.jp"}')),
    )  # fmt: skip
    again = Message(role="assistant", tool_calls=(ToolCall(name="send_mail", arguments=values, id="call_2"),))
    return made(*before, answer=again, tools=(tool,))


def test_the_same_value_is_the_same_placeholder_everywhere_and_the_call_is_still_right() -> None:
    example = talk()
    assert list(faults(example)) == []
    clean = scrubbed(Scrubber("k"), example)
    dump = clean.task.model_dump_json() + clean.attempt.model_dump_json()
    for secret in ("hanako", "corp.co.jp", "10.1.2.3", "1234-5678"):
        assert secret in example.task.model_dump_json()
        assert secret not in dump
    assert list(faults(clean)) == []  # every schema fits, the answer is still right for its own task
    values = clean.answer.tool_calls[0].arguments
    request, result = clean.task.messages[0].text, clean.task.messages[2].result
    assert values["to"] in request
    assert values["phone"] in request
    assert values["from_ip"] in request
    assert values["attach"][0] in request
    assert result is not None
    assert values["to"] in result.content
    assert values["to"] in clean.task.tools[0].description
    assert values == clean.task.messages[1].tool_calls[0].arguments
    assert not findings(clean)
    assert findings(example)


def test_an_example_without_secrets_is_the_very_same() -> None:
    example = asked("Mail it to the boss", call("send_mail", to="boss"))
    assert scrubbed(Scrubber("k"), example) is example


def test_rejections_are_scrubbed_too() -> None:
    raw = Rejection(stage="read", reason="x", detail="no JSON: hanako@corp.jp", request="call 03-1234-5678")
    (clean,) = piped([raw], scrub(Scrubber("k")))
    assert isinstance(clean, Rejection)
    assert "hanako" not in clean.detail
    assert "1234-5678" not in clean.request


def test_names_of_parameters_are_not_touched() -> None:
    tool = ToolSpec(
        name="t", parameters={"type": "object", "properties": {"recipient_email_address_2": {"type": "string"}}}
    )
    example = asked("x", call("t", recipient_email_address_2="a.b@corp.jp"), tools=(tool,))
    clean = scrubbed(Scrubber("k"), example)
    assert list(clean.answer.tool_calls[0].arguments) == ["recipient_email_address_2"]
    assert clean.task.tools == (tool,)


@pytest.mark.parametrize(
    "part", ["a@", "x@a.a.", "+1 ", "/home/a", "-----BEGIN PRIVATE KEY-----", "1.1.", "0-", "api_key="]
)
def test_long_texts_do_not_stop_a_build(part: str) -> None:
    """A megabyte takes about a second; where time grew with the square, it would be minutes."""
    started = time.process_time()
    Scrubber("k").text(part * (1_000_000 // len(part)))
    assert time.process_time() - started < 20


def test_scrubbing_twice_changes_nothing_whatever_stands_side_by_side() -> None:
    rng, letters = random.Random(3), string.ascii_letters + string.digits

    def word(size: int) -> str:
        return "".join(rng.choice(letters) for _ in range(size))

    for _ in range(1500):
        size = rng.randint(0, 30)
        parts = [
            f"sk-{word(16 + size)}", f"api_key={word(12 + size)}", f'"password": "{word(12 + size)}"', word(24 + size),
            f"{word(1 + size)}@{word(3)}.com", ".".join(str(rng.randrange(256)) for _ in range(4)), f"/home/{word(6)}/x",
            f"0{rng.randint(1, 9)}-{rng.randint(1000, 9999)}-{rng.randint(1000, 9999)}", f"xoxb-{word(10 + size)}",
            f"postgres://{word(4)}:{word(1 + size)}@h/x",
        ]  # fmt: skip
        text = " ".join(rng.sample(parts, 3))
        clean = Scrubber("k").text(text)
        again = Scrubber("z")
        assert (again.text(clean), again.found.total()) == (clean, 0), text


def test_a_long_text_is_scrubbed_like_its_pieces() -> None:
    rng, found = random.Random(7), [text for texts in SECRETS.values() for text in texts]
    key = "-----BEGIN PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEAx7g9Q2t5V8nB\n" * 4000 + "-----END PRIVATE KEY-----"
    words = ["a line of words", "メモ", "password:", "api_key =\n", "x\n\n", *found, *HARMLESS]
    text = "".join(rng.choice(words) + rng.choice([" ", "\n"]) for _ in range(12_000)) + key
    assert len(text) > 300_000
    clean, scrubber = Scrubber("k").text(text), Scrubber("k")
    assert clean == scrubber._block(text)  # in one piece
    assert not any(secret in clean for secret in found)
    assert "MIIEpAIBAAKC" not in clean


def test_known_secrets_go_wherever_they_stand() -> None:
    scrubber = Scrubber("k", known=["correct horse", "correct horse battery", "no"])
    clean = scrubber.text("it is 'correct horse battery', no: correct horse!")
    assert "horse" not in clean
    assert ", no: " in clean
    assert scrubber.found == {"key": 2}
    assert scrubber.value({"correct horse": ["correct horse"]}) != {"correct horse": ["correct horse"]}


def test_a_picture_in_base64_is_no_key() -> None:
    picture = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAACklEQVR4nGNgAAAAAgABc3UBGAAAAABJRU5ErkJggg"
    assert not looks_random(picture)
    assert looks_random("aB3dE5fG7hJ9kL2mN4pQ6rS8tUwXyZ")
