"""Neural ratios: losses whose optimum is the exact ratio, and the posteriors that follow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import simfer
from simfer.data.loaders import as_batch
from simfer.data.variables import Variable, Variables
from simfer.estimators.model import Model, build_estimator, load_model
from simfer.estimators.nre import balanced_loss, contrastive_loss, rolled
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, RatioSettings, TrainingSettings
from simfer.simulators.prior import Prior

PRIOR = Prior({name: torch.distributions.Normal(0.0, 1.0) for name in "ab"})
NOISE = 0.5
LOSSES = {"contrastive": contrastive_loss, "balanced": balanced_loss}


def simulated(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(rows, 2, generator=generator)
    return theta, theta + NOISE * torch.randn(rows, 2, generator=generator)


def exact_log_ratio(theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    marginal = torch.distributions.Normal(0.0, (1 + NOISE**2) ** 0.5)
    return (torch.distributions.Normal(theta, NOISE).log_prob(x) - marginal.log_prob(x)).sum(-1)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("gamma", [0.3, 1.0, 10.0])
def test_the_exact_ratio_minimises_the_loss(kind: str, gamma: float) -> None:
    """Against its multiples, shifts and tilts; NRE-C determines the constant, too."""
    settings = RatioSettings(kind=kind, gamma=gamma)
    theta, x = simulated(40_000)
    others = rolled(theta, 5 if kind == "contrastive" else 1)

    def loss(scale: float, shift: float, tilt: float) -> float:
        joint, contrast = (scale * exact_log_ratio(t, x) + shift + tilt * t[..., 0] for t in (theta, others))
        return float(LOSSES[kind](joint, contrast, settings).mean())

    best = loss(1, 0, 0)
    for changed in ((1.3, 0, 0), (0.7, 0, 0), (1, 0.5, 0), (1, -0.5, 0), (1, 0, 0.4)):
        assert loss(*changed) > best


def test_one_contrast_at_even_odds_is_cross_entropy() -> None:
    """NRE-C with K = γ = 1 is NRE-A, as is BNRE without its condition."""
    joint, others = torch.randn(50), torch.randn(1, 50)
    torch.testing.assert_close(
        2 * contrastive_loss(joint, others, RatioSettings(contrasts=1)),
        balanced_loss(joint, others, RatioSettings(kind="balanced", balance=0.0)),
    )


def test_the_balancing_condition_costs_what_it_says() -> None:
    joint, others = torch.full((4,), 2.0), torch.full((1, 4), 1.0)
    free, bound = (balanced_loss(joint, others, RatioSettings(kind="balanced", balance=b)) for b in (0.0, 10.0))
    unbalance = torch.tensor(2.0).sigmoid() + torch.tensor(1.0).sigmoid() - 1
    torch.testing.assert_close(bound - free, 10 * unbalance.square().expand(4))


@pytest.mark.parametrize(("rows", "contrasts"), [(256, 5), (7, 6), (4, 9), (2, 5)])
def test_contrasts_are_other_rows(rows: int, contrasts: int) -> None:
    z = torch.arange(float(rows))[:, None]
    others = rolled(z, contrasts)
    assert others.shape == (min(contrasts, rows - 1), rows, 1)
    assert (others != z).all()
    assert all(len(set(column.tolist())) == len(others) for column in others[..., 0].T)
    assert rolled(z[:1], contrasts).shape == (1, 1, 1)


def trained(kind: str, **settings) -> Model:
    theta, x = simulated(6000, seed=1)
    estimator = EstimatorSettings(method="nre", ratio=RatioSettings(kind=kind), **settings)
    training = TrainingSettings(epochs=12, batch_size=100, learning_rate=2e-3)
    return simfer.train(theta.numpy(), x.numpy(), PRIOR, estimator=estimator, training=training)


@pytest.fixture(scope="module", params=LOSSES)
def model(request: pytest.FixtureRequest) -> Model:
    return trained(request.param)


@pytest.mark.slow
@pytest.mark.parametrize("trials", [1, 10])
def test_posterior_of_many_observations_is_near_the_conjugate_one(model: Model, trials: int) -> None:
    x = np.array([0.5, -0.2]) + NOISE * np.random.default_rng(trials).standard_normal((trials, 2))
    precision = 1 + trials / NOISE**2
    draws = model.posterior.sample((2000,), x, seed=0)
    sd = precision**-0.5
    np.testing.assert_allclose(draws.mean(0), x.sum(0) / NOISE**2 / precision, atol=0.35 * sd + 0.06)
    np.testing.assert_allclose(draws.std(0), sd, rtol=0.35)


@pytest.mark.slow
def test_the_ratio_has_no_unknown_constant() -> None:
    """E of exp h over pairs of the marginals is 1."""
    estimator = trained("contrastive").estimator
    theta, x = simulated(20_000, seed=3)
    with torch.no_grad():
        ratio = estimator.log_ratio(theta.roll(1, 0), x).exp()
    assert ratio.mean().item() == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
def test_save_and_load_change_nothing(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    loaded, x = load_model(tmp_path / "model"), np.ones((3, 2))
    draws = model.posterior.sample_batched((20,), x, seed=0)
    assert torch.equal(loaded.posterior.sample_batched((20,), x, seed=0), draws)
    assert torch.equal(loaded.posterior.log_prob_batched(draws, x), model.posterior.log_prob_batched(draws, x))


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("embedding", ["mlp", "none"])
def test_gradients_reach_every_parameter(kind: str, embedding: str) -> None:
    settings = EstimatorSettings(
        method="nre", ratio=RatioSettings(kind=kind, hidden=(16, 16, 8)), embedding=EmbeddingSettings(kind=embedding)
    )
    estimator = build_estimator(PRIOR, Variables([Variable("x", (2,))]), settings)
    theta, x = simulated(50)
    estimator.loss(as_batch(theta.double().numpy(), {"x": x.numpy()})).mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in estimator.parameters())
