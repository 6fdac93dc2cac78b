"""Whole runs with a learned likelihood or ratio: chains in diagnose and infer, many observations, what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import simfer
from simfer.data.errors import ConfigError
from simfer.data.variables import Variable, Variables
from simfer.estimators.mcmc import MCMCPosterior


class Exposed:
    """x = theta + noise / √exposure; sometimes not a number."""

    prior = simfer.Prior({"a": {"dist": "Normal", "loc": 0.0, "scale": 1.0}})
    context = simfer.Prior({"exposure": {"dist": "LogUniform", "low": 0.5, "high": 8.0}})
    observables = Variables([Variable("x", (1,))])
    observations: ClassVar[dict[str, dict[str, Any]]] = {
        "one": {"x": [1.0], "exposure": 4.0},
        "many": {"x": [[1.0], [0.4], [0.7], [0.9]], "exposure": [4.0, 4.0, 2.0, 2.0]},
    }

    def simulate(self, theta, rng, context=None):
        assert context is not None
        return {"x": theta + rng.standard_normal(theta.shape) / np.sqrt(context["exposure"][:, None])}


class Fragile(Exposed):
    def simulate(self, theta, rng, context=None):
        x = super().simulate(theta, rng, context)["x"]
        return {"x": np.where(rng.random(x.shape) < 0.1, np.nan, x)}


CONFIG: dict[str, Any] = {
    "simulator": "exposed",
    "observation": "one",
    "simulate": {"rows": 2000},
    "train": {
        "method": "nle",
        "flow": {"kind": "gmm", "components": 1, "hidden": [16]},
        "transforms": {"exposure": "log"},
        "epochs": 25,
        "batch_size": 100,
        "learning_rate": 5e-3,
    },
    "diagnose": {"pairs": 40, "draws": 50},
    "infer": {"draws": 500, "predictive": 100, "sampler": {"warmup": 5}},
}


def changed(**parts: Any) -> dict[str, Any]:
    return {
        key: {**value, **parts.get(key, {})} if isinstance(value, dict) else parts.get(key, value)
        for key, value in CONFIG.items()
    }


@pytest.mark.slow
def test_a_run_with_a_likelihood(tmp_path: Path) -> None:
    """Its chains are reported; one observation and many; other chains train nothing."""
    folder = tmp_path / "run"
    run = simfer.run(CONFIG, simulator=Exposed(), workdir=folder, quiet=True)
    assert run.draws.mean() == pytest.approx(0.8, abs=0.15)
    assert run.draws.std() == pytest.approx(5**-0.5, rel=0.25)
    for stage in ("diagnose", "infer"):
        sampler = run.summary["stages"][stage]["sampler"]
        assert sampler["r_hat"] > 0.99
        assert sampler["ess"] > 20
    assert "r_hat" in run.report.read_text(encoding="utf-8")
    assert run.summary["checks"].keys() == {"sbc", "coverage", "tarp", "predictive"}
    model = (folder / "model" / "weights.safetensors").stat().st_mtime_ns
    many = simfer.run(changed(observation="many"), simulator=Exposed(), workdir=folder, quiet=True)
    precision = 1 + 12
    assert many.draws.mean() == pytest.approx((4 * 1.4 + 2 * 1.6) / precision, abs=0.12)
    assert many.draws.std() == pytest.approx(precision**-0.5, rel=0.25)
    assert many.results["observed_data"]["x"].dims == ("trial", "x_0")
    assert many.results["posterior_predictive"]["x"].shape == (1, 100, 4, 1)
    assert many.posterior.sample((10,), seed=0).shape == (10, 1)
    assert many.checks["predictive"].passed
    other = simfer.run(changed(infer={"sampler": {"warmup": 6}}), simulator=Exposed(), workdir=folder, quiet=True)
    assert (folder / "model" / "weights.safetensors").stat().st_mtime_ns == model
    assert isinstance(other.posterior, MCMCPosterior)


@pytest.mark.slow
def test_a_run_with_a_ratio_and_rows_that_fail(tmp_path: Path) -> None:
    config = changed(train={"method": "nre", "epochs": 8, "ratio": {"contrasts": 3, "hidden": [16]}})
    run = simfer.run(config, simulator=Fragile(), workdir=tmp_path / "run", quiet=True)
    assert run.model.estimator.settings.failures
    assert run.model.estimator.settings.ratio.contrasts == 3
    assert run.draws.mean() == pytest.approx(0.8, abs=0.3)


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ({"train": {"embedding": {"features": 3}}}, "`embedding` must be left out with method `nle`"),
        ({"train": {"sd_floor": 0.05}}, "`sd_floor` must be left out with method `nle`"),
        ({"simulate": {"on_invalid": "impute"}}, "`on_invalid` must not be `impute` with method `nle`"),
        ({"train": {"method": "npe"}}, "only methods `nle` and `nre` sample by Markov chains, not `npe`"),
        ({"train": {"method": "npe"}, "observation": "many"}, "must be one observation; got 4: only methods `nle`"),
        ({"infer": {"refine": "importance"}}, "needs draws of known density"),
        ({"infer": {"sampler": {"chians": 3}}}, "did you mean `chains`"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(tmp_path: Path, parts: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        simfer.run(changed(**parts), simulator=Exposed(), workdir=tmp_path / "run", quiet=True)
