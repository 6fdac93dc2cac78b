"""Flow matching: exact posteriors are found, noise is a function of what it should be, nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import simfer
from simfer.data.batch import Batch
from simfer.data.errors import ShapeError
from simfer.estimators.fmpe import FMPE
from simfer.estimators.model import Model, build_estimator, load_model
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, FieldSettings, TrainingSettings

NONE = EmbeddingSettings(kind="none")
SMALL = EstimatorSettings(method="fmpe", field=FieldSettings(hidden=16, blocks=2, steps=8), embedding=NONE)


@pytest.fixture
def pairs(line, rng):
    theta = line.prior.sample(1000, rng)
    return theta, line.simulate(theta, rng)["x"]


@pytest.fixture
def batch(pairs) -> Batch:
    theta, x = (torch.from_numpy(values) for values in pairs)
    return Batch(theta, {"x": x.float()})


@pytest.fixture
def estimator(line, batch) -> FMPE:
    made = build_estimator(line.prior, line.observables, SMALL, seed=2)
    assert isinstance(made, FMPE)
    made.fit_preprocess([batch])
    return made


@pytest.mark.slow
def test_the_posterior_of_a_linear_gaussian_problem_is_found(line) -> None:
    """theta ~ N(0, 1)², x = theta + N(0, 0.5²): the posterior is N(0.8 x, 0.2); 4,000 simulations."""
    rng = np.random.default_rng(3)
    theta = line.prior.sample(4000, rng)
    x = line.simulate(theta, rng)["x"]
    settings = EstimatorSettings(method="fmpe", field=FieldSettings(hidden=32, blocks=2), embedding=NONE)
    training = TrainingSettings(epochs=30, batch_size=200, learning_rate=4e-3)
    posterior = simfer.train(theta, x, line.prior, estimator=settings, training=training).posterior
    seen = line.simulate(line.prior.sample(200, rng), rng)["x"]
    exact = torch.distributions.Normal(0.8 * torch.from_numpy(seen), 0.2**0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = exact.sample((100,))
    gap = exact.log_prob(draws).sum(-1) - posterior.log_prob_batched(draws, seen)
    assert gap.mean(0).median() < 0.03  # the Kullback-Leibler divergence in nats
    for one in ([0.0, 0.0], [1.0, -1.5]):
        found = posterior.sample((5000,), np.array(one), seed=0)
        torch.testing.assert_close(found.mean(0), 0.8 * torch.tensor(one, dtype=torch.float64), atol=0.06, rtol=0)
        torch.testing.assert_close(found.std(0), torch.full((2,), 0.2**0.5, dtype=torch.float64), atol=0.04, rtol=0)


class StopError(Exception):
    pass


def test_resumed_equals_uninterrupted(line, pairs, tmp_path: Path) -> None:
    """Times and noise too are those of a training that was never interrupted."""

    def stop(now: int, train_loss: float, val_loss: float) -> None:
        if now == 1:
            raise StopError

    training = TrainingSettings(epochs=4, batch_size=100)
    arguments = {"prior": line.prior, "estimator": SMALL, "training": training, "seed": 4}
    whole = simfer.train(*pairs, **arguments)
    with pytest.raises(StopError):
        simfer.train(*pairs, **arguments, folder=tmp_path, on_epoch=stop)
    resumed = simfer.train(*pairs, **arguments, folder=tmp_path)
    assert resumed.facts["loss"] == whole.facts["loss"]
    for name, value in whole.estimator.state_dict().items():
        assert torch.equal(value, resumed.estimator.state_dict()[name]), name


def test_training_neither_uses_nor_moves_the_global_generator(line, pairs) -> None:
    training = TrainingSettings(epochs=2, batch_size=100)
    losses = []
    for state in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(state)
            before = torch.get_rng_state()
            losses.append(simfer.train(*pairs, line.prior, estimator=SMALL, training=training).facts["loss"])
            assert torch.equal(before, torch.get_rng_state())
    assert losses[0] == losses[1]


def test_noise_is_new_in_every_step_and_always_the_same_in_validation(estimator: FMPE, batch: Batch) -> None:
    first, second = estimator.loss(batch), estimator.loss(batch)
    assert not torch.equal(first, second)
    estimator.eval()
    with torch.no_grad():
        whole, again = estimator.loss(batch), estimator.loss(batch)
        part = estimator.loss(batch.select(slice(100, 200)))
    assert torch.equal(whole, again)
    torch.testing.assert_close(part, whole[100:200])


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_times_have_the_density_that_alpha_says(line, alpha: float) -> None:
    """The cdf of (1 + alpha) t^alpha is t^(1 + alpha)."""
    settings = EstimatorSettings(method="fmpe", field=FieldSettings(alpha=alpha), embedding=NONE)
    made = build_estimator(line.prior, line.observables, settings)
    t, start = made._path(torch.randn(1000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    assert stats.kstest(t.flatten().numpy() ** (1 + alpha), "uniform").pvalue > 1e-3
    assert stats.kstest(start.flatten().numpy(), "norm").pvalue > 1e-3


class Known(nn.Module):
    """The field that leads to N(0.8 x, 0.2), the posterior of the line; off by a shift or a slope."""

    def __init__(self, shift: float = 0.0, slope: float = 0.0) -> None:
        super().__init__()
        self.shift, self.slope, self.rate = shift, slope, 1 - SMALL.field.sigma_min

    def forward(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        mean, left = 0.8 * context, 1 - self.rate * t
        slope = (0.2 * t - self.rate * left) / (0.2 * t**2 + left**2)
        return mean + slope * (z - t * mean) + self.shift + self.slope * (z - t * mean)


def test_no_field_has_a_lower_loss_than_the_exact_one(line, rng) -> None:
    made = build_estimator(line.prior, line.observables, SMALL).eval()
    theta = line.prior.sample(20_000, rng)
    batch = Batch(torch.from_numpy(theta), {"x": torch.from_numpy(line.simulate(theta, rng)["x"]).float()})

    def loss(**wrong: float) -> Tensor:
        made.flow.field = Known(**wrong)
        return made.loss(batch)

    exact = loss()
    for wrong in ({"shift": 0.05}, {"shift": -0.05}, {"slope": 0.1}, {"slope": -0.1}):
        excess = loss(**wrong) - exact
        assert excess.mean() > 3 * excess.std() / len(excess) ** 0.5


def test_gradient_reaches_every_parameter(estimator: FMPE, batch: Batch) -> None:
    estimator.loss(batch).mean().backward()
    for name, parameter in estimator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_many_parameters_are_saved_and_loaded_bitwise(tmp_path: Path) -> None:
    """More than directions for the divergence."""
    prior = simfer.Prior({f"t{i}": torch.distributions.Normal(0.0, 1.0) for i in range(6)})
    settings = SMALL.model_copy(update={"field": FieldSettings(hidden=8, blocks=1, steps=4, probes=3)})
    made = build_estimator(prior, simfer.Variables([simfer.Variable("x", (6,))]), settings, seed=1).eval()
    model = Model(made, prior)
    model.save(tmp_path / "model")
    x = np.random.default_rng(0).standard_normal((3, 6))
    draws = model.posterior.sample_batched((5,), x, seed=0)
    loaded = load_model(tmp_path / "model").posterior
    assert torch.equal(loaded.sample_batched((5,), x, seed=0), draws)
    assert torch.equal(loaded.log_prob_batched(draws, x), model.posterior.log_prob_batched(draws, x))


def test_another_prior_is_refused(estimator: FMPE) -> None:
    with pytest.raises(ShapeError, match="FMPE cannot change it"):
        estimator.posterior(simfer.Prior({"a": torch.distributions.Normal(0.0, 2.0)}))
