"""Losses of every epoch, in memory, in ``metrics.csv`` and in the checkpoint, with the weights that did best."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ..data.files import write_text
from .averaging import MovingAverage
from .base import Estimator

EpochReport = Callable[[int, float, float], None]


class Losses(Callback):
    """Losses of every epoch, the weights of the best one and the time spent, all kept in the checkpoint.

    Args:
        report: Called after every epoch.
        logs: Folder for ``metrics.csv``; None writes none.
    """

    def __init__(self, report: EpochReport, logs: Path | None = None) -> None:
        self.train: list[float] = []
        self.validation: list[float] = []
        self.members: list[list[float]] = []
        self.seconds = 0.0
        self.best: dict[str, Tensor] = {}
        self._report, self._logs = report, logs
        self._since = time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        estimator, mean_loss = pl_module.estimator, pl_module.mean_loss
        assert isinstance(estimator, Estimator)
        assert isinstance(mean_loss, float)
        loss = float(trainer.callback_metrics["val_loss"])
        self._keep(estimator, trainer.callback_metrics, _validated(trainer, estimator))
        self.train.append(mean_loss)
        self.validation.append(loss)
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now
        if self._logs and trainer.is_global_zero:
            self._write(self._logs / "metrics.csv")
        self._report(trainer.current_epoch, self.train[-1], loss)

    def _keep(self, estimator: Estimator, metrics: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
        """Take note of every member's loss, and of the weights of those that have never been better."""
        several = [of_member(k) for k in range(estimator.members)]
        losses = [float(metrics[name]) for name in (several if estimator.members > 1 else ["val_loss"])]
        better = [
            all(comparable(loss) < comparable(before[k]) for before in self.members) for k, loss in enumerate(losses)
        ]
        if any(better):
            now = {name: value.detach().cpu().clone() for name, value in weights.items()}
            self.best = estimator.take_better(self.best, now, better)
        self.members.append(losses)

    def state_dict(self) -> dict[str, Any]:
        return {
            "train": self.train,
            "validation": self.validation,
            "members": self.members,
            "seconds": self.seconds,
            "best": self.best,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.train, self.validation = list(state_dict["train"]), list(state_dict["validation"])
        self.seconds, self.best = state_dict["seconds"], state_dict["best"]
        self.members = [list(losses) for losses in state_dict.get("members", [[loss] for loss in self.validation])]

    def _write(self, file: Path) -> None:
        """All epochs, those before an interruption too."""
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(["epoch", "train_loss", "val_loss"])
        rows.writerows((epoch, *pair) for epoch, pair in enumerate(zip(self.train, self.validation, strict=True)))
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, table.getvalue())


def _validated(trainer: L.Trainer, estimator: Estimator) -> dict[str, Tensor]:
    """The weights that the validation loss is of."""
    averages = [callback for callback in trainer.callbacks if isinstance(callback, MovingAverage)]  # type: ignore[attr-defined]
    return averages[0].weights() if averages else estimator.state_dict()


def comparable(loss: float) -> float:
    """A loss that is no number is worse than any."""
    return loss if math.isfinite(loss) else math.inf


def of_member(k: int) -> str:
    """What a member's validation loss is logged as."""
    return f"val_loss_{k}"
