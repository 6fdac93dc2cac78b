"""Modes, conditionals and marginals against a posterior that is normal in the prior's unconstrained space."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from simfer.data.errors import ShapeError, UnsupportedError
from simfer.estimators.base import Posterior
from simfer.simulators.prior import Prior

MARGINALS = {
    "a": {"dist": "Uniform", "low": -1.0, "high": 1.0},
    "b": {"dist": "LogNormal", "loc": 0.2, "scale": 0.7},
    "c": {"dist": "Normal", "loc": 1.0, "scale": 2.0},
    "d": {"dist": "Exponential", "rate": 0.5},
}
NAMES = tuple(MARGINALS)
CENTRE = torch.tensor([0.3, -0.5, 0.8, 0.1])
FACTOR = torch.tensor([[0.5, 0, 0, 0], [0.3, 0.4, 0, 0], [-0.2, 0.1, 0.6, 0], [0.1, -0.3, 0.2, 0.4]])
COVARIANCE = FACTOR @ FACTOR.T


@pytest.fixture
def posterior(gaussian) -> Posterior:
    return gaussian(Prior(MARGINALS), COVARIANCE).posterior(Prior(MARGINALS)).set_default_x(CENTRE)


def exact_log_prob(theta: dict[str, Tensor], given: dict[str, float]) -> Tensor:
    """log p(theta | given) of a normal z, moved to theta."""
    free, known = ([NAMES.index(name) for name in names] for names in (theta, given))
    prior = Prior({name: MARGINALS[name] for name in theta})
    values = torch.stack(list(theta.values()), -1)
    z = prior.to_unconstrained(values)
    mean, covariance = CENTRE.double()[free], COVARIANCE.double()[free][:, free]
    if given:
        fixed = Prior({name: MARGINALS[name] for name in given}).to_unconstrained(torch.tensor([*given.values()]))
        gain = torch.linalg.solve(COVARIANCE.double()[known][:, known], COVARIANCE.double()[known][:, free]).T
        mean = mean + gain @ (fixed - CENTRE.double()[known])
        covariance = covariance - gain @ COVARIANCE.double()[known][:, free]
    normal = torch.distributions.MultivariateNormal(mean, covariance)
    return normal.log_prob(z) + prior.log_abs_det(values, z)


def test_the_mode_of_a_normal_is_its_centre(gaussian) -> None:
    prior = Prior({name: {"dist": "Normal", "loc": 0.0, "scale": 1.0} for name in NAMES})
    x = torch.stack([CENTRE, -CENTRE, 3 * CENTRE])
    modes = gaussian(prior, COVARIANCE).posterior(prior).map_batched(x)
    assert ((modes - x).abs() < 2e-3 * COVARIANCE.diagonal().sqrt()).all()


def test_the_mode_is_that_of_theta_and_not_of_z(gaussian) -> None:
    """log theta ~ N(x, C) has its mode at exp(x - C 1)."""
    prior = Prior({name: {"dist": "LogNormal", "loc": 0.0, "scale": 1.0} for name in NAMES})
    mode = gaussian(prior, COVARIANCE).posterior(prior).map(CENTRE)
    torch.testing.assert_close(mode.log(), (CENTRE - COVARIANCE.sum(1)).double(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("given", [{"a": 0.2, "c": 1.5, "d": 0.7}, {"b": 2.0, "d": 0.3}, {"d": 1.5}])
def test_conditionals_are_the_exact_ones(posterior: Posterior, given: dict[str, float]) -> None:
    conditional = posterior.conditional(given)
    draws = conditional.sample((4000,), seed=1)
    assert conditional.names == tuple(name for name in NAMES if name not in given)
    assert conditional.method == ("importance" if len(given) == 1 else "grid")
    theta = dict(zip(conditional.names, draws.T, strict=True))
    difference = conditional.log_prob(draws) - exact_log_prob(theta, given)
    assert difference.abs().max() < (0.05 if conditional.method == "importance" else 2e-3)
    prior = Prior({name: MARGINALS[name] for name in theta})
    other = Prior({name: MARGINALS[name] for name in given})
    z, fixed = prior.to_unconstrained(draws), other.to_unconstrained(torch.tensor([*given.values()]))
    free, known = ([NAMES.index(name) for name in names] for names in (theta, given))
    gain = torch.linalg.solve(COVARIANCE.double()[known][:, known], COVARIANCE.double()[known][:, free]).T
    mean = CENTRE.double()[free] + gain @ (fixed - CENTRE.double()[known])
    sd = (COVARIANCE.double()[free][:, free] - gain @ COVARIANCE.double()[known][:, free]).diagonal().sqrt()
    assert ((z.mean(0) - mean).abs() < 5 * sd / math.sqrt(4000)).all()
    torch.testing.assert_close(z.std(0), sd, rtol=0.08, atol=0)


@pytest.mark.parametrize("names", [("c", "a", "d"), ("b", "d"), ("a",)])
def test_marginals_are_the_exact_ones(posterior: Posterior, names: tuple[str, ...]) -> None:
    marginal = posterior.marginal(names)
    draws = marginal.sample((3,), seed=2)
    assert draws.shape == (3, len(names))
    exact = exact_log_prob(dict(zip(names, draws.T, strict=True)), {})
    torch.testing.assert_close(marginal.log_prob(draws), exact, atol=0.05 if len(names) == 1 else 2e-3, rtol=0)


def test_outside_the_support_there_is_nothing(posterior: Posterior) -> None:
    assert posterior.marginal(("b", "c", "d")).log_prob(torch.tensor([-1.0, 0.0, 1.0])) == -math.inf
    conditional = posterior.conditional({"b": 1.0, "c": 0.0, "d": 1.0})
    assert conditional.log_prob(torch.tensor([[1.5], [0.0]])).isinf().tolist() == [True, False]
    with pytest.raises(UnsupportedError, match="`given` must lie where the posterior has mass; it has none at b = -1"):
        posterior.conditional({"b": -1.0})


def test_two_far_modes_are_both_found(gaussian) -> None:
    """a² is known, so that a is known but for its sign."""
    prior = Prior({name: {"dist": "Normal", "loc": 0.0, "scale": 1.0} for name in ("a", "b")})
    estimator = gaussian(prior, torch.eye(2))
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor([0.3, 0.7])),
        torch.distributions.MultivariateNormal(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), 0.01 * torch.eye(2)),
    )
    estimator.density = lambda context: mixture.expand(context.shape[:1])
    conditional = estimator.posterior(prior).conditional({"b": 0.05}, torch.zeros(2))
    draws = conditional.sample((2000,), seed=0)
    assert (draws > 0).double().mean().item() == pytest.approx(0.7, abs=0.05)
    assert conditional.log_prob(torch.tensor([2.0])).exp().item() == pytest.approx(
        0.7 / (0.1 * math.sqrt(2 * math.pi)), rel=1e-2
    )


@pytest.mark.parametrize("names", [("e",), (), NAMES])
def test_names_must_be_some_of_the_parameters(posterior: Posterior, names: tuple[str, ...]) -> None:
    with pytest.raises(ShapeError, match=r"no parameter `e`|some of a, b, c, d must be named"):
        posterior.marginal(names)
    with pytest.raises(ShapeError, match=r"no parameter `e`|some of a, b, c, d must be named"):
        posterior.conditional(dict.fromkeys(names, 0.1))
