"""The check of symmetries: right ones pass, each way of being wrong is found, and what cannot be tested is said."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Normal, Uniform

from simfer.data import registry
from simfer.data.errors import SimulatorError, SymmetryError
from simfer.data.variables import Variable, Variables
from simfer.diagnostics.symmetry import check_symmetry
from simfer.diagnostics.symmetry.agreement import where
from simfer.estimators.symmetry import build_symmetry
from simfer.estimators.symmetry.base import Symmetry
from simfer.simulators.base import HasSymmetry, Simulator
from simfer.simulators.campaign import Reference
from simfer.simulators.damped_oscillator import DampedOscillator, signal
from simfer.simulators.elongated_source import ElongatedSource
from simfer.simulators.families import LogUniform
from simfer.simulators.prior import Prior
from simfer.simulators.symmetry import MovePoints, PlaneMotion, Scale, Shift

SYMMETRIC = [name for name in registry.names("simulators") if isinstance(Reference(name).load(), HasSymmetry)]
SHIFT = {"by": "tau", "of": "x", "along": "time", "spacing": 0.05}


@pytest.mark.parametrize("name", SYMMETRIC)
@pytest.mark.parametrize("seed", [1, 2])
def test_what_shipped_simulators_declare_holds(name: str, seed: int) -> None:
    found = check_symmetry(Reference(name).load(), seed=seed)
    assert found.passed, str(found)
    assert found["same noise"].verdict == "pass"
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("change", [{"spacing": -0.05}, {"spacing": 0.04}])
def test_a_wrong_sign_and_wrong_units_are_found_by_every_comparison(change: dict[str, float]) -> None:
    found = check_symmetry(DampedOscillator(), symmetry={"time": Shift(**{**SHIFT, **change})}, rows=1000)
    assert set(found.failed) == {"same noise", "entries", "distribution"}
    assert "spacing" in found["same noise"].advice
    assert "not symmetric" in found.verdict


def test_swapped_axes_are_found() -> None:
    swapped = PlaneMotion(by=("column", "row"), angle="angle", of="image", along=("row", "column"))
    assert not check_symmetry(ElongatedSource(), symmetry={"plane": swapped}).simulations_symmetric


@pytest.mark.parametrize("tau", [Normal(4.0, 0.3), LogUniform(1.0, 6.0)])
def test_a_prior_that_prefers_poses_is_found_and_told_from_a_wrong_symmetry(tau: Any) -> None:
    found = check_symmetry(DampedOscillator(), prior=Prior({**PRIOR, "tau": tau}))
    assert found.failed == ("prior",)
    assert found.simulations_symmetric
    assert "importance weights" in found["prior"].advice
    assert "the prior prefers some poses" in found.verdict


PRIOR = {"omega0": Uniform(3.0, 10.0), "beta": Uniform(0.2, 0.5)}


def test_signals_that_leave_their_window_are_found() -> None:
    found = check_symmetry(DampedOscillator(), prior=Prior({**PRIOR, "tau": Uniform(4.0, 9.9)}))
    assert {"same noise", "distribution"} <= set(found.failed)
    assert "edges of the window" in found["same noise"].advice


class Struck:
    """The oscillator with noise and background of one's own, and no likelihood; only the signal moves."""

    prior, observables, symmetry = DampedOscillator.prior, DampedOscillator.observables, DampedOscillator.symmetry

    def __init__(self, noise: Any = 0.02, background: Any = 0.0) -> None:
        self._noise, self._background = noise, background

    def simulate(self, theta, rng, context=None):
        return {"x": signal(theta) + self._background + self._noise * rng.standard_normal((len(theta), 200))}


def test_the_kernel_alone_finds_a_wrong_sign() -> None:
    found = check_symmetry(Struck(), symmetry={"time": Shift(**{**SHIFT, "spacing": -0.05})})
    assert found["distribution"].numbers["p_kernel"] < 1e-3
    assert "p_likelihood" not in found["distribution"].numbers


TIMES = np.arange(200)


def test_noise_that_does_not_move_along_is_found_in_law_and_where() -> None:
    found = check_symmetry(Struck(noise=np.where(TIMES < 20, 0.1, 0.02)))
    assert found["same noise"].verdict == "pass"
    assert found["entries"].verdict == "fail"
    assert "most clearly x[time=" in found["entries"].finding


def test_a_background_that_stays_is_found_in_law() -> None:
    found = check_symmetry(Struck(background=np.where(TIMES < 20, 0.1, 0.0)))
    assert found["same noise"].verdict == "pass"
    assert "entries" in found.failed


