"""Canonical poses: functions of x that move along with it, and densities that do so exactly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, Uniform

import simfer
from simfer.data.batch import Batch
from simfer.data.errors import ModelFormatError, ShapeError, SymmetryError, UnknownNameError
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
    TradesSettings,
    TrainingSettings,
)
from simfer.estimators.symmetry.base import wrapped
from simfer.estimators.symmetry.canonical import Canonical, build_canonical
from simfer.estimators.symmetry.charts import Charts
from simfer.estimators.symmetry.restricted import RestrictedPosterior
from simfer.simulators.elongated_source import ElongatedSource
from simfer.simulators.families import LogUniform
from simfer.simulators.prior import Prior
from simfer.simulators.symmetry import (
    MoveImage,
    MovePoints,
    PlaneMotionOfPoints,
    RotatePoints,
    Scale,
    Shift,
)

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


def pairs(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    theta = PULSE.prior.sample(rows, rng)
    return theta, PULSE.simulate(theta, rng)["x"]


def grid(side: int = 200) -> tuple[np.ndarray, float]:
    axes = [
        np.linspace(low, high, side, endpoint=False) + (high - low) / side / 2 for low, high in ((0.5, 2.0), (3, 7))
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2), 1.5 * 4 / side**2


TURN = Uniform(-math.pi, math.pi)
SETTINGS = EstimatorSettings(embedding=SMALL, flow=FLOW)


def settings(declared: Any = PULSE.symmetry, **symmetry: Any) -> EstimatorSettings:
    chosen = SymmetrySettings(by="canonical", declared=declared, **symmetry)
    return SETTINGS.model_copy(update={"symmetry": chosen})


def trained(estimator: EstimatorSettings, rows: int = 400, epochs: int = 2, **training: Any) -> Model:
    return simfer.train(
        *pairs(rows),
        PULSE.prior,
        estimator=estimator,
        training=TrainingSettings(epochs=epochs, batch_size=50, **training),
        observables=PULSE.observables,
    )


@pytest.fixture(scope="module")
def model() -> Model:
    return trained(settings(), rows=2000, epochs=25)


WIDE = Normal(0.0, 10.0)
CASES: dict[str, tuple[Prior, Variables, dict[str, Any]]] = {
    "shift": (Prior({"height": Uniform(0.5, 2.0), "arrival": Normal(5.0, 0.5)}), PULSE.observables, PULSE.symmetry),
    "two events, scaled": (
        Prior({"first": WIDE, "second": WIDE, "size": LogUniform(0.1, 10.0), "noise": LogUniform(0.1, 10.0)}),
        Variables([Variable("x", (2, 15), dims=("channel", "time")), Variable("other", ())]),
        {
            "time": Shift(by="first", of="x", along="time", spacing=0.1, others=("second",)),
            "size": Scale(by="size", of="x", others=("noise",)),
        },
    ),
    "image": (
        Prior({"column": Uniform(2.0, 6.0), "row": Uniform(2.0, 7.0), "flux": WIDE}),
        Variables([Variable("x", (9, 8), dims=("row", "column"))]),
        {"plane": MoveImage(by=("column", "row"), of="x", along=("column", "row"))},
    ),
    "points": (
        Prior({"a": WIDE, "b": WIDE, "c": WIDE, "size": Uniform(0.0, 1.0)}),
        Variables([Variable("x", (5, 4))]),
        {"place": MovePoints(by=("a", "b", "c"), of="x", entries=(0, 1, 3))},
    ),
    "turned and scaled": (
        Prior({"size": LogUniform(0.1, 10.0), "angle": TURN, "rest": Uniform(0.0, 1.0)}),
        Variables([Variable("x", (4, 2))]),
        {"turn": RotatePoints(by=("angle",), of="x"), "size": Scale(by="size", of="x")},
    ),
    "plane": (
        Prior({"rest": Uniform(0.0, 1.0), "a": WIDE, "b": WIDE, "angle": Uniform(0.0, 2 * math.pi)}),
        Variables([Variable("x", (6, 2))]),
        {"plane": PlaneMotionOfPoints(by=("a", "b"), angle="angle", of="x")},
    ),
}


def case(name: str, **options: Any) -> tuple[Canonical, Batch, Tensor]:
    """An estimator whose poses and charts are fitted, rows, and elements to move them by."""
    prior, observables, declared = CASES[name]
    build = settings(declared, **options).model_copy(
        update={"flow": FlowSettings(kind="maf", transforms=1, hidden=(8,))}
    )
    estimator = build_estimator(prior, observables, build, seed=1)
    assert isinstance(estimator, Canonical)
    rng = np.random.default_rng(0)
    theta = torch.from_numpy(prior.sample(200, rng))
    shapes = {v.name: 1.0 + rng.standard_normal((200, *v.shape)) for v in observables}
    batch = Batch(theta, {name: torch.from_numpy(values) for name, values in shapes.items()})
    estimator.fit_preprocess([batch])
    symmetry = estimator.view.symmetry
    g = symmetry.group.compose(symmetry.pose(theta), symmetry.group.inverse(symmetry.pose(theta.roll(1, 0))))
    return estimator.eval(), batch, _whole_bins(name, g)


def _whole_bins(name: str, g: Tensor) -> Tensor:
    """Sharp noise on few bins is no signal that parts of a bin could be told of: these are moved by whole ones."""
    spacing = {"shift": 0.25, "two events, scaled": 0.1, "image": 1.0}.get(name)
    if spacing is None:
        return g
    moved = torch.round(g / spacing) * spacing
    return torch.cat([moved[:, :1], g[:, 1:]], 1) if name == "two events, scaled" else moved


@pytest.mark.parametrize("name", CASES)
def test_poses_move_along_and_what_is_seen_does_not_change(name: str) -> None:
    estimator, batch, g = case(name)
    symmetry, group = estimator.view.symmetry, estimator.view.symmetry.group
    pose, moved = estimator.finder(batch.x), symmetry.act_x(g, batch.x)
    left = group.compose(group.inverse(group.compose(g, pose)), estimator.finder(moved))
    periods = {"shift": [10.0], "two events, scaled": [1.5, math.inf], "image": [8.0, 9.0]}.get(
        name, [math.inf] * group.dim
    )
    off = group.coordinates(left)
    off = off - torch.nan_to_num(torch.tensor(periods).double() * torch.round(off / torch.tensor(periods).double()))
    assert off.abs().max() < 1e-9
    here, there = (estimator.view.standardise(x, p) for x, p in ((batch.x, pose), (moved, estimator.finder(moved))))
    for one, other in zip(here.values(), there.values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_densities_move_along_and_are_those_of_their_draws(name: str) -> None:
    """log q(g theta | T_g x) = log q(theta | x) - log |det|, and the Jacobian of draws, by differentiation."""
    estimator, batch, g = case(name)
    symmetry = estimator.view.symmetry
    batch, g = batch.select(slice(20)), g[:20]
    with torch.no_grad():
        density = estimator.density(estimator.condition(batch.x))
        torch.manual_seed(0)
        theta = estimator.prior.from_unconstrained(density.sample((3,)))
        log_q = density.log_prob(estimator.prior.to_unconstrained(theta))
        log_q = log_q + estimator.prior.log_abs_det(theta, estimator.prior.to_unconstrained(theta))
        there = torch.stack([symmetry.act_theta(g, part) for part in theta])
        z = estimator.prior.to_unconstrained(there)
        moved = estimator.density(estimator.condition(symmetry.act_x(g, batch.x))).log_prob(z)
        moved = moved + estimator.prior.log_abs_det(there, z)
    det = torch.stack([symmetry.log_det_theta(g, part) for part in theta])
    expected = _in_window(name, estimator, batch, g)
    torch.testing.assert_close((moved + det)[:, expected], log_q[:, expected], atol=2e-3, rtol=2e-3)
    pose = estimator.finder(batch.x)

    def chart(theta: Tensor, pose: Tensor) -> Tensor:
        return estimator.charts(estimator.view.relative(theta[None], pose[None]))[0]

    jacobian = torch.func.vmap(torch.func.jacrev(chart))(theta[0], pose).slogdet().logabsdet
    found = estimator.view.log_det(theta[0], pose) + estimator.charts.log_det(estimator.view.relative(theta[0], pose))
    torch.testing.assert_close(found, jacobian, atol=1e-6, rtol=1e-6)
    unit = estimator.charts(estimator.view.relative(theta[0], pose))
    back = estimator.view.absolute(estimator.charts.inverse(unit), pose)
    torch.testing.assert_close(back, theta[0], atol=1e-6, rtol=1e-6)


def _in_window(name: str, estimator: Canonical, batch: Batch, g: Tensor) -> Tensor:
    """Rows that do not leave the window of what is periodic."""
    symmetry, group = estimator.view.symmetry, estimator.view.symmetry.group
    left = group.compose(
        group.inverse(group.compose(g, estimator.finder(batch.x))), estimator.finder(symmetry.act_x(g, batch.x))
    )
    return (group.coordinates(left).abs() < 1e-6).all(1).nonzero()[:, 0]


def test_charts_are_bijections_of_line_factor_and_circle() -> None:
    charts = Charts({0: "line", 1: "factor", 2: "circle"})
    rng = torch.Generator().manual_seed(0)
    drawn = torch.randn(500, 4, generator=rng).double()
    relative = torch.stack([3 * drawn[:, 0], drawn[:, 1].exp(), math.pi * torch.erf(drawn[:, 2]), drawn[:, 3]], 1)
    charts.fit([relative])
    y = charts(relative)
    torch.testing.assert_close(charts(charts.inverse(y)), y, atol=1e-8, rtol=1e-8)
    off = charts.inverse(y) - relative
    off[:, 2] = wrapped(off[:, 2])
    assert off.abs().max() < 1e-8
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: charts(v[None])[0]))(relative)
    torch.testing.assert_close(charts.log_det(relative), jacobian.slogdet().logabsdet, atol=1e-8, rtol=1e-8)
    anywhere = charts.inverse(10 * torch.randn(500, 4, generator=rng).double())[:, 2]
    assert (anywhere - charts.middle[2]).abs().max() <= math.pi + 1e-9


@pytest.mark.slow
def test_a_moved_observation_moves_draws_and_density(model: Model) -> None:
    """By whole bins and by parts of one; the same random numbers."""
    theta = np.stack([np.linspace(0.6, 1.9, 5), np.linspace(4.2, 4.8, 5)], 1)
    x = PULSE.simulate(theta, np.random.default_rng(4))["x"]
    assert isinstance(model.posterior, RestrictedPosterior)
    draws = model.posterior.sample_batched((200,), x, seed=1)
    log_q = model.posterior.log_prob_batched(draws, x)
    for bins in (4, 2.3):
        g = torch.full((5, 1), bins * 0.25).double()
        assert isinstance(model.estimator, Canonical)
        moved = model.estimator.view.symmetry.act_x(g, {"x": torch.from_numpy(x)})["x"].numpy()
        there = model.posterior.sample_batched((200,), moved, seed=1)
        assert (there - draws - torch.tensor([0.0, bins * 0.25])).abs().max() < 2e-4
        torch.testing.assert_close(model.posterior.log_prob_batched(there, moved), log_q, atol=5e-3, rtol=1e-3)


def test_the_density_is_normalised_in_the_support_and_gives_the_evidence(model: Model) -> None:
    theta, cell = grid()
    _, x = pairs(3, seed=5)
    edge = PULSE.simulate(np.array([[1.0, 3.02], [1.0, 6.98]]), np.random.default_rng(1))["x"]
    for row in [*x, *edge]:
        near = PULSE.log_likelihood(theta, {"x": row[None]})
        evidence = float(np.log(np.exp(near - near.max()).mean()) + near.max())
        log_q = model.posterior.log_prob_batched(torch.from_numpy(theta)[:, None], row[None])
        assert float(log_q.exp().sum()) * cell == pytest.approx(1.0, abs=0.06)
        found = refine(model.posterior, PULSE.log_likelihood, {"x": row[None]}, draws=2000)
        assert found.efficiency > 0.2
        assert abs(found.log_evidence - evidence) < 4 * found.log_evidence_sd + 1e-3
    draws, with_draws = model.posterior.sample_with_log_prob((300,), edge, seed=1)
    assert PULSE.prior.contains(draws).all()
    torch.testing.assert_close(with_draws, model.posterior.log_prob_batched(draws, edge), atol=0.1, rtol=0.0)
    outside = model.posterior.log_prob_batched(torch.tensor([[[1.0, 2.9]] * 2]).double(), edge)
    assert (outside == -math.inf).all()


def test_gradients_pass_through_the_pose(model: Model) -> None:
    """Against finite differences along x, also along its own shift, which moves the pose alone."""
    row = PULSE.simulate(np.array([[1.2, 5.03]]), np.random.default_rng(0))["x"]
    x = torch.from_numpy(row).float().requires_grad_()
    theta = torch.tensor([[[1.2, 5.03]]]).double()
    log_q = model.posterior.log_prob_batched(theta, x, track_gradients=True)
    (gradient,) = torch.autograd.grad(log_q.sum(), x)
    rng = np.random.default_rng(1)
    for direction in (np.gradient(row[0]), rng.standard_normal(40)):
        step = torch.from_numpy(2e-3 * direction / np.linalg.norm(direction)).float()
        with torch.no_grad():
            ends = [model.posterior.log_prob_batched(theta, x + sign * step) for sign in (1, -1)]
        slope = float(ends[0] - ends[1]) / 2
        assert float(gradient[0] @ step) == pytest.approx(slope, rel=0.03, abs=2e-4)
    draws = model.posterior.rsample((10,), x)
    assert torch.autograd.grad(draws.sum(), x)[0].abs().sum() > 0


KINDS: dict[str, dict[str, Any]] = {
    "npe": {},
    "told": {"exact": False},
    "gmm": {},
    "fmpe": {},
    "ensemble": {},
    "fisher": {},
    "trades": {},
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_trains_saves_and_answers(name: str, tmp_path: Path) -> None:
    changed: dict[str, dict[str, Any]] = {
        "gmm": {"flow": FlowSettings(kind="gmm", components=3, hidden=(16,))},
        "fmpe": {"method": "fmpe", "field": FieldSettings(hidden=16, blocks=1)},
        "ensemble": {"ensemble": 2},
    }
    robust: dict[str, Any] = {
        "fisher": {"fisher": FisherSettings(beta=0.1, every=1)},
        "trades": {"trades": TradesSettings(steps=2)},
    }
    estimator = settings(**KINDS[name]).model_copy(update=changed.get(name, {}))
    made = trained(estimator, **robust.get(name, {}))
    assert ("fisher" in made.facts) == (name == "fisher")
    made.save(tmp_path / "model")
    loaded, (theta, x) = load_model(tmp_path / "model"), pairs(3, seed=9)
    assert loaded.estimator.settings == made.estimator.settings
    first, second = (m.posterior.sample_batched((20,), x, seed=1) for m in (made, loaded))
    assert torch.equal(first, second)
    assert PULSE.prior.contains(first).all()
    assert loaded.posterior.log_prob_batched(torch.from_numpy(theta)[None], x).isfinite().all()
    assert isinstance(loaded.posterior, RestrictedPosterior)
    stratified, weights = loaded.posterior.rsample_stratified((4,), x)
    assert stratified.shape == (4, len(weights), 3, 2)


def test_resumed_equals_uninterrupted(tmp_path: Path, interrupted: Any) -> None:
    def run(folder: Path | None) -> Model:
        return simfer.train(
            *pairs(400),
            PULSE.prior,
            estimator=settings(),
            training=TrainingSettings(epochs=3, batch_size=50),
            observables=PULSE.observables,
            folder=folder,
        )

    whole = run(None)
    with interrupted(12):
        run(tmp_path)
    assert run(tmp_path).facts["loss"] == whole.facts["loss"]


def brightest(x: dict[str, Tensor]) -> Tensor:
    """A pose of one's own: the mean time of the energy."""
    energy = x["x"].double().square()
    return 0.25 * (energy * torch.arange(40)).sum(1, keepdim=True) / energy.sum(1, keepdim=True)


