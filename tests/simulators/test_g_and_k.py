"""The g-and-k distribution: closed forms at g = k = 0, and the density as the derivative of what inverts Q."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
from scipy.integrate import quad
from scipy.special import ndtri

from simfer.simulators.g_and_k import GAndK


def test_without_skew_and_tails_it_is_normal() -> None:
    theta, x = np.array([[1.0, 2.0, 0.0, 0.0]]), np.linspace(-6, 8, 7)[None]
    found = GAndK(7).log_likelihood(theta, {"x": x})
    np.testing.assert_allclose(found, scipy.stats.norm.logpdf(x, 1, 2).sum(1), rtol=1e-12)


@pytest.mark.parametrize(
    "theta", [(3.0, 1.0, 0.1, 0.1), (3.0, 1.0, 2.0, 0.5), (0.0, 5.0, 10.0, 0.01), (9.0, 0.2, 1.0, 4.0)]
)
def test_density_at_a_quantile_is_that_of_z_over_the_slope_of_q(theta: tuple[float, ...]) -> None:
    """To 1e-8, by a complex step through Q, for z from -6 to 6."""
    z = np.linspace(-6, 6, 241)[:, None]
    rows = np.tile(theta, (len(z), 1))
    step = 1e-30j

    def quantile(z: np.ndarray) -> np.ndarray:
        a, b, g, k = theta
        return a + b * (1 + 0.8 * np.tanh(g * z / 2)) * z * (1 + z**2) ** k

    slope = quantile(z + step).imag / step.imag
    exact = (scipy.stats.norm.logpdf(z) - np.log(slope))[:, 0]
    np.testing.assert_allclose(GAndK(1).log_likelihood(rows, {"x": quantile(z)}), exact, atol=1e-8)


def test_density_integrates_to_one() -> None:
    theta = np.array([[3.0, 1.0, 2.0, 0.5]])
    density = lambda x: float(np.exp(GAndK(1).log_likelihood(theta, {"x": np.array([[x]])})[0]))
    parts = [quad(density, a, b, epsabs=1e-10, limit=200)[0] for a, b in pairwise((-np.inf, 0.0, 3.0, 10.0, np.inf))]
    np.testing.assert_allclose(sum(parts), 1.0, atol=1e-7)


def test_u_alone_is_the_randomness() -> None:
    simulator = GAndK(50)
    theta = simulator.prior.sample(8, np.random.default_rng(0))
    direct = simulator.simulate(theta, np.random.default_rng(1))["x"]
    u = simulator.sample_u(8, np.random.default_rng(1))
    assert u.shape == (8, *simulator.u_shape)
    np.testing.assert_array_equal(direct, simulator.simulate_from_u(theta, u)["x"])


def test_u_is_the_quantile() -> None:
    theta, u = np.array([[3.0, 1.0, 2.0, 0.5]]), np.array([[0.5, 0.1, 0.9]])
    x = GAndK(3).simulate_from_u(theta, u)["x"]
    z = ndtri(u)
    skew = (1 - np.exp(-2.0 * z)) / (1 + np.exp(-2.0 * z))
    np.testing.assert_allclose(x, 3 + (1 + 0.8 * skew) * z * np.sqrt(1 + z**2), rtol=1e-12)
    assert (np.argsort(x[0]) == [1, 0, 2]).all()
