"""Training in processes of its own: several of them for several devices, joined by torchrun.

Not a scheduler: it starts them on this machine and passes on what the first one tells. Several machines start
`python -m llm_tuner.training JOB.json` themselves, with torchrun or accelerate (docs/training.md). GRPO is not here:
its rollouts are the loop's, which lives in the process that asks.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Generator
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from llm_tuner import types
from llm_tuner.store import write_atomic
from llm_tuner.types import Event, Json, TrainingError, TrainingInterrupted, TunerError, Value


class Job(Value):
    """One call of a recipe. `rows` and `held_out` are JSONL files: of Row for SFT, of Pair for DPO."""

    recipe: Literal["sft", "dpo"]
    config: dict[str, Json]
    gguf: Path
    rows: Path
    out: Path
    held_out: Path | None = None
    start: Path | None = None


def launched(job: Job, processes: int) -> Generator[Event, None, dict[str, Any]]:
    """The job in `processes` processes on this machine; returns the recipe's metrics. Closing the generator, or Ctrl-C,
    ends them with their last step kept. Errors are those of the recipe."""
    job.out.mkdir(parents=True, exist_ok=True)
    write_atomic(job.out / "job.json", job.model_dump_json(indent=1))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        child = subprocess.Popen(
            [*command, "-m", "llm_tuner.training", str(job.out / "job.json")],
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is ours to pass on, once
        )
        try:
            told = yield from _events(child)
        except (GeneratorExit, KeyboardInterrupt) as error:
            child.send_signal(signal.SIGINT)
            child.wait()
            if isinstance(error, KeyboardInterrupt):
                raise TrainingInterrupted("Training was interrupted. Run the command again.") from None
            raise
        if child.wait() == 0 and "metrics" in told:
            return dict(told["metrics"])
        if "error" in told:
            kind = getattr(types, str(told["error"]), TrainingError)
            raise (kind if isinstance(kind, type) and issubclass(kind, TunerError) else TrainingError)(told["message"])
        said.seek(0)
        last = "".join(f"\n  {line.rstrip()}" for line in deque(said, maxlen=8))
        raise TrainingError(f"The training processes ended with code {child.returncode} and no reason.{last}")


def _events(child: subprocess.Popen[str]) -> Generator[Event, None, dict[str, Any]]:
    """What the first process tells, a line of JSON each: events, then its metrics or its error."""
    told: dict[str, Any] = {}
    assert child.stdout is not None
    with child.stdout as lines:
        for line in lines:
            try:
                yield Event.model_validate_json(line)
            except ValidationError:  # its last words, or something a library printed
                try:
                    last = json.loads(line)
                except ValueError:
                    continue
                told = last if isinstance(last, dict) else told
    return told
