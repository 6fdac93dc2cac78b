"""Ours for sbi, sbi's for us, and results for ArviZ."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from sbi.diagnostics import check_sbc, run_sbc, run_tarp
from sbi.diagnostics.lc2st import LC2ST
from sbi.inference import NPE, MCMCPosterior, posterior_estimator_based_potential
from sbi.inference.posteriors import DirectPosterior

import simfer
from simfer.data.errors import ShapeError, UnsupportedError
from simfer.estimators.interop import from_sbi
from simfer.estimators.model import build_estimator
from simfer.estimators.settings import EstimatorSettings, FlowSettings
from simfer.estimators.validity import _Logit
from simfer.simulators.prior import Prior

NORMAL = Prior({name: {"dist": "Normal", "loc": 0.0, "scale": 1.0} for name in ("a", "b")})
BOX = Prior({name: {"dist": "Uniform", "low": 0.0, "high": 0.1} for name in ("a", "b")})
NOISE = 0.5
EXACT = NOISE**2 / (1 + NOISE**2) * torch.eye(2)


def pairs(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """theta ~ N(0, I) and the posterior's mean, which stands for x: then q(theta | x) = N(x, EXACT) is exact."""
    rng = np.random.default_rng(seed)
    theta = rng.standard_normal((n, 2))
    x = (theta + NOISE * rng.standard_normal((n, 2))) / (1 + NOISE**2)
    return torch.from_numpy(theta).float(), torch.from_numpy(x).float()


@pytest.fixture
def estimator(gaussian) -> Any:
    return gaussian(NORMAL, EXACT)


def test_shapes_are_those_of_sbis_contract(estimator) -> None:
    adapter = estimator.as_sbi()
    theta, x = pairs(5)
    assert adapter.input_shape == adapter.condition_shape == (2,)
    assert adapter.sample((3, 4), x).shape == (3, 4, 5, 2)
    assert adapter.sample((3,), x).dtype == torch.float32
    assert adapter.loss(theta, x).shape == (5,)
    assert adapter.log_prob(theta, x).shape == (1, 5)
    assert adapter.log_prob(theta.expand(7, 5, 2), x).shape == (7, 5)
    assert adapter.log_prob(theta[None, :1], x).shape == (1, 5)
    assert adapter.log_prob(theta[None], x[:1]).shape == (1, 5)
    each = adapter.log_prob(theta.expand(7, 5, 2), x.expand(7, 5, 2))
    torch.testing.assert_close(each, adapter.log_prob(theta.expand(7, 5, 2), x))
    draws, lp = adapter.sample_and_log_prob((3, 4), x)
    ours = estimator.posterior(NORMAL).log_prob_batched(draws, x)
    torch.testing.assert_close(lp, ours.float(), atol=1e-4, rtol=1e-4)


def test_several_observables_become_one_vector() -> None:
    observables = simfer.Variables([simfer.Variable("y", (2, 3)), simfer.Variable("n")])
    network = build_estimator(NORMAL, observables, EstimatorSettings(flow=FlowSettings(kind="maf", transforms=1)))
    adapter, x = network.as_sbi(), torch.randn(4, 7)
    theta = torch.randn(1, 4, 2)
    assert adapter.condition_shape == (7,)
    ours = network.posterior(NORMAL).log_prob_batched(theta, {"y": x[:, :6].reshape(4, 2, 3), "n": x[:, 6]})
    torch.testing.assert_close(adapter.log_prob(theta, x), ours.float(), atol=1e-5, rtol=1e-5)


def test_what_is_no_density_of_theta_is_refused() -> None:
    logit = _Logit(NORMAL, simfer.Variables([simfer.Variable("valid")]), EstimatorSettings())
    with pytest.raises(UnsupportedError, match="`as_sbi` needs a density of theta given x"):
        logit.as_sbi()


@pytest.mark.slow
def test_sbis_posteriors_take_our_density(estimator) -> None:
    adapter, x = estimator.as_sbi(), torch.tensor([[0.5, -0.3]])
    direct = DirectPosterior(adapter, NORMAL.torch)
    potential, transform = posterior_estimator_based_potential(adapter, NORMAL.torch, x)
    mcmc = MCMCPosterior(potential, NORMAL.torch, transform, num_chains=50, warmup_steps=20, thin=1)
    for posterior, tolerance in (
        (direct, 0.03),
        (mcmc, 0.05),
    ):  # five standard errors: draws of a chain are not independent
        draws = posterior.sample((2000,), x=x, show_progress_bars=False)
        assert (draws.mean(0) - x[0]).abs().max() < 0.1
        torch.testing.assert_close(draws.T.cov(), EXACT, atol=tolerance, rtol=0)
    assert direct.log_prob(x, x=x).item() == pytest.approx(-np.log(2 * np.pi * 0.2), abs=0.02)


