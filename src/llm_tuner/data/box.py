"""The box: a throw-away folder in which tools may do what they like, restored after every call.

The demo's box holds twelve small git repositories, a SQLite database, and a page server on loopback. All paths in
requests are relative to the box, so the same task means the same thing in every box.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from llm_tuner.data.wording import BRANCHES, NUMERIC, PAGES, REPOSITORIES, TABLES
from llm_tuner.types import SetupError

PAGE_PORT = 8733
"""Preferred port of the page server; another free one is taken when it is in use."""


class Box:
    """A folder and the snapshot that `restore` brings it back to. `pages` is the page server's base URL, if any."""

    def __init__(self, path: Path, pages: str = "") -> None:
        self.path = path
        self.pages = pages
        self._snapshot = path.with_name(path.name + ".snapshot")
        shutil.copytree(path, self._snapshot, symlinks=True)
        self._before = _entries(self._snapshot)

    def restore(self) -> None:
        """Every file as it was: changed and missing ones are copied back, new ones and new folders removed."""
        before, now = self._before, _entries(self.path)
        for name in sorted(now.keys() - before.keys(), reverse=True):  # what lies in a folder goes before it
            (self.path / name).rmdir() if now[name] is None else (self.path / name).unlink()
        for name, stamp in before.items():
            if name in now and now[name] == stamp:
                continue
            target = self.path / name
            if stamp is None:
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self._snapshot / name, target)


def _entries(root: Path) -> dict[str, tuple[int, int] | None]:
    """Everything below `root` by relative path: size and modification time (ns) of a file, None for a folder."""
    found: dict[str, tuple[int, int] | None] = {}
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        with os.scandir(root / folder) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    found[name] = None
                    waiting.append(name)
                else:
                    info = entry.stat(follow_symlinks=False)
                    found[name] = (info.st_size, info.st_mtime_ns)
    return found


@contextmanager
def empty_box(seed: Path | None = None) -> Iterator[Box]:
    """A box for anybody's servers: empty, or a copy of the folder `seed`."""
    with tempfile.TemporaryDirectory(prefix="llm-tuner-") as folder:
        path = Path(folder) / "box"
        if seed is None:
            path.mkdir()
        else:
            shutil.copytree(seed, path, symlinks=True)
        yield Box(path)


@contextmanager
def demo_box() -> Iterator[Box]:
    """The demo's box, with its pages served on loopback while the context is open. Raises SetupError without git."""
    if shutil.which("git") is None:
        raise SetupError("The demo's box needs the command git, which is not on PATH. Install git and try again.")
    with tempfile.TemporaryDirectory(prefix="llm-tuner-") as folder:
        path = Path(folder) / "box"
        _repositories(path / "repos")
        _database(path / "shop.db")
        pages = Path(folder) / "pages"
        _pages(pages)
        with _serving(pages) as base:
            yield Box(path, base)


def _repositories(root: Path) -> None:
    first, *others = REPOSITORIES
    _repository(root / first)
    for name in others:
        shutil.copytree(root / first, root / name)


def _repository(path: Path) -> None:
    """Four commits, all branches of the pool, two tags; then one staged, one unstaged and several untracked changes."""
    path.mkdir(parents=True)
    run = partial(_git, path)
    run("init", "-q", "-b", "main")
    run("config", "user.name", "Demo")
    run("config", "user.email", "demo@example.org")
    for number, (name, text) in enumerate(
        (
            ("README.md", "# Demo\n\nA small project.\n"),
            ("src/app.py", "def main():\n    print('hello')\n"),
            ("docs/guide.md", "# Guide\n\n1. Install\n2. Run\n"),
            ("config.yaml", "port: 8080\ndebug: false\n"),
        )
    ):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text, encoding="utf-8")
        run("add", name)
        run("commit", "-q", "-m", f"Add {name}")
        if number < 2:
            run("tag", f"v1.{number}")
    for name in BRANCHES[1:]:
        run("branch", name)
    (path / "config.yaml").write_text("port: 9090\ndebug: true\n", encoding="utf-8")
    run("add", "config.yaml")
    (path / "docs/guide.md").write_text("# Guide\n\n1. Install\n2. Configure\n3. Run\n", encoding="utf-8")
    (path / "tests").mkdir()
    for name in ("tests/test_app.py", "notes.txt", "CHANGELOG.md", "Makefile"):
        (path / name).write_text(f"{name}\n", encoding="utf-8")


def _git(path: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(path), *arguments], check=True, capture_output=True, timeout=60)


def _database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        for table, columns in TABLES.items():
            kinds = ", ".join(f"{name} {'REAL' if name in NUMERIC else 'TEXT'}" for name in columns)
            database.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, {kinds})")
            for row in range(1, 6):
                values = [row * 10 if name in NUMERIC else f"{name} {row}" for name in columns]
                marks = ", ".join("?" * len(columns))
                database.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", values)


def _pages(root: Path) -> None:
    for page in PAGES:
        path = root / page.removeprefix("{base}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        title = path.stem.capitalize()
        body = "".join(f"<p>{title}, paragraph {n}: a page of the demo.</p>" for n in range(1, 9))
        path.write_text(
            f"<!doctype html><html><head><title>{title}</title></head><body><h1>{title}</h1>{body}</body></html>",
            encoding="utf-8",
        )


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        return


@contextmanager
def _serving(root: Path) -> Iterator[str]:
    handler = partial(_Quiet, directory=str(root))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", PAGE_PORT), handler)
    except OSError:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, name="llm-tuner-pages", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
