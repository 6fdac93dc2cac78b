"""A campaign through faults, and a chain through its time limits, both at once: complete, no row lost or doubled, same bytes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import simfer
from simfer.data.store import SimulationStore
from simfer.pipelines.api import Run
from simfer.pipelines.progress import Reporter
from simfer.pipelines.slurm.ledger import Ledger, shards_of
from simfer.pipelines.slurm.notes import Note, read_note
from simfer.pipelines.slurm.status import status_of
from simfer.pipelines.slurm.submit import cancel, resume

QUIET = Reporter(None)
OWN = Path(__file__).parent / "own.py"
pytestmark = pytest.mark.slow

CAMPAIGN: dict[str, Any] = {
    "name": "campaign",
    "seed": 5,
    "simulator": f"{OWN}:Line",
    "observation": {"values": {"x": [0.3, -0.2]}},
    "simulate": {"rows": 1280, "shards": 64},
    "train": {
        "flow": {"kind": "maf", "transforms": 1, "hidden": [8]},
        "embedding": {"kind": "none"},
        "epochs": 2,
        "batch_size": 100,
    },
    "diagnose": {"checks": ["sbc"], "pairs": 100, "draws": 50},
    "infer": {"draws": 200, "predictive": 100},
    "local": {"slurm": {"extra": ["--exclude=n3"], "simulate": {"array": 4}}},
}
LIMITS: dict[str, Any] = {
    **CAMPAIGN,
    "name": "limits",
    "simulate": {"rows": 2640},
    "train": {**CAMPAIGN["train"], "embedding": {"kind": f"{OWN}:Net"}, "epochs": 8},
    "diagnose": {"checks": ["sbc"], "pairs": 2000, "draws": 50},
    "local": {
        "devices": 2,
        "slurm": {
            "extra": ["--nodelist=n3"],
            "warning": 45,
            "train": {"time": 4},
            "diagnose": {"time": 3},
            "simulate": {"array": 1},
        },
    },
}


@pytest.fixture(scope="module")
def limits(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Begins with the file, and goes on beside the other tests: its training and its checks take longer than their time.

    They sleep nearly all of it: where imports are slow there is less left of it, and others need the processors.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMFER_TEST_TRAIN", "5.5")
        patch.setenv("SIMFER_TEST_CHECK", "9.5")
        return cluster.submit(LIMITS, tmp_path_factory.mktemp("limits") / "run")


@pytest.fixture(autouse=True)
def _begun(limits: Path) -> None:
    """So that it is done when its test comes, the last one."""


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMFER_TEST_SIMULATE", "1.0")


def assert_same(folder: Path, config: dict[str, Any], local: Path) -> None:
    """The same as one process on this machine makes."""
    ours, theirs = simfer.load(folder), simfer.run(config, workdir=local, quiet=True)
    assert isinstance(ours, Run)
    assert ours.simulations.digest() == theirs.simulations.digest()
    assert ours.simulations.counts() == theirs.simulations.counts()
    assert ours.model.facts["loss"] == theirs.model.facts["loss"]
    assert ours.summary["checks"] == theirs.summary["checks"]
    assert (ours.draws == theirs.draws).all()


def note_of(folder: Path, task: int) -> Note | None:
    return read_note(folder, "simulate", (Ledger.read(folder).of("simulate")[0].job, task))


def test_a_campaign_through_faults(cluster: Any, slow: None, tmp_path: Path) -> None:
    run = cluster.submit(CAMPAIGN, tmp_path / "run")
    job = Ledger.read(run).of("simulate")[0].job
    cluster.wait(lambda: (note := note_of(run, 0)) and note.done)
    for worker in cluster.workers(job, 0):
        cluster.kill(worker)
    cluster.wait(lambda: (note := note_of(run, 1)) and note.done)
    cluster.ask("scancel", f"{job}_1")
    cluster.stop_controller()
    cluster.start_controller()
    on_second = [t for t in range(2, 4) if (note := note_of(run, t)) and (note.node, note.state) == ("n2", "running")]
    assert on_second
    cluster.kill_node("n2")
    cluster.wait(lambda: "down" in cluster.ask("sinfo", "-h", "-N", "-n", "n2", "-o", "%t"))
    cluster.start_node("n2")
    found = cluster.finish(run)
    assert {task.key[1] for task in found.tasks if task.stage == "simulate" and task.state == "failed"} == {1}
    assert found.stages["train"] == "failed"  # it waited for the task that was cancelled
    assert "CANCELLED" in next(task.why for task in found.tasks if task.key == (job, 1))
    missing = SimulationStore.open(run / "simulations.zarr").pending_shards()
    resume(run, QUIET)
    assert [shard for task in shards_of(run, "slurm/shards-2.json") for shard in task] == missing
    found = cluster.finish(run)
    assert not [(task.name, task.why) for task in found.tasks]
    assert "requeueing" in (run / f"logs/slurm/campaign-simulate_{job}_0.out").read_text()
    assert_same(run, CAMPAIGN, tmp_path / "local")
    moved = shutil.move(run, tmp_path / "elsewhere")
    assert simfer.load(moved).posterior.sample((10,)).shape == (10, 2)


def test_a_shard_that_fails_is_named_and_alone_is_run_again(
    cluster: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = {
        **CAMPAIGN,
        "name": "picky",
        "simulator": f"{OWN}:Picky",
        "simulate": {"rows": 320, "block": 20},
        "local": {"slurm": {"extra": ["--exclude=n3"], "simulate": {"array": 4}}},
    }
    theta = simfer.run(config, workdir=tmp_path / "local", quiet=True).simulations.read_array("theta")
    broken = tmp_path / "broken"
    broken.touch()
    monkeypatch.setenv("SIMFER_TEST_FIRST", repr(float(theta[5 * 20, 0])))
    monkeypatch.setenv("SIMFER_TEST_BROKEN", str(broken))
    run = cluster.submit(config, tmp_path / "run")
    found = cluster.finish(run)
    (failed,) = [task for task in found.tasks if task.stage == "simulate" and task.state == "failed"]
    assert "shard 5: the table of this block is missing" in failed.why
    assert "shard 5" in (run / failed.log).read_text()
    assert {task.stage for task in found.tasks if task.state == "failed"} == {
        "simulate",
        "train",
        "diagnose",
        "infer",
        "report",
    }
    before = SimulationStore.open(run / "simulations.zarr").finished_at()
    broken.unlink()
    resume(run, QUIET)
    tasks = shards_of(run, Ledger.read(run).of("simulate")[-1].shards)
    assert tasks == [[shard] for shard in range(16) if shard not in before]
    assert [5] in tasks
    found = cluster.finish(run)
    assert not [(task.name, task.why) for task in found.tasks]
    after = SimulationStore.open(run / "simulations.zarr").finished_at()
    assert {shard: after[shard] for shard in before} == before
    assert_same(run, config, tmp_path / "local")


def test_cancelled_and_taken_up_again(cluster: Any, slow: None, tmp_path: Path) -> None:
    config = {
        **CAMPAIGN,
        "name": "cancelled",
        "local": {"slurm": {"extra": ["--exclude=n3"], "simulate": {"array": 2}}},
    }
    run = cluster.submit(config, tmp_path / "run")
    cluster.wait(lambda: (note := note_of(run, 0)) and note.done)
    assert not resume(run, QUIET)  # all is in the queue
    cancel(run, QUIET)
    cluster.wait(lambda: status_of(run).over)
    assert set(status_of(run).stages.values()) == {"failed"}
    done = set(SimulationStore.open(run / "simulations.zarr").finished_at())
    assert len(resume(run, QUIET)) == 5
    again = {shard for task in shards_of(run, "slurm/shards-2.json") for shard in task}
    assert again == set(range(64)) - done
    cancel(run, QUIET)


@pytest.mark.timeout(1500)
def test_time_limits_of_training_and_of_checks(cluster: Any, limits: Path, tmp_path: Path) -> None:
    found = cluster.finish(limits, 1200.0)
    assert not [(task.name, task.why) for task in found.tasks]
    for submission in Ledger.read(limits).submissions:
        log = (
            (limits / f"logs/slurm/limits-{submission.stage}_{submission.job}.out")
            if submission.tasks is None
            else None
        )
        if log and submission.stage in ("train", "diagnose"):
            assert "its time was up" in log.read_text()
            assert "start 2" in log.read_text()
    assert_same(limits, LIMITS, tmp_path / "local")
