"""Trained with a symmetry or a prior that is wrong on purpose: weights correct what they can, and a run says what is wrong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Normal, Uniform

import simfer
from simfer.estimators.importance import LEAST_EFFICIENCY, Refined, summarised
from simfer.estimators.settings import EstimatorSettings, SymmetrySettings
from simfer.estimators.symmetry.assumed import AssumedSymmetry, assumed_symmetry
from simfer.estimators.symmetry.blur import build_blur
from simfer.estimators.symmetry.invariance import preference
from simfer.pipelines.api import Run
from simfer.simulators.damped_oscillator import DampedOscillator
from simfer.simulators.prior import Prior

SIMULATOR = DampedOscillator()
SHIFT = {"kind": "Shift", "by": "tau", "of": "x", "along": "time", "spacing": 0.05, "origin": 2.0}
NARROW = {"dist": "TruncatedNormal", "loc": 3.03, "scale": 0.015, "low": 1.0, "high": 6.0}  # tau is known to about that
CONFIG: dict[str, Any] = {
    "name": "struck",
    "seed": 1,
    "simulator": "damped_oscillator",
    "observation": "example",
    "train": {
        "embedding": {"kind": "mlp", "features": 16, "hidden": [128, 64]},
        "flow": {"kind": "nsf", "transforms": 3, "hidden": [64, 64]},
        "symmetry": {"kernel": {"time": 0.1}},
    },
    "diagnose": {"checks": []},
}


def run(
    path: Path, prior: dict[str, Any] | None = None, draws: int = 2000, epochs: Any = "auto", **symmetry: Any
) -> Run:
    train = {**CONFIG["train"], "epochs": epochs, "symmetry": {**CONFIG["train"]["symmetry"], **symmetry}}
    sizes = {"simulate": {"rows": 2000}, "infer": {"draws": draws, "refine": "importance"}}
    return simfer.run({**CONFIG, **sizes, "train": train, "prior": prior or {}}, workdir=path, quiet=True)


def exact(prior: Prior, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd of the posterior, on a grid that is drawn closer to it twice."""
    low, high = np.array([3.0, 0.2, 2.9]), np.array([10.0, 0.5, 3.2])
    for _ in range(3):
        axes = [np.linspace(a, b, n) for a, b, n in zip(low, high, (60, 30, 60), strict=True)]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        log_joint = SIMULATOR.log_likelihood(points, {"x": x[None]}) + prior.log_prob(torch.from_numpy(points)).numpy()
        weights = np.exp(log_joint - log_joint.max())
        seen = points[weights > 1e-8]
        low, high = seen.min(0), seen.max(0)
    mean = np.average(points, axis=0, weights=weights)
    return mean, np.sqrt(np.average((points - mean) ** 2, axis=0, weights=weights))


@pytest.mark.slow
def test_weights_make_up_for_a_prior_that_prefers_poses(tmp_path: Path) -> None:
    """Exact equivariance does not know of the prior: its draws are off, weighted they are the posterior of the grid."""
    found = run(tmp_path / "run", prior={"tau": NARROW})
    mean, sd = exact(found.model.prior, SIMULATOR.observations["example"]["x"])
    refined = found.summary["refine"]
    assert refined["accepted"]
    assert refined["efficiency"] > LEAST_EFFICIENCY
    tau = found.summary["amortised"]["tau"]
    assert abs(tau["mean"] - mean[2]) > 0.7 * sd[2]
    assert tau["sd"] > 1.3 * sd[2]
    for name, centre, width in zip(found.model.prior.names, mean, sd, strict=True):
        weighted = found.summary["posterior"][name]
        assert weighted["mean"] == pytest.approx(centre, abs=0.15 * width)  # n_eff is some hundreds
        assert weighted["sd"] == pytest.approx(width, rel=0.15)
    assert refined["pose_shift"]["tau"] == pytest.approx((mean[2] - tau["median"]) / sd[2], abs=0.3)
    assert "is not invariant" in (tmp_path / "run" / "logs" / "train.log").read_text()


