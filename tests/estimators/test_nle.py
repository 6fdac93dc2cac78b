"""Neural likelihoods: a density of x in its own units, whatever x is made of, and the posterior it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

import simfer
from simfer.data.batch import Batch
from simfer.data.errors import ConfigError, ShapeError
from simfer.data.loaders import as_batch
from simfer.data.variables import COUNT, Variable, Variables
from simfer.estimators.model import Model, build_estimator, load_model
from simfer.estimators.nle import NLE
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, FlowSettings, TrainingSettings
from simfer.simulators.campaign import simulate
from simfer.simulators.gaussian_linear import GaussianLinear
from simfer.simulators.prior import Prior

PRIOR = Prior({name: torch.distributions.Normal(0.0, 1.0) for name in "ab"})
FLOW = FlowSettings(kind="maf", transforms=2, hidden=(16,))
QUICK = TrainingSettings(epochs=3, batch_size=100, learning_rate=3e-3)


def trained(x: Any, theta: np.ndarray, observables: Variables | None = None, **settings) -> Model:
    estimator = EstimatorSettings(**{"method": "nle", "flow": FLOW, **settings})
    return simfer.train(theta, x, PRIOR, estimator=estimator, training=QUICK, observables=observables)


@pytest.fixture(scope="module")
def theta() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3000, 2))


@pytest.fixture(scope="module")
def line(theta: np.ndarray) -> Model:
    """x = theta + N(0, 0.5²)."""
    x = theta + 0.5 * np.random.default_rng(1).standard_normal(theta.shape)
    training = TrainingSettings(epochs=12, batch_size=100, learning_rate=3e-3)
    return simfer.train(
        theta,
        x,
        PRIOR,
        estimator=EstimatorSettings(method="nle", flow=FlowSettings(kind="gmm", components=1)),
        training=training,
    )


@pytest.mark.slow
@pytest.mark.parametrize("trials", [1, 10, 100])
def test_posterior_of_many_observations_is_the_conjugate_one(line: Model, trials: int) -> None:
    x = np.array([0.5, -0.2]) + 0.5 * np.random.default_rng(trials).standard_normal((trials, 2))
    precision = 1 + trials / 0.25
    draws = line.posterior.sample((2000,), x, seed=0)
    sd = precision**-0.5
    # errors of the learned mean add up over trials, where the posterior's width shrinks
    np.testing.assert_allclose(draws.mean(0), x.sum(0) / 0.25 / precision, atol=0.2 * sd + 0.04)
    np.testing.assert_allclose(draws.std(0), sd, rtol=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"whiten": True}, {"transforms": {"x": "log"}}], ids=str)
@pytest.mark.parametrize("kind", ["maf", "nsf", "gmm"])
def test_density_of_x_integrates_to_one(settings: dict[str, Any], kind: str, theta: np.ndarray) -> None:
    """In the units of x, correlated and positive, given any theta."""
    rng = np.random.default_rng(2)
    x = np.exp(0.3 * theta[:1000] @ np.array([[1, 1], [0, 1]]) + 0.3 * rng.standard_normal((1000, 2)))
    flow = FLOW.model_copy(update={"kind": kind, "components": 2})
    estimator = trained(x, theta[:1000], flow=flow, **settings).estimator
    side = np.exp(np.linspace(-4, 4, 400)) if settings.get("transforms") else np.linspace(-6, 14, 800)
    cells = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    step = np.gradient(side)
    with torch.no_grad():
        density = estimator.log_likelihood(torch.tensor([[0.3, -0.5]]).expand(len(cells), -1), cells).exp().numpy()
    assert density.reshape(len(side), -1) @ step @ step == pytest.approx(1.0, abs=0.01)


def test_probabilities_of_counts_add_up_to_one(theta: np.ndarray) -> None:
    """And are near those of the Poisson distribution they come from."""
    n = np.random.default_rng(3).poisson(np.exp(1 + 0.5 * theta[:, 0]))
    estimator = trained({"n": n}, theta, Variables([Variable("n", (), "int64", support=COUNT)])).estimator
    counts = np.arange(60)
    with torch.no_grad():
        probability = estimator.log_likelihood(torch.zeros(60, 2), {"n": counts}).exp().numpy()
    assert probability.sum() == pytest.approx(1.0, abs=0.03)
    assert np.abs(probability - scipy.stats.poisson.pmf(counts, np.e)).sum() < 0.3


def test_entries_that_never_vary_have_no_density(theta: np.ndarray) -> None:
    x = theta + 0.5 * np.random.default_rng(1).standard_normal(theta.shape)
    padded = np.concatenate([x, np.full((len(x), 1), 7.0), np.zeros((len(x), 1))], 1)
    model = trained(padded, theta, flow=FlowSettings(kind="gmm", components=1))
    loss = model.facts["loss"]["validation"][-1]
    assert 0 < loss < 3  # of the other two, 1.45 at best
    side = torch.linspace(-5, 5, 101)
    cells = torch.cartesian_prod(side, side)
    rest = torch.tensor([7.0, 0.0]).expand(len(cells), -1)
    with torch.no_grad():
        density = model.estimator.log_likelihood(torch.zeros(len(cells), 2), torch.cat([cells, rest], 1)).exp()
    assert density.sum().item() * 0.1**2 == pytest.approx(1.0, abs=0.1)
    assert model.posterior.sample((50,), padded[0], seed=0).isfinite().all()


def test_collinear_entries_are_handled_by_whitening(theta: np.ndarray) -> None:
    x = theta + 0.5 * np.random.default_rng(1).standard_normal(theta.shape)
    model = trained(np.concatenate([x, x[:, :1]], 1), theta, whiten=True)
    assert isinstance(model.estimator, NLE)
    assert int(model.estimator.varies.sum()) == 2
    assert np.isfinite(model.facts["loss"]["validation"]).all()


def test_gradients_reach_every_parameter() -> None:
    observables = Variables([Variable("x", (3,)), Variable("c")])
    for kind in ("nsf", "maf", "gmm"):
        settings = EstimatorSettings(method="nle", flow=FLOW.model_copy(update={"kind": kind}), context=("c",))
        estimator = build_estimator(PRIOR, observables, settings)
        rng = np.random.default_rng(0)
        batch = as_batch(rng.standard_normal((50, 2)), {"x": rng.standard_normal((50, 3)), "c": rng.random(50)})
        estimator.loss(batch).mean().backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in estimator.parameters())


def test_save_and_load_change_nothing(line: Model, tmp_path: Path) -> None:
    line.save(tmp_path / "model")
    loaded, x = load_model(tmp_path / "model"), np.ones((3, 2))
    draws = line.posterior.sample_batched((20,), x, seed=0)
    assert torch.equal(loaded.posterior.sample_batched((20,), x, seed=0), draws)
    assert torch.equal(loaded.posterior.log_prob_batched(draws, x), line.posterior.log_prob_batched(draws, x))


def test_likelihoods_of_rows_of_one_x_and_of_all(line: Model) -> None:
    estimator, x, theta = line.estimator, torch.randn(4, 2), torch.randn(4, 2)
    each = estimator.log_likelihood(theta, x)
    torch.testing.assert_close(each[2:3], estimator.log_likelihood(theta[2:3], x[2]), rtol=1e-5, atol=1e-5)
    one_for_all = torch.stack([estimator.log_likelihood(theta, row) for row in x])
    torch.testing.assert_close(estimator.log_likelihood(theta, x, iid=True), one_for_all.sum(0), rtol=1e-5, atol=1e-5)
    with pytest.raises(ShapeError, match="say `iid=True` for the sum"):
        estimator.log_likelihood(theta[:3], x)


def test_gradients_in_x(line: Model) -> None:
    x = torch.tensor([[0.3, 0.8]], requires_grad=True)
    theta, step = torch.tensor([[[0.2, 0.9]]]), torch.tensor([[1e-2, 0.0]])
    (gradient,) = torch.autograd.grad(line.posterior.log_prob_batched(theta, x, track_gradients=True).sum(), x)
    high, low = (line.posterior.log_prob_batched(theta, x + s).item() for s in (step, -step))
    assert gradient[0, 0].item() == pytest.approx((high - low) / 2e-2, rel=0.05)


@pytest.mark.slow
def test_context_conditions_the_likelihood() -> None:
    """x = theta_a + noise / √exposure: the density of x given theta has the width that the exposure says."""
    rng = np.random.default_rng(4)
    theta, exposure = rng.standard_normal((5000, 2)), np.exp(rng.uniform(-2, 3, 5000))
    x = {"x": theta[:, :1] + rng.standard_normal((5000, 1)) / np.sqrt(exposure)[:, None], "exposure": exposure}
    settings = EstimatorSettings(
        method="nle", flow=FlowSettings(kind="gmm", components=1), context=("exposure",), transforms={"exposure": "log"}
    )
    training = TrainingSettings(epochs=15, batch_size=100, learning_rate=3e-3)
    model = simfer.train(theta, x, PRIOR, estimator=settings, training=training)
    grid = torch.linspace(-8, 8, 2001)[:, None]
    for known in (0.3, 8.0):
        seen = {"x": grid, "exposure": torch.full((2001,), known)}
        with torch.no_grad():
            density = model.estimator.log_likelihood(torch.zeros(2001, 2), seen).exp() * 16 / 2000
        assert density.sum().item() == pytest.approx(1.0, abs=1e-2)
        assert (density @ grid[:, 0].double() ** 2).sqrt().item() == pytest.approx(known**-0.5, rel=0.2)


class Fragile(GaussianLinear):
    """x is NaN with probability 1 / (1 + exp(1 + 8 theta_1))."""

    def simulate(self, theta, rng, context=None):
        x = super().simulate(theta, rng)["x"]
        x[rng.random(len(theta)) > 1 / (1 + np.exp(-(1 + 8 * theta[:, 0])))] = np.nan
        return {"x": x}


@pytest.mark.slow
def test_rows_left_out_are_made_up_for(tmp_path: Path) -> None:
    """p(valid | theta) is learned, saved, and part of the potential once for each observation."""
    store = simulate(Fragile(), 3000, tmp_path / "s.zarr", seed=1)
    settings = EstimatorSettings(method="nle", flow=FLOW)
    model = simfer.train(store, estimator=settings, training=QUICK)
    assert model.estimator.settings.failures
    model.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    low, high = (torch.tensor([[value, *[0.0] * 9]]) for value in (-0.6, 0.6))
    x, posterior = torch.zeros(3, 10), loaded.posterior
    loaded_estimator = loaded.estimator
    z = loaded.prior.to_unconstrained(torch.cat([low, high])).float()
    valid = torch.nn.functional.logsigmoid(loaded_estimator.get_submodule("validity")(z)).double()
    truth = np.log(1 / (1 + np.exp(-(1 + 8 * np.array([-0.6, 0.6])))))
    np.testing.assert_allclose(valid.detach(), truth, atol=0.5)
    with_it = posterior.log_prob(low, x) - posterior.log_prob(high, x)
    setattr(loaded_estimator, "validity", None)  # noqa: B010
    without = posterior.log_prob(low, x) - posterior.log_prob(high, x)
    torch.testing.assert_close(with_it - without, 3 * (valid[:1] - valid[1:]).detach())
    assert all(parameter.requires_grad is False for parameter in model.estimator.get_submodule("validity").parameters())


def test_rows_cannot_be_both_imputed_and_left_out(tmp_path: Path) -> None:
    store = simulate(Fragile(), 500, tmp_path / "s.zarr", seed=1)
    with pytest.raises(ConfigError, match="must not be `impute` with method `nle`"):
        simfer.train(store, estimator=EstimatorSettings(method="nle", impute=True), training=QUICK)


def test_what_has_no_density_is_refused() -> None:
    observables = Variables([Variable("x", (2,))])
    with pytest.raises(ConfigError, match="`embedding` must be left out with method `nle`"):
        build_estimator(PRIOR, observables, EstimatorSettings(method="nle", embedding=EmbeddingSettings(features=3)))
    for context in (("x",), ("y",)):
        with pytest.raises(ConfigError, match="`context` must be some, not all"):
            build_estimator(PRIOR, observables, EstimatorSettings(method="nle", context=context))
    with pytest.raises(ShapeError, match="`transforms` has no observable `y`"):
        build_estimator(PRIOR, observables, EstimatorSettings(method="nle", transforms={"y": "log"}))


def test_steps_have_different_noise_and_validation_the_same() -> None:
    observables = Variables([Variable("n", (2,), "int64", support=COUNT)])
    estimator = build_estimator(PRIOR, observables, EstimatorSettings(method="nle", flow=FLOW))
    batch = Batch(torch.zeros(4, 2).double(), {"n": torch.ones(4, 2)})
    estimator.fit_preprocess([Batch(batch.theta, {"n": torch.arange(8.0).reshape(4, 2)})])
    before = torch.get_rng_state()
    assert not torch.equal(estimator.loss(batch), estimator.loss(batch))
    estimator.eval()
    assert torch.equal(estimator.loss(batch), estimator.loss(batch))
    assert torch.equal(before, torch.get_rng_state())
