"""Versions of tuned models for the embedded runtime: v1, v2, ..., and the aliases that say which of them serves.

Not the cache of fetched models (`sources`), and not a judge: promoting is somebody else's decision. The rule it
protects: an alias moves in one rename, after everything it points to is on disk, so that a failure at any point leaves
the model that serves today serving.

    ROOT/files/SHA256.gguf          the weights, named by their content
    ROOT/NAME/v3.json               one version: what it is and where it comes from
    ROOT/NAME/aliases.json          candidate, stable, and the stables before it
    ROOT/NAME/moves.jsonl           which alias moved when, from where to where, and why
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError

from llm_tuner.models.sources.cache import locked, replace_text, room_for
from llm_tuner.models.sources.weights import CHUNK, check_gguf
from llm_tuner.types import CorruptModel, Json, ModelError, SetupError, UnknownModel, Value

V = TypeVar("V", bound=Value)

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_VERSION = re.compile(r"v[1-9]\d*")


class Version(Value):
    """One installed version. `version` is like "v3", `size` is in bytes, `created` is UTC in ISO 8601; `lineage` says
    which run, base and data it comes from, `measured` what was measured of it and how the gate decided."""

    name: str
    version: str
    sha256: str
    size: int
    created: str
    lineage: dict[str, Json] = Field(default_factory=dict)
    measured: dict[str, Json] = Field(default_factory=dict)

    @property
    def refused(self) -> bool:
        """Whether the gate said no to it."""
        return self.measured.get("promote") is False


class Move(Value):
    """An alias that moved: from version to version, "" for none; `by` what (install, promote, rollback, alias)."""

    when: str
    alias: str
    before: str
    after: str
    by: str


class Garbage(Value):
    """What no alias reaches: versions ("name:v3"), and files with the bytes that removing all of it would free."""

    versions: tuple[str, ...]
    files: tuple[Path, ...]
    bytes: int


class _Aliases(Value):
    """The one file that moves. `past` holds the stables before this one, oldest first; `last` is the highest number
    ever given, so that a removed version's number never comes back."""

    aliases: dict[str, str] = Field(default_factory=dict)
    past: tuple[str, ...] = ()
    last: int = 0


