"""Tuned models and fetched ones as operations: what there is, what serves, how versions differ, what can go."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from llm_tuner.operations import Change, Operation, amount
from llm_tuner.types import Json, SetupError, UnknownModel, Value

if TYPE_CHECKING:
    from llm_tuner.models.versions import Version

Name = Annotated[str, Field(description="Name of a tuned model, without an alias.")]
Runtime = Annotated[Literal["embedded", "ollama"], Field(description="Where it is installed.")]
Confirm = Annotated[bool, Field(description="False: only say what would be done.")]


def models_list() -> dict[str, Json]:
    """Known models, fetched files, tuned versions, and what an Ollama server has if one answers.

    Example: llm-tuner models list
    """
    from llm_tuner.models import catalogue
    from llm_tuner.models.sources import installed
    from llm_tuner.models.versions import Versions

    fetched = {model.name: model for model in installed()}
    versions = Versions()
    tuned = [(v, versions.aliases(name)) for name in versions.names() for v in versions.history(name)]
    return {
        "known": [{**_plain(model), "fetched": model.name in fetched} for model in catalogue.KNOWN],
        "fetched": [_plain(model) for model in fetched.values()],
        "tuned": [{**_plain(v), "aliases": _serving(v.version, aliases)} for v, aliases in tuned],
        "ollama": _ollama(),
    }


def model_history(name: Name) -> dict[str, Json]:
    """The versions of a tuned model with their lineage, what was measured of each, what serves, and every move of an
    alias.

    Example: llm-tuner models history demo --json
    """
    from llm_tuner.models.versions import Versions

    store = Versions()
    aliases = store.aliases(name)
    return {
        "name": name,
        "aliases": aliases,
        "versions": [{**_plain(v), "aliases": _serving(v.version, aliases)} for v in store.history(name)],
        "moves": [_plain(move) for move in store.moves(name)],
    }


def model_diff(
    before: Annotated[str, Field(description='A version: "name:v1", "name:stable".')],
    after: Annotated[str, Field(description="Another one, also of another name.")],
) -> dict[str, Json]:
    """How two versions differ: base, configuration, data, template, training, what was measured; only what is not the
    same.

    Example: llm-tuner models diff demo:previous demo:stable
    """
    from llm_tuner.models.versions import Versions

    store = Versions()
    a, b = store.version(before), store.version(after)
    return {"before": f"{a.name}:{a.version}", "after": f"{b.name}:{b.version}", "changes": list(_changes(a, b))}


def model_promote(
    name: Name,
    runtime: Runtime = "embedded",
    force: Annotated[bool, Field(description="Also a candidate that the gate refused.")] = False,
    confirm: Confirm = False,
) -> Change:
    """Make the candidate stable by hand. `llm-tuner tune` does it when the gate says so.

    Example: llm-tuner models promote demo
    """
    from llm_tuner.models.runtimes import EmbeddedRuntime, open_runtime

    serving = open_runtime(runtime)
    said = [_move(name, serving.aliases(name), "candidate")]
    if isinstance(serving, EmbeddedRuntime):
        candidate = serving.versions.version(f"{name}:candidate")
        why = " ".join(str(one) for one in candidate.measured.get("sentences", ()))
        if candidate.refused and not force:
            raise SetupError(
                f"The gate refused {name}:{candidate.version}: {why} Tune again, or promote it all the same with "
                "--force."
            )
        if candidate.refused:
            said.append(f"The gate refused it: {why}")
    if not confirm:
        return Change(done=False, sentences=tuple(said))
    version = serving.promote(name)
    return Change(done=True, sentences=(f"{name}: stable is now {version}",), facts={"name": name, "stable": version})


def model_rollback(name: Name, runtime: Runtime = "embedded", confirm: Confirm = False) -> Change:
    """Let the stable version before this one serve again.

    Example: llm-tuner models rollback demo
    """
    from llm_tuner.models.runtimes import open_runtime

    serving = open_runtime(runtime)
    if not confirm:
        return Change(done=False, sentences=(_move(name, serving.aliases(name), "previous"),))
    version = serving.rollback(name)
    return Change(done=True, sentences=(f"{name}: stable is now {version}",), facts={"name": name, "stable": version})


def model_alias(
    reference: Annotated[str, Field(description='The alias: "demo:worker". Roles or any word.')],
    version: Annotated[str, Field(description='What it serves: "v3", another alias, or "none" to take it away.')],
) -> dict[str, Json]:
    """Have an alias of a tuned model (a role such as worker, or any word) serve a version.

    Example: llm-tuner models alias demo:worker v2
    """
    from llm_tuner.models.versions import Versions

    name, _, alias = reference.partition(":")
    if not alias:
        raise SetupError(f'"{reference}" names no alias. Write NAME:ALIAS, such as {name}:worker.')
    store = Versions()
    store.alias(name, alias, "" if version == "none" else version)
    return {"name": name, "aliases": store.aliases(name)}


def model_gc(
    keep: Annotated[int, Field(ge=0, description="Earlier stable versions to keep for a rollback.")] = 1,
    confirm: Confirm = False,
) -> Change:
    """Remove the versions that no alias reaches, weights that nobody has, and what killed installs left.

    Example: llm-tuner models gc --keep 2
    """
    from llm_tuner.models.versions import Versions

    store = Versions()
    found = store.collect_garbage(keep) if confirm else store.garbage(keep)
    if not found.versions and not found.files:
        return Change(done=True, sentences=("Nothing to remove.",), facts={"versions": [], "files": [], "bytes": 0})
    verb = "Removed" if confirm else "Would remove"
    lines = [f"{verb} {reference}" for reference in found.versions]
    lines.append(f"{verb} {len(found.files)} files, {amount(found.bytes)}.")
    facts: dict[str, Json] = {
        "versions": list(found.versions),
        "files": [str(path) for path in found.files],
        "bytes": found.bytes,
    }
    return Change(done=confirm, sentences=tuple(lines), facts=facts)


def model_remove(
    name: Annotated[str, Field(description='A fetched model, or one tuned version as "name:v3".')],
    confirm: Confirm = False,
) -> Change:
    """Delete a fetched model or a tuned version that no alias serves.

    Example: llm-tuner models rm demo:v1 --yes
    """
    from llm_tuner.models.sources import installed, remove
    from llm_tuner.models.versions import Versions

    cached = {model.name: model for model in installed()}
    if name in cached:
        facts: dict[str, Json] = {"bytes": cached[name].size}
        if not confirm:
            return Change(done=False, sentences=(f"Would delete {name}, {amount(cached[name].size)}.",), facts=facts)
        removed = [str(path) for path in remove(name)]
    else:
        store = Versions()
        version = store.version(name)
        facts = {"bytes": version.size}
        if not confirm:
            return Change(done=False, sentences=(f"Would delete {name}, {amount(version.size)}.",), facts=facts)
        version = store.remove(name)
        removed = [f"{version.name}:{version.version}"]
    return Change(done=True, sentences=("Removed " + ", ".join(removed),), facts={**facts, "removed": list(removed)})


# ---------------------------------------------------------------------------------------------------------------------


def _move(name: str, aliases: dict[str, str], which: str) -> str:
    """What a promotion or a rollback would do. Raises UnknownModel where there is nothing to move to."""
    if which not in aliases:
        found = ", ".join(f"{alias} = {version}" for alias, version in aliases.items()) or "none"
        why = "Run: llm-tuner tune" if which == "candidate" else "Only a promotion leaves an earlier stable."
        raise UnknownModel(f'"{name}" has no {which} (found: {found}). {why}')
    return f"{name}: stable {aliases.get('stable', 'none')} -> {aliases[which]}."


def _changes(a: Version, b: Version) -> Iterator[dict[str, Json]]:
    """Field by field, in the order of the first that has it; a number's change as `difference`."""
    left, right = (dict(_flat(v.model_dump(mode="json", exclude={"name", "version"}))) for v in (a, b))
    for field in dict.fromkeys([*left, *right]):
        before, after = left.get(field), right.get(field)
        if before == after:
            continue
        change: dict[str, Json] = {"field": field, "before": before, "after": after}
        if all(isinstance(one, int | float) and not isinstance(one, bool) for one in (before, after)):
            change["difference"] = after - before  # type: ignore[operator]
        yield change


