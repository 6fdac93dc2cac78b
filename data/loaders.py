"""Loaders: rows on the device, rows in memory, or rows streamed from a store, behind one interface.

Rows that fit are whole tensors and batches slices of them: a ``DataLoader`` over a ``TensorDataset`` collates row by
row in Python and costs 3 to 4 ms a step, as much as a small flow; slicing costs 0.05 ms. Rows that do not fit are
streamed (`streaming`). The order of rows is a function of the seed and the epoch, and every loader counts the batches that
were consumed, so an interrupted run continues with the very next batch. Processes that train together share each batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import lightning as L
import numpy as np
import torch

from .batch import Batch, require_float32
from .memory import default_budget
from .position import Position
from .store import SimulationStore
from .streaming import StoredRows, StreamedBatches, require_share, usable_rows
from .variables import Arrays

Rows = Batch | StoredRows

_PART_BYTES = 16 * 2**20


@runtime_checkable
class Loader(Protocol):
    """What training needs of a loader: as many batches as it says, from where it was left off."""

    batch_size: int

    def join(self, rank: int, world: int) -> None: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...

    def set_epoch(self, epoch: int) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def to(self, device: torch.device) -> None: ...


class WholeBatches(Position):
    """Shuffled batches of rows that sit in memory, on whatever device.

    Args:
        rows: All rows.
        batch_size: Rows in a batch. Shuffled, they are those of all processes together, and a last, smaller batch is dropped,
            so that every step weighs the same; in order, they are those of one process.
        seed: Of the order of rows; None keeps the order and every row.
        rank: Of this process, among ``world``; each takes its part of every shuffled batch, or of the rows in order.
        world: How many processes train.
        resident: Whether `to` keeps all rows on the device; where they fill no more than half of what is free there
            when None.

    Raises:
        ShapeError: Fewer rows, or rows in a batch, than processes.
    """

    def __init__(
        self,
        rows: Batch,
        batch_size: int,
        seed: int | None = None,
        *,
        rank: int = 0,
        world: int = 1,
        resident: bool | None = None,
    ) -> None:
        self.rows = rows
        self.batch_size = min(batch_size, rows.rows)
        self.seed = seed
        self.resident = resident
        self.join(rank, world)

    def join(self, rank: int, world: int) -> None:
        """Take another part."""
        require_share(self.rows.rows, self.batch_size, self.seed, world)
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        if self.seed is not None:
            return self.rows.rows // self.batch_size
        first, last = self._share()
        return (last - first + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        self.begin(len(self))
        order = self._order()
        for step in range(self.consumed, len(self)):
            self.consumed = step + 1
            part = self._part(step)
            yield self.rows.select(part if order is None else order[part])

    def numbers(self, index: int) -> np.ndarray:
        """Which of the rows make up this process's part of batch ``index`` of this epoch, counted from 0."""
        part, order = self._part(index), self._order()
        return np.arange(part.start, part.stop) if order is None else order.cpu().numpy()[part]

    def to(self, device: torch.device) -> None:
        """Keep all rows on ``device`` from now on, if they are to be resident."""
        if self.resident or (self.resident is None and _fits(self.rows, device)):
            self.rows = self.rows.to(device)

    def _part(self, step: int) -> slice:
        """Which of the epoch's rows a step takes here."""
        start, size = step * self.batch_size, self.batch_size
        if self.seed is None:
            first, last = self._share()
            return slice(first + start, min(first + start + size, last))
        return slice(start + self.rank * size // self.world, start + (self.rank + 1) * size // self.world)

    def _share(self) -> tuple[int, int]:
        """First and last of the rows in order that are this process's."""
        total = self.rows.rows
        return self.rank * total // self.world, (self.rank + 1) * total // self.world

    def _order(self) -> torch.Tensor | None:
        if self.seed is None:
            return None
        words = np.random.SeedSequence(self.seed, spawn_key=(self.epoch,)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
        return torch.randperm(self.rows.rows, generator=generator).to(self.rows.theta.device)


class SimulationsDataModule(L.LightningDataModule):
    """Training and validation rows behind loaders, divided among the processes that train.

    Args:
        train: Rows to learn from.
        validation: Rows for the validation loss; stored ones are loaded where they fill no more than an eighth of
            their budget.
        batch_size: Rows in a training batch of all processes together; validation takes ten times as many, having no gradients to keep, or a
            quarter of a buffer where they are streamed.
        seed: Of the order of training rows.
        resident: Whether rows in memory are kept on the training device; where they fit when None.
    """

    def __init__(
        self, train: Rows, validation: Rows, *, batch_size: int, seed: int, resident: bool | None = None
    ) -> None:
        super().__init__()
        if isinstance(validation, StoredRows) and validation.nbytes <= validation.memory // 8:
            validation = validation.load()
        many = 10 * batch_size
        if isinstance(validation, StoredRows):
            many = max(batch_size, min(many, validation.buffer_rows // 4))
        self._train = make_loader(train, batch_size, seed, resident=resident)
        self._validation = make_loader(validation, many, resident=resident)

    @property
    def batch_size(self) -> int:
        """Rows in a step of all processes together."""
        return self._train.batch_size

    @property
    def steps_per_epoch(self) -> int:
        return len(self._train)

    def setup(self, stage: str) -> None:
        """Take this process's share."""
        assert self.trainer is not None
        for loader in (self._train, self._validation):
            loader.join(self.trainer.global_rank, self.trainer.world_size)

    def to(self, device: torch.device) -> None:
        """Keep rows on ``device`` from now on, where they are to be resident."""
        self._train.to(device)
        self._validation.to(device)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def set_epoch(self, epoch: int) -> None:
        self._train.set_epoch(epoch)

    def numbers(self, index: int) -> np.ndarray | None:
        """Which training rows make up batch ``index`` of this epoch; None where they are streamed."""
        return self._train.numbers(index) if isinstance(self._train, WholeBatches) else None

    def train_dataloader(self) -> Loader:
        return self._train

    def val_dataloader(self) -> Loader:
        return self._validation


def make_loader(rows: Rows, batch_size: int, seed: int | None = None, *, resident: bool | None = None) -> Loader:
    """The loader for rows in memory or in a store."""
    if isinstance(rows, StoredRows):
        return StreamedBatches(rows, batch_size, seed)
    return WholeBatches(rows, batch_size, seed, resident=resident)


class Portions:
    """All rows, in order, in portions of a few MB, as often as they are asked for: for what is learned in one pass."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[Batch]:
        if isinstance(self._rows, StoredRows):
            return self._rows.parts()
        step = max(_PART_BYTES * self._rows.rows // max(self._rows.nbytes, 1), 1)
        return (self._rows.select(slice(start, start + step)) for start in range(0, self._rows.rows, step))


def _fits(rows: Batch, device: torch.device) -> bool:
    return device.type != "cuda" or 2 * rows.nbytes <= torch.cuda.mem_get_info(device)[0]


def as_batch(theta: np.ndarray, x: Arrays) -> Batch:
    """theta as a float64 and x as float32 tensors.

    Raises:
        NotFiniteError: Numbers that float32 cannot hold.
    """
    tensors = {name: torch.from_numpy(_float32(name, values)) for name, values in x.items()}
    return Batch(torch.from_numpy(np.ascontiguousarray(theta, dtype=np.float64)), tensors)


def _float32(name: str, values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(values, dtype=np.float32)
    require_float32(name, values, cast)
    return cast


def valid_rows(store: SimulationStore, rows: slice | np.ndarray, *, impute: bool = False) -> tuple[np.ndarray, Arrays]:
    """theta, and x with context, of `usable_rows`, in memory and in the store's dtypes.

    Raises:
        ShapeError: No row is usable.
        CorruptStoreError: A checksum does not fit, or a file is missing.
    """
    loaded = StoredRows(store, usable_rows(store, rows, impute=impute), default_budget()).load(exact=True)
    return loaded.theta.numpy(), {name: values.numpy() for name, values in loaded.x.items()}
