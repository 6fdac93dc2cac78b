"""What simfer costs on a Slurm cluster of three nodes on this machine: arrays of trivial shards, and questions to the scheduler.

An array of tasks with one shard of ten rows each, against one of as many ``sleep 0``, each from its submission to the end of
its last task; then the same shards by fewer tasks, which is what `array:` is for. Python's own start, with the imports that a
task needs, is measured alone. Needs root, and Debian's slurm-wlm and munge.

With ``--scale`` instead, what a campaign of 10⁸ rows of 10 kB by 1,000 tasks would do to files, metadata and disks, from the costs of
a shard, a row and a look at the store that are measured on 2,000 shards here.

With ``--recipe NAME`` a shipped recipe as it is, by the command line: submitted, and run here, with what both made compared.

    python tests/benchmarks/slurm.py [--tasks 200] [--scale] [--recipe influenza_1978]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.distributions import Uniform

import simfer
from simfer.data.layout import Layout
from simfer.data.store import SimulationStore
from simfer.pipelines.api import Run
from simfer.pipelines.slurm.ledger import Ledger
from simfer.pipelines.slurm.scheduler import Scheduler
from simfer.pipelines.slurm.status import status_of
from simfer.simulators.campaign import simulate
from simfer.simulators.progress import progress_of
from simfer.simulators.two_moons import TwoMoons


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--scale", action="store_true")
    parser.add_argument("--recipe")
    arguments = parser.parse_args()
    if arguments.scale:
        scale()
        return
    tasks = arguments.tasks
    tests = _conftest()
    if why := tests.missing():
        print(f"no Slurm cluster here: {why}")
        return
    with tempfile.TemporaryDirectory(prefix="simfer-slurm-", ignore_cleanup_errors=True) as name:
        cluster = tests.Cluster(Path(name))
        os.environ |= {"SLURM_CONF": str(cluster.conf), "OMP_NUM_THREADS": "1"}
        try:
            cluster.start()
            if arguments.recipe:
                compare(cluster, arguments.recipe, Path(name))
            else:
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


def compare(cluster: Any, recipe: str, folder: Path) -> None:
    """A recipe by batch jobs and by one process, each for as long as it takes."""
    seconds = {}
    for command in ("submit", "run"):
        started = time.monotonic()
        simfer_ = [sys.executable, "-m", "simfer.pipelines.cli"]
        subprocess.run(
            [*simfer_, command, recipe, "--workdir", str(folder / command)], check=True, stdout=subprocess.DEVNULL
        )
        if command == "submit":
            cluster.finish(folder / command, 3600.0)
        seconds[command] = time.monotonic() - started
    ours, theirs = (simfer.load(folder / command) for command in ("submit", "run"))
    assert isinstance(ours, Run)
    assert isinstance(theirs, Run)
    print(f"{recipe}: {ours.simulations.rows:,} rows, {len(ours.model.facts['loss']['train'])} epochs")
    print(f"  batch jobs {seconds['submit']:.0f} s, one process after another {seconds['run']:.0f} s")
    print(f"  the same bytes in the store: {ours.simulations.digest() == theirs.simulations.digest()}")
    print(f"  the same losses: {ours.model.facts['loss'] == theirs.model.facts['loss']}")
    print(f"  the same checks: {ours.summary['checks'] == theirs.summary['checks']}")
    print(f"  the same draws: {bool((ours.draws == theirs.draws).all())}")
    print(f"  stages: {status_of(folder / 'submit').stages}; report: {(folder / 'submit' / 'report.html').is_file()}")


class Noise:
    """Rows of 10 kB that do not compress, for next to no time."""

    prior = simfer.Prior({"a": Uniform(0.0, 1.0)})
    observables = simfer.Variables([simfer.Variable("x", (2500,), "float32")])

    def simulate(self, theta: np.ndarray, rng: np.random.Generator, context: Any = None) -> dict[str, np.ndarray]:
        return {"x": rng.random((len(theta), 2500), dtype=np.float32)}


def scale(rows: int = 10**8, tasks: int = 1000, shards: int = 2000) -> None:
    with tempfile.TemporaryDirectory() as name:
        trivial = partial(simulate, TwoMoons(), shards, Path(name) / "trivial", block=1, shards=shards)
        per_shard = _seconds(trivial) / shards
        store = SimulationStore.open(Path(name) / "trivial")
        files = sum(1 for file in store.path.rglob("*") if file.is_file()) / shards
        look = _seconds(store.pending_shards) / shards
        own = _seconds(lambda: store.pending_shards(range(100))) / 100
        status = _seconds(lambda: progress_of(store)) / shards
        one = Layout.choose(rows, Noise.observables)
        per_row = _seconds(lambda: simulate(Noise(), one.shard, Path(name) / "large", block=one.block)) / one.shard
    print(
        f"measured: {1e3 * per_shard:.1f} ms a shard, {1e6 * per_row:.0f} µs a row of 10 kB, {files:.1f} files a shard"
    )
    print(
        f"a look at what is done: {1e3 * look:.2f} ms a shard of all, {1e3 * own:.2f} of one's own; `status` {1e3 * status:.2f}"
    )
    print(f"{rows:.0e} rows by {tasks} tasks: shards of {one.shard} rows in blocks of {one.block}")
    print(
        f"  {one.shards} shards, {one.shards * files:.0f} files, {rows * 1e4 / 1e12:.1f} TB; a task has {one.shards / tasks:.0f} shards"
    )
    print(f"  a task writes for {rows / tasks * per_row + one.shards / tasks * per_shard:.0f} s besides simulating")
    print(
        f"  before it begins it looks for {own * one.shards / tasks:.2f} s at its own shards; at all it would for {look * one.shards:.0f} s"
    )
    print(
        f"  `submit`, `resume` and the training's job look at all: {look * one.shards:.0f} s; `status` {status * one.shards:.0f} s"
    )


def _seconds(do: Callable[[], object]) -> float:
    started = time.monotonic()
    do()
    return time.monotonic() - started


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
