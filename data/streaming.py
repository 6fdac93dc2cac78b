"""Out of core: shuffled batches of a store that is larger than memory.

One epoch: the store's blocks in an order drawn anew, its rows dealt to a few lanes (`lanes`), each of which gives its part of
every batch. Processes that train together share the lanes, so that a batch has the same rows however many they are. The order
is a function of (seed, epoch, rows in a buffer, and, in a ``DataLoader``, worker and workers) and of nothing else; of the world
only where there are more processes than lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from .batch import Batch, require_float32
from .errors import ShapeError, StoreError
from .lanes import Blocks, Lane, Piece, Span
from .position import Position
from .records import INVALID, OK
from .shards import ChunkReader
from .store import SimulationStore, require_whole

BUFFER_BYTES = 64 * 2**20
THREADS = 2
LANES = 8  # a power of two, as devices are
_COPIES_OF_A_BLOCK = 3  # compressed, decompressed, the rows that are wanted


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
        batch_size: Rows in a batch. Shuffled, they are those of all processes together, and a last, smaller batch is dropped,
            so that every step weighs the same; in order, they are those of one process.
        seed: Of the order; None keeps the order and every row.
        rank: Of this process, among ``world``; each takes its part of every shuffled batch, or of the rows in order. In a worker
            of a ``DataLoader`` (made with ``batch_size=None``) the rank's steps, or rows, are divided among the workers.
        world: How many processes train.

    Raises:
        ShapeError: Fewer rows, or rows in a batch, than processes.
        StoreError: Blocks or buffers too large for the budget.
    """

    def __init__(
        self, rows: StoredRows, batch_size: int, seed: int | None = None, *, rank: int = 0, world: int = 1
    ) -> None:
        super().__init__()
        rows.require_budget()
        self.rows = rows
        self.seed = seed
        self.batch_size = min(batch_size, rows.rows)
        self.join(rank, world)

    def join(self, rank: int, world: int) -> None:
        """Take another part."""
        require_share(self.rows.rows, self.batch_size, self.seed, world)
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return self._spans()[0].steps

    def __iter__(self) -> Iterator[Batch]:
        self.begin(len(self))
        for batch in self._batches(self.consumed):
            self.consumed += 1
            yield batch

    def to(self, device: torch.device) -> None:
        """Nothing: batches are moved, one by one."""

    def _batches(self, skip: int) -> Iterator[Batch]:
        """Batches from the step ``skip`` of this epoch on."""
        pool = ThreadPoolExecutor(self.rows.threads, "read")
        try:
            place, lanes = self._begun(skip, pool)
            for parts in zip(*(lane.steps() for lane in lanes), strict=True):
                yield _joined(place, parts)
        finally:
            pool.shutdown(cancel_futures=True)

    def _begun(self, skip: int, pool: ThreadPoolExecutor) -> tuple[Batch, list[Lane]]:
        """Lanes that read, and where to."""
        blocks, buffer_rows = self._blocks(), max(self.rows.buffer_rows // self._lanes, 1)
        lanes = [Lane(span, blocks.pieces(span), buffer_rows, self._orders(span), skip) for span in self._spans()]
        offsets = np.cumsum([0, *(lane.room for lane in lanes)]).tolist()
        place = self.rows.empty(offsets[-1])
        for lane, offset in zip(lanes, offsets, strict=False):
            lane.begin(self.rows, place, offset, pool)
        return place, lanes

    @property
    def _lanes(self) -> int:
        """Into how many parts shuffled batches are divided, whoever takes them; more only for more processes."""
        if self.seed is None:
            return 1
        most = min(LANES, self.batch_size, max(self.rows.buffer_rows // self.rows.store.layout.block, 1))
        return max(1 << (most.bit_length() - 1), self.world)

    def _spans(self) -> list[Span]:
        """This rank's and worker's rows of the epoch, by lanes."""
        info, total, size = get_worker_info(), self.rows.rows, self.batch_size
        workers, worker = (info.num_workers, info.id) if info else (1, 0)
        if self.seed is None:
            part, parts = self.rank * workers + worker, self.world * workers
            return [Span(part * total // parts, (part + 1) * total // parts, size)]
        steps, lanes = total // size, self._lanes
        first, last = worker * steps // workers, (worker + 1) * steps // workers
        spans = []
        for lane in range(self.rank * lanes // self.world, (self.rank + 1) * lanes // self.world):
            low, high = lane * size // lanes, (lane + 1) * size // lanes
            spans.append(Span(steps * low + first * (high - low), steps * low + last * (high - low), high - low))
        return spans

    def _blocks(self) -> Blocks:
        blocks = np.flatnonzero(self.rows.counts)
        if self.seed is not None:
            blocks = self._rng(0).permutation(blocks)
        return Blocks(blocks, self.rows.counts[blocks])

    def _orders(self, span: Span) -> Callable[[int, int], np.ndarray]:
        """Of the rows of a buffer, by its number and size."""
        if self.seed is None:
            return lambda buffer, rows: np.arange(rows)
        epoch = self.epoch
        return lambda buffer, rows: self._rng(1, span.first, buffer, epoch=epoch).permutation(rows)

    def _rng(self, *key: int, epoch: int | None = None) -> np.random.Generator:
        assert self.seed is not None
        key = (self.epoch if epoch is None else epoch, *key)
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))


def require_share(rows: int, batch_size: int, seed: int | None, world: int) -> None:
    """Raise ShapeError where not every process gets a row, or, of shuffled rows, one of every batch."""
    if rows < world:
        raise ShapeError(f"`rows` must be at least one for each of {world} process(es); got {rows}")
    if seed is not None and batch_size < world:
        raise ShapeError(f"`batch_size` must be at least one for each of {world} processes; got {batch_size}")


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


def _joined(place: Batch, parts: Sequence[np.ndarray | list[Batch]]) -> Batch:
    """One batch of rows of a place and of rows."""
    chosen = [part for part in parts if isinstance(part, np.ndarray)]
    if len(chosen) == len(parts):
        return place.select(torch.from_numpy(np.concatenate(chosen)))
    few = [[place.select(torch.from_numpy(part))] if isinstance(part, np.ndarray) else part for part in parts]
    rows = [batch for batches in few for batch in batches]
    x = {name: torch.cat([batch.x[name] for batch in rows]) for name in rows[0].x}
    return Batch(torch.cat([batch.theta for batch in rows]), x)
