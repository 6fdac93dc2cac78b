"""What Lightning trains: steps, schedule and mean losses of any estimator.

Processes that train together share every batch. Each takes the mean over its own rows, weighted by their part of the batch, so that
the mean gradient is that of the whole batch; a validation loss is the sum over all rows of all processes, by their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from ..data.batch import Batch
from .base import Estimator
from .failure import Step, explain
from .losses import of_member
from .robust.objective import Objective
from .settings import TrainingSettings
from .sharing import gathered, own_share, share_statistics, summed
from .tuning import Tuning

RowNames = Callable[[np.ndarray], np.ndarray]


class TrainingModule(L.LightningModule):
    """Steps, schedule and mean losses of an estimator.

    Args:
        estimator: What is trained.
        settings: Of the optimisation.
        steps: In all epochs, at the end of which the schedule ends.
        learning_rate: Peak of the schedule.
        tuning: Looks at the machine before the first step; None leaves all as it is.
        objective: What is minimised; the estimator's own loss when None.
        folder: Where a batch is saved whose loss is no number; None saves none.
        name_rows: From numbers of training rows to what they are called where they came from.
    """

    def __init__(
        self,
        estimator: Estimator,
        settings: TrainingSettings,
        steps: int,
        learning_rate: float,
        *,
        tuning: Tuning | None = None,
        objective: Objective | None = None,
        folder: Path | None = None,
        name_rows: RowNames | None = None,
    ) -> None:
        super().__init__()
        self.estimator = estimator
        self.settings = settings
        self.steps, self.learning_rate = steps, learning_rate
        self._tuning, self._folder, self._name_rows = tuning, folder, name_rows
        self._objective = objective or Objective(TrainingSettings(), estimator)
        self._last: Step | None = None
        self._sum: Tensor | float = 0.0  # of this process's parts of the mean loss of each step
        self._count = 0
        self._validated: list[Tensor] = []  # of each batch the sums of losses and, last, how many rows they are of

    def __setattr__(self, name: str, value: Any) -> None:
        # fifty times a step Lightning notes which hook it is in; modules look for parameters in what they are given
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def on_fit_start(self) -> None:
        self.trainer.datamodule.to(self.device)  # type: ignore[attr-defined]

    def on_train_start(self) -> None:
        if self._tuning:
            left, precision = self.steps - self.global_step, self.trainer.precision_plugin.train_step_context
            self._tuning.decide(self.estimator, left, self.device, precision)

    def on_train_epoch_start(self) -> None:
        # Lightning restores a loader's state only within an epoch; at its end the next order would be the first again
        self.trainer.datamodule.set_epoch(self.current_epoch)  # type: ignore[attr-defined]

    def training_step(self, batch: Batch, index: int) -> Tensor:
        losses = self._objective.losses(self.estimator, batch, self.global_step)
        added = self._objective.added(self.estimator, batch, self.global_step)
        means = losses.mean(1) + added
        if self.device.type != "cpu":  # a step late: asked now, the host would wait for the device in every step
            self._require_finite()
        self._last = Step(
            self.current_epoch, index, batch, losses.detach().sum(0) + torch.as_tensor(added).detach().sum()
        )
        if self.device.type == "cpu":
            self._require_finite()
        part = batch.rows / self.trainer.datamodule.batch_size  # type: ignore[attr-defined]
        self._sum, self._count = self._sum + part * means.detach().mean(), self._count + 1
        return part * self.trainer.world_size * means.sum()  # gradients are averaged over processes

    def _require_finite(self) -> None:
        """Raise TrainingError if the last step's loss was no number."""
        step, self._last = self._last, None
        if step is not None and not math.isfinite(step.losses.mean()):
            raise explain(step, self._rows(step.index), self._folder)

    def _rows(self, index: int) -> np.ndarray | None:
        numbers = self.trainer.datamodule.numbers(index)  # type: ignore[attr-defined]
        return numbers if numbers is None or self._name_rows is None else self._name_rows(numbers)

    @property
    def mean_loss(self) -> float:
        """Mean training loss of the epoch so far, over all processes; all must ask."""
        return sum(gathered(float(self._sum))) / max(self._count, 1)

    def on_train_epoch_end(self) -> None:
        self._require_finite()
        self.log("train_loss", self.mean_loss)
        self._sum, self._count = 0.0, 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["epoch_so_far"] = (gathered(float(self._sum)), self._count)
        checkpoint["objective"] = self._objective.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        sums, self._count = checkpoint["epoch_so_far"]
        self._sum = own_share(sums if isinstance(sums, list) else [sums])
        self._objective.load_state_dict(checkpoint.get("objective", {}))

    def on_validation_start(self) -> None:
        self._validated.clear()
        share_statistics(self.estimator)

    def validation_step(self, batch: Batch, index: int) -> None:
        losses = self._objective.validate(self.estimator, batch, index)
        self._validated.append(batch.rows * torch.cat([losses.double(), losses.new_ones(1).double()]))

    def on_validation_epoch_end(self) -> None:
        sums = summed(torch.stack(self._validated).sum(0))
        losses = sums[:-1] / sums[-1]
        found = {"val_loss": losses.mean(), **{of_member(k): loss for k, loss in enumerate(losses)}}
        self.log_dict(found if len(losses) > 1 else {"val_loss": losses[0]})

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if self.estimator.members > 1 and gradient_clip_val:
            clip_members(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> Any:
        s = self.settings
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=s.weight_decay, fused=True)
        warmup = max(1, round(s.warmup * self.steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _schedule(step, warmup, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def clip_members(parameters: Iterable[Tensor], bound: float) -> None:
    """Scale the gradient of every member, the leading axis, to a norm of at most ``bound``."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.linalg.vector_norm(torch.cat([gradient.flatten(1) for gradient in gradients], 1), dim=1)
    scale = (bound / (norms + 1e-6)).clamp(max=1.0)  # as torch does for one
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))


def _schedule(step: int, warmup: int, steps: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