def _flat(value: dict[str, Any], path: str = "") -> Iterator[tuple[str, Json]]:
    for key, one in value.items():
        where = f"{path}.{key}" if path else key
        if isinstance(one, dict) and one:
            yield from _flat(one, where)
        else:
            yield where, one if not isinstance(one, list | dict) else json.dumps(one, ensure_ascii=False)


def _ollama() -> list[dict[str, Json]] | None:
    """Models of the Ollama server, None when none answers."""
    from llm_tuner.models.ollama import OllamaServer
    from llm_tuner.types import ModelError

    try:
        return OllamaServer(timeout=5).models()
    except ModelError:
        return None


def _plain(value: Value) -> dict[str, Any]:
    return value.model_dump(mode="json")


def _serving(version: str, aliases: dict[str, str]) -> list[str]:
    return [alias for alias, served in aliases.items() if served == version]


OPERATIONS = (
    Operation("models_list", models_list, ("models", "list"), "既知・取得済み・学習済みのモデルを一覧します。"),
    Operation(
        "model_history", model_history, ("models", "history"), "学習済みモデルの版・系譜・切り替え履歴を示します。"
    ),
    Operation("model_diff", model_diff, ("models", "diff"), "二つの版の違い(設定・データ・測定値など)を示します。"),
    Operation("model_promote", model_promote, ("models", "promote"), "候補を安定版に昇格します。", "destroys"),
    Operation("model_rollback", model_rollback, ("models", "rollback"), "一つ前の安定版に戻します。", "destroys"),
    Operation("model_alias", model_alias, ("models", "alias"), "別名(役割など)が指す版を変えます。", "changes"),
    Operation("model_gc", model_gc, ("models", "gc"), "どの別名からも使われない版とファイルを削除します。", "destroys"),
    Operation("model_remove", model_remove, ("models", "rm"), "取得済みモデルまたは版を削除します。", "destroys"),
)