def test_the_torch_prior_is_what_sbi_asks_for() -> None:
    """Draws in float32 that a closed support in float64 still holds, and a density of its own."""
    prior, ends = BOX.torch, torch.tensor([[-30.0, 30.0]], dtype=torch.float64)
    assert prior.sample((5,)).dtype == torch.float32
    assert prior.support.check(BOX.rounded(BOX.from_unconstrained(ends))).all()
    assert not prior.support.check(torch.tensor([[0.05, 0.11]])).any()
    torch.testing.assert_close(prior.log_prob(torch.tensor([[0.05, 0.02]])), torch.tensor([-2 * np.log(0.1)]).float())


@pytest.mark.slow
def test_our_posterior_through_sbis_diagnostics(estimator) -> None:
    posterior = estimator.posterior(NORMAL)
    theta, x = pairs(200)
    quiet = {"num_posterior_samples": 100, "show_progress_bar": False}
    for reduce in ("marginals", posterior.log_prob):
        ranks, dap = run_sbc(theta, x, posterior, reduce_fns=reduce, **quiet)
        assert ranks.shape == (200, 2 if reduce == "marginals" else 1)
    ranks, dap = run_sbc(theta, x, posterior, **quiet)
    assert (check_sbc(ranks, theta, dap, num_posterior_samples=100)["ks_pvals"] > 1e-3).all()
    coverage, levels = run_tarp(theta, x, posterior, **quiet)
    assert (coverage - levels).abs().max() < 0.15
    draws = posterior.sample_batched((1,), x)[0]
    test = LC2ST(theta, x, draws, num_trials_null=5, classifier="random_forest")
    test.train_under_null_hypothesis(verbosity=0).train_on_observed_data(verbosity=0)
    assert 0 <= test.p_value(posterior.sample((200,), x[0]), x[:1]) <= 1


def test_sbis_posterior_through_our_checks(estimator) -> None:
    theta, x = pairs(300)
    right = DirectPosterior(estimator.as_sbi(), NORMAL.torch)
    results = simfer.check(right, theta, x, draws=100)
    assert set(results) == {"sbc", "coverage", "tarp"}
    assert all(result.passed for result in results.values())
    wrong = DirectPosterior(estimator.as_sbi(), NORMAL.torch)
    assert not simfer.check(wrong, theta, x + 0.5, draws=100)["sbc"].passed


@pytest.mark.slow
def test_a_posterior_that_sbi_trained_through_our_checks() -> None:
    theta, x = pairs(1000)
    trainer = NPE(NORMAL.torch, density_estimator="mdn", show_progress_bars=False)
    trainer.append_simulations(theta, x).train(max_num_epochs=5)
    results = simfer.check(trainer.build_posterior(), *pairs(200, seed=1), draws=100)
    assert set(results) == {"sbc", "coverage", "tarp"}
    assert all(0 <= result.p_value <= 1 for result in results.values())


def test_posteriors_that_have_no_more_than_a_potential(estimator) -> None:
    class Potential:
        """As sbi's MCMC posteriors are asked, one observation at a time."""

        def sample(self, sample_shape, x, show_progress_bars):
            return estimator.posterior(NORMAL).sample(sample_shape, x).float()

        def potential(self, theta, x, track_gradients):
            return estimator.posterior(NORMAL).log_prob(theta, x).float() + 3.0

    theta, x = pairs(100)
    wrapped = from_sbi(Potential(), theta, x, names=("a", "b"))
    assert wrapped.parameters.names == ("a", "b")
    assert wrapped.sample_batched((5,), x, seed=0).shape == (5, 100, 2)
    results = simfer.check(Potential(), theta, x, draws=50)
    assert all(result.passed for result in results.values())


def test_what_is_no_posterior_is_named() -> None:
    with pytest.raises(ShapeError, match="`posterior` must be simfer's, or have sbi's `sample`"):
        simfer.check(object(), *pairs(30))
    with pytest.raises(ShapeError, match=r"`theta` must be \(pair, parameter\)"):
        from_sbi(NORMAL.torch, torch.zeros(3), torch.zeros(3, 2))


def test_draws_for_arviz(estimator) -> None:
    arviz = pytest.importorskip("arviz")
    posterior, x = estimator.posterior(NORMAL), torch.tensor([0.5, -0.3])
    data = posterior.to_inference_data(x, draws=500, seed=0)
    draws = posterior.sample((500,), x, seed=0)
    np.testing.assert_array_equal(data.posterior["a"].to_numpy()[0], draws[:, 0].numpy())
    np.testing.assert_array_equal(data.observed_data["x"].to_numpy(), x.numpy())
    assert data.sample_stats["lp"].shape == (1, 500)
    assert list(arviz.summary(data, kind="stats").index) == ["a", "b"]


def test_without_arviz_the_remedy_is_named(estimator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(UnsupportedError, match=r"needs ArviZ: pip install 'simfer\[arviz\]'"):
        estimator.posterior(NORMAL).to_inference_data(torch.zeros(2))


def test_arviz_from_1_on_takes_the_tree(estimator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arviz", type(sys)("arviz"))
    tree = estimator.posterior(NORMAL).to_inference_data(torch.zeros(2), draws=10)
    assert set(tree.children) == {"posterior", "sample_stats", "observed_data"}
