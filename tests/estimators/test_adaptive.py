"""Adaptive refinement on posteriors in eight dimensions whose shape and evidence are known; the network is a broad normal."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch

from simfer.data.errors import UnsupportedError
from simfer.data.variables import Variable, Variables
from simfer.estimators.adaptive import RefineMethod, refine_adaptively
from simfer.estimators.base import Posterior
from simfer.estimators.importance import LEAST_ESS, Refined, refine
from simfer.simulators.prior import Prior

DIM, SEEN = 8, {"x": np.zeros((1, 1))}
METHODS: tuple[RefineMethod, ...] = ("adaptive", "smc")
Likelihood = Callable[[np.ndarray, dict[str, np.ndarray]], np.ndarray]


class Broad(Posterior):
    """N(loc, scale²) in every parameter, whatever the observation."""

    observables = Variables([Variable("x", (1,))])
    prior = Prior({f"t{i}": {"dist": "Normal", "loc": 0.0, "scale": 1.0} for i in range(DIM)})

    def __init__(self, scale: float, loc: float = 0.0) -> None:
        centre, width = (torch.full((DIM,), value, dtype=torch.float64) for value in (loc, scale))
        self.normal = torch.distributions.Independent(torch.distributions.Normal(centre, width), 1)

    def sample_with_log_prob(self, sample_shape, x, *, seed=None):
        torch.manual_seed(seed)
        draws = self.normal.sample(sample_shape)
        return draws[:, None], self.normal.log_prob(draws)[:, None]

    def log_prob_batched(self, theta, x, track_gradients=False):
        return self.normal.log_prob(theta)

    sample_batched = rsample = to = sample_with_log_prob  # type: ignore[assignment]


def likelihood_of(posterior: Callable[[np.ndarray], np.ndarray]) -> Likelihood:
    """The likelihood whose posterior has this normalised log density, and whose evidence is 1."""
    prior = torch.distributions.Normal(0.0, 1.0)
    return lambda theta, x: posterior(theta) - prior.log_prob(torch.from_numpy(theta)).sum(1).numpy()


def bananas(theta: np.ndarray) -> np.ndarray:
    """Two pairs of parameters of which one bends with the square of the other; volume is kept."""
    y = theta / 0.3
    for i in (0, 2):
        y[:, i + 1] -= 0.5 * (y[:, i] ** 2 - 1)
    return scipy.stats.norm.logpdf(y).sum(1) - DIM * np.log(0.3)


def bimodal(theta: np.ndarray) -> np.ndarray:
    """Two thirds at 0.4, one third at -0.4, eight standard deviations apart in every parameter."""
    parts = [
        np.log(share) + scipy.stats.norm.logpdf(theta, at, 0.1).sum(1) for share, at in ((2 / 3, 0.4), (1 / 3, -0.4))
    ]
    return np.logaddexp(*parts)


def refined(
    method: RefineMethod, posterior: Callable[[np.ndarray], np.ndarray], seed: int, scale: float = 1.0
) -> Refined:
    return refine_adaptively(
        Broad(scale), likelihood_of(posterior), SEEN, method=method, ess=2000, likelihoods=60_000, seed=seed
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_banana_is_recovered_where_plain_importance_is_refused(method: RefineMethod) -> None:
    assert refine_adaptively(
        Broad(1.0), likelihood_of(bananas), SEEN, method="importance", ess=2000, likelihoods=20_000
    ).refusal
    found = refined(method, bananas, seed=1)
    assert not found.refusal
    assert found.ess >= 2000
    draws = found.resample(4000, np.random.default_rng(0))[0] / 0.3
    bent = draws[:, 1] - 0.5 * (draws[:, 0] ** 2 - 1)
    assert abs(bent.mean()) < 4 * bent.std() / 2000**0.5
    assert bent.std() == pytest.approx(1.0, abs=0.07)
    assert draws[:, 4].std() == pytest.approx(1.0, abs=0.07)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_both_modes_keep_their_weight(method: RefineMethod) -> None:
    found = refined(method, bimodal, seed=1)
    assert not found.refusal
    draws = found.resample(4000, np.random.default_rng(0))[0]
    assert (draws[:, 0] > 0).mean() == pytest.approx(2 / 3, abs=4 * 0.47 / 2000**0.5)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_evidence_lies_within_three_standard_errors(method: RefineMethod) -> None:
    found = [refined(method, bananas, seed) for seed in range(10)]
    errors = [each.log_evidence / each.log_evidence_sd for each in found]
    assert not any(each.refusal for each in found)
    assert np.abs(errors).max() < 3.5  # of 10; 3 alone would be exceeded once in forty tests
    assert abs(np.mean(errors)) < 3.3 / 10**0.5


def test_the_network_alone_is_kept_where_it_suffices() -> None:
    found = refine_adaptively(
        Broad(0.3), likelihood_of(lambda theta: scipy.stats.norm.logpdf(theta, 0, 0.3).sum(1)), SEEN
    )
    assert found.efficiency == pytest.approx(1.0, abs=1e-6)
    assert found.network_efficiency == pytest.approx(1.0, abs=1e-6)
    assert found.likelihoods <= 11_100  # ten thousand effective draws, and a tenth at most that were not needed


@pytest.mark.parametrize("method", ["importance", *METHODS])
@pytest.mark.parametrize("budget", [1, 99, 500, 7001])
def test_no_more_likelihoods_than_allowed(method: RefineMethod, budget: int) -> None:
    asked = 0

    def counted(theta: np.ndarray, x: dict[str, np.ndarray]) -> np.ndarray:
        nonlocal asked
        asked += len(theta)
        return likelihood_of(bananas)(theta, x)

    found = refine_adaptively(Broad(1.0), counted, SEEN, method=method, ess=2000, likelihoods=budget, seed=3)
    assert asked == found.likelihoods <= budget
    if budget <= 500:
        assert "likelihoods are spent" in found.refusal


def test_time_is_a_budget_too() -> None:
    found = refine_adaptively(Broad(1.0), likelihood_of(bananas), SEEN, seconds=1e-9)
    assert found.likelihoods <= 5000
    assert "seconds are over" in found.refusal


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides(method: RefineMethod) -> None:
    first, same, other = (refined(method, bananas, seed, 0.5) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first.proposals, same.proposals)
    assert first.log_evidence == same.log_evidence != other.log_evidence


def test_a_likelihood_that_is_zero_everywhere_is_refused() -> None:
    found = refine_adaptively(Broad(1.0), lambda theta, x: np.full(len(theta), -np.inf), SEEN, likelihoods=2000)
    assert "has not seen data like this" in found.refusal
    assert found.to_json()["log_evidence"] is None


def test_a_likelihood_of_nan_is_an_error() -> None:
    with pytest.raises(UnsupportedError, match="NaN"):
        refine_adaptively(Broad(1.0), lambda theta, x: np.full(len(theta), np.nan), SEEN, likelihoods=2000)


def test_plain_importance_is_the_same_estimate_by_either_door() -> None:
    exact = likelihood_of(lambda theta: scipy.stats.norm.logpdf(theta, 0, 0.3).sum(1))
    old = refine(Broad(0.4), exact, SEEN, draws=2000)
    new = refine_adaptively(Broad(0.4), exact, SEEN, method="importance", ess=2000, likelihoods=50_000)
    assert old.log_evidence == pytest.approx(new.log_evidence, abs=4 * old.log_evidence_sd)
    assert new.ess >= 2000 > LEAST_ESS
