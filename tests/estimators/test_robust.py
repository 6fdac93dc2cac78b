"""The Fisher information of posteriors in their data, and what penalising it does, against closed forms."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import simfer
from simfer.data.batch import Batch
from simfer.data.errors import UnsupportedError
from simfer.data.loaders import as_batch
from simfer.data.variables import COUNT
from simfer.estimators.base import seeded
from simfer.estimators.ensemble import Ensemble
from simfer.estimators.model import Model, build_estimator
from simfer.estimators.robust.augmentation import Noise
from simfer.estimators.robust.balls import BALLS, ball
from simfer.estimators.robust.fisher import FisherPenalty
from simfer.estimators.robust.information import fisher_eigenvalue, fisher_trace, local_bound, scores
from simfer.estimators.robust.perturbations import Space
from simfer.estimators.robust.smoothing import GradientAverage
from simfer.estimators.robust.trades import Trades
from simfer.estimators.settings import (
    AdversarialSettings,
    EmbeddingSettings,
    EstimatorSettings,
    FieldSettings,
    FisherSettings,
    FlowSettings,
    NoiseSettings,
    TradesSettings,
    TrainingSettings,
)
from simfer.simulators.prior import Prior
from simfer.simulators.robust_gaussian_linear import RobustGaussianLinear

NONE = EmbeddingSettings(kind="none")
SETTINGS = {
    "gaussian": EstimatorSettings(flow=FlowSettings(kind="gmm", components=1, hidden=(16,)), embedding=NONE),
    "mixture": EstimatorSettings(flow=FlowSettings(kind="gmm", components=3, hidden=(16,)), embedding=NONE),
    "maf": EstimatorSettings(flow=FlowSettings(kind="maf", transforms=2, hidden=(16, 16)), embedding=NONE),
    "nsf": EstimatorSettings(flow=FlowSettings(kind="nsf", transforms=2, hidden=(16, 16)), embedding=NONE),
    "coupling": EstimatorSettings(flow=FlowSettings(kind="coupling", transforms=2, hidden=(16, 16)), embedding=NONE),
    "cnf": EstimatorSettings(flow=FlowSettings(kind="cnf", hidden=(8, 8)), embedding=NONE),
    "fmpe": EstimatorSettings(method="fmpe", field=FieldSettings(hidden=8, blocks=1), embedding=NONE),
    "ensemble": EstimatorSettings(
        flow=FlowSettings(kind="maf", transforms=1, hidden=(16,)), embedding=NONE, ensemble=3
    ),
    "embedding": EstimatorSettings(
        flow=FlowSettings(kind="maf", transforms=1, hidden=(16,)),
        embedding=EmbeddingSettings(kind="mlp", features=4, hidden=(8,)),
    ),
}
ROBUST: dict[str, Any] = {
    "fisher": {"fisher": FisherSettings(beta=0.1, every=3)},
    "smoothed": {"fisher": FisherSettings(beta=0.1, every=3, ema=0.4)},
    "trades": {"trades": TradesSettings(steps=2)},
    "adversarial": {"adversarial": AdversarialSettings(steps=2)},
    "noise": {"noise": NoiseSettings()},
    "spikes": {"noise": NoiseSettings(kind="spike_slab")},
}
PRIOR = Prior({name: torch.distributions.Normal(0.0, 1.0) for name in "ab"})
OBSERVABLES = simfer.Variables([simfer.Variable("x", (3,))])


def built(name: str) -> tuple[Any, Batch]:
    """An estimator in float64, with smooth activations for finite differences to follow, and rows."""
    made = build_estimator(PRIOR, OBSERVABLES, SETTINGS[name], seed=1)
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(6, 2, generator=generator).double()
    rows = as_batch(theta.numpy(), {"x": (theta @ torch.randn(2, 3, generator=generator).double()).numpy()})
    made.fit_preprocess([rows])
    return made, rows


@pytest.mark.parametrize("kind", ["trace", "largest"])
@pytest.mark.parametrize("name", SETTINGS)
def test_gradient_of_the_penalty_is_that_of_finite_differences(name: str, kind: str) -> None:
    """In a random direction of weight space, in float64; draws stay the same ones."""
    made, rows = built(name)
    made = made.double()
    rows = rows._replace(x={"x": rows.x["x"].double()})
    settings = FisherSettings(beta=1.0, kind=kind, draws=4, rows=None)
    penalty = FisherPenalty(settings, made)
    parameters = [p for p in made.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(3)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    penalty.penalty(made, rows, 0).sum().backward()
    slope = sum(float((p.grad * d).sum()) for p, d in zip(parameters, direction, strict=True) if p.grad is not None)

    def moved(by: float) -> float:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(by * d)
            value = float(penalty.penalty(made, rows, 0).sum())
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(by * d)
        return value

    step = 1e-5
    numeric = (moved(step) - moved(-step)) / (2 * step)
    # the direction of the largest eigenvalue is held still, where its derivative is 0
    assert slope == pytest.approx(numeric, rel=2e-3 if kind == "largest" else 1e-3, abs=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_penalty_is_the_trace_of_the_information(name: str) -> None:
    made, rows = built(name)
    made.eval()
    many = FisherPenalty(FisherSettings(beta=1.0, draws=400, rows=None), made).penalty(made, rows, 0).detach()
    if isinstance(made, Ensemble):
        assert many.shape == (3,)
        return
    posterior = Model(made, PRIOR, {}).posterior
    each = scores(posterior, rows.x, draws=400, seed=5).square().sum(-1)
    error = 2 * float(each.mean(1).std()) / 400**0.5 + 1e-6
    assert float(many) == pytest.approx(float(each.mean()), abs=4 * error)


def linear_gaussian(beta: float | None, every: int) -> tuple[Any, np.ndarray, np.ndarray]:
    simulator, rng = RobustGaussianLinear(), np.random.default_rng(0)
    theta = simulator.prior.sample(10_000, rng)
    x = simulator.simulate(theta, rng)["x"]
    settings = EstimatorSettings(flow=FlowSettings(kind="gmm", components=1, hidden=(100, 100)), embedding=NONE)
    fisher = FisherSettings(beta=beta, every=every) if beta else None
    training = TrainingSettings(clip=75.0, epochs=30, batch_size=128, learning_rate=4e-3, fisher=fisher)
    model = simfer.train(theta, x, simulator.prior, estimator=settings, training=training)
    truth = simulator.prior.sample(300, rng)
    return model, truth, simulator.simulate(truth, rng)["x"]


@pytest.mark.slow
def test_what_the_penalty_learns_is_the_posterior_of_more_noise() -> None:
    """For beta the exact posterior for noise of variance 0.01 + 2 beta: trace, loss and the largest eigenvalue of F."""
    beta = 0.01
    model, theta, x = linear_gaussian(beta, every=4)
    a = np.array([-0.2633, -1.9402, 1.6822, -0.29684, -0.031292, -1.0250, 0.056811, 0.29649, 1.2073, -1.7704])
    noise = 0.01 + 2 * beta
    slope, variance = a / (a**2 + noise), noise / (a**2 + noise)
    posterior = model.posterior
    assert float(fisher_trace(posterior, x).mean()) == pytest.approx((slope**2 / variance).sum(), rel=0.1)
    loss = (0.5 * np.log(2 * np.pi * variance) + (1 - 2 * a * slope + slope**2 * (a**2 + 0.01)) / (2 * variance)).sum()
    assert -float(posterior.log_prob_batched(torch.from_numpy(theta)[None], x).mean()) == pytest.approx(loss, abs=0.3)
    largest = fisher_eigenvalue(posterior, x[:50]).median()
    assert float(largest) == pytest.approx((slope**2 / variance).max(), rel=0.15)
    facts = model.facts["fisher"]
    assert facts["beta"] == beta
    assert facts["trace"] == pytest.approx((slope**2 / variance).sum(), rel=0.1)
    assert facts["loss"] == pytest.approx(loss, abs=0.3)


def test_the_information_of_a_known_posterior(gaussian) -> None:
    """N(x, S): F is the inverse of S, and the bound is the divergence itself."""
    covariance = torch.tensor([[0.5, 0.2], [0.2, 0.3]])
    posterior = gaussian(PRIOR, covariance).posterior(PRIOR)
    x = torch.tensor([[0.3, -0.2], [1.0, 2.0]])
    exact = torch.linalg.inv(covariance).double()
    assert fisher_trace(posterior, x, draws=4000).numpy() == pytest.approx(float(exact.trace()), rel=0.1)
    largest = float(torch.linalg.eigvalsh(exact)[-1])
    assert fisher_eigenvalue(posterior, x, draws=4000).numpy() == pytest.approx(largest, rel=0.1)
    assert local_bound(posterior, x, 0.2, draws=4000).numpy() == pytest.approx(0.02 * largest, rel=0.1)


def test_terms_are_added_in_every_nth_step_with_n_times_the_weight() -> None:
    made, rows = built("maf")
    often, seldom = (FisherPenalty(FisherSettings(beta=0.5, every=n, rows=4), made) for n in (1, 3))
    assert [seldom(made, rows, step) is None for step in range(5)] == [False, True, True, False, True]
    torch.testing.assert_close(seldom(made, rows, 3), 3 * often(made, rows, 3))


def test_the_exact_trace_is_the_mean_of_many_draws_and_has_its_gradient() -> None:
    made, rows = built("gaussian")
    made, rows = made.double(), rows._replace(x={"x": rows.x["x"].double()})
    found = []
    for draws in ("exact", 20_000):
        made.zero_grad()
        penalty = FisherPenalty(FisherSettings(beta=1.0, draws=draws, rows=None), made).penalty(made, rows, 0)
        penalty.sum().backward()
        found.append((penalty.detach(), torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None])))
    (exact, gradient), (drawn, noisy) = found
    torch.testing.assert_close(drawn, exact, rtol=0.02, atol=0.0)
    assert float((noisy - gradient).norm() / gradient.norm()) < 0.05


def test_the_exact_trace_is_refused_where_there_is_none() -> None:
    for name in ("mixture", "maf", "fmpe"):
        made, _ = built(name)
        with pytest.raises(UnsupportedError, match="components: 1"):
            FisherPenalty(FisherSettings(beta=1.0, draws="exact"), made)
    with pytest.raises(ValueError, match="kind: trace"):
        FisherSettings(beta=1.0, draws="exact", kind="largest")


def gradient_of(term: Tensor, weights: list[Tensor]) -> list[Tensor]:
    return [g.detach() for g in torch.autograd.grad(term.sum(), weights)]


@pytest.mark.parametrize("name", ["maf", "ensemble"])
def test_the_averaged_gradient_is_that_of_the_equation(name: str) -> None:
    """m of steps 0 and 2, added in steps 0 to 3; the value is that without the average."""
    made, rows = built(name)
    weights = [p for p in made.parameters() if p.requires_grad]
    plain = FisherPenalty(FisherSettings(beta=0.5, every=1, rows=4), made)
    smoothed = FisherPenalty(FisherSettings(beta=0.5, every=2, rows=4, ema=0.15), made)
    first, second = (gradient_of(plain(made, rows, step), weights) for step in (0, 2))
    both = [(0.85 * b + 0.15 * 0.85 * a) / (1 - 0.15**2) for a, b in zip(first, second, strict=True)]
    for step, expected in enumerate((first, first, both, both)):
        term = smoothed(made, rows, step)
        torch.testing.assert_close(gradient_of(term, weights), expected, rtol=1e-4, atol=1e-6)
        value = torch.zeros(made.members) if step % 2 else 2 * plain(made, rows, step).detach()
        torch.testing.assert_close(term.detach(), value)


def test_processes_average_over_the_gradients_of_all(tmp_path) -> None:
    """Two processes with half of the rows each have one average: that of all rows."""

    def work(rank: int) -> None:
        torch.distributed.init_process_group("gloo", f"file://{tmp_path}/together", rank=rank, world_size=2)
        average, weights = GradientAverage(0.15), [torch.ones(3, requires_grad=True)]
        for step in range(3):
            average.add((weights[0] * rows[step, rank]).sum(), weights)
        torch.save(average.state_dict(), tmp_path / f"{rank}.pt")

    rows = torch.arange(18.0).reshape(3, 2, 3)
    processes = [multiprocessing.get_context("fork").Process(target=work, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    ours, theirs = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone, weights = GradientAverage(0.15), [torch.ones(3, requires_grad=True)]
    for step in range(3):
        alone.add((weights[0] * rows[step].mean(0)).sum(), weights)
    assert ours["count"] == theirs["count"] == 3
    torch.testing.assert_close(ours["mean"], theirs["mean"], rtol=0.0, atol=0.0)
    torch.testing.assert_close(ours["mean"], alone.state_dict()["mean"])


@pytest.mark.slow
def test_auto_keeps_the_largest_beta_that_can_be_afforded(line, rng, tmp_path) -> None:
    theta = line.prior.sample(1000, rng)
    x = line.simulate(theta, rng)["x"]

    def fit(fisher: FisherSettings, folder: Path | None = None, seen: list[int] | None = None) -> Model:
        return simfer.train(
            theta,
            x,
            line.prior,
            estimator=SETTINGS["gaussian"],
            training=TrainingSettings(epochs=12, batch_size=50, fisher=fisher),
            folder=folder,
            on_epoch=lambda epoch, *losses: None if seen is None else seen.append(epoch),
        )

    model = fit(FisherSettings(beta="auto", price=0.2, every=1), tmp_path)
    found = model.facts["fisher"]
    losses = {point["beta"]: point["loss"] for point in found["curve"]}
    affordable = [beta for beta, loss in losses.items() if loss <= found["limit"]]
    assert found["limit"] == pytest.approx(losses[0.0] + 0.2 * line.prior.dim)
    assert found["beta"] == max(affordable) > 0
    assert max(losses) > found["beta"], "none was too dear"
    traces = [point["trace"] for point in found["curve"]]
    assert traces == sorted(traces, reverse=True)
    again: list[int] = []
    assert fit(FisherSettings(beta="auto", price=0.2, every=1), tmp_path, again).facts["fisher"] == found
    assert not again, "what had ended was trained again"
    alone = fit(FisherSettings(beta=found["beta"], every=1))
    assert all(
        torch.equal(a, b) for a, b in zip(alone.estimator.parameters(), model.estimator.parameters(), strict=True)
    )


def test_draws_are_a_function_of_seed_and_step() -> None:
    made, rows = built("nsf")
    values = [
        float(FisherPenalty(FisherSettings(beta=1.0, every=1), made, seed=seed)(made, rows, step).detach())
        for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert values[0] == values[1]
    assert len(set(values)) == 3


@pytest.mark.parametrize("name", ROBUST)
def test_resumed_equals_uninterrupted(line, rng, tmp_path, interrupted, name: str) -> None:
    theta = line.prior.sample(400, rng)
    training = TrainingSettings(epochs=3, batch_size=20, **ROBUST[name])
    arguments: dict[str, Any] = {"prior": line.prior, "estimator": SETTINGS["maf"], "training": training, "seed": 4}
    x = line.simulate(theta, rng)["x"]
    whole = simfer.train(theta, x, **arguments)
    with interrupted(25):
        simfer.train(theta, x, **arguments, folder=tmp_path)
    resumed = simfer.train(theta, x, **arguments, folder=tmp_path)
    assert resumed.facts["loss"] == whole.facts["loss"]


@pytest.mark.parametrize("norm", BALLS)
def test_the_worst_perturbation_lies_in_the_ball_and_is_worse_than_noise(norm: str) -> None:
    made, rows = built("maf")
    x, radius = {**rows.x, "y": torch.randn(6, 2)}, 0.3

    def loss(given: dict[str, Tensor]) -> Tensor:
        return made.loss(rows._replace(x={"x": given["x"]}))

    space = Space(frozenset({"y"}), spread=0.5)
    worse, noisy = space.worst(loss, x, ball(norm), 2 * radius, 30), space.uniform(x, ball(norm), 2 * radius)
    for moved in (worse, noisy):
        assert moved.keys() == x.keys()
        assert torch.equal(moved["y"], x["y"])
        assert float(ball(norm).norm(moved["x"] - x["x"]).max()) <= radius * (1 + 1e-5)
    assert loss(worse).mean() > loss(noisy).mean()
    assert (loss(worse) > loss(x)).all()


def test_noise_is_of_the_size_that_was_asked_for() -> None:
    x = torch.randn(500, 20)
    batch = Batch(torch.zeros(500, 1), {"x": x})
    made, space = built("maf")[0], Space.of([batch], ())
    assert space.spread == pytest.approx(float(x.std(1).mean()))
    uniform_noise = Noise(NoiseSettings(eps=0.5), space)(made, batch, 0).x["x"] - x
    assert float(uniform_noise.norm(dim=1).max()) <= 0.5 * space.spread
    assert float(uniform_noise.norm(dim=1).median()) > 0.4 * space.spread
    spiked = Noise(NoiseSettings(eps=1.0, kind="spike_slab", spikes=0.2), space)(made, batch, 0).x["x"] - x
    assert float((spiked.abs() > 0.1).double().mean()) == pytest.approx(
        0.2 * 0.94, abs=0.02
    )  # of a Cauchy, 94 % exceed 0.1
    again = Noise(NoiseSettings(eps=0.5), space)(made, batch, 0).x["x"] - x
    assert torch.equal(again, uniform_noise)


def test_spread_is_that_of_all_rows_and_of_what_may_change() -> None:
    x = {"x": 3 * torch.randn(100, 5), "c": torch.randn(100)}
    parts = [Batch(torch.zeros(n, 1), {k: v[i : i + n] for k, v in x.items()}) for i, n in ((0, 99), (99, 1))]
    assert Space.of(parts, ("c",)).spread == pytest.approx(float(x["x"].std(1).mean()))
    assert Space.of(parts, ("x",)).spread == pytest.approx(float(x["c"].std(correction=0)), rel=1e-5)


def test_zero_counts_and_context_are_no_obstacle() -> None:
    """Slopes of the root are infinite at 0; context has no errors."""
    rng = np.random.default_rng(0)
    theta = rng.standard_normal((400, 2))
    x = {"n": rng.poisson(np.exp(0.5 * theta)), "c": rng.standard_normal(400)}
    counts = simfer.Variables([simfer.Variable("n", (2,), support=COUNT), simfer.Variable("c")])
    settings = SETTINGS["maf"].model_copy(update={"context": ("c",)})
    training = TrainingSettings(epochs=2, batch_size=50, fisher=FisherSettings(beta=0.01))
    model = simfer.train(theta, x, PRIOR, estimator=settings, training=training, observables=counts)
    assert model.estimator.transforms["n"] == "sqrt"
    assert np.isfinite(model.facts["loss"]["validation"]).all()
    assert fisher_trace(model.posterior, {k: v[:20] for k, v in x.items()}).isfinite().all()
    found = simfer.attack(model.posterior, {k: v[:50] for k, v in x.items()}, 1.5, steps=20)
    assert (found.attacked[0][:, 2] == found.x[:, 2]).all()
    assert (found.attacked[0] != found.x).any(1).mean() > 0.5


@pytest.mark.parametrize("name", ROBUST)
def test_missing_entries_are_refused(line, rng, name: str) -> None:
    theta = line.prior.sample(50, rng)
    settings = SETTINGS["maf"].model_copy(update={"impute": True})
    training = TrainingSettings(epochs=1, **ROBUST[name])
    with pytest.raises(UnsupportedError, match=r"needs all of x, and `impute`"):
        simfer.train(theta, line.simulate(theta, rng)["x"], line.prior, estimator=settings, training=training)


def test_noise_of_no_size_is_refused(line, rng) -> None:
    training = TrainingSettings(epochs=1, noise=NoiseSettings())
    with pytest.raises(UnsupportedError, match="`noise` needs an x that varies"):
        simfer.train(line.prior.sample(50, rng), np.ones((50, 2)), line.prior, training=training)


@pytest.mark.parametrize("name", ["gaussian", "maf", "nsf"])
def test_densities_stay_in_float32_beside_bfloat16(name: str) -> None:
    made, rows = built(name)
    penalty = FisherPenalty(FisherSettings(beta=1.0, draws=4, rows=None), made)
    space = Space(frozenset(), 1.0)
    term = Trades(TradesSettings(steps=1), made, space)
    exact = penalty.penalty(made, rows, 0), term(made, rows, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = penalty.penalty(made, rows, 0), term(made, rows, 0)
    for a, b in zip(exact, mixed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ROBUST, "ensemble"])
def test_everything_robust_lowers_the_information(line, rng, name: str) -> None:
    theta = line.prior.sample(2000, rng)
    x = line.simulate(theta, rng)["x"]
    settings = SETTINGS["ensemble" if name == "ensemble" else "maf"]

    def trace(**robust: Any) -> float:
        training = TrainingSettings(epochs=10, batch_size=50, learning_rate=5e-3, **robust)
        model = simfer.train(theta, x, line.prior, estimator=settings, training=training)
        return float(fisher_trace(model.posterior, x[:100], draws=50).mean())

    strong = {
        "fisher": {"fisher": FisherSettings(beta=0.1)},
        "smoothed": {"fisher": FisherSettings(beta=0.1, ema=0.15)},
        "trades": {"trades": TradesSettings(weight=1.0, steps=5)},
        "adversarial": {"adversarial": AdversarialSettings(steps=5)},
        "noise": {"noise": NoiseSettings(eps=1.0)},
        "spikes": {"noise": NoiseSettings(eps=1.0, kind="spike_slab", spikes=0.3)},
        "ensemble": {"fisher": FisherSettings(beta=0.1), "trades": TradesSettings(weight=0.5, steps=3)},
    }
    assert trace(**strong[name]) < 0.8 * trace()


@pytest.mark.parametrize("method", ["nle", "nre"])
def test_what_has_no_density_of_theta_is_refused(line, rng, method: str) -> None:
    theta = line.prior.sample(100, rng)
    training = TrainingSettings(epochs=1, fisher=FisherSettings(beta=1.0))
    settings = EstimatorSettings(method=method)
    with pytest.raises(UnsupportedError, match="`fisher` needs a method that learns a density of theta"):
        simfer.train(theta, line.simulate(theta, rng)["x"], line.prior, estimator=settings, training=training)
    model = simfer.train(
        theta, line.simulate(theta, rng)["x"], line.prior, estimator=settings, training=TrainingSettings(epochs=1)
    )
    with seeded(0), pytest.raises(UnsupportedError, match="needs a normalised density"):
        fisher_trace(model.posterior, theta[:3])
