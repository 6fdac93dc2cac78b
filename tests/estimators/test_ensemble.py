"""Ensembles: one pass is what each member would do alone; the mixture is one; its weights are the best there are."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

import simfer
from simfer.data.batch import Batch
from simfer.data.errors import ShapeError, UnsupportedError
from simfer.data.loaders import as_batch
from simfer.estimators.base import Estimator, Posterior, seeded
from simfer.estimators.direct import log_prob
from simfer.estimators.ensemble import Ensemble
from simfer.estimators.likelihood_ensemble import LikelihoodEnsemble
from simfer.estimators.members import member_seeds, stacking_weights
from simfer.estimators.model import build_estimator
from simfer.estimators.module import clip_members
from simfer.estimators.npe import NPE
from simfer.estimators.settings import (
    EmbeddingSettings,
    EstimatorSettings,
    FlowSettings,
    RatioSettings,
    TrainingSettings,
)
from simfer.estimators.train import split
from simfer.estimators.training import train_estimator
from simfer.simulators.prior import Prior

SMALL = EmbeddingSettings(features=4, hidden=(16,))
SETTINGS = {
    "nsf": EstimatorSettings(flow=FlowSettings(kind="nsf", transforms=2, hidden=(16, 16)), embedding=SMALL),
    "maf": EstimatorSettings(flow=FlowSettings(kind="maf", transforms=2, hidden=(16, 16)), embedding=SMALL),
    "gmm": EstimatorSettings(flow=FlowSettings(kind="gmm", components=3, hidden=(16,)), embedding=SMALL),
    "nle": EstimatorSettings(method="nle", flow=FlowSettings(kind="maf", transforms=2, hidden=(16, 16))),
    "nre": EstimatorSettings(method="nre", ratio=RatioSettings(hidden=(16,)), embedding=SMALL),
}
LIKELIHOODS = {"nle": "log_likelihood", "nre": "log_ratio"}
TRAINING = TrainingSettings(epochs=4, batch_size=50, learning_rate=3e-3, clip=0.5)
SEED = 4


def of(name: str, members: int) -> EstimatorSettings:
    return SETTINGS[name].model_copy(update={"ensemble": members})


@pytest.fixture
def pairs(line, rng) -> tuple[np.ndarray, np.ndarray]:
    theta = line.prior.sample(600, rng)
    return theta, line.simulate(theta, rng)["x"]


@pytest.fixture
def batch(pairs) -> Batch:
    return as_batch(pairs[0][:40], {"x": pairs[1][:40]})


def ensemble(line, name: str = "maf", members: int = 3) -> Any:
    built = build_estimator(line.prior, line.observables, of(name, members), SEED)
    assert isinstance(built, LikelihoodEnsemble if name in LIKELIHOODS else Ensemble)
    return built


def alone(line, name: str, members: int = 3) -> list[Estimator]:
    return [build_estimator(line.prior, line.observables, SETTINGS[name], seed) for seed in member_seeds(SEED, members)]


def weighted(line, weights: list[float], name: str = "maf") -> Any:
    made = ensemble(line, name, len(weights))
    made.log_weights.copy_(torch.tensor(weights).log())
    return made


@pytest.mark.parametrize("name", SETTINGS)
def test_losses_in_one_pass_are_each_members_own(line, batch: Batch, name: str, caplog) -> None:
    together = ensemble(line, name).member_losses(batch)
    assert not caplog.text  # it was one pass
    apart = torch.stack([member.loss(batch) for member in alone(line, name)])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    assert (together.mean(1).diff().abs() > 1e-3).all()


def test_a_prior_that_leaves_torch_is_no_obstacle(caplog) -> None:
    prior = Prior({"a": torch.distributions.Gamma(2.0, 1.0), "b": torch.distributions.Beta(2.0, 3.0)})
    observables = simfer.Variables([simfer.Variable("x", (2,))])
    theta = prior.sample(20, np.random.default_rng(0))
    losses = build_estimator(prior, observables, of("maf", 2)).member_losses(as_batch(theta, {"x": theta}))
    assert losses.isfinite().all()
    assert not caplog.text  # it was one pass


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_in_one_pass_are_each_members_own(line, batch: Batch, name: str) -> None:
    together = ensemble(line, name)
    together.member_losses(batch).mean(1).sum().backward()
    for k, member in enumerate(alone(line, name)):
        member.loss(batch).mean().backward()
        for own, stacked in zip(member.parameters(), together.parameters(), strict=True):
            torch.testing.assert_close(stacked.grad[k], own.grad, atol=1e-5, rtol=1e-4)


def test_a_members_gradient_is_bounded_by_its_own_norm(line, batch: Batch) -> None:
    together, members = ensemble(line), alone(line, "maf")
    together.member_losses(batch).mean(1).sum().backward()
    norms = [sum(p.grad[k].square().sum() for p in together.parameters()).sqrt() for k in range(3)]
    bound = float(sum(norms)) / 3  # between them
    clip_members(together.parameters(), bound)
    for k, member in enumerate(members):
        member.loss(batch).mean().backward()
        nn.utils.clip_grad_norm_(member.parameters(), bound)
        for own, stacked in zip(member.parameters(), together.parameters(), strict=True):
            torch.testing.assert_close(stacked.grad[k], own.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nsf", "maf", *LIKELIHOODS])
def test_training_in_one_pass_is_training_each_alone(line, pairs, name: str) -> None:
    learn, validate = split(as_batch(pairs[0], {"x": pairs[1]}), 0.2)
    together, members = ensemble(line, name), alone(line, name)
    history = train_estimator(together, learn, validate, TRAINING, seed=7)
    for k, member in enumerate(members):
        own = train_estimator(member, learn, validate, TRAINING, seed=7)
        np.testing.assert_allclose([losses[k] for losses in history.members], own.validation, atol=1e-3)
        for weights, stacked in zip(member.parameters(), together.parameters(), strict=True):
            torch.testing.assert_close(stacked[k], weights, atol=2e-3, rtol=2e-3)
    np.testing.assert_allclose(history.validation, np.mean(history.members, axis=1), rtol=1e-6)


def test_every_member_keeps_its_own_best_weights(line) -> None:
    together = ensemble(line, members=2)
    before = {name: value.clone() for name, value in together.state_dict().items()}
    after = {name: value + 1 for name, value in before.items()}
    kept = together.take_better(before, after, [False, True])
    for name, _ in together.named_parameters():
        assert torch.equal(kept[name], torch.stack([before[name][0], after[name][1]]))


def test_first_member_is_the_single_estimator_and_more_members_leave_the_others(line) -> None:
    assert member_seeds(SEED, 1) == [SEED]
    assert member_seeds(SEED, 5)[:3] == member_seeds(SEED, 3)
    assert len(set(member_seeds(SEED, 50))) == 50


def test_mixture_is_the_weighted_sum_of_its_members(line, batch: Batch) -> None:
    weights = [0.6, 0.3, 0.1]
    mixed = log_prob(weighted(line, weights), batch.theta, weighted(line, weights).condition(batch.x))
    apart = [log_prob(member, batch.theta, member.condition(batch.x)) for member in alone(line, "maf")]
    expected = sum(w * p.exp() for w, p in zip(weights, apart, strict=True))
    torch.testing.assert_close(mixed, expected.log(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("how", ["sample", "rsample", "rsample_and_log_prob"])
def test_draws_come_from_each_member_as_often_as_its_weight_says(line, batch: Batch, how: str) -> None:
    """The mean of the draws' probability under member 0, for each x, beside that of draws of every member."""
    weights, draws = [0.7, 0.25, 0.05], 4000
    made, members = weighted(line, weights), alone(line, "maf")
    context = made.condition(batch.x)[:5]

    def score(z: Tensor) -> Tensor:
        own = members[0].density(members[0].condition(batch.x)[:5])
        return own.log_prob(z).exp()

    with torch.no_grad(), seeded(1):
        drawn = getattr(made.density(context), how)((draws,))
        found = score(drawn[0] if isinstance(drawn, tuple) else drawn)
        apart = [score(m.density(m.condition(batch.x)[:5]).sample((draws,))) for m in members]
    expected = sum(w * p.mean(0) for w, p in zip(weights, apart, strict=True))
    assert ((found.mean(0) - expected).abs() < 5 * found.std(0) / draws**0.5 * 2**0.5).all()


