from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from simfer.data.errors import CorruptStoreError, StoreError
from simfer.data.layout import Layout
from simfer.data.records import Records, Schema
from simfer.data.shards import ChunkReader
from simfer.data.store import SimulationStore
from simfer.data.variables import Variable, Variables


def records(x: np.ndarray) -> Records:
    return Records(np.zeros((len(x), 1)), {"x": x}, np.ones(len(x), np.int8), np.zeros(len(x), np.float32))


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 60),
    block=st.integers(1, 20),
    blocks=st.integers(1, 4),
    shape=st.lists(st.integers(1, 3), max_size=2),
    dtype=st.sampled_from(["float64", "float32", "int16"]),
)
def test_chunks_are_what_zarr_reads(tmp_path_factory, rows, block, blocks, shape, dtype) -> None:
    path = tmp_path_factory.mktemp("shards") / "store.zarr"
    variables = Variables([Variable("x", tuple(shape), dtype)])
    layout = Layout(rows, block, block * blocks)
    store = SimulationStore.create(path, layout, Schema(Variables([Variable("a")]), variables), {})
    rng = np.random.default_rng(0)
    for shard in range(layout.shards):
        length = len(range(rows)[layout.shard_rows(shard)])
        x = rng.integers(-99, 99, (length, *shape)).astype(dtype)
        store.write_shard(shard, records(x))
    expected = store.read()[1]["x"]
    reader = ChunkReader(path, "x")
    for start in range(0, rows, block):
        chunk = np.empty((block, *shape), dtype)
        reader.read(start // block, chunk)
        part = expected[start : start + block]
        np.testing.assert_array_equal(chunk[: len(part)], part)


def test_a_truncated_or_missing_shard_is_named(tmp_path: Path) -> None:
    store = SimulationStore.create(
        tmp_path / "s.zarr", Layout(20, 5, 10), Schema(Variables([Variable("a")]), Variables([Variable("x")])), {}
    )
    for shard in range(2):
        store.write_shard(shard, records(np.ones(10)))
    first, second = (store.path / "x" / "c" / str(shard) for shard in range(2))
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    for chunk in range(4):
        with pytest.raises(CorruptStoreError, match=f"damaged: shard {chunk // 2}, array `x`"):
            ChunkReader(store.path, "x").read(chunk, np.empty(5))


def test_another_layout_is_refused(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "x", shape=(4,), chunks=(2,), dtype="float64", zarr_format=3)
    with pytest.raises(StoreError, match="must have the codecs"):
        ChunkReader(tmp_path, "x")
