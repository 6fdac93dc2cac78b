"""The integrator with a step size per row, against closed forms and scipy's integrator row by row."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from simfer.simulators.lotka_volterra import LotkaVolterra
from simfer.simulators.ode import solve
from simfer.simulators.populations import infected, predator_prey
from simfer.simulators.sir import SIR

TIMES = np.array([0.0, 0.5, 2.0, 10.0])


def _decay(state: np.ndarray, rates: np.ndarray) -> np.ndarray:
    return -rates * state


def _turn(state: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    return np.stack([frequency[0] * state[1], -frequency[0] * state[0]])


def test_exponential_decay_over_six_decades_of_rates() -> None:
    rates = np.logspace(-3, 3, 50)[None]
    found = solve(_decay, np.ones((1, 50)), rates, TIMES)[:, 0]
    exact = np.exp(-rates * TIMES[:, None])
    assert (np.abs(found - exact) <= 1e-7 * exact + 1e-300).all()


def test_error_follows_the_tolerance() -> None:
    frequency = np.array([[1.0, 3.0, 10.0]])
    exact = np.sin(frequency * 10.0)
    start = np.stack([np.zeros(3), np.ones(3)])
    errors = [
        np.abs(solve(_turn, start, frequency, TIMES, rtol=r, atol=r)[-1, 0] - exact).max() for r in (1e-4, 1e-7, 1e-10)
    ]
    assert errors[0] < 1e-2
    assert errors[1] < errors[0] / 100
    assert errors[2] < min(errors[1] / 100, 1e-8)


def test_time_zero_need_not_be_wanted() -> None:
    start, rates = np.ones((1, 3)), np.array([[0.1, 1.0, 2.0]])
    np.testing.assert_allclose(
        solve(_decay, start, rates, TIMES[1:]), solve(_decay, start, rates, TIMES)[1:], rtol=1e-8
    )


def test_rows_do_not_see_their_neighbours() -> None:
    """Bit for bit: alone, in any order, and beside a row that is NaN, one that overflows and one that is stiff."""
    theta = LotkaVolterra.prior.sample(60, np.random.default_rng(0))
    start, times = np.array([30.0, 1.0]), 2.1 * np.arange(10)
    together = predator_prey(theta, start, times)
    order = np.random.default_rng(1).permutation(60)
    np.testing.assert_array_equal(predator_prey(theta[order], start, times), together[order])
    np.testing.assert_array_equal(predator_prey(theta[:1], start, times), together[:1])
    spoilt = theta.copy()
    spoilt[3], spoilt[4, 0], spoilt[5, 2] = np.nan, 1e300, 100.0
    beside = predator_prey(spoilt, start, times)
    good = np.delete(np.arange(60), [3, 4, 5])
    np.testing.assert_array_equal(beside[good], together[good])
    assert np.isnan(beside[3, :, 1:]).all()
    assert np.isfinite(beside[5]).all()


def test_a_row_that_needs_too_many_steps_is_nan_from_there_on() -> None:
    found = solve(_decay, np.ones((1, 2)), np.array([[1.0, 1e5]]), TIMES, most_steps=200)[:, 0]
    np.testing.assert_allclose(found[:, 0], np.exp(-TIMES), rtol=1e-8)
    assert np.isnan(found[1:, 1]).all()


def test_a_variable_at_zero_stays_there() -> None:
    np.testing.assert_array_equal(solve(_decay, np.zeros((1, 2)), np.ones((1, 2)), TIMES), 0)


def test_chunks_leave_no_seam() -> None:
    rates = np.random.default_rng(0).uniform(0.1, 2, (1, 40_000))
    found = solve(_decay, np.ones((1, 40_000)), rates, TIMES)[-1, 0]
    np.testing.assert_allclose(found, np.exp(-10 * rates[0]), rtol=1e-7)


@pytest.mark.parametrize("stiff", [False, True])
def test_lotka_volterra_agrees_with_scipy(stiff: bool) -> None:
    """To 1e-6, stiff rows too: those with the largest rates times populations of 2,000 draws from the prior."""
    theta, start, times = (
        LotkaVolterra.prior.sample(2000, np.random.default_rng(2)),
        np.array([30.0, 1.0]),
        2.1 * np.arange(10),
    )
    ours = predator_prey(theta, start, times)
    speed = theta[:, 1] * ours[:, 1].max(1) + theta[:, 3] * ours[:, 0].max(1)
    rows = np.argsort(-speed)[:15] if stiff else np.arange(15)

    for i in rows:

        def derivative(time: float, state: np.ndarray, rates: tuple[float, ...] = tuple(theta[i])) -> list[float]:
            alpha, beta, gamma, delta = rates
            return [(alpha - beta * state[1]) * state[0], (delta * state[0] - gamma) * state[1]]

        exact = solve_ivp(derivative, (0, times[-1]), start, "DOP853", times, rtol=1e-12, atol=1e-300).y
        np.testing.assert_allclose(ours[i], exact, rtol=1e-6)


def test_lotka_volterra_conserves_its_integral() -> None:
    """delta X − gamma log X + beta Y − alpha log Y is constant along every orbit."""
    theta = LotkaVolterra.prior.sample(1000, np.random.default_rng(3))
    prey, predators = predator_prey(theta, np.array([30.0, 1.0]), 2.1 * np.arange(10)).transpose(1, 0, 2)
    alpha, beta, gamma, delta = theta.T[..., None]
    terms = np.stack([delta * prey, -gamma * np.log(prey), beta * predators, -alpha * np.log(predators)])
    conserved = terms.sum(0)
    assert (np.abs(conserved - conserved[:, :1]) < 1e-6 * np.abs(terms).max((0, 2))[:, None]).all()


def test_epidemics_agree_with_scipy() -> None:
    theta, times = SIR.prior.sample(15, np.random.default_rng(4)), 17.0 * np.arange(10)
    ours = infected(theta, (1e6 - 1, 1.0), 1e6, times)

    for row, rates in zip(ours, theta, strict=True):

        def derivative(time: float, state: np.ndarray, rates: np.ndarray = rates) -> list[float]:
            infections = rates[0] * state[0] * state[1] / 1e6
            return [-infections, infections - rates[1] * state[1]]

        exact = solve_ivp(derivative, (0, times[-1]), [1e6 - 1, 1.0], "DOP853", times, rtol=1e-12, atol=1e-300).y[1]
        np.testing.assert_allclose(row, exact, rtol=1e-6)
