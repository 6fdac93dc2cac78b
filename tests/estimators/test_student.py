"""Mixtures of Student's t: a density that its draws follow, and fits that find what draws came from."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from simfer.estimators.student import FREEDOM, StudentMixture, fit_student

MEAN, COVARIANCE = np.array([1.0, -2.0]), np.array([[1.0, 0.6], [0.6, 0.5]])


def one() -> StudentMixture:
    return StudentMixture(np.zeros(1), MEAN[None], np.linalg.cholesky(COVARIANCE)[None])


def test_one_component_is_scipys(rng: np.random.Generator) -> None:
    z = rng.standard_normal((100, 2)) * 4
    expected = scipy.stats.multivariate_t(MEAN, COVARIANCE, FREEDOM).logpdf(z)
    np.testing.assert_allclose(one().log_prob(z), expected, rtol=1e-10)


def test_draws_follow_the_density(rng: np.random.Generator) -> None:
    draws = one().sample(20_000, rng)
    for axis in range(2):
        marginal = scipy.stats.t(FREEDOM, MEAN[axis], COVARIANCE[axis, axis] ** 0.5)
        assert scipy.stats.kstest(draws[:, axis], marginal.cdf).pvalue > 1e-3


def test_shares_are_kept(rng: np.random.Generator) -> None:
    mixture = StudentMixture(np.log([0.2, 0.8]), np.array([[-50.0], [50.0]]), np.ones((2, 1, 1)))
    assert (mixture.sample(10_000, rng) > 0).mean() == pytest.approx(0.8, abs=0.015)


def test_a_fit_finds_the_mixture_and_its_weights(rng: np.random.Generator) -> None:
    z = rng.standard_normal((8000, 3))
    z[:4000] += 8
    weights = np.where(np.arange(8000) < 4000, 3.0, 1.0)
    fitted = fit_student(z, weights, rng)
    draws = fitted.sample(8000, rng)
    assert (draws[:, 0] > 4).mean() == pytest.approx(0.75, abs=0.02)
    assert np.median(draws[draws[:, 0] > 4], 0) == pytest.approx(8.0, abs=0.15)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_handful_of_draws_is_no_error(rows: int, rng: np.random.Generator) -> None:
    fitted = fit_student(rng.standard_normal((rows, 3)), np.ones(rows), rng)
    assert np.isfinite(fitted.log_prob(rng.standard_normal((10, 3)))).all()
