"""kill -9 at random instants, Ctrl-C, and the same command again: the same bytes, the same losses, the same draws."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import simfer
from simfer.pipelines.api import Run

CONFIG = """\
seed: 11
simulator: two_moons
observation: origin
simulate: {rows: 60_000}
train:
  flow: {kind: maf, transforms: 2, hidden: [32]}
  embedding: {kind: none}
  epochs: 12
  batch_size: 500
diagnose: {pairs: 300, draws: 200}
infer: {draws: 1000}
"""


def start(folder: Path, *extra: str) -> subprocess.Popen[str]:
    (folder / "killed.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "simfer.pipelines.cli", "run", "killed.yaml", "--workdir", "run", *extra]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(folder: Path, *extra: str) -> Run:
    process = start(folder, *extra)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    run = simfer.load(folder / "run")
    assert isinstance(run, Run)
    return run


@pytest.fixture(scope="module", autouse=True)
def _sigint_is_heard() -> Iterator[None]:
    """A shell's background jobs ignore it, and so would what they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finish(tmp_path_factory.mktemp("whole"))


def assert_same(run: Run, reference: Run) -> None:
    assert run.simulations.digest() == reference.simulations.digest()
    assert run.model.facts["loss"] == reference.model.facts["loss"]
    assert torch.equal(run.draws, reference.draws)
    assert run.summary["checks"] == reference.summary["checks"]


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["inline", "processes"])
def test_ten_kills(uninterrupted: Run, tmp_path: Path, executor: str) -> None:
    """Ten in all, five with each executor, each up to four seconds after the run began to work."""
    clock = random.Random(executor)
    options = ("--set", f"local.executor={executor}")
    for _ in range(5):
        process = start(tmp_path, *options)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(clock.uniform(0, 4))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert_same(finish(tmp_path, *options), uninterrupted)


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_loses_nothing(uninterrupted: Run, tmp_path: Path) -> None:
    process = start(tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run/checkpoints/last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert not (tmp_path / "run/model").exists()  # it was interrupted in training, after the first epoch
    assert "interrupted: nothing is lost; the same command continues" in output
    assert "Traceback" not in output
    assert_same(finish(tmp_path), uninterrupted)


@pytest.mark.slow
def test_workers_of_a_killed_run_leave(tmp_path: Path) -> None:
    process = start(tmp_path, "--set", "local.executor=processes", "--set", "simulate.rows=3_000_000")
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(6)
    os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while _members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert _members(process.pid) == []


def _members(group: int) -> list[int]:
    """Live processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found
