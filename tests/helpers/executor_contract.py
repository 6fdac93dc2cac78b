"""What every executor must do: the same bytes, errors with where they were raised, and nothing left behind.

A test file inherits a class, and gives a fixture ``executor``.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simfer.data.errors import SimulatorError
from simfer.data.records import FAILED, OK
from simfer.data.store import SimulationStore
from simfer.simulators.campaign import Reference, simulate, verify
from simfer.simulators.two_moons import TwoMoons

ROWS = 9_500


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
        if len(list(mark.glob("call-*"))) >= 5 and not (mark / "killed").exists():
            (mark / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (mark / f"call-{time.monotonic_ns()}").touch()
        return super().simulate(theta, rng)


class AlwaysKills(TwoMoons):
    def simulate(self, theta, rng, context=None):
        if (theta[:, 0] > 0.94).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().simulate(theta, rng)


@pytest.mark.slow
class AnyExecutor:
    """Laws of them all."""

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, tmp_path_factory: pytest.TempPathFactory) -> SimulationStore:
        return simulate(TwoMoons(), ROWS, tmp_path_factory.mktemp("ref") / "s.zarr", seed=7)

    def test_the_same_bytes(self, reference: SimulationStore, tmp_path: Path, executor: Any) -> None:
        done: list[int] = []
        store = simulate(TwoMoons(), ROWS, tmp_path / "s.zarr", seed=7, executor=executor, progress=done.append)
        assert store.digest() == reference.digest()
        assert sum(done) == ROWS
        assert len(done) == 1 + store.layout.shards

    def test_what_a_task_raises_comes_back_with_where_it_was_raised(self, executor: Any) -> None:
        with pytest.raises(FloatingPointError, match="no convergence at 3") as raised:
            list(executor.map(explodes, range(6)))
        assert "in explodes" in "".join(traceback.format_exception(raised.value))

    def test_results_come_as_they_are_done(self, tmp_path: Path, executor: Any) -> None:
        task = Noted(tmp_path)
        results = iter(executor.map(task, range(30)))
        first = next(results)
        assert len(task.noted("begun-")) < 30
        assert sorted([first, *results]) == [item * item for item in range(30)]

    def test_a_closed_iterator_leaves_nothing_running(self, tmp_path: Path, executor: Any) -> None:
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


class WithWorkers(AnyExecutor):
    """Laws of those that send tasks to other processes."""

    def test_a_worker_killed_midway_costs_no_row_and_doubles_none(
        self, reference: SimulationStore, tmp_path: Path, executor: Any
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

    def test_rows_that_kill_workers_again_and_again_end_up_alone(self, tmp_path: Path, executor: Any) -> None:
        """Each worker may have children, in which such rows are simulated."""
        store = simulate(AlwaysKills(), 400, tmp_path / "s.zarr", seed=3, executor=executor)
        np.testing.assert_array_equal(store.status, np.where(store.read()[0][:, 0] > 0.94, FAILED, OK))

    def test_what_cannot_be_sent_is_an_error_and_goes_by_name(
        self, reference: SimulationStore, tmp_path: Path, executor: Any
    ) -> None:
        with pytest.raises(SimulatorError, match=r"cannot be sent to .*worker.*: .*`local: {executor: inline}`"):
            simulate(Locked(), 100, tmp_path / "object.zarr", executor=executor)
        store = simulate(
            Locked(), ROWS, tmp_path / "named.zarr", seed=7, executor=executor, reference=Reference("two_moons")
        )
        assert store.digest() == reference.digest()

    def test_no_items_are_no_work(self, executor: Any) -> None:
        assert list(executor.map(explodes, [])) == []