def test_stratified_draws_take_each_member_as_often_as_its_weight_to_within_one(line, batch: Batch) -> None:
    made = weighted(line, [0.62, 0.31, 0.07])
    members = made.density(made.condition(batch.x))._stratified(50)
    counts = torch.stack([(members == k).sum(0) for k in range(3)])
    assert ((counts - 50 * made.log_weights.exp()[:, None]).abs() < 1 + 1e-4).all()
    assert members.float().diff(dim=1).abs().sum() > 0  # rows have orders of their own


@pytest.mark.parametrize("name", ["maf", "gmm"])
def test_gradient_of_rsample_is_that_of_the_mixture(line, name: str) -> None:
    """d E[z] / dx by stratified draws, against finite differences of the mean over a grid."""
    made = weighted(line, [0.5, 0.4, 0.1], name)
    x = torch.tensor([[0.4, -0.2]], requires_grad=True)
    with seeded(0):
        z = made.density(made.condition({"x": x})).rsample((20_000,))
    (slope,) = torch.autograd.grad(z[..., 0].mean(), x)
    side = torch.linspace(-7, 7, 281)
    grid = torch.cartesian_prod(side, side)

    def mean(at: Tensor) -> Tensor:
        weight = made.density(made.condition({"x": at})).log_prob(grid[:, None]).exp()[:, 0]
        return (weight * grid[:, 0]).sum() / weight.sum()

    with torch.no_grad():
        for i in range(2):
            step = 0.05 * torch.eye(2)[i]
            expected = float(mean(x + step) - mean(x - step)) / 0.1
            assert slope[0, i].item() == pytest.approx(expected, abs=0.02)


