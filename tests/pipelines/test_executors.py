"""Executors of this machine and of Dask, and what else is to be said of them than their contract."""

from __future__ import annotations

import inspect
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster
from executor_contract import (  # type: ignore[import-not-found]  # of tests/helpers
    AnyExecutor,
    Noted,
    WithWorkers,
    explodes,
)

from simfer.data.errors import ExecutorError
from simfer.pipelines.executors import Dask, Inline, Processes, dask, sending
from simfer.simulators.campaign import Executor


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A scheduler that runs, with workers of its own."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50) as made:
        yield made


class TestInline(AnyExecutor):
    @pytest.fixture
    def executor(self) -> Executor:
        return Inline()


@pytest.mark.parametrize("executor", ["processes", "dask", "address"], indirect=True)
class TestWorkers(WithWorkers):
    @pytest.fixture
    def executor(self, request: pytest.FixtureRequest) -> Executor:
        made: dict[str, Callable[[], Executor]] = {
            "processes": lambda: Processes(2),
            "dask": lambda: Dask(2),
            "address": lambda: Dask(address=request.getfixturevalue("cluster").scheduler_address),
        }
        return made[request.param]()


def kills(item: int) -> int:
    """Not at once: Dask starts no other in the place of a worker that dies before its nanny knows it."""
    if item == 3:
        time.sleep(3.0)
        os.kill(os.getpid(), signal.SIGKILL)
    return item


SCRIPT = """
import signal
import sys
from pathlib import Path
from simfer.pipelines.executors import Dask, Processes
from executor_contract import Noted
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    made = {"processes": Processes(2), "dask": Dask(2)}[sys.argv[1]]
    try:
        for _ in made.map(Noted(Path(sys.argv[2])), range(400)):
            print("one", flush=True)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["processes", "dask"])
def test_ctrl_c_in_a_terminal_leaves_nothing_running(tmp_path: Path, kind: str) -> None:
    """There the signal goes to the workers as well."""
    shutil.copy(inspect.getfile(Noted), tmp_path)
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "notes").mkdir()
    process = subprocess.Popen(
        [sys.executable, "script.py", kind, "notes"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130, errors
    if kind == "dask":  # on a busy machine dask's own loops may be cut off in what they do
        assert "simfer" not in errors.partition("Traceback")[2], errors
    else:
        assert "Traceback" not in errors
    task = Noted(tmp_path / "notes")
    begun = task.noted("begun-")
    assert begun == task.noted("ended-")
    assert len(begun) < 400
    deadline = time.monotonic() + 10
    while _lives(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _lives(process.pid)


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_a_task_that_kills_every_dask_worker_is_named() -> None:
    with pytest.raises(ExecutorError, match=r"shard 3: the 4 workers that tried it died .*isolate: true"):
        list(Dask(2).map(kills, range(6)))


def test_a_scheduler_that_does_not_answer_is_told_in_time() -> None:
    started = time.monotonic()
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        with pytest.raises(
            ExecutorError, match=rf"no scheduler answers at `local.address` {address}.*`dask scheduler`"
        ):
            list(Dask(address=address, seconds=1.0).map(explodes, range(3)))
    assert time.monotonic() - started < 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simfer", "python", "numpy"])
def test_workers_of_other_versions_are_refused_before_anything_runs(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ours = {**sending.versions(), name: "0.0"}
    monkeypatch.setattr(dask, "versions", lambda: ours)
    task = Noted(tmp_path)
    with pytest.raises(ExecutorError, match=rf"the worker tcp:.* has {name} .*, not 0\.0: .*install them there"):
        list(Dask(address=cluster.scheduler_address).map(task, range(3)))
    assert not task.noted("begun-")


@pytest.mark.slow
def test_workers_with_several_threads_are_refused(tmp_path: Path) -> None:
    task = Noted(tmp_path)
    with (
        LocalCluster(n_workers=1, threads_per_worker=3, dashboard_address="127.0.0.1:0", silence_logs=50) as made,
        pytest.raises(
            ExecutorError, match=r"has 3 threads and must have one: start `dask worker --nworkers 3 --nthreads 1`"
        ),
    ):
        list(Dask(address=made.scheduler_address).map(task, range(3)))
    assert not task.noted("begun-")