@pytest.mark.slow
def test_a_wrong_sign_is_refused_and_named(tmp_path: Path) -> None:
    found = run(tmp_path / "run", draws=400, epochs=6, declared={"time": {**SHIFT, "spacing": -0.05}}, iterations=10)
    refined = found.summary["refine"]
    assert not refined["accepted"]
    assert refined["efficiency"] < LEAST_EFFICIENCY
    assert "the symmetry under moving `tau`" in refined["refusal"]
    assert "simfer check-symmetry" in refined["refusal"]
    assert found.summary["verdict"] == "fail"
    assert refined["refusal"] in (tmp_path / "run" / "logs" / "infer.log").read_text()
    assert "simfer check-symmetry" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def weighted(efficiency: float, assumed: AssumedSymmetry | None, **facts: Any) -> Refined:
    """Two kinds of draws, of which one has all of the weight."""
    log_weights = np.where(np.arange(20_000) < 20_000 * efficiency, 0.0, -1e3)
    return summarised(np.zeros((20_000, 1)), log_weights, log_weights, assumed=assumed, **facts)


def test_a_symmetry_is_suspected_where_the_network_is_of_no_use() -> None:
    assumed = AssumedSymmetry(("tau",), (False,))
    assert weighted(0.5, assumed).suspicion == ""
    assert "`tau`" in weighted(0.001, assumed).suspicion
    assert "`tau`" in weighted(0.001, assumed).refusal
    assert weighted(0.001, None).suspicion == ""
    assert "`tau`" in weighted(0.5, assumed, network_efficiency=0.001).suspicion


def test_the_shift_of_an_angle_is_taken_the_short_way() -> None:
    rng = np.random.default_rng(0)
    before = np.stack([0.1 * rng.standard_normal(4000), 3.0 + 0.1 * rng.standard_normal(4000)], 1)
    after = np.stack([0.2 + 0.1 * rng.standard_normal(4000), (3.2 + 0.1 * rng.standard_normal(4000))], 1)
    after[:, 1] = np.angle(np.exp(1j * after[:, 1]))  # most of it beyond half a turn
    shifts = AssumedSymmetry(("angle", "a"), (True, False)).shifts(("a", "angle"), before, after)
    assert shifts["a"] == pytest.approx(2.0, abs=0.15)
    assert shifts["angle"] == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize(
    ("tau", "change"), [(Uniform(1.0, 6.0), 0.0), (Normal(3.0, 10.0), 0.01), (Normal(3.0, 0.1), math.sqrt(1.75))]
)
def test_what_a_prior_prefers_over_a_width_of_the_kernel(tau: Any, change: float) -> None:
    """Of a normal prior of sd s and a kernel of sd k, r = k / s: rms of -(r e z + r² e² / 2), which is sqrt(r² + 3 r⁴ / 4)."""
    prior = Prior({"omega0": Uniform(3.0, 10.0), "beta": Uniform(0.2, 0.5), "tau": tau})
    settings = SymmetrySettings(kernel=0.1, declared=DampedOscillator.symmetry)
    assert preference(build_blur(prior, SIMULATOR.observables, settings)) == pytest.approx(change, rel=0.1, abs=1e-9)
    told = settings.model_copy(update={"exact": False})
    assert preference(build_blur(prior, SIMULATOR.observables, told)) == 0.0


def test_networks_without_a_symmetry_assume_none() -> None:
    assert assumed_symmetry(SIMULATOR.prior, SIMULATOR.observables, EstimatorSettings()) is None
    settings = EstimatorSettings(symmetry=SymmetrySettings(by="augmentation", declared=DampedOscillator.symmetry))
    assert assumed_symmetry(SIMULATOR.prior, SIMULATOR.observables, settings) == AssumedSymmetry(("tau",), (False,))
