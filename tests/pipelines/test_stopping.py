"""A wish to stop is heeded where all is saved, in every long stage, and what goes on ends the same."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import simfer
from simfer.data.batch import Batch
from simfer.data.errors import ConfigError, ExecutorError
from simfer.data.stopping import ask_to_stop, go_on, stop_asked, stop_if_asked
from simfer.data.store import SimulationStore
from simfer.diagnostics.attacks.check import Attack
from simfer.diagnostics.calibration import CalibrationSet
from simfer.estimators.base import Posterior
from simfer.estimators.module import TrainingModule
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, FlowSettings, TrainingSettings
from simfer.pipelines.api import Run
from simfer.pipelines.executors import Processes
from simfer.pipelines.slurm.signals import getting_on, heard
from simfer.pipelines.staging import staged
from simfer.simulators.campaign import simulate
from simfer.simulators.two_moons import TwoMoons


@pytest.fixture(autouse=True)
def _forgotten() -> Any:
    yield
    go_on()


def counted(function: Callable[..., Any], at: int) -> Callable[..., Any]:
    """The same function, which asks to stop at one of its calls."""
    calls = 0

    def call(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            ask_to_stop()
        return function(*arguments, **more)

    return call


def told(signal_: signal.Signals, grace: float) -> None:
    with heard(grace):
        os.kill(os.getpid(), signal_)
        signal.pause()


def test_a_campaign_stops_within_a_shard_and_keeps_its_blocks(line: Any, tmp_path: Path) -> None:
    """160 blocks of ten rows, ten in a shard."""
    whole = simulate(line, 1600, tmp_path / "whole", block=10)
    store = simulate(line, 800, tmp_path / "store", block=10)
    store.extend(1600)
    simulator, plain = line, line.simulate
    simulator.simulate = counted(plain, 3)
    with pytest.raises(KeyboardInterrupt):
        simulate(simulator, 1600, store.path, block=10)
    assert store.counts()["ok"] == 830
    assert not list(store.path.glob(".campaign/shard-*"))  # nothing is suspect
    go_on()
    simulator.simulate = counted(plain, 78)  # and the 77 that are left come without being asked again
    store = simulate(simulator, 1600, store.path, block=10)
    assert not stop_asked()
    for name in ("theta", "x", "status"):
        assert np.array_equal(store.read_array(name), whole.read_array(name)), name


def test_an_interruption_within_a_block_keeps_those_before_it(line: Any, tmp_path: Path) -> None:
    """As when the time to save is over, or by Ctrl-C."""
    whole, plain, calls = simulate(line, 100, tmp_path / "whole", block=10, shards=1), line.simulate, [0]

    def interrupted(theta: np.ndarray, rng: np.random.Generator, context: Any = None) -> Any:
        calls[0] += 1
        if calls[0] == 9:
            raise KeyboardInterrupt
        return plain(theta, rng)

    line.simulate = interrupted
    with pytest.raises(KeyboardInterrupt):
        simulate(line, 100, tmp_path / "store", block=10, shards=1)
    store = SimulationStore.open(tmp_path / "store")
    assert 0 < store.counts()["ok"] < 100
    assert not list(store.path.glob(".campaign/shard-*"))
    store = simulate(line, 100, store.path, block=10)
    assert store.digest() == whole.digest()


class Stuck(TwoMoons):
    """Hears nothing in workers, as what is computed outside Python."""

    def __init__(self, marks: str) -> None:
        self.marks, self.parent = marks, os.getpid()

    def simulate(self, theta: np.ndarray, rng: np.random.Generator, context: Any = None) -> dict[str, np.ndarray]:
        if os.getpid() != self.parent:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            (Path(self.marks) / str(os.getpid())).touch()
            time.sleep(300)
        return super().simulate(theta, rng)


@pytest.mark.slow
@pytest.mark.timeout(200, method="thread")  # the other method is by the signal that is tested
@pytest.mark.parametrize("stuck", [1, 2])
def test_workers_are_not_waited_for_when_time_is_over(tmp_path: Path, stuck: int) -> None:
    """Also where another worker has heard the warning, and is waited for when the time is up."""
    marks = tmp_path / "marks"
    marks.mkdir()

    def warn() -> None:
        while len(list(marks.iterdir())) < stuck:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=warn, daemon=True).start()
    with heard(grace=3.0), pytest.raises(KeyboardInterrupt):
        simulate(Stuck(str(marks)), 1600, tmp_path / "store", block=100, executor=Processes(2))
    assert not any(_lives(int(mark.name)) for mark in marks.iterdir())


def _lives(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


class Slow(TwoMoons):
    def simulate(self, theta: np.ndarray, rng: np.random.Generator, context: Any = None) -> dict[str, np.ndarray]:
        time.sleep(0.1)
        return super().simulate(theta, rng)


@pytest.mark.slow
def test_workers_stop_within_their_shards(tmp_path: Path) -> None:
    """Two workers at shards that take a second each."""

    def stop(rows: int) -> None:
        if rows and not timer.ident:  # both are in the middle of their second shard soon
            timer.start()

    for attempt in range(3):  # on a busy machine both may have come to the end of one just then
        path, timer = tmp_path / f"store{attempt}", threading.Timer(0.45, ask_to_stop)
        with pytest.raises(KeyboardInterrupt):
            simulate(Slow(), 1600, path, block=10, executor=Processes(2), progress=stop)
        timer.join()
        done = SimulationStore.open(path).counts()["ok"]
        go_on()
        if done % 100:
            break
    assert done < 800
    assert done % 100
    whole, again = simulate(Slow(), 1600, tmp_path / "whole", block=10), simulate(Slow(), 1600, path, block=10)
    assert np.array_equal(again.read_array("x"), whole.read_array("x"))


@pytest.mark.parametrize("at", [1, 10, 15, 30])
def test_a_training_stops_after_its_step_and_ends_with_the_same_losses(
    line: Any, rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Epochs of ten steps: within one, after its last step, and after the last step of all."""
    theta = line.prior.sample(600, rng)
    x = line.simulate(theta, rng)["x"]
    arguments = {
        "prior": line.prior,
        "estimator": EstimatorSettings(
            flow=FlowSettings(kind="maf", transforms=1, hidden=(8,)), embedding=EmbeddingSettings(kind="none")
        ),
        "training": TrainingSettings(epochs=3, batch_size=50),
    }
    whole = simfer.train(theta, x, **arguments)
    step = TrainingModule.training_step
    monkeypatch.setattr(TrainingModule, "training_step", counted(step, at))
    with pytest.raises(KeyboardInterrupt):
        simfer.train(theta, x, **arguments, folder=tmp_path)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == at
    go_on()
    first: list[int] = []

    def seen(self: TrainingModule, batch: Batch, index: int) -> torch.Tensor:
        first.append(self.global_step)
        return step(self, batch, index)

    monkeypatch.setattr(TrainingModule, "training_step", seen)
    assert simfer.train(theta, x, **arguments, folder=tmp_path).facts["loss"] == whole.facts["loss"]
    assert first[:1] == ([] if at == 30 else [at])


