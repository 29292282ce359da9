"""The configuration of a round: TOML file < environment < flags. Unknown keys are errors with a suggestion.

And the latency targets, which belong to no round: environment < flag.
"""

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

LATENCY_TARGETS = "LLM_TUNER_LATENCY_TARGETS"


def resolve(file: Path | None, flags: Mapping[str, Any]) -> Tune:
    """The round's configuration. Raises SetupError that names the file, the key and what is wrong with it."""
    return _validated(file, _file(file) if file else {}, flags)


def resolve_training(file: Path | None, method: str, recipe: Mapping[str, Any], flags: Mapping[str, Any]) -> Tune:
    """The configuration of one training: as `resolve`, with `recipe` as the flags of the table `method`. What nobody
    says of that table is the method's own default, not that of a round. Raises what `resolve` raises."""
    default: BaseModel = Tune.model_fields[method].annotation()  # type: ignore[misc]
    values = _file(file) if file else {}
    values[method] = default.model_dump() | _table(file, values, method)
    for key, table in {method: recipe, **{k: v for k, v in flags.items() if isinstance(v, Mapping)}}.items():
        given = {name: value for name, value in table.items() if value is not None}
        if given:
            values[key] = _table(file, values, key) | given
    return _validated(file, values, {key: value for key, value in flags.items() if not isinstance(value, Mapping)})


def _table(file: Path | None, values: Mapping[str, Any], key: str) -> dict[str, Any]:
    table = values.get(key, {})
    if not isinstance(table, dict):
        raise SetupError(f"{file}: {key} must be a table, found {table!r}.")
    return dict(table)


def _validated(file: Path | None, values: dict[str, Any], flags: Mapping[str, Any]) -> Tune:
    values |= {key: value for key in ENVIRONMENT if (value := os.environ.get(f"LLM_TUNER_{key.upper()}"))}
    values |= {key: value for key, value in flags.items() if value is not None}
    try:
        return Tune.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise SetupError(f"{file or 'The configuration'}: {_words(problem)}") from error


def latency_targets(flag: str | None) -> dict[float, float]:
    """Milliseconds by weights out of billions=milliseconds pairs with commas ("1.5=500,7=2000"): the flag's, else
    LLM_TUNER_LATENCY_TARGETS, else the project's own. Raises SetupError for anything else."""
    from llm_tuner.evaluation.latency import TARGETS_MS

    text = flag or os.environ.get(LATENCY_TARGETS, "")
    if not text:
        return dict(TARGETS_MS)
    try:
        pairs = [(float(size), float(ms)) for size, ms in (part.split("=") for part in text.split(","))]
    except ValueError:
        pairs = []
    if not pairs or not all(0 < number < float("inf") for pair in pairs for number in pair):
        raise SetupError(
            f"Latency targets are billions of weights and milliseconds, such as 1.5=500,7=2000 (found {text!r}; from "
            f"{'--targets' if flag else LATENCY_TARGETS})."
        )
    return {size * 1e9: ms for size, ms in pairs}


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