def test_a_pose_of_ones_own_is_a_function_that_whoever_loads_hands_over(tmp_path: Path) -> None:
    made = trained(settings(canonical=brightest))
    made.save(tmp_path / "model")
    with pytest.raises(ModelFormatError, match="hand it over"):
        load_model(tmp_path / "model")
    loaded, (_, x) = load_model(tmp_path / "model", modules={"brightest": brightest}), pairs(3, seed=9)
    first, second = (m.posterior.sample_batched((20,), x, seed=1) for m in (made, loaded))
    assert torch.equal(first, second)
    assert isinstance(made.estimator, Canonical)
    found = made.estimator.finder({"x": torch.from_numpy(x)})
    torch.testing.assert_close(found + 5.0, brightest({"x": torch.from_numpy(x)}))


@pytest.mark.slow
def test_a_pose_may_be_given_by_an_observable() -> None:
    """A trigger that is off by a bin; the network does not see it, so that posteriors move along exactly."""
    theta, x = pairs(400)
    rng = np.random.default_rng(0)
    observables = Variables([*PULSE.observables, Variable("trigger", ())])
    named = {"x": x, "trigger": theta[:, 1] + 0.2 * rng.standard_normal(400)}
    estimator, training = settings(canonical="trigger"), TrainingSettings(epochs=10, batch_size=50)
    made = simfer.train(theta, named, PULSE.prior, estimator=estimator, training=training, observables=observables)
    asked = {"x": x[:3], "trigger": np.array([4.5, 4.6, 4.4])}
    moved = {"x": np.roll(x[:3], 2, axis=1), "trigger": asked["trigger"] + 0.5}
    first, second = (made.posterior.sample_batched((100,), given, seed=1) for given in (asked, moved))
    assert (second - first - torch.tensor([0.0, 0.5])).abs().max() < 2e-4


