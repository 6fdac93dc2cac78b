"""What is said and refused by the state of a run's jobs, with a queue that is made up."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import simfer.pipelines.slurm.submit as submitting
from simfer.data.errors import RunFolderError, StoreError
from simfer.data.store import SimulationStore
from simfer.pipelines.folder import RunFolder
from simfer.pipelines.job import make_job
from simfer.pipelines.progress import Reporter
from simfer.pipelines.slurm.ledger import Ledger
from simfer.pipelines.slurm.notes import Notes
from simfer.pipelines.slurm.scheduler import QueueEntry, Scheduler
from simfer.pipelines.slurm.status import status_of
from simfer.pipelines.slurm.submit import submit
from simfer.pipelines.yaml_file import read_source
from simfer.simulators.campaign import FillShard
from simfer.simulators.two_moons import TwoMoons

QUIET = Reporter(None)
TINY: dict[str, Any] = {"name": "tiny", "simulator": "two_moons", "simulate": {"rows": 640, "shards": 64}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """One whose files are written, with an array of two tasks and a training in its ledger."""
    folder = tmp_path / "run"
    submit(make_job(read_source(TINY)), RunFolder(folder), QUIET, dry=True)
    ledger = Ledger(folder, "1")
    ledger.add("simulate", "7", 2, ledger.new_shards([list(range(32)), list(range(32, 64))]))
    ledger.add("train", "8")
    return folder


def queued(monkeypatch: pytest.MonkeyPatch, entries: dict[Any, QueueEntry]) -> None:
    monkeypatch.setattr(Scheduler, "there", staticmethod(lambda: True))
    monkeypatch.setattr(Scheduler, "queue", lambda self, jobs: entries)
    monkeypatch.setattr(Scheduler, "accounts", lambda self, jobs: {})
    monkeypatch.setattr(submitting, "problems_of", lambda *arguments: [])


def test_another_configuration_does_not_take_the_place_of_one_that_tasks_fill(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued(
        monkeypatch,
        {("7", 0): QueueEntry("RUNNING"), ("7", 1): QueueEntry("PENDING"), ("8", None): QueueEntry("PENDING")},
    )
    with pytest.raises(RunFolderError, match=r"job 7 still simulates for another configuration .*seed.*`simfer cancel"):
        submit(make_job(read_source({**TINY, "seed": 5})), RunFolder(run), QUIET)


def test_a_task_does_not_fill_a_store_that_has_become_another_campaigns(run: Path, tmp_path: Path) -> None:
    store = SimulationStore.open(run / "simulations.zarr")

    class Replaced(TwoMoons):
        def simulate(self, theta, rng, context=None):
            store.path.rename(tmp_path / "aside")
            submit(make_job(read_source({**TINY, "seed": 5})), RunFolder(run), QUIET, dry=True)
            return super().simulate(theta, rng)

    fill = FillShard(store.path, Replaced(), TwoMoons().prior, 0, campaign=store.attributes["campaign_hash"])
    with pytest.raises(StoreError, match="is another campaign's by now"):
        fill(0)
    assert SimulationStore.open(store.path).counts()["pending"] == 640


def noted(run: Path, stage: str, monkeypatch: pytest.MonkeyPatch, task: int | None = None, **more: Any) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7" if stage == "simulate" else "8")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    if task is None:
        monkeypatch.delenv("SLURM_ARRAY_JOB_ID")
    else:
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
    Notes(run, stage).update(**more)


def test_a_task_that_failed_on_a_row_it_has_written_is_not_done(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `on_invalid: fail` the shard is there when the task fails."""
    fill = FillShard(
        run / "simulations.zarr",
        TwoMoons(),
        TwoMoons().prior,
        0,
        campaign=SimulationStore.open(run / "simulations.zarr").attributes["campaign_hash"],
    )
    for shard in range(32):
        fill(shard)
    queued(monkeypatch, {("7", 0): QueueEntry("FAILED", "n1", "NonZeroExitCode"), ("7", 1): QueueEntry("RUNNING")})
    noted(run, "simulate", monkeypatch, 0, state="failed", error="shard 3, row 35: not finite (`on_invalid: fail`)")
    first = status_of(run).tasks[0]
    assert (first.state, first.why) == ("failed", "shard 3, row 35: not finite (`on_invalid: fail`)")


@pytest.mark.parametrize(
    ("log", "why"),
    [
        (
            "simfer: train on n1, job 8\nbash: line 9: simfer: command not found\nsimfer: train ended with 127\n",
            "not found",
        ),
        ("ModuleNotFoundError: No module named 'simfer'\nsimfer: train ended with 1\n", "No module named 'simfer'"),
        ("simfer: train on n1, job 8\nsimfer: train ended with 3\n", "train ended with 3"),
    ],
)
def test_the_last_word_of_a_log_is_not_the_scripts_own(
    run: Path, monkeypatch: pytest.MonkeyPatch, log: str, why: str
) -> None:
    queued(monkeypatch, {("8", None): QueueEntry("FAILED", "n1", "NonZeroExitCode")})
    (run / "logs/slurm/tiny-train_8.out").write_text(log)
    assert why in next(task.why for task in status_of(run).tasks if task.stage == "train")


def test_imported_simulations_have_a_status_before_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    (folder / "slurm").mkdir(parents=True)
    (folder / "config.yaml").write_text("name: old\n")
    ledger = Ledger(folder, "1")
    ledger.add("simulate", "7")
    queued(monkeypatch, {("7", None): QueueEntry("RUNNING", "n1")})
    assert [(task.stage, task.state) for task in status_of(folder).tasks] == [("simulate", "running")]


def test_a_folder_that_is_shared_is_left_to_its_owner(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups are given to what is one's own; and what is made is open to the group."""
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr(os, "chown", lambda *arguments: pytest.fail("another's folder"))
    config = {**TINY, "local": {"slurm": {"group": "root", "umask": "0007"}}}
    before = os.umask(0o022)
    try:
        submit(make_job(read_source(config)), RunFolder(run.parent / "shared"), QUIET, dry=True)
    finally:
        os.umask(before)
    assert (run.parent / "shared/.stages/lock").stat().st_mode & 0o777 == 0o660
