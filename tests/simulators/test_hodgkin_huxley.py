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
            lambda t, y, p: derivative(y[:, None], p)[:, 0],
            (float(start), float(end)),
            state,
            method="LSODA",
            args=(parameters,),
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


def test_kinetics_are_pospischils() -> None:
    """Rates from the formulas as published, W = V - Vt, at voltages on and beside the removable singularities."""
    v = np.array([-90.0, -47.0, -45.0, -20.0, 11.3])
    w = v + 60
    e = lambda z: np.where(np.abs(z) < 1e-6, 1.0, z / np.expm1(np.where(z == 0, 1.0, z)))
    alpha = [0.032 * e((15 - w) / 5) * 5, 0.32 * e((13 - w) / 4) * 4, 0.128 * np.exp((17 - w) / 18)]
    beta = [0.5 * np.exp((10 - w) / 40), 0.28 * e((w - 40) / 5) * 5, 4 / (1 + np.exp((40 - w) / 5))]
    gates = np.array([0.1, 0.4, 0.7])
    state = np.vstack([v, *np.repeat(gates[:, None], 5, axis=1), np.full(5, 0.2)])
    still = np.zeros((8, 5))
    with np.errstate(invalid="ignore"):
        slope = derivative(state, still)
    for q, found, a, b in zip(gates, slope[1:4], alpha, beta, strict=True):
        np.testing.assert_allclose(found, a * (1 - q) - b * q, rtol=1e-9)
    tau = 600 / (3.3 * np.exp((v + 35) / 20) + np.exp(-(v + 35) / 20))
    np.testing.assert_allclose(slope[4], (1 / (1 + np.exp(-(v + 35) / 10)) - 0.2) / tau, rtol=1e-9)
