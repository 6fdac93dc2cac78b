"""Group-equivariant posteriors: chains, density and equivariance against what is known of them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.distributions import Normal, Uniform

import simfer
from simfer.data.errors import ShapeError, SymmetryError, UnsupportedError
from simfer.data.variables import Variable, Variables
from simfer.estimators.importance import refine
from simfer.estimators.model import Model, build_estimator, load_model
from simfer.estimators.settings import (
    EmbeddingSettings,
    EstimatorSettings,
    FieldSettings,
    FisherSettings,
    FlowSettings,
    SymmetrySettings,
    TrainingSettings,
)
from simfer.estimators.symmetry.blur import Blur, build_blur
from simfer.estimators.symmetry.gibbs import Convergence, run_chains
from simfer.estimators.symmetry.gnpe import GNPE
from simfer.estimators.symmetry.posterior import GNPEPosterior
from simfer.simulators.elongated_source import ElongatedSource
from simfer.simulators.families import LogUniform
from simfer.simulators.prior import Prior
from simfer.simulators.symmetry import RotatePoints, Scale, Shift

SMALL = EmbeddingSettings(kind="mlp", features=8, hidden=(32,))
FLOW = FlowSettings(kind="nsf", transforms=2, hidden=(32,))
BIN, NOISE = 0.25, 0.1


class Pulse:
    """A pulse of unknown height and arrival in 40 bins."""

    prior = Prior({"height": Uniform(0.5, 2.0), "arrival": Uniform(3.0, 7.0)})
    observables = Variables([Variable("x", (40,), dims=("time",))])
    symmetry = {"time": Shift(by="arrival", of="x", along="time", spacing=BIN, origin=5.0)}  # noqa: RUF012

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        return {"x": self.signal(theta) + NOISE * rng.standard_normal((len(theta), 40))}

    def signal(self, theta: np.ndarray) -> np.ndarray:
        return np.asarray(theta[:, :1] * np.exp(-((BIN * np.arange(40) - theta[:, 1:]) ** 2) / (2 * 0.5**2)))

    def log_likelihood(
        self, theta: np.ndarray, x: dict[str, np.ndarray], context: dict[str, np.ndarray] | None = None
    ) -> np.ndarray:
        residual = (x["x"] - self.signal(theta)) / NOISE
        return np.asarray(-0.5 * (residual**2).sum(1) - 40 * math.log(NOISE * math.sqrt(2 * math.pi)))


PULSE = Pulse()


def settings(**symmetry: Any) -> EstimatorSettings:
    chosen = SymmetrySettings(**({"kernel": {"time": 0.1}, "declared": PULSE.symmetry} | symmetry))
    return EstimatorSettings(embedding=SMALL, flow=FLOW, symmetry=chosen)


def pairs(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    theta = PULSE.prior.sample(rows, rng)
    return theta, PULSE.simulate(theta, rng)["x"]


def trained(estimator: EstimatorSettings, rows: int = 400, epochs: int = 2, **arguments: Any) -> Model:
    training = arguments.pop("training", TrainingSettings(epochs=epochs, batch_size=50))
    return simfer.train(
        *pairs(rows), PULSE.prior, estimator=estimator, training=training, observables=PULSE.observables, **arguments
    )


@pytest.fixture(scope="module")
def model() -> Model:
    return trained(settings(), rows=2000, epochs=25)


@pytest.mark.parametrize(("width", "steps"), [(0.2, 176), (1.0, 10), (3.0, 3)])
def test_chains_forget_as_the_formula_says(width: float, steps: int) -> None:
    """A normal pose of sd 1, a normal kernel: rho = 1 / (1 + k²), from ten sd away."""
    rho = 1 / (1 + width**2)

    def step(pose: Tensor) -> tuple[Tensor, Tensor]:
        proxy = pose + width * torch.randn_like(pose)
        return rho * proxy + math.sqrt(rho) * width * torch.randn_like(pose), torch.ones(pose.shape[:2])

    start = torch.full((20_000, 1, 1), 10.0).double()
    state, _ = run_chains(step, start, lambda pose: pose, steps, steps)
    assert float(state.mean()) == pytest.approx(0.01, abs=4 / math.sqrt(20_000) + 0.01)
    assert float(state.std()) == pytest.approx(1.0, abs=0.03)
    stationary = torch.randn(20_000, 1, 1).double()
    after, found = run_chains(step, stationary, lambda pose: pose, 3, 3)
    assert found.autocorrelation[0] == pytest.approx(rho, abs=4 * (1 - rho**2) / math.sqrt(20_000) + 0.005)
    _, auto = run_chains(step, start[:2000], lambda pose: pose, None, 500)
    assert auto.converged
    assert auto.needed == pytest.approx(steps, rel=0.35, abs=2)
    assert float(after.mean()) == pytest.approx(0.0, abs=0.03)


def test_chains_that_have_not_converged_say_so() -> None:
    def step(pose: Tensor) -> tuple[Tensor, Tensor]:
        return pose + 0.01 * torch.randn_like(pose), torch.ones(pose.shape[:2])

    _, found = run_chains(step, torch.randn(500, 2, 1).double(), lambda pose: pose, None, 20)
    assert not found.converged
    assert found.iterations == 20
    assert "NOT converged" in str(found)


@pytest.mark.parametrize("rho", [0.1, 0.5, 0.9])
def test_chains_from_one_state_part(rho: float) -> None:
    """The mean of ten of them has at most a tenth more than the variance of ten independent ones."""
    found = Convergence(50, (rho,), 44, 1.0, 1.0, 1.0, 0.0)
    chains = torch.randn(1, 20_000).double().expand(10, -1)
    for _ in range(found.steps_to_part(10)):
        chains = rho * chains + math.sqrt(1 - rho**2) * torch.randn_like(chains)
    assert float(chains.mean(0).var()) * 10 < 1.1 + 4 * math.sqrt(2 / 20_000)
    assert float(chains.var()) == pytest.approx(1.0, abs=0.03)
    assert found.steps_to_part(1) == 1
    assert Convergence(50, (0.9999,), 10**5, 0.0, 5.0, 1.0, 0.0).steps_to_part(10) == 50  # which have not converged


class Turning:
    """Points turned by one angle, scaled by a factor that scales a second parameter along."""

    prior = Prior({"size": LogUniform(1.0, 5.0), "noise": LogUniform(0.1, 0.5), "angle": Uniform(0.0, 2 * math.pi)})
    observables = Variables([Variable("y", (3, 2)), Variable("other", ())])


BLURS: dict[str, tuple[Prior, Variables, dict[str, Any]]] = {
    "shift": (PULSE.prior, PULSE.observables, PULSE.symmetry),
    "two events": (
        Prior({"first": Uniform(3.0, 5.0), "second": Uniform(4.0, 8.0), "height": Uniform(0.0, 1.0)}),
        PULSE.observables,
        {"time": Shift(by="first", of="x", along="time", spacing=BIN, others=("second",))},
    ),
    "turned and scaled": (
        Turning.prior,
        Turning.observables,
        {"turn": RotatePoints(by=("angle",), of="y"), "size": Scale(by="size", of="y", others=("noise",))},
    ),
    "plane": (ElongatedSource.prior, ElongatedSource.observables, ElongatedSource.symmetry),
}


def blurred(name: str, law: str, **options: Any) -> tuple[Blur, Tensor, Tensor]:
    prior, observables, declared = BLURS[name]
    blur = build_blur(prior, observables, SymmetrySettings(kernel=0.2, law=law, declared=declared, **options))
    theta = torch.from_numpy(prior.sample(300, np.random.default_rng(1)))
    key = torch.arange(300) * 7919
    return blur, theta, blur.proxy(theta, blur.epsilon(key))


@pytest.mark.parametrize("law", ["normal", "uniform"])
@pytest.mark.parametrize("name", BLURS)
def test_relative_parameters_are_a_bijection_with_this_determinant(name: str, law: str) -> None:
    blur, theta, proxy = blurred(name, law)
    relative = blur.view.relative(theta, proxy)
    torch.testing.assert_close(blur.view.absolute(relative, proxy), theta, atol=1e-9, rtol=1e-9)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda t, g: blur.view.relative(t[None], g[None])[0]))(theta, proxy)
    torch.testing.assert_close(blur.view.log_det(theta, proxy), jacobian.slogdet().logabsdet, atol=1e-8, rtol=1e-8)
    assert blur.relative_prior().contains(relative).all()


@pytest.mark.parametrize("name", BLURS)
def test_what_is_left_of_the_pose_does_not_depend_on_theta(name: str) -> None:
    blur, theta, proxy = blurred(name, "normal")
    moved = theta[torch.randperm(len(theta))]
    elsewhere = blur.proxy(moved, blur.epsilon(torch.arange(300) * 7919))
    here, there = (blur.view.relative(t, g)[:, blur.view.columns] for t, g in ((theta, proxy), (moved, elsewhere)))
    torch.testing.assert_close(here, there, atol=1e-9, rtol=1e-9)


def test_the_network_is_told_of_what_is_not_exact() -> None:
    blur, _, proxy = blurred("turned and scaled", "normal", exact=("size",))
    assert blur.view.seen.names == ("y", "other", "pose_proxy")
    seen = blur.view.standardise({"y": torch.randn(300, 3, 2), "other": torch.zeros(300)}, proxy)
    assert seen["pose_proxy"].shape == (300, 2)  # cosine and sine
    torch.testing.assert_close(seen["pose_proxy"].square().sum(1), torch.ones(300))
    assert blurred("turned and scaled", "normal")[0].view.seen.names == ("y", "other")


@pytest.mark.slow
def test_a_moved_observation_moves_the_draws_exactly(model: Model) -> None:
    """Chains that begin at moved poses, with the same random numbers; a plain network does not know."""
    posterior, (theta, x) = model.posterior, pairs(5, seed=3)
    assert isinstance(posterior, GNPEPosterior)
    theta[:, 1] = 4.0 + 0.1 * np.arange(5)
    x = PULSE.simulate(theta, np.random.default_rng(4))["x"]
    moved = np.roll(x, 4, axis=1)
    poses = model.estimator.first_poses({"x": torch.from_numpy(x).float()}, 100).clamp(-1.9, 0.9)
    here = posterior.sample_batched((100,), x, seed=1, poses=poses)
    there = posterior.sample_batched((100,), moved, seed=1, poses=poses + 4 * BIN)
    # chains that are lost elsewhere may meet the prior's edges, which do not move
    found = (here[..., 1] - torch.from_numpy(theta[:, 1])).abs() < 0.3
    assert found.double().mean() > 0.95
    assert (there - here - torch.tensor([0.0, 4 * BIN])).abs()[found].max() < 1e-5
    plain = trained(settings().model_copy(update={"symmetry": None}), rows=2000, epochs=25).posterior
    here, there = (plain.sample_batched((100,), given, seed=1) for given in (x, moved))
    assert float((there[..., 1] - here[..., 1] - 4 * BIN).abs().mean()) > 0.01


def test_few_chains_that_go_on_as_many_have_the_law_of_many(model: Model) -> None:
    _, x = pairs(3, seed=6)
    posterior = model.posterior
    assert isinstance(posterior, GNPEPosterior)
    few = posterior.sample_batched((2000,), x, seed=1)
    poses = model.estimator.first_poses({"x": torch.from_numpy(x).float()}, 2000)
    many = posterior.sample_batched((2000,), x, seed=2, poses=poses)
    for k, parameter in itertools.product(range(3), range(2)):
        assert scipy.stats.ks_2samp(few[:, k, parameter], many[:, k, parameter]).pvalue > 1e-4
    assert len(few[:, 0].unique(dim=0)) > 1900  # but for draws that would have left the prior


def grid(side: int = 200) -> tuple[np.ndarray, float]:
    axes = [
        np.linspace(low, high, side, endpoint=False) + (high - low) / side / 2 for low, high in ((0.5, 2.0), (3, 7))
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2), 1.5 * 4 / side**2


@pytest.mark.slow
def test_the_recovered_density_integrates_to_one_and_gives_the_evidence(model: Model) -> None:
    theta, cell = grid()
    _, x = pairs(3, seed=5)
    for row in x:
        near = PULSE.log_likelihood(theta, {"x": row[None]})
        evidence = float(np.log(np.exp(near - near.max()).mean()) + near.max())
        close = theta[near > near.max() - 25]
        log_q = model.posterior.log_prob_batched(torch.from_numpy(close)[:, None], row[None])
        assert float(log_q.exp().sum()) * cell == pytest.approx(1.0, abs=0.05)
        found = refine(model.posterior, PULSE.log_likelihood, {"x": row[None]}, draws=2000)
        assert found.efficiency > 0.3
        assert abs(found.log_evidence - evidence) < 4 * found.log_evidence_sd + 1e-3


def test_draws_stay_in_the_support_and_follow_the_density(model: Model) -> None:
    """Where the pose prior ends, too."""
    theta = np.array([[1.0, 3.02], [1.0, 6.95], [1.5, 5.0]])
    x = PULSE.simulate(theta, np.random.default_rng(2))["x"]
    for draws, log_q in (
        model.posterior.sample_with_log_prob((300,), x, seed=1),
        model.posterior.propose((300,), x, seed=1),
    ):
        assert PULSE.prior.contains(draws).all()
        assert log_q.isfinite().all()
    outside = model.posterior.log_prob_batched(torch.tensor([[[1.0, 2.9]] * 3]).double(), x)
    assert (outside == -math.inf).all()
    again = model.posterior.sample_batched((300,), x, seed=1)
    assert torch.equal(again, model.posterior.sample_batched((300,), x, seed=1))
    assert (again[..., 1].mean(0) - torch.tensor([3.05, 6.95, 5.0])).abs().max() < 0.1


KINDS: dict[str, dict[str, Any]] = {
    "exact": {},
    "uniform": {"law": "uniform"},
    "told": {"exact": False},
    "by component": {"exact": ("time",)},
    "augmentation": {"by": "augmentation", "kernel": None},
}


@pytest.mark.parametrize("name", [*KINDS, "ensemble", "fmpe", "fisher"])
def test_every_kind_trains_saves_and_answers(name: str, tmp_path: Path) -> None:
    estimator, training = settings(iterations=3, **KINDS.get(name, {})), TrainingSettings(epochs=2, batch_size=50)
    if name == "ensemble":
        estimator = estimator.model_copy(update={"ensemble": 2})
    if name == "fmpe":
        estimator = estimator.model_copy(update={"method": "fmpe", "field": FieldSettings(hidden=16, blocks=1)})
    if name == "fisher":
        training = training.model_copy(update={"fisher": FisherSettings(beta=0.1, every=1)})
    made = trained(estimator, training=training)
    assert ("fisher" in made.facts) == (name == "fisher")
    made.save(tmp_path / "model")
    loaded, (theta, x) = load_model(tmp_path / "model"), pairs(3, seed=9)
    assert loaded.estimator.settings == made.estimator.settings
    first, second = (m.posterior.sample_batched((20,), x, seed=1) for m in (made, loaded))
    assert torch.equal(first, second)
    assert first.shape == (20, 3, 2)
    assert PULSE.prior.contains(first).all()
    log_q = loaded.posterior.log_prob_batched(torch.from_numpy(theta)[None], x)
    assert log_q.shape == (1, 3)


@pytest.mark.parametrize("name", ["exact", "augmentation"])
def test_resumed_equals_uninterrupted(tmp_path: Path, interrupted: Any, name: str) -> None:
    whole = trained(settings(**KINDS[name]), epochs=3)
    with interrupted(12):
        trained(settings(**KINDS[name]), epochs=3, folder=tmp_path)
    assert trained(settings(**KINDS[name]), epochs=3, folder=tmp_path).facts["loss"] == whole.facts["loss"]


def test_what_does_not_fit_is_refused(model: Model) -> None:
    def build(prior: Prior = PULSE.prior, method: str = "npe", **symmetry: Any) -> Any:
        return build_estimator(prior, PULSE.observables, settings(**symmetry).model_copy(update={"method": method}))

    with pytest.raises(SymmetryError, match="tim"):
        build(kernel={"tim": 0.1})
    with pytest.raises(SymmetryError, match="declare"):
        build(declared=None)
    with pytest.raises(SymmetryError, match="no component `turn`"):
        build(exact=("turn",))
    with pytest.raises(ValueError, match="kernel"):
        SymmetrySettings(declared=PULSE.symmetry)
    with pytest.raises(ValueError, match="npe"):
        EstimatorSettings(method="nle", symmetry=SymmetrySettings(kernel=0.1))
    both = Prior({"height, arrival": torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))})
    with pytest.raises(SymmetryError, match="ties"):
        build(prior=both)
    with pytest.raises(ShapeError, match="prior"):
        model.estimator.posterior(Prior({"height": Normal(0.0, 1.0), "arrival": Normal(0.0, 1.0)}))
    with pytest.raises(UnsupportedError, match="gradient"):
        model.posterior.log_prob_batched(torch.ones(1, 1, 2), pairs(1)[1], track_gradients=True)
    with pytest.raises(ShapeError, match="theta"):
        model.posterior.log_prob_batched(torch.ones(1, 2, 2), pairs(1)[1])
    assert isinstance(model.estimator, GNPE)
