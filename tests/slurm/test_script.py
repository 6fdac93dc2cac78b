"""What the shell around a job does with signals and exit codes: scripts run without Slurm, with a `scontrol` that takes notes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from simfer.pipelines.config import LocalConfig
from simfer.pipelines.slurm.script import Array, script


class Shell:
    """A job's script in a folder, beside what stands in for simfer and for Slurm."""

    def __init__(self, folder: Path, body: str, stage: str = "train", **slurm: Any) -> None:
        self.folder = folder
        for name, text in {"simfer": body, "scontrol": 'echo "$@" >> requeued', "sleep": "exit 0"}.items():
            file = folder / name
            file.write_text(f"#!/bin/bash\n{text}\n")
            file.chmod(0o755)
        local = LocalConfig.model_validate({"slurm": {"command": str(folder / "simfer"), "warning": 20, **slurm}})
        (folder / "job").write_text(script("run", stage, local, Array(2, "x") if stage == "simulate" else None))

    def start(self, **variables: str) -> subprocess.Popen[str]:
        path = f"{self.folder}:{os.environ['PATH']}"
        array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"} if "--array" in self.text else {}
        environment = {**os.environ, "PATH": path, "SLURM_JOB_ID": "7", **array, **variables}
        return subprocess.Popen(["bash", "job"], cwd=self.folder, env=environment, text=True, stdout=subprocess.PIPE)

    @property
    def text(self) -> str:
        return (self.folder / "job").read_text()

    def requeued(self) -> str:
        file = self.folder / "requeued"
        return file.read_text().strip() if file.exists() else ""

    def ends(self, process: subprocess.Popen[str], *signals: signal.Signals) -> int:
        """Send signals half a second apart once simfer runs, and give the exit code."""
        deadline = time.monotonic() + 30
        while not (self.folder / "begun").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for one in signals:
            process.send_signal(one)
            time.sleep(0.5)
        self.said = process.communicate(timeout=30)[0]
        return process.returncode


SAVES = """
trap 'told=1' USR1
trap 'exit 130' TERM
touch begun
while [ -z "$told" ]; do /bin/sleep 0.05; done
/bin/sleep 2.5
touch saved
exit 130
"""


@pytest.mark.parametrize("setup", ["true", "set -e", "set -u", "set -euo pipefail", "mkdir -p x; cd x"])
def test_a_warning_is_passed_on_and_the_job_requeued(tmp_path: Path, setup: str) -> None:
    shell = Shell(tmp_path, SAVES, setup=setup)
    assert shell.ends(shell.start(), signal.SIGUSR1) == 130
    assert (tmp_path / "saved").exists()
    assert shell.requeued() == "requeue 7"


def test_a_task_of_an_array_is_requeued_alone(tmp_path: Path) -> None:
    shell = Shell(tmp_path, SAVES, "simulate")
    shell.ends(shell.start(), signal.SIGUSR1)
    assert shell.requeued() == "requeue 7_1"


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGUSR1, signal.SIGTERM]])
def test_a_job_that_is_cancelled_does_not_come_back(tmp_path: Path, signals: list[signal.Signals]) -> None:
    shell = Shell(tmp_path, SAVES)
    assert shell.ends(shell.start(), *signals) == 130
    assert not shell.requeued()


def test_a_stage_without_parts_is_not_begun_anew_for_ever(tmp_path: Path) -> None:
    shell = Shell(tmp_path, SAVES, "report", restarts=2)
    shell.ends(shell.start(SLURM_RESTART_COUNT="2"), signal.SIGUSR1)
    assert not shell.requeued()
    (tmp_path / "begun").unlink()
    shell.ends(shell.start(SLURM_RESTART_COUNT="1"), signal.SIGUSR1)
    assert shell.requeued() == "requeue 7"


def test_a_process_that_has_said_why_it_ends_outweighs_what_its_others_end_with(tmp_path: Path) -> None:
    shell = Shell(tmp_path, SAVES)
    (tmp_path / "slurm" / "tasks").mkdir(parents=True)
    (tmp_path / "slurm" / "tasks" / "train-7.json").write_text('{\n  "state": "failed"\n}\n')
    assert shell.ends(shell.start(), signal.SIGUSR1) == 130
    assert not shell.requeued()


@pytest.mark.parametrize("restarts", [2, 3])
def test_a_job_that_never_comes_to_its_work_is_not_requeued_for_ever(tmp_path: Path, restarts: int) -> None:
    """The warning ends what has not learned of it yet, such as a process that imports."""
    shell = Shell(tmp_path, "touch begun; exec /bin/sleep 30")
    process = shell.start(SLURM_RESTART_COUNT=str(restarts))
    assert shell.ends(process, signal.SIGUSR1) == 138
    assert bool(shell.requeued()) == (restarts < 3)
    assert ("raise its `time`" in shell.said) == (restarts == 3)


@pytest.mark.parametrize(
    ("restarts", "note", "again"), [(1, "running", True), (3, "running", False), (1, "failed", False)]
)
def test_a_process_that_was_killed_is_started_again_some_times(
    tmp_path: Path, restarts: int, note: str, again: bool
) -> None:
    """Not where it has said why it failed, and `srun` killed the others."""
    shell = Shell(tmp_path, "kill -9 $$")
    (tmp_path / "slurm" / "tasks").mkdir(parents=True)
    (tmp_path / "slurm" / "tasks" / "train-7.json").write_text(f'{{\n  "state": "{note}"\n}}\n')
    process = shell.start(SLURM_RESTART_COUNT=str(restarts))
    process.communicate(timeout=30)
    assert process.returncode == 137
    assert bool(shell.requeued()) == again
