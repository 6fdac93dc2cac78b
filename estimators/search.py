"""A small search for hyper-parameters over the validation loss, by Optuna.

The first trial is the settings as they are, so that what is found is never worse. Then tree-structured Parzen estimators
(Bergstra et al. 2011, NeurIPS 24) propose; a trial whose best loss so far is above the median of the earlier ones at the same
epoch is given up. Trials are kept in ``study.db`` in the folder, and a trial that was killed is taken up again, from its last
checkpoint. The proposals depend on the seed and on the trials before them alone.

Optuna: Akiba et al. (2019), https://arxiv.org/abs/1907.10902; the extra ``simfer[search]``.
"""

from __future__ import annotations

import io
import json
import math
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from ..data.errors import ConfigError, TrainingError
from ..data.files import fingerprint, remove, write_text
from ..data.store import SimulationStore
from ..simulators.prior import Prior
from .losses import EpochReport
from .model import Model
from .settings import EstimatorSettings, TrainingSettings
from .space import Choice, Dimension, nested, read_dimension, value_of, with_values
from .train import train


@dataclass(frozen=True, slots=True)
class Trial:
    """One training of a search.

    Attributes:
        values: Key of the space → value that was tried.
        state: ``finished``, ``pruned`` (given up), or ``failed``.
        loss: Validation loss in nats per row: the final one, or the last one before it was given up.
        seconds: It took.
        reason: Why it failed.
    """

    values: dict[str, Any]
    state: str
    loss: float | None
    seconds: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found.

    Attributes:
        trials: All of them, in order.
        estimator: Settings of the best.
        training: Settings of the best.
    """

    trials: tuple[Trial, ...]
    estimator: EstimatorSettings
    training: TrainingSettings

    @property
    def best(self) -> Trial:
        return _best(self.trials)

    @property
    def yaml(self) -> str:
        """What to put under ``train:`` of a configuration."""
        return _yaml(self.trials)


TrialReport = Callable[[Trial], None]


def search(
    theta: Any,
    x: Any = None,
    prior: Prior | None = None,
    *,
    space: Mapping[str, Any],
    folder: str | Path,
    trials: int = 20,
    seconds: float | None = None,
    seed: int = 0,
    estimator: EstimatorSettings | None = None,
    training: TrainingSettings | None = None,
    rows: slice | np.ndarray = slice(None),
    on_trial: TrialReport = lambda trial: None,
    **arguments: Any,
) -> Found:
    """Search for settings with a lower validation loss. One process at a time may use a folder.

    Args:
        theta: As `train` takes it: parameters, or a simulation store.
        x: Likewise.
        prior: Likewise.
        space: Key such as ``learning_rate`` or ``flow.transforms`` → ``[low, high]``, ``[low, high, log]``, a list of
            values, or ``{"choose": [...]}``.
        folder: Keeps the trials, and ``best.yaml``; the same search goes on from what is there.
        trials: How many, those in the folder included.
        seconds: Of all trials together; then no other is begun, and the one that runs is given up if another finished.
        seed: Of the proposals, and of every training.
        estimator: What the space does not name.
        training: What the space does not name.
        rows: Of a store, as `train` takes them.
        on_trial: Called after every trial.
        **arguments: Other arguments of `train`.

    Raises:
        ConfigError: Optuna is not installed, or a space that is none.
        TrainingError: No trial finished.
    """
    optuna = require_optuna()
    estimator, training = estimator or EstimatorSettings(), training or TrainingSettings()
    if training.undecided:
        raise ConfigError(
            "`fisher: {beta: auto}` is a search of its own, whose losses cannot be compared: give a number"
        )
    if not space:
        raise ConfigError(
            "`space` must name something to search for, such as `learning_rate: [1e-4, 1e-2, log]`; got none"
        )
    dimensions = {key: read_dimension(key, given, estimator, training) for key, given in space.items()}
    name = _name(space, estimator, training, seed, _data(theta, rows))
    given = {"theta": theta, "x": x, "prior": prior, "rows": rows, "seed": seed, **arguments}
    fit = partial(_fit, given, estimator, training)
    with _quiet(optuna):
        pruner = optuna.pruners.MedianPruner(max(1, min(5, trials // 4)), n_warmup_steps=_warmup(training))
        study = _Study(optuna, Path(folder), name, dimensions, seed, pruner)
        study.begin_with({key: value_of(key, estimator, training) for key in dimensions})
        while len(study.trials) < trials and study.seconds < (seconds or math.inf):
            study.run(fit, math.inf if seconds is None else time.monotonic() + seconds - study.seconds)
            write_text(Path(folder) / "best.yaml", _yaml(study.trials))
            on_trial(study.trials[-1])
        return Found(study.trials, *with_values(_best(study.trials).values, estimator, training))


def _warmup(training: TrainingSettings) -> int:
    """Epochs before which no trial is given up."""
    return 6 if training.epochs == "auto" else 1 + training.epochs // 10


def _fit(
    given: Mapping[str, Any],
    estimator: EstimatorSettings,
    training: TrainingSettings,
    values: Mapping[str, Any],
    where: Path,
    on_epoch: EpochReport,
) -> Model:
    """Train with ``values``, on what is ``given``."""
    estimator, training = with_values(values, estimator, training)
    return train(**given, estimator=estimator, training=training, folder=where, on_epoch=on_epoch)


def _name(
    space: Mapping[str, Any], estimator: EstimatorSettings, training: TrainingSettings, seed: int, data: list[Any]
) -> str:
    """What tells one search from another in the same folder."""
    settings = {"estimator": estimator.model_dump(mode="json"), "training": training.model_dump(mode="json")}
    return fingerprint({**settings, "seed": seed, "space": json.dumps(space, default=list), "data": data})


class _Study:
    """An Optuna study in a folder."""

    def __init__(
        self, optuna: ModuleType, folder: Path, name: str, dimensions: Mapping[str, Dimension], seed: int, pruner: Any
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._optuna, self._folder, self._dimensions, self._seed = optuna, folder, dimensions, seed
        self._distributions = {key: _distribution(optuna, dimension) for key, dimension in dimensions.items()}
        self._study = optuna.create_study(
            storage=f"sqlite:///{folder.resolve() / 'study.db'}", study_name=name, pruner=pruner, load_if_exists=True
        )
        self._again()

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Those that came to an end."""
        return tuple(self._described(trial) for trial in self._study.trials if _ended(trial))

    @property
    def seconds(self) -> float:
        return float(sum(trial.seconds for trial in self.trials))

    def begin_with(self, values: Mapping[str, Any]) -> None:
        """Try these first, if they belong to the space."""
        if not self._study.trials and all(values[key] in dimension for key, dimension in self._dimensions.items()):
            self._study.enqueue_trial({key: self._encoded(key, value) for key, value in values.items()})

    def run(self, fit: Callable[..., Model], until: float) -> None:
        """Make one trial; ``until`` is on the clock of `time.monotonic`."""
        optuna, state = self._optuna, self._optuna.trial.TrialState
        words = np.random.SeedSequence(self._seed, spawn_key=(len(self.trials),)).generate_state(1)
        self._study.sampler = optuna.samplers.TPESampler(seed=int(words[0]))
        trial = self._study.ask(self._distributions)
        values = self._values(trial.params)
        where = self._folder / "trials" / fingerprint(values)[:12]
        finished = any(earlier.state == "finished" for earlier in self.trials)

        def report(epoch: int, train_loss: float, validation_loss: float) -> None:
            trial.report(validation_loss, epoch)
            if trial.should_prune() or (finished and time.monotonic() > until):
                raise optuna.TrialPruned

        try:
            self._study.tell(trial, _loss(fit(values, where, report)))
        except optuna.TrialPruned:
            self._study.tell(trial, state=state.PRUNED)
        except TrainingError as error:
            trial.set_user_attr("reason", str(error))
            self._study.tell(trial, state=state.FAIL)
        remove(where)

    def _again(self) -> None:
        """Queue trials that were killed: with their values they find their checkpoint."""
        state = self._optuna.trial.TrialState
        for trial in self._study.get_trials(states=(state.RUNNING,)):
            self._study.enqueue_trial(trial.params)
            self._study.tell(trial.number, state=state.FAIL)

    def _values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: json.loads(value) if isinstance(self._dimensions[key], Choice) else value
            for key, value in params.items()
        }

    def _encoded(self, key: str, value: Any) -> Any:
        return json.dumps(value) if isinstance(self._dimensions[key], Choice) else value

    def _described(self, trial: Any) -> Trial:
        state = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}[trial.state.name]
        return Trial(
            self._values(trial.params),
            state,
            trial.value,
            trial.duration.total_seconds(),
            trial.user_attrs.get("reason", ""),
        )


