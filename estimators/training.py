"""Training, whatever the estimator: one thin Lightning module that owns optimisation, in one process or in several.

AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101), linear warm-up, cosine decay to zero, clipping of the
gradient's norm, early stopping on the validation loss, best weights kept; on request those of an exponential moving
average (Polyak & Juditsky 1992), whose decay rises as (1 + n) / (10 + n) to its value in n steps. After epochs, and
every ten minutes within one, the whole state, best weights included, goes to ``last.ckpt``; the order of rows depends on
(seed, epoch) alone and the loader counts what was consumed, so a run killed anywhere ends with the same losses.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.batch import Batch
from ..data.loaders import Portions, Rows
from ..data.ranges import Ranges
from .base import Estimator
from .fit import Fit, quiet
from .hardware import Hardware
from .losses import EpochReport, comparable
from .module import RowNames
from .robust.objective import Objective
from .schedule import Budget, budget
from .settings import TrainingSettings
from .team import fit_together


@dataclass(frozen=True, slots=True)
class History:
    """Losses in nats per row, one of each per epoch: of several members the mean.

    ``members`` has the validation loss of every member, ``facts`` what the estimator learned when it was trained,
    ``budget`` what ``auto`` stood for.
    """

    train: list[float]
    validation: list[float]
    seconds: float
    members: list[list[float]]
    facts: dict[str, Any]
    budget: Budget

    @property
    def best_epoch(self) -> int:
        return min(range(len(self.validation)), key=lambda epoch: comparable(self.validation[epoch]))


def train_estimator(
    estimator: Estimator,
    train: Rows,
    validation: Rows,
    settings: TrainingSettings,
    *,
    seed: int = 0,
    folder: Path | None = None,
    logs: Path | None = None,
    hardware: Hardware | None = None,
    name_rows: RowNames | None = None,
    on_epoch: EpochReport = lambda epoch, train_loss, val_loss: None,
) -> History:
    """Train in place and leave the best weights in ``estimator``.

    Args:
        estimator: Freshly made; its normalisation is fitted here.
        train: Rows to learn from.
        validation: Rows for the validation loss.
        settings: Of the optimisation.
        seed: Of the order of rows. Initial weights are the caller's.
        folder: Where checkpoints live; training continues from what is there. None keeps nothing.
        logs: Where ``metrics.csv`` and what other loggers write live; ``folder`` when None.
        hardware: Where to train.
        name_rows: From numbers of training rows to what they are called where they came from, for messages.
        on_epoch: Called with (epoch, training loss, validation loss) after every epoch.

    Raises:
        TrainingError: The loss is no number, a checkpoint cannot be read, or one of several processes died.
        ConfigError: A logger that is not installed.
    """
    hardware = hardware or Hardware()
    estimator.seen = Ranges()
    estimator.fit_preprocess(estimator.seen.watch(Portions(train)))
    _tell_constant(estimator.seen)
    train, validation = _prepared(estimator, train), _prepared(estimator, validation)
    numbers = budget(settings, train.rows)
    with quiet():
        objective = Objective(settings, estimator, Portions(train), seed)
    logs = logs or folder
    fit = Fit(estimator, objective, train, validation, settings, numbers, seed, hardware, folder, logs, name_rows)
    fitted = fit_together(fit, on_epoch)
    estimator.cpu().load_state_dict(fitted.best)
    with quiet():
        facts = estimator.eval().finish(Portions(validation)) | objective.finish(estimator, Portions(validation))
    return History(fitted.train, fitted.validation, fitted.seconds, fitted.members, facts, numbers)


def _prepared(estimator: Estimator, rows: Rows) -> Rows:
    return estimator.prepare(rows) if isinstance(rows, Batch) else rows


def _tell_constant(seen: Ranges) -> None:
    constant = seen.constant() if seen.rows > 1 else []
    if constant:
        named = ", ".join(f"`{name}`" for name in constant[:5]) + (" and others" if len(constant) > 5 else "")
        warnings.warn(
            f"{len(constant)} entries of x have one value in all {seen.rows} training rows ({named}): they tell nothing, and "
            "the network gets 0 for each; another value in an observation will be warned of",
            UserWarning,
            stacklevel=4,
        )
