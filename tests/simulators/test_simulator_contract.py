"""How simfer calls simulators: every registered one fills a store, broken ones are named. See also test_contract.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from simfer.data import registry
from simfer.data.errors import ContractError
from simfer.simulators.base import Simulator, describe, simulate_checked
from simfer.simulators.campaign import Reference, simulate
from simfer.simulators.two_moons import TwoMoons


@pytest.fixture(params=registry.names("simulators"))
def simulator(request: pytest.FixtureRequest) -> Simulator:
    return Reference(request.param).load()


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
