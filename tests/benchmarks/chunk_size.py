"""Rates of reading and writing a store against the size of its chunks; what `Layout.choose` takes is justified here.

python tests/benchmarks/chunk_size.py

Rows are float32 noise, which hardly compresses: the hardest case. Files are in the page cache.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from simfer.data.layout import Layout
from simfer.data.records import OK, Records, Schema
from simfer.data.store import SimulationStore
from simfer.data.streaming import StoredRows, StreamedBatches, usable_rows
from simfer.data.variables import Variable, Variables

MIB = 2**20
CHUNKS = (MIB // 10, 2 * MIB // 5, MIB, 2 * MIB, 4 * MIB, 8 * MIB, 16 * MIB)
PARAMETERS = Variables([Variable(name) for name in "abcde"])


def layout(total: int, row_bytes: int, chunk: int) -> Layout:
    block = max(1, chunk // row_bytes)
    blocks = max(16, total // (block * row_bytes)) // 16 * 16
    return Layout(blocks * block, block, blocks // 16 * block)


def write(path: Path, layout: Layout, floats: int, rng: np.random.Generator) -> float:
    """Seconds to write all shards."""
    store = SimulationStore.create(
        path, layout, Schema(PARAMETERS, Variables([Variable("x", (floats,), "float32")])), {}
    )
    theta = rng.standard_normal((layout.shard, 5))
    x = rng.standard_normal((layout.shard, floats), dtype=np.float32)
    status, runtime = np.full(layout.shard, OK, np.int8), np.zeros(layout.shard, np.float32)
    started = time.perf_counter()
    for shard in range(layout.shards):
        store.write_shard(shard, Records(theta, {"x": x}, status, runtime))
    return time.perf_counter() - started


def read_in_order(store: SimulationStore) -> float:
    """Seconds to read every chunk with one call each."""
    started = time.perf_counter()
    for start in range(0, store.rows, store.layout.block):
        store.read(slice(start, start + store.layout.block))
    return time.perf_counter() - started


def stream(store: SimulationStore, threads: int) -> float:
    """Seconds of one shuffled epoch."""
    rows = StoredRows(store, usable_rows(store), 2**31, threads=threads)
    loader = StreamedBatches(rows, 256, seed=0)
    started = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - started


def bare(path: Path, layout: Layout, floats: int, rng: np.random.Generator) -> float:
    """Seconds to write x alone with zarr, the same codecs."""
    array = zarr.create_array(
        path,
        shape=(layout.rows, floats),
        chunks=(layout.block, floats),
        shards=(layout.shard, floats),
        dtype="float32",
        compressors=[ZstdCodec(level=3), Crc32cCodec()],
    )
    x = rng.standard_normal((layout.shard, floats), dtype=np.float32)
    started = time.perf_counter()
    for shard in range(layout.shards):
        array[layout.shard_rows(shard)] = x
    return time.perf_counter() - started


def with_xarray(path: Path, layout: Layout, floats: int, rng: np.random.Generator) -> float:
    """Seconds to write x alone with xarray, the same chunks, shards and codecs, one region per shard."""
    x = rng.standard_normal((layout.shard, floats), dtype=np.float32)
    encoding = {
        "x": {
            "chunks": (layout.block, floats),
            "shards": (layout.shard, floats),
            "compressors": [ZstdCodec(level=3), Crc32cCodec()],
        }
    }
    started = time.perf_counter()
    for shard in range(layout.shards):
        dataset = xr.Dataset({"x": (("simulation", "entry"), x)})
        if shard == 0:
            dataset.to_zarr(path, encoding=encoding, consolidated=False)
        else:
            dataset.to_zarr(path, append_dim="simulation", consolidated=False)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=256)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    print("GB/s                 chunk   rows in it   write   read in order   shuffled, 1 thread   2    3")
    for floats in (105, 2500):
        for chunk in CHUNKS:
            plan = layout(arguments.megabytes * MIB, 4 * floats, chunk)
            size = plan.rows * 4 * floats / 1e9
            with tempfile.TemporaryDirectory() as folder:
                written = write(Path(folder) / "s.zarr", plan, floats, rng)
                store = SimulationStore.open(Path(folder) / "s.zarr")
                read_in_order(store)
                rates = [size / t for t in (written, read_in_order(store), *(stream(store, n) for n in (1, 2, 3)))]
            numbers = "{:7.2f} {:15.2f} {:20.2f} {:6.2f} {:4.2f}".format(*rates)
            print(f"rows of {4 * floats:5} B {chunk / MIB:7.1f} MiB {plan.block:12} {numbers}", flush=True)
        plan = layout(arguments.megabytes * MIB, 4 * floats, 4 * MIB)
        for name, method in (("bare zarr", bare), ("xarray", with_xarray)):
            with tempfile.TemporaryDirectory() as folder:
                rate = plan.rows * 4 * floats / 1e9 / method(Path(folder) / "s.zarr", plan, floats, rng)
            print(f"rows of {4 * floats:5} B, chunks of 4 MiB, {name} writes {rate:.2f}", flush=True)


if __name__ == "__main__":
    main()
