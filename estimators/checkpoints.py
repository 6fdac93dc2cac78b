"""When the state of a training is saved: never for more than a hundredth of its time, and every ten minutes at least."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from ..data.stopping import stop_asked

_EVERY = 600.0
_STEPS = 20  # between looks at the clock and at wishes to stop, where several processes must agree on what they say
_SHARE = 0.01


class Checkpoints(Checkpoint):
    """The whole state in one file, replaced in one step.

    Saved after an epoch if that costs at most a hundredth of the time since the last save, judged by what the last one cost,
    after the last epoch, after any step once ten minutes have passed, and after the step at which the process is asked to stop,
    but for the last step of an epoch; of several processes the first decides, every twenty steps. A training goes on from any of them with the same losses.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._saved, self._cost = time.monotonic(), 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return  # resumed from here, the epoch would end without validation; it ends in a moment
        if trainer.world_size == 1 or trainer.global_step % _STEPS == 0:
            self._save_after(trainer, _EVERY)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        self._save_after(trainer, 0.0 if last else min(_EVERY, self._cost / _SHARE))

    def _save_after(self, trainer: L.Trainer, seconds: float) -> None:
        """Save if that is due, or the training is to stop; then it does."""
        stop = stop_asked()
        due = stop or time.monotonic() - self._saved >= seconds
        if trainer.world_size > 1:  # all save and stop, or none
            due, stop = trainer.strategy.broadcast((due, stop))
        if due:
            started = time.monotonic()
            trainer.save_checkpoint(self._file)
            self._saved = time.monotonic()
            self._cost = self._saved - started
        if stop:
            raise KeyboardInterrupt
