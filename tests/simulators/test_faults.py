"""Simulators that raise, hang, crash, exhaust memory, ignore their seed: what is lost is the row, and it is said why."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

import simfer
from simfer.data.errors import ContractError, CorruptStoreError, SimulatorError, StoreError
from simfer.data.records import FAILED, INVALID, OK, TIMEOUT
from simfer.data.store import SimulationStore
from simfer.data.variables import Variable, Variables
from simfer.estimators.settings import TrainingSettings
from simfer.pipelines.executors import Inline, Processes
from simfer.simulators.block import Protection
from simfer.simulators.campaign import Executor, retry, simulate, verify
from simfer.simulators.gaussian_linear import GaussianLinear
from simfer.simulators.prior import Prior
from simfer.simulators.trail import filling
from simfer.simulators.two_moons import TwoMoons


class Faulty(TwoMoons):
    """Does something bad to a call that holds t1 > 0.94: about 3 % of rows."""

    fault = "raise"

    def simulate(self, theta, rng, context=None):
        if (theta[:, 0] > 0.94).any():
            self.act()
        return super().simulate(theta, rng)

    def act(self) -> None:
        raise FloatingPointError("no convergence")


class Crashes(Faulty):
    def act(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


class Killed(Faulty):
    def act(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Exits(Faulty):
    def act(self) -> None:
        os._exit(7)


class Hangs(Faulty):
    def act(self) -> None:
        time.sleep(3600)


def bad(store: SimulationStore) -> np.ndarray:
    return store.read()[0][:, 0] > 0.94


@pytest.mark.parametrize(
    ("simulator", "protection", "status", "reason"),
    [
        (Faulty(), Protection(), FAILED, "FloatingPointError: no convergence"),
        (Crashes(), Protection(isolate=True), FAILED, "the simulator's process was killed by SIGSEGV"),
        (Killed(), Protection(isolate=True), FAILED, "the simulator's process was killed by SIGKILL (out of memory?)"),
        (Exits(), Protection(isolate=True), FAILED, "the simulator's process ended with exit code 7"),
        (Hangs(), Protection(seconds=0.5), TIMEOUT, "no result within 0.5 s"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, TwoMoons) else None,
)
def test_a_fault_costs_its_own_row_and_no_other(
    tmp_path: Path, simulator: Faulty, protection: Protection, status: int, reason: str
) -> None:
    store = simulate(simulator, 200, tmp_path / "s.zarr", protection=protection, seed=3)
    assert 1 <= bad(store).sum() <= 20
    np.testing.assert_array_equal(store.status, np.where(bad(store), status, OK))
    np.testing.assert_array_equal(store.reasons(), np.where(bad(store), reason, ""))
    if protection.seconds is None:  # with a limit, every row is simulated alone
        plain = simulate(Faulty(), 200, tmp_path / "plain.zarr", seed=3)
        np.testing.assert_array_equal(store.read()[1]["x"], plain.read()[1]["x"])
    verify(store)


@pytest.mark.slow
def test_workers_that_crash_are_replaced_and_the_rest_completes(tmp_path: Path) -> None:
    store = simulate(Crashes(), 600, tmp_path / "s.zarr", seed=3, executor=Processes(2))
    np.testing.assert_array_equal(store.status, np.where(bad(store), FAILED, OK))
    raised = simulate(Faulty(), 600, tmp_path / "raised.zarr", seed=3)
    np.testing.assert_array_equal(store.read()[1]["x"], raised.read()[1]["x"])


@pytest.mark.slow
def test_a_crash_of_the_process_itself_is_survived_by_running_again(tmp_path: Path) -> None:
    """Inline, the first crash takes the process; the same command goes on and confines the rest."""
    context, path = multiprocessing.get_context("spawn"), tmp_path / "s.zarr"
    for _ in range(6):
        process = context.Process(target=simulate, args=(Crashes(), 300, path), kwargs={"seed": 3})
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGSEGV
    store = SimulationStore.open(path)
    np.testing.assert_array_equal(store.status, np.where(bad(store), FAILED, OK))
    assert not (path / ".campaign" / "shard-0").exists()


class Unlucky(TwoMoons):
    """Fails for half of the random numbers, so that another attempt may succeed."""

    def simulate(self, theta, rng, context=None):
        if rng.random() < 0.5:
            raise RuntimeError("bad luck")
        return super().simulate(theta, rng)


def test_retries_use_other_random_numbers(tmp_path: Path) -> None:
    one = simulate(Unlucky(), 400, tmp_path / "one.zarr", block=20, seed=5)
    many = simulate(Unlucky(), 400, tmp_path / "many.zarr", block=20, seed=5, protection=Protection(retries=3))
    failed = (one.status == FAILED).sum()
    assert failed > 50
    assert (many.status == FAILED).sum() < failed / 3
    good = one.status == OK
    np.testing.assert_array_equal(many.read()[1]["x"][good], one.read()[1]["x"][good])


@pytest.mark.parametrize("executor", [Inline(), Processes(2)], ids=["inline", "processes"])
def test_retry_mends_failed_rows_and_touches_no_other(tmp_path: Path, executor: Executor) -> None:
    store = simulate(Unlucky(), 400, tmp_path / "s.zarr", block=20, seed=5)
    before, status = store.read()[1]["x"], store.status
    left = [(status == FAILED).sum()]
    for _ in range(3):
        retry(Unlucky(), store.path, executor=executor)
        left.append((store.status == FAILED).sum())
    assert left[0] > left[1] > left[3]
    np.testing.assert_array_equal(store.read()[1]["x"][status == OK], before[status == OK])
    verify(SimulationStore.open(store.path))


def test_retry_refuses_the_store_of_another_simulator(tmp_path: Path) -> None:
    store = simulate(TwoMoons(), 40, tmp_path / "s.zarr")
    with pytest.raises(StoreError, match="it differs in simulator, prior, observables"):
        retry(GaussianLinear(), store.path)


class Hopeless(TwoMoons):
    calls = 0

    def simulate(self, theta, rng, context=None):
        Hopeless.calls += 1
        raise ZeroDivisionError("never")


def test_a_hopeless_campaign_stops_early(tmp_path: Path) -> None:
    with pytest.raises(SimulatorError, match=r"none of the first \d+ simulations succeeded; row 0 .*ZeroDivisionError"):
        simulate(Hopeless(), 50_000, tmp_path / "s.zarr", block=100)
    assert Hopeless.calls < 10_000


def test_each_kind_of_problem_is_told_once_with_an_example(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Both(Faulty):
        def simulate(self, theta, rng, context=None):
            x = super().simulate(theta, rng)["x"]
            return {"x": np.where(theta[:, :1] < -0.9, np.nan, x)}

    with caplog.at_level(logging.WARNING):
        store = simulate(Both(), 3000, tmp_path / "s.zarr")
    assert store.counts()["failed"] > 10
    assert store.counts()["invalid"] > 10
    assert len(caplog.records) == 2
    assert any(
        "row " in r.message and "t1 = 0.9" in r.message and "no convergence" in r.message for r in caplog.records
    )
    assert set(store.reasons()[store.status == INVALID]) == {"not finite: x"}


@pytest.mark.parametrize("bad", [np.nan, -np.inf, 1e39, -1e300])
def test_what_float32_cannot_hold_is_invalid(tmp_path: Path, bad: float) -> None:
    class Wild(TwoMoons):
        def simulate(self, theta, rng, context=None):
            x = super().simulate(theta, rng)["x"]
            x[theta[:, 0] > 0.9, 1] = bad
            return {"x": x}

    store = simulate(Wild(), 2000, tmp_path / "s.zarr")
    expected = store.read_array("theta")[:, 0] > 0.9
    assert np.array_equal(store.status == INVALID, expected)
    reason = "beyond float32, 3e38: x" if np.isfinite(bad) else "not finite: x"
    assert set(store.reasons()[expected]) == {reason}
    simfer.train(store, training=TrainingSettings(epochs=1))


def test_two_fillers_of_one_store_do_no_harm(tmp_path: Path) -> None:
    reference = simulate(TwoMoons(), 30_000, tmp_path / "reference.zarr", seed=1)
    stores: list[SimulationStore] = []
    for _ in range(2):
        (tmp_path / "s.zarr").exists() or simulate(TwoMoons(), 100, tmp_path / "s.zarr", seed=1, block=1000)
    SimulationStore.open(tmp_path / "s.zarr").extend(30_000)
    fillers = [
        threading.Thread(target=lambda: stores.append(simulate(TwoMoons(), 30_000, tmp_path / "s.zarr", seed=1)))
        for _ in range(2)
    ]
    for filler in fillers:
        filler.start()
    for filler in fillers:
        filler.join()
    assert len(stores) == 2
    verify(stores[0])
    assert stores[0].counts()["ok"] == reference.rows


def test_an_orphan_is_swept_only_by_who_is_alone(tmp_path: Path) -> None:
    store = simulate(TwoMoons(), 100, tmp_path / "s.zarr")
    orphan = store.path / "x" / "c" / "0.orphan.partial"
    with filling(store):
        orphan.write_bytes(b"half")
        with filling(store):
            assert orphan.exists()
        with pytest.raises(StoreError, match="another process is filling"), filling(store, alone=True):
            pass
    with filling(store):
        assert not orphan.exists()


def test_verify_draws_theta_anew(tmp_path: Path) -> None:
    store = simulate(TwoMoons(), 3000, tmp_path / "s.zarr", seed=1)
    verify(store)
    records = store.read_records(store.layout.shard_rows(1))
    records.theta[5, 0] += 0.1
    store.write_shard(1, records)  # checksums fit, the seed does not
    with pytest.raises(CorruptStoreError, match=r"shard 1 .* is not what seed 1 draws"):
        verify(store)


class Recorder(TwoMoons):
    """Fails always, and notes the first number of every generator it is given."""

    seen: ClassVar[list[float]] = []
    retries = 2

    def simulate(self, theta, rng, context=None):
        Recorder.seen.append(rng.random())
        if len(theta) == 1 and theta[0, 0] < 0:
            raise RuntimeError("never")
        return super().simulate(theta, rng)


class Together(Recorder):
    def simulate(self, theta, rng, context=None):
        if len(theta) > 1:
            raise RuntimeError("one by one, please")
        return super().simulate(theta, rng)


@pytest.mark.parametrize("protection", [Protection(), Protection(retries=4)])
def test_no_attempt_uses_a_generator_twice(tmp_path: Path, protection: Protection) -> None:
    Recorder.seen.clear()
    store = simulate(Together(), 64, tmp_path / "s.zarr", protection=protection)
    for later in (Protection(), Protection(retries=3)):
        retry(Together(), store.path, protection=later)
    assert len(Recorder.seen) > 200
    assert len(set(Recorder.seen)) == len(Recorder.seen)


def test_retry_simulates_from_what_was_recorded(tmp_path: Path) -> None:
    class Exposed(Unlucky):
        context = Prior({"gain": {"dist": "Uniform", "low": 1.0, "high": 2.0}})

        def simulate(self, theta, rng, context=None):
            super().simulate(theta, rng)
            return {"x": theta * context["gain"][:, None]}

    store = simulate(Exposed(), 200, tmp_path / "s.zarr", block=10)
    retry(Exposed(), store.path, protection=Protection(retries=8))
    records = SimulationStore.open(store.path).read_records()
    ok = records.status == OK
    assert ok.sum() > 190
    np.testing.assert_array_equal(records.x["x"][ok], (records.theta * records.context["gain"][:, None])[ok])
    with pytest.raises(StoreError, match="it differs in context"):
        retry(Exposed(), store.path, context=Prior({"gain": {"dist": "Uniform", "low": 5.0, "high": 6.0}}))


class Counts:
    """Whole numbers, NaN where a row could not be simulated."""

    prior = Prior({"a": {"dist": "Uniform", "low": 0.0, "high": 1.0}})
    observables = Variables([Variable("n", (2,), "int32")])
    value = 3.0

    def simulate(self, theta, rng, context=None):
        return {"n": np.where(theta < 0.3, np.nan, self.value) * np.ones((len(theta), 2))}


def test_whole_numbers_that_are_nan_are_invalid_not_huge(tmp_path: Path) -> None:
    store = simulate(Counts(), 300, tmp_path / "s.zarr")
    theta, x = store.read()
    np.testing.assert_array_equal(store.status, np.where(theta[:, 0] < 0.3, INVALID, OK))
    np.testing.assert_array_equal(x["n"], np.where(theta < 0.3, 0, 3) * np.ones((300, 2), int))


@pytest.mark.parametrize("value", [3.5, 1e10])
def test_fractions_and_overflow_are_no_whole_numbers(tmp_path: Path, value: float) -> None:
    simulator = Counts()
    simulator.value = value
    with pytest.raises(ContractError, match="must return whole numbers of int32 as `n`"):
        simulate(simulator, 100, tmp_path / "s.zarr")


class Careless(TwoMoons):
    """Returns the same buffer every time, and spoils its arguments."""

    buffer = np.zeros((10, 2))

    def simulate(self, theta, rng, context=None):
        self.buffer[: len(theta)] = super().simulate(theta, rng)["x"]
        theta += 100
        return {"x": self.buffer[: len(theta)]}


def test_buffers_and_arguments_are_the_simulators_own_affair(tmp_path: Path) -> None:
    careless = simulate(Careless(), 100, tmp_path / "careless.zarr", block=10, seed=4)
    plain = simulate(TwoMoons(), 100, tmp_path / "plain.zarr", block=10, seed=4)
    assert careless.digest() == plain.digest()


def test_on_invalid_fail_fails_however_often_it_is_asked(tmp_path: Path) -> None:
    for _ in range(20):
        with pytest.raises(SimulatorError, match="no convergence"):
            simulate(Faulty(), 400, tmp_path / "s.zarr", on_invalid="fail")


def test_verify_reads_the_reasons_too(tmp_path: Path) -> None:
    store = simulate(Faulty(), 400, tmp_path / "s.zarr")
    file = next((store.path / "reason" / "c").iterdir())
    raw = bytearray(file.read_bytes())
    raw[10] ^= 1
    file.write_bytes(bytes(raw))
    with pytest.raises(CorruptStoreError, match="array `reason`"):
        store.verify()


def test_groups_are_not_cut_by_the_end_of_a_campaign(tmp_path: Path) -> None:
    class Galaxies(TwoMoons):
        group_size = 4

    with pytest.raises(StoreError, match="must be a multiple of the 4 that share one theta; got 102"):
        simulate(Galaxies(), 102, tmp_path / "s.zarr")
    simulate(Galaxies(), 104, tmp_path / "s.zarr", block=40)
    records = simulate(Galaxies(), 304, tmp_path / "s.zarr", block=40).read_records()
    assert records.group is not None
    assert len(np.unique(np.column_stack([records.group, records.theta]), axis=0)) == 304 // 4


class Legacy(TwoMoons):
    """Draws from the global generators, which forked children share."""

    def simulate(self, theta, rng, context=None):
        noise = np.random.standard_normal(theta.shape) + random.random() + torch.rand(1).item()  # noqa: NPY002
        return {"x": theta + noise}


def test_global_generators_give_every_row_its_own_noise_and_any_executor_the_same(tmp_path: Path) -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    guarded = simulate(Legacy(), 400, tmp_path / "guarded.zarr", protection=Protection(isolate=True))
    inline = simulate(Legacy(), 400, tmp_path / "inline.zarr")
    theta, x = guarded.read()
    assert len(np.unique(x["x"] - theta)) == 800
    assert guarded.digest() == inline.digest()
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_one_row_that_hangs_costs_its_own_time_limit(tmp_path: Path) -> None:
    class HangsOnce(TwoMoons):
        def simulate(self, theta, rng, context=None):
            if (theta[:, 0] > 0.999).any():
                time.sleep(3600)
            return super().simulate(theta, rng)

    started = time.monotonic()
    store = simulate(HangsOnce(), 1000, tmp_path / "s.zarr", protection=Protection(seconds=5.0), block=1000)
    assert store.counts()["timeout"] >= 1
    assert time.monotonic() - started < 5.0 * store.counts()["timeout"] + 500  # and not 5 s for each of 1,000 rows
