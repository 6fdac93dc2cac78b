"""Trained posteriors against exact ones."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from sbi.diagnostics import check_sbc, check_tarp, run_sbc, run_tarp

import simfer
from simfer.estimators.model import Model
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, FlowSettings, TrainingSettings


@pytest.fixture(scope="module")
def model() -> Model:
    """theta ~ N(0, 1), x = theta + N(0, 0.5²) in two dimensions; the posterior is N(0.8 x, 0.2)."""
    rng = np.random.default_rng(0)
    theta = rng.standard_normal((8000, 2))
    x = theta + 0.5 * rng.standard_normal(theta.shape)
    prior = simfer.Prior({name: torch.distributions.Normal(0.0, 1.0) for name in "ab"})
    settings = EstimatorSettings(flow=FlowSettings(kind="maf", transforms=2), embedding=EmbeddingSettings(kind="none"))
    return simfer.train(theta, x, prior, estimator=settings, training=TrainingSettings(epochs=15, batch_size=100))


@pytest.mark.slow
def test_posterior_is_the_conjugate_one(model: Model) -> None:
    for x in ([0.0, 0.0], [1.0, -1.5]):
        draws = model.posterior.sample((20_000,), np.array(x), seed=0)
        torch.testing.assert_close(draws.mean(0), 0.8 * torch.tensor(x, dtype=torch.float64), atol=0.05, rtol=0)
        torch.testing.assert_close(draws.std(0), torch.full((2,), 0.2**0.5, dtype=torch.float64), atol=0.03, rtol=0)


def test_sbis_own_diagnostics_take_our_posterior(model: Model) -> None:
    rng = np.random.default_rng(1)
    theta = torch.from_numpy(rng.standard_normal((300, 2))).float()
    x = theta + 0.5 * torch.from_numpy(rng.standard_normal((300, 2))).float()
    ranks, dap = run_sbc(theta, x, model.posterior, num_posterior_samples=200, show_progress_bar=False)
    assert (check_sbc(ranks, theta, dap, num_posterior_samples=200)["ks_pvals"] > 1e-3).all()
    ecp, alpha = run_tarp(theta, x, model.posterior, num_posterior_samples=200, show_progress_bar=False)
    assert check_tarp(ecp, alpha)[1] > 1e-3


@pytest.mark.slow
def test_gaussian_linear_is_within_reach_of_the_exact_posterior() -> None:
    """10,000 simulations; the benchmark's own functions, so that its table and this bound are one measurement."""
    benchmark = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "gaussian_linear.py"))
    posterior, _ = benchmark["trained"](10_000, benchmark["DENSITIES"]["maf"])
    assert benchmark["median_kl"](posterior) <= 0.12
