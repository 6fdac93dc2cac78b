"""The shipped simulators against what is known of them."""

from __future__ import annotations

import numpy as np
import scipy.stats

from simfer.simulators.gaussian_linear import GaussianLinear
from simfer.simulators.influenza_1978 import Influenza1978, expected_in_bed
from simfer.simulators.two_moons import TwoMoons


def test_influenza_step_is_small_enough_over_the_prior() -> None:
    theta = Influenza1978.prior.sample(5000, np.random.default_rng(0))
    coarse, fine = expected_in_bed(theta), expected_in_bed(theta, step=1 / 160)
    assert (np.abs(coarse - fine) <= 1e-4 * np.abs(fine) + 1e-6).all()


def test_influenza_counts_have_the_negative_binomials_mean_and_variance() -> None:
    theta = np.tile([1.7, 0.5, 0.14], (100_000, 1))
    counts = Influenza1978().simulate(theta, np.random.default_rng(1))["in_bed"].astype(float)
    mean = expected_in_bed(theta[:1])[0]
    variance = mean + 0.14 * mean**2
    standard_error = np.sqrt(variance / len(theta))
    assert (np.abs(counts.mean(0) - mean) < 5 * standard_error).all()
    np.testing.assert_allclose(counts.var(0), variance, rtol=0.05)


def test_influenza_without_dispersion_is_poisson() -> None:
    counts = Influenza1978().simulate(np.tile([1.7, 0.5, 0.0], (20_000, 1)), np.random.default_rng(1))["in_bed"]
    np.testing.assert_allclose(counts.var(0), counts.mean(0), rtol=0.1)


def test_gaussian_linear_variances_are_a_tenth() -> None:
    simulator = GaussianLinear()
    theta = simulator.prior.sample(50_000, np.random.default_rng(0))
    noise = simulator.simulate(theta, np.random.default_rng(1))["x"] - theta
    np.testing.assert_allclose(theta.var(0), 0.1, rtol=0.05)
    np.testing.assert_allclose(noise.var(0), 0.1, rtol=0.05)


def test_two_moons_density_fits_its_simulator() -> None:
    """The probability of a box by counting simulations and by integrating the density."""
    theta = np.array([0.3, -0.1])
    x = TwoMoons().simulate(np.tile(theta, (200_000, 1)), np.random.default_rng(0))["x"]
    low, high = np.array([0.18, -0.3]), np.array([0.23, -0.25])
    counted = int(((x > low) & (x < high)).all(1).sum())
    grid = np.stack(np.meshgrid(*[np.linspace(a, b, 400) for a, b in zip(low, high, strict=True)], indexing="ij"), -1)
    density = TwoMoons().log_likelihood(theta[None], {"x": grid.reshape(-1, 2)})
    mass = np.exp(density).mean() * np.prod(high - low)
    assert 0.01 < mass < 0.99
    assert scipy.stats.binomtest(counted, len(x), float(mass)).pvalue > 1e-3


def test_two_moons_cannot_tell_theta_from_its_mirror_image() -> None:
    rng = np.random.default_rng(0)
    theta, x = rng.uniform(-1, 1, (100, 2)), rng.normal(0, 0.3, (100, 2))
    density, mirrored = (TwoMoons().log_likelihood(t, {"x": x}) for t in (theta, -theta[:, ::-1]))
    np.testing.assert_array_equal(density, mirrored)


def test_influenza_likelihood_fits_its_simulator() -> None:
    """Counts of one day: frequencies against probabilities, which sum to one."""
    theta, counts = np.array([[1.7, 0.5, 0.14]]), np.arange(3000)
    x = np.tile(counts[:, None], (1, 14))
    alone = [Influenza1978().log_likelihood(theta, {"in_bed": np.where(np.arange(14) == day, x, 0)}) for day in (3, 6)]
    fewest = Influenza1978().log_likelihood(theta, {"in_bed": np.zeros((1, 14), int)})
    for day, values in zip((3, 6), alone, strict=True):
        relative = np.exp(values - fewest)  # p(n) / p(0) of that day
        probability = relative / relative.sum()
        drawn = Influenza1978().simulate(np.tile(theta, (50_000, 1)), np.random.default_rng(day))["in_bed"][:, day]
        mean = probability @ counts
        assert abs(drawn.mean() - mean) < 5 * drawn.std() / np.sqrt(len(drawn))
        assert (
            scipy.stats.binomtest(int((drawn <= mean).sum()), len(drawn), probability[: int(mean) + 1].sum()).pvalue
            > 1e-3
        )