def _ended(trial: Any) -> bool:
    """Whether a trial has a result; one that was killed has not."""
    return trial.state.name in ("COMPLETE", "PRUNED") or "reason" in trial.user_attrs


def _distribution(optuna: ModuleType, dimension: Dimension) -> Any:
    """Choices are JSON, because Optuna knows no lists."""
    if isinstance(dimension, Choice):
        return optuna.distributions.CategoricalDistribution([json.dumps(value) for value in dimension.values])
    kind = optuna.distributions.IntDistribution if dimension.whole else optuna.distributions.FloatDistribution
    return kind(dimension.low, dimension.high, log=dimension.log)


def _loss(model: Model) -> float:
    """The best validation loss: of an ensemble that of the mixture, where it has one."""
    losses = model.facts.get("ensemble", {}).get("loss")
    return float(losses["mixture"] if losses else min(model.facts["loss"]["validation"]))


def _best(trials: tuple[Trial, ...]) -> Trial:
    finished = [trial for trial in trials if trial.state == "finished"]
    if not finished:
        reasons = sorted({trial.reason for trial in trials if trial.reason})
        raise TrainingError(f"none of {len(trials)} trials finished: {'; '.join(reasons) or 'all were given up'}")
    return min(finished, key=lambda trial: math.inf if trial.loss is None else trial.loss)


