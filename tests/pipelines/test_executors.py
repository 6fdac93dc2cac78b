"""One contract for all executors: the same bytes, errors with where they were raised, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import LocalCluster

from simfer.data.errors import ExecutorError, SimulatorError
from simfer.data.records import FAILED, OK
from simfer.data.store import SimulationStore
from simfer.pipelines.executors import Dask, Inline, Processes, dask
from simfer.simulators.campaign import Executor, Reference, simulate, verify
from simfer.simulators.two_moons import TwoMoons

ROWS = 9_500
ALL = ["inline", "processes", "dask", "address"]
WITH_WORKERS = ALL[1:]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A scheduler that runs, with workers of its own."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50) as made:
        yield made


@pytest.fixture
def executor(request: pytest.FixtureRequest) -> Any:
    if request.param == "address":
        return Dask(address=request.getfixturevalue("cluster").scheduler_address)
    made: dict[str, Callable[[], Executor]] = {
        "inline": Inline,
        "processes": lambda: Processes(2),
        "dask": lambda: Dask(2),
    }
    return made[request.param]()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> SimulationStore:
    return simulate(TwoMoons(), ROWS, tmp_path_factory.mktemp("ref") / "s.zarr", seed=7)


@dataclass(frozen=True)
class Noted:
    """Notes when it begins and ends with an item, which takes a while."""

    folder: Path
    seconds: float = 0.2

    def __call__(self, item: int) -> int:
        (self.folder / f"begun-{item}").touch()
        time.sleep(self.seconds)
        (self.folder / f"ended-{item}").touch()
        return item * item

    def noted(self, what: str) -> set[str]:
        return {file.name.removeprefix(what) for file in self.folder.glob(f"{what}*")}


def explodes(item: int) -> int:
    if item == 3:
        raise FloatingPointError("no convergence at 3")
    return item


@dataclass
class Locked(TwoMoons):
    """Cannot be pickled, but it can be named."""

    lock: object = field(default_factory=threading.Lock)


class KillsItsWorker(TwoMoons):
    """Once, at the first call after so many."""

    def __init__(self, marks: str) -> None:
        self.marks = marks

    def simulate(self, theta, rng, context=None):
        mark = Path(self.marks)
        if len(list(mark.glob("call-*"))) == 5 and not (mark / "killed").exists():
            (mark / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (mark / f"call-{time.monotonic_ns()}").touch()
        return super().simulate(theta, rng)


class AlwaysKills(TwoMoons):
    def simulate(self, theta, rng, context=None):
        if (theta[:, 0] > 0.94).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().simulate(theta, rng)


def kills(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


@pytest.mark.slow
@pytest.mark.parametrize("executor", ALL, indirect=True)
def test_the_same_bytes(reference: SimulationStore, tmp_path: Path, executor: Any) -> None:
    done: list[int] = []
    store = simulate(TwoMoons(), ROWS, tmp_path / "s.zarr", seed=7, executor=executor, progress=done.append)
    assert store.digest() == reference.digest()
    assert sum(done) == ROWS
    assert len(done) == 1 + store.layout.shards


@pytest.mark.slow
@pytest.mark.parametrize("executor", WITH_WORKERS, indirect=True)
def test_a_worker_killed_midway_costs_no_row_and_doubles_none(
    reference: SimulationStore, tmp_path: Path, executor: Any
) -> None:
    done: list[int] = []
    marks = tmp_path / "marks"
    marks.mkdir()
    simulator = KillsItsWorker(str(marks))
    store = simulate(simulator, ROWS, tmp_path / "s.zarr", seed=7, executor=executor, progress=done.append)
    assert (marks / "killed").exists()
    assert store.digest() == reference.digest()
    assert sum(done) == ROWS
    assert len(np.unique(store.read()[0], axis=0)) == ROWS
    verify(store)


@pytest.mark.slow
@pytest.mark.parametrize("executor", WITH_WORKERS, indirect=True)
def test_rows_that_kill_workers_again_and_again_end_up_alone(tmp_path: Path, executor: Any) -> None:
    """Each worker may have children, in which such rows are simulated."""
    store = simulate(AlwaysKills(), 400, tmp_path / "s.zarr", seed=3, executor=executor)
    np.testing.assert_array_equal(store.status, np.where(store.read()[0][:, 0] > 0.94, FAILED, OK))


@pytest.mark.slow
@pytest.mark.parametrize("executor", ALL, indirect=True)
def test_what_a_task_raises_comes_back_with_where_it_was_raised(executor: Any) -> None:
    with pytest.raises(FloatingPointError, match="no convergence at 3") as raised:
        list(executor.map(explodes, range(6)))
    assert "in explodes" in "".join(traceback.format_exception(raised.value))


@pytest.mark.slow
@pytest.mark.parametrize("executor", ALL, indirect=True)
def test_results_come_as_they_are_done(tmp_path: Path, executor: Any) -> None:
    task = Noted(tmp_path)
    results = iter(executor.map(task, range(12)))
    first = next(results)
    assert len(task.noted("begun-")) < 12
    assert sorted([first, *results]) == [item * item for item in range(12)]


@pytest.mark.slow
@pytest.mark.parametrize("executor", ALL, indirect=True)
def test_a_closed_iterator_leaves_nothing_running(tmp_path: Path, executor: Any) -> None:
    task = Noted(tmp_path)
    results = iter(executor.map(task, range(40)))
    next(results)
    if hasattr(results, "close"):
        results.close()
    begun = task.noted("begun-")
    assert begun == task.noted("ended-")
    time.sleep(0.5)
    assert task.noted("begun-") == begun
    assert len(begun) < 40


@pytest.mark.slow
@pytest.mark.parametrize("executor", WITH_WORKERS, indirect=True)
def test_what_cannot_be_sent_is_an_error_and_goes_by_name(
    reference: SimulationStore, tmp_path: Path, executor: Any
) -> None:
    with pytest.raises(SimulatorError, match=r"cannot be sent to .*worker.*: .*`local: {executor: inline}`"):
        simulate(Locked(), 100, tmp_path / "object.zarr", executor=executor)
    store = simulate(
        Locked(), ROWS, tmp_path / "named.zarr", seed=7, executor=executor, reference=Reference("two_moons")
    )
    assert store.digest() == reference.digest()


@pytest.mark.slow
@pytest.mark.parametrize("executor", WITH_WORKERS, indirect=True)
def test_no_items_are_no_work(executor: Any) -> None:
    assert list(executor.map(explodes, [])) == []


SCRIPT = """
import signal
import sys
from pathlib import Path
from simfer.pipelines.executors import Dask, Processes
from tests_executors import Noted
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
    (tmp_path / "tests_executors.py").write_text(Path(__file__).read_text())
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
    ours = {**dask._versions(), name: "0.0"}
    monkeypatch.setattr(dask, "_versions", lambda: ours)
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
