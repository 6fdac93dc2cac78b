"""Known nuisance in a whole run: recorded with every row, given to the network, and to the replicates."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import simfer
from simfer.data.errors import ConfigError
from simfer.data.variables import Variable, Variables


class Exposed:
    """x = theta + noise / sqrt(exposure): the posterior of x = 0 is N(0, 1 / (1 + exposure))."""

    prior = simfer.Prior({"a": {"dist": "Normal", "loc": 0.0, "scale": 1.0}})
    context = simfer.Prior({"exposure": {"dist": "LogUniform", "low": 0.1, "high": 100.0}}, units={"exposure": "s"})
    observables = Variables([Variable("x", (1,))])
    observations: ClassVar[dict[str, dict[str, Any]]] = {
        "short": {"x": [0.0], "exposure": 0.2},
        "long": {"x": [0.0], "exposure": 20.0},
    }

    def simulate(self, theta, rng, context=None):
        assert context is not None
        return {"x": theta + rng.standard_normal(theta.shape) / np.sqrt(context["exposure"][:, None])}

    def log_likelihood(self, theta, x, context=None):
        assert context is not None
        return (-0.5 * context["exposure"][:, None] * (x["x"] - theta) ** 2).sum(1)


CONFIG: dict[str, Any] = {
    "simulator": "exposed",
    "observation": "short",
    "simulate": {"rows": 20_000},
    "train": {
        "flow": {"kind": "maf", "transforms": 2, "hidden": [32]},
        "transforms": {"exposure": "log"},
        "epochs": 4,
        "batch_size": 100,
    },
    "diagnose": {"pairs": 200, "draws": 50},
    "infer": {"draws": 4000, "predictive": 100},
}


@pytest.mark.slow
def test_the_posterior_depends_on_the_context_of_the_observation(tmp_path: Path) -> None:
    run = simfer.run(CONFIG, simulator=Exposed(), workdir=tmp_path / "run", quiet=True)
    store = run.simulations
    assert store.schema.context["exposure"].units == "s"
    assert 0.1 <= store.read_array("context/exposure").min() < 1 < store.read_array("context/exposure").max() <= 100
    assert run.draws.std() == pytest.approx(1 / np.sqrt(1.2), rel=0.15)
    long = run.posterior.sample((4000,), Exposed.observations["long"], seed=0)
    assert long.std() == pytest.approx(1 / np.sqrt(21), rel=0.25)
    assert all(check.passed for check in run.checks.values())
    again = simfer.run(
        {**CONFIG, "context": {"exposure": 20.0}}, simulator=Exposed(), workdir=tmp_path / "run", quiet=True
    )
    assert again.draws.std() == pytest.approx(1 / np.sqrt(21), rel=0.25)
    refined = {**CONFIG, "infer": {**CONFIG["infer"], "refine": "importance"}}
    exact = simfer.run(refined, simulator=Exposed(), workdir=tmp_path / "run", quiet=True)
    assert exact.draws.std() == pytest.approx(1 / np.sqrt(1.2), rel=0.04)


@pytest.mark.parametrize(
    ("context", "match"),
    [
        ({"exposur": 1.0}, "did you mean `exposure`"),
        ({"exposure": {"dist": "Uniform", "low": 2, "high": 1}}, "exposure"),
        ({"exposure": [1.0, 2.0]}, "must be one observation; got 2"),
    ],
)
def test_mistakes_in_context_are_named(tmp_path: Path, context: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        simfer.run({**CONFIG, "context": context}, simulator=Exposed(), workdir=tmp_path / "run", quiet=True)


def test_context_for_a_simulator_without_is_refused(tmp_path: Path, tiny: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="has no context"):
        simfer.run({**tiny, "context": {"exposure": 1.0}}, workdir=tmp_path / "run", quiet=True)


def test_a_distribution_for_the_simulations_and_a_value_for_the_observation(tmp_path: Path) -> None:
    context = {"exposure": {"dist": "Uniform", "low": 1.0, "high": 2.0, "observed": 1.5}}
    config = {
        **CONFIG,
        "context": context,
        "simulate": {"rows": 300},
        "diagnose": [],
        "infer": {"draws": 10, "predictive": 5},
    }
    config["train"] = {**CONFIG["train"], "epochs": 1}
    run = simfer.run(config, simulator=Exposed(), workdir=tmp_path / "run", quiet=True)
    exposure = run.simulations.read_array("context/exposure")
    assert 1 <= exposure.min() <= exposure.max() <= 2
    assert run.observation is not None
    assert run.observation["exposure"] == 1.5
