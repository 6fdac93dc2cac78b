"""Input that is wrong or extreme: a clear error, or a warning that says what was done. One test for each case."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import simfer
from simfer.data.errors import NotFiniteError, PriorError, ShapeError
from simfer.data.ranges import OutsideTrainingWarning
from simfer.estimators.base import Posterior
from simfer.estimators.model import Model, load_model
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, FlowSettings, TrainingSettings

PRIOR = simfer.Prior(
    {"a": {"dist": "Normal", "loc": 0.0, "scale": 1.0}, "b": {"dist": "Uniform", "low": 0.0, "high": 1.0}}
)
SMALL = EstimatorSettings(
    flow=FlowSettings(kind="maf", transforms=1, hidden=(8,)), embedding=EmbeddingSettings(kind="none")
)
BRIEF = TrainingSettings(epochs=2, batch_size=50)


def simulated(rows: int = 400, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    theta = PRIOR.sample(rows, rng)
    grid = theta[:, [0, 1, 0, 1]].reshape(rows, 2, 2)
    return theta, {"y": grid + 0.1 * rng.standard_normal((rows, 2, 2)), "n": rng.poisson(5, rows)}


def trained(theta: Any, x: Any, prior: simfer.Prior = PRIOR, settings: EstimatorSettings = SMALL) -> Model:
    return simfer.train(theta, x, prior, estimator=settings, training=BRIEF)


@pytest.fixture(scope="module")
def model() -> Model:
    return trained(*simulated())


@pytest.fixture
def posterior(model: Model) -> Posterior:
    return model.posterior


@pytest.fixture
def x() -> dict[str, np.ndarray]:
    return {name: values[0] for name, values in simulated(1, seed=5)[1].items()}


def test_x_of_another_shape(posterior: Posterior, x: dict[str, np.ndarray]) -> None:
    for wrong in (np.zeros(4), np.zeros((2, 3)), np.zeros((1, 2, 2, 1))):
        with pytest.raises(ShapeError, match=r"`x\['y'\]` must have shape \(2, 2\), or one such row per observation"):
            posterior.sample((3,), {**x, "y": wrong})
    with pytest.raises(ShapeError, match=r"must have 5 numbers in its last axis \(y: 4, n: 1\)"):
        posterior.sample((3,), np.zeros(4))


def test_x_in_another_order(posterior: Posterior, x: dict[str, np.ndarray]) -> None:
    """Names decide, not order."""
    turned = dict(reversed(x.items()))
    assert torch.equal(posterior.sample((3,), turned, seed=0), posterior.sample((3,), x, seed=0))


def test_x_of_another_name(posterior: Posterior, x: dict[str, np.ndarray]) -> None:
    with pytest.raises(ShapeError, match="exactly the variables y, n; missing: y; unknown: z"):
        posterior.sample((3,), {"z": x["y"], "n": x["n"]})


def test_an_observation_beyond_the_training_data(
    posterior: Posterior, x: dict[str, np.ndarray], tmp_path: Path
) -> None:
    far = {**x, "y": np.array([[0.0, 0.5], [40.0, 0.5]])}
    match = r"the observation lies outside the training data: `y\[1, 0\]` is 40, trained on -\S+ to \S+\. The posterior"
    with pytest.warns(OutsideTrainingWarning, match=match):
        posterior.sample((3,), far)
    with warnings.catch_warnings():  # once is enough
        warnings.simplefilter("error")
        posterior.log_prob(torch.tensor([0.0, 0.5]), far)
    assert [(each.observable, each.index) for each in posterior.outside(far)] == [("y", (1, 0))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        posterior.sample((3,), x)


def test_the_training_range_is_saved_with_the_model(model: Model, x: dict[str, np.ndarray], tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    with pytest.warns(OutsideTrainingWarning, match=r"`n` is 500, trained on 0 to 1\d"):
        load_model(tmp_path / "model").posterior.sample((3,), {**x, "n": 500})


def test_some_of_many_observations_beyond_the_training_data(posterior: Posterior) -> None:
    _, many = simulated(200, seed=7)
    with warnings.catch_warnings():  # other rows of the same simulator
        warnings.simplefilter("error")
        posterior.sample_batched((1,), many)
    many["n"][:7] = 400
    with pytest.warns(
        OutsideTrainingWarning, match="7 of 200 observations lie outside the training data, as the first"
    ):
        posterior.sample_batched((1,), many)


def test_context_beyond_its_simulations() -> None:
    """Known nuisance reaches the network as an observable, and is looked at like one."""
    theta, x = simulated()
    with_context = {**x, "exposure": np.random.default_rng(1).uniform(1, 2, len(theta))}
    posterior = trained(theta, with_context).posterior
    one = {name: values[0] for name, values in with_context.items()}
    with pytest.warns(OutsideTrainingWarning, match="`exposure` is 9, trained on 1"):
        posterior.sample((2,), {**one, "exposure": 9.0})


@pytest.mark.parametrize("kind", ["maf", "nsf", "gmm"])
def test_theta_outside_the_prior(kind: str, x: dict[str, np.ndarray]) -> None:
    """-inf and a gradient of zero, whatever number theta is; a finite gradient inside."""
    posterior = trained(*simulated(), settings=SMALL.model_copy(update={"flow": FlowSettings(kind=kind)})).posterior
    inf, nan = float("inf"), float("nan")
    outside = [[0.0, -0.5], [0.0, 1.5], [0.0, inf], [0.0, nan], [inf, 0.5], [nan, 0.5], [1e300, 0.5], [-1e30, -1e300]]
    theta = torch.tensor([*outside, [0.0, 0.5]], dtype=torch.float64, requires_grad=True)
    lp = posterior.log_prob(theta, x, track_gradients=True)
    assert lp.isneginf().tolist() == [True] * len(outside) + [False]
    (gradient,) = torch.autograd.grad(lp[-1] + lp[:-1].exp().sum(), theta)
    assert (gradient[:-1] == 0).all()
    assert gradient[-1].isfinite().all()
    assert gradient[-1].abs().sum() > 0
    (gradient,) = torch.autograd.grad(posterior.log_prob(theta, x, track_gradients=True).sum(), theta)
    assert gradient.isfinite().all()


def test_constant_columns_of_x() -> None:
    theta, x = simulated()
    x["y"][:, 1, 1] = 7.0
    with pytest.warns(UserWarning, match=r"1 entries of x have one value in all 360 training rows \(`y\[1, 1\]`\)"):
        posterior = trained(theta, x).posterior
    one = {name: values[0] for name, values in x.items()}
    assert posterior.log_prob(torch.tensor([0.0, 0.5]), one).isfinite()
    one["y"] = one["y"] + np.array([[0.0, 0.0], [0.0, 0.1]])
    with pytest.warns(OutsideTrainingWarning, match=r"`y\[1, 1\]` is 7.1, trained on 7 to 7"):
        posterior.sample((2,), one)


@pytest.mark.parametrize("whiten", [False, True])
def test_collinear_columns_of_x(whiten: bool) -> None:
    """One column is another, one a sum of two: nothing is divided by a variance of zero."""
    theta, x = simulated()
    x["y"][:, 0, 1] = x["y"][:, 0, 0]
    x["y"][:, 1, 1] = x["y"][:, 0, 0] + x["y"][:, 1, 0]
    posterior = trained(theta, x, settings=SMALL.model_copy(update={"whiten": whiten})).posterior
    assert posterior.log_prob_batched(torch.from_numpy(theta)[None], x).isfinite().all()


def test_one_training_row() -> None:
    with pytest.raises(ShapeError, match="must have at least 2 rows to train and validate with; got 1"):
        trained(*simulated(1))


def test_two_training_rows() -> None:
    posterior = trained(*simulated(2)).posterior
    assert posterior.sample((10,), {name: v[0] for name, v in simulated(2)[1].items()}).isfinite().all()


def test_scales_that_float32_cannot_hold() -> None:
    theta, x = simulated()
    for scale in (1e-300, 1e300):
        with pytest.raises(NotFiniteError, match=r"`x\['y'\]` must be numbers that float32 can hold.* another unit"):
            trained(theta, {**x, "y": scale * x["y"]})
    with pytest.raises(ShapeError, match=r"`x\['y'\]` lies between .* cannot tell apart: subtract an offset"):
        trained(theta, {**x, "y": 1e-9 * x["y"] + 1.0})
    tiny = trained(theta, {**x, "y": 1e-30 * x["y"]}).posterior
    rows = {"y": 1e-30 * x["y"], "n": x["n"]}
    assert tiny.log_prob_batched(torch.from_numpy(theta)[None], rows).isfinite().all()


def test_scales_of_parameters_that_no_number_can_hold() -> None:
    with pytest.raises(PriorError, match=r"`a`.*other units"):
        simfer.Prior({"a": {"dist": "Normal", "loc": 0.0, "scale": 1e-300}})
    small = simfer.Prior({"a": {"dist": "Uniform", "low": 0.0, "high": 1e-300}})
    theta = torch.from_numpy(small.sample(100, np.random.default_rng(0)))
    assert small.log_prob(theta).isfinite().all()
    assert small.contains(small.from_unconstrained(small.to_unconstrained(theta))).all()


def test_integers(posterior: Posterior) -> None:
    """Whole numbers are numbers: in training, in x and in theta."""
    theta, x = simulated()
    whole = trained(theta, {"y": np.rint(10 * x["y"]).astype(np.int16), "n": x["n"].astype(np.uint8)}).posterior
    assert whole.sample((3,), {"y": [[1, 0], [2, 3]], "n": 4}).isfinite().all()
    one = {"y": [[0, 1], [1, 0]], "n": 4}
    assert torch.equal(
        posterior.log_prob(torch.tensor([[0, 1]]), one), posterior.log_prob(torch.tensor([[0.0, 1.0]]), one)
    )


def test_duplicated_parameters() -> None:
    theta, x = simulated()
    same = simfer.Prior({name: {"dist": "Normal", "loc": 0.0, "scale": 1.0} for name in ("a", "b")})
    with pytest.raises(ShapeError, match="must be drawn from the prior; `b` equals `a` in all 400 rows: leave one"):
        trained(theta[:, [0, 0]], x, same)
    with pytest.raises(PriorError, match="named twice"):
        simfer.Prior(
            {
                "a, b": {"dist": "MultivariateNormal", "loc": [0, 0], "covariance_matrix": [[1, 0], [0, 1]]},
                "b": {"dist": "Normal", "loc": 0.0, "scale": 1.0},
            }
        )


def test_a_parameter_that_never_changes() -> None:
    theta, x = simulated()
    theta[:, 1] = 0.5
    with pytest.raises(
        ShapeError, match=r"`b` is 0.5 in all 400 rows: leave a parameter that is known out of the prior"
    ):
        trained(theta, x)
