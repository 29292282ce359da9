"""`python -m llm_tuner.training JOB.json`: one recipe, in however many processes a launcher started.

The first process prints its events as lines of JSON, and at last its metrics (launch.py reads them). An error is told
by whichever process has one: the launcher ends the others at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

from llm_tuner.store import read_jsonl
from llm_tuner.training.dpo import DPO, dpo
from llm_tuner.training.launch import Job
from llm_tuner.training.sft import SFT, sft
from llm_tuner.types import Event, Pair, Row, TunerError


def main() -> int:
    job = Job.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    steps = _recipe(job)
    try:
        while True:
            _tell(next(steps).model_dump_json())
    except StopIteration as done:
        _tell(json.dumps({"metrics": done.value}))
        return 0
    except TunerError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}), flush=True)
        return error.exit_code


def _recipe(job: Job) -> Generator[Event, None, dict[str, Any]]:
    if job.recipe == "sft":
        held_out = read_jsonl(job.held_out, Row) if job.held_out else ()
        config = SFT.model_validate(job.config)
        return sft(config, job.gguf, read_jsonl(job.rows, Row), job.out, held_out=held_out, start=job.start)
    measured = read_jsonl(job.held_out, Pair) if job.held_out else ()
    return dpo(
        DPO.model_validate(job.config),
        job.gguf,
        read_jsonl(job.rows, Pair),
        job.out,
        held_out=measured,
        start=job.start,
    )


def _tell(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
