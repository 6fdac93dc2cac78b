"""Loaders whose batches are slices of whole tensors.

A ``DataLoader`` over a ``TensorDataset`` collates row by row in Python and costs 3 to 4 ms a step, as much as a small
flow; slicing costs 0.05 ms. The order of rows is a function of (seed, epoch) alone and the loader counts the batches
that were consumed, so an interrupted run continues with the very next batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import torch

from .batch import Batch
from .errors import ShapeError
from .records import INVALID, OK
from .store import SimulationStore
from .variables import Arrays


class WholeBatches:
    """Shuffled batches of rows that sit in memory, on whatever device.

    Args:
        rows: All rows.
        batch_size: Rows in a batch; a last, smaller batch is dropped when shuffling, so that every step weighs the same.
        seed: Of the order of rows; None keeps the order and every row.
    """

    def __init__(self, rows: Batch, batch_size: int, seed: int | None = None) -> None:
        if rows.rows == 0:
            raise ShapeError("`rows` of a loader must not be empty")
        self.rows = rows
        self.batch_size = min(batch_size, rows.rows)
        self.seed = seed
        self.epoch = 0
        self.consumed = 0

    def __len__(self) -> int:
        full, rest = divmod(self.rows.rows, self.batch_size)
        return full + (rest > 0 and self.seed is None)

    def __iter__(self) -> Iterator[Batch]:
        if self.consumed >= len(self):
            self.epoch, self.consumed = self.epoch + 1, 0
        order = self._order()
        for step in range(self.consumed, len(self)):
            self.consumed = step + 1
            part = slice(step * self.batch_size, (step + 1) * self.batch_size)
            yield self.rows.select(part if order is None else order[part])

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch; batches consumed count only if it is the one they were consumed in."""
        if epoch != self.epoch:
            self.epoch, self.consumed = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "consumed": self.consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.consumed = state["epoch"], state["consumed"]

    def _order(self) -> torch.Tensor | None:
        if self.seed is None:
            return None
        words = np.random.SeedSequence(self.seed, spawn_key=(self.epoch,)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
        return torch.randperm(self.rows.rows, generator=generator).to(self.rows.theta.device)


class SimulationsDataModule(L.LightningDataModule):
    """Training and validation rows as whole tensors, moved to the training device once.

    Args:
        train: Rows to learn from.
        validation: Rows for the validation loss.
        batch_size: Rows in a training batch; validation takes ten times as many, having no gradients to keep.
        seed: Of the order of training rows.
    """

    def __init__(self, train: Batch, validation: Batch, *, batch_size: int, seed: int) -> None:
        super().__init__()
        self._train = WholeBatches(train, batch_size, seed)
        self._validation = WholeBatches(validation, 10 * batch_size)

    @property
    def steps_per_epoch(self) -> int:
        return len(self._train)

    def to(self, device: torch.device) -> None:
        """Keep all rows on ``device`` from now on."""
        self._train.rows = self._train.rows.to(device)
        self._validation.rows = self._validation.rows.to(device)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def set_epoch(self, epoch: int) -> None:
        self._train.set_epoch(epoch)

    def train_dataloader(self) -> WholeBatches:
        return self._train

    def val_dataloader(self) -> WholeBatches:
        return self._validation


def as_batch(theta: np.ndarray, x: Arrays) -> Batch:
    """theta as a float64 and x as float32 tensors."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)) for name, values in x.items()}
    return Batch(torch.from_numpy(np.ascontiguousarray(theta, dtype=np.float64)), tensors)


def valid_rows(store: SimulationStore, rows: slice, *, impute: bool = False) -> tuple[np.ndarray, Arrays]:
    """theta, and x with context, of the rows that are ok; with ``impute`` those with NaN in x as well.

    Dropping them is right for a posterior estimator and only there: whether a row is valid depends on x alone, so
    p(theta | x) of a valid x is not changed by it.
    """
    theta, x = store.read_array("theta", rows), store.read_conditions(rows)
    status = store.read_array("status", rows)
    keep = (status == OK) | (impute & (status == INVALID))
    return theta[keep], {name: values[keep] for name, values in x.items()}
