"""The moving average of the weights: validated, kept, and the same after an interruption."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import simfer
from simfer.data.batch import Batch
from simfer.estimators import checkpoints
from simfer.estimators.module import TrainingModule
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, FlowSettings, TrainingSettings

ESTIMATOR = EstimatorSettings(
    flow=FlowSettings(kind="maf", transforms=2, hidden=(16,)), embedding=EmbeddingSettings(kind="none")
)
TRAINING = TrainingSettings(epochs=4, batch_size=50, learning_rate=3e-3, ema=0.9)


@pytest.fixture
def pairs(line, rng):
    theta = line.prior.sample(1000, rng)
    return theta, line.simulate(theta, rng)["x"]


class StopError(Exception):
    pass


@pytest.mark.parametrize("at", [10, 18, 25, 36])
def test_resumed_equals_uninterrupted(line, pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """18 steps an epoch; a checkpoint every step."""
    arguments = {"prior": line.prior, "estimator": ESTIMATOR, "training": TRAINING, "seed": 4}
    whole = simfer.train(*pairs, **arguments)
    step = TrainingModule.training_step

    def stopping(self: TrainingModule, rows: Batch, index: int) -> torch.Tensor:
        if self.global_step == at:
            raise StopError
        return step(self, rows, index)

    monkeypatch.setattr(checkpoints, "_EVERY", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(TrainingModule, "training_step", stopping)
        with pytest.raises(StopError):
            simfer.train(*pairs, **arguments, folder=tmp_path)
    resumed = simfer.train(*pairs, **arguments, folder=tmp_path)
    assert resumed.facts["loss"] == whole.facts["loss"]
    for name, value in whole.estimator.state_dict().items():
        assert torch.equal(value, resumed.estimator.state_dict()[name]), name


def test_what_is_kept_is_what_was_validated(line, pairs) -> None:
    theta, x = pairs
    model = simfer.train(theta, x, line.prior, estimator=ESTIMATOR, training=TRAINING)
    held = slice(-100, None)
    with torch.no_grad():
        loss = -model.posterior.log_prob_batched(torch.from_numpy(theta[held])[None], x[held]).mean().item()
    assert loss == pytest.approx(min(model.facts["loss"]["validation"]), abs=1e-4)


@pytest.mark.slow
def test_it_smooths_noisy_steps(line, pairs) -> None:
    noisy = {"epochs": 4, "batch_size": 10, "learning_rate": 0.02, "warmup": 0.0}
    last = {
        ema: simfer.train(*pairs, line.prior, estimator=ESTIMATOR, training=TrainingSettings(**noisy, ema=ema)).facts[
            "loss"
        ]["validation"][:3]
        for ema in (None, 0.98)
    }
    assert np.mean(last[0.98]) < np.mean(last[None])


def test_training_itself_is_not_changed(line, pairs) -> None:
    losses = [
        simfer.train(*pairs, line.prior, estimator=ESTIMATOR, training=TRAINING.model_copy(update={"ema": ema})).facts[
            "loss"
        ]["train"]
        for ema in (None, 0.9)
    ]
    assert losses[0] == losses[1]


class Normalised(torch.nn.Module):
    """Batch normalisation, whose running statistics are no weights."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.features = shape[0]
        self.norm = torch.nn.BatchNorm1d(self.features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


def test_running_statistics_are_those_of_the_training(line, pairs) -> None:
    settings = ESTIMATOR.model_copy(update={"embedding": EmbeddingSettings(kind=Normalised)})
    states = [
        simfer.train(
            *pairs, line.prior, estimator=settings, training=TRAINING.model_copy(update={"ema": ema, "epochs": 1})
        ).estimator.state_dict()
        for ema in (None, 0.9)
    ]
    running = [name for name in states[0] if "running" in name or "tracked" in name]
    assert len(running) == 3
    for name in running:
        assert torch.equal(states[0][name], states[1][name])
