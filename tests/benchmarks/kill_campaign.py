"""kill -9 of a campaign at random instants, resumed each time: the bytes of an undisturbed run, no row lost or doubled.

A third of the kills each with the inline executor, one worker process and two. Every campaign is killed again and again,
workers included, until it happens to finish; a new one begins until all kills are spent. Prints one table and fails
when an array differs.

    python tests/benchmarks/kill_campaign.py [--kills 50]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from simfer.data.store import SimulationStore
from simfer.simulators.campaign import simulate, verify
from simfer.simulators.two_moons import TwoMoons

ROWS = 1_000_000
EXECUTORS = {"inline": "Inline()", "processes, 1": "Processes(1)", "processes, 2": "Processes(2)"}
FILL = """\
import sys
import time
from simfer.pipelines.executors import Inline, Processes
from simfer.simulators.campaign import simulate
from simfer.simulators.two_moons import TwoMoons


class Unhurried(TwoMoons):
    def simulate(self, theta, rng, context=None):
        time.sleep(0.05)  # a block: most of the time there is work to lose
        return super().simulate(theta, rng)


if __name__ == "__main__":
    print("begins", flush=True)
    simulate(Unhurried(), {rows}, sys.argv[1], seed=5, executor={executor})
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    kills = parser.parse_args().kills
    with tempfile.TemporaryDirectory() as folder:
        reference = simulate(TwoMoons(), ROWS, Path(folder) / "reference.zarr", seed=5)
        assert len(np.unique(reference.read()[0], axis=0)) == ROWS
        print(f"{'executor':14} {'kills':>6} {'in mid-campaign':>16} {'campaigns':>10}  arrays", flush=True)
        for i, (name, executor) in enumerate(EXECUTORS.items()):
            share = kills // 3 + (i < kills % 3)
            struck, campaigns = kill_and_resume(Path(folder) / f"{i}", executor, share, reference)
            print(f"{name:14} {share:6} {struck:16} {campaigns:10}  identical", flush=True)


def kill_and_resume(folder: Path, executor: str, kills: int, reference: SimulationStore) -> tuple[int, int]:
    """How many kills struck a half-filled store, and how many campaigns they were spread over."""
    folder.mkdir()
    script = folder / "fill.py"
    script.write_text(FILL.format(rows=ROWS, executor=executor))
    clock, struck, campaigns = random.Random(executor), 0, 0
    seconds = _undisturbed(script, folder / "undisturbed.zarr")
    while kills:
        path = folder / f"{campaigns}.zarr"
        campaigns += 1
        while kills and not _killed(script, path, clock.uniform(0, seconds)):
            kills -= 1
            struck += path.exists() and 0 < len(SimulationStore.open(path).pending_shards()) < reference.layout.shards
        require_identical(_finished(script, path), reference)
    return struck, campaigns


def require_identical(store: SimulationStore, reference: SimulationStore) -> None:
    """Raise unless every array holds the same bytes."""
    verify(store)
    if store.digest() != reference.digest():
        raise AssertionError(f"{store.path} differs from the undisturbed run")


def _killed(script: Path, path: Path, seconds: float) -> bool:
    """Start filling, kill all of it after some seconds; whether it had finished before."""
    process = _start(script, path)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(seconds)
    finished = process.poll() == 0
    os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
    process.communicate()
    return finished


def _finished(script: Path, path: Path) -> SimulationStore:
    process = _start(script, path)
    output = process.communicate()[0]
    if process.returncode:
        raise AssertionError(output)
    return SimulationStore.open(path)


def _undisturbed(script: Path, path: Path) -> float:
    """Seconds from the first line of output to the end."""
    process = _start(script, path)
    assert process.stdout is not None
    process.stdout.readline()
    started = time.perf_counter()
    process.communicate()
    return time.perf_counter() - started


def _start(script: Path, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(script), str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


if __name__ == "__main__":
    main()
