"""Attacks in a whole run: what they find is stored, told, and goes by what the simulator is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import simfer
from simfer.data.variables import Variable, Variables
from simfer.diagnostics.attacks import AttackSet
from simfer.simulators.prior import Prior

CHECK = {"attack": {"eps": [0.1, 0.5], "steps": 5, "observations": 20, "predictive_draws": 4}}
SMALL: dict[str, Any] = {
    "simulate": {"rows": 600},
    "train": {
        "flow": {"kind": "maf", "transforms": 1, "hidden": [8]},
        "embedding": {"kind": "none"},
        "epochs": 2,
        "batch_size": 50,
    },
    "diagnose": {"checks": [CHECK], "pairs": 40, "draws": 20},
}


class Exposed:
    """x = theta + noise / sqrt(exposure), twice; exposure is known, and of ten simulations three fail."""

    prior = Prior({"a": {"dist": "Normal", "loc": 0.0, "scale": 1.0}})
    context = Prior({"exposure": {"dist": "Uniform", "low": 1.0, "high": 2.0}})
    observables = Variables([Variable("x", (2,))])

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        assert context is not None
        x = theta + rng.standard_normal((len(theta), 2)) / np.sqrt(context["exposure"][:, None])
        return {"x": np.where(rng.uniform(size=(len(x), 1)) < 0.3, np.nan, x)}


def test_the_check_tells_what_attacked_posteriors_predict_and_the_bound(tmp_path: Path) -> None:
    run = simfer.run(SMALL, simulator=Exposed(), workdir=tmp_path / "run", quiet=True)
    found = AttackSet.load(run.folder / "attack.zarr")
    assert (found.attacked[:, :, 2] == found.x[:, 2]).all()  # context stays
    assert found.predictive.shape == (3, 20)
    assert found.bound.shape == (2, 20)
    result = run.summary["checks"]["attack"]
    assert {"distance", "distance_at_0.1", "distance_at_0.5", "bound_0.1", "times_bound_0.5"} <= set(
        result["statistics"]
    )
    assert result["finding"] in run.report.read_text(encoding="utf-8")
    assert "data simulated from the attacked posterior lie" in result["finding"]
    assert simfer.load(run.folder).checks["attack"].to_json() == result  # of a run whose simulator is not here


def test_imported_simulations_have_no_simulator_to_predict_with(tmp_path: Path, rng: np.random.Generator) -> None:
    theta = rng.standard_normal((600, 2))
    np.savez(tmp_path / "elsewhere.npz", theta=theta, x=theta + 0.5 * rng.standard_normal(theta.shape))
    prior = {name: {"dist": "Normal", "loc": 0.0, "scale": 1.0} for name in "ab"}
    config = {
        "simulator": {"import": str(tmp_path / "elsewhere.npz"), "theta": "theta", "x": "x"},
        "prior": prior,
        **{key: value for key, value in SMALL.items() if key != "simulate"},
    }
    run = simfer.run(config, workdir=tmp_path / "run", quiet=True)
    found = AttackSet.load(run.folder / "attack.zarr")
    assert not len(found.predictive)
    assert len(found.bound)
    assert "data simulated" not in run.summary["checks"]["attack"]["finding"]
