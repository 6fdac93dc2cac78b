"""Tasks that srun starts with one command: the first holds the run folder, the others take part in its training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from simfer.pipelines.tasks import Task

CONFIG = """\
seed: 11
simulator: two_moons
observation: origin
simulate: {rows: 3_000}
train:
  flow: {kind: maf, transforms: 1, hidden: [16]}
  embedding: {kind: none}
  epochs: 2
  batch_size: 101
diagnose: {pairs: 100, draws: 100, checks: [sbc]}
infer: {draws: 500}
local: {accelerator: cpu}
"""


def start(folder: Path, workdir: str, *extra: str, **slurm: str) -> subprocess.Popen[str]:
    (folder / "shared.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "simfer.pipelines.cli", "run", "shared.yaml", "--workdir", workdir, *extra]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **slurm}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output


def losses(folder: Path) -> list[float]:
    lines = (folder / "logs" / "metrics.csv").read_text().splitlines()[1:]
    return [float(number) for line in lines for number in line.split(",")]


def steps(rank: int, **more: str) -> dict[str, str]:
    names = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    return {**names, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), **more}


def test_a_task_is_one_of_several_that_srun_started() -> None:
    assert Task.here({}) is None
    assert Task.here({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}) is None  # a batch script, not a step
    assert Task.here({**steps(0), "SLURM_STEP_NUM_TASKS": "1"}) is None
    assert Task.here(steps(1)) == Task(1, 2, 1, "7-0-0")


@pytest.mark.slow
def test_tasks_and_devices_train_as_one_process_does(tmp_path: Path) -> None:
    finish(start(tmp_path, "one"))
    assert "up to date" not in finish(start(tmp_path, "devices", "--set", "local.devices=2"))
    tasks = [start(tmp_path, "tasks", "--set", "local.devices=2", **steps(rank)) for rank in range(2)]
    first, second = (finish(task) for task in tasks)
    assert "train: running" in first
    assert second == ""
    for name in ("devices", "tasks"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
        assert (tmp_path / name / "report.html").is_file()
        assert not list((tmp_path / name / ".stages").glob("tasks-*"))
    again = finish(start(tmp_path, "devices"))  # another number of devices changes nothing
    assert again.count("up to date") == 5
    assert "running" not in again


@pytest.mark.slow
def test_another_number_of_tasks_than_devices_is_an_error(tmp_path: Path) -> None:
    process = start(tmp_path, "run", **steps(0))
    output = process.communicate(timeout=100)[0]
    assert process.returncode == 2
    assert "`local.devices` times `local.nodes` must be the number of tasks that `srun` started, 2; got 1" in output
    process = start(tmp_path, "run", "--set", "local.nodes=2")
    output = process.communicate(timeout=100)[0]
    assert process.returncode == 2
    assert "`local.nodes: 2` needs `srun` with a task for every device, `srun --nodes=2 --ntasks=2 simfer …`" in output
