"""The neuron against scipy's stiff integrator and its own closed forms."""

from __future__ import annotations

import numpy as np
from scipy.integrate import solve_ivp

from simfer.simulators.hodgkin_huxley import HodgkinHuxley, derivative, voltage

TIMES = np.linspace(0, 60, 200)


def _scipy(theta: np.ndarray) -> np.ndarray:
    """The same right-hand side, one row, an implicit method, and time and switches done by scipy."""
    v = -70.0
    still = derivative(np.array([[v], [0], [0], [0], [0.0]]), np.append(theta, 0.0)[:, None])[:, 0]
    full = derivative(np.array([[v], [1], [1], [1], [1.0]]), np.append(theta, 0.0)[:, None])[:, 0]
    gates = still[1:] / (still[1:] - full[1:])
    state, traces = np.append(v, gates), []
    for start, end, current in ((0, 10, 0.0), (10, 50, 5e-4 / (np.pi * 70e-4**2)), (50, 61, 0.0)):
        wanted = TIMES[(start <= TIMES) & (end > TIMES)]
        parameters = np.append(theta, current)[:, None]
        done = solve_ivp(
            lambda t, y, p=parameters: derivative(y[:, None], p)[:, 0],
            (start, end),
            state,
            "LSODA",
            rtol=1e-10,
            atol=1e-12,
            dense_output=True,
        )
        traces.append(done.sol(wanted)[0])
        state = done.y[:, -1]
    return np.concatenate(traces)


def test_traces_agree_with_scipy() -> None:
    theta = HodgkinHuxley.prior.sample(4, np.random.default_rng(0))
    ours = voltage(theta)
    for row, one in zip(ours, theta, strict=True):
        np.testing.assert_allclose(row, _scipy(one), atol=0.02)


def test_error_is_far_below_the_noise_over_the_prior() -> None:
    theta = HodgkinHuxley.prior.sample(200, np.random.default_rng(1))
    assert np.abs(voltage(theta) - voltage(theta, rtol=1e-9)).max() < 0.05


def test_leak_alone_relaxes_exponentially() -> None:
    """Without channels dV = C [0.1 (E_leak − V) + I]: towards E_leak, then to E_leak + 10 I while the current flows."""
    theta = np.array([[0.0, 0.0, 0.0, 1.1, -60.0, 50.0, -100.0]])
    rate, plateau = 0.11, -60.0 + 10 * 5e-4 / (np.pi * 70e-4**2)
    before = -60.0 - 10.0 * np.exp(-rate * TIMES)
    at_ten = -60.0 - 10.0 * np.exp(-rate * 10)
    during = plateau + (at_ten - plateau) * np.exp(-rate * (TIMES - 10))
    at_fifty = plateau + (at_ten - plateau) * np.exp(-rate * 40)
    after = -60.0 + (at_fifty + 60.0) * np.exp(-rate * (TIMES - 50))
    exact = np.select([TIMES < 10, TIMES < 50], [before, during], after)
    np.testing.assert_allclose(voltage(theta)[0], exact, atol=1e-3)


def test_current_makes_spikes() -> None:
    trace = voltage(np.array([[50.0, 4.0, 0.05, 1.0, -70.0, 50.0, -100.0]]))[0]
    assert trace[TIMES < 10].max() < -50
    assert trace[(TIMES > 10) & (TIMES < 50)].max() > 0


def test_noise_is_half_a_millivolt() -> None:
    theta = np.tile([[50.0, 4.0, 0.05, 1.0, -70.0, 50.0, -100.0]], (300, 1))
    noise = HodgkinHuxley().simulate(theta, np.random.default_rng(2))["x"] - voltage(theta[:1])
    np.testing.assert_allclose(noise.std(), 0.5, rtol=0.02)
