"""Laws of `log_likelihood`, over every registered simulator that has one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from simfer.data import registry
from simfer.simulators.campaign import Reference

WITH_LIKELIHOOD = [n for n in registry.names("simulators") if hasattr(Reference(n).load(), "log_likelihood")]
SUPPORT_MOVES = {"two_moons"}  # x cannot lie everywhere, and where depends on theta: the score's mean is not 0
SLOW = {"hodgkin_huxley"}  # a second for any call
ROWS = 1000


@pytest.fixture(params=[pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in WITH_LIKELIHOOD])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def simulated(simulator: Any, theta: np.ndarray, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], Any]:
    context = simulator.context.draw(len(theta), rng) if hasattr(simulator, "context") else None
    return simulator.simulate(theta, rng, context), context


def at_one_theta(simulator: Any, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray], Any]:
    """One theta of the prior in many rows, and x simulated from it."""
    rng = np.random.default_rng(seed)
    theta = np.repeat(simulator.prior.sample(1, rng), ROWS, axis=0)
    x, context = simulated(simulator, theta, rng)
    return theta, x, context


def test_finite_where_it_was_simulated_one_number_a_row(name: str, rng: np.random.Generator) -> None:
    simulator: Any = Reference(name).load()
    theta = simulator.prior.sample(200, rng)
    x, context = simulated(simulator, theta, rng)
    density = simulator.log_likelihood(theta, x, context)
    ok = np.all([np.isfinite(v).reshape(len(theta), -1).all(1) for v in x.values()], axis=0)
    assert density.shape == (200,)
    assert density.dtype == np.float64
    assert np.isfinite(density[ok]).all()
    assert ok.mean() > 0.9


def test_one_row_of_x_serves_all_rows_of_theta(name: str, rng: np.random.Generator) -> None:
    simulator: Any = Reference(name).load()
    theta = simulator.prior.sample(5, rng)
    x, context = simulated(simulator, theta[:1], rng)
    repeated, contexts = ({k: np.repeat(v, 5, axis=0) for k, v in (found or {}).items()} for found in (x, context))
    one = simulator.log_likelihood(theta, x, context)
    np.testing.assert_allclose(one, simulator.log_likelihood(theta, repeated, contexts or None), rtol=1e-9)


@pytest.mark.parametrize("seed", [1, 2])
def test_true_theta_explains_its_data_best(name: str, seed: int) -> None:
    """Gibbs' inequality: no other theta has a greater mean log-likelihood."""
    simulator: Any = Reference(name).load()
    theta, x, context = at_one_theta(simulator, seed)
    own = simulator.log_likelihood(theta, x, context)
    for other in simulator.prior.sample(10, np.random.default_rng(seed + 10)):
        gain = own - simulator.log_likelihood(np.broadcast_to(other, theta.shape), x, context)
        assert (gain == np.inf).any() or gain.mean() > -4 * gain.std() / ROWS**0.5


@pytest.mark.parametrize("seed", [1, 2])
def test_score_is_zero_on_average(name: str, seed: int) -> None:
    """E[d/dz log p(x | theta(z))] = 0 for x ~ p(x | theta(z)), by central differences."""
    if name in SUPPORT_MOVES:
        pytest.skip("the support of x moves with theta")
    simulator: Any = Reference(name).load()
    theta, x, context = at_one_theta(simulator, seed)
    z = simulator.prior.to_unconstrained(torch.from_numpy(theta))
    for i in range(simulator.prior.dim):
        step = 1e-6 * torch.nn.functional.one_hot(torch.tensor(i), simulator.prior.dim)
        up, down = (simulator.prior.from_unconstrained(z + sign * step).numpy() for sign in (1, -1))
        score = simulator.log_likelihood(up, x, context) - simulator.log_likelihood(down, x, context)
        assert abs(score.mean()) < 4.5 * score.std() / ROWS**0.5 + 1e-10
