"""Every likelihood against its own simulator, by laws that hold for any model: a new likelihood is tested by being there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from simfer.data import registry
from simfer.data.variables import Arrays
from simfer.simulators.base import HasContext, HasLikelihood
from simfer.simulators.campaign import Reference

LIKELIHOODS = [name for name in registry.names("simulators") if isinstance(Reference(name).load(), HasLikelihood)]
ROWS = 500
STEP = 1e-4  # in units of the prior; there log ratios grow in proportion


@pytest.fixture(params=LIKELIHOODS)
def simulator(request: pytest.FixtureRequest) -> Any:
    return Reference(request.param).load()


def _context(simulator: Any, rng: np.random.Generator, rows: int) -> Arrays | None:
    """One draw of the known nuisance, repeated."""
    if not isinstance(simulator, HasContext):
        return None
    return {name: np.repeat(drawn, rows, axis=0) for name, drawn in simulator.context.draw(1, rng).items()}


def test_ratios_of_the_likelihood_average_to_one(simulator: Any) -> None:
    """E[p(x | b) / p(x | a)] = 1 for x simulated at a, for b so near that log ratios have a spread of about a half."""
    rng = np.random.default_rng(7)
    theta = simulator.prior.sample(1, rng)
    context = _context(simulator, rng, ROWS)
    at_a = np.repeat(theta, ROWS, axis=0)
    x = simulator.simulate(at_a, rng, context)
    here = simulator.log_likelihood(at_a, x, context)
    z = simulator.prior.to_unconstrained(torch.from_numpy(theta))
    direction = torch.from_numpy(rng.standard_normal(z.shape))

    def log_ratio(distance: float) -> np.ndarray:
        b = simulator.prior.from_unconstrained(z + distance * direction).numpy()
        return np.asarray(simulator.log_likelihood(np.repeat(b, ROWS, axis=0), x, context) - here)

    found = log_ratio(0.4 * STEP / log_ratio(STEP).std())
    assert 0.2 < found.std() < 0.8
    ratio = np.exp(found)
    assert abs(ratio.mean() - 1) < 3.5 * ratio.std() / np.sqrt(ROWS)


def test_one_row_of_x_stands_for_all(simulator: Any) -> None:
    rng = np.random.default_rng(8)
    theta, context = simulator.prior.sample(5, rng), _context(simulator, rng, 5)
    x = {name: values[:1] for name, values in simulator.simulate(theta, rng, context).items()}
    repeated = {name: np.repeat(values, 5, axis=0) for name, values in x.items()}
    one, five = (simulator.log_likelihood(theta, given, context) for given in (x, repeated))
    assert one.shape == (5,)
    assert one.dtype == np.float64
    np.testing.assert_array_equal(one, five)