def test_strata_are_draws_of_every_member(line, batch: Batch) -> None:
    made, members = weighted(line, [0.5, 0.4, 0.1]), alone(line, "maf")
    with seeded(0):
        z, log_weights = made.density(made.condition(batch.x)[:4]).stratified((3000,))
    torch.testing.assert_close(log_weights, made.log_weights.expand(4, 3))
    for k, member in enumerate(members):
        with torch.no_grad():
            own = member.density(member.condition(batch.x)[:4]).sample((3000,))
        assert ((z[:, :, k].mean(0) - own.mean(0)).abs() < 6 * own.std(0) / 3000**0.5).all()
    assert (z.diff(dim=2).abs() > 0).all()  # no two members share their noise
    torch.autograd.grad(z.sum(), list(made.member.parameters()))


def test_stacking_finds_the_known_weights() -> None:
    """Two predictions that are each right about a share of the rows get those shares; one that is never better, none."""
    right = torch.arange(1000) < 370
    log_probs = torch.stack([torch.where(right, 0.0, -40.0), torch.where(right, -40.0, 0.0), torch.full((1000,), -1.5)])
    torch.testing.assert_close(
        stacking_weights(log_probs), torch.tensor([0.37, 0.63, 0.0], dtype=torch.float64), atol=1e-3, rtol=0
    )


def test_stacking_is_optimal(rng) -> None:
    """No weight could be moved to gain more: the mean ratio of each to the mixture is at most 1."""
    log_probs = torch.from_numpy(rng.normal(size=(5, 400)) * np.array([[0.1], [0.5], [1.0], [2.0], [0.7]]) - 3)
    weights = stacking_weights(log_probs)
    mixture = torch.logsumexp(log_probs + weights.log()[:, None], 0)
    gains = (log_probs - mixture).exp().mean(1)
    assert float(weights.sum()) == pytest.approx(1.0)
    assert (gains < 1 + 1e-5).all()
    assert float(mixture.mean()) >= float(log_probs.mean(1).max())


