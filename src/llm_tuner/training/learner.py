"""The one training loop: a model, its optimizer, and what it takes to survive.

Recipes say what is learned (the units of each step and their loss); this says how a step is done. A step's gradient is
the weighted mean over its units however they are dealt to packs, to processes and, after an out-of-memory error, to
smaller packs: the curve stays the same. Checkpoints are safetensors and JSON, written whole or not at all. NaN stops
before it reaches the weights, with the step's rows saved.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from llm_tuner.store import append_jsonl, read_jsonl, write_atomic, write_jsonl
from llm_tuner.training.base import give_memory_back, one_precision
from llm_tuner.training.devices import World
from llm_tuner.training.lora import ADAPTER, save_adapter, trained
from llm_tuner.training.loss import log_probabilities
from llm_tuner.training.packing import Pack, Unit, pack, packs
from llm_tuner.training.recipe import Curve, Recipe
from llm_tuner.types import DiskFull, Event, TrainingError, content_hash

Loss = Callable[[Any, Pack, Sequence[Unit]], tuple[Any, dict[str, float]]]
"""(ln p of the pack's targets (k,), the pack, its units) -> the loss *summed* over the units by their weights (scalar),
and sums of what else is worth a look; both are divided by the step's weight."""

SMALLEST_PACK = 64


class Learner:
    """A model in training, `step` after `step`, in the folder `out`. `total` optimizer steps make the schedule.

    Goes on from the newest checkpoint under `out` if there is one: weights, optimizer, position, random numbers.
    """

    def __init__(self, model: Any, config: Recipe, out: Path, total: int, world: World) -> None:
        self.model, self.config, self.out, self.total, self.world = model, config, out, total, world
        self.weights = trained(model)
        self.initial = {n: w.detach().clone() for n, w in self.weights.items()} if config.variant == "pissa" else None
        self.optimizer = _optimizer(self.weights, config)
        self.pack_tokens = config.pack_tokens
        self.done = 0
        self.curve: list[Curve] = []
        self.best: tuple[float, int] | None = None
        self._key = content_hash([config.model_dump(mode="json"), total])
        _require_space(out, self.weights)
        self.resumed = self._resume()
        if world.first:
            write_jsonl(out / "curve.jsonl", self.curve)

    # ------------------------------------------------------------------------------------------------------- a step

    def step(self, units: Sequence[Unit], loss: Loss) -> Generator[Event, None, Curve]:
        """One optimizer step over these units, which every process must be given alike. Raises TrainingError when the
        loss or the gradient is not finite; nothing has changed then."""
        clock = time.monotonic()
        while True:
            try:
                found, measured, tokens = yield from self._gradient(units, loss)
                mishap = False
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                mishap = True
            if not self.world.any(mishap):
                break
            yield self._smaller()
        norm = float(torch.nn.utils.clip_grad_norm_(self.weights.values(), self.config.max_grad_norm))
        if not (math.isfinite(found) and math.isfinite(norm)):
            self._stop_at(units, found, norm)
        rate = self.config.rate(self.done, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["ratio"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        point = Curve(
            step=self.done,
            loss=found,
            learning_rate=rate,
            gradient_norm=norm,
            tokens=tokens,
            row_tokens=sum(row.length for unit in units for row in unit.rows),
            seconds=round(time.monotonic() - clock, 3),
            measured=measured,
        )
        self.curve.append(point)
        if self.world.first:  # for whoever watches; what counts is written whole, with checkpoints and at the end
            append_jsonl(self.out / "curve.jsonl", point)
        give_memory_back()
        if self.done % self.config.checkpoint_every == 0 and self.done < self.total:
            self.save()
        yield Event(
            step="train", message=f"loss {found:.3f}", done=self.done, total=self.total, unit="step",
            data={"loss": found, "tokens": tokens, "seconds": point.seconds, **measured},
        )  # fmt: skip
        return point

    def _gradient(
        self, units: Sequence[Unit], loss: Loss
    ) -> Generator[Event, None, tuple[float, dict[str, float], int]]:
        """Puts the gradient of the mean loss over all processes' units into the weights; returns that mean, what was
        measured, and the tokens computed here."""
        self.optimizer.zero_grad(set_to_none=True)
        self.model.train()
        whole = sum(unit.weight for unit in units)
        mine = self.world.share(packs(units, self.pack_tokens))
        totals: dict[str, float] = {"loss": 0.0}
        tokens = 0
        for number, members in enumerate(mine, start=1):
            one = pack([row for unit in members for row in unit.rows])
            with one_precision(self.model):
                value, extra = loss(log_probabilities(self.model, one, self.world.device), one, members)
                (value / whole).backward()
            tokens += len(one.ids)
            for name, amount in {"loss": float(value.detach()), **extra}.items():
                totals[name] = totals.get(name, 0.0) + amount
            if number < len(mine):
                done = self.done + number / len(mine)
                yield Event(step="train", message=f"step {self.done + 1}", done=done, total=self.total, unit="step")
        totals = {name: amount / whole for name, amount in self.world.sums(totals).items()}
        self.world.add_gradients(self.weights.values())
        return totals.pop("loss"), totals, tokens

    def _smaller(self) -> Event:
        """Halves the packs; the step is then done again from its beginning."""
        self.optimizer.zero_grad(set_to_none=True)
        give_memory_back()
        if self.pack_tokens <= SMALLEST_PACK:
            raise TrainingError(
                "Out of memory, even with one row at a time. Turn gradient_checkpointing on, offer fewer tools a task, "
                "or take a smaller base model."
            )
        self.pack_tokens //= 2
        return Event(step="train", message=f"out of memory: going on with packs of {self.pack_tokens} tokens")

    def _stop_at(self, units: Sequence[Unit], loss: float, norm: float) -> None:
        file = self.out / "bad-step.jsonl"
        if self.world.first:
            write_jsonl(file, [row for unit in units for row in unit.rows])
        raise TrainingError(
            f"Step {self.done + 1} is not a number (loss {loss:g}, gradient {norm:g}); the weights were left as they "
            f"were. Its rows are in {file}. Lower learning_rate, or train with precision = float32."
        )

    # -------------------------------------------------------------------------------------------------- measuring

    def measure(self, units: Sequence[Unit], loss: Loss) -> tuple[float, dict[str, float]]:
        """The mean loss over units, without training, and what else the loss measures."""
        self.model.eval()
        totals: dict[str, float] = {"loss": 0.0}
        with torch.no_grad():
            for members in self.world.share(packs(units, self.pack_tokens)):
                one = pack([row for unit in members for row in unit.rows])
                with one_precision(self.model):
                    value, extra = loss(log_probabilities(self.model, one, self.world.device), one, members)
                for name, amount in {"loss": float(value), **extra}.items():
                    totals[name] = totals.get(name, 0.0) + amount
        whole = sum(unit.weight for unit in units)
        totals = {name: amount / whole for name, amount in self.world.sums(totals).items()}
        return totals.pop("loss"), totals

    def likelihoods(self, units: Sequence[Unit], told: str) -> Generator[Event, None, list[list[list[float]]]]:
        """ln p of every target token of every row of every unit, under the model as it is now, without training."""
        number = {id(unit): place for place, unit in enumerate(units)}
        mine: dict[str, list[list[float]]] = {}
        self.model.eval()
        for members in self.world.share(packs(units, self.pack_tokens)):
            one = pack([row for unit in members for row in unit.rows])
            with torch.no_grad(), one_precision(self.model):
                values = iter(log_probabilities(self.model, one, self.world.device).tolist())
            for unit in members:
                rows = [list(islice(values, len(row.completion_ids))) for row in unit.rows]
                mine[str(number[id(unit)])] = rows
            yield Event(step="train", message=told, done=len(mine), total=len(units), unit="unit")
        known = {place: rows for part in self.world.gather(mine) for place, rows in part.items()}
        return [known[str(place)] for place in range(len(units))]

    @contextmanager
    def as_at_the_start(self, weights: dict[str, Any]) -> Iterator[None]:
        """Inside, the adapter has these weights."""
        now = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self._put(weights)
        try:
            yield
        finally:
            self._put(now)

    def skip(self, measured: dict[str, float]) -> None:
        """A step in which there was nothing to learn."""
        self.done += 1
        rate = self.config.rate(self.done - 1, self.total)
        self.curve.append(Curve(step=self.done, loss=0.0, learning_rate=rate, gradient_norm=0.0, measured=measured))

    def held_out(self, units: Sequence[Unit], loss: Loss) -> Generator[Event, None, bool]:
        """Measures the held-out loss where it is due and keeps the best adapter. True: patience is over, stop."""
        config = self.config
        if not units or (self.done % config.evaluate_every and self.done != self.total):
            return False
        value, _ = self.measure(units, loss)
        self.curve[-1] = self.curve[-1].model_copy(update={"held_out_loss": value})
        if self.best is None or value < self.best[0]:
            self.best = value, self.done
            if config.patience:
                self._write_tensors(self.out / "best.safetensors", self.weights)
        yield Event(
            step="train", message=f"held-out loss {value:.3f}", done=self.done, total=self.total, unit="step",
            data={"held_out_loss": value},
        )  # fmt: skip
        waited = (self.done - self.best[1]) // config.evaluate_every
        return bool(config.patience) and waited >= config.patience

    # ------------------------------------------------------------------------------------------ keeping, going on

    def finish(self) -> None:
        """Writes `adapter` (the best one where patience asked for it) and `curve.jsonl`. The adapter appears last,
        whole: its presence says that training is done."""
        best = self.out / "best.safetensors"
        if self.config.patience and best.exists():
            self._load_tensors(best)
        if self.world.first:
            write_jsonl(self.out / "curve.jsonl", self.curve)
            shutil.rmtree(self.out / "adapter.partial", ignore_errors=True)
            save_adapter(self.model, self.out / "adapter.partial", self.initial)
            os.replace(self.out / "adapter.partial", self.out / "adapter")
            shutil.rmtree(self.out / "checkpoints", ignore_errors=True)
            best.unlink(missing_ok=True)
        self.world.wait()

    def save(self) -> None:
        """A checkpoint of the last finished step."""
        if not self.world.first or self.done == 0:
            return
        folder = self.out / "checkpoints" / f"step-{self.done:06d}"
        if folder.exists():
            return
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        self._write_tensors(partial / "weights.safetensors", self.weights)
        if self.initial is not None:
            self._write_tensors(partial / "initial.safetensors", self.initial)
        moments = {}
        for name, weight in self.weights.items():
            for key, value in self.optimizer.state[weight].items():
                moments[f"{name}:{key}"] = value
        self._write_tensors(partial / "optimizer.safetensors", {**moments, "random": torch.get_rng_state()})
        write_jsonl(partial / "curve.jsonl", self.curve)
        state = {"key": self._key, "done": self.done, "pack_tokens": self.pack_tokens, "best": self.best}
        write_atomic(partial / "state.json", json.dumps(state))
        os.replace(partial, folder)
        for old in sorted(folder.parent.glob("step-*"))[:-1]:
            shutil.rmtree(old, ignore_errors=True)

    def _resume(self) -> int:
        """Takes up the newest checkpoint; the step it was made after, 0 where there is none."""
        folders = sorted(p.parent for p in (self.out / "checkpoints").glob("step-*[0-9]/state.json"))
        if not folders:
            return 0
        folder = folders[-1]
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state["key"] != self._key:
            raise TrainingError(
                f"{folder} was made with other settings or other data. Remove {folder.parent}, or train as before."
            )
        if self.initial is not None:
            self._take_out_again(folder / "initial.safetensors")
        self._load_tensors(folder / "weights.safetensors")
        kept = _read_tensors(folder / "optimizer.safetensors")
        torch.set_rng_state(kept.pop("random"))
        for name, weight in self.weights.items():
            values = {key.rpartition(":")[2]: v for key, v in kept.items() if key.rpartition(":")[0] == name}
            self.optimizer.state[weight] = {k: v if k == "step" else v.to(weight.device) for k, v in values.items()}
        self.curve = list(read_jsonl(folder / "curve.jsonl", Curve))
        self.done, self.pack_tokens = int(state["done"]), int(state["pack_tokens"])
        self.best = tuple(state["best"]) if state["best"] else None
        return self.done

    def _take_out_again(self, file: Path) -> None:
        """PiSSA's decomposition is made of random numbers: the base's rest must be that of the first start."""
        assert self.initial is not None
        first = {name: tensor.to(self.world.device) for name, tensor in _read_tensors(file).items()}
        layers = dict(self.model.named_modules())
        for name in [name for name in first if "lora_A" in name]:
            other = name.replace("lora_A", "lora_B")
            layer = layers[name.partition(".lora_A")[0]]
            with torch.no_grad():
                new, old = first[other] @ first[name], self.initial[other] @ self.initial[name]
                layer.base_layer.weight += layer.scaling[ADAPTER] * (old - new)
        self.initial = first

    def _write_tensors(self, file: Path, tensors: dict[str, Any]) -> None:
        from safetensors.torch import save_file

        if self.world.first:
            partial = file.with_suffix(".partial")
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, partial)
            os.replace(partial, file)

    def _load_tensors(self, file: Path) -> None:
        self._put(_read_tensors(file))

    def _put(self, tensors: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, tensor in tensors.items():
                self.weights[name].copy_(tensor)


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory ran out: CUDA's, the CPU allocator's, or Python's error."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "not enough memory" in str(error) or "can't allocate memory" in str(error)


def _optimizer(weights: dict[str, Any], config: Recipe) -> Any:
    """AdamW without weight decay; B learns `loraplus` times as fast as A."""
    fast = [weight for name, weight in weights.items() if "lora_B" in name]
    slow = [weight for name, weight in weights.items() if "lora_B" not in name]
    groups = [{"params": slow, "ratio": 1.0}, {"params": fast, "ratio": config.loraplus}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=0.0)


def _read_tensors(file: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(file))


def _require_space(out: Path, weights: dict[str, Any]) -> None:
    """Two checkpoints (weights and two moments each) and the adapter must fit."""
    out.mkdir(parents=True, exist_ok=True)
    needed = 7 * sum(weight.numel() * weight.element_size() for weight in weights.values())
    free = shutil.disk_usage(out).free
    if free < needed:
        raise DiskFull(
            f"Training needs {needed / 1e9:.2f} GB for checkpoints in {out}, but {free / 1e9:.2f} GB are free. "
            "Make room, or set XDG_DATA_HOME to another disk."
        )