class Versions:
    """The installed versions below `root` (default: the user's data folder, XDG_DATA_HOME respected)."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or _data_folder()

    def install(self, name: str, gguf: Path, lineage: dict[str, Json], alias: str = "candidate") -> Version:
        """Copies the file in, writes its version down, then moves the alias. The same file with the same lineage is
        the same version: a repeated install changes nothing but the alias.

        Raises CorruptModel (not a whole GGUF), DiskFull, SetupError (a bad name).
        """
        _require_alias(alias)
        check_gguf(gguf)
        with self._alone(name):
            sha256 = self._copy(gguf)
            version = self._same(name, sha256, lineage) or self._write(name, sha256, lineage)
            state = self._state(name)
            if alias == "stable":
                state = _to_stable(state, version.version)
            self._save(name, state.model_copy(update={"aliases": {**state.aliases, alias: version.version}}), "install")
            return version

    def path(self, reference: str) -> Path:
        """The GGUF of "name:alias", "name:v3" or "name" (its stable). "previous" is what a rollback would serve.

        Raises UnknownModel, and CorruptModel when the file is gone or was changed.
        """
        version = self.version(reference)
        path = self._file(version.sha256)
        size = path.stat().st_size if path.exists() else 0
        if size != version.size:
            raise CorruptModel(
                f"{version.name}:{version.version} needs {path} with {version.size} bytes (found {size}). "
                "Roll back (llm-tuner models rollback), or tune and install it again."
            )
        return path

    def version(self, reference: str) -> Version:
        """What "name:alias", "name:v3" or "name" means now. Raises UnknownModel with what there is."""
        name, _, which = reference.partition(":")
        served = self.aliases(name)
        wanted = served.get(which or "stable", which)
        for version in self.history(name):
            if version.version == wanted:
                return version
        have = ", ".join([*served, *(v.version for v in self.history(name))])
        raise UnknownModel(
            f'No version "{which or "stable"}" of "{name}" (found: {have}). Run: llm-tuner models versions {name}'
        )

    def aliases(self, name: str) -> dict[str, str]:
        """Alias -> version; "previous" among them when there is something to roll back to."""
        state = self._state(name)
        return {**state.aliases, **({"previous": state.past[-1]} if state.past else {})}

    def history(self, name: str) -> tuple[Version, ...]:
        """Every installed version, oldest first. Raises UnknownModel when there is none of this name."""
        folder = self._folder(name)
        found = [_read(path, Version) for path in folder.glob("v*.json")]
        if not found:
            names = ", ".join(self.names()) or "none"
            raise UnknownModel(f'No installed model "{name}" (found: {names}). Run: llm-tuner tune')
        return tuple(sorted(found, key=lambda version: _number(version.version)))

    def names(self) -> tuple[str, ...]:
        """The names that have a version, sorted."""
        return tuple(sorted({path.parent.name for path in self.root.glob("*/v*.json")}))

    def promote(self, name: str) -> Version:
        """The candidate becomes stable; the stable before it is remembered. Raises UnknownModel without a candidate."""
        with self._alone(name):
            state = self._state(name)
            if "candidate" not in state.aliases:
                self.history(name)
                raise UnknownModel(f'"{name}" has no candidate to promote (found: {self.aliases(name)}). Install one.')
            candidate = self.version(f"{name}:candidate")
            self.path(f"{name}:candidate")
            state = _to_stable(state, candidate.version)
            rest = {alias: version for alias, version in state.aliases.items() if alias != "candidate"}
            self._save(name, state.model_copy(update={"aliases": rest}), "promote")
            return candidate

    def rollback(self, name: str) -> Version:
        """The stable before this one serves again; the one it replaces stays installed.

        Raises UnknownModel when there is no stable before it.
        """
        with self._alone(name):
            state = self._state(name)
            if not state.past:
                self.history(name)
                raise UnknownModel(
                    f'"{name}" has no earlier stable to roll back to (found: {self.aliases(name)}). '
                    "Only a promotion leaves one behind."
                )
            self.path(f"{name}:previous")
            back = self.version(f"{name}:previous")
            moved = {"aliases": {**state.aliases, "stable": back.version}, "past": state.past[:-1]}
            self._save(name, state.model_copy(update=moved), "rollback")
            return back

    def alias(self, name: str, alias: str, which: str) -> Version | None:
        """Has `alias` (a role, any word) serve the version `which`, "v3" or what another alias serves; "" takes the
        alias away. `stable` moves as with a promotion: the one before is remembered.

        Raises UnknownModel, and SetupError for what cannot be an alias or may not be taken away.
        """
        _require_alias(alias)
        with self._alone(name):
            state = self._state(name)
            if not which:
                self.history(name)
                if alias == "stable" or alias not in state.aliases:
                    why = "stable has to serve something" if alias == "stable" else f"found: {self.aliases(name)}"
                    raise SetupError(f'The alias "{alias}" of {name} cannot be taken away ({why}).')
                rest = {known: version for known, version in state.aliases.items() if known != alias}
                self._save(name, state.model_copy(update={"aliases": rest}), "alias")
                return None
            version = self.version(f"{name}:{which}")
            self.path(f"{name}:{version.version}")
            if alias == "stable":
                state = _to_stable(state, version.version)
            moved = {"aliases": {**state.aliases, alias: version.version}}
            self._save(name, state.model_copy(update=moved), "alias")
            return version

    def note(self, reference: str, measured: dict[str, Json]) -> Version:
        """Writes down what was measured of a version. Raises UnknownModel."""
        name = reference.partition(":")[0]
        with self._alone(name):
            version = self.version(reference).model_copy(update={"measured": measured})
            replace_text(self._folder(name) / f"{version.version}.json", version.model_dump_json(indent=1))
            return version

    def moves(self, name: str) -> tuple[Move, ...]:
        """Every move of an alias, oldest first; a line that a crash cut is left out."""
        found = []
        with suppress(FileNotFoundError):
            for line in (self._folder(name) / "moves.jsonl").read_bytes().splitlines():
                with suppress(ValidationError):
                    found.append(Move.model_validate_json(line))
        return tuple(found)

    def garbage(self, keep: int = 1) -> Garbage:
        """What could go: versions that no alias serves and that are not among the last `keep` stables before this one,
        weights that no other version has, and what killed installs left."""
        gone, kept = [], set[str]()
        for name in self.names():
            state = self._state(name)
            reached = {*state.aliases.values(), *(state.past[-keep:] if keep else ())}
            for version in self.history(name):
                if version.version in reached:
                    kept.add(version.sha256)
                else:
                    gone.append(f"{name}:{version.version}")
        folder = self.root / "files"
        files = [path for path in sorted(folder.glob("*.gguf")) if path.stem not in kept]
        files += [path for path in sorted(folder.glob("*.tmp")) if not _writing(path)]
        sizes = []
        for path in files:
            with suppress(FileNotFoundError):
                sizes.append(path.stat().st_size)
        return Garbage(versions=tuple(gone), files=tuple(files), bytes=sum(sizes))

    def collect_garbage(self, keep: int = 1) -> Garbage:
        """Removes it: first the versions' notes, then files, so that no version is ever without its weights."""
        with locked(self.root / "lock"):
            found = self.garbage(keep)
            for reference in found.versions:
                name, _, which = reference.partition(":")
                state = self._state(name)
                if which in state.past:
                    past = tuple(old for old in state.past if old != which)
                    self._save(name, state.model_copy(update={"past": past}), "gc")
                (self._folder(name) / f"{which}.json").unlink(missing_ok=True)
            for path in found.files:
                path.unlink(missing_ok=True)
            return found

    def remove(self, reference: str) -> Version:
        """Deletes one version "name:v3", and its weights when no other version has the same.

        Raises ModelError when an alias (stable, candidate, previous, ...) still serves it.
        """
        name, _, which = reference.partition(":")
        if not _VERSION.fullmatch(which):
            raise SetupError(f'"{reference}" does not name a version. Write NAME:v3; llm-tuner models versions {name}')
        with self._alone(name):
            version = self.version(reference)
            serving = [alias for alias, served in self.aliases(name).items() if served == which]
            if serving:
                raise ModelError(
                    f"{reference} is {' and '.join(serving)} of {name}: not removed. Promote or roll back first."
                )
            state = self._state(name)
            past = tuple(old for old in state.past if old != which)
            self._save(name, state.model_copy(update={"past": past}), "remove")
            (self._folder(name) / f"{which}.json").unlink()
            if all(other.sha256 != version.sha256 for n in self.names() for other in self.history(n)):
                self._file(version.sha256).unlink(missing_ok=True)
            return version

    # ------------------------------------------------------------------------------------------------------- on disk

    def _folder(self, name: str) -> Path:
        if not _NAME.fullmatch(name) or name == "files":
            raise SetupError(f'"{name}" cannot be a model\'s name here. Use letters, digits, dots and dashes.')
        return self.root / name

    def _file(self, sha256: str) -> Path:
        return self.root / "files" / f"{sha256}.gguf"

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """One writer at a time over the whole root: weights are shared between names."""
        self._folder(name)
        with locked(self.root / "lock"):
            yield

    def _copy(self, gguf: Path) -> str:
        """Copies the weights to their content's name; returns the SHA-256.

        A copy, no hard link: whoever writes over the exported file later must not change what serves.
        """
        folder = self.root / "files"
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{os.getpid()}.tmp"
        digest = hashlib.sha256()
        try:
            with room_for(folder, gguf.stat().st_size), gguf.open("rb") as source, temporary.open("wb") as target:
                while chunk := source.read(CHUNK):
                    digest.update(chunk)
                    target.write(chunk)
                target.flush()
                os.fsync(target.fileno())
            check_gguf(temporary)
            target_path = self._file(digest.hexdigest())
            if not target_path.exists() or target_path.stat().st_size != temporary.stat().st_size:
                os.replace(temporary, target_path)
        finally:
            temporary.unlink(missing_ok=True)
        return digest.hexdigest()

    def _same(self, name: str, sha256: str, lineage: dict[str, Json]) -> Version | None:
        known = self.history(name) if name in self.names() else ()
        return next((version for version in known if (version.sha256, version.lineage) == (sha256, lineage)), None)

    def _write(self, name: str, sha256: str, lineage: dict[str, Json]) -> Version:
        known = self.history(name) if name in self.names() else ()
        number = 1 + max([self._state(name).last, *(_number(version.version) for version in known)])
        version = Version(
            name=name,
            version=f"v{number}",
            sha256=sha256,
            size=self._file(sha256).stat().st_size,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            lineage=lineage,
        )
        replace_text(self._folder(name) / f"v{number}.json", version.model_dump_json(indent=1))
        return version

    def _state(self, name: str) -> _Aliases:
        path = self._folder(name) / "aliases.json"
        return _read(path, _Aliases) if path.exists() else _Aliases()

    def _save(self, name: str, state: _Aliases, by: str) -> None:
        """One rename moves what serves; the line about it follows, and may be lost in a crash."""
        before = self._state(name).aliases
        last = max([state.last, *(_number(version.version) for version in self.history(name))])
        path = self._folder(name) / "aliases.json"
        replace_text(path, state.model_copy(update={"last": last}).model_dump_json(indent=1))
        when = datetime.now(UTC).isoformat(timespec="seconds")
        with (self._folder(name) / "moves.jsonl").open("a", encoding="utf-8") as file:
            for alias in sorted({*before, *state.aliases}):
                old, new = before.get(alias, ""), state.aliases.get(alias, "")
                if old != new:
                    move = Move(when=when, alias=alias, before=old, after=new, by=by)
                    file.write(move.model_dump_json() + "\n")


def _require_alias(alias: str) -> None:
    if _VERSION.fullmatch(alias) or alias == "previous" or not _NAME.fullmatch(alias):
        raise SetupError(f'"{alias}" cannot be an alias. Choose a word such as candidate, stable or worker.')


def _writing(temporary: Path) -> bool:
    """Whether the process that a half copy is named after still lives."""
    import psutil

    return temporary.stem.isdigit() and psutil.pid_exists(int(temporary.stem))


def _to_stable(state: _Aliases, version: str) -> _Aliases:
    """The stable that goes is remembered, once."""
    before = state.aliases.get("stable")
    past = (*state.past, before) if before and before != version else state.past
    return state.model_copy(update={"aliases": {**state.aliases, "stable": version}, "past": past})


def _read(path: Path, kind: type[V]) -> V:
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CorruptModel(
            f"{path} is damaged ({error.errors()[0]['msg']}). Move the folder {path.parent} away and run the same "
            "llm-tuner tune again: it installs the model anew from its finished runs."
        ) from error


def _number(version: str) -> int:
    return int(version.removeprefix("v"))


def _data_folder() -> Path:
    from platformdirs import user_data_path

    return user_data_path("llm-tuner", False) / "models"
