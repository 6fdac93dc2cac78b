"""Losses reach CSV and TensorBoard; other services are asked for by name, and named when they are missing."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest

import simfer
from simfer.data.errors import ConfigError
from simfer.estimators import loggers
from simfer.estimators.hardware import Hardware
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, FlowSettings, TrainingSettings

ESTIMATOR = EstimatorSettings(
    flow=FlowSettings(kind="maf", transforms=1, hidden=(8,)), embedding=EmbeddingSettings(kind="none")
)


@pytest.fixture
def pairs(line, rng):
    theta = line.prior.sample(200, rng)
    return theta, line.simulate(theta, rng)["x"]


def losses(file: Path) -> list[list[float]]:
    with file.open() as stream:
        return [[float(row["train_loss"]), float(row["val_loss"])] for row in csv.DictReader(stream)]


def test_csv_has_all_epochs_those_before_an_interruption_too(line, pairs, tmp_path: Path) -> None:
    def stop(epoch: int, train_loss: float, val_loss: float) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    arguments = {"prior": line.prior, "estimator": ESTIMATOR, "training": TrainingSettings(epochs=4, batch_size=50)}
    where = {"folder": tmp_path / "checkpoints", "logs": tmp_path / "logs"}
    with pytest.raises(KeyboardInterrupt):
        simfer.train(*pairs, **arguments, **where, on_epoch=stop)
    loss = simfer.train(*pairs, **arguments, **where).facts["loss"]
    assert losses(tmp_path / "logs" / "metrics.csv") == [
        list(pair) for pair in zip(loss["train"], loss["validation"], strict=True)
    ]


def test_tensorboard_gets_both_losses(line, pairs, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    training = TrainingSettings(epochs=3, batch_size=50)
    loss = simfer.train(*pairs, line.prior, estimator=ESTIMATOR, training=training, folder=tmp_path).facts["loss"]
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    for name, values in (("train_loss", loss["train"]), ("val_loss", loss["validation"])):
        assert [event.value for event in events.Scalars(name)] == pytest.approx(values, rel=1e-5)


def test_without_tensorboard_training_goes_on(line, pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "_installed", lambda modules: False)
    training = TrainingSettings(epochs=1, batch_size=50)
    simfer.train(*pairs, line.prior, estimator=ESTIMATOR, training=training, folder=tmp_path)
    assert losses(tmp_path / "metrics.csv")
    assert not list(tmp_path.glob("events*"))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_named(
    line, pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(loggers, "_installed", lambda modules: False)
    with pytest.raises(ConfigError, match=f"`loggers` names `{name}`, which is not installed: `pip install {name}`"):
        simfer.train(*pairs, line.prior, estimator=ESTIMATOR, folder=tmp_path, hardware=Hardware(loggers=(name,)))


@pytest.mark.parametrize(("name", "kind"), [("wandb", "WandbLogger"), ("mlflow", "MLFlowLogger")])
def test_loggers_by_name_are_lightnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str) -> None:
    made = SimpleNamespace(**{kind: lambda **arguments: arguments}, TensorBoardLogger=lambda **_: "board")
    monkeypatch.setattr(loggers, "_installed", lambda modules: True)
    monkeypatch.setattr(loggers, "import_module", lambda module: made)
    board, found = loggers.make_loggers((name, name), tmp_path / "moons" / "logs")
    assert board == "board"
    assert "moons" in found.values()
    assert str(tmp_path) in str(found["save_dir"])


def test_an_unknown_logger_is_named() -> None:
    with pytest.raises(ConfigError, match="`loggers` must be among wandb, mlflow; got `neptune`"):
        loggers.require_loggers(["neptune"])