def refused(
    prior: Prior, observables: Variables, declared: Any, error: type[Exception], match: str, **options: Any
) -> None:
    chosen = SymmetrySettings(by="canonical", declared=declared, **options)
    with pytest.raises(error, match=match):
        build_canonical(prior, observables, chosen)


def test_what_has_no_canonical_pose_is_refused_with_the_remedy() -> None:
    source = ElongatedSource
    refused(source.prior, source.observables, source.symmetry, SymmetryError, "PlaneMotion has no .*`by: proxies`")
    vector, cloud = Prior(dict.fromkeys("abc", Uniform(-1.8, 1.8))), Variables([Variable("y", (4, 3))])
    turn: dict[str, Any] = {"turn": RotatePoints(by=("a", "b", "c"), of="y")}
    refused(vector, cloud, turn, SymmetryError, "rotations of space.*`by: proxies`")
    flat, half = Variables([Variable("y", (2, 2))]), Prior({"a": Uniform(0.0, 1.0)})
    refused(half, flat, {"turn": RotatePoints(by=("a",), of="y")}, SymmetryError, "angle `a` must span one turn")
    plane: dict[str, Any] = {"plane": PlaneMotionOfPoints(by=("a", "b"), angle="c", of="y")}
    refused(Prior({"a": WIDE, "b": WIDE, "c": TURN}), flat, plane, SymmetryError, "three points")


