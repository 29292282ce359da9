#!/usr/bin/env python3
"""One epoch of LoRA on the same rows: `llm_tuner.training` against TRL's SFTTrainer and DPOTrainer.

Both sides train on the same token ids, the same dequantised weights in the same precision, with the same LoRA (r 16,
alpha 32, no dropout, the seven projections), AdamW at 2e-4 (DPO: 2e-5) and about 16 rows an optimizer step, each run
in a fresh process (train_vs_trl_side.py says what is timed). Rows are requests over the reference hub
(train_vs_trl_rows.py):

    eight   catalogues of 8 tools, 16 requests each
    hub     all 73 definitions (about 12,000 tokens), 16 requests
    own     rows that each have their own tools: next to nothing to share
    dpo     pairs over catalogues of 8 tools

TRL has its best settings for the case: `--trl auto` tries batch sizes, padding-free batches, packing (bfd), bf16
autocast, and for DPO precomputed reference log-probabilities, on a few rows of the case, and takes the fastest that
fits; gradient checkpointing where nothing fits without. Its fused loss is always on. Nothing of a row is ever cut.
Ours has its defaults, with a longer row limit where rows need it; `--ours` changes a setting.

Where an epoch of TRL would take hours (hub on a CPU), `--project` has it do a second, warm step on the check rows alone
and counts that time for each row; the answer says so ("trl_projected"), and only the losses before are compared.

Losses: before training both sides must report the same loss on the same rows; after it a third reading (plain
transformers, float32, row by row) of both adapters must find that both learned as much. Exit code 1 where not.

    examples/hub-8/install.sh                # once: the tool list; then nothing but the model is needed
    python benchmarks/train_vs_trl.py --json
    python benchmarks/train_vs_trl.py --model smollm2:135m --catalogues 2 --cases eight,own --json
    python benchmarks/train_vs_trl.py --smoke --json        # a tiny random model: does everything run?
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from train_vs_trl_rows import CASES, drive, invented, rows_of

from llm_tuner.models.resources import machine
from llm_tuner.models.sources import fetch
from llm_tuner.store import write_jsonl
from llm_tuner.types import Pair, Row

BEFORE = {"float32": 1e-3, "bfloat16": 2e-2}
"""Relative difference of two losses before training that is still float noise."""

AFTER = 0.15
"""Share of what was learned by which the sides may differ: they see the rows in another order."""

RATES = {"sft": 2e-4, "dpo": 2e-5}
"""Of both sides: our defaults."""

SMOKE = {"cases": "eight,dpo", "catalogues": 1, "rows": 16, "trl": '{"batch": 4}', "precision": "float32", "repeat": 1}

NO_ROOM = ("can't allocate memory", "not enough memory", "MemoryError", "OutOfMemory", "bad_alloc", "Out of memory")
"""What a process says that ran out of memory."""

SHORT = 16_384
"""Tokens of a micro-batch from which a CPU probe of bigger ones is a waste of time."""


def main() -> int:
    asked = parser().parse_args()
    if asked.smoke:
        vars(asked).update(SMOKE)
    asked.work.mkdir(parents=True, exist_ok=True)
    gguf = tiny(asked.work) if asked.smoke else drive(fetch(asked.model))
    bench = Bench(asked, gguf)
    cases = {}
    for case in asked.cases.split(","):
        if case == "dpo" and find_spec("llm_tuner.training.dpo") is None:
            print("dpo: left out, llm_tuner.training has no dpo yet", file=sys.stderr)
            continue
        examples = (
            invented(case, bench.made["vocabulary"], asked.catalogues, asked.rows)
            if asked.smoke
            else rows_of(case, asked.work, gguf, asked.catalogues, asked.rows, asked.tools)
        )
        cases[case] = bench.case(case, examples)
    found = {
        "model": "a tiny random one" if asked.smoke else asked.model,
        **bench.made,
        "threads": asked.threads,
        "cases": cases,
        "machine": machine(),
    }
    print(json.dumps(found, indent=None if asked.json else 1))
    return 0 if all(case["losses_agree"] for case in cases.values()) else 1


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--model", default="qwen2.5-coder:0.5b")
    out.add_argument("--cases", default=",".join(CASES), help="with commas (default all)")
    out.add_argument("--rows", type=int, default=16, help="requests a catalogue (default 16)")
    out.add_argument("--catalogues", type=int, default=4, help="of eight and dpo (default 4)")
    out.add_argument("--tools", type=int, default=8, help="tools a catalogue, at most (default 8); hub has all")
    out.add_argument("--check", type=int, default=4, help="rows of probes and loss checks (default 4; hub at most 2)")
    out.add_argument("--repeat", type=int, default=1, help="runs of each side, in turns; figures are medians")
    out.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    out.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    out.add_argument("--trl", default="auto", metavar="SETTINGS", help='auto, or JSON: {"batch": 4, "packing": 0}')
    out.add_argument("--ours", default="{}", metavar="SETTINGS", help="JSON of fields of SFT or DPO that differ")
    out.add_argument(
        "--memory", type=float, default=0, metavar="GB", help="of a process (default 85 %% of what is free)"
    )
    out.add_argument("--work", type=Path, default=Path("build/train-vs-trl"), help="rows, weights and results")
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--project", action="store_true", help="TRL's epoch out of a warm step on the check rows")
    out.add_argument("--smoke", action="store_true", help="a tiny random model and random rows")
    out.add_argument("--json", action="store_true", help="one line")
    return out


class Bench:
    """Runs the jobs of one model, one process at a time."""

    def __init__(self, asked: argparse.Namespace, gguf: Path) -> None:
        self.asked = asked
        self.gguf = gguf
        self.memory = asked.memory or psutil.virtual_memory().available * 0.85 / 1e9
        self.weights = asked.work / f"{gguf.stem}-{asked.precision}"
        made = self.weights / "made.json"
        if asked.smoke or not made.exists():
            shutil.rmtree(self.weights, ignore_errors=True)
            answer = self._run({"side": "prepare", "precision": asked.precision})
            made.write_text(json.dumps(answer), encoding="utf-8")
        self.made: dict[str, Any] = json.loads(made.read_text(encoding="utf-8"))
        self.cuda = self.made["device"] != "cpu"

    def case(self, name: str, examples: list[Row] | list[Pair]) -> dict[str, Any]:
        """All that is measured of one case."""
        tokens = sum(map(length, examples))
        check = spread(examples, min(self.asked.check, 2) if name == "hub" else self.asked.check)
        say(f"{name}: {len(examples)} examples, {tokens} tokens, longest {max(map(length, examples))}")
        tried: list[dict[str, Any]] = []
        settings = self._best(name, check, tried) if self.asked.trl == "auto" else json.loads(self.asked.trl)
        if self.asked.project:
            return self._projected(name, examples, check, settings, tried)
        runs: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
        adapters = {}
        for number in range(self.asked.repeat):
            for side in ("ours", "trl")[:: 1 if number % 2 == 0 else -1]:
                given = settings if side == "trl" else json.loads(self.asked.ours)
                keep = self.asked.work / f"adapter-{name}-{side}"
                try:
                    runs[side].append(self._side(side, name, examples, given, keep))
                except DoesNotFit as error:
                    raise SystemExit(f"{name}: {side} with {json.dumps(given)} needs {error}") from error
                adapters[side] = str(keep)
                say(f"{name}, {side}: {runs[side][-1]['epoch_seconds']:.1f} s")
        if all(len(runs[side][0]["step_seconds"]) == 1 for side in runs):
            before = {side: runs[side][0]["losses"][0] for side in runs}  # one step: of the same rows
        else:
            tried = tried or [self._probe(name, check, settings)]
            before = {
                "ours": self._side("ours", name, check, json.loads(self.asked.ours))["losses"][0],
                "trl": next(t for t in tried if t["settings"] == settings)["losses"][0],
            }
        after = self._side("judge", name, check, {}, adapters=adapters)
        return self._summary(name, examples, runs, before, after) | {"trl_tried": [brief(t) for t in tried]}

    def _projected(
        self, name: str, examples: list[Any], check: list[Any], settings: dict[str, Any], tried: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Our epoch as measured, TRL's as its warm step on the check rows times the rows that there are."""
        if name == "dpo":
            raise SystemExit("dpo: --project is for rows, not for pairs")
        tried = tried or [self._probe(name, check, settings)]
        trl = next(t for t in tried if t["settings"] == settings)
        if "seconds" not in trl:
            raise SystemExit(f"{name}: TRL with {json.dumps(settings)} needs {trl['why']}")
        mine = json.loads(self.asked.ours)
        before = self._side("ours", name, check, mine)["losses"][0]
        run = self._side("ours", name, examples, mine)
        seconds = trl["seconds"] * sum(map(length, examples)) / sum(map(length, check))
        found = {
            "examples": len(examples),
            "row_tokens": sum(map(length, examples)),
            "trl_projected": True,
            "ours": {"epoch_seconds": round(run["epoch_seconds"], 2), "peak_gb": round(peak(run), 2)},
            "trl": {"epoch_seconds": round(seconds, 2), "peak_gb": round(trl["peak_gb"], 2), "settings": settings},
            "loss_before": {"ours": round(before, 4), "trl": round(trl["losses"][0], 4)},
            "time_ratio": round(seconds / run["epoch_seconds"], 2),
            "memory_ratio": round(peak(run) / trl["peak_gb"], 2),
            "losses_agree": abs(before - trl["losses"][0]) <= BEFORE[self.made["precision"]] * trl["losses"][0],
            "trl_tried": [brief(t) for t in tried],
        }
        say(f"{name}: {found['time_ratio']} times as fast, {found['memory_ratio']} of the memory")
        return found

    def _summary(
        self,
        name: str,
        examples: list[Any],
        runs: dict[str, list[dict[str, Any]]],
        before: dict[str, float],
        after: dict[str, float],
    ) -> dict[str, Any]:
        tokens = sum(map(length, examples))
        sides = {}
        for side, some in runs.items():
            seconds = median(run["epoch_seconds"] for run in some)
            sides[side] = {
                "epoch_seconds": round(seconds, 2),
                "runs": [round(run["epoch_seconds"], 2) for run in some],
                "warm_up_seconds": round(median(run["warm_up_seconds"] for run in some), 2),
                "wall_seconds": round(median(run["wall_seconds"] for run in some), 2),
                "tokens_per_s": round(tokens / seconds, 1),
                "peak_gb": round(median(peak(run) for run in some), 2),
                "steps": len(some[-1]["step_seconds"]),
                "losses": [round(loss, 4) for loss in some[-1]["losses"]],
                "loss_before": round(before[side], 4),
                "loss_after": round(after[side], 4),
                "settings": some[-1]["settings"],
            }
        trl, ours = sides["trl"], sides["ours"]
        learned = after["base"] - min(after["ours"], after["trl"])
        same = abs(before["ours"] - before["trl"]) <= BEFORE[self.made["precision"]] * before["trl"]
        alike = abs(after["ours"] - after["trl"]) <= max(AFTER * learned, 0.02)
        found = {
            "examples": len(examples),
            "row_tokens": tokens,
            **sides,
            "loss_before_by_the_judge": round(after["base"], 4),
            "time_ratio": round(trl["epoch_seconds"] / ours["epoch_seconds"], 2),
            "time_ratio_without_first_steps": warm_ratio(runs),
            "memory_ratio": round(ours["peak_gb"] / trl["peak_gb"], 2),
            "losses_agree": same and alike,
        }
        say(
            f"{name}: {found['time_ratio']} times as fast, {found['memory_ratio']} of the memory; loss before "
            f"{ours['loss_before']} and {trl['loss_before']}, after {ours['loss_after']} and {trl['loss_after']}"
            f"{'' if found['losses_agree'] else ': THE LOSSES DISAGREE'}"
        )
        return found

    # ------------------------------------------------------------------------------------------------- TRL's settings

    def _best(self, name: str, check: list[Any], tried: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's fastest settings on the check rows; everything that was tried goes to `tried`."""
        tried.extend(self._probe(name, check, settings) for settings in self._shapes(name, check))
        if not any("seconds" in t for t in tried):
            lean = [shape | {"checkpointing": True} for shape in self._shapes(name, check)]
            tried.extend(self._probe(name, check, settings) for settings in lean)
        extra = [{"autocast": True}] if self.made["precision"] == "bfloat16" else []
        extra += [{"precompute": True}] if name == "dpo" else []
        for more in extra:
            tried.append(self._probe(name, check, fastest(tried)["settings"] | more))
        taken: dict[str, Any] = fastest(tried)["settings"]
        say(f"{name}: TRL takes {json.dumps(taken)}")
        return taken

    def _shapes(self, name: str, check: list[Any]) -> list[dict[str, Any]]:
        longest = max(map(length, check))
        batches = [b for b in (1, 2, 4, 8, 16) if b <= len(check) and (self.cuda or b == 1 or b * longest <= SHORT)]
        shapes: list[dict[str, Any]] = [{"batch": b} for b in batches]
        if name != "dpo":  # DPOTrainer has neither at the moment
            shapes += [{"batch": b, "padding_free": True} for b in batches[-1:] if b > 1]
            shapes += [{"batch": 1, "packing": b} for b in batches[-1:] if b > 1]
        return shapes

    def _probe(self, name: str, check: list[Any], settings: dict[str, Any]) -> dict[str, Any]:
        epochs = {} if name == "dpo" else {"epochs": 2}  # the second step is warm; precomputing happens once
        try:
            run = self._side("trl", name, check, settings | epochs)
        except DoesNotFit as error:
            say(f"{name}: TRL with {json.dumps(settings)} does not fit: {error}")
            return {"settings": settings, "why": str(error)}
        seconds = run["epoch_seconds"] if name == "dpo" else run["step_seconds"][-1]
        say(f"{name}: TRL with {json.dumps(settings)}: {seconds:.2f} s for {len(check)}, {peak(run):.2f} GB")
        return {"settings": settings, "seconds": seconds, "peak_gb": peak(run), "losses": run["losses"]}

    # ------------------------------------------------------------------------------------------------------ processes

    def _side(
        self,
        side: str,
        name: str,
        examples: list[Any],
        settings: dict[str, Any],
        keep: Path | None = None,
        adapters: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="train-vs-trl-", dir=self.asked.work) as folder:
            write_jsonl(Path(folder) / "examples.jsonl", examples)
            job = {
                "side": side,
                "kind": "dpo" if name == "dpo" else "sft",
                "examples": str(Path(folder) / "examples.jsonl"),
                "out": folder,
                "precision": self.made["precision"],
                "settings": settings,
                "adapters": adapters or {},
                "seed": self.asked.seed,
                "learning_rate": RATES["dpo" if name == "dpo" else "sft"],
            }
            found = self._run(job)
            if keep is not None:
                shutil.rmtree(keep, ignore_errors=True)
                shutil.move(Path(folder) / "adapter", keep)
            return found

    def _run(self, job: dict[str, Any]) -> dict[str, Any]:
        job |= {
            "gguf": str(self.gguf),
            "weights": str(self.weights),
            "threads": self.asked.threads,
        }
        script = Path(__file__).with_name("train_vs_trl_side.py")
        with tempfile.TemporaryDirectory(prefix="train-vs-trl-job-") as folder:
            file, answer = Path(folder) / "job.json", Path(folder) / "answer.json"
            file.write_text(json.dumps(job), encoding="utf-8")
            threads = {"OMP_NUM_THREADS": str(self.asked.threads)} if self.asked.threads else {}
            environment = os.environ | threads | {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
            command = [sys.executable, str(script), str(file), str(answer)]
            told = Path(folder) / "stderr"
            with told.open("w") as stream:
                child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stream)
                most = watched(child, self.memory * 1e9)
            if child.returncode == 0:
                return dict(json.loads(answer.read_text(encoding="utf-8")))
            words = told.read_text(encoding="utf-8", errors="replace")
            if most > self.memory * 1e9:
                raise DoesNotFit(f"more than {self.memory:.1f} GB")
            if any(word in words for word in NO_ROOM):
                raise DoesNotFit(words.strip().splitlines()[-1][:200])
            raise SystemExit(f"{job['side']} ended with exit code {child.returncode}:\n{words[-3000:]}")


def watched(child: subprocess.Popen[bytes], limit: float) -> float:
    """Waits for a process, and ends it when its resident memory exceeds `limit` bytes; the most that was seen."""
    most = 0.0
    process = psutil.Process(child.pid)
    while child.poll() is None:
        with suppress(psutil.NoSuchProcess):
            most = max(most, process.memory_info().rss)
        if most > limit:
            child.kill()
            child.wait()
        else:
            time.sleep(0.2)
    return most


class DoesNotFit(Exception):
    """A process asked for more memory than `--memory` allows."""


def fastest(tried: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the settings that fit."""
    fit = [t for t in tried if "seconds" in t]
    if not fit:
        raise SystemExit("TRL fits into the memory with none of the settings; give more --memory or fewer tools")
    return min(fit, key=lambda t: t["seconds"])


def brief(tried: dict[str, Any]) -> dict[str, Any]:
    return {key: round(v, 3) if isinstance(v, float) else v for key, v in tried.items() if key != "losses"}


def peak(run: dict[str, Any]) -> float:
    """GB of the device that trains."""
    return run["peak_cuda_gb"] or run["peak_rss_gb"]


def warm_ratio(runs: dict[str, list[dict[str, Any]]]) -> float | None:
    """The ratio of the seconds an optimizer step after the first; None where there was one step only."""
    steps = {side: [s for run in some for s in run["step_seconds"][1:]] for side, some in runs.items()}
    if not all(steps.values()):
        return None
    return round((sum(steps["trl"]) / len(steps["trl"])) / (sum(steps["ours"]) / len(steps["ours"])), 2)


def length(example: Row | Pair) -> int:
    """Tokens of a row; of both rows of a pair."""
    return example.chosen.length + example.rejected.length if isinstance(example, Pair) else example.length


def spread(examples: list[Any], count: int) -> list[Any]:
    """`count` neighbours from the middle: rows of one catalogue, as a step of either side would see them."""
    start = max(0, len(examples) // 2 - count)
    return examples[start : start + count]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def tiny(work: Path) -> Path:
    """A Qwen2 of two layers with random weights."""
    import gguf
    import numpy as np

    width, inner, heads, layers, vocabulary = 128, 256, 4, 2, 256
    rng = np.random.default_rng(0)
    path = work / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"<{i}>" for i in range(vocabulary)])
    writer.add_token_types([1] * vocabulary)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, rng.normal(size=shape).astype(np.float32) * 0.05 + (len(shape) == 1))

    add("token_embd.weight", vocabulary, width)
    add("output_norm.weight", width)
    add("output.weight", vocabulary, width)
    for block in (f"blk.{i}." for i in range(layers)):
        add(block + "attn_norm.weight", width)
        add(block + "ffn_norm.weight", width)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"{block}{name}.weight", width, width)
        for name in ("attn_q", "attn_k", "attn_v"):
            add(f"{block}{name}.bias", width)
        add(block + "ffn_gate.weight", inner, width)
        add(block + "ffn_up.weight", inner, width)
        add(block + "ffn_down.weight", width, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


if __name__ == "__main__":
    sys.exit(main())
