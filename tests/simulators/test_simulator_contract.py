"""The contract of a simulator, over every registered one: a new simulator is tested by registering it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from simfer.data import registry
from simfer.data.errors import ContractError
from simfer.data.observations import read_observation
from simfer.data.variables import Arrays
from simfer.simulators.base import HasContext, Simulator, describe, simulate_checked
from simfer.simulators.campaign import Reference, simulate
from simfer.simulators.two_moons import TwoMoons


@pytest.fixture(params=registry.names("simulators"))
def simulator(request: pytest.FixtureRequest) -> Simulator:
    return Reference(request.param).load()


def _simulated(simulator: Simulator, theta: np.ndarray, seed: int) -> Arrays:
    """x from the same noise and known nuisance for the same seed."""
    rng = np.random.default_rng(seed)
    context = simulator.context.draw(len(theta), rng) if isinstance(simulator, HasContext) else None
    return simulate_checked(simulator, theta, rng, context)


def test_shapes_names_and_dtypes(simulator: Simulator, rng: np.random.Generator) -> None:
    x = _simulated(simulator, simulator.prior.sample(7, rng), 1)
    for variable in simulator.observables:
        assert x[variable.name].shape == (7, *variable.shape)
        assert x[variable.name].dtype == variable.dtype


def test_prior_rows_are_finite_and_in_the_observables_support(simulator: Simulator, rng: np.random.Generator) -> None:
    x = _simulated(simulator, simulator.prior.sample(2000, rng), 1)
    for variable in simulator.observables:
        values = x[variable.name]
        assert np.isfinite(values).all()
        assert (values >= variable.support.low).all()
        assert (values <= variable.support.high).all()


def test_same_generator_same_rows(simulator: Simulator) -> None:
    theta = simulator.prior.sample(5, np.random.default_rng(1))
    first, second = (_simulated(simulator, theta, 2) for _ in range(2))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_a_row_depends_on_its_own_theta_alone(simulator: Simulator, rng: np.random.Generator) -> None:
    """Changing the last row's theta must not change the mean of the others: compare with shared noise."""
    theta = simulator.prior.sample(6, rng)
    changed = theta.copy()
    changed[-1] = simulator.prior.sample(1, rng)
    first = _simulated(simulator, theta, 3)
    second = _simulated(simulator, changed, 3)
    for name in first:
        np.testing.assert_allclose(first[name][:-1], second[name][:-1], rtol=1e-6)


def test_shipped_observations_fit(simulator: Simulator) -> None:
    for shipped in getattr(simulator, "observations", {}).values():
        assert set(read_observation(shipped, simulator.observables)) == set(simulator.observables.names)


def test_campaign_stores_the_prior_and_x(simulator: Simulator, tmp_path: Path) -> None:
    store = simulate(simulator, 50, tmp_path / "s.zarr", seed=1, block=25)
    theta, x = store.read()
    assert store.counts()["ok"] == 50
    assert simulator.prior.contains(torch.from_numpy(theta)).all()
    assert set(x) == set(simulator.observables.names)


def test_description_tells_arguments_apart() -> None:
    class Scaled(TwoMoons):
        def __init__(self, scale: float) -> None:
            self.scale = scale

    assert describe(Scaled(1.0)) != describe(Scaled(2.0))
    assert describe(Scaled(1.0)) == describe(Scaled(1.0))


@pytest.mark.parametrize(
    ("returned", "match"),
    [
        (lambda theta: {"y": theta}, "must return a dict with exactly x; got y"),
        (lambda theta: theta, "must return a dict with exactly x; got ndarray"),
        (lambda theta: {"x": theta[:-1]}, "one row of `x` for each of the 4 rows of theta; got 3"),
        (
            lambda theta: {"x": theta[:, :1]},
            r"must return `x` of shape \(2,\) per row, as its observables say; got \(1,\)",
        ),
        (lambda theta: {"x": theta.astype(str)}, "must return numbers as `x`"),
        (lambda theta: {"x": 1.0}, "got a single number"),
    ],
)
def test_broken_contracts_are_named(line: Simulator, rng: np.random.Generator, returned: object, match: str) -> None:
    line.simulate = lambda theta, rng, context=None: returned(theta)  # type: ignore[method-assign]
    with pytest.raises(ContractError, match=match):
        simulate_checked(line, np.zeros((4, 2)), rng)