def test_a_pose_that_is_none_is_named() -> None:
    given = PULSE.prior, PULSE.observables, PULSE.symmetry
    refused(*given, UnknownNameError, "no observable `triger`", canonical="triger")
    refused(*given, SymmetryError, "nothing is left", canonical="x")
    refused(*given, UnknownNameError, "hand it over", canonical="some.module:function")
    _, finder = build_canonical(
        *given[:2], SymmetrySettings(by="canonical", declared=given[2], canonical=lambda x: x["x"])
    )
    with pytest.raises(ShapeError, match=r"must give a tensor of the pose, \(arrival\), for every row: shape \(2, 1\)"):
        finder({"x": torch.zeros(2, 40)})
    with pytest.raises(ValueError, match="by: canonical"):
        SymmetrySettings(kernel=0.1, canonical="x")
    masked = SETTINGS.model_copy(update={"embedding": EmbeddingSettings(kind="deep_set", mask="n")})
    observables = Variables([Variable("y", (4, 2)), Variable("n", ())])
    points = SymmetrySettings(by="canonical", declared={"place": MovePoints(by=("a", "b"), of="y")})
    with pytest.raises(SymmetryError, match="mask"):
        build_estimator(Prior({"a": WIDE, "b": WIDE}), observables, masked.model_copy(update={"symmetry": points}))
