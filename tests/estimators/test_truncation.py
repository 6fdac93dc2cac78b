"""Truncated priors and rounds against what is exact: masses, the prior inside, the linear-Gaussian posterior."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import zarr

from simfer.data.errors import ConfigError, CorruptStoreError, StoreError, TrainingError
from simfer.data.proposals import inside, proposals
from simfer.data.store import SimulationStore
from simfer.data.variables import Variable, Variables
from simfer.estimators import truncation as module
from simfer.estimators.base import Posterior
from simfer.estimators.frame import Frame, Framed
from simfer.estimators.model import Model, load_model
from simfer.estimators.sequential import SIMULATIONS, Sequential, copy_store, sequential
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, FlowSettings, TrainingSettings
from simfer.estimators.train import train
from simfer.estimators.truncation import Truncation
from simfer.simulators.campaign import simulate, verify
from simfer.simulators.merge import merge
from simfer.simulators.prior import Prior

NOISE, X = 0.1, {"x": np.array([0.8, -0.3])}
MEAN, SD = X["x"] / (1 + NOISE**2), NOISE / np.sqrt(1 + NOISE**2)
SMALL = EstimatorSettings(
    flow=FlowSettings(kind="maf", transforms=1, hidden=(16,)), embedding=EmbeddingSettings(kind="none")
)
QUICK = TrainingSettings(epochs=6, batch_size=64, learning_rate=1e-2)


class Normal(Posterior):
    """Correlated, over two parameters, whatever the observation."""

    observables = Variables([Variable("x", (2,))])
    prior = Prior({"a": {"dist": "Uniform", "low": -4, "high": 4}, "b": {"dist": "LogNormal", "loc": 0, "scale": 1}})

    def __init__(self, mean: tuple[float, float] = (1.0, 1.2), width: float = 0.1) -> None:
        covariance = width**2 * torch.tensor([[1.0, 0.7], [0.7, 1.0]], dtype=torch.float64)
        self.normal = torch.distributions.MultivariateNormal(torch.tensor(mean, dtype=torch.float64), covariance)

    def sample_batched(self, sample_shape, x, *, seed=None, show_progress_bars=False):
        torch.manual_seed(seed)
        return self.normal.sample(sample_shape)[:, None]

    def sample_with_log_prob(self, sample_shape, x, *, seed=None):
        draws = self.sample_batched(sample_shape, x, seed=seed)
        return draws, self.normal.log_prob(draws)

    def log_prob_batched(self, theta, x, track_gradients=False):
        return self.normal.log_prob(theta)

    rsample = to = sample_batched  # type: ignore[assignment]


class Line:
    """x = theta + noise, theta ~ N(0, I)."""

    prior = Prior({"a": {"dist": "Normal", "loc": 0, "scale": 1}, "b": {"dist": "Normal", "loc": 0, "scale": 1}})
    observables = Variables([Variable("x", (2,))])

    def simulate(self, theta: np.ndarray, rng: np.random.Generator, context: Any = None) -> dict[str, np.ndarray]:
        return {"x": theta + NOISE * rng.standard_normal(theta.shape)}


def truncated(epsilon: float = 1e-2, *posteriors: Posterior) -> Truncation:
    found = Truncation(Normal.prior, X)
    for posterior in posteriors or (Normal(),):
        found = found.narrowed(posterior, epsilon, seed=1)
    return found


@pytest.mark.parametrize("epsilon", [1e-3, 0.05])
def test_a_truncation_holds_the_mass_it_declares(epsilon: float) -> None:
    outside = truncated(epsilon).leaked(Normal(), draws=50_000, seed=2)
    # the threshold is a quantile of at least ten draws per expected draw below it, and the box cuts a little more
    assert outside == pytest.approx(epsilon, abs=4 * (epsilon / 50_000 + epsilon**2 / 10) ** 0.5 + 3e-4)


@pytest.mark.parametrize("least", [0.0, 1.1], ids=["rejection", "resampling"])
def test_draws_are_those_of_the_prior_inside(least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against draws of the whole prior of which those outside are thrown away."""
    monkeypatch.setattr(module, "LEAST_ACCEPTED", least)
    region, rng = truncated(0.05, Normal(width=0.4)), np.random.default_rng(0)
    drawn = region.sample(3000, rng, seed=3)
    assert drawn.method == ("rejection" if least == 0 else "sampling-importance-resampling")
    exact = Normal.prior.sample(400_000, rng)
    exact = exact[region.contains(exact)]
    assert region.contains(drawn.theta).all()
    assert len(exact) > 3000
    for axis in range(2):
        assert scipy.stats.ks_2samp(drawn.theta[:, axis], exact[:, axis]).pvalue > 1e-3


