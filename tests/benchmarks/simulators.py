"""Rows per second of every registered simulator, on one thread, in calls of 10,000 rows with theta from the prior.

python tests/benchmarks/simulators.py [--rows 100000] [--only sir lotka_volterra]
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from simfer.data import registry
from simfer.simulators.base import HasContext, Simulator, simulate_checked
from simfer.simulators.campaign import Reference

CALL = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--only", nargs="+", default=registry.names("simulators"))
    arguments = parser.parse_args()
    print(f"{'simulator':25} {'rows':>8} {'seconds':>8} {'rows/s':>11} {'not finite':>10}")
    for name in arguments.only:
        seconds, bad = measured(Reference(name).load(), arguments.rows)
        print(
            f"{name:25} {arguments.rows:8,} {seconds:8.2f} {arguments.rows / max(seconds, 1e-9):11,.0f} {bad:10}",
            flush=True,
        )


def measured(simulator: Simulator, rows: int) -> tuple[float, int]:
    """Seconds in the simulator, and how many rows are not finite."""
    rng, seconds, bad = np.random.default_rng(0), 0.0, 0
    for first in range(0, rows, CALL):
        size = min(CALL, rows - first)
        theta = simulator.prior.sample(size, rng)
        context = simulator.context.draw(size, rng) if isinstance(simulator, HasContext) else None
        started = time.perf_counter()
        x = simulate_checked(simulator, theta, rng, context)
        seconds += time.perf_counter() - started
        finite = [np.isfinite(values).reshape(size, -1).all(1) for values in x.values()]
        bad += int((~np.all(finite, axis=0)).sum())
    return seconds, bad


if __name__ == "__main__":
    main()
