"""What is recorded is there afterwards, without secrets, whatever happens to the process and the disk."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from llm_tuner.serving import exchanges, journal
from llm_tuner.serving.exchanges import Exchange, Recorder, Repair, Route, Try, new_id, read
from llm_tuner.store.scrub import Scrubber, kept_salt
from llm_tuner.types import Message, SetupError, Timing, ToolCall, ToolSpec, Usage
from recording import FIND, READ, TOOLS, asked, call, calling, heard, numbered, user

PROGRAM = Path(__file__).parent.parent / "recording.py"


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*")))


def recorder(folder: Path, **more: int) -> Recorder:
    return Recorder(folder, Scrubber("test"), **more)


def whole() -> Exchange:
    """An exchange with everything that one can have."""
    return asked(
        Message(role="system", text="Be brief."),
        user("メモを探して、Find the notes"),
        calling(call("find_files", id="c1", word="メモ")),
        heard("notes/a.txt", "c1"),
        answer=calling(call("read_file", id="c2", path="notes/a.txt", lines=3), text="Reading."),
        finish="tool_calls",
        tool_choice="required",
        rendering="compact",
        tries=(Try(backend="qwen", message=Message(role="assistant", text="<tool_call>"), why="lifted"),),
        repairs=(Repair(kind="coerced", detail='lines: "3" -> 3'),),
        usage=Usage(prompt_tokens=10, cached_tokens=8, completion_tokens=5),
        timing=Timing(total_ms=12.5, first_token_ms=3.25),
    )


# ------------------------------------------------------------------------------------------------------- what is kept


def test_what_is_recorded_comes_back_as_it_was(tmp_path: Path) -> None:
    rng, given = random.Random(5), [whole()]
    letters = 'abc äß東京ｶﾀ😀\n"\\{}\u2028\x00'
    for number in range(200):
        said = ["".join(rng.choice(letters) for _ in range(rng.randint(0, 40))) for _ in range(rng.randint(1, 5))]
        answer = calling(call("read_file", path=said[0], lines=number)) if number % 3 else None
        given.append(asked(*map(user, said), answer=answer, error="" if answer else "gone", tools=TOOLS[: number % 3]))
    one = recorder(tmp_path)
    assert all(done.result(10) for done in [one.record(exchange) for exchange in given])
    one.close()
    assert (one.recorded, one.lost, one.why, one.waiting) == (201, 0, "", 0)
    damage: list[str] = []
    assert list(read(tmp_path, damage)) == given
    assert damage == []
    (file,) = tmp_path.iterdir()
    assert list(read(file)) == given


def test_ids_are_uuids_in_the_order_of_their_making() -> None:
    made: list[list[str]] = [[] for _ in range(4)]

    def make(into: list[str]) -> None:
        into += [new_id() for _ in range(5000)]

    threads = [threading.Thread(target=make, args=(into,)) for into in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(into == sorted(into) for into in made)
    assert len({one for into in made for one in into}) == 20_000
    first = uuid.UUID(made[0][0])
    assert (first.version, first.variant) == (7, uuid.RFC_4122)
    assert abs((first.int >> 80) / 1000 - time.time()) < 60


def test_a_tool_and_a_message_are_written_once_a_file(tmp_path: Path) -> None:
    catalogue = tuple(READ.model_copy(update={"name": f"tool_{n}", "description": f"Purpose {n}."}) for n in range(73))
    said: list[Message] = []
    one = recorder(tmp_path)
    for turn in range(30):
        said += [
            user(f"Turn {turn}: {'long ' * 100}"),
            calling(call("tool_1", path=str(turn))),
            heard(f"result {turn}"),
        ]
        one.record(asked(*said, answer=calling(call("tool_2", path="x")), tools=catalogue))
    one.close()
    text = on_disk(tmp_path)
    assert text.count(b'"Purpose 7."') == 1
    assert text.count(b"Turn 0: long") == 1
    assert len(text) < 60_000
    last = list(read(tmp_path))[-1]
    assert last.tools == catalogue
    assert last.messages == tuple(said)


def test_the_last_word_about_an_exchange_counts(tmp_path: Path) -> None:
    one, exchange, other = recorder(tmp_path), numbered(1), numbered(2)
    one.feedback(other.id, True)  # before the exchange itself: the client was faster
    one.record(exchange)
    one.record(other)
    one.feedback(exchange.id, True)
    one.close()
    again = recorder(tmp_path)
    again.feedback(exchange.id, False, [call("read_file", path="b")], note="メモbのほう")
    again.feedback("no such exchange", True)
    again.close()
    first, second = read(tmp_path)
    assert first.feedback is not None
    assert (first.feedback.right, first.feedback.calls) == (False, (call("read_file", path="b"),))
    assert first.feedback.note == "メモbのほう"
    assert second.feedback is not None
    assert (second.feedback.right, second.feedback.calls) == (True, None)


# ------------------------------------------------------------------------------------------------------------ secrets

SECRETS = (
    "hanako.sato@corp.co.jp", "090-1234-5678", "/home/hanako/", "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "sk-proj-abcdEFGH1234ijklMNOP5678", "hunter2xyz", "10.1.2.3", "our-own-bearer-token",
)  # fmt: skip


def telling(where: str) -> Exchange:
    said = (
        f"{where}: mail hanako.sato@corp.co.jp 090-1234-5678 /home/hanako/x ghp_16C7e42F292c6912E7710c838347Ae178B4a "
        "Bearer sk-proj-abcdEFGH1234ijklMNOP5678 postgres://app:hunter2xyz@10.1.2.3/main our-own-bearer-token です"
    )
    tool = ToolSpec(
        name="t", description=said, parameters={"type": "object", "properties": {"a": {"description": said}}}
    )
    made = calling(call("t", id="c", a={"deep": [said]}), text=said)
    return asked(
        Message(role="system", text=said),
        user(said),
        made,
        heard(said, "c"),
        answer=made,
        tools=(tool,),
        tries=(Try(backend=said, message=Message(role="assistant", text=said, thinking=said), why=said),),
        repairs=(Repair(kind="coerced", detail=said),),
        error=said,
    ).model_copy(update={"route": Route(role="r", backend="postgres://app:hunter2xyz@10.1.2.3/main", why=said)})


def test_no_secret_reaches_the_disk_and_placeholders_agree(tmp_path: Path) -> None:
    folder, key = tmp_path / "journal", tmp_path / "state" / "key"
    for _ in range(2):
        one = Recorder(folder, Scrubber(kept_salt(key), known=["our-own-bearer-token", "k"]))
        exchange = telling("日本語")
        one.record(exchange)
        one.record(telling("English"))
        one.feedback(exchange.id, False, [call("t", a="hanako.sato@corp.co.jp our-own-bearer-token")], "090-1234-5678")
        one.close()
        assert one.recorded == 2
    text = on_disk(folder)
    for secret in SECRETS:
        assert secret.encode() not in text, secret
        assert json.dumps(secret)[1:-1].encode() not in text, secret
    assert "日本語: mail".encode() in text
    assert kept_salt(key).encode() not in text
    first, second, third, _ = read(folder)
    assert first.messages == third.messages  # two recorders, one key
    assert first.messages[1].text[len("日本語") :] == second.messages[1].text[len("English") :]
    assert first.answer is not None
    assert first.answer.tool_calls[0].arguments["a"]["deep"][0] == first.messages[1].text
    assert first.feedback is not None
    assert first.feedback.calls is not None
    assert first.feedback.calls[0].arguments["a"].split()[0] in first.messages[1].text


def test_the_key_is_kept_for_its_owner_only(tmp_path: Path) -> None:
    key = tmp_path / "state" / "key"
    salt = kept_salt(key)
    assert len(salt) == 64
    assert key.stat().st_mode & 0o777 == 0o600
    assert list(key.parent.iterdir()) == [key]
    key.chmod(0o644)
    assert kept_salt(key) == salt
    assert key.stat().st_mode & 0o777 == 0o600
    key.write_text("short")
    with pytest.raises(SetupError, match="Delete it"):
        kept_salt(key)
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="Choose another folder"):
        kept_salt(tmp_path / "file" / "key")
    made: list[str] = []
    both = [threading.Thread(target=lambda: made.append(kept_salt(tmp_path / "other"))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert made[0] == made[1]


def test_journals_are_for_their_owner_only(tmp_path: Path) -> None:
    one = recorder(tmp_path / "journal")
    one.record(numbered(1))
    one.close()
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "journal").iterdir()] == [0o600]


# ---------------------------------------------------------------------------------------------------- kills and halves


def test_a_kill_under_load_loses_what_was_in_flight_only(tmp_path: Path) -> None:
    for kill in range(3):
        handed, written = tmp_path / f"handed-{kill}", tmp_path / f"written-{kill}"
        with handed.open("wb") as errors, written.open("wb") as out:
            process = subprocess.Popen([sys.executable, str(PROGRAM), str(tmp_path)], stdout=out, stderr=errors)
            until = time.monotonic() + 60
            while written.stat().st_size < 37 * 500 and time.monotonic() < until and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
        there = {exchange.id for exchange in read(tmp_path / "journal")}
        said = set(written.read_text().splitlines())
        assert len(said) >= 500
        assert said <= there
        assert len(set(handed.read_text().splitlines()) - there) <= 8  # threads that wait for their one exchange
    damage: list[str] = []
    one = recorder(tmp_path / "journal")
    one.record(numbered(0))
    one.close()
    assert len(list(read(tmp_path / "journal", damage))) >= 1501
    assert damage == []
    assert all(path.read_bytes().endswith(b"\n") for path in (tmp_path / "journal").iterdir())


def test_half_a_line_is_passed_over_and_cut_off_at_the_next_start(tmp_path: Path) -> None:
    one = recorder(tmp_path)
    one.record(numbered(1))
    one.flush()
    (living,) = tmp_path.iterdir()
    dead = tmp_path / "2020-01-01.dead.jsonl"
    shutil.copy(living, dead)
    good = dead.read_bytes()
    mine = tmp_path / "notes.jsonl"  # not a journal's
    mine.write_bytes(b'{"a": 1}\n{"b"')
    for half in (b'{"exchange": {"id": "x', '{"n": 9, "message": "東'.encode()[:-1], b"x" * 200_000):
        dead.write_bytes(good + half)
        with living.open("ab") as file:
            file.write(b'{"half')
        assert len(list(read(tmp_path))) == 2
        other = recorder(tmp_path, retention_days=100_000)
        other.close()
        assert dead.read_bytes() == good
        assert living.read_bytes().endswith(b'{"half')  # another process may be in the middle of it
        os.truncate(living, living.stat().st_size - 6)
    assert mine.read_bytes() == b'{"a": 1}\n{"b"'
    one.close()


def test_a_damaged_line_is_said_and_costs_what_stood_in_it(tmp_path: Path) -> None:
    one = recorder(tmp_path)
    for number in range(3):
        one.record(numbered(number))
    one.close()
    (file,) = tmp_path.iterdir()
    good = file.read_bytes().splitlines(keepends=True)
    place = next(n for n, line in enumerate(good) if b"note 1" in line)
    for bad in (b"\xff\n", b"[]\n", b"7\n", b'{"exchange": {"id": 3}}\n', b'{"n": 4, "message": {"role": "x"}}\n'):
        file.write_bytes(b"".join([*good[:place], bad, *good[place + 1 :]]))
        damage: list[str] = []
        assert [e.messages[0].text[:11] for e in read(tmp_path, damage)] == ["Read note 0", "Read note 2"]
        assert any(f"line {place + 1}" in sentence for sentence in damage) or bad == b"[]\n"
        assert any("KeyError" in sentence for sentence in damage)


# ------------------------------------------------------------------------------------------------------------- no room


def told(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    assert done.returncode == 0, done.stderr
    return [line.split("|") for line in done.stdout.splitlines()]


def check_no_room(tmp_path: Path, found: list[list[str]], why: str) -> None:
    before, after = found
    assert before[3] == why
    written, lost = int(before[0]), int(before[1])
    assert written + lost == 200
    assert lost > 20
    assert int(before[2]) == lost
    assert after[:3] == [str(written + 10), str(lost), "0"]


def test_a_file_that_may_not_grow_costs_what_does_not_fit_and_no_more(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), str(tmp_path), "20000"]
    found = told(subprocess.run(command, capture_output=True, text=True, timeout=120))
    check_no_room(tmp_path, found, "File too large")
    damage: list[str] = []
    there = list(read(tmp_path / "journal", damage))
    assert len(there) == int(found[1][0])
    assert there[-1].messages[0].text.startswith("Read note 209")
    (sentence,) = damage
    assert f"{found[0][1]} exchanges were not recorded (File too large)" in sentence


def test_a_full_disk_costs_what_does_not_fit_and_no_more(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    script = (
        'mount -t tmpfs -o size=256k none "$1" && head -c 220k /dev/zero > "$1/filler"'
        ' && "$2" "$3" "$1" 0 && cp -r "$1/journal" "$4"'
    )
    words = [str(tmp_path / "disk"), sys.executable, str(PROGRAM), str(tmp_path)]
    command = [unshare, "-rm", "sh", "-c", script, "sh", *words]
    (tmp_path / "disk").mkdir()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if "mount:" in done.stderr:
        pytest.skip("no file system can be mounted here")
    found = told(done)
    check_no_room(tmp_path, found, "No space left on device")
    assert len(list(read(tmp_path / "journal"))) == int(found[1][0])


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="Choose another"):
        recorder(tmp_path / "file" / "journal")


def test_a_folder_deleted_while_recording_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    one = recorder(folder)
    assert one.record(numbered(1)).result(10)
    shutil.rmtree(folder)
    assert one.record(numbered(2)).result(10)
    one.close()
    assert [e.messages[0].text[:11] for e in read(folder)] == ["Read note 2"]


def test_what_cannot_be_written_is_lost_alone(tmp_path: Path) -> None:
    deep: object = "x"
    for _ in range(3000):
        deep = [deep]
    one = recorder(tmp_path)
    half = asked(user("half \ud83d a pair"), answer=calling(ToolCall(name="t", arguments={"a": "\udc00"})))
    ways = [numbered(1), asked(user("x"), answer=calling(call("t", a=deep))), half, numbered(2)]
    assert [one.record(exchange).result(30) for exchange in ways] == [True, False, True, True]
    one.close()
    assert one.lost == 1
    assert one.why
    damage: list[str] = []
    assert [e.messages[0].text for e in read(tmp_path, damage)][1] == "half ? a pair"
    assert len(damage) == 1


def test_serving_does_not_wait_for_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, there = threading.Event(), journal.Journal.file

    def file(self: journal.Journal) -> journal.File:
        slow.wait(60)
        return there(self)

    monkeypatch.setattr(journal.Journal, "file", file)
    monkeypatch.setattr(exchanges, "_WAITING", 50)
    one = recorder(tmp_path)
    started = time.perf_counter()
    done = [one.record(numbered(n)) for n in range(80)]
    assert time.perf_counter() - started < 2
    assert (one.lost, one.waiting) == (30, 50)
    assert "too slow" in one.why
    assert not one.flush(0.05)
    slow.set()
    assert one.flush(30)
    assert sum(d.result(30) for d in done) == 50
    monkeypatch.setattr(exchanges, "_WAITING_CHARACTERS", 1000)
    assert not one.record(asked(user("x" * 2000), answer=None)).result(10)
    assert one.record(numbered(80)).result(10)
    one.close()
    assert not one.record(numbered(81)).result(10)
    assert one.why == "the recorder is closed"
    assert one.flush()
    one.close()
    damage: list[str] = []
    assert len(list(read(tmp_path, damage))) == 51
    told = [int(sentence.split(": ")[1].split()[0]) for sentence in damage]  # the flush above may cut the 30 in two
    assert (sum(told[:-1]), told[-1]) == (30, 1)


def test_a_disk_that_takes_long_to_sync_keeps_nothing_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, sync, synced = threading.Event(), os.fsync, []

    def fsync(fd: int) -> None:
        synced.append(fd)
        slow.wait(60)
        sync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    one = recorder(tmp_path)
    assert one.record(numbered(0)).result(10)
    until = time.monotonic() + 10
    while not synced and time.monotonic() < until:
        time.sleep(0.005)
    assert synced  # without being asked, soon after
    assert all(one.record(numbered(n)).result(10) for n in range(1, 20))
    assert len(list(read(tmp_path))) == 20
    slow.set()
    one.close()


# ---------------------------------------------------------------------------------------------------------- retention


def test_old_days_go_and_the_oldest_of_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    days = iter(["2030-01-01", "2030-01-02", "2030-01-03", "2030-01-31"])
    for day in days:
        monkeypatch.setattr(journal, "_today", lambda day=day: day)
        one = recorder(tmp_path, retention_days=29)
        one.record(numbered(1))
        one.close()
    assert [path.name[:10] for path in sorted(tmp_path.iterdir())] == ["2030-01-02", "2030-01-03", "2030-01-31"]
    monkeypatch.setattr(journal, "_today", lambda: "2030-03-01")
    one = recorder(tmp_path, retention_days=1000, max_bytes=40_000)
    for number in range(600):
        one.record(asked(user(f"{number} {'x' * 300}"), answer=calling(call("read_file", path="a"))))
    one.close()
    assert one.recorded == 600
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 40_000
    kept = [e.messages[0].text.split()[0] for e in read(tmp_path)]
    assert kept == [str(n) for n in range(600 - len(kept), 600)]
    assert len(kept) > 30


def test_a_new_day_is_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_today", lambda: "2030-01-01")
    one = recorder(tmp_path)
    assert one.record(numbered(1)).result(10)
    monkeypatch.setattr(journal, "_today", lambda: "2030-01-02")
    assert one.record(numbered(1)).result(10)
    one.close()
    assert [path.name[:10] for path in sorted(tmp_path.iterdir())] == ["2030-01-01", "2030-01-02"]
    first, second = read(tmp_path)
    assert first.messages == second.messages  # each file is whole by itself


def test_two_gateways_record_side_by_side(tmp_path: Path) -> None:
    both = [recorder(tmp_path, retention_days=0) for _ in range(2)]
    done = [one.record(numbered(n)) for n in range(200) for one in both]
    assert all(d.result(30) for d in done)
    recorder(tmp_path, max_bytes=1).close()  # a third tidies: files that are written to stay
    for one in both:
        one.close()
    assert len(list(read(tmp_path))) == 400


def test_how_fast(tmp_path: Path) -> None:
    """A generous bound; what is usual is in docs/data.md."""
    catalogue = tuple(FIND.model_copy(update={"name": f"tool_{n}"}) for n in range(73))
    given = [
        asked(user(f"Find {n}"), answer=calling(call("tool_1", word=str(n))), tools=catalogue) for n in range(2000)
    ]
    one = recorder(tmp_path)
    started = time.perf_counter()
    for exchange in given:
        one.record(exchange)
    handed = time.perf_counter() - started
    assert one.flush(60)
    took = time.perf_counter() - started
    one.close()
    assert one.recorded == 2000
    assert handed < 2
    assert took < 10
