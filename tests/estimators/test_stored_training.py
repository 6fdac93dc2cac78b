"""Training from a store: loaded or streamed the same rows, normalisation and split; resumed in mid-epoch exactly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import simfer
from simfer.data.batch import Batch
from simfer.data.errors import ConfigError, CorruptStoreError, NotFiniteError, ShapeError
from simfer.data.loaders import valid_rows
from simfer.data.store import SimulationStore
from simfer.data.streaming import StoredRows
from simfer.estimators import checkpoints
from simfer.estimators.hardware import Hardware
from simfer.estimators.model import build_estimator
from simfer.estimators.module import TrainingModule
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, FlowSettings, TrainingSettings
from simfer.estimators.training import train_estimator

ESTIMATOR = EstimatorSettings(
    flow=FlowSettings(kind="maf", transforms=2, hidden=(16,)), embedding=EmbeddingSettings(kind="none"), whiten=True
)


def settings(loader: str = "stream", epochs: int = 3) -> TrainingSettings:
    return TrainingSettings(epochs=epochs, batch_size=50, learning_rate=3e-3, loader=loader)


@pytest.fixture
def store(line, tmp_path: Path) -> SimulationStore:
    """1,990 rows in two blocks and two shards."""
    return simfer.simulate(line, 1990, tmp_path / "line.zarr")


class StopError(Exception):
    pass


def test_loaded_from_a_store_equals_arrays(line, store) -> None:
    theta, x = valid_rows(store, slice(None))
    plain = simfer.train(theta, x, line.prior, estimator=ESTIMATOR, training=settings("memory"))
    loaded = simfer.train(store, estimator=ESTIMATOR, training=settings("auto"))
    assert loaded.facts["loss"] == plain.facts["loss"]
    assert loaded.facts["loader"] == {"kind": "memory"}


@pytest.mark.slow
def test_streamed_has_the_same_normalisation_and_split_and_learns_as_well(store) -> None:
    memory, streamed = (
        simfer.train(store.path, estimator=ESTIMATOR, training=settings(kind, 15)) for kind in ("memory", "stream")
    )
    assert streamed.facts["rows"] == memory.facts["rows"] == {"train": 1791, "validation": 199}
    for name in ("mean", "sd", "rotation"):
        a, b = (getattr(model.estimator.preprocess, name) for model in (memory, streamed))
        torch.testing.assert_close(a, b)
    best = [min(model.facts["loss"]["validation"]) for model in (memory, streamed)]
    assert abs(best[0] - best[1]) < 0.05


def test_what_exceeds_the_budget_is_streamed_and_the_choice_is_kept(store, tmp_path: Path) -> None:
    def train(memory: int) -> dict[str, object]:
        arguments = {"estimator": ESTIMATOR, "training": settings("auto", 1), "folder": tmp_path}
        return simfer.train(store, **arguments, hardware=Hardware(memory=memory)).facts["loader"]

    assert json.loads(json.dumps(train(10**9))) == {"kind": "memory"}
    (tmp_path / "loader.json").unlink()
    (tmp_path / "last.ckpt").unlink()
    with pytest.raises(OSError, match="`memory` must be at least"):
        train(40_000)
    (tmp_path / "loader.json").write_text('{"kind": "stream", "buffer_rows": 1000}')
    assert train(10**9) == {"kind": "stream", "buffer_rows": 1000}


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["memory", "stream"])
@pytest.mark.parametrize("batch", [10, 35, 40, 71])
def test_resumed_in_mid_epoch_equals_uninterrupted(
    store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: str, batch: int
) -> None:
    """35 steps an epoch; a checkpoint every step, and a stop in the middle of the first, second or third."""
    arguments = {"estimator": ESTIMATOR, "training": settings(loader), "seed": 4}
    whole = simfer.train(store, **arguments)
    step = TrainingModule.training_step

    def stopping(self: TrainingModule, rows: Batch, index: int) -> torch.Tensor:
        if self.global_step == batch:
            raise StopError
        return step(self, rows, index)

    monkeypatch.setattr(checkpoints, "_EVERY", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(TrainingModule, "training_step", stopping)
        with pytest.raises(StopError):
            simfer.train(store, **arguments, folder=tmp_path)
    steps: list[int] = []

    def counted(self: TrainingModule, rows: Batch, index: int) -> torch.Tensor:
        steps.append(index)
        return step(self, rows, index)

    monkeypatch.setattr(TrainingModule, "training_step", counted)
    resumed = simfer.train(store, **arguments, folder=tmp_path)
    assert len(steps) <= 3 * 35 - batch + 1
    assert resumed.facts["loss"] == whole.facts["loss"]
    for name, value in whole.estimator.state_dict().items():
        assert torch.equal(value, resumed.estimator.state_dict()[name]), name


def test_a_flipped_byte_stops_training_and_names_the_shard(store, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store.path, tmp_path / "copy.zarr"))
    file = copy / "x" / "c" / "1" / "0"
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    for loader in ("memory", "stream"):
        with pytest.raises(CorruptStoreError, match=r"damaged: shard 1, array `x`"):
            simfer.train(copy, estimator=ESTIMATOR, training=settings(loader))


def test_arrays_cannot_be_streamed_and_need_x_and_prior(line, store) -> None:
    theta, x = valid_rows(store, slice(None))
    with pytest.raises(ConfigError, match="`stream` needs a simulation store"):
        simfer.train(theta, x, line.prior, training=settings("stream"))
    with pytest.raises(ShapeError, match="`x` and `prior` must be given"):
        simfer.train(theta, x)


def test_another_prior_than_the_stores_is_named(store) -> None:
    uniform = torch.distributions.Uniform(0.0, 1.0)
    with pytest.raises(ShapeError, match="must lie in the prior's support"):
        simfer.train(store, prior=simfer.Prior({"a": uniform, "b": uniform}))
    with pytest.raises(ShapeError, match="must have the parameters a, b of the store"):
        simfer.train(store, prior=simfer.Prior({"a": uniform}))


def test_a_transform_that_does_not_fit_is_named_over_all_rows(store) -> None:
    negative = int((store.read()[1]["x"][:1791] <= 0).any(1).sum())
    wrong = ESTIMATOR.model_copy(update={"transforms": {"x": "log"}})
    with pytest.raises(NotFiniteError, match=f"`x` is not finite after `log` in {negative} of 1791 rows"):
        simfer.train(store, estimator=wrong, training=settings("stream"))


def test_one_reader_or_several_train_the_same(line, store) -> None:
    def trained(threads: int) -> tuple[list[float], dict[str, torch.Tensor]]:
        first = np.arange(1990) < 1800
        parts = [StoredRows(store, keep, 10**8, buffer_rows=500, threads=threads) for keep in (first, ~first)]
        network = build_estimator(line.prior, line.observables, ESTIMATOR, 1)
        return train_estimator(network, *parts, settings(epochs=2)).train, network.state_dict()

    (losses, weights), (others, same) = trained(1), trained(2)
    assert losses == others
    for name, value in weights.items():
        assert torch.equal(value, same[name]), name
