"""A campaign of ten million tiny rows: time to fill it, and to open it, ask how far it is, resume and verify it.

python tests/benchmarks/large_campaign.py [--rows 10000000]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from simfer.data.store import SimulationStore
from simfer.simulators.campaign import simulate
from simfer.simulators.progress import progress_of
from simfer.simulators.two_moons import TwoMoons


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.zarr"

        def resume() -> None:
            for shard in (0, 7):
                SimulationStore.open(path).discard(shard)
            simulate(TwoMoons(), rows, path, seed=1)

        steps: dict[str, Callable[[], object]] = {
            "fill, inline": lambda: simulate(TwoMoons(), rows, path, seed=1),
            "open": lambda: SimulationStore.open(path),
            "status": lambda: progress_of(SimulationStore.open(path)),
            "resume, nothing to do": lambda: simulate(TwoMoons(), rows, path, seed=1),
            "resume, two shards of sixteen": resume,
            "read and check every byte": lambda: SimulationStore.open(path).verify(),
        }
        print(f"{rows:,} rows of 2 + 2 numbers")
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            print(f"{name:32} {time.perf_counter() - started:8.2f} s", flush=True)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        print(f"{'size on disk':32} {size / 1e6:8.0f} MB")


if __name__ == "__main__":
    main()
