"""The configuration of a round: TOML file < environment < flags. Unknown keys are errors with a suggestion."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from llm_tuner.loop import Tune
from llm_tuner.types import SetupError

ENVIRONMENT = ("name", "base", "hub")
"""Fields that LLM_TUNER_<FIELD> may set."""


def resolve(file: Path | None, flags: Mapping[str, Any]) -> Tune:
    """The round's configuration. Raises SetupError that names the file, the key and what is wrong with it."""
    values = _file(file) if file else {}
    values |= {key: value for key in ENVIRONMENT if (value := os.environ.get(f"LLM_TUNER_{key.upper()}"))}
    values |= {key: value for key, value in flags.items() if value is not None}
    try:
        return Tune.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise SetupError(f"{file or 'The configuration'}: {_words(problem)}") from error


def _file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SetupError(f"Cannot read {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SetupError(f"{path} is not TOML: {error}.") from error


def _words(problem: Any) -> str:
    *where, key = (str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return f"{'.'.join([*where, key])}: {problem['msg']} (found {problem.get('input')!r})."
    model: type[BaseModel] = Tune
    for part in where:
        inner = model.model_fields[part].annotation
        model = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else Tune
    close = difflib.get_close_matches(key, model.model_fields, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(model.model_fields)}."
    return f"unknown key {'.'.join([*where, key])}; {hint}"
