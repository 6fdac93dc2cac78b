"""The struck oscillator: its equation of motion, its shifts, and a posterior by quadrature."""

from __future__ import annotations

import numpy as np

from simfer.simulators.damped_oscillator import BIN, DampedOscillator, signal


def test_later_by_whole_bins_is_shifted_by_whole_bins() -> None:
    theta = DampedOscillator.prior.sample(50, np.random.default_rng(0))
    later = theta + np.array([0.0, 0.0, 20 * BIN])
    np.testing.assert_allclose(signal(later)[:, 20:], signal(theta)[:, :-20], atol=1e-13)
    assert (signal(later)[:, :20] == 0).all()


def test_equation_of_motion() -> None:
    """s'' + 2 beta omega0 s' + omega0² s = 0 after the blow, with s = 0 and s' = 1 at it."""
    omega0, beta, h = 6.0, 0.3, 1e-4
    after = lambda t: signal(np.array([[omega0, beta, -t]]))[0, 0]
    for t in (0.1, 0.7, 2.0):
        second = (after(t + h) - 2 * after(t) + after(t - h)) / h**2
        first = (after(t + h) - after(t - h)) / (2 * h)
        assert abs(second + 2 * beta * omega0 * first + omega0**2 * after(t)) < 1e-5
    assert after(0.0) == 0
    np.testing.assert_allclose(after(h) / h, 1.0, atol=1e-2)


def test_noise_is_what_was_asked_for() -> None:
    theta = DampedOscillator.prior.sample(500, np.random.default_rng(1))
    noise = DampedOscillator(noise=0.05).simulate(theta, np.random.default_rng(2))["x"] - signal(theta)
    np.testing.assert_allclose(noise.std(), 0.05, rtol=0.01)


def test_posterior_ranks_of_tau_by_quadrature_are_uniform() -> None:
    """With omega0 and beta known, the exact distribution function of tau on a grid, at the true tau, is U(0, 1)."""
    simulator, rng = DampedOscillator(), np.random.default_rng(3)
    theta = simulator.prior.sample(100, rng)
    x = simulator.simulate(theta, rng)["x"]
    tau = np.linspace(1, 6, 1001)
    values = []
    for one, row in zip(theta, x, strict=True):
        grid = np.column_stack([np.tile(one[:2], (len(tau), 1)), tau])
        log_density = simulator.log_likelihood(grid, {"x": row[None]})
        density = np.exp(log_density - log_density.max())
        values.append(density[tau < one[2]].sum() / density.sum())
    assert abs(np.mean(values) - 0.5) < 3.3 * np.sqrt(1 / 12 / len(values))
    assert abs(np.std(values) - np.sqrt(1 / 12)) < 0.07
