"""Out of core: every row once, an order that depends on nothing but its key, and resuming to the very next batch."""

from __future__ import annotations

import itertools
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from simfer.data.batch import Batch
from simfer.data.errors import CorruptStoreError, ShapeError, StoreError
from simfer.data.layout import Layout
from simfer.data.loaders import Portions, SimulationsDataModule
from simfer.data.records import FAILED, INVALID, OK, Records, Schema
from simfer.data.shards import ChunkReader
from simfer.data.splits import hold_out
from simfer.data.store import SimulationStore
from simfer.data.streaming import StoredRows, StreamedBatches, usable_rows
from simfer.data.variables import Variable, Variables

PARAMETERS = Variables([Variable("a")])
OBSERVABLES = Variables([Variable("x", (3,)), Variable("y", (), "float32")])
CONTEXT = Variables([Variable("sd")])
ROWS, BLOCK, SHARD = 103, 10, 20
MEMORY = 10**7


def make_store(path: Path, rows: int = ROWS, block: int = BLOCK, shard: int = SHARD) -> SimulationStore:
    """theta is the number of the row; x, y and the context sd follow from it. Row 7 has failed and row 25 is invalid."""
    store = SimulationStore.create(path, Layout(rows, block, shard), Schema(PARAMETERS, OBSERVABLES, CONTEXT), {})
    status = np.full(rows, OK, np.int8)
    status[7], status[25] = FAILED, INVALID
    for number in range(store.layout.shards):
        part = store.layout.shard_rows(number)
        index = np.arange(part.start, part.stop, dtype=np.float64)
        x = {"x": index[:, None] + np.arange(3), "y": (2 * index).astype(np.float32)}
        runtime = np.zeros(len(index), np.float32)
        store.write_shard(number, Records(index[:, None], x, status[part], runtime, {"sd": 3 * index}))
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SimulationStore:
    return make_store(tmp_path_factory.mktemp("streaming") / "store.zarr")


def stored(store: SimulationStore, buffer_rows: int = 30, threads: int = 2) -> StoredRows:
    return StoredRows(store, usable_rows(store), MEMORY, buffer_rows=buffer_rows, threads=threads)


def names(batches) -> list[list[int]]:
    return [batch.theta[:, 0].int().tolist() for batch in batches]


KEPT = [row for row in range(ROWS) if row not in (7, 25)]


def test_every_usable_row_once_an_epoch_and_another_order_the_next(store) -> None:
    loader = StreamedBatches(stored(store), 101, seed=3)
    first, second = names(loader), names(loader)
    assert sorted(itertools.chain(*first)) == sorted(itertools.chain(*second)) == KEPT
    assert first != second


def test_without_a_seed_order_and_the_last_rows_are_kept(store) -> None:
    batches = names(StreamedBatches(stored(store), 30))
    assert list(itertools.chain(*batches)) == KEPT
    assert [len(batch) for batch in batches] == [30, 30, 30, 11]


def test_theta_and_x_stay_together(store) -> None:
    for batch in StreamedBatches(stored(store), 7, seed=0):
        torch.testing.assert_close(batch.x["x"][:, 1].double(), batch.theta[:, 0] + 1)
        torch.testing.assert_close(batch.x["y"].double(), 2 * batch.theta[:, 0])
        torch.testing.assert_close(batch.x["sd"].double(), 3 * batch.theta[:, 0])


def test_batches_are_not_overwritten_by_those_that_follow(store) -> None:
    for seed in (None, 5):
        batches = list(StreamedBatches(stored(store), 4, seed=seed))
        assert len(set(itertools.chain(*names(batches)))) == sum(batch.rows for batch in batches)