def test_without_noise_the_comparison_is_exact_and_the_others_are_left_out() -> None:
    found = check_symmetry(Struck(noise=0.0))
    assert found["same noise"].verdict == "fail"  # a kink between two bins is not that exact
    assert {found[name].verdict for name in ("entries", "distribution")} == {"not tested"}


class Cloud:
    """Points about a position; their noise is as wide as the parameter says, with rows that are not simulated."""

    prior = Prior({"x": Uniform(0.0, 1.0), "y": Uniform(0.0, 1.0), "sd": LogUniform(0.1, 1.0)})
    observables = Variables([Variable("points", (5, 2), "float32")])

    def __init__(self, fails: float = 0.0) -> None:
        self.fails = fails

    def simulate(self, theta, rng, context=None):
        noise = theta[:, 2, None, None] * rng.standard_normal((len(theta), 5, 2))
        lost = rng.random(len(theta)) < self.fails
        return {"points": np.where(lost[:, None, None], np.nan, theta[:, None, :2] + noise)}


def test_noise_that_moves_along_is_compared_exactly() -> None:
    found = check_symmetry(Cloud(), symmetry={"place": MovePoints(("x", "y"), "points")})
    assert found.passed
    assert found["same noise"].numbers["largest"] < 1e-6


def test_what_cannot_be_told_from_noise_is_said() -> None:
    found = check_symmetry(Cloud(), symmetry={"size": Scale("sd", "points")})
    assert found["same noise"].verdict == "not tested"
    assert found["distribution"].verdict == "fail"


def test_rows_that_fail_are_left_out() -> None:
    found = check_symmetry(Cloud(fails=0.02), symmetry={"place": MovePoints(("x", "y"), "points")})
    assert found.passed
    assert 300 < found.rows < 490
    with pytest.raises(SimulatorError, match="rows can be simulated; "):
        check_symmetry(Cloud(fails=1.0), symmetry={"place": MovePoints(("x", "y"), "points")})


class Changed:
    """A symmetry with one method replaced."""

    def __init__(self, inner: Symmetry, **changed: Any) -> None:
        self._inner = inner
        vars(self).update(changed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


WRONG = {
    "theta": lambda inner: {"pose": lambda theta: -inner.pose(theta)},
    "x": lambda inner: {"act_x": lambda g, x: inner.act_x(g.abs(), x)},
    "volume": lambda inner: {"log_det_theta": lambda g, theta: inner.log_det_theta(g, theta) + 1.0},
}


@pytest.mark.parametrize("law", WRONG)
def test_a_broken_symmetry_of_ones_own_is_found(law: str) -> None:
    simulator = DampedOscillator()
    inner = build_symmetry(simulator.prior, simulator.observables, simulator.symmetry)
    assert check_symmetry(simulator, symmetry=Changed(inner)).passed
    assert law in check_symmetry(simulator, symmetry=Changed(inner, **WRONG[law](inner))).failed


@pytest.mark.slow
def test_a_right_symmetry_fails_no_more_often_than_it_may() -> None:
    """Over seeds, p-values of the tests in law are those of a uniform variable, or larger."""
    place = {"place": MovePoints(("x", "y"), "points")}
    checks = [check_symmetry(Cloud(), symmetry=place, rows=100, seed=seed) for seed in range(20)]
    p = np.array([found["distribution"].numbers["p_kernel"] for found in checks])
    assert (p > 1e-3 / 20).all()
    assert abs(p.mean() - 0.5) < 3.3 * np.sqrt(1 / 12 / len(p))


def test_where_names_the_shortest_range_that_holds_half() -> None:
    x = torch.zeros(3, 4, 10, dtype=torch.float64)
    x[:, 2, 4:7] = 1.0
    x[:, 0, 0] = 0.1
    assert where({"x": x}, Variables([Variable("x", (4, 10), dims=("row", "time"))])) == "x[row=2..2, time=4..5]"
    assert where({"s": x[:, 2, 4]}, Variables([Variable("s")])) == "s"


def test_what_cannot_be_checked_is_named(line: Simulator) -> None:
    with pytest.raises(SymmetryError, match="`Line` declares no symmetry: give it an attribute such as symmetry = "):
        check_symmetry(line)

    class Moves(DampedOscillator):
        prior = Prior({**PRIOR, "tau": Uniform(1.0, 6.0), "later": Uniform(7.0, 7.001)})

    drags = {"time": Shift(**SHIFT, others=("later",))}
    with pytest.raises(SymmetryError, match="draws stay inside the prior"):
        check_symmetry(Moves(), symmetry=drags)
