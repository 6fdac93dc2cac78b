"""The published contract: every registered simulator keeps it, and every way to break it is caught."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Normal, Uniform

from simfer.data import registry
from simfer.data.errors import ContractError
from simfer.data.variables import COUNT, Variable, Variables
from simfer.simulators.base import Simulator
from simfer.simulators.campaign import Reference
from simfer.simulators.prior import Prior
from simfer.simulators.testing import SimulatorContract


class TestRegistered(SimulatorContract):
    @pytest.fixture(params=registry.names("simulators"))
    def simulator(self, request: pytest.FixtureRequest) -> Simulator:
        return Reference(request.param).load()


class Fine:
    """x = theta + noise; the violations below change one thing of it each."""

    prior = Prior({"a": Normal(0.0, 1.0), "b": Uniform(0.0, 1.0)})
    observables = Variables([Variable("x", (2,))])
    u_shape = (2,)

    def simulate(self, theta, rng, context=None):
        return self.simulate_from_u(theta, self.sample_u(len(theta), rng))

    def sample_u(self, rows, rng):
        return rng.standard_normal((rows, 2))

    def simulate_from_u(self, theta, u, context=None):
        return {"x": theta + u}

    def log_likelihood(self, theta, x, context=None):
        return Normal(0.0, 1.0).log_prob(torch.from_numpy(x["x"] - theta)).sum(1).numpy()


class TestFine(SimulatorContract):
    @pytest.fixture
    def simulator(self) -> Simulator:
        return Fine()


class TestDeterministic(SimulatorContract):
    deterministic = True

    @pytest.fixture
    def simulator(self) -> Simulator:
        return _with(lambda theta, rng: {"x": 2 * theta})


class TestRejection(SimulatorContract):
    """A simulator whose use of the generator depends on theta, but whose rows do not depend on each other."""

    @pytest.fixture
    def simulator(self) -> Simulator:
        return _with(lambda theta, rng: {"x": rng.poisson(np.exp(theta)) + 0.0})


def _with(simulate: Callable[[Any, Any], Any], **attributes: Any) -> Any:
    """A simulator with another `simulate` and without what is optional."""
    bare = {"prior": Fine.prior, "observables": Fine.observables, **attributes}
    return type("Changed", (), {**bare, "simulate": lambda self, theta, rng, context=None: simulate(theta, rng)})()


def _changing(theta, rng):
    x = {"x": theta + rng.standard_normal(theta.shape)}
    theta += 1
    return x


def _counting():
    seen: list[int] = []

    def simulate(theta, rng):
        seen.append(1)
        return {"x": theta + rng.standard_normal(theta.shape) + len(seen)}

    return simulate


def _noise(theta, rng):
    return rng.standard_normal(theta.shape)


class _Unlikely(Fine):
    def log_likelihood(self, theta, x, context=None):
        return super().log_likelihood(theta, x)[:, None]


class _NotForAll(Fine):
    def log_likelihood(self, theta, x, context=None):
        return np.full(len(theta), float(len(x["x"])))


class _OtherNumbers(Fine):
    def simulate(self, theta, rng, context=None):
        return {"x": theta + rng.random(theta.shape)}


VIOLATIONS: dict[str, tuple[Any, str, str]] = {
    "a row too few": (_with(lambda t, r: {"x": _noise(t, r)[:-1]}), "test_shapes_dtypes_and_names", "one row of `x`"),
    "another shape": (_with(lambda t, r: {"x": _noise(t, r)[:, :1]}), "test_shapes_dtypes_and_names", "of shape"),
    "another name": (_with(lambda t, r: {"y": _noise(t, r)}), "test_shapes_dtypes_and_names", "exactly x"),
    "no numbers": (_with(lambda t, r: {"x": _noise(t, r).astype(str)}), "test_shapes_dtypes_and_names", "numbers"),
    "another dtype": (
        _with(lambda t, r: {"x": _noise(t, r)}, observables=Variables([Variable("x", (2,), "int32")])),
        "test_shapes_dtypes_and_names",
        "must return whole numbers of int32 as `x`",
    ),
    "mostly NaN": (
        _with(lambda t, r: {"x": np.where(t[:, :1] > 0, np.nan, _noise(t, r))}),
        "test_most_rows_are_finite",
        "are finite",
    ),
    "outside": (
        _with(lambda t, r: {"x": _noise(t, r)}, observables=Variables([Variable("x", (2,), support=COUNT)])),
        "test_values_lie_in_the_observables_support",
        "leaves its support",
    ),
    "theta changed": (_with(_changing), "test_theta_is_left_as_it_was", "must not change theta"),
    "memory": (_with(_counting()), "test_equal_generators_give_equal_rows", "equal generators"),
    "clock": (
        _with(lambda t, r: {"x": t + np.random.default_rng().standard_normal(t.shape)}),
        "test_equal_generators_give_equal_rows",
        "64 of 64 rows differ",
    ),
    "no randomness": (_with(lambda t, r: {"x": t}), "test_other_generators_give_other_rows", "deterministic = True"),
    "numpy's global": (
        _with(lambda t, r: {"x": t + np.random.standard_normal(t.shape)}),  # noqa: NPY002
        "test_global_randomness_is_neither_used_nor_changed",
        "global generator",
    ),
    "python's global": (
        _with(lambda t, r: {"x": t + _noise(t, r) + random.random()}),
        "test_global_randomness_is_neither_used_nor_changed",
        "global generator",
    ),
    "torch's global": (
        _with(lambda t, r: {"x": t + torch.randn(t.shape).numpy()}),
        "test_global_randomness_is_neither_used_nor_changed",
        "global generator",
    ),
    "batch mean": (
        _with(lambda t, r: {"x": t - t.mean(0) + _noise(t, r)}),
        "test_a_row_depends_on_its_own_theta_alone",
        "a row changed with the theta of others",
    ),
    "neighbour": (
        _with(lambda t, r: {"x": t + 1e-3 * np.roll(t, 1, axis=0) + _noise(t, r)}),
        "test_a_row_depends_on_its_own_theta_alone",
        "a row changed with the theta of others",
    ),
    "sorted": (
        _with(lambda t, r: {"x": np.sort(t, axis=0) + _noise(t, r)}),
        "test_a_row_depends_on_its_own_theta_alone",
        "a row changed with the theta of others",
    ),
    "neighbour in law": (
        _with(lambda t, r: {"x": 1.0 * r.poisson(np.exp(t + np.roll(t, 1, axis=0)))}),
        "test_a_row_depends_on_its_own_theta_alone",
        "the law of `x` changed",
    ),
    "NaN spreads": (
        _with(lambda t, r: {"x": t + _noise(t, r) * (1 + 0 * t.sum())}),
        "test_a_bad_row_spoils_no_other",
        "made other rows useless",
    ),
    "observation": (
        _with(lambda t, r: {"x": _noise(t, r)}, observations={"o": {"x": [1.0, 2.0, 3.0]}}),
        "test_shipped_observations_fit",
        "must have shape",
    ),
    "likelihood's shape": (_Unlikely(), "test_log_likelihood", "must have shape"),
    "likelihood of one": (_NotForAll(), "test_log_likelihood", "meant for all"),
    "other numbers": (_OtherNumbers(), "test_base_random_numbers_give_the_same_rows", "`simulate_from_u`"),
}


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_every_violation_is_caught(violation: str) -> None:
    simulator, test, match = VIOLATIONS[violation]
    theta = simulator.prior.sample(SimulatorContract.rows, np.random.default_rng(1))
    wants_theta = test != "test_shipped_observations_fit"
    with pytest.raises((AssertionError, ContractError, ValueError), match=match):
        getattr(SimulatorContract(), test)(simulator, *([theta] if wants_theta else []))
