"""What `Program` costs per row over starting the same compiled program bare, as ratios of medians over rows.

The three take turns row by row, so that a busy machine disturbs all alike.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from simfer.simulators.program import Program

SOURCE = Path(__file__).parents[2] / "docs" / "examples" / "external_programs" / "decay.c"
PRIOR = {"rate": {"dist": "Uniform", "low": 0.0, "high": 1.0}, "amount": {"dist": "Uniform", "low": 5.0, "high": 50.0}}
ROWS = 2000


def timed(run: Callable[[], object]) -> float:
    """Microseconds."""
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1e6


def measure(folder: Path) -> dict[str, list[float]]:
    """Microseconds of every row, for each way to run the program."""
    program = Program("./decay {rate} {amount} {seed} {output}", prior=PRIOR, output="n.csv", folder=folder)
    rng, made = np.random.default_rng(0), folder / "n.csv"
    times: dict[str, list[float]] = {"posix_spawn": [], "subprocess.run": [], "Program": []}
    for row in program.prior.sample(ROWS, rng):
        words = [str(folder / "decay"), *map(str, row.tolist()), "1", str(made)]
        ways: tuple[Callable[[], object], ...] = (
            lambda words=words: os.waitpid(os.posix_spawn(words[0], words, os.environ), 0),
            lambda words=words: subprocess.run(words, check=True),
            lambda row=row: program.simulate(row[None], rng),
        )
        for way, values in zip(ways, times.values(), strict=True):
            values.append(timed(way))
            made.unlink(missing_ok=True)
    return times


def main() -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        sys.exit("no C compiler: nothing to measure")
    with tempfile.TemporaryDirectory() as name:
        subprocess.run([compiler, "-O2", "-o", Path(name) / "decay", SOURCE, "-lm"], check=True)
        times = measure(Path(name))
    ours = statistics.quantiles(times["Program"], n=4)
    for label, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        print(
            f"{label:15} {median:5.0f} µs per row (quartiles {low:.0f}-{high:.0f}); Program / this: {ours[1] / median:.2f}"
        )


if __name__ == "__main__":
    main()
