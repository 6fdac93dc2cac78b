"""Training: resumed equals uninterrupted, best weights are kept, trouble is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import simfer
from simfer.data.errors import NotFiniteError, ShapeError, TrainingError
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, FlowSettings, TrainingSettings

ESTIMATOR = EstimatorSettings(
    flow=FlowSettings(kind="maf", transforms=2, hidden=(16,)), embedding=EmbeddingSettings(kind="none")
)
TRAINING = TrainingSettings(epochs=6, batch_size=50, learning_rate=3e-3)


@pytest.fixture
def pairs(line, rng):
    theta = line.prior.sample(1000, rng)
    return theta, line.simulate(theta, rng)["x"]


class StopError(Exception):
    pass


@pytest.mark.parametrize("epoch", [0, 2, 4])
def test_resumed_equals_uninterrupted(line, pairs, tmp_path: Path, epoch: int) -> None:
    def stop(now: int, train_loss: float, val_loss: float) -> None:
        if now == epoch:
            raise StopError

    arguments = {"prior": line.prior, "estimator": ESTIMATOR, "training": TRAINING, "seed": 4}
    whole = simfer.train(*pairs, **arguments)
    with pytest.raises(StopError):
        simfer.train(*pairs, **arguments, folder=tmp_path, on_epoch=stop)
    resumed = simfer.train(*pairs, **arguments, folder=tmp_path)
    assert resumed.facts["loss"] == whole.facts["loss"]
    for name, value in whole.estimator.state_dict().items():
        assert torch.equal(value, resumed.estimator.state_dict()[name]), name


def test_finished_training_is_not_repeated(line, pairs, tmp_path: Path) -> None:
    arguments = {"prior": line.prior, "estimator": ESTIMATOR, "training": TRAINING}
    epochs: list[int] = []
    first = simfer.train(*pairs, **arguments, folder=tmp_path)
    again = simfer.train(*pairs, **arguments, folder=tmp_path, on_epoch=lambda e, t, v: epochs.append(e))
    assert epochs == []
    assert again.facts["loss"] == first.facts["loss"]


def test_best_weights_are_kept(line, pairs) -> None:
    theta, x = pairs
    wild = TrainingSettings(epochs=8, batch_size=20, learning_rate=0.3, warmup=0.0, clip=1e3)
    model = simfer.train(theta, x, line.prior, estimator=ESTIMATOR, training=wild)
    held = slice(-100, None)
    with torch.no_grad():
        loss = -model.posterior.log_prob_batched(torch.from_numpy(theta[held])[None], x[held]).mean().item()
    assert loss == pytest.approx(min(model.facts["loss"]["validation"]), abs=1e-4)


def test_early_stopping_counts_epochs_without_a_better_loss(line, pairs) -> None:
    settings = TrainingSettings(epochs=100, batch_size=20, learning_rate=0.1, warmup=0.0, patience=2)
    loss = simfer.train(*pairs, line.prior, estimator=ESTIMATOR, training=settings).facts["loss"]
    assert len(loss["validation"]) < 100
    assert len(loss["validation"]) == loss["best_epoch"] + 1 + 2


def test_seed_decides_weights_and_order(line, pairs) -> None:
    short = TrainingSettings(epochs=1, batch_size=100)
    losses = [
        simfer.train(*pairs, line.prior, estimator=ESTIMATOR, training=short, seed=seed).facts["loss"]["train"]
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_a_loss_that_is_no_number_stops_with_advice(line, pairs) -> None:
    settings = TrainingSettings(epochs=5, batch_size=50, learning_rate=1e30, warmup=0.0, clip=1e30)
    with pytest.raises(TrainingError, match=r"the loss became .* lower `learning_rate`"):
        simfer.train(*pairs, line.prior, estimator=ESTIMATOR, training=settings)


def test_a_damaged_checkpoint_is_named(line, pairs, tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"half a checkpoint")
    with pytest.raises(TrainingError, match=r"last\.ckpt cannot be read .* remove it"):
        simfer.train(*pairs, line.prior, estimator=ESTIMATOR, training=TRAINING, folder=tmp_path)


@pytest.mark.parametrize(
    ("spoil", "error", "match"),
    [
        (lambda theta, x: (theta[:, :1], x), ShapeError, r"must have shape \(rows, 2\) for a, b; got \(1000, 1\)"),
        (lambda theta, x: (theta, x[:-1]), ShapeError, r"one row per row of theta \(1000\); got 999"),
        (lambda theta, x: (theta, np.where(x > 2, np.nan, x)), NotFiniteError, "must be finite; got nan"),
        (lambda theta, x: (theta * np.inf, x), NotFiniteError, "`theta` must be finite"),
        (lambda theta, x: (theta[:1], x[:1]), ShapeError, "at least 2 rows"),
    ],
)
def test_bad_arrays_are_named(line, pairs, spoil, error, match) -> None:
    with pytest.raises(error, match=match):
        simfer.train(*spoil(*pairs), line.prior, estimator=ESTIMATOR)


def test_an_array_is_the_only_observable(line, pairs) -> None:
    named = simfer.Variables([simfer.Variable("signal", pairs[1].shape[1:])])
    quick = TrainingSettings(epochs=1)
    model = simfer.train(*pairs, line.prior, estimator=ESTIMATOR, training=quick, observables=named)
    assert model.posterior.sample((5,), pairs[1][0], seed=0).shape == (5, 2)
    with pytest.raises(ShapeError, match="`x` must have exactly the variables signal; missing: signal; unknown: y"):
        simfer.train(pairs[0], {"y": pairs[1]}, line.prior, estimator=ESTIMATOR, observables=named)


def test_theta_outside_the_prior_is_named(pairs) -> None:
    prior = simfer.Prior({name: torch.distributions.Uniform(0.0, 10.0) for name in "ab"})
    with pytest.raises(ShapeError, match="must lie in the prior's support; row"):
        simfer.train(*pairs, prior, estimator=ESTIMATOR)
