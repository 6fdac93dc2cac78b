"""Parallel efficiency of worker processes with a Python simulator of 20 ms a row, and the cost of guarding rows.

Efficiency is rows · 20 ms / (workers · time), the workers' start included; the simulator sleeps, so that the cores of a
busy machine do not matter. Prints one table.

    python tests/benchmarks/parallel_efficiency.py [--rows 20000]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from simfer.pipelines.executors import Inline, Processes
from simfer.simulators.block import Protection
from simfer.simulators.campaign import Executor, simulate
from simfer.simulators.two_moons import TwoMoons

SECONDS = 0.02


class Slow(TwoMoons):
    """20 ms a row."""

    def simulate(self, theta, rng, context=None):
        time.sleep(SECONDS * len(theta))
        return super().simulate(theta, rng)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    rows = parser.parse_args().rows
    ways: dict[str, tuple[int, Executor, Protection]] = {
        "inline": (1, Inline(), Protection()),
        "2 processes": (2, Processes(2), Protection()),
        "2 processes, each block in a child": (2, Processes(2), Protection(isolate=True)),
    }
    print(f"{'':36} {'s':>7} {'efficiency':>11}")
    for name, (workers, executor, protection) in ways.items():
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            simulate(Slow(), rows, Path(folder) / "s.zarr", executor=executor, protection=protection)
            seconds = time.perf_counter() - started
        print(f"{name:36} {seconds:7.1f} {rows * SECONDS / workers / seconds:11.3f}", flush=True)


if __name__ == "__main__":
    main()