def chains(finished: Run) -> Posterior:
    """Of a likelihood that is hardly trained: chains, whichever they are, go on."""
    theta = finished._job.prior.sample(400, np.random.default_rng(3))
    x = finished._job.simulator.simulate(theta, np.random.default_rng(4))
    flow = FlowSettings(kind="maf", transforms=1, hidden=(8,))
    return simfer.train(
        theta,
        x,
        finished._job.prior,
        estimator=EstimatorSettings(method="nle", flow=flow),
        training=TrainingSettings(epochs=2, batch_size=50),
    ).posterior


@pytest.mark.slow
@pytest.mark.parametrize("of", [lambda finished: finished.posterior, chains], ids=["npe", "nle"])
def test_checks_go_on_where_their_draws_were_interrupted(
    of: Callable[[Run], Posterior], finished: Run, tmp_path: Path
) -> None:
    posterior = of(finished)
    posterior.at_once = 25
    theta = finished._job.prior.sample(60, np.random.default_rng(1))
    x = finished._job.simulator.simulate(theta, np.random.default_rng(2))
    whole = CalibrationSet.draw(posterior, theta, x, draws=30, seed=3)
    asked = posterior.sample_with_log_prob
    posterior.sample_with_log_prob = counted(asked, 2)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        CalibrationSet.draw(posterior, theta, x, draws=30, seed=3, parts=tmp_path)
    go_on()
    posterior.diagnostics = None
    posterior.sample_with_log_prob = counted(asked, 2)  # type: ignore[method-assign]
    again = CalibrationSet.draw(posterior, theta, x, draws=30, seed=3, parts=tmp_path)
    assert not stop_asked()  # of three passes one was left
    for name in ("theta", "draws", "log_q_theta", "log_q_draws"):
        assert np.array_equal(getattr(again, name), getattr(whole, name)), name
    assert (again.fared is None) == (whole.fared is None) == (of is not chains)
    if again.fared and whole.fared:
        assert again.fared.numbers | {"seconds": 0} == whole.fared.numbers | {"seconds": 0}


