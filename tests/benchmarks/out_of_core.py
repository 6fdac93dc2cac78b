"""Training on a store eight times larger than its memory budget: peak memory, and steps per second beside rows in RAM.

python tests/benchmarks/out_of_core.py

For rows of 420 B and of 10 kB: a store of 4 GiB of float32 noise is written (and removed), then each case runs in a
process of its own: the loader alone, NPE trained for a fixed number of steps streamed and on a subset in RAM, and what
is commonly used instead, a ``DataLoader`` that fetches row by row from xarray or from HDF5. Files were just written
and are in the page cache where that is large enough.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import xarray as xr
from lightning.pytorch import callbacks, loggers  # noqa: F401  growth is counted from after the imports
from torch.utils.data import DataLoader, Dataset

import simfer
from simfer.data.layout import Layout
from simfer.data.records import OK, Records, Schema
from simfer.data.store import SimulationStore
from simfer.data.streaming import StoredRows, StreamedBatches, usable_rows
from simfer.data.variables import Variable, Variables
from simfer.estimators import npe, train, training  # noqa: F401
from simfer.estimators.hardware import Hardware
from simfer.estimators.module import TrainingModule
from simfer.estimators.settings import EstimatorSettings, TrainingSettings

BATCH = 256
NAMES = "abcde"
GIB = 2**30


class DoneError(Exception):
    """Enough steps were timed."""


def memory(key: str) -> float:
    """MB of this process: ``VmRSS``, or ``VmHWM``, the highest so far."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) / 1000


