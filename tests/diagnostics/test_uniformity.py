"""The test of uniformity: exact p-values, a band that means what it says."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from simfer.diagnostics.uniformity import uniformity_test as uniformity


def test_p_values_of_uniform_samples_are_uniform() -> None:
    rng = np.random.default_rng(0)
    p = [uniformity(rng.uniform(size=200)).p_value for _ in range(1500)]
    assert scipy.stats.kstest(p, "uniform").pvalue > 1e-3


def test_p_value_agrees_with_brute_force() -> None:
    """For 30 values, against the smallest binomial tail of 20,000 simulated samples."""
    rng, n = np.random.default_rng(1), 30
    levels = np.arange(1, n) / n

    def smallest_tail(u: np.ndarray) -> np.ndarray:
        counts = (u[..., None] <= levels).sum(-2)
        return np.minimum(scipy.stats.binom.cdf(counts, n, levels), scipy.stats.binom.sf(counts - 1, n, levels)).min(-1)

    null = smallest_tail(rng.uniform(size=(20_000, n)))
    for u in (rng.uniform(size=n), rng.beta(2, 2, size=n), rng.beta(1.5, 1, size=n)):
        brute = float((null <= smallest_tail(u) * (1 + 1e-12)).mean())
        assert uniformity(u).p_value == pytest.approx(brute, abs=4 * (brute * (1 - brute) / 20_000) ** 0.5 + 1e-3)


@pytest.mark.parametrize("n", [20, 150, 2000])
def test_the_band_is_left_if_and_only_if_p_is_below_alpha(n: int) -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        result = uniformity(rng.beta(1, 1 + rng.uniform(0, 2) / n**0.5, size=n), alpha=0.1)
        outside = (result.ecdf < result.lower - 1e-12) | (result.ecdf > result.upper + 1e-12)
        assert outside.any() == (result.p_value < 0.1)


def test_the_band_holds_a_uniform_sample_as_often_as_stated() -> None:
    rng, alpha, trials = np.random.default_rng(3), 0.05, 1000
    left = sum(uniformity(rng.uniform(size=500), alpha=alpha).p_value < alpha for _ in range(trials))
    assert scipy.stats.binomtest(left, trials, alpha, alternative="greater").pvalue > 1e-3


def test_gross_departures_have_p_of_about_zero() -> None:
    assert uniformity(np.full(500, 0.5)).p_value < 1e-10
    assert uniformity(np.linspace(0, 0.2, 500)).p_value < 1e-10
