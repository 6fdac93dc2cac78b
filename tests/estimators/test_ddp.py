"""Two processes train as one does: the same batches, losses and weights, whatever happens to them on the way."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import simfer
from simfer.data import registry
from simfer.data.errors import ConfigError, ShapeError, TrainingError, UnsupportedError
from simfer.data.store import SimulationStore
from simfer.estimators.hardware import Hardware
from simfer.estimators.model import Model
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, FlowSettings, TrainingSettings
from simfer.estimators.sharing import gathered, own_share, summed
from simfer.estimators.team import arrivals
from simfer.estimators.worker import hello, put

pytestmark = pytest.mark.slow

ROWS, BATCH, EPOCHS = 1003, 75, 3  # parts of 37 and 38 rows; 100 rows for validation, 903 to learn from
SMALL = {
    "embedding": EmbeddingSettings(features=4, hidden=(8,)),
    "flow": FlowSettings(kind="maf", transforms=1, hidden=(8,)),
}
BOTH = Hardware(accelerator="cpu", devices=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SimulationStore:
    from simfer.simulators.two_moons import TwoMoons

    return simfer.simulate(TwoMoons(), ROWS, tmp_path_factory.mktemp("ddp") / "s.zarr", seed=1, block=20)


def trained(store: SimulationStore, hardware: Hardware, folder: Path | None = None, **given: Any) -> Model:
    settings = {name: given.pop(name) for name in list(given) if name in TrainingSettings.model_fields}
    training = TrainingSettings(epochs=EPOCHS, batch_size=BATCH, **settings)
    estimator = EstimatorSettings(**{**SMALL, **given})
    return simfer.train(store, estimator=estimator, training=training, hardware=hardware, folder=folder, seed=2)


def assert_same(one: Model, two: Model, tolerance: float = 1e-5) -> None:
    for name in ("train", "validation"):
        assert two.facts["loss"][name] == pytest.approx(one.facts["loss"][name], abs=tolerance, rel=tolerance)
    for name, value in one.estimator.state_dict().items():
        torch.testing.assert_close(two.estimator.state_dict()[name], value, rtol=1e-2, atol=100 * tolerance)


@contextlib.contextmanager
def first_in_workers(source: str, folder: Path) -> Iterator[None]:
    """Have the processes that fit, and not this one, run some code first."""
    file = folder / "first.py"
    file.write_text(
        f"import os\nif os.getpid() != {os.getpid()}:\n    source = {source!r}\n    exec(source, globals())\n"
    )
    registry.load_file(file)
    yield
    for name in [name for name, module in sys.modules.items() if getattr(module, "__file__", "") == str(file)]:
        del sys.modules[name]


def workers() -> list[int]:
    """Processes that fit and have not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == os.getpid() and "simfer.estimators.worker" in (entry / "cmdline").read_text():
                found.append(int(entry.name))
    return found


EVERY_STEP = """
from simfer.estimators.module import TrainingModule
step = TrainingModule.training_step
def training_step(self, batch, index):
    before(self.trainer.global_rank, self.current_epoch, self.global_step, batch)
    return step(self, batch, index)
TrainingModule.training_step = training_step
"""

STOP = (
    EVERY_STEP
    + """
from simfer.estimators import checkpoints
checkpoints._EVERY, checkpoints._STEPS = 0.0, 1
def before(rank, epoch, step, batch):
    if step == 17:
        raise KeyError("stopped")
"""
)


@dataclass
class Ours:
    """What two processes made: trained at one go, with the rows that each was given, and stopped in the second epoch."""

    loader: str
    whole: Model
    rows: Path
    stopped: Path


@pytest.fixture(scope="module", params=["memory", "stream"])
def ours(request: pytest.FixtureRequest, store: SimulationStore, tmp_path_factory: pytest.TempPathFactory) -> Ours:
    loader, rows, stopped = request.param, tmp_path_factory.mktemp("rows"), tmp_path_factory.mktemp("stopped")
    record = f"""
import numpy as np
def before(rank, epoch, step, batch):
    np.save(f"{rows}/{{epoch}}-{{step}}-{{rank}}.npy", batch.theta.numpy())
"""
    with first_in_workers(EVERY_STEP + record, rows):
        whole = trained(store, BOTH, loader=loader)
    with first_in_workers(STOP, rows), pytest.raises(KeyError, match="stopped") as raised:
        trained(store, BOTH, stopped, loader=loader)
    assert "in training_step" in "".join(traceback.format_exception(raised.value))
    return Ours(loader, whole, rows, stopped)


def test_losses_and_weights_are_those_of_one_process(store: SimulationStore, ours: Ours) -> None:
    """With parts of different sizes, of batches and of the validation rows."""
    assert_same(trained(store, Hardware(), loader=ours.loader), ours.whole)


def test_every_row_is_read_by_one_process_in_every_epoch(store: SimulationStore, ours: Ours) -> None:
    steps = 903 // BATCH
    known = Counter(map(tuple, store.read()[0][:903].tolist()))
    for epoch in range(EPOCHS):
        parts = {rank: [np.load(file) for file in sorted(ours.rows.glob(f"{epoch}-*-{rank}.npy"))] for rank in range(2)}
        assert [len(parts[rank]) for rank in range(2)] == [steps, steps]
        assert {len(a) + len(b) for a, b in zip(*parts.values(), strict=True)} == {BATCH}
        seen = Counter(map(tuple, np.concatenate(list(itertools.chain(*parts.values()))).tolist()))
        assert max(seen.values()) == 1
        assert seen <= known
        assert sum(seen.values()) == steps * BATCH


