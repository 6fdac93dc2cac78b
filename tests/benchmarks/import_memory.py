"""What importing and exporting a file of a gigabyte costs: seconds, and how much the process grows meanwhile.

Memory is the growth of the largest resident set (``VmHWM`` of Linux) of a fresh process over what it was before the
first row was read. The data are written to a temporary folder and removed. ``SIMFER_IMPORT_MB`` changes the size of the HDF5
file; text and Parquet files are a tenth of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

MEGABYTES = int(os.environ.get("SIMFER_IMPORT_MB", "1000"))
LENGTH = 250  # 2 kB a row in float64
COLUMNS = 10
PORTION = 4000

WORKER = """
import re, sys, time
from pathlib import Path
from simfer.data.exporting import export_store
from simfer.data.importing import Names
from simfer.data.tables import open_table
from simfer.simulators.imported import Imported
from simfer.simulators.prior import Prior

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

what, path = sys.argv[1], Path(sys.argv[2])
prior = Prior({"a": {"dist": "Uniform", "low": 0.0, "high": 1.0}})
imported = Imported(path, Names(theta="a", x={"x": sys.argv[3]}), prior)
before, started = peak(), time.perf_counter()
store = imported.write(path.with_suffix(".zarr"))
seconds, grown = time.perf_counter() - started, peak() - before
assert store.counts()["ok"] == imported.rows
size = path.stat().st_size / 1e6
print(f"{what:24} {size:8.0f} MB {imported.rows:9,} rows {seconds:7.1f} s {size / seconds:7.0f} MB/s   +{grown:.0f} MiB")
if what.startswith("HDF5"):
    before, started = peak(), time.perf_counter()
    export_store(store, path.with_suffix(".nc"))
    seconds, grown = time.perf_counter() - started, peak() - before
    print(f"{'  exported again':24} {size:8.0f} MB {imported.rows:9,} rows {seconds:7.1f} s {size / seconds:7.0f} MB/s   +{grown:.0f} MiB")
"""


def write_hdf5(path: Path, megabytes: int, **options: object) -> None:
    rows = megabytes * 10**6 // (8 * LENGTH)
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.create_dataset("a", (rows,), "f8")
        file.create_dataset("x", (rows, LENGTH), "f8", **options)
        for start in range(0, rows, PORTION):
            part = slice(start, min(start + PORTION, rows))
            file["a"][part] = rng.uniform(size=part.stop - start)
            file["x"][part] = rng.normal(size=(part.stop - start, LENGTH)).astype(np.float32)


def write_npz(path: Path, megabytes: int) -> None:
    rows = megabytes * 10**6 // (8 * LENGTH)
    rng = np.random.default_rng(0)
    np.savez_compressed(path, a=rng.uniform(size=rows), x=rng.normal(size=(rows, LENGTH)))


def write_csv(path: Path, megabytes: int) -> None:
    rows = megabytes * 10**6 // (19 * (COLUMNS + 1))
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        file.write(",".join(["a", *(f"x{i}" for i in range(COLUMNS))]) + "\n")
        for start in range(0, rows, PORTION):
            block = rng.uniform(size=(min(PORTION, rows - start), COLUMNS + 1))
            np.savetxt(file, block, fmt="%.16f", delimiter=",")


def write_parquet(path: Path, megabytes: int) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    rng = np.random.default_rng(0)
    schema = pa.schema([("a", pa.float64()), ("x", pa.list_(pa.float64(), LENGTH))])
    with parquet.ParquetWriter(path, schema) as writer:
        for _ in range(0, megabytes * 10**6 // (8 * LENGTH), PORTION):
            x = pa.FixedSizeListArray.from_arrays(rng.normal(size=PORTION * LENGTH), LENGTH)
            writer.write_table(pa.table({"a": rng.uniform(size=PORTION), "x": x}, schema))


CASES: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "HDF5, contiguous": ("sims.h5", "x", lambda path: write_hdf5(path, MEGABYTES)),
    "HDF5, chunked and gzip": (
        "sims.h5",
        "x",
        lambda path: write_hdf5(path, MEGABYTES // 10, chunks=(500, LENGTH), compression="gzip"),
    ),
    "npz, compressed": ("sims.npz", "x", lambda path: write_npz(path, MEGABYTES // 10)),
    "CSV": ("sims.csv", "x*", lambda path: write_csv(path, MEGABYTES // 10)),
    "Parquet": ("sims.parquet", "x", lambda path: write_parquet(path, MEGABYTES // 10)),
}


def main() -> None:
    """Write one file after another, import each in a process of its own, and print what it took."""
    for what, (name, column, write) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / name)
            subprocess.run([sys.executable, "-c", WORKER, what, str(Path(folder) / name), column], check=True)


if __name__ == "__main__":
    main()