def write(path: Path, size: int, floats: int) -> None:
    """A store of ``size`` bytes; every shard the same noise, shifted."""
    variables = Variables([Variable("x", (floats,), "float32")])
    layout = Layout.choose(size // (4 * floats), variables)
    store = SimulationStore.create(path, layout, Schema(Variables([Variable(name) for name in NAMES]), variables), {})
    rng = np.random.default_rng(0)
    theta = rng.standard_normal((layout.shard, len(NAMES)))
    x = rng.standard_normal((layout.shard, floats), dtype=np.float32)
    x[:, : len(NAMES)] += theta
    for shard in range(layout.shards):
        n = len(range(layout.rows)[layout.shard_rows(shard)])
        store.write_shard(shard, Records(theta[:n], {"x": x[:n]}, np.full(n, OK, np.int8), np.zeros(n, np.float32)))


def trained(path: Path, loader: str, budget: int, rows: slice, steps: int) -> dict[str, Any]:
    """Steps per second over ``steps`` steps, those that begin an epoch left out, and the growth of memory in MB."""
    before = memory("VmRSS")
    taken: list[float] = []
    seen, last = 0, 0.0
    step = TrainingModule.training_step

    def timed(self: TrainingModule, batch: Any, index: int) -> torch.Tensor:
        nonlocal seen, last
        now = time.perf_counter()
        if index:
            taken.append(now - last)
        seen, last = seen + 1, now
        if seen > steps:
            raise DoneError
        return step(self, batch, index)

    TrainingModule.training_step = timed  # type: ignore[method-assign]
    started = time.perf_counter()
    with contextlib.suppress(DoneError):
        simfer.train(
            path,
            prior=simfer.Prior({name: torch.distributions.Normal(0.0, 1.0) for name in NAMES}),
            estimator=EstimatorSettings(),
            training=TrainingSettings(epochs=10, batch_size=BATCH, loader=loader),
            rows=rows,
            hardware=Hardware(accelerator="cpu", devices=1, threads=1, memory=budget),
        )
    TrainingModule.training_step = step  # type: ignore[method-assign]
    return {
        "steps/s": len(taken) / sum(taken),
        "epochs": seen - len(taken),
        "before the first step, s": last - started - sum(taken),
        "growth, MB": memory("VmHWM") - before,
    }


def alternating(path: Path, budget: int, rows: slice, steps: int, rounds: int = 5) -> dict[str, Any]:
    """Rates streamed over rates in RAM, measured in turn, so that what else the machine does weighs on both."""
    ratios = []
    for _ in range(rounds):
        streamed, in_memory = (trained(path, loader, budget, rows, steps)["steps/s"] for loader in ("stream", "memory"))
        ratios.append(streamed / in_memory)
    return {"ratio, median": float(np.median(ratios)), "lowest": min(ratios), "highest": max(ratios)}


def loaded(batches: Iterable[Any], seconds: float = 10.0) -> dict[str, Any]:
    """Rows per second of a loader alone."""
    rows, started = 0, time.perf_counter()
    for batch in batches:
        rows += len(batch[0])
        if time.perf_counter() - started > seconds:
            break
    return {"rows/s": rows / (time.perf_counter() - started)}


class XarrayRows(Dataset[Any]):
    """Row by row from a lazy dataset."""

    def __init__(self, path: Path) -> None:
        self.data = xr.open_zarr(path, chunks=None)

    def __len__(self) -> int:
        return self.data.sizes["simulation"]

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        one = self.data.isel(simulation=row)
        return one["theta"].values, one["x"].values


class HDF5Rows(Dataset[Any]):
    """Row by row from an uncompressed, contiguous file."""

    def __init__(self, path: Path) -> None:
        self.file = h5py.File(path, "r")

    def __len__(self) -> int:
        return len(self.file["x"])

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        return self.file["theta"][row], self.file["x"][row]


def hdf5(path: Path, rows: int) -> Path:
    """The first rows of a store as an HDF5 file beside it."""
    store, file = SimulationStore.open(path), path.with_suffix(".h5")
    theta, x = store.read(slice(0, rows))
    with h5py.File(file, "w") as out:
        out["theta"], out["x"] = theta, x["x"]
    return file


def streamed(path: Path, budget: int) -> Iterable[Any]:
    store = SimulationStore.open(path)
    return StreamedBatches(StoredRows(store, usable_rows(store), budget), BATCH, seed=0)


def run(case: str, path: Path, budget: int, steps: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    subset = GIB // 2 // (SimulationStore.open(path).observables.size * 4)
    cases: dict[str, Callable[[], dict[str, Any]]] = {
        "NPE, streamed": lambda: trained(path, "stream", budget, slice(None), steps),
        "NPE, 0.5 GiB of it in RAM": lambda: trained(path, "memory", 4 * GIB, slice(0, subset), steps),
        "both on 0.5 GiB, in turn": lambda: alternating(path, budget, slice(0, subset), steps // 5),
        "streamed, loader alone": lambda: loaded(streamed(path, budget)),
        "xarray + DataLoader": lambda: loaded(DataLoader(XarrayRows(path), BATCH, shuffle=True)),
        "h5py per row + DataLoader": lambda: loaded(DataLoader(HDF5Rows(hdf5(path, subset)), BATCH, shuffle=True)),
    }
    return cases[case]() if case else {name: None for name in cases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--budget", type=int, default=512 * 2**20, help="bytes")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--case")
    parser.add_argument("--row", type=int, nargs="*", default=[420, 10_000], help="bytes in a row")
    arguments = parser.parse_args()
    if arguments.case is not None:
        print(json.dumps(run(arguments.case, arguments.folder, arguments.budget, arguments.steps)))
        return
    for row in arguments.row:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            path = Path(folder) / "store.zarr"
            started = time.perf_counter()
            write(path, int(arguments.gib * GIB), row // 4)
            layout = SimulationStore.open(path).layout
            print(
                f"rows of {row} B, {arguments.gib:g} GiB, blocks of {layout.block} rows, budget {arguments.budget >> 20} MiB; ",
                end="",
            )
            print(f"written in {time.perf_counter() - started:.0f} s", flush=True)
            command = [sys.executable, __file__, "--folder", str(path), "--budget", str(arguments.budget)]
            command += ["--steps", str(arguments.steps), "--case"]
            names = json.loads(subprocess.run([*command, ""], capture_output=True, check=True).stdout)
            for name in names:
                done = subprocess.run([*command, name], stdout=subprocess.PIPE, check=True)
                numbers = json.loads(done.stdout.splitlines()[-1])
                print(f"  {name:28}" + "; ".join(f"{key} {value:,.2f}" for key, value in numbers.items()), flush=True)


if __name__ == "__main__":
    main()