def test_resuming_in_mid_epoch_ends_with_the_very_same_losses(
    store: SimulationStore, ours: Ours, tmp_path: Path
) -> None:
    shutil.copytree(ours.stopped, tmp_path / "run")
    resumed = trained(store, BOTH, tmp_path / "run", loader=ours.loader)
    assert resumed.facts["loss"] == ours.whole.facts["loss"]
    for name, value in ours.whole.estimator.state_dict().items():
        assert torch.equal(resumed.estimator.state_dict()[name], value), name


def test_a_run_of_two_processes_goes_on_in_one(store: SimulationStore, ours: Ours, tmp_path: Path) -> None:
    shutil.copytree(ours.stopped, tmp_path / "run")
    assert_same(ours.whole, trained(store, Hardware(), tmp_path / "run", loader=ours.loader))


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"ensemble": 2}, True),
        ({"method": "fmpe"}, True),
        ({"method": "nle", "embedding": EmbeddingSettings()}, True),
        ({"method": "nre"}, False),  # contrasts are other rows of a process's own part
        ({"fisher": {"beta": 0.01, "ema": 0.15, "draws": 2}, "ema": None}, False),  # each process draws its own numbers
    ],
    ids=["ensemble", "fmpe", "nle", "nre", "fisher"],
)
def test_every_method_trains(store: SimulationStore, given: dict[str, Any], same: bool) -> None:
    """What depends on rows alone is the same; the rest is the same in the mean."""
    one, two = trained(store, Hardware(), **given), trained(store, BOTH, **given)
    assert_same(one, two) if same else None
    assert two.facts["loss"]["validation"] == pytest.approx(one.facts["loss"]["validation"], abs=0.2)


def test_files_are_written_once_and_epochs_told_of(store: SimulationStore, tmp_path: Path) -> None:
    told: list[int] = []
    simfer.train(
        store,
        estimator=EstimatorSettings(**SMALL),
        training=TrainingSettings(epochs=2, batch_size=BATCH),
        hardware=BOTH,
        folder=tmp_path,
        on_epoch=lambda epoch, *losses: told.append(epoch),
    )
    assert told == [0, 1]
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 3
    assert len(list(tmp_path.glob("events.*"))) == 1
    assert [file.name for file in tmp_path.glob("*.ckpt")] == ["last.ckpt"]


@pytest.mark.parametrize(
    ("act", "match"),
    [
        ("from simfer.data.errors import TrainingError; raise TrainingError('rank 1 says why')", "rank 1 says why"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "process 1 of those that train together died"),
    ],
)
def test_if_one_fails_all_end_and_it_says_why(store: SimulationStore, tmp_path: Path, act: str, match: str) -> None:
    before = f"def before(rank, epoch, step, batch):\n    if rank == 1 and step == 3:\n        {act}\n"
    with first_in_workers(EVERY_STEP + before, tmp_path), pytest.raises(TrainingError, match=match):
        trained(store, BOTH)
    assert not workers()


def test_an_interrupted_training_leaves_no_process(store: SimulationStore) -> None:
    def interrupt(epoch: int, *losses: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simfer.train(
            store,
            estimator=EstimatorSettings(**SMALL),
            training=TrainingSettings(epochs=50, batch_size=BATCH),
            hardware=BOTH,
            on_epoch=interrupt,
        )
    assert not workers()


@pytest.mark.parametrize(
    ("hardware", "batch", "error", "match"),
    [
        (
            Hardware(devices=2, nodes=2),
            75,
            ConfigError,
            r"`local.nodes: 2` needs `srun` with a task for every device, .*=4",
        ),
        (
            Hardware(devices=2, strategy="fsdp"),
            75,
            UnsupportedError,
            r"`strategy` must be among auto, ddp, .*; got `fsdp`",
        ),
        (BOTH, 1, ShapeError, r"`batch_size` must be at least one for each of 2 processes; got 1"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    store: SimulationStore, hardware: Hardware, batch: int, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        simfer.train(store, training=TrainingSettings(epochs=1, batch_size=batch), hardware=hardware)


def test_one_process_alone_has_the_sums() -> None:
    assert gathered(2.0) == [2.0]
    assert summed(torch.ones(2)).tolist() == [1.0, 1.0]
    assert own_share([1.0, 2.0, 3.0]) == 6.0


def test_strangers_do_not_keep_those_that_train_together_waiting() -> None:
    """A port that listens is tried by scanners: connections that end, are silent, or have another key."""
    key = b"k" * 32
    with Listener(("127.0.0.1", 0), backlog=16) as listener, contextlib.ExitStack() as stack:
        found = arrivals(listener, key, 1, seconds=30.0)
        for _ in range(2):
            stack.enter_context(socket.create_connection(listener.address))
        socket.create_connection(listener.address).close()

        def come() -> None:
            with contextlib.suppress(AuthenticationError, EOFError, OSError):
                Client(listener.address, authkey=b"other")
            client = stack.enter_context(Client(listener.address, authkey=key))
            put(client, hello(1))

        threading.Thread(target=come).start()
        assert next(iter(found))[1].rank == 1