def test_mixture_predicts_held_out_rows_no_worse_than_its_best_member(line, pairs) -> None:
    theta, x = pairs
    model = simfer.train(theta, x, line.prior, estimator=of("maf", 3), training=TRAINING, seed=SEED)
    facts, held = model.facts["ensemble"], slice(-60, None)
    assert facts["loss"]["mixture"] <= min(facts["loss"]["members"]) + 1e-6
    assert sum(facts["weights"]) == pytest.approx(1.0)
    found = model.posterior.log_prob_batched(torch.from_numpy(theta[held])[None], x[held])
    assert -float(found.mean()) == pytest.approx(facts["loss"]["mixture"], abs=1e-5)


def test_weights_do_not_depend_on_the_portions(line, pairs) -> None:
    made, rows = ensemble(line), as_batch(pairs[0], {"x": pairs[1]})
    whole = made.finish([rows])["ensemble"]
    parts = made.finish([rows.select(slice(0, 11)), rows.select(slice(11, None))])["ensemble"]
    np.testing.assert_allclose(parts["weights"], whole["weights"], atol=1e-6)


@pytest.mark.slow
def test_resumed_equals_uninterrupted(line, pairs, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(epoch: int, train_loss: float, val_loss: float) -> None:
        if epoch == 1:
            raise StopError

    arguments = {"prior": line.prior, "estimator": of("maf", 3), "training": TRAINING, "seed": SEED}
    whole = simfer.train(*pairs, **arguments)
    with pytest.raises(StopError):
        simfer.train(*pairs, **arguments, folder=tmp_path, on_epoch=stop)
    resumed = simfer.train(*pairs, **arguments, folder=tmp_path)
    assert resumed.facts["loss"] == whole.facts["loss"]
    assert resumed.facts["ensemble"] == whole.facts["ensemble"]
    for name, value in whole.estimator.state_dict().items():
        assert torch.equal(value, resumed.estimator.state_dict()[name]), name


class Branching(nn.Module):
    """Code that depends on values, which cannot be batched."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        summary = self.linear(x)
        return summary if float(summary.sum()) > 0 else -summary


class Normalised(nn.Sequential):
    """Batch normalisation and dropout: running statistics, and randomness in training."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(2, 4), nn.BatchNorm1d(4))


def with_embedding(line, kind: type[nn.Module], members: int = 3) -> list[NPE]:
    settings = EstimatorSettings(flow=SETTINGS["maf"].flow, embedding=EmbeddingSettings(features=4, hidden=(8,)))
    made = []
    for k in range(members):
        with seeded(k):
            member = NPE(line.prior, line.observables, settings)
            member.embedding = kind()
        made.append(member)
    return made


def test_what_cannot_be_batched_goes_one_after_another_and_says_so(line, batch: Batch, caplog) -> None:
    made = Ensemble(with_embedding(line, Branching))
    with caplog.at_level(logging.WARNING):
        together = made.member_losses(batch)
    assert "go one after another" in caplog.text
    apart = torch.stack([member.loss(batch) for member in with_embedding(line, Branching)])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)


def test_running_statistics_are_each_members_own(line, batch: Batch, caplog) -> None:
    made, members = Ensemble(with_embedding(line, Normalised)), with_embedding(line, Normalised)
    made.train()
    made.member_losses(batch)
    for k, member in enumerate(members):
        member.train().loss(batch)
        torch.testing.assert_close(made.member.embedding[1].running_mean[k], member.embedding[1].running_mean)
        torch.testing.assert_close(made.member.embedding[1].running_var[k], member.embedding[1].running_var)
    assert not caplog.text


