"""Writing: a campaign of a simulator that costs nothing, against a bare zarr write of the same layout, xarray and NumPy.

1,000,000 rows of 5 parameters and 100 float32. The campaign draws theta, judges rows, writes every array with checksums
and marks each shard; the others write ready-made arrays. Several rounds, the ways in turn; prints one table of medians.

    python tests/benchmarks/campaign_writing.py [--rows 1000000] [--rounds 5]
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr

from simfer.data.records import Records
from simfer.data.store import SimulationStore
from simfer.data.variables import Variable, Variables
from simfer.pipelines.executors import Processes
from simfer.simulators.begin import schema_of
from simfer.simulators.campaign import simulate
from simfer.simulators.prior import Prior

WIDTH = 100


class Free:
    """Returns ready-made noise, of the kind that compresses no better than real data."""

    prior = Prior({f"t{i}": {"dist": "Normal", "loc": 0.0, "scale": 1.0} for i in range(5)})
    observables = Variables([Variable("x", (WIDTH,), "float32")])
    noise = np.random.default_rng(0).standard_normal((2**14, WIDTH)).astype(np.float32)

    def simulate(self, theta, rng, context=None):
        start = int(rng.integers(len(self.noise) - len(theta)))
        return {"x": self.noise[start : start + len(theta)]}


def bare_zarr(folder: Path, theta: np.ndarray, x: np.ndarray) -> None:
    """The same arrays, chunks, shards and codecs, written shard by shard."""
    from simfer.data.layout import Layout

    layout, schema = Layout.choose(len(theta), Free.observables), schema_of(Free(), Free.prior)
    store = SimulationStore.create(folder / "bare.zarr", layout, schema, {})
    status, runtime = np.ones(len(theta), np.int8), np.zeros(len(theta), np.float32)
    for shard in range(layout.shards):
        rows = layout.shard_rows(shard)
        store.write_shard(shard, Records(theta[rows], {"x": x[rows]}, status[rows], runtime[rows]))


def with_xarray(folder: Path, theta: np.ndarray, x: np.ndarray) -> None:
    data = xr.Dataset({"theta": (("simulation", "parameter"), theta), "x": (("simulation", "x_0"), x)})
    data.to_zarr(folder / "xarray.zarr", zarr_format=3, consolidated=False)


def with_numpy(folder: Path, theta: np.ndarray, x: np.ndarray) -> None:
    for name, values in (("theta", theta), ("x", x)):
        with (folder / f"{name}.npy").open("wb") as file:
            np.save(file, values)
            file.flush()
            os.fsync(file.fileno())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = options.rows
    rng = np.random.default_rng(1)
    theta = rng.standard_normal((rows, 5))
    x = Free.noise[rng.integers(len(Free.noise), size=rows)]
    size = (theta.nbytes + x.nbytes) / 1e6
    ways: dict[str, Callable[[Path], object]] = {
        "bare zarr, same layout": lambda folder: bare_zarr(folder, theta, x),
        "xarray to_zarr": lambda folder: with_xarray(folder, theta, x),
        "numpy.save + fsync": lambda folder: with_numpy(folder, theta, x),
        "campaign, inline": lambda folder: simulate(Free(), rows, folder / "s.zarr"),
        "campaign, 2 processes": lambda folder: simulate(Free(), rows, folder / "s.zarr", executor=Processes(2)),
    }
    simulate(Free(), 1000, Path(tempfile.mkdtemp()) / "warm.zarr")
    rounds = [{name: timed(write) for name, write in ways.items()} for _ in range(options.rounds)]
    print(f"{'':26} {'rows/s':>10} {'MB/s':>8} {'of bare zarr':>13} {'of xarray':>10}")
    for name in ways:
        seconds = np.median([one[name] for one in rounds])
        ratios = [np.median([one[peer] / one[name] for one in rounds]) for peer in list(ways)[:2]]
        print(f"{name:26} {rows / seconds:10,.0f} {size / seconds:8.0f} {ratios[0]:13.2f} {ratios[1]:10.2f}")


def timed(write: Callable[[Path], object]) -> float:
    """Seconds to write into a new folder."""
    folder = Path(tempfile.mkdtemp())
    try:
        started = time.perf_counter()
        write(folder)
        return time.perf_counter() - started
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
