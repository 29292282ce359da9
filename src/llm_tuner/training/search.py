"""Search: which settings train best. Optuna proposes, a trial is trained and measured, and the best is told.

Not a recipe and not a measurement: how a trial is trained, served and judged is handed in (`evaluate`), so that
training never reaches a model server. The rule it protects: **the objective never sees a held-out task.** A search that
picks the best of twelve trials on the held-out suite has tuned on it. So the tasks it is judged by are cut out of the
train side (`split`); the held-out suite stays closed until the chosen settings are measured as any candidate is. The
best trial's own accuracy is the best of many, and reads too high for that reason.

Pruning goes by the loss on judging tasks and not by accuracy: it is there during the training, needs no server, and
moves smoothly, while accuracy needs an export and a served model, by which time all the work is done. It goes by the
median and not by Hyperband: a search here has a dozen trials, and Hyperband spreads them over brackets before it may
cut any. Trials of different length are compared at the same share of their training, since each has its own cosine
schedule.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from llm_tuner.store import write_atomic
from llm_tuner.training.rows import hash_place
from llm_tuner.types import (
    DataError,
    Event,
    Json,
    MissingExtra,
    Search,
    SetupError,
    Task,
    TrainingError,
    TrainingInterrupted,
    Trial,
    Value,
    content_hash,
)

if TYPE_CHECKING:
    import optuna

Evaluate = Callable[[Mapping[str, float]], Generator[Event, None, float]]
"""Trains and measures settings; returns the accuracy 0..1. Its events may carry `data["held_out_loss"]` with `done` of
`total`: by them a trial is pruned, and the generator is closed."""

MARKS = 4
"""Places of a training at which trials are compared: every quarter."""

RETRIES = 2
"""How often the settings of a trial that was killed are tried again."""

FAILURES = 3
"""Trials that may fail one after the other before the search gives up."""

KEEP = "keep_"


class Space(Value):
    """Between what to search, ends included. `r` and `learning_rate` on a logarithmic scale; alpha is `r` times
    `alpha_over_r`, so that its effect is not the rank's; `keep` is, by category of task, the least share of its rows
    that a trial may train on (the most is all): the mix."""

    r: tuple[int, int] = (4, 64)
    alpha_over_r: tuple[float, float] = (0.5, 4.0)
    learning_rate: tuple[float, float] = (5e-5, 2e-3)
    epochs: tuple[float, float] = (1.0, 3.0)
    keep: dict[str, float] = Field(default_factory=lambda: {"no_call": 0.25})

    @model_validator(mode="after")
    def _possible(self) -> Space:
        for name in ("r", "alpha_over_r", "learning_rate", "epochs"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be [least, most] with 0 < least <= most, found {[low, high]}")
        for name, least in self.keep.items():
            if not 0 < least <= 1:
                raise ValueError(f"keep.{name} must be above 0 and at most 1, found {least:g}")
        return self


# ------------------------------------------------------------------------------------------------- what is trained on


def split(tasks: Sequence[Task], share: float = 0.25) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """Train-side tasks -> (to train on, to be judged by): by the hash of the request, about `share` of them judge. So a
    request stands on one side with all of its catalogues, and each side stays as it is when tasks are added.

    DataError for a task of the held-out side, and where one side would be empty.
    """
    for task in tasks:
        if task.side == "held-out":
            raise DataError(
                f"Task {task.id} is on the held-out side: a search must not be judged by it, nor train on it."
            )
    judged = tuple(task for task in tasks if hash_place("search", " ".join(task.request.split()).casefold()) < share)
    chosen = {id(task) for task in judged}
    trained = tuple(task for task in tasks if id(task) not in chosen)
    if not judged or not trained:
        raise DataError(
            f"{len(tasks)} training tasks cannot be divided into those to train on and those to be judged by "
            f"(found: {len(trained)} and {len(judged)}). Collect more tasks."
        )
    return trained, judged


# ------------------------------------------------------------------------------------------------------------ searching


def search(
    space: Space,
    evaluate: Evaluate,
    out: Path,
    *,
    trials: int = 12,
    seed: int = 0,
    inputs: Mapping[str, Json] | None = None,
    first: Mapping[str, float] | None = None,
) -> Generator[Event, None, Search]:
    """Runs trials until `trials` of them are done or pruned, and returns all of them. A higher accuracy is better.

    Everything is kept in `out/study.journal`, so that a search goes on where it was: what a killed process left running
    is marked failed and its settings are tried again. One process at a time may search in `out`. `first` are settings
    to begin with. `inputs` are what the accuracy depends on; SetupError when `out` holds the search of others. A trial
    that raises TrainingError is marked failed, and the third in a row ends the search with that error. Ctrl-C, or
    closing the generator, keeps what is done.
    """
    study = _open(out, space, inputs or {}, first, trials)
    failures = 0
    while _finished(study) < trials:
        _seed(study, seed, trials)
        trial = study.ask()
        settings = _propose(trial, space)
        try:
            yield from _try(study, trial, settings, evaluate, trials)
            failures = 0
        except TrainingInterrupted:
            _fail(study, trial.number, "interrupted", again=True)
            raise
        except TrainingError as error:
            failures += 1
            _fail(study, trial.number, str(error))
            yield Event(step="search", message=f"trial {trial.number} failed: {error}")
            if failures >= FAILURES:
                raise
        except BaseException as error:
            _fail(study, trial.number, f"stopped: {type(error).__name__}", again=True)
            raise
    return found(study)


def _try(
    study: optuna.Study, trial: optuna.Trial, settings: Mapping[str, float], evaluate: Evaluate, wanted: int
) -> Generator[Event, None, None]:
    """One trial to its end: done, or pruned by its loss on judging tasks."""
    from optuna.trial import TrialState

    told = f"trial {trial.number}: " + ", ".join(f"{name} {value:.3g}" for name, value in settings.items())
    yield Event(step="search", message=told, done=_finished(study), total=wanted, unit="trial")
    steps = evaluate(settings)
    best = 0
    try:
        while True:
            event = next(steps)
            yield event
            loss = event.data.get("held_out_loss")
            if loss is None or not event.total:
                continue
            mark = int(MARKS * event.done / event.total)
            if mark > best:
                best = mark
                trial.report(-float(loss), mark)
                if mark < MARKS and trial.should_prune():
                    study.tell(trial, state=TrialState.PRUNED)
                    message = f"trial {trial.number} pruned: loss on judging tasks {loss:.3f} is above the median"
                    yield Event(step="search", message=message, done=_finished(study), total=wanted, unit="trial")
                    return
    except StopIteration as stop:
        study.tell(trial, float(stop.value))
        message = f"trial {trial.number}: accuracy {stop.value:.3f}"
        yield Event(step="search", message=message, done=_finished(study), total=wanted, unit="trial")
    finally:
        steps.close()


def _propose(trial: optuna.Trial, space: Space) -> dict[str, float]:
    """The trial's settings, as `training` takes them: r, alpha, learning_rate, epochs, and a keep_CATEGORY each."""
    r = trial.suggest_int("r", *space.r, log=True)
    ratio = trial.suggest_float("alpha_over_r", *space.alpha_over_r, log=True)
    settings: dict[str, float] = {
        "r": r,
        "alpha": max(1, round(r * ratio)),
        "learning_rate": trial.suggest_float("learning_rate", *space.learning_rate, log=True),
        "epochs": trial.suggest_float("epochs", *space.epochs),
    }
    for category, least in sorted(space.keep.items()):
        settings[KEEP + category] = trial.suggest_float(KEEP + category, least, 1.0)
    return settings


