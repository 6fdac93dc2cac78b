"""The exact posterior of the linear task, and the numbers that follow from it."""

from __future__ import annotations

import numpy as np

from simfer.simulators.robust_gaussian_linear import RobustGaussianLinear


def test_posterior_is_bayes_rule() -> None:
    """prior × likelihood − posterior must not depend on theta."""
    simulator, rng = RobustGaussianLinear(), np.random.default_rng(0)
    x = simulator.simulate(simulator.prior.sample(1, rng), rng)
    mean, sd = simulator.exact_posterior(x["x"])
    theta = mean + 2 * sd * rng.standard_normal((50, 10))
    log_joint = simulator.log_likelihood(theta, x) - 0.5 * (theta**2).sum(1)
    log_posterior = -0.5 * (((theta - mean) / sd) ** 2).sum(1)
    assert np.ptp(log_joint - log_posterior) < 1e-8


def test_fisher_information_of_the_posterior_in_x() -> None:
    """F = (d mean / dx)² / sd², diagonal: its largest eigenvalue, its trace, and KL = eps² / 2 · the largest."""
    simulator = RobustGaussianLinear()
    slope = simulator.exact_posterior(np.ones(10))[0] - simulator.exact_posterior(np.zeros(10))[0]
    information = (slope / simulator.exact_posterior(np.zeros(10))[1]) ** 2
    np.testing.assert_allclose([information.max(), information.sum()], [99.735, 797.75], rtol=1e-4)


def test_average_negative_log_density_of_the_posterior() -> None:
    sd = RobustGaussianLinear().exact_posterior(np.zeros(10))[1]
    np.testing.assert_allclose(np.log(sd * np.sqrt(2 * np.pi * np.e)).sum(), -2.8081, atol=1e-3)
