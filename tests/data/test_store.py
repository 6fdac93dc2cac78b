from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from simfer.data.errors import CorruptStoreError, MissingFileError, StoreError
from simfer.data.layout import Layout
from simfer.data.records import FAILED, OK, PENDING, Records, Schema
from simfer.data.store import SimulationStore
from simfer.data.variables import Variable, Variables

PARAMETERS = Variables([Variable("a", units="m"), Variable("b")])
OBSERVABLES = Variables([Variable("x", (3,), units="s", dims=("time",)), Variable("n", (), "int32")])
SCHEMA = Schema(PARAMETERS, OBSERVABLES)
LAYOUT = Layout(rows=25, block=4, shard=8)


@pytest.fixture
def store(tmp_path: Path) -> SimulationStore:
    return SimulationStore.create(tmp_path / "s.zarr", LAYOUT, SCHEMA, {"campaign": {"seed": 1}})


def fill(store: SimulationStore, shard: int) -> None:
    rows = store.layout.shard_rows(shard)
    n = rows.stop - rows.start
    index = np.arange(rows.start, rows.stop)
    theta, x = np.stack([index, -index], 1).astype(float), np.outer(index, [1.0, 2.0, 3.0])
    x_and_n = {"x": x, "n": np.zeros(n, np.int32)}
    store.write_shard(shard, Records(theta, x_and_n, np.full(n, OK, np.int8), np.zeros(n, np.float32)))


def test_layout_covers_every_row_once() -> None:
    blocks = [block for shard in range(LAYOUT.shards) for block in LAYOUT.blocks(shard)]
    assert [block.key for block in blocks] == [(number,) for number in range(7)]
    assert [row for block in blocks for row in range(block.rows.start, block.rows.stop)] == list(range(25))