class OnlyLoss(Estimator):
    def __init__(self, prior, observables, settings) -> None:
        super().__init__(prior, observables, settings)
        self.settings, self.observables = settings, observables

    @property
    def transforms(self) -> dict[str, str]:
        return {}

    def fit_preprocess(self, portions: Iterable[Batch]) -> None: ...

    def loss(self, batch: Batch) -> Tensor:
        return batch.theta.sum(1)

    def posterior(self, prior: Prior) -> Posterior:
        raise NotImplementedError


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods_are_mixed_observation_by_observation(line, batch: Batch, name: str) -> None:
    weights = [0.6, 0.3, 0.1]
    made, theta, x = weighted(line, weights, name), batch.theta[:5].double(), batch.x["x"]
    each = torch.stack([getattr(m, LIKELIHOODS[name])(theta, x[:5]) for m in alone(line, name)])
    mixed = torch.logsumexp(each + torch.tensor(weights).log()[:, None], 0)
    torch.testing.assert_close(made.log_likelihood(theta, x[:5]), mixed, atol=1e-5, rtol=1e-5)
    one_by_one = [made.log_likelihood(theta, row.expand(5, -1)) for row in x[:4]]
    torch.testing.assert_close(made.log_likelihood(theta, x[:4], iid=True), sum(one_by_one), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_mixtures_posterior_is_right_and_kept(line, pairs, name: str, tmp_path: Path) -> None:
    """theta given x is N(0.8 x, 0.2) for each of two parameters."""
    training = TrainingSettings(epochs=30, batch_size=50, learning_rate=5e-3)
    model = simfer.train(*pairs, line.prior, estimator=of(name, 3), training=training, seed=SEED)
    x = np.array([[0.5, -1.0]])
    draws = model.posterior.sample((2000,), x, seed=1)
    assert (draws.mean(0) - torch.tensor([0.4, -0.8])).abs().max() < 0.25
    assert (draws.std(0) / 0.2**0.5 - 1).abs().max() < 0.25
    model.save(tmp_path / "model")
    again = simfer.load(tmp_path / "model").posterior
    assert torch.equal(again.sample((50,), x, seed=1), model.posterior.sample((50,), x, seed=1))
    facts = model.facts["ensemble"]
    assert sum(facts["weights"]) == pytest.approx(1.0)
    if name == "nle":
        assert facts["loss"]["mixture"] <= min(facts["loss"]["members"]) + 1e-6
    else:
        np.testing.assert_allclose(facts["weights"], 1 / 3)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_members_share_the_probability_of_being_valid(line, batch: Batch, name: str) -> None:
    plain, failing = (
        build_estimator(line.prior, line.observables, of(name, 2).model_copy(update={"failures": failures}), SEED)
        for failures in (False, True)
    )
    theta, x = batch.theta[:5].double(), batch.x["x"][:5]
    valid = logsigmoid(failing.get_submodule("validity")(line.prior.to_unconstrained(theta).float()))
    torch.testing.assert_close(
        failing.log_likelihood(theta, x), plain.log_likelihood(theta, x) + valid.double(), atol=1e-5, rtol=1e-5
    )
    assert not any("validity" in name for name in failing.member.state_dict())


def test_a_method_without_a_density_of_theta_is_refused_by_name(line) -> None:
    settings = SETTINGS["maf"].model_copy(update={"method": "ratio"})
    members = [OnlyLoss(line.prior, line.observables, settings) for _ in range(2)]
    with pytest.raises(UnsupportedError, match=r"`ensemble` needs a method .* `ratio` learns something else: use"):
        Ensemble(members)


def test_bad_members_are_named(line) -> None:
    with pytest.raises(ShapeError, match="must be two or more; got 1"):
        Ensemble(alone(line, "maf", 1))
    with pytest.raises(ShapeError, match="must have the same settings"):
        Ensemble([*alone(line, "maf", 1), *alone(line, "nsf", 1)])