@pytest.mark.parametrize("shape", ["box", "ellipsoid"])
@pytest.mark.parametrize("mean", [(1.0, 1.2), (3.0, 12.0)])
def test_candidates_of_either_shape_are_draws_of_the_prior(shape: module.Shape, mean: tuple[float, float]) -> None:
    region, rng = truncated(0.05, Normal(mean, width=0.5)), np.random.default_rng(0)
    candidates = region.regions[0].draw(shape, 60_000, rng)
    candidates = candidates[region.contains(candidates)][:4000]
    exact = Normal.prior.sample(1_000_000, rng)
    exact = exact[region.contains(exact)]
    assert min(len(candidates), len(exact)) > 500
    for axis in range(2):
        assert scipy.stats.ks_2samp(candidates[:, axis], exact[:, axis]).pvalue > 1e-3


def test_regions_are_nested() -> None:
    two = truncated(0.01, Normal(), Normal((1.05, 1.3), 0.2))
    one = Truncation(two.prior, X, two.regions[:1])
    draws = two.sample(2000, np.random.default_rng(0)).theta
    assert one.contains(draws).all()
    assert not one.contains(np.array([[3.0, 1.0]])).any()
    assert not two.contains(np.array([[1.0, -1.0]])).any()  # outside the prior's support


def test_far_in_the_tail_of_the_prior_draws_are_still_had() -> None:
    far = Truncation(Normal.prior, X).narrowed(Normal((3.999, 400.0), 1e-4), 1e-2)
    drawn = far.sample(500, np.random.default_rng(0))
    assert drawn.method == "rejection"
    assert far.contains(drawn.theta).all()


def test_a_posterior_beside_the_truncation_is_an_error() -> None:
    with pytest.raises(TrainingError, match="outside the truncation"):
        truncated(0.01, Normal(), Normal((-3.0, 1.0)))


def test_a_frame_is_a_bijection_to_unit_width_with_its_jacobian() -> None:
    rng = np.random.default_rng(0)
    z = torch.from_numpy(rng.multivariate_normal([3.0, -1.0], [[0.01, 0.0099], [0.0099, 0.01]], 5000))
    frame = Frame(2)
    torch.testing.assert_close(frame(z), z)
    frame.fit([z[:2000], z[2000:]])
    torch.testing.assert_close(frame.inverse(frame(z)), z, atol=1e-10, rtol=0)
    torch.testing.assert_close(torch.cov(frame(z).T, correction=0), torch.eye(2).double(), atol=1e-6, rtol=0)
    jacobian = torch.autograd.functional.jacobian(frame, z[0])
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, frame.log_abs_det)


def test_a_framed_density_is_that_of_its_draws() -> None:
    frame = Frame(2)
    frame.fit([torch.from_numpy(np.random.default_rng(0).normal([3, -1], [0.1, 2.0], (5000, 2)))])
    standard = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1)
    framed = Framed(standard, frame)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = framed.sample((4000,))
    exact = scipy.stats.norm.logpdf(draws.numpy(), [3, -1], [0.1, 2.0]).sum(1)
    np.testing.assert_allclose(framed.log_prob(draws).numpy(), exact, atol=0.25)  # mean and width are estimates
    assert scipy.stats.kstest((draws[:, 0].numpy() - 3) / 0.1, "norm").pvalue > 1e-3