@pytest.mark.parametrize(
    ("rows", "shape"), [(1, ()), (999, (3,)), (100_000, (14,)), (10**7, (4,)), (5000, (1000, 1000))]
)
def test_chosen_layouts_have_whole_blocks_of_bounded_size(rows: int, shape: tuple[int, ...]) -> None:
    layout = Layout.choose(rows, Variables([Variable("x", shape)]))
    assert layout.shard % layout.block == 0
    assert 1 <= layout.block <= min(max(1000, rows // 64), 10_000, rows)
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
    assert store.pending_shards([3, 1, 2]) == [1]
    assert store.counts() == {"pending": 16, "ok": 9, "invalid": 0, "failed": 0, "timeout": 0}


def test_a_shard_with_a_missing_file_is_pending_and_named(store: SimulationStore) -> None:
    for shard in range(LAYOUT.shards):
        fill(store, shard)
    (store.path / "n" / "c" / "1").unlink()  # all zeros: would read as fill, without an error
    assert store.pending_shards() == store.pending_shards([0, 1]) == [1]
    with pytest.raises(CorruptStoreError, match=r"shard 1, array `n`: marked done but a file is missing"):
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
    for read in (store.verify, store.read):
        with pytest.raises(CorruptStoreError, match=r"damaged: shard 2, array `x`"):
            read()
    store.discard(2)
    assert store.pending_shards() == [2]
    fill(store, 2)
    store.verify()


def test_digest_sees_data_and_not_runtime(store: SimulationStore, tmp_path: Path) -> None:
    other = SimulationStore.create(tmp_path / "o.zarr", LAYOUT, SCHEMA, {"campaign": {"seed": 2}})
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
        SimulationStore.create(store.path, LAYOUT, SCHEMA, {})
    store._group.attrs["schema_version"] = 99
    with pytest.raises(StoreError, match="schema version 99"):
        SimulationStore.open(store.path)
    with pytest.raises(StoreError, match="at least 1"):
        Layout.choose(0, OBSERVABLES)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "\xff", '{"zarr_format": 3, "node_type": "group", "attributes": [1]}']
)
def test_a_damaged_description_is_told_with_its_path(store: SimulationStore, text: str) -> None:
    (store.path / "zarr.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreError, match=r"s\.zarr has a damaged `zarr\.json` .*: restore this file"):
        SimulationStore.open(store.path)


def test_an_array_is_told_from_a_store(store: SimulationStore) -> None:
    with pytest.raises(StoreError, match=r"theta is an array and no simulation store; give the store's own folder"):
        SimulationStore.open(store.path / "theta")


def test_pending_rows_read_as_nan(store: SimulationStore) -> None:
    theta, x = store.read(slice(0, 3))
    assert np.isnan(theta).all()
    assert np.isnan(x["x"]).all()
    assert (store.status == PENDING).all()


def test_an_extended_store_keeps_its_rows_and_gets_blocks_of_their_own(store: SimulationStore) -> None:
    for shard in range(LAYOUT.shards):
        fill(store, shard)
    store.extend(45)
    again = SimulationStore.open(store.path)
    assert again.pending_shards() == [3, 4, 5]
    assert (again.status[:25] == OK).all()
    assert (again.status[25:] == PENDING).all()
    keys = [block.key for shard in range(again.layout.shards) for block in again.layout.blocks(shard)]
    assert len(set(keys)) == len(keys)
    assert (6, 1) in keys  # row 25 begins no chunk
    assert xr.open_zarr(store.path).sizes["simulation"] == 45
    with pytest.raises(StoreError, match="at least the 45"):
        again.extend(44)


def test_reasons_cost_no_file_where_there_are_none(store: SimulationStore) -> None:
    fill(store, 0)
    assert not (store.path / "reason" / "c").exists()
    records = store.read_records(LAYOUT.shard_rows(0))
    status, reason = records.status.copy(), records.reason.copy()
    status[3], reason[3] = FAILED, "segmentation fault — §"
    store.write_shard(0, Records(records.theta, records.x, status, records.runtime, reason=reason))
    assert SimulationStore.open(store.path).reasons()[3] == "segmentation fault — §"
    assert xr.open_zarr(store.path, chunks=None)["reason"][3].item() == "segmentation fault — §"
    fill(store, 0)  # mended
    assert not store.reasons().astype(bool).any()


def test_every_kind_of_record_comes_back(tmp_path: Path) -> None:
    schema = Schema(PARAMETERS, OBSERVABLES, Variables([Variable("psf", (2, 2), units="px")]), (5,), grouped=True)
    store = SimulationStore.create(tmp_path / "full.zarr", Layout(6, 3, 3), schema, {"campaign": {}})
    rng = np.random.default_rng(0)
    rows = [
        Records(
            rng.normal(size=(3, 2)), {"x": rng.normal(size=(3, 3)), "n": np.arange(3, dtype=np.int32)},
            np.full(3, OK, np.int8), np.ones(3, np.float32), {"psf": rng.normal(size=(3, 2, 2))},
            rng.normal(size=(3, 5)), np.array([7, 7, 8]),
        )
        for _ in range(2)
    ]  # fmt: skip
    for shard, records in enumerate(rows):
        store.write_shard(shard, records)
    found, whole = SimulationStore.open(store.path).read_records(), Records.join(rows, schema)
    for name, values in whole.arrays().items():
        np.testing.assert_array_equal(found.arrays()[name], values)
    assert xr.open_datatree(store.path, engine="zarr")["context/psf"].dims == ("simulation", "psf_0", "psf_1")
    store.verify()


def test_a_store_of_the_first_version_still_opens(store: SimulationStore) -> None:
    for shard in range(LAYOUT.shards):
        fill(store, shard)
    attributes = {k: v for k, v in store.attributes.items() if k not in ("context", "u_shape", "grouped")}
    store._group.attrs.put({**attributes, "schema_version": 1, "layout": {"rows": 25, "block": 4, "shard": 8}})
    del store._group["reason"]
    old = SimulationStore.open(store.path)
    np.testing.assert_array_equal(old.read()[0], store.read()[0])
    assert old.pending_shards() == []
    assert not old.reasons().astype(bool).any()
    fill(old, 1)
