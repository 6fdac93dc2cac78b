"""The epidemic of the SBI benchmark against what is known of epidemics."""

from __future__ import annotations

import numpy as np

from simfer.simulators.populations import infected
from simfer.simulators.robust_sir import RobustSIR
from simfer.simulators.sir import SIR


def test_without_contacts_the_infected_decay() -> None:
    times = np.linspace(0, 50, 50)
    np.testing.assert_allclose(
        infected(np.array([[0.0, 0.3]]), (5.0, 0.25), 5.0, times)[0], 0.25 * np.exp(-0.3 * times)
    )


def test_peak_is_the_closed_form() -> None:
    """I + S − (gamma N / beta) log S is conserved; at the peak S = gamma N / beta."""
    beta, gamma, people = 0.6, 0.2, 1e6
    curve = infected(np.array([[beta, gamma]]), (people - 1, 1.0), people, np.linspace(0, 150, 3001))[0]
    ratio = gamma / beta
    peak = people * (1 - ratio + ratio * np.log(ratio * people / (people - 1)))
    assert abs(curve.max() / peak - 1) < 1e-5


def test_counts_are_whole_and_binomial() -> None:
    theta = np.tile([0.5, 0.15], (20_000, 1))
    x = SIR().simulate(theta, np.random.default_rng(0))["x"]
    share = infected(theta[:1], (1e6 - 1, 1.0), 1e6, 17.0 * np.arange(10))[0] / 1e6
    variance = 1000 * share * (1 - share)
    assert (x == np.round(x)).all()
    assert (np.abs(x.mean(0) - 1000 * share) < 4.5 * np.sqrt(variance / len(x)) + 1e-3).all()
    busy = variance > 1
    np.testing.assert_allclose(x.var(0)[busy], variance[busy], rtol=0.05)


def test_a_row_without_rates_is_nan_and_alone() -> None:
    theta = np.tile([0.5, 0.15], (4, 1))
    whole = SIR().simulate(theta, np.random.default_rng(0))["x"]
    theta[1] = np.nan
    spoilt = SIR().simulate(theta, np.random.default_rng(0))["x"]
    np.testing.assert_array_equal(spoilt[[0, 2, 3]], whole[[0, 2, 3]])
    assert np.isnan(spoilt[1]).any()


def test_robust_sir_starts_at_a_quarter() -> None:
    theta = RobustSIR.prior.sample(20_000, np.random.default_rng(1))
    log_x = np.log(RobustSIR().simulate(theta, np.random.default_rng(2))["x"][:, 0])
    assert abs(log_x.mean() - np.log(0.2501)) < 5 * 0.2 / np.sqrt(len(theta))
    np.testing.assert_allclose(log_x.std(), 0.2, rtol=0.03)
