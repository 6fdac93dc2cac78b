r"""Exponential moving average of the weights: validated, kept when best, in the checkpoint.

.. math:: \bar w_n = d_n \bar w_{n-1} + (1 - d_n) w_n, \qquad d_n = \min\!\left(d, \frac{1 + n}{10 + n}\right), \qquad \bar w_0 = w_0

Polyak & Juditsky (1992), https://doi.org/10.1137/0330046. While the learning rate is high, weights wander about where their
average is: it is nearly what cooling down would give.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn


class MovingAverage(WeightAveraging):
    """Lightning's callback, but buffers are looked at where they are needed, not in every step.

    Args:
        decay: d above.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(use_buffers=False)
        self._decay = decay
        self._pairs: tuple[list[Tensor], list[Tensor]] | None = None

    def weights(self) -> dict[str, Tensor]:
        """The average, by the names of the estimator's state."""
        estimator = self._average.estimator
        assert isinstance(estimator, nn.Module)
        return estimator.state_dict()

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        n = trainer.global_step - 1
        if n < self._latest_update_step:
            return
        if self._pairs is None:
            self._pairs = list(self._average.parameters()), list(pl_module.parameters())
        torch._foreach_lerp_(*self._pairs, 1 - min(self._decay, (1 + n) / (10 + n)) if n else 1.0)
        self._latest_update_step = trainer.global_step

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._take_buffers(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._take_buffers(pl_module)
        super().on_train_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._take_buffers(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    @property
    def _average(self) -> nn.Module:
        assert self._average_model is not None
        return self._average_model.module

    def _take_buffers(self, module: nn.Module) -> None:
        for ours, theirs in zip(self._average.buffers(), module.buffers(), strict=True):
            ours.copy_(theirs)
