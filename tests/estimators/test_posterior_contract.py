"""The contract of a posterior, over every density: a new one is tested by adding a line to SETTINGS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributions as D

import simfer
from simfer.data.errors import NotFiniteError, ShapeError
from simfer.estimators.base import Posterior
from simfer.estimators.model import Model, build_estimator, load_model
from simfer.estimators.settings import (
    EmbeddingSettings,
    EstimatorSettings,
    FieldSettings,
    FlowSettings,
    TrainingSettings,
)
from simfer.simulators.families import TruncatedNormal
from simfer.simulators.prior import Prior

SMALL = EmbeddingSettings(features=4, hidden=(16,))
SETTINGS = {
    "nsf": EstimatorSettings(flow=FlowSettings(kind="nsf", transforms=2, hidden=(16, 16)), embedding=SMALL),
    "maf": EstimatorSettings(flow=FlowSettings(kind="maf", transforms=2, hidden=(16, 16)), embedding=SMALL),
    "coupling": EstimatorSettings(flow=FlowSettings(kind="coupling", transforms=2, hidden=(16, 16)), embedding=SMALL),
    "realnvp": EstimatorSettings(flow=FlowSettings(kind="realnvp", transforms=4, hidden=(16, 16)), embedding=SMALL),
    "cnf": EstimatorSettings(flow=FlowSettings(kind="cnf", hidden=(16, 16)), embedding=SMALL),
    "gmm": EstimatorSettings(flow=FlowSettings(kind="gmm", components=3, hidden=(16,)), embedding=SMALL),
    "fmpe": EstimatorSettings(method="fmpe", field=FieldSettings(hidden=32, blocks=2), embedding=SMALL),
    "maf, scale of the rows": EstimatorSettings(
        flow=FlowSettings(kind="maf", transforms=2, hidden=(16, 16)), embedding=SMALL, scale="rows"
    ),
    "maf, floor": EstimatorSettings(
        flow=FlowSettings(kind="maf", transforms=2, hidden=(16, 16)), embedding=SMALL, sd_floor=2.0
    ),
    "nsf, no embedding": EstimatorSettings(
        flow=FlowSettings(transforms=1, hidden=(16,)), embedding=EmbeddingSettings(kind="none")
    ),
    "ensemble of 3": EstimatorSettings(
        flow=FlowSettings(kind="nsf", transforms=1, hidden=(16,)), embedding=SMALL, ensemble=3
    ),
}
PRIOR = Prior({"a": D.Uniform(-1.0, 1.0), "b": TruncatedNormal(0.5, 1.0, low=0.0)})


def simulated(rows: int, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    theta = PRIOR.sample(rows, rng)
    return theta, {"x": theta + 0.3 * rng.standard_normal(theta.shape), "n": rng.poisson(5 * theta[:, 1])}


@pytest.fixture(scope="module", params=SETTINGS)
def model(request: pytest.FixtureRequest) -> Model:
    theta, x = simulated(2000)
    training = TrainingSettings(epochs=3, batch_size=100, learning_rate=3e-3)
    return simfer.train(theta, x, PRIOR, estimator=SETTINGS[request.param], training=training)


@pytest.fixture
def posterior(model: Model) -> Posterior:
    return model.posterior


@pytest.fixture(scope="module")
def x() -> dict[str, np.ndarray]:
    return simulated(6, seed=9)[1]


def first(x: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values[0] for name, values in x.items()}


def test_shapes_are_sbis(posterior: Posterior, x: dict[str, np.ndarray]) -> None:
    one = first(x)
    assert posterior.sample((), one).shape == (2,)
    assert posterior.sample((7,), one).shape == (7, 2)
    assert posterior.sample((3, 2), one).shape == (3, 2, 2)
    assert posterior.sample_batched((5,), x).shape == (5, 6, 2)
    assert posterior.log_prob(posterior.sample((7,), one), one).shape == (7,)
    assert posterior.log_prob_batched(posterior.sample_batched((5,), x), x).shape == (5, 6)


def test_draws_never_leave_the_support(posterior: Posterior, x: dict[str, np.ndarray]) -> None:
    far = {"x": np.array([40.0, -40.0]), "n": np.array(1000)}
    for draws in (posterior.sample_batched((2000,), x, seed=0), posterior.sample((2000,), far, seed=0)):
        assert PRIOR.contains(draws).all()
        assert draws.dtype == torch.float64


def test_log_prob_of_one_and_of_many_agree(posterior: Posterior, x: dict[str, np.ndarray]) -> None:
    draws = posterior.sample_batched((50,), x, seed=1)
    many = posterior.log_prob_batched(draws, x)
    for i in range(6):
        one = {name: values[i] for name, values in x.items()}
        torch.testing.assert_close(posterior.log_prob(draws[:, i], one), many[:, i], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(posterior.log_prob(draws[0, i], one), many[0, i], atol=1e-4, rtol=1e-4)


def test_log_prob_of_the_draws_comes_with_them(posterior: Posterior, x: dict[str, np.ndarray]) -> None:
    draws, log_prob = posterior.sample_with_log_prob((200,), x, seed=1)
    torch.testing.assert_close(posterior.log_prob_batched(draws, x), log_prob, atol=2e-3, rtol=1e-3)


def test_density_integrates_to_one_and_fits_the_draws(posterior: Posterior, x: dict[str, np.ndarray]) -> None:
    """On a grid over the image of [-6, 6]^2: the mass, and the mean of each parameter, are those of the draws."""
    side = torch.linspace(-6, 6, 301, dtype=torch.float64)
    z = torch.cartesian_prod(side, side)
    theta = PRIOR.from_unconstrained(z)
    weight = (posterior.log_prob(theta, first(x)) - PRIOR.log_abs_det(theta, z)).exp() * (side[1] - side[0]) ** 2
    assert weight.sum().item() == pytest.approx(1.0, abs=2e-3)
    draws = posterior.sample((20_000,), first(x), seed=2)
    error = 5 * draws.std(0) / 20_000**0.5 + 2e-3
    assert ((weight @ theta - draws.mean(0)).abs() < error).all()


def test_log_prob_is_minus_infinity_outside(posterior: Posterior, x: dict[str, np.ndarray]) -> None:
    outside = torch.tensor([[1.5, 1.0], [0.0, -0.1], [0.0, 1.0]])
    assert torch.isinf(posterior.log_prob(outside, first(x))).tolist() == [True, True, False]


def test_seed_fixes_draws_and_leaves_the_global_state(posterior: Posterior, x: dict[str, np.ndarray]) -> None:
    before = torch.get_rng_state()
    a, b = posterior.sample((5,), first(x), seed=3), posterior.sample((5,), first(x), seed=3)
    assert torch.equal(a, b)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(a, posterior.sample((5,), first(x), seed=4))


def test_save_and_load_change_nothing(model: Model, x: dict[str, np.ndarray], tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["model.json", "weights.safetensors"]
    loaded = load_model(tmp_path / "model")
    draws = model.posterior.sample_batched((20,), x, seed=0)
    assert torch.equal(loaded.posterior.sample_batched((20,), x, seed=0), draws)
    assert torch.equal(loaded.posterior.log_prob_batched(draws, x), model.posterior.log_prob_batched(draws, x))
    assert loaded.facts == model.facts
    assert loaded.estimator.settings == model.estimator.settings


@pytest.mark.parametrize("name", SETTINGS)
def test_rsample_and_log_prob_have_gradients_in_x(name: str) -> None:
    """Against finite differences, in float64 through the network."""
    estimator = build_estimator(PRIOR, simfer.Variables([simfer.Variable("x", (2,))]), SETTINGS[name], seed=1)
    posterior = estimator.posterior(PRIOR)
    x = torch.tensor([[0.3, 0.8]], requires_grad=True)
    theta = torch.tensor([[[0.2, 0.9]]], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(posterior.log_prob_batched(theta, x, track_gradients=True).sum(), x)
    for i in range(2):
        step = torch.zeros(1, 2)
        step[0, i] = 1e-2
        slope = (posterior.log_prob_batched(theta, x + step) - posterior.log_prob_batched(theta, x - step)).sum() / 2e-2
        assert gradient[0, i].item() == pytest.approx(slope.item(), rel=0.05, abs=2e-3)
    draws = posterior.rsample((10,), x)
    (through,) = torch.autograd.grad(draws.sum(), x)
    assert draws.shape == (10, 1, 2)
    assert through.abs().sum() > 0


@pytest.mark.parametrize("name", SETTINGS)
def test_stratified_draws_have_the_moments_of_plain_ones(name: str) -> None:
    estimator = build_estimator(PRIOR, simfer.Variables([simfer.Variable("x", (2,))]), SETTINGS[name], seed=1)
    posterior, x = estimator.posterior(PRIOR), torch.tensor([[0.3, 0.8], [0.1, 1.5]])
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        theta, log_weights = posterior.rsample_stratified((4000,), x)
    assert theta.shape == (4000, len(log_weights), 2, 2)
    plain = posterior.sample_batched((4000,), x, seed=1)
    for power in (1, 2):
        mean = (log_weights.exp()[..., None] * theta**power).sum(1)
        error = (mean.var(0) / 4000 + (plain**power).var(0) / 4000).sqrt()
        assert ((mean.mean(0) - (plain**power).mean(0)).abs() < 5 * error).all()


def test_default_x(posterior: Posterior, x: dict[str, np.ndarray]) -> None:
    with pytest.raises(ShapeError, match="`x` must be given"):
        posterior.sample((3,))
    posterior.set_default_x(first(x))
    assert torch.equal(posterior.sample((3,), seed=0), posterior.sample((3,), first(x), seed=0))


@pytest.mark.parametrize(
    ("bad", "error", "match"),
    [
        ({"x": np.zeros((4, 2)), "n": np.zeros(4)}, ShapeError, "must be one observation; got 4: use `sample_batched`"),
        ({"x": np.zeros(3), "n": 1.0}, ShapeError, r"must have shape \(2,\)"),
        ({"x": np.array([0.0, np.nan]), "n": 1.0}, NotFiniteError, "got nan at index"),
        ({"x": np.zeros(2)}, ShapeError, "missing: n"),
    ],
)
def test_bad_x_is_named(posterior: Posterior, bad: dict[str, np.ndarray], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        posterior.sample((3,), bad)


def test_bad_theta_is_named(posterior: Posterior, x: dict[str, np.ndarray]) -> None:
    with pytest.raises(ShapeError, match=r"must have shape \(\*sample, 6 observations, 2 parameters\)"):
        posterior.log_prob_batched(torch.zeros(5, 2), x)


def test_another_prior_is_refused(model: Model) -> None:
    with pytest.raises(ShapeError, match="cannot change it"):
        model.estimator.posterior(Prior({"a": D.Normal(0.0, 1.0), "b": D.Normal(0.0, 1.0)}))
