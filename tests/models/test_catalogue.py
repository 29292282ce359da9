"""The catalogue: rows that are whole, and a name that is not there."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from llm_tuner.models import catalogue
from llm_tuner.types import UnknownModel


def test_the_models_of_the_catalogue() -> None:
    assert catalogue.names() == (
        "qwen2.5-coder:0.5b",
        "qwen2.5-coder:1.5b",
        "qwen2.5-coder:7b",
        "deepseek-coder:1.3b",
        "smollm2:135m",
    )
    assert len(set(catalogue.names())) == len(catalogue.KNOWN)


@pytest.mark.parametrize("model", catalogue.KNOWN, ids=lambda model: model.name)
def test_a_row_is_whole(model: catalogue.KnownModel) -> None:
    assert model.sources["ollama"] == model.name
    assert model.sources["hf"].endswith(".gguf")
    assert model.licence
    assert model.context >= 4096
    assert model.pinned == (model.size is not None)
    assert re.fullmatch(r"[0-9a-f]{64}" if model.pinned else "", model.sha256)
    assert "pypi" not in model.sources or model.pinned, "a wheel proves nothing about the file that is in it"


def test_what_nobody_hashed_is_empty() -> None:
    assert {model.name for model in catalogue.KNOWN if not model.pinned} == {"qwen2.5-coder:7b", "deepseek-coder:1.3b"}


def test_ollama_serves_a_build_of_its_own() -> None:
    model = catalogue.find("smollm2:135m")
    assert model.digest("ollama") == ""
    assert model.digest("hf") == model.digest("pypi") == model.sha256


def test_find_and_its_did_you_mean() -> None:
    assert catalogue.find("Qwen2.5-Coder:7B").parameters > 7e9
    with pytest.raises(UnknownModel) as error:
        catalogue.find("qwen2.5-coder:05b")
    assert 'Did you mean "qwen2.5-coder:0.5b"?' in str(error.value)
    assert "found 5" in str(error.value)
    assert "llm-tuner models list" in str(error.value)


def test_a_row_is_found_by_its_source() -> None:
    row = catalogue.find("smollm2:135m")
    assert catalogue.of_source(f"hf:{row.sources['hf']}") == row
    assert catalogue.of_source("hf:somebody/else/model.gguf") is None


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, llm_tuner.models.catalogue, llm_tuner.models.sources, llm_tuner.models.versions; "
        "print([m for m in ('httpx2', 'gguf', 'numpy', 'torch', 'psutil') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
