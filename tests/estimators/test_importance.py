"""Importance refinement against the exact posterior and evidence of the linear-Gaussian model."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from simfer.data.errors import UnsupportedError
from simfer.data.variables import Variable, Variables
from simfer.estimators.base import Posterior
from simfer.estimators.importance import pareto_k, refine
from simfer.simulators.prior import Prior

NOISE, SEEN = 0.5, np.array([[0.8, -0.3]])
EXACT_MEAN, EXACT_SD = SEEN[0] / (1 + NOISE**2), NOISE / np.sqrt(1 + NOISE**2)


class Wrong(Posterior):
    """A normal around the exact posterior: ``shift`` and ``scale`` in its standard deviations."""

    observables = Variables([Variable("x", (2,))])
    prior = Prior({name: {"dist": "Normal", "loc": 0.0, "scale": 1.0} for name in ("a", "b")})

    def __init__(self, shift: float, scale: float) -> None:
        self.normal = torch.distributions.Independent(
            torch.distributions.Normal(
                torch.from_numpy(EXACT_MEAN + shift * EXACT_SD), torch.full((2,), scale * EXACT_SD).double()
            ),
            1,
        )

    def sample_with_log_prob(self, sample_shape, x, *, seed=None):
        torch.manual_seed(seed)
        draws = self.normal.sample(sample_shape)
        return draws[:, None], self.normal.log_prob(draws)[:, None]

    sample_batched = log_prob_batched = rsample = to = sample_with_log_prob  # type: ignore[assignment]


def log_likelihood(theta: np.ndarray, x: dict[str, np.ndarray]) -> np.ndarray:
    return scipy.stats.norm.logpdf(x["x"], theta, NOISE).sum(1)


def test_a_wrong_posterior_is_made_exact() -> None:
    refined = refine(Wrong(0.5, 1.3), log_likelihood, {"x": SEEN}, draws=20_000, seed=1)
    draws, log_density = refined.resample(20_000, np.random.default_rng(0))
    assert refined.refusal == ""
    np.testing.assert_allclose(draws.mean(0), EXACT_MEAN, atol=4 * EXACT_SD / np.sqrt(20_000))
    np.testing.assert_allclose(draws.std(0), EXACT_SD, rtol=0.03)
    exact = scipy.stats.norm.logpdf(draws, EXACT_MEAN, EXACT_SD).sum(1)
    np.testing.assert_allclose(log_density, exact, atol=0.05)


@pytest.mark.slow
def test_the_evidence_lies_within_its_error() -> None:
    exact = scipy.stats.norm.logpdf(SEEN[0], 0, np.sqrt(1 + NOISE**2)).sum()
    errors = []
    for seed in range(100):
        refined = refine(Wrong(0.5, 1.3), log_likelihood, {"x": SEEN}, draws=500, seed=seed)
        errors.append((refined.log_evidence - exact) / refined.log_evidence_sd)
    assert abs(np.mean(errors)) < 0.4
    assert 0.75 < np.std(errors) < 1.3


def test_effective_draws_reach_what_was_asked_for() -> None:
    refined = refine(Wrong(1.0, 1.0), log_likelihood, {"x": SEEN}, draws=2000, seed=2)
    assert refined.ess >= 2000
    assert len(refined.log_weights) > 4000


def test_few_draws_are_taken_from_enough_effective_ones() -> None:
    refined = refine(Wrong(0.5, 1.3), log_likelihood, {"x": SEEN}, draws=50, seed=4)
    assert refined.refusal == ""
    assert refined.resample(50, np.random.default_rng(0))[0].shape == (50, 2)


def test_an_exact_posterior_has_equal_weights() -> None:
    refined = refine(Wrong(0.0, 1.0), log_likelihood, {"x": SEEN}, draws=1000)
    assert refined.efficiency == pytest.approx(1.0, abs=1e-9)
    assert refined.refusal == ""


@pytest.mark.parametrize(("shift", "scale"), [(8.0, 0.5), (0.0, 0.3)])
def test_a_hopeless_posterior_is_refused(shift: float, scale: float) -> None:
    assert refine(Wrong(shift, scale), log_likelihood, {"x": SEEN}, draws=1000).refusal


def test_a_likelihood_that_is_zero_everywhere_is_refused() -> None:
    refined = refine(Wrong(0, 1), lambda theta, x: np.full(len(theta), -np.inf), {"x": SEEN}, draws=500)
    assert "has not seen data like this" in refined.refusal
    assert refined.to_json()["log_evidence"] is None


def test_a_likelihood_of_nan_is_an_error() -> None:
    with pytest.raises(UnsupportedError, match="1000 NaN"):
        refine(Wrong(0, 1), lambda theta, x: np.full(len(theta), np.nan), {"x": SEEN}, draws=500)


@pytest.mark.parametrize("shape", [0.3, 1.0])
def test_pareto_k_recovers_the_shape_of_a_pareto_tail(shape: float) -> None:
    """Of a Pareto distribution whose shape has any value: 3 √n largest of 10⁶ give it to about 0.1."""
    weights = scipy.stats.genpareto.rvs(shape, size=10**6, random_state=3) + 1
    assert pareto_k(np.log(weights)) == pytest.approx(shape, abs=0.15)