def test_rows_move_across_blocks_and_buffers(store) -> None:
    epochs = StreamedBatches(stored(store), 20, seed=1)
    places = [[row // BLOCK for row in batch] for batch in names(epochs)]
    assert all(len(set(place)) > 1 for place in places)
    assert names(epochs)[0] != names(epochs)[0]


def test_order_does_not_depend_on_the_timing_of_threads(store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = names(StreamedBatches(stored(store, threads=1), 8, seed=2))
    read = ChunkReader.read

    def slow(self: ChunkReader, chunk: int, into: np.ndarray) -> None:
        time.sleep(random.uniform(0, 0.01))
        read(self, chunk, into)

    monkeypatch.setattr(ChunkReader, "read", slow)
    for threads in (2, 5):
        assert names(StreamedBatches(stored(store, threads=threads), 8, seed=2)) == expected


@settings(max_examples=25, deadline=None)
@given(
    batch_size=st.integers(1, 60),
    buffer_rows=st.integers(1, 120),
    stop=st.integers(0, 200),
    seed=st.one_of(st.none(), st.integers(0, 9)),
)
def test_resume_in_mid_epoch_gives_the_very_next_batch(store, batch_size, buffer_rows, stop, seed) -> None:
    rows = stored(store, buffer_rows)
    whole = StreamedBatches(rows, batch_size, seed)
    expected = names(whole) + names(whole)
    loader = StreamedBatches(rows, batch_size, seed)
    seen = names(itertools.islice(itertools.chain(loader, loader), min(stop, len(expected))))
    resumed = StreamedBatches(rows, batch_size, seed)
    resumed.load_state_dict(loader.state_dict())
    while len(seen) < len(expected):
        seen += names(resumed)
    assert seen == expected


def test_resuming_reads_no_buffer_that_was_consumed(store, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = StreamedBatches(stored(store), 10, seed=4)
    loader.load_state_dict({"epoch": 0, "consumed": 9})
    reads, read = set(), ChunkReader.read

    def counted(self: ChunkReader, chunk: int, into: np.ndarray) -> None:
        reads.add(chunk)
        read(self, chunk, into)

    monkeypatch.setattr(ChunkReader, "read", counted)
    assert len(names(loader)) == 1
    assert len(reads) <= 4


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [8, 11])
def test_ranks_share_every_batch(store, world: int, batch_size: int) -> None:
    """Together they see the batches of one process, in its order, while there are enough lanes for all."""
    for epoch in range(3):
        shares = []
        for rank in range(world):
            loader = StreamedBatches(stored(store, 90), batch_size, seed=6, rank=rank, world=world)
            loader.set_epoch(epoch)
            shares.append(names(loader))
            assert len(shares[-1]) == len(loader) == len(KEPT) // batch_size
        batches = [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)]
        whole = StreamedBatches(stored(store, 90), batch_size, seed=6)
        whole.set_epoch(epoch)
        assert batches == names(whole)
        rows = list(itertools.chain(*batches))
        assert len(rows) == len(set(rows)) == batch_size * len(whole)
        assert set(rows) <= set(KEPT)


@pytest.mark.parametrize("world", [3, 7])
def test_more_ranks_than_lanes_share_the_rows(store, world: int) -> None:
    """Buffers of two blocks are two lanes."""
    shares = [names(StreamedBatches(stored(store, 20), 8, seed=6, rank=rank, world=world)) for rank in range(world)]
    rows = [row for share in shares for batch in share for row in batch]
    assert len(rows) == len(set(rows)) == 8 * (len(KEPT) // 8)
    assert {len(share) for share in shares} == {len(KEPT) // 8}


def test_every_row_is_read_by_one_rank(store, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the blocks in which a lane ends and the next begins."""
    reads, read = [], ChunkReader.read

    def counted(self: ChunkReader, chunk: int, into: np.ndarray) -> None:
        if self.name == "theta":
            reads.append(chunk)
        read(self, chunk, into)

    monkeypatch.setattr(ChunkReader, "read", counted)
    for rank in range(2):
        list(StreamedBatches(stored(store, 20), 8, seed=6, rank=rank, world=2))
    assert len(reads) <= ROWS // BLOCK + 2


def test_ranks_together_validate_on_every_row(store) -> None:
    shares = [names(StreamedBatches(stored(store), 4, rank=rank, world=3)) for rank in range(3)]
    assert [row for share in shares for batch in share for row in batch] == KEPT


@pytest.mark.slow
def test_workers_share_the_rows_of_a_rank(store) -> None:
    loader = StreamedBatches(stored(store), 5, seed=6, rank=1, world=2)
    batches = names(DataLoader(loader, batch_size=None, num_workers=2, multiprocessing_context="spawn"))
    other = names(StreamedBatches(stored(store), 5, seed=6, rank=0, world=2))
    assert len(batches) == len(other) == 20
    rows = list(itertools.chain(*batches, *other))
    assert len(rows) == len(set(rows)) == 100


def test_loaded_and_streamed_portions_are_the_same_rows(store) -> None:
    loaded = stored(store).load()
    assert loaded.theta[:, 0].int().tolist() == KEPT
    parts = list(Portions(stored(store)))
    for name, values in loaded.x.items():
        assert torch.equal(values, torch.cat([part.x[name] for part in parts]))
        assert values.dtype == torch.float32


def test_impute_keeps_invalid_rows_and_a_slice_bounds_all(store) -> None:
    assert np.flatnonzero(usable_rows(store, slice(0, 30), impute=True)).tolist() == [r for r in range(30) if r != 7]


@pytest.mark.parametrize("array", ["theta", "x", "y", "context/sd"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_flipped_byte_anywhere_names_array_and_shard(tmp_path: Path, array: str, seed: int) -> None:
    store = make_store(tmp_path / "store.zarr")
    rng = np.random.default_rng(seed)
    shard = int(rng.integers(store.layout.shards))
    (file,) = [f for f in (store.path / array / "c" / str(shard)).rglob("*") if f.is_file()] or [
        store.path / array / "c" / str(shard)
    ]
    damaged = bytearray(file.read_bytes())
    damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
    file.write_bytes(damaged)
    with pytest.raises(CorruptStoreError, match=rf"damaged: shard {shard}, array `{array}`"):
        list(StreamedBatches(stored(store), 10, seed=0))
    with pytest.raises(CorruptStoreError, match=rf"damaged: shard {shard}, array `{array}`"):
        stored(store).load()


def test_a_missing_file_names_the_shard(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store.zarr")
    (store.path / "y" / "c" / "3").unlink()
    with pytest.raises(CorruptStoreError, match=r"shard 3: .* missing"):
        usable_rows(store)


def test_a_budget_that_is_too_small_says_what_is_needed(store) -> None:
    with pytest.raises(StoreError, match=r"`memory` must be at least \d+ MB .* blocks have 10 rows"):
        StreamedBatches(StoredRows(store, usable_rows(store), 1000), 10)


def test_no_usable_row_is_an_error(store) -> None:
    with pytest.raises(ShapeError, match="must not be empty"):
        StoredRows(store, np.zeros(ROWS, bool), MEMORY)


def test_the_last_rows_are_held_out() -> None:
    keep = np.ones(20, bool)
    keep[18] = False
    learn, validate = hold_out(keep, 0.2)
    assert np.flatnonzero(validate).tolist() == [15, 16, 17, 19]
    assert (learn ^ validate == keep).all()


@settings(max_examples=50)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=60), st.floats(0.05, 0.6), st.randoms())
def test_no_group_is_on_both_sides(groups: list[int], fraction: float, rnd: random.Random) -> None:
    keep = np.array([rnd.random() < 0.9 for _ in groups])
    group = np.array(groups)
    try:
        learn, validate = hold_out(keep, fraction, group)
    except ShapeError:
        assert len(set(group[keep])) < 2 or fraction * keep.sum() > 1
        return
    assert not set(group[learn]) & set(group[validate])
    assert (learn | validate == keep).all()
    held = max(1, round(fraction * int(keep.sum())))
    assert held <= validate.sum() < held + np.bincount(group[keep]).max()


def test_small_validation_sets_are_loaded_and_large_ones_streamed(store) -> None:
    keep = usable_rows(store)
    small = StoredRows(store, keep, MEMORY)
    large = StoredRows(store, keep, 8 * small.nbytes - 1, buffer_rows=1)
    for rows, kind in ((small, Batch), (large, StoredRows)):
        module = SimulationsDataModule(rows, rows, batch_size=5, seed=0)
        assert isinstance(module.val_dataloader().rows, kind)