# ----------------------------------------------------------------------------------------------------------- the study


def require_optuna() -> Any:
    """optuna with its own log kept off the terminal, or the sentence that says how to get it."""
    try:
        import optuna
    except ImportError as error:
        raise MissingExtra("A search needs Optuna. Run: pip install 'llm-tuner[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def open_study(out: Path) -> Any:
    """The study of a search folder, to be read or gone on with; a new one where there is none."""
    optuna = require_optuna()
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage

    out.mkdir(parents=True, exist_ok=True)
    path = out / "study.journal"
    _mend(path)
    storage = JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))
    return optuna.create_study(storage=storage, study_name="search", direction="maximize", load_if_exists=True)


def _mend(journal: Path) -> None:
    """Removes what a kill in the middle of a write leaves: half a line, to which more would be added, and a lock."""
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if not journal.exists():
        return
    text = journal.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        write_atomic(journal, whole.decode("utf-8"))


def _open(
    out: Path, space: Space, inputs: Mapping[str, Json], first: Mapping[str, float] | None, trials: int
) -> optuna.Study:
    from optuna.pruners import MedianPruner
    from optuna.trial import TrialState

    study: optuna.Study = open_study(out)
    study.pruner = MedianPruner(n_startup_trials=min(4, max(2, trials // 3)), n_warmup_steps=1, n_min_trials=2)
    key = content_hash([space.model_dump(mode="json"), dict(inputs)])
    held = study.user_attrs.get("key")
    if held is None:
        study.set_user_attr("key", key)
        if first and (within := _within(first, space)):
            study.enqueue_trial(within, skip_if_exists=True)
    elif held != key:
        raise SetupError(
            f"{out} holds another search ({len(study.trials)} trials of another space, base or data). Search elsewhere."
        )
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        _fail(study, trial.number, "its process was killed", again=True)
    return study


def _within(first: Mapping[str, float], space: Space) -> dict[str, float]:
    """The recipe's own settings in the words of the space, those that lie inside it."""
    ratio = first["alpha"] / first["r"] if "alpha" in first and "r" in first else None
    known = {**first, "alpha_over_r": ratio, **{KEEP + name: 1.0 for name in space.keep}}
    ends: dict[str, tuple[float, float]] = {
        name: getattr(space, name) for name in ("r", "alpha_over_r", "learning_rate", "epochs")
    }
    ends |= {KEEP + name: (least, 1.0) for name, least in space.keep.items()}
    return {name: v for name, (low, high) in ends.items() if (v := known.get(name)) is not None and low <= v <= high}


def _seed(study: optuna.Study, seed: int, trials: int) -> None:
    """A sampler for the next trial alone. One for all would propose its first trials again after a kill."""
    from optuna.samplers import TPESampler

    number = int(content_hash([seed, len(study.get_trials(deepcopy=False))])[:8], 16)
    study.sampler = TPESampler(seed=number, n_startup_trials=min(10, max(4, trials // 3)))


def _finished(study: optuna.Study) -> int:
    from optuna.trial import TrialState

    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))


def _fail(study: optuna.Study, number: int, why: str, *, again: bool = False) -> None:
    """Marks a trial as failed; `again` puts its settings in line, RETRIES times at most."""
    from optuna.trial import TrialState

    trial = study.get_trials(deepcopy=False)[number]
    if trial.state.is_finished():  # the search was closed between two trials
        return
    study.tell(number, state=TrialState.FAIL)
    tried = int(trial.user_attrs.get("tried", 0))
    if again and trial.params and tried < RETRIES:
        study.enqueue_trial(trial.params, user_attrs={"tried": tried + 1})
    study.set_user_attr(f"why {number}", why)


# ----------------------------------------------------------------------------------------------------- what was found


def found(study: optuna.Study) -> Search:
    """All trials of a study, the best one, and what the settings matter."""
    trials = tuple(
        _told(trial, study.user_attrs.get(f"why {trial.number}", ""))
        for trial in study.get_trials(deepcopy=False)
        if trial.datetime_start is not None
    )
    done = [trial for trial in trials if trial.accuracy is not None]
    best = max(done, key=lambda trial: (trial.accuracy or 0.0, -trial.number), default=None)
    return Search(trials=trials, best=best.number if best else None, importance=_importance(study, done))


def _told(trial: optuna.trial.FrozenTrial, why: str) -> Trial:
    from optuna.trial import TrialState

    names = {TrialState.COMPLETE: "done", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    settings = dict(trial.params)
    if "r" in settings and "alpha_over_r" in settings:
        settings["alpha"] = max(1, round(settings["r"] * settings.pop("alpha_over_r")))
    return Trial.model_validate(
        {
            "number": trial.number,
            "settings": settings,
            "state": names.get(trial.state, "running"),
            "accuracy": trial.value if trial.state == TrialState.COMPLETE else None,
            "losses": [(mark / MARKS, -value) for mark, value in sorted(trial.intermediate_values.items())],
            "seconds": round(trial.duration.total_seconds(), 1) if trial.duration else 0.0,
            "why": why,
        }
    )


def _importance(study: optuna.Study, done: Sequence[Trial]) -> dict[str, float]:
    """PED-ANOVA (Watanabe et al. 2023) over the finished trials; empty for fewer than four, or all alike."""
    if len(done) < 4 or len({trial.accuracy for trial in done}) < 2:
        return {}
    optuna = require_optuna()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = optuna.importance.get_param_importances(study)
        except (ValueError, RuntimeError):
            return {}
    return {name: round(float(share), 4) for name, share in found.items()}
