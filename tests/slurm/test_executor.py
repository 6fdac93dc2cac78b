"""An array of Slurm jobs as an executor: the contract of all, and what becomes of jobs that others end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from executor_contract import Noted, WithWorkers, explodes  # type: ignore[import-not-found]  # of tests/helpers

import simfer
from simfer.data.errors import ExecutorError
from simfer.data.registry import load_file
from simfer.data.store import SimulationStore
from simfer.pipelines.executors import Slurm
from simfer.pipelines.slurm.settings import SlurmConfig
from simfer.simulators.campaign import Executor, simulate

pytestmark = pytest.mark.slow


def array(folder: Path, **simulate: Any) -> Slurm:
    """Of two tasks, looked after often."""
    settings = SlurmConfig.model_validate({"simulate": {"array": 2, **simulate}, "warning": 20})
    return Slurm(settings, folder, interval=2.0)


@pytest.fixture
def executor(cluster: Any, tmp_path: Path) -> Executor:
    return array(tmp_path / "jobs")


class TestSlurm(WithWorkers):
    """The contract."""

    @pytest.fixture(autouse=True)
    def _cleared_away(self, cluster: Any, tmp_path: Path) -> Any:
        yield
        assert not list((tmp_path / "jobs").glob(".slurm-map-*"))


def test_a_task_has_processes_for_its_cpus(cluster: Any, tmp_path: Path) -> None:
    found = array(tmp_path, array=1, cpus=2).map(Noted(tmp_path, 0.05), range(10))
    assert sorted(found) == [item * item for item in range(10)]


class Started(Noted):
    """Notes by which start of its job an item is done."""

    def __call__(self, item: int) -> int:
        (self.folder / f"start-{os.environ.get('SLURM_RESTART_COUNT', '0')}-{item}").touch()
        return super().__call__(item)


def test_a_time_limit_is_no_end(cluster: Any, tmp_path: Path) -> None:
    """The warning comes by hand: what is done stays done, and the task is requeued for the rest."""
    task = Started(tmp_path, 1.0)
    results = iter(array(tmp_path / "jobs", array=1).map(task, range(6)))
    first = next(results)
    cluster.ask("scancel", "--batch", "--signal=USR1", "--name=map-simulate")
    assert sorted([first, *results]) == [item * item for item in range(6)]
    first_start, second_start = (task.noted(f"start-{n}-") for n in range(2))
    assert first_start
    assert second_start
    assert not first_start & second_start


def test_a_job_that_is_cancelled_is_not_submitted_again(cluster: Any, tmp_path: Path) -> None:
    results = iter(array(tmp_path / "jobs").map(Noted(tmp_path, 1.0), range(40)))
    next(results)
    cluster.ask("scancel", "--name=map-simulate")
    with pytest.raises(ExecutorError, match=r"has ended \(CANCELLED.*left \d+ of its items undone; see .*\.out"):
        list(results)
    begun = Noted(tmp_path).noted("begun-")
    assert 0 < len(begun) < 40


def dies(item: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_a_task_that_dies_again_and_again_is_given_up(cluster: Any, tmp_path: Path) -> None:
    settings = SlurmConfig.model_validate({"simulate": {"array": 1}, "restarts": 1})
    with pytest.raises(ExecutorError, match=r"has ended \(FAILED .*left 3 of its items undone; see .*\.out"):
        list(Slurm(settings, tmp_path, interval=2.0).map(dies, range(3)))


def test_other_versions_are_refused(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simfer.pipelines.executors.slurm.versions", lambda: {"simfer": "0.0"})
    with pytest.raises(ExecutorError, match=r"the node .* has simfer .*, not 0\.0: .*install them there"):
        list(array(tmp_path).map(explodes, range(3)))


def test_a_run_simulates_by_an_array(cluster: Any, tmp_path: Path) -> None:
    config = {
        "simulator": "two_moons",
        "simulate": {"rows": 3000},
        "train": {"epochs": 1, "flow": {"kind": "maf", "transforms": 1, "hidden": [8]}, "embedding": {"kind": "none"}},
        "diagnose": {"checks": []},
        "local": {"executor": "slurm", "slurm": {"simulate": {"array": 2}}},
    }
    ours = simfer.run(config, workdir=tmp_path / "ours", quiet=True)
    theirs = simfer.run({**config, "local": {}}, workdir=tmp_path / "theirs", quiet=True)
    assert ours.simulations.digest() == theirs.simulations.digest()
    assert not list((tmp_path / "ours").glob(".slurm-map-*"))


def test_a_run_that_is_killed_while_it_waits_goes_on(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its array was at ends, or is at it still beside the next one: both write the same bytes."""
    monkeypatch.setenv("SIMFER_TEST_SIMULATE", "0.3")
    config = tmp_path / "waits.yaml"
    config.write_text(
        f"simulator: {Path(__file__).parent / 'own.py'}:Line\nsimulate: {{rows: 640, shards: 32}}\n"
        "train: {epochs: 1, flow: {kind: maf, transforms: 1, hidden: [8]}, embedding: {kind: none}}\n"
        "diagnose: {checks: []}\nlocal: {executor: slurm, slurm: {simulate: {array: 2}}}\n"
    )
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "simfer.pipelines.cli",
        "run",
        str(config),
        "--to",
        "simulate",
        "--workdir",
        str(run),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        cluster.wait(lambda: list(run.glob(".slurm-map-*/results/*.pkl")), 120.0)
    finally:
        process.kill()
        process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    monkeypatch.setenv("SIMFER_TEST_SIMULATE", "0")
    whole = simulate(load_file(Path(__file__).parent / "own.py").Line(), 640, tmp_path / "whole", shards=32)
    found = SimulationStore.open(run / "simulations.zarr")
    assert found.counts()["ok"] == 640
    for name in ("theta", "x", "status"):
        assert (found.read_array(name) == whole.read_array(name)).all()
    assert not list(run.glob(".slurm-map-*"))
