"""The box of a reference hub: projects, git repositories, a knowledge graph and web pages, made of the very pools that
requests take their values from.

Not the demo's box (box.py). The rule it protects: a path, branch or person that a request names is there, with the
same bytes, dates and hashes in every box, so that the same seed makes the same results.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from llm_tuner.data.box import Box
from llm_tuner.data.values import pool
from llm_tuner.types import SetupError

EPOCH = 1_767_250_800
"""Modification time of every file: 2026-01-01 in Japan."""

TAGS = ("v1.0", "v1.1")
# The names of the pool `committed`.
COMMITTED = {
    "README.md": "# Demo\n\nA small project.\n",
    "src/app.py": "def main():\n    print('hello')\n",
    "docs/guide.md": "# Guide\n\n1. Install\n2. Run\n",
    "config.yaml": "port: 8080\ndebug: false\n",
    "LICENSE": "Apache-2.0\n",
    "setup.cfg": "[metadata]\nname = demo\n",
}
CHANGED = {
    "README.md": "# Demo\n\nA small project with a guide.\n",
    "docs/guide.md": "# Guide\n\n1. Install\n2. Configure\n3. Run\n",
    "src/app.py": "def main():\n    print('hello again')\n",
    "LICENSE": "Apache-2.0 or MIT\n",
    "setup.cfg": "[metadata]\nname = demo\nversion = 2\n",
}
UNTRACKED = ("notes.txt", "Makefile", "tests/test_app.py")
STAGED = "config.yaml"


class HubBox(Box):
    """A box with `web`: the folder whose files are served as pages."""

    def __init__(self, path: Path, web: Path) -> None:
        super().__init__(path)
        self.web = web


@contextmanager
def hub_box() -> Iterator[HubBox]:
    """A fresh box. Raises SetupError without git."""
    if shutil.which("git") is None:
        raise SetupError("The box needs the command git, which is not on PATH. Install git and try again.")
    with tempfile.TemporaryDirectory(prefix="llm-tuner-") as folder:
        path, web = Path(folder) / "box", Path(folder) / "web"
        for project in map(str, pool("project")):
            _project(path / "projects" / project, project)
        _repositories(path)
        (path / "memory.jsonl").write_text("".join(json.dumps(line) + "\n" for line in graph()), encoding="utf-8")
        for page in map(str, pool("page")):
            _write(web / page, page_text(page))
        for file in path.rglob("*"):
            if file.is_file() and ".git" not in file.parts:
                os.utime(file, (EPOCH, EPOCH))
        yield HubBox(path, web)


def file_text(project: str, name: str) -> str:
    """What a project's file says."""
    title = f"{project}: {Path(name).stem}"
    kind = Path(name).suffix
    if kind == ".md":
        return f"# {title}\n\nLast checked in May.\n\n- Owner: platform team\n- Status: active\n"
    if kind == ".py":
        return f'"""{title}"""\n\nTIMEOUT = 30\n\n\ndef run() -> int:\n    return TIMEOUT\n'
    if kind == ".csv":
        rows = (f"{n},item {n},{n * 12}" for n in range(1, 21))
        return "\n".join(("id,name,total", *rows)) + "\n"
    if kind == ".json":
        return json.dumps({"name": project, "version": "1.4.0", "private": True}, indent=2) + "\n"
    return "".join(f"{line}\n" for line in (f"# {title}", "debug = true", "port = 8080", "timeout = 10"))


def page_text(page: str) -> str:
    """A web page of a few hundred characters."""
    title = Path(page).stem.capitalize()
    body = "".join(f"<p>{title}, paragraph {n}: what you need to know.</p>" for n in range(1, 9))
    return f"<!doctype html><html><head><title>{title}</title></head><body><h1>{title}</h1>{body}</body></html>\n"


def graph() -> list[dict[str, object]]:
    """The lines of the knowledge graph: every person and system of the pools, with two facts and a relation each."""
    people, systems = pool("person"), pool("system")
    facts, system_facts = pool("fact"), pool("system-fact")
    lines: list[dict[str, object]] = []
    for number, name in enumerate([*people, *systems]):
        known = facts if name in people else system_facts
        notes = [known[number % len(known)], known[(number + 5) % len(known)]]
        kind = "person" if name in people else "service"
        lines.append({"type": "entity", "name": name, "entityType": kind, "observations": notes})
    for number, name in enumerate(people):
        to = systems[number % len(systems)]
        lines.append({"type": "relation", "from": name, "to": to, "relationType": "maintains"})
    return lines


def facts_of(name: str) -> list[str]:
    """The two facts that the graph holds about a person or a system."""
    return next(list(line["observations"]) for line in graph() if line.get("name") == name)  # type: ignore[call-overload]


def _project(root: Path, project: str) -> None:
    for name in map(str, pool("project-file")):
        _write(root / name, file_text(project, name))
    number = pool("project").index(project)
    url = f"http://{pool('host')[number % 8]}/{pool('page')[number % 16]}"
    _write(root / "scripts/check.sh", "#!/bin/sh\nexit 0\n")
    _write(root / "notes/link.txt", f"{url}\n")
    zone = pool("zone")[number * 3]
    _write(root / "config/office.json", json.dumps({"office": project, "timezone": zone}, indent=2) + "\n")
    for name in map(str, pool("media-file")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(_MEDIA.get(Path(name).suffix, _MEDIA[".png"]))


_MEDIA: Mapping[str, bytes] = {
    ".png": bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
        "1f15c4890000000a49444154789c6360000000020001e221bc330000000049454e44ae426082"
    ),
    ".jpg": bytes.fromhex("ffd8ffe000104a46494600010100000100010000ffd9"),
    ".wav": bytes.fromhex("524946462400000057415645666d74201000000001000100401f0000803e0000020010006461746100000000"),
}


def _repositories(path: Path) -> None:
    first, *others = map(str, pool("repo"))
    _repository(path / first)
    for name in others:
        shutil.copytree(path / first, path / name, symlinks=True)


def _repository(path: Path) -> None:
    """A commit a file, every branch of the pool, two tags; then a staged, some unstaged and some untracked changes."""
    path.mkdir(parents=True)
    run = partial(_git, path)
    run("init", "-q", "-b", "main", "--template=")
    run("config", "user.name", "Mika Aalto")
    run("config", "user.email", "mika@example.org")
    run("config", "gc.auto", "0")
    for number, (name, text) in enumerate(COMMITTED.items()):
        _write(path / name, text)
        run("add", name)
        run("commit", "-q", "-m", f"Add {name}", date=EPOCH + number * 86_400)
        if number < len(TAGS):
            run("tag", TAGS[number])
    every = "".join(f"create refs/heads/{name} HEAD\n" for name in map(str, pool("branch")))
    run("update-ref", "--stdin", given=every)
    run("repack", "-adq")  # few files: a box is compared with its snapshot after every task
    run("pack-refs", "--all")
    _write(path / STAGED, "port: 9090\ndebug: true\n")
    run("add", STAGED)
    for name, text in CHANGED.items():
        _write(path / name, text)
    for name in UNTRACKED:
        _write(path / name, f"{name}\n")


def _git(path: Path, *arguments: str, date: int = EPOCH, given: str = "") -> None:
    when = f"{date} +0900"
    environment = {**os.environ, "GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when, "GIT_CONFIG_GLOBAL": os.devnull}
    subprocess.run(
        ["git", "-C", str(path), *arguments],
        check=True,
        capture_output=True,
        timeout=120,
        env=environment,
        input=given.encode(),
    )


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
