"""The Lotka-Volterra simulators against their settings, and the real hares against the exact posterior."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.stats
import torch

from simfer.simulators.lotka_volterra import LotkaVolterra
from simfer.simulators.lotka_volterra_pelts import LotkaVolterraPelts
from simfer.simulators.robust_lotka_volterra import RobustLotkaVolterra, populations

REFERENCE = Path(__file__).parents[1] / "reference" / "hare_lynx_reference.npz"


def test_noise_is_a_tenth_around_the_known_start() -> None:
    theta = LotkaVolterra.prior.sample(20_000, np.random.default_rng(0))
    log_x = np.log(LotkaVolterra().simulate(theta, np.random.default_rng(1))["x"][:, [0, 10]])
    assert (np.abs(log_x.mean(0) - np.log([30.0, 1.0])) < 5 * 0.1 / np.sqrt(len(theta))).all()
    np.testing.assert_allclose(log_x.std(0), 0.1, rtol=0.03)


def test_equilibrium_of_the_benchmark_stands_still() -> None:
    """X = gamma / delta, Y = alpha / beta at X(0) = 30, Y(0) = 1."""
    x = LotkaVolterra().simulate(np.tile([0.5, 0.5, 0.9, 0.03], (5000, 1)), np.random.default_rng(2))["x"]
    np.testing.assert_allclose(np.median(x, axis=0), np.repeat([30.0, 1.0], 10), rtol=0.01)


def test_robust_equilibrium_stands_still() -> None:
    """At theta = 0 all rates are exp(1/2), and X = Y = 1 is the fixed point."""
    np.testing.assert_allclose(populations(np.zeros((1, 4))), 1.0, rtol=1e-6)


def test_robust_noise_is_added() -> None:
    x = RobustLotkaVolterra().simulate(np.zeros((5000, 4)), np.random.default_rng(3))["x"]
    np.testing.assert_allclose(x.std(), 0.05, rtol=0.02)
    np.testing.assert_allclose(x.mean(0), 1.0, atol=5 * 0.05 / np.sqrt(5000))


def test_species_have_noise_of_their_own() -> None:
    theta = np.tile([0.55, 0.028, 0.8, 0.024, 34.0, 6.0, 0.1, 0.4], (20_000, 1))
    x = LotkaVolterraPelts().simulate(theta, np.random.default_rng(4))
    for name, median, sigma in (("hares", 34.0, 0.1), ("lynx", 6.0, 0.4)):
        logs = np.log(x[name])
        np.testing.assert_allclose(logs.std(0), sigma, rtol=0.03)
        assert abs(logs[:, 0].mean() - np.log(median)) < 5 * sigma / np.sqrt(len(theta))


def test_importance_sampling_with_the_likelihood_gives_the_reference_posterior() -> None:
    """Means within 0.07 sd, sds within 6 %; the reference's draws enter through the proposal's shape only."""
    with np.load(REFERENCE) as file:
        assert tuple(file["names"]) == LotkaVolterraPelts.prior.names
        reference = np.asarray(file["samples"], dtype=float)
    logs = np.log(reference)
    proposal = scipy.stats.multivariate_t(logs.mean(0), 1.3 * np.cov(logs.T), df=7, seed=5)
    log_theta = proposal.rvs(20_000)
    theta = np.exp(log_theta)
    simulator = LotkaVolterraPelts()
    x = {name: np.array([values]) for name, values in simulator.observations["hare_lynx_1900_1920"].items()}
    log_target = simulator.log_likelihood(theta, x) + simulator.prior.log_prob(torch.from_numpy(theta)).numpy()
    log_weight = log_target + log_theta.sum(1) - proposal.logpdf(log_theta)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    assert 1 / (weight**2).sum() > 5000
    mean = weight @ theta
    sd = np.sqrt(weight @ (theta - mean) ** 2)
    assert (np.abs(mean - reference.mean(0)) < 0.07 * sd).all()
    np.testing.assert_allclose(sd, reference.std(0), rtol=0.06)
    np.testing.assert_allclose(mean[:4], [0.548, 0.0278, 0.799, 0.0240], rtol=0.015)
