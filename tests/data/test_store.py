from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from simfer.data.errors import CorruptStoreError, MissingFileError, StoreError
from simfer.data.store import OK, PENDING, Layout, SimulationStore
from simfer.data.variables import Variable, Variables

PARAMETERS = Variables([Variable("a", units="m"), Variable("b")])
OBSERVABLES = Variables([Variable("x", (3,), units="s", dims=("time",)), Variable("n", (), "int32")])
LAYOUT = Layout(rows=25, block=4, shard=8)


@pytest.fixture
def store(tmp_path: Path) -> SimulationStore:
    return SimulationStore.create(tmp_path / "s.zarr", LAYOUT, PARAMETERS, OBSERVABLES, {"campaign": {"seed": 1}})


def fill(store: SimulationStore, shard: int) -> None:
    rows = LAYOUT.shard_rows(shard)
    n = rows.stop - rows.start
    index = np.arange(rows.start, rows.stop)
    theta, x = np.stack([index, -index], 1).astype(float), np.outer(index, [1.0, 2.0, 3.0])
    store.write_shard(
        shard, theta, {"x": x, "n": np.zeros(n, np.int32)}, np.full(n, OK, np.int8), np.zeros(n, np.float32)
    )


def test_layout_covers_every_row_once() -> None:
    blocks = [block for shard in range(LAYOUT.shards) for block in LAYOUT.blocks(shard)]
    assert [number for number, _ in blocks] == list(range(7))
    assert sum(rows for _, rows in blocks) == 25


@pytest.mark.parametrize(("rows", "shape"), [(1, ()), (999, (3,)), (100_000, (14,)), (5000, (1000, 1000))])
def test_chosen_layouts_have_whole_blocks_of_bounded_size(rows: int, shape: tuple[int, ...]) -> None:
    layout = Layout.choose(rows, Variables([Variable("x", shape)]))
    assert layout.shard % layout.block == 0
    assert 1 <= layout.block <= min(1000, rows)
    assert layout.block == 1 or layout.block * 8 * int(np.prod(shape)) <= 4 * 2**20


def test_xarray_alone_reads_what_was_written(store: SimulationStore) -> None:
    for shard in range(LAYOUT.shards):
        fill(store, shard)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = xr.open_zarr(store.path)
    assert data["theta"].dims == ("simulation", "parameter")
    assert data["x"].dims == ("simulation", "time")
    assert list(data["parameter"].values) == ["a", "b"]
    assert data["x"].attrs["units"] == "s"
    np.testing.assert_array_equal(data["theta"].sel(parameter="b"), -np.arange(25))
    np.testing.assert_array_equal(data["x"][:, 2], 3 * np.arange(25))
    assert data["status"].attrs["flag_meanings"].split()[OK] == "ok"


def test_pending_shards_shrink_as_shards_are_written(store: SimulationStore) -> None:
    assert store.pending_shards() == [0, 1, 2, 3]
    fill(store, 2)
    fill(store, 3)
    assert SimulationStore.open(store.path).pending_shards() == [0, 1]
    assert store.counts() == {"pending": 16, "ok": 9, "invalid": 0, "failed": 0, "timeout": 0}


def test_a_shard_with_a_missing_file_is_pending_and_named(store: SimulationStore) -> None:
    for shard in range(LAYOUT.shards):
        fill(store, shard)
    (store.path / "n" / "c" / "1").unlink()  # all zeros: would read as fill, without an error
    assert store.pending_shards() == [1]
    with pytest.raises(CorruptStoreError, match=r"shard 1 .* is marked done but a file of it is missing"):
        store.verify()


@pytest.mark.parametrize("offset", [10, -20])
def test_a_flipped_byte_is_found(store: SimulationStore, offset: int) -> None:
    for shard in range(LAYOUT.shards):
        fill(store, shard)
    store.verify()
    file = store.path / "x" / "c" / "2" / "0"
    raw = bytearray(file.read_bytes())
    raw[offset] ^= 1
    file.write_bytes(bytes(raw))
    with pytest.raises(CorruptStoreError, match=r"array `x` .* is damaged between rows"):
        store.verify()


def test_digest_sees_data_and_not_runtime(store: SimulationStore, tmp_path: Path) -> None:
    other = SimulationStore.create(tmp_path / "o.zarr", LAYOUT, PARAMETERS, OBSERVABLES, {"campaign": {"seed": 2}})
    for shard in range(LAYOUT.shards):
        fill(store, shard)
        fill(other, LAYOUT.shards - 1 - shard)
    assert store.digest() == other.digest()
    other._array("runtime")[:] = 5.0
    assert store.digest() == other.digest()
    other._array("x")[24, 0] = -1.0
    assert store.digest() != other.digest()


def test_open_and_create_refuse(store: SimulationStore, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no simulation store"):
        SimulationStore.open(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="must be free"):
        SimulationStore.create(store.path, LAYOUT, PARAMETERS, OBSERVABLES, {})
    store._group.attrs["schema_version"] = 99
    with pytest.raises(StoreError, match="schema version 99"):
        SimulationStore.open(store.path)
    with pytest.raises(StoreError, match="at least 1"):
        Layout.choose(0, OBSERVABLES)


def test_pending_rows_read_as_nan(store: SimulationStore) -> None:
    theta, x = store.read(slice(0, 3))
    assert np.isnan(theta).all()
    assert np.isnan(x["x"]).all()
    assert (store.status == PENDING).all()
