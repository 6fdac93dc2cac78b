"""Children that run what may crash: none outlives its parent, leaves anything behind, or takes the parent with it."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from simfer.data.errors import ProgramError
from simfer.data.variables import Variable, Variables
from simfer.simulators.guard import attempt, guarded
from simfer.simulators.prior import Prior
from simfer.simulators.process import run_program
from simfer.simulators.program import Program

PRIOR = Prior({"a": {"dist": "Uniform", "low": 0.0, "high": 1.0}})
X = Variables([Variable("x")])
THETA = np.array([[0.5]])


def gone_within(pid: int, seconds: float) -> bool:
    """Whether a process ends in time; a zombie that nobody reaps has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def die_while_sending(item: int) -> bytes:
    def part(connection: Connection, data: bytes, write: object = None) -> None:
        os.write(connection.fileno(), bytes(data)[:1000])
        os.kill(os.getpid(), signal.SIGKILL)

    if item == 0:
        Connection._send = part  # of the child
    return bytes(50_000)


def test_a_death_in_the_middle_of_a_message_is_a_death() -> None:
    first, second = guarded(die_while_sending, [0, 1], None)
    assert first.crashed
    assert first.reason == "the simulator's process was killed by SIGKILL (out of memory?)"
    assert second.result == bytes(50_000)


@pytest.mark.parametrize("run", [lambda task: attempt(task, 3), lambda task: next(guarded(task, [3], None))])
def test_leaving_python_costs_the_item_alone(run: Callable) -> None:  # type: ignore[type-arg]
    outcome = run(sys.exit)
    assert (outcome.result, outcome.reason, outcome.crashed) == (None, "SystemExit: 3", False)


def test_only_deaths_are_crashes() -> None:
    def task(item: int) -> float:
        return {0: lambda: 1.0, 1: lambda: 1 / 0, 2: lambda: os._exit(7), 3: lambda: time.sleep(60)}[item]()  # type: ignore

    assert [outcome.crashed for outcome in guarded(task, range(4), 2.0)] == [False, False, True, False]


def started(how: str, file: Path) -> None:
    """Start a process that would live for long and write its number."""
    if how == "fork":
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        pid = child.pid
    else:
        pid = subprocess.Popen(["sleep", "60"], process_group=0 if how == "group" else None).pid
    file.write_text(str(pid))


@pytest.mark.parametrize("how", ["exec", "group", "fork"])
@pytest.mark.parametrize("end", ["crash", "time"])
def test_what_a_simulator_started_ends_with_it(how: str, end: str, tmp_path: Path) -> None:
    def task(_: int) -> None:
        started(how, tmp_path / "pid")
        if end == "crash":
            os._exit(7)
        time.sleep(60)

    (outcome,) = guarded(task, [0], 2.0 if end == "time" else None)
    assert outcome.crashed == (end == "crash")
    assert gone_within(int((tmp_path / "pid").read_text()), 5)


ORPHAN = """
import ctypes, os, pathlib, sys
from simfer.simulators.guard import guarded

def stuck(_):
    pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(60)  # in C, with the interpreter's lock

list(guarded(stuck, [0], None))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child that is stuck in C outlives its parent")
def test_a_child_stuck_in_c_dies_with_a_killed_parent(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # who is killed cannot tidy up
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN, str(tmp_path / "pid")], env=environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)
    parent.kill()
    parent.wait()
    assert gone_within(int((tmp_path / "pid").read_text()), 5)


@pytest.mark.parametrize(("script", "reason"), [("echo 1", ""), ("sleep 60", "no result within"), ("exit 3", "code 3")])
@pytest.mark.parametrize("keep", [False, True])
def test_a_child_leaves_only_directories_that_are_to_be_kept(
    script: str, reason: str, keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    program = Program(["sh", "-c", script], prior=PRIOR, observables=X, scratch=str(scratch), keep=keep)

    def task(row: int) -> object:
        return program.simulate(THETA, np.random.default_rng(row))

    outcomes = list(guarded(task, [0, 1], 1.0))
    assert all(reason in outcome.reason for outcome in outcomes)
    kept = 2 if keep and script == "exit 3" else 0
    assert len(list(scratch.iterdir())) == kept
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]
    assert all(str(scratch) in outcome.reason for outcome in outcomes) or not kept


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_programs_and_children_run_where_the_system_cannot_watch_a_process(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int, flags: int = 0) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.pidfd_open", refuse, raising=False)
    assert run_program(["sh", "-c", "echo 1"], folder=tmp_path, stdout_limit=9).stdout == b"1\n"
    assert run_program(["sleep", "60"], folder=tmp_path, timeout=0.1).code is None
    assert [outcome.result for outcome in guarded(abs, [-1, 2], 10.0)] == [1, 2]
    assert next(guarded(os._exit, [7], None)).crashed
    with pytest.raises(ProgramError):
        run_program(["no-such-program"], folder=tmp_path)