def test_attacks_go_on_after_the_sizes_that_are_done(finished: Run, tmp_path: Path) -> None:
    theta = finished._job.prior.sample(20, np.random.default_rng(1))
    x = finished._job.simulator.simulate(theta, np.random.default_rng(2))
    check = Attack(steps=5, observations=20)
    arguments = (finished.posterior, theta, x)
    whole = check.attack(*arguments, simulator=finished._job.simulator, seed=3)
    told: list[int] = []

    def tell(evaluations: int) -> None:
        told.append(evaluations)
        if len(told) == 7:  # in the second of three sizes
            ask_to_stop()

    with pytest.raises(KeyboardInterrupt):
        check.attack(*arguments, simulator=finished._job.simulator, seed=3, parts=tmp_path, progress=tell)
    go_on()
    assert len(told) == 10
    told.clear()
    again = check.attack(*arguments, simulator=finished._job.simulator, seed=3, parts=tmp_path, progress=told.append)
    assert told == [5, 5, 1, 1, 1, 1, 1]
    assert sum(told) == check.evaluations
    for name in ("attacked", "noisy", "ranks", "bound", "predictive"):
        assert np.array_equal(getattr(again, name), getattr(whole, name)), name
    for name in ("moved", "moved_by_noise"):
        ours, theirs = getattr(again, name), getattr(whole, name)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[formula], theirs[formula]) for formula in ours)


def ends(done: Callable[[], float], *, at_once: bool = False) -> None:
    """A job whose time is up, and that then is late, or stops at once."""
    with heard(grace=0.05), getting_on("diagnose", done):
        os.kill(os.getpid(), signal.SIGUSR1)
        if at_once:
            stop_if_asked()
        signal.pause()


def test_a_job_that_never_gets_on_is_not_requeued_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    with pytest.raises(KeyboardInterrupt):
        ends(lambda: 7.0)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    with pytest.raises(KeyboardInterrupt):
        ends(itertools.count().__next__)
    with pytest.raises(KeyboardInterrupt):
        ends(lambda: 7.0, at_once=True)
    with pytest.raises(ExecutorError, match=r"started 4 times, .*: give `local.slurm.diagnose.time` more"):
        ends(lambda: 7.0)


def test_a_warning_is_noted_and_time_that_is_up_interrupts() -> None:
    with heard(grace=60.0):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop_asked()
    assert not stop_asked()
    with pytest.raises(KeyboardInterrupt):
        told(signal.SIGUSR1, grace=0.05)
    with pytest.raises(KeyboardInterrupt):
        told(signal.SIGTERM, grace=60.0)
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_lightning_leaves_the_signals_of_a_job_alone(line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"JOB_ID": "1", "NTASKS": "1", "STEP_ID": "0", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    theta = line.prior.sample(200, np.random.default_rng(0))
    x = line.simulate(theta, np.random.default_rng(1))
    met: list[Any] = []
    simfer.train(
        theta,
        x,
        line.prior,
        training=TrainingSettings(epochs=2),
        on_epoch=lambda *_: met.append(signal.getsignal(signal.SIGUSR1)),
    )
    assert met == [signal.SIG_DFL] * 2


def test_simulations_are_read_from_the_node_and_the_copy_is_removed(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH_OF_NODE", str(tmp_path / "node"))
    store = finished.simulations
    with (
        staged(store.path, "$SCRATCH_OF_NODE/simfer") as first,
        staged(store.path, "$SCRATCH_OF_NODE/simfer") as second,
    ):
        assert first == second
        assert first.is_relative_to(tmp_path / "node")
        assert SimulationStore.open(first).digest() == store.digest()
    assert not any((tmp_path / "node/simfer").iterdir())
    with staged(store.path, None) as same:
        assert same == store.path


def test_a_node_without_room_reads_from_where_the_simulations_are(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with staged(finished.simulations.path, str(tmp_path)) as path:
        assert path == finished.simulations.path
    assert "has room for" in caplog.text


def test_a_node_that_fills_up_meanwhile_reads_from_where_the_simulations_are(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copy, calls = shutil.copy2, [0]

    def full(source: Path, target: Path) -> None:
        calls[0] += 1
        copy(source, target)
        if calls[0] == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copy2", full)
    with staged(finished.simulations.path, str(tmp_path / "node")) as path:
        assert path == finished.simulations.path
    assert "is full by now" in caplog.text
    assert not any((tmp_path / "node").iterdir())


def test_a_lock_that_was_removed_while_one_waited_for_it_is_none(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder goes with its last reader: who holds its former lock would remove the copy of another."""
    place, lock, calls = tmp_path / "node", fcntl.flock, [0]

    def removed(descriptor: int, how: int) -> None:
        calls[0] += 1
        if calls[0] == 1:
            shutil.rmtree(next(place.iterdir()))
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", removed)
    with staged(finished.simulations.path, str(place)) as path:
        assert (path.parent / "lock").exists()
        assert SimulationStore.open(path).digest() == finished.simulations.digest()


def test_a_variable_that_no_node_sets_is_named(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    with (
        pytest.raises(ConfigError, match=r"`local.stage_to` must name a folder of the node; \$NOWHERE is not set"),
        staged(finished.simulations.path, "$NOWHERE"),
    ):
        pass