def _yaml(trials: tuple[Trial, ...]) -> str:
    states = [trial.state for trial in trials]
    counted = ", ".join(f"{states.count(state)} {state}" for state in ("finished", "pruned", "failed"))
    if "finished" not in states:
        return f"# no result yet: {counted}\n"
    best, stream, yaml = _best(trials), io.StringIO(), YAML()
    yaml.default_flow_style = None
    yaml.dump({"train": nested(best.values)}, stream)
    return f"# validation loss {best.loss:.4f}, the best of {len(trials)} trials: {counted}\n{stream.getvalue()}"


def _data(theta: Any, rows: slice | np.ndarray) -> list[Any]:
    """What tells one set of simulations from another."""
    chosen = str(rows) if isinstance(rows, slice) else zlib.crc32(np.ascontiguousarray(rows).data)
    if isinstance(theta, SimulationStore | str | Path):
        store = theta if isinstance(theta, SimulationStore) else SimulationStore.open(theta)
        return [store.rows, json.dumps(store.attributes.get("campaign"), sort_keys=True, default=str), chosen]
    values = np.ascontiguousarray(np.asarray(theta, dtype=np.float64))
    return [list(values.shape), zlib.crc32(values.data), chosen]


def require_optuna() -> ModuleType:
    """The module `optuna`.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("a search needs Optuna, which is not installed: `pip install 'simfer[search]'`") from error
    return optuna


@contextmanager
def _quiet(optuna: ModuleType) -> Iterator[None]:
    """Silence Optuna's line per trial; warnings still come through."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