def test_a_narrow_density_keeps_its_frame_when_saved(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    theta = np.array([0.8, -0.3]) + 1e-3 * rng.standard_normal((2000, 2))
    x = {"x": theta + 1e-3 * rng.standard_normal(theta.shape)}
    model = train(theta, x, Line.prior, estimator=SMALL.model_copy(update={"scale": "rows"}), training=QUICK)
    model.save(tmp_path / "model")
    loaded, one = load_model(tmp_path / "model").posterior, {"x": x["x"][:1]}
    draws, log_prob = loaded.sample_with_log_prob((500,), one, seed=0)
    assert torch.equal(draws, model.posterior.sample_with_log_prob((500,), one, seed=0)[0])
    torch.testing.assert_close(loaded.log_prob_batched(draws, one), log_prob, atol=2e-3, rtol=1e-3)
    assert draws.std(0).max() < 2e-3


def rounds(folder: Path | None = None, number: int = 2, simulator: Any = None, **options: Any) -> Sequential:
    return sequential(
        simulator or Line(),
        None,
        X,
        **{"rounds": number, "rows": 600, "epsilon": 1e-2, "estimator": SMALL, "training": QUICK, "seed": 5, **options},
        folder=folder,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sequential]:
    folder = tmp_path_factory.mktemp("rounds") / "whole"
    return folder, rounds(folder)


def test_all_rounds_are_one_campaign_that_says_how_it_was_drawn(whole: tuple[Path, Sequential]) -> None:
    folder, found = whole
    assert found.store is not None
    assert found.store.counts()["ok"] == 1200
    (own,) = proposals(found.store)
    assert (own["first"], own["last"], own["round"], own["epsilon"]) == (600, 1200, 2, 1e-2)
    assert {"theta_sha256", "weights_sha256", "acceptance", "method", "region"} <= set(own)
    verify(found.store)
    assert found.truncation.contains(found.store.read_array("theta")[600:]).all()
    kept = inside(found.store)
    np.testing.assert_array_equal(kept, found.truncation.contains(found.store.read_array("theta")))
    assert found.rounds[1]["rows_used"] == kept.sum()
    alone = simulate(Line(), 600, folder.parent / "alone.zarr", seed=5)
    np.testing.assert_array_equal(alone.read_array("x"), found.store.read_array("x")[:600])


def test_the_rows_inside_are_drawn_from_the_prior_inside(whole: tuple[Path, Sequential]) -> None:
    _, found = whole
    assert found.store is not None
    prior = Line.prior.sample(300_000, np.random.default_rng(1))
    prior = prior[found.truncation.contains(prior)]
    theta = found.store.read_array("theta")[inside(found.store)]
    for axis in range(2):
        assert scipy.stats.ks_2samp(theta[:, axis], prior[:, axis]).pvalue > 1e-3


class Interrupted(BaseException):
    """As Ctrl-C is."""


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 2, 8, 20, 33, 34, 40])
def test_rounds_that_were_interrupted_end_the_same(
    whole: tuple[Path, Sequential], tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while rows are simulated, a model is saved, or rows proposed, in either round."""
    calls = 0

    def stopping(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise Interrupted
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        for kind, name in ((SimulationStore, "write_shard"), (SimulationStore, "extend"), (Model, "save")):
            patched.setattr(kind, name, stopping(getattr(kind, name)))
        with suppress(Interrupted):
            rounds(tmp_path / "rounds")
    found, expected = rounds(tmp_path / "rounds"), whole[1]
    assert found.store is not None
    assert expected.store is not None
    assert found.store.digest() == expected.store.digest()
    assert found.model.facts["loss"] == expected.model.facts["loss"]
    assert found.rounds == expected.rounds


def test_a_tampered_proposal_is_found(whole: tuple[Path, Sequential], tmp_path: Path) -> None:
    copy_store(whole[0] / SIMULATIONS, tmp_path / "copy.zarr")
    store = SimulationStore.open(tmp_path / "copy.zarr")
    zarr.open_array(store.path / "proposals/1/theta", mode="r+")[3, 0] += 1e-6
    with pytest.raises(CorruptStoreError, match="proposals/1/theta"):
        verify(store)
    verify(SimulationStore.open(whole[0] / SIMULATIONS))  # files are replaced, never written into


def test_a_store_of_rounds_is_neither_extended_nor_merged(whole: tuple[Path, Sequential], tmp_path: Path) -> None:
    copy_store(whole[0] / SIMULATIONS, tmp_path / "copy.zarr")
    with pytest.raises(StoreError, match="truncated prior"):
        simulate(Line(), 1300, tmp_path / "copy.zarr", seed=5)
    simulate(Line(), 100, tmp_path / "other.zarr", seed=6)
    with pytest.raises(StoreError, match="cannot be merged"):
        merge([tmp_path / "other.zarr", tmp_path / "copy.zarr"], tmp_path / "merged.zarr")


def test_a_folder_of_other_rounds_is_refused(whole: tuple[Path, Sequential]) -> None:
    with pytest.raises(ConfigError, match="differ in epsilon"):
        rounds(whole[0], epsilon=0.1)


def test_one_round_is_amortised_and_needs_no_folder() -> None:
    found = rounds(number=1)
    assert found.store is None
    assert not found.truncation.regions
    assert found.model.estimator.settings.scale == "prior"


@pytest.mark.slow
def test_three_rounds_reach_the_exact_posterior() -> None:
    """Far narrower than 1,500 rows of the prior would teach; exact up to the mass that is cut off and the network's error."""
    found = rounds(number=3, rows=1500, epsilon=1e-3, training=QUICK.model_copy(update={"epochs": 20}))
    draws = found.model.posterior.sample((20_000,), X, seed=1).numpy()
    np.testing.assert_allclose(draws.mean(0), MEAN, atol=0.2 * SD)
    np.testing.assert_allclose(draws.std(0), SD, rtol=0.12)
    assert found.rounds[-1]["leaked_mass"] < 0.02
    assert found.rounds[-1]["rows_used"] > 2 * found.rounds[1]["rows_used"] / 2


def test_context_and_groups_go_on_in_later_rounds() -> None:
    class Pairs(Line):
        group_size = 2
        observables = Variables([Variable("x", (2,))])
        context = Prior({"sd": {"dist": "Uniform", "low": 0.05, "high": 0.2}})

        def simulate(self, theta: np.ndarray, rng: np.random.Generator, context: Any = None) -> dict[str, np.ndarray]:
            return {"x": theta + context["sd"][:, None] * rng.standard_normal(theta.shape)}

    found = sequential(
        Pairs(), None, {**X, "sd": np.array(0.1)}, rounds=2, rows=400, epsilon=0.02, estimator=SMALL, training=QUICK
    )
    assert found.rounds[1]["rows"] == 400
    assert found.model.posterior.sample((5,), {**X, "sd": np.array(0.1)}).shape == (5, 2)
