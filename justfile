# Recipes for developers. `just` lists them.

default:
    @just --list

# Style, types, layers.
check:
    uv run --extra demo ruff format --check .
    uv run --extra demo ruff check .
    uv run --extra demo mypy
    uv run --extra demo lint-imports

# The default tests (half an hour on 2 cores).
test *args:
    uv run --extra demo pytest {{args}}

# Slow checks: the whole demo with its thresholds, gold answers of all BFCL categories.
slow:
    uv run --extra demo pytest -m slow

# BFCL verdicts held against the official checker's, on the whole data set. PYTHON is that of a virtual environment with
# bfcl-eval (tests/evaluation/bfcl_agreement.py says how to make one); FILES may be rows of what models wrote, or the
# folder of an evaluation (eval bfcl --out).
parity python *files:
    uv run --extra demo python tests/evaluation/bfcl_agreement.py {{python}} --all {{ if files == "" { "" } else { "--outputs " + files } }}

# The tables of docs/templates.md: what is trained of each template family, and which runtime renders the same bytes. An
# Ollama of 0.30 or later is measured too where `just ollama-current` built it.
parity-templates *args:
    uv run --extra demo python tests/template_tables.py {{args}}

# The public tables for one base model, from the data set to BFCL, into docs/results/ (hours on a CPU; goes on where it stopped).
results base="qwen2.5-coder:0.5b" *args:
    examples/hub-8/install.sh
    uv run --extra demo python benchmarks/results.py --base {{base}} {{args}}

# SIGKILL in every step of a round, `tune --resume` after each: the end is that of a round that nobody killed.
kills:
    uv run --extra demo pytest -m slow tests/test_kills.py

# Recorded traffic that lies, against the model that `just demo` promoted.
poisoned:
    uv run --extra demo python benchmarks/poisoned_round.py --name demo --json

# The tests that need Ollama, on today's release (built once, a quarter of an hour; needs Go, cmake and a C++ compiler).
ollama-current *args:
    #!/usr/bin/env bash
    set -euo pipefail
    program=$(uv run --extra demo python tests/ollama_current.py)
    LLM_TUNER_OLLAMA=$program uv run --extra demo pytest -m "ollama and not slow" {{args}}

# Install the real servers that the tests use (npm, uvx, Go) into the cache.
servers:
    uv run --extra demo python tests/mcp_servers.py
    uv run --extra demo python tests/ollama_server.py

# The main job.
demo:
    uv run --extra demo llm-tuner demo

# Format and mend what can be mended.
fix:
    uv run --extra demo ruff format .
    uv run --extra demo ruff check --fix .
