"""`simfer submit` on a real cluster: a recipe to its report, what is refused before anything is queued, what is asked how often."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import simfer
from simfer.data.errors import ConfigError, SchedulerError
from simfer.pipelines.api import Run
from simfer.pipelines.slurm import checks
from simfer.pipelines.slurm.ledger import Ledger
from simfer.pipelines.slurm.scheduler import Scheduler
from simfer.pipelines.slurm.status import status_of
from simfer.pipelines.slurm.submit import cancel
from simfer.pipelines.tables import watch_status

pytestmark = pytest.mark.slow
TINY: dict[str, Any] = {"name": "tiny", "simulator": "two_moons", "simulate": {"rows": 640}}
SMALL = (
    ("simulate.rows", 3000),
    ("train.epochs", 2),
    ("diagnose.pairs", 300),
    ("diagnose.draws", 50),
    ("infer.draws", 500),
    ("infer.predictive", 100),
)


def slurm(**settings: Any) -> dict[str, Any]:
    return {**TINY, "local": {"slurm": settings}}


def run_simfer(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simfer.pipelines.cli", *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_influenza_to_its_report(cluster: Any, tmp_path: Path) -> None:
    """A shipped recipe by the command line, on two CPUs a task; the numbers are those of a local run."""
    settings = [*SMALL, ("local.slurm.simulate.array", 2), ("local.slurm.simulate.cpus", 2)]
    sets = [part for key, value in settings for part in ("--set", f"{key}={value}")]
    submitted = run_simfer("submit", "influenza_1978", "--workdir", "run", *sets, folder=tmp_path)
    assert submitted.returncode == 0, submitted.stderr
    cluster.finish(tmp_path / "run")
    status = run_simfer("status", "run", folder=tmp_path)
    assert status.stdout.count("done") == 5, status.stdout
    ours = simfer.load(tmp_path / "run")
    assert isinstance(ours, Run)
    theirs = simfer.run("influenza_1978", workdir=tmp_path / "local", overrides=dict(SMALL), quiet=True)
    assert ours.simulations.digest() == theirs.simulations.digest()
    assert ours.model.facts["loss"] == theirs.model.facts["loss"]
    assert (ours.draws == theirs.draws).all()
    assert ours.report.is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"partition": "mian"}, r"`local.slurm.partition`: unknown partition `mian`; did you mean `main`\?"),
        (
            {"simulate": {"array": 2000}},
            r"`local.slurm.simulate.array` must be at most 1001, the cluster's MaxArraySize",
        ),
    ],
)
def test_what_can_be_known_is_refused_before_anything_is_made(
    cluster: Any, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        cluster.submit(slurm(**settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not cluster.ask("squeue", "-h")


@pytest.mark.parametrize(
    "settings", [{"train": {"gpus": 1}}, {"report": {"constraint": "nowhere"}}, {"infer": {"memory": "99T"}}]
)
def test_what_the_scheduler_refuses_leaves_nothing_queued(
    cluster: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    with pytest.raises(
        SchedulerError, match=r"the scheduler would refuse .*\(partitions: main, short\); nothing is submitted"
    ):
        cluster.submit(slurm(**settings), tmp_path / "run")
    assert not cluster.ask("squeue", "-h")
    assert not Ledger.there(tmp_path / "run")


def test_a_folder_in_memory_is_refused_where_there_are_other_machines(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "file_system", lambda path: "tmpfs")
    monkeypatch.setattr(Scheduler, "hosts", lambda self: ["node17"])
    with pytest.raises(ConfigError, match=r"is on tmpfs, in the memory of this machine, and jobs run on node17"):
        cluster.submit(TINY, tmp_path / "run")


def test_a_plan_shows_jobs_and_objections(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "simulator: two_moons\nlocal: {slurm: {partition: nope, time: '1:00:00', simulate: {array: 7}}}\n"
    )
    done = run_simfer("plan", "c.yaml", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "7, all at a time" in done.stdout
    assert "unknown partition `nope`" in done.stdout
    assert "Known: main, short" in done.stdout


def test_watching_asks_once_an_interval(cluster: Any, tmp_path: Path) -> None:
    run = cluster.submit(slurm(extra=["--hold"], simulate={"array": 2}), tmp_path / "run")
    scheduler = Scheduler()
    found = status_of(run, scheduler)
    assert scheduler.queries == 1
    assert [task.state for task in found.tasks] == ["pending"] * 6
    looks: list[float] = []

    def look(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt

    watch_status(run, 20.0, scheduler, look)
    assert looks == [20.0] * 3
    assert scheduler.queries == 1 + 3
    cancel(run, cluster.quiet)
    cluster.wait(lambda: status_of(run).over)


def test_accounting_is_asked_for_what_the_controller_forgot(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script in the place of `sacct`, because this cluster has no database."""
    run = cluster.submit(slurm(extra=["--hold"], simulate={"array": 2}), tmp_path / "run")
    cancel(run, cluster.quiet)
    job = Ledger.read(run).of("simulate")[0].job
    monkeypatch.setattr(Scheduler, "queue", lambda self, jobs: {})
    assert status_of(run).tasks[0].why.startswith("the scheduler has forgotten it, and it never started")
    sacct = tmp_path / "bin/sacct"
    sacct.parent.mkdir()
    sacct.write_text(
        f"#!/bin/sh\necho '{job}_0|OUT_OF_MEMORY|n1|0:125|00:01'\necho '{job}_1|CANCELLED by 0|n2|0:0|00:01'\n"
    )
    sacct.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sacct.parent}:{os.environ['PATH']}")
    first, second = status_of(run).tasks[:2]
    assert (first.state, first.node) == ("failed", "n1")
    assert first.why.startswith("OUT_OF_MEMORY: it needed more memory than it had")
    assert second.why.startswith("CANCELLED")


def test_training_shares_batches_between_nodes(cluster: Any, tmp_path: Path) -> None:
    """Two tasks of one `srun`, on two nodes: the losses of one process but for rounding."""
    config = {
        **slurm(simulate={"array": 1}, train={"nodes": 2}),
        "train": {"epochs": 3, "flow": {"transforms": 1, "hidden": [16]}},
        "diagnose": {"checks": []},
    }
    folder = cluster.submit(config, tmp_path / "run")
    cluster.finish(folder)
    text = (folder / "slurm" / "train.sbatch").read_text()
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=1"} <= set(text.splitlines())
    ours = simfer.load(folder)
    assert isinstance(ours, Run)
    theirs = simfer.run({**config, "local": {}}, workdir=tmp_path / "local", quiet=True)
    for part in ("train", "validation"):
        assert ours.model.facts["loss"][part] == pytest.approx(theirs.model.facts["loss"][part], rel=1e-4)
    assert not list((folder / ".stages").glob("tasks-*"))
