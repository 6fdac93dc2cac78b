"""Out of core: shuffled batches of a store that is larger than memory.

One epoch: the store's blocks in an order drawn anew, dealt to ranks and workers as equal numbers of rows; gathered
into buffers of whole blocks; the rows of a buffer shuffled. While one buffer is consumed, threads read the next one,
every block to a place of its own, so that no batch depends on which thread was faster. The order is a function of
(seed, epoch, rank, world, worker, workers, rows in a buffer) and nothing else. Whole blocks are read, because a chunk
decompresses as a whole; skipping to the middle of an epoch reads none of the buffers before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from .batch import Batch, require_float32
from .errors import ShapeError, StoreError
from .position import Position
from .records import INVALID, OK
from .shards import ChunkReader
from .store import SimulationStore, require_whole

BUFFER_BYTES = 64 * 2**20
THREADS = 2
_COPIES_OF_A_BLOCK = 3  # compressed, decompressed, the rows that are wanted


class Piece(NamedTuple):
    """Rows ``first`` to ``last`` of those wanted of one block."""

    block: int
    first: int
    last: int

    @property
    def rows(self) -> int:
        return self.last - self.first


class StoredRows:
    """Some rows of a store, theta and x with context, left there until they are wanted.

    Args:
        store: Where they are.
        keep: Which rows, one truth value each.
        memory: Budget in bytes of the process that trains. Buffers, chunks in flight and validation rows use at most
            half of it; the rest is for batches, network and optimiser.
        buffer_rows: Rows shuffled together; what fits 64 MiB and an eighth of the budget when None.
        threads: That read ahead.

    Raises:
        ShapeError: No row is kept.
    """

    def __init__(
        self,
        store: SimulationStore,
        keep: np.ndarray,
        memory: int,
        *,
        buffer_rows: int | None = None,
        threads: int = THREADS,
    ) -> None:
        if not keep.any():
            raise ShapeError(f"`rows` of {store.path} must not be empty: none of the {keep.size} is usable")
        self.store, self.keep, self.memory, self.threads = store, keep, memory, threads
        self.counts = np.add.reduceat(keep, np.arange(0, store.rows, store.layout.block), dtype=np.int64)
        self.rows = int(self.counts.sum())
        paths = {"theta": "theta", **{name: name for name in store.observables.names}}
        paths |= {name: f"context/{name}" for name in store.schema.context.names}
        self._readers = {name: ChunkReader(store.path, path) for name, path in paths.items()}
        self.row_bytes = 8 * len(store.parameters) + 4 * store.conditions.size
        self.buffer_rows = buffer_rows or max(min(BUFFER_BYTES, memory // 8) // self.row_bytes, 1)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows as tensors."""
        return self.rows * self.row_bytes

    def select(self, keep: np.ndarray) -> StoredRows:
        """Other rows of the same store, on the same terms."""
        return StoredRows(self.store, keep, self.memory, buffer_rows=self.buffer_rows, threads=self.threads)

    def load(self, *, exact: bool = False) -> Batch:
        """All rows, in order, in memory, with ``exact`` in the store's dtypes; besides them only the blocks in flight."""
        pieces = [Piece(int(block), 0, int(self.counts[block])) for block in np.flatnonzero(self.counts)]
        rows = self.empty(self.rows, exact=exact)
        with ThreadPoolExecutor(self.threads, "read") as pool:
            for future in self.fill(rows, pieces, pool):
                future.result()
        return rows

    def parts(self) -> Iterator[Batch]:
        """All rows, in order, in portions of a few MB."""
        return iter(StreamedBatches(self, max(2**22 // self.row_bytes, 1)))

    def empty(self, rows: int, *, exact: bool = False) -> Batch:
        """Room for so many rows; x as float32, or with ``exact`` in the store's dtypes."""
        shapes = {v.name: ((rows, *v.shape), v.dtype if exact else "float32") for v in self.store.conditions}
        x = {name: torch.from_numpy(np.empty(shape, dtype)) for name, (shape, dtype) in shapes.items()}
        return Batch(torch.empty((rows, len(self.store.parameters)), dtype=torch.float64), x)

    def fill(self, into: Batch, pieces: list[Piece], pool: ThreadPoolExecutor) -> list[Future[None]]:
        """Start to read pieces, one behind the other, to the places they have in ``into``."""
        ends = np.cumsum([piece.rows for piece in pieces]).tolist()
        return [pool.submit(self._read, into, end - piece.rows, piece) for piece, end in zip(pieces, ends, strict=True)]

    def require_budget(self) -> None:
        """Raise StoreError where the budget is too small to stream with buffers and blocks of this size."""
        block = self.store.layout.block
        variables = self.store.conditions
        on_disk = 8 * len(self.store.parameters) + sum(v.size * np.dtype(v.dtype).itemsize for v in variables)
        flight = _COPIES_OF_A_BLOCK * self.threads * block * on_disk
        needed = 2 * (2 * max(self.buffer_rows, block) * self.row_bytes + flight)
        if needed > self.memory:
            raise StoreError(
                f"`memory` must be at least {needed / 1e6:.0f} MB to stream {self.store.path}, whose blocks have {block} "
                f"rows of {on_disk} bytes; got {self.memory / 1e6:.0f} MB"
            )

    def _read(self, into: Batch, start: int, piece: Piece) -> None:
        block = slice(piece.block * self.store.layout.block, (piece.block + 1) * self.store.layout.block)
        wanted = np.flatnonzero(self.keep[block])[piece.first : piece.last]
        for name, tensor in (("theta", into.theta), *into.x.items()):
            place = tensor[start : start + piece.rows].numpy()
            self._read_array(name, self._readers[name], piece.block, wanted, place)

    def _read_array(self, name: str, reader: ChunkReader, block: int, wanted: np.ndarray, place: np.ndarray) -> None:
        if place.shape == reader.chunk and place.dtype == reader.dtype:
            reader.read(block, place)
            return
        values = np.empty(reader.chunk, reader.dtype)
        reader.read(block, values)
        with np.errstate(over="ignore"):
            np.copyto(place, values[wanted], casting="same_kind")
        require_float32(name, values[wanted], place)


class StreamedBatches(Position, IterableDataset[Batch]):
    """Batches of stored rows; every one of them once an epoch.

    Args:
        rows: The rows.
        batch_size: Rows in a batch; a last, smaller batch is dropped when shuffling, so that every step weighs the same.
        seed: Of the order; None keeps the order and every row.
        rank: Of this process, among ``world``; each gets the same number of rows. In a worker of a ``DataLoader``
            (made with ``batch_size=None``) the rank's rows are divided further among the workers.
        world: How many processes train.

    Raises:
        ShapeError: Fewer rows than processes.
        StoreError: Blocks or buffers too large for the budget.
    """

    def __init__(
        self, rows: StoredRows, batch_size: int, seed: int | None = None, *, rank: int = 0, world: int = 1
    ) -> None:
        super().__init__()
        rows.require_budget()
        self.rows = rows
        self.seed = seed
        self.rank, self.world = rank, world
        self.batch_size = min(batch_size, rows.rows // world)
        if self.batch_size < 1:
            raise ShapeError(f"`rows` must be at least one for each of {world} processes; got {rows.rows}")

    def __len__(self) -> int:
        first, last = self._share()
        full, rest = divmod(last - first, self.batch_size)
        return full + (rest > 0 and self.seed is None)

    def __iter__(self) -> Iterator[Batch]:
        self.begin(len(self))
        for batch in self._batches(self.consumed * self.batch_size):
            self.consumed += 1
            yield batch

    def to(self, device: torch.device) -> None:
        """Nothing: batches are moved, one by one."""

    def _batches(self, skip: int) -> Iterator[Batch]:
        """Batches from the row ``skip`` of this epoch on; one may join the end of a buffer to the start of the next."""
        parts: list[Batch] = []
        missing = self.batch_size
        for rows, order in self._shuffled(skip):
            while len(order):
                taken, order = order[:missing], order[missing:]
                parts.append(rows.select(taken))
                missing -= len(taken)
                if not missing:
                    yield _joined(parts)
                    parts, missing = [], self.batch_size
        if parts and self.seed is None:
            yield _joined(parts)

    def _shuffled(self, skip: int) -> Iterator[tuple[Batch, torch.Tensor]]:
        """Buffers that have rows beyond ``skip``, each with the order to take them in."""
        buffers = self._buffers()
        ends = np.cumsum([_size(buffer) for buffer in buffers])
        begin = int(np.searchsorted(ends, skip, side="right"))
        for i, rows in enumerate(self._filled(buffers[begin:]), begin):
            order = self._order(i, rows.rows)
            yield rows, order[max(0, skip - int(ends[i]) + rows.rows) :]

    def _filled(self, buffers: list[list[Piece]]) -> Iterator[Batch]:
        """One buffer after another; the next is read while one is in use, into the place of the one before it."""
        places = [self.rows.empty(max(map(_size, buffers), default=0)) for _ in buffers[:2]]
        pool = ThreadPoolExecutor(self.rows.threads, "read")
        try:
            ahead = self.rows.fill(places[0], buffers[0], pool) if buffers else []
            for i, buffer in enumerate(buffers):
                for future in ahead:
                    future.result()
                if i + 1 < len(buffers):
                    ahead = self.rows.fill(places[(i + 1) % 2], buffers[i + 1], pool)
                yield places[i % 2].select(slice(0, _size(buffer)))
        finally:
            pool.shutdown(cancel_futures=True)

    def _buffers(self) -> list[list[Piece]]:
        buffers: list[list[Piece]] = []
        room = 0
        for piece in self._pieces():
            if piece.rows > room:
                buffers.append([])
                room = self.rows.buffer_rows
            buffers[-1].append(piece)
            room -= piece.rows
        return buffers

    def _pieces(self) -> list[Piece]:
        """This share of the epoch's rows: whole blocks, but for the first and the last."""
        first, last = self._share()
        counts = self.rows.counts
        blocks = np.flatnonzero(counts)
        if self.seed is not None:
            blocks = self._rng(0).permutation(blocks)
        ends = np.cumsum(counts[blocks])
        spans = [
            (int(block), max(first - int(end - counts[block]), 0), int(counts[block] - max(end - last, 0)))
            for block, end in zip(blocks, ends, strict=True)
        ]
        return [Piece(*span) for span in spans if span[1] < span[2]]

    def _share(self) -> tuple[int, int]:
        """First and last row of the epoch that are this rank's and worker's; shuffled, all shares are equally large."""
        info = get_worker_info()
        workers, worker = (info.num_workers, info.id) if info else (1, 0)
        part, parts, total = self.rank * workers + worker, self.world * workers, self.rows.rows
        if self.seed is None:
            return part * total // parts, (part + 1) * total // parts
        return part * (total // parts), (part + 1) * (total // parts)

    def _order(self, buffer: int, rows: int) -> torch.Tensor:
        if self.seed is None:
            return torch.arange(rows)
        return torch.from_numpy(self._rng(1, self._share()[0], buffer).permutation(rows))

    def _rng(self, *key: int) -> np.random.Generator:
        assert self.seed is not None
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(self.epoch, *key)))


def usable_rows(store: SimulationStore, rows: slice | np.ndarray = slice(None), *, impute: bool = False) -> np.ndarray:
    """Which rows of a store to learn from: those of ``rows`` that are ok; with ``impute`` those with NaN in x too.

    Dropping the others is right for a posterior estimator where x decides what is valid: p(theta | x) of a valid x is
    not changed by it. See `estimators.validity` for where it is not right.

    Raises:
        CorruptStoreError: A shard is marked done but a file of it is missing; names the shard.
    """
    require_whole(store)
    status = store.status
    keep = np.zeros(store.rows, dtype=bool)
    keep[rows] = True
    return keep & ((status == OK) | (impute & (status == INVALID)))


def _size(pieces: list[Piece]) -> int:
    return sum(piece.rows for piece in pieces)


def _joined(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    x = {name: torch.cat([part.x[name] for part in parts]) for name in parts[0].x}
    return Batch(torch.cat([part.theta for part in parts]), x)
