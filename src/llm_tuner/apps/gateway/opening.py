"""From a configuration to roles: which model stands behind which name, and its server started if it is ours.

[roles.coordinator]
model = "qwen2.5-coder:7b"       # a known model, NAME:stable, a .gguf: served by the embedded llama.cpp
window = 32768
[roles.worker]
ollama = "qwen2.5-coder:1.5b"    # a model of the Ollama server (OLLAMA_HOST)
at_once = 2
[roles.fallback]
base_url = "http://127.0.0.1:8000/v1"
model = "deepseek-coder"         # its key: OPENAI_API_KEY
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path
from pydantic import Field, ValidationError

from llm_tuner.evaluation.target import Target, locate
from llm_tuner.serving.roles import Role, Roles
from llm_tuner.serving.upstreams import LlamaCppUpstream, OllamaUpstream, OpenAIUpstream, Upstream
from llm_tuner.store import versions
from llm_tuner.types import Event, SetupError, Value, content_hash


class RoleSettings(Value):
    """One role: exactly one of `ollama`, `base_url` with `model`, or `model` alone. `window` is tokens, of each of
    `at_once` requests at a time. `speculation` is for the embedded runtime (models/llamacpp.py)."""

    model: str = ""
    ollama: str = ""
    base_url: str = ""
    window: int = Field(8192, ge=512)
    at_once: int = Field(1, ge=1)
    threads: int = Field(0, ge=0)
    speculation: bool = True


def read_roles(path: Path) -> dict[str, RoleSettings]:
    """The roles of a TOML file. Raises SetupError that names what is wrong."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SetupError(f"Cannot read {path}: {error}.") from error
    roles = document.get("roles")
    if not isinstance(roles, dict) or not roles:
        raise SetupError(f"{path} has no [roles.NAME]. Give at least one, such as [roles.worker] with a model.")
    return {name: _settings(path, name, one) for name, one in roles.items()}


def _settings(path: Path, name: str, given: Any) -> RoleSettings:
    try:
        return RoleSettings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        known = ", ".join(RoleSettings.model_fields)
        raise SetupError(
            f"{path}: roles.{name}.{'.'.join(map(str, first['loc']))}: {first['msg']}. Known: {known}."
        ) from error


def opened(roles: Mapping[str, RoleSettings], stack: ExitStack) -> Generator[Event, None, Roles]:
    """The roles, with every server of ours started; `stack` ends them. Embedded roles of one model share it: it is in
    memory once, with the larger window. Raises what locating and starting raise."""
    made: list[Role] = []
    embedded: dict[tuple[object, ...], Upstream] = {}
    for name, settings in roles.items():
        yield Event(step="serve", message=f"{name}: {settings.model or settings.ollama}")
        if settings.ollama or settings.base_url:
            upstream = yield from _upstream(settings, stack)
        else:
            key = (settings.model, settings.threads, settings.speculation)
            if key not in embedded:
                embedded[key] = yield from _upstream(_shared(roles, key), stack)
            upstream = embedded[key]
        also = tuple(dict.fromkeys(other for other in (upstream.name,) if other and other != name))
        made.append(Role(name, upstream, settings.at_once, also))
    return Roles(made)


def _shared(roles: Mapping[str, RoleSettings], key: tuple[object, ...]) -> RoleSettings:
    """The settings of all embedded roles of one model together."""
    same = [
        one
        for one in roles.values()
        if not (one.ollama or one.base_url) and (one.model, one.threads, one.speculation) == key
    ]
    window, at_once = max(one.window for one in same), sum(one.at_once for one in same)
    return same[0].model_copy(update={"window": window, "at_once": at_once})


def _upstream(settings: RoleSettings, stack: ExitStack) -> Generator[Event, None, Upstream]:
    target = Target(model=settings.model, ollama=settings.ollama, base_url=settings.base_url, context=settings.window)
    located = yield from locate(target)
    if located.gguf is not None:
        from llm_tuner.models.llamacpp import Embedded
        from llm_tuner.models.window import Meter

        states = _states(located.gguf, settings.window)
        embedded = stack.enter_context(
            Embedded(
                located.gguf,
                name=settings.model,
                context=settings.window,
                threads=settings.threads,
                slots=settings.at_once,
                states=states,
                speculation=settings.speculation,
            )
        )
        return LlamaCppUpstream(
            embedded.name,
            embedded.address,
            window=settings.window,
            count=Meter(embedded),
            slots=settings.at_once,
            states=states,
            revive=embedded.revive,
        )
    if settings.ollama:
        from llm_tuner.models.ollama import OllamaServer

        server = OllamaServer()
        server.version()
        can = server.show(settings.ollama).get("capabilities")
        server.close()
        shows_tools = not isinstance(can, list) or "tools" in can  # older releases do not say
        return OllamaUpstream(settings.ollama, server.url, window=settings.window, shows_tools=shows_tools)
    return OpenAIUpstream(settings.model, settings.base_url, os.environ.get("OPENAI_API_KEY", ""))


def _states(gguf: Path, window: int) -> Path:
    """Where the prompts that this file has read are kept: of another file, window or build they would be nonsense."""
    found = gguf.stat()
    made_of = [str(gguf.resolve()), found.st_size, found.st_mtime_ns, window, versions().get("xllamacpp", "")]
    return user_cache_path("llm-tuner") / "prompts" / content_hash(made_of)
