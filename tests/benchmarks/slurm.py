"""What simfer costs on a Slurm cluster of three nodes on this machine: arrays of trivial shards, and questions to the scheduler.

An array of tasks with one shard of ten rows each, against one of as many ``sleep 0``, each from its submission to the end of
its last task; then the same shards by fewer tasks, which is what `array:` is for. Python's own start, with the imports that a
task needs, is measured alone. Needs root, and Debian's slurm-wlm and munge.

    python tests/benchmarks/slurm.py [--tasks 200]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from simfer.pipelines.slurm.ledger import Ledger
from simfer.pipelines.slurm.scheduler import Scheduler
from simfer.pipelines.slurm.status import status_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=200)
    tasks = parser.parse_args().tasks
    tests = _conftest()
    if why := tests.missing():
        print(f"no Slurm cluster here: {why}")
        return
    with tempfile.TemporaryDirectory(prefix="simfer-slurm-", ignore_cleanup_errors=True) as name:
        cluster = tests.Cluster(Path(name))
        os.environ |= {"SLURM_CONF": str(cluster.conf), "OMP_NUM_THREADS": "1"}
        try:
            cluster.start()
            measure(cluster, tasks, Path(name))
        finally:
            cluster.stop()


def measure(cluster: Any, tasks: int, folder: Path) -> None:
    alone = _alone()
    print(f"{'array':44} {'tasks':>6} {'seconds':>8} {'a task':>7}")
    slept = _sleeps(cluster, tasks)
    print(f"{'sleep 0':44} {tasks:6} {slept:8.1f} {slept / tasks:7.2f}", flush=True)
    for array in (tasks, max(1, tasks // 25)):
        seconds = _campaign(cluster, tasks, array, folder / f"run{array}")
        print(f"{f'{tasks} shards':44} {array:6} {seconds:8.1f} {seconds / array:7.2f}", flush=True)
    print(f"Python and the imports of a task, alone: {alone:.1f} s")
    _watch(folder / f"run{tasks}")


def _sleeps(cluster: Any, tasks: int) -> float:
    started = time.monotonic()
    job = cluster.ask("sbatch", "--parsable", f"--array=0-{tasks - 1}", "--output=/dev/null", "--wrap", "sleep 0")
    _wait(cluster, job)
    return time.monotonic() - started


def _campaign(cluster: Any, shards: int, array: int, run: Path) -> float:
    config = {
        "name": "trivial",
        "simulator": "two_moons",
        "simulate": {"rows": 10 * shards, "block": 10, "shards": shards},
        "local": {"slurm": {"simulate": {"array": array}, "train": {"extra": ["--hold"]}}},
    }
    started = time.monotonic()
    cluster.submit(config, run)
    _wait(cluster, Ledger.read(run).of("simulate")[0].job)
    seconds = time.monotonic() - started
    assert all(task.state == "done" for task in status_of(run).tasks if task.stage == "simulate")
    return seconds


def _watch(run: Path) -> None:
    """Questions a minute at the interval that `simfer status --watch` has by default, counted over three looks."""
    scheduler = Scheduler()
    for _ in range(3):
        status_of(run, scheduler)
    print(f"questions to the scheduler while watching, every 30 s: {scheduler.queries / 3 * 2:.0f} a minute")


def _alone() -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import simfer.pipelines.slurm.task"], check=True)
    return time.monotonic() - started


def _wait(cluster: Any, job: str) -> None:
    cluster.wait(lambda: not cluster.ask("squeue", "-h", "-j", job), 3600.0)


def _conftest() -> Any:
    path = Path(__file__).parents[1] / "slurm" / "conftest.py"
    spec = importlib.util.spec_from_file_location("cluster", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
