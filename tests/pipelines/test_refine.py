"""`infer: {refine: importance}` in a whole run: exact draws, an honest refusal, a clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.stats

import simfer
from simfer.data.errors import ConfigError
from simfer.data.stopping import ask_to_stop, go_on
from simfer.data.variables import Variable, Variables


class Line:
    """x = theta + noise: the exact posterior of x = 1 is N(0.8, 0.2)."""

    prior = simfer.Prior({"a": {"dist": "Normal", "loc": 0.0, "scale": 1.0}})
    observables = Variables([Variable("x", (1,))])
    observations: ClassVar[dict[str, dict[str, list[float]]]] = {"one": {"x": [1.0]}}

    def simulate(self, theta, rng, context=None):
        return {"x": theta + 0.5 * rng.standard_normal(theta.shape)}


class Known(Line):
    def log_likelihood(self, theta, x, context=None):
        return scipy.stats.norm.logpdf(x["x"], theta, 0.5).sum(1)


class Impossible(Line):
    def log_likelihood(self, theta, x, context=None):
        return np.full(len(theta), -np.inf)


CONFIG: dict[str, Any] = {
    "simulator": "line",
    "observation": "one",
    "simulate": {"rows": 1500},
    "train": {"flow": {"kind": "maf", "transforms": 1, "hidden": [8]}, "embedding": {"kind": "none"}, "epochs": 2},
    "diagnose": [],
    "infer": {"draws": 4000, "refine": "importance", "predictive": 0},
}


@pytest.mark.slow
def test_draws_become_exact_and_both_posteriors_are_kept(tmp_path: Path) -> None:
    run = simfer.run(CONFIG, simulator=Known(), workdir=tmp_path / "run", quiet=True)
    assert scipy.stats.kstest(np.unique(run.draws[:, 0].numpy()), "norm", (0.8, np.sqrt(0.2))).statistic < 0.03
    assert abs(run.draws.mean() - 0.8) < abs(run.summary["amortised"]["a"]["mean"] - 0.8) + 0.02
    assert run.summary["refine"]["accepted"]
    evidence = scipy.stats.norm.logpdf(1.0, 0, np.sqrt(1.25))
    assert abs(run.summary["refine"]["log_evidence"] - evidence) < 5 * run.summary["refine"]["log_evidence_sd"]
    assert "amortised" in run.results.children
    lp = run.results["sample_stats"]["lp"].to_numpy()[0]
    np.testing.assert_allclose(lp, scipy.stats.norm.logpdf(run.draws[:, 0], 0.8, np.sqrt(0.2)), atol=0.05)
    assert "importance sampling" in run.report.read_text(encoding="utf-8")


class Narrow(Line):
    """Far narrower than the network learns in two epochs: plain importance is refused."""

    def log_likelihood(self, theta, x, context=None):
        return scipy.stats.norm.logpdf(x["x"], theta, 2e-3).sum(1)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adaptive", "smc"])
def test_where_importance_is_refused_adaptation_goes_on(tmp_path: Path, method: str) -> None:
    plain = {"method": "importance", "ess": 2000, "likelihoods": 20_000}
    config = {**CONFIG, "infer": {**CONFIG["infer"], "refine": plain}}
    run = simfer.run(config, simulator=Narrow(), workdir=tmp_path / "run", quiet=True)
    assert not run.summary["refine"]["accepted"]
    assert run.summary["verdict"] == "fail"
    assert "do not use them" in run.report.read_text(encoding="utf-8")
    run = simfer.run(
        {**config, "infer": {**CONFIG["infer"], "refine": method}},
        simulator=Narrow(),
        workdir=tmp_path / "run",
        quiet=True,
    )
    found = run.summary["refine"]
    assert found["accepted"]
    assert found["ess"] >= 4000
    assert found["likelihoods"] <= 200_000
    evidence = scipy.stats.norm.logpdf(1.0, 0, np.sqrt(1 + 2e-3**2))
    assert abs(found["log_evidence"] - evidence) < 4 * found["log_evidence_sd"]
    assert run.summary["posterior"]["a"]["sd"] == pytest.approx(2e-3, rel=0.1)
    assert "not to be trusted" in run.report.read_text(encoding="utf-8")


class WithoutContext(Line):
    def log_likelihood(self, theta, x):
        return scipy.stats.norm.logpdf(x["x"], theta, 0.5).sum(1)


def test_a_likelihood_need_not_know_of_context(tmp_path: Path) -> None:
    run = simfer.run(CONFIG, simulator=WithoutContext(), workdir=tmp_path / "run", quiet=True)
    assert run.summary["refine"]["accepted"]


def test_a_refusal_keeps_the_networks_draws_and_says_so(tmp_path: Path) -> None:
    run = simfer.run(CONFIG, simulator=Impossible(), workdir=tmp_path / "run", quiet=True)
    assert not run.summary["refine"]["accepted"]
    assert run.summary["posterior"] == run.summary["amortised"]
    assert "Refinement refused" in run.report.read_text(encoding="utf-8")


def test_a_simulator_without_likelihood_cannot_be_refined(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a simulator with `log_likelihood`"):
        simfer.run(CONFIG, simulator=Line(), workdir=tmp_path / "run", quiet=True)


@pytest.mark.slow
def test_an_inference_goes_on_with_the_likelihoods_that_are_known(tmp_path: Path) -> None:
    rows: list[int] = []
    stop_at = [0]

    class Counting(Narrow):
        def log_likelihood(self, theta, x, context=None):
            rows.append(len(theta))
            if len(rows) == stop_at[0]:
                ask_to_stop()
            return super().log_likelihood(theta, x)

    config = {**CONFIG, "infer": {"draws": 1000, "refine": "adaptive", "predictive": 100}}
    whole = simfer.run(config, simulator=Counting(), workdir=tmp_path / "whole", quiet=True)
    alone = rows.copy()
    rows.clear()
    stop_at[0] = len(alone) // 2
    with pytest.raises(KeyboardInterrupt):
        simfer.run(config, simulator=Counting(), workdir=tmp_path / "run", quiet=True)
    go_on()
    assert 1 < len(rows) == stop_at[0] < len(alone)
    run = simfer.run(config, simulator=Counting(), workdir=tmp_path / "run", quiet=True)
    assert rows == alone
    assert run.summary["refine"] == whole.summary["refine"]
    for group in ("posterior", "amortised", "posterior_predictive", "sample_stats"):
        assert run.results[group].to_dataset().equals(whole.results[group].to_dataset()), group
    assert not list((tmp_path / "run").glob("*.parts"))
