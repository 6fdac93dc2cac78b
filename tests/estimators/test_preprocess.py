from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from simfer.data.errors import ConfigError, NotFiniteError, ShapeError
from simfer.data.variables import COUNT, UNIT_INTERVAL, Support, Variable, Variables
from simfer.estimators.preprocess import Preprocess, build_preprocess
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, XTransform
from simfer.estimators.structure import Scaling
from simfer.estimators.transforms import FUNCTIONS, SCORES

OBSERVABLES = Variables([Variable("y", (2, 3)), Variable("n", (), support=COUNT)])
FRACTION = Variable("y", support=UNIT_INTERVAL)
ALL = [*FUNCTIONS, "rank"]


def rows(n: int = 500) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {"y": 5 + 3 * torch.randn(n, 2, 3), "n": torch.poisson(torch.full((n,), 4.0))}


def fitted(x: torch.Tensor, transform: XTransform = "identity", **options) -> Preprocess:
    """Of one observable, whose support is the unit interval for logit."""
    support = UNIT_INTERVAL if transform == "logit" else Support()
    preprocess = Preprocess(Variables([Variable("y", x.shape[1:], support=support)]), {"y": transform}, **options)
    preprocess.fit({"y": x})
    return preprocess


def skewed(n: int = 1000, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """In (0, 1), within every function's domain."""
    return torch.from_numpy(np.random.default_rng(0).beta(0.7, 3.0, n)).to(dtype)


def test_features_of_training_rows_have_mean_0_and_sd_1() -> None:
    preprocess = Preprocess(OBSERVABLES, {})
    preprocess.fit(rows())
    features = preprocess(rows())
    assert features.shape == (500, 7)
    torch.testing.assert_close(features.mean(0), torch.zeros(7), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.std(0, correction=0), torch.ones(7), atol=1e-4, rtol=0)


def test_counts_get_their_root_unless_told_otherwise() -> None:
    preprocess = Preprocess(OBSERVABLES, {"y": "auto"})
    assert preprocess.transforms == {"y": "identity", "n": "sqrt"}
    preprocess.fit(rows())
    assert preprocess.transforms == {"y": "identity", "n": "sqrt"}
    assert Preprocess(OBSERVABLES, {"n": "sqrt"}).transforms["n"] == "sqrt"


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_every_transform_is_applied_before_standardisation(name: str) -> None:
    """arcsinh in units of the median distance from 0, so that units do not matter."""
    x = skewed()
    expected = FUNCTIONS[name](x / x.median() if name == "arcsinh" else x)
    expected = (expected - expected.mean()) / expected.std(correction=0)
    torch.testing.assert_close(fitted(x, name)({"y": x})[:, 0], expected.float(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_transforms_increase_strictly_and_are_finite_far_beyond_the_training_rows(name: str) -> None:
    preprocess = fitted(skewed(), name)
    near = preprocess({"y": torch.linspace(-0.5, 1.5, 2001, dtype=torch.float64)})[:, 0].double()
    assert (near.diff() > 0).all()
    far = torch.tensor([-1e300, -1e30, -1.0, 0.0, 1.0, 1e30, 1e300], dtype=torch.float64)
    features = preprocess({"y": far})[:, 0]
    assert features.isfinite().all()
    assert (features.diff() >= 0).all()
    assert features.abs().max() < 1000
    assert preprocess({"y": torch.tensor([math.nan, 0.5])})[:, 0].isnan().tolist() == [True, False]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("whiten", [False, True])
def test_log_abs_det_is_that_of_the_derivative(name: str, whiten: bool) -> None:
    """Against automatic differentiation, on training rows and beyond them."""
    x = skewed(2000).reshape(-1, 2)
    preprocess = fitted(x, name, whiten=whiten)
    ask = torch.tensor([[0.31, 0.11], [0.02, 0.77], [-0.4, 1.3], [1e-6, 0.5]], dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda y: preprocess({"y": y[None]})[0]))(ask)
    expected = torch.linalg.slogdet(jacobian.double()).logabsdet
    torch.testing.assert_close(preprocess.log_abs_det({"y": ask}), expected, atol=2e-3, rtol=1e-3)


def test_log_abs_det_counts_what_is_softened_and_leaves_out_what_is_constant_or_absent() -> None:
    x = torch.stack([torch.linspace(-1, 1, 100), torch.full((100,), 3.0)], 1)
    preprocess = fitted(x)
    ask = torch.tensor([[50.0, 3.0]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(preprocess({"y": ask})[0, 0], ask)
    torch.testing.assert_close(preprocess.log_abs_det({"y": ask.detach()})[0], slope[0, 0].log(), atol=1e-4, rtol=1e-4)
    masked = Preprocess(
        Variables([Variable("y", (3,)), Variable("n")]), {}, scaling={"y": Scaling("channel", mask="n")}
    )
    masked.fit({"y": torch.randn(50, 3), "n": torch.full((50,), 2.0)})
    expected = -2 * masked.sd[0].log()
    assert masked.log_abs_det({"y": torch.zeros(1, 3), "n": torch.tensor([2.0])}).item() == pytest.approx(
        expected.item()
    )


def test_rank_gives_normal_scores_and_survives_ties() -> None:
    x = torch.from_numpy(np.random.default_rng(1).standard_cauchy(20_000))
    features = fitted(x, "rank")({"y": x})[:, 0].double()
    quantiles = features.quantile(torch.tensor([0.01, 0.1, 0.5, 0.9, 0.99], dtype=torch.float64))
    expected = torch.tensor([-2.326, -1.282, 0.0, 1.282, 2.326], dtype=torch.float64)
    torch.testing.assert_close(quantiles, expected, atol=0.15, rtol=0)
    tied = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 5.0])
    features = fitted(tied, "rank")({"y": tied})[:, 0]
    assert (features.diff()[[2, 4, 5]] > 0).all()
    assert fitted(torch.full((9,), 2.5), "rank")({"y": torch.tensor([2.5])}).item() == 0.0


def test_rank_extrapolates_linearly() -> None:
    x = skewed()
    preprocess = fitted(x, "rank")
    last = preprocess._knots(preprocess.observables["y"])[0, -1, 0]
    beyond = preprocess({"y": last + torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=torch.float64)})[:, 0]
    torch.testing.assert_close(beyond.diff(), beyond.diff()[:1].expand(3), atol=1e-4, rtol=1e-4)
    assert len(SCORES) == preprocess.get_buffer("knots_y").shape[1]


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e300])
@pytest.mark.parametrize("name", ["identity", "log", "arcsinh", "rank", "sqrt"])
def test_the_scale_of_x_does_not_matter(name: str, scale: float) -> None:
    """In float64; float32, which is what loaders give, ends at 1e-45 and 3e38."""
    x = skewed()
    features = fitted(x * scale, name)({"y": x * scale})
    torch.testing.assert_close(features, fitted(x, name)({"y": x}), atol=2e-3, rtol=2e-3)


def test_a_constant_entry_becomes_zero() -> None:
    preprocess = Preprocess(Variables([Variable("y", (2,))]), {})
    x = {"y": torch.tensor([[1.0, 7.0], [2.0, 7.0]])}
    preprocess.fit(x)
    assert preprocess(x)[:, 1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", ["identity", "log"])
def test_a_floor_divides_what_varies_less_and_leaves_the_rest(name: XTransform) -> None:
    """In units of the transform; a constant entry varies less than any floor."""
    x = skewed()[:, None] * torch.tensor([0.01, 0.1, 1.0]) + 0.5
    x = torch.cat([x, torch.full((len(x), 1), 7.0)], 1)
    plain, floored = fitted(x, name), fitted(x, name, sd_floor=0.05)
    varies = plain.sd.where(torch.tensor([True, True, True, False]), 0)
    assert (varies < 0.05).tolist() == [True, True, False, True]
    assert torch.equal(floored.sd, varies.clamp(min=0.05))
    assert torch.equal(floored.mean, plain.mean)
    assert torch.equal(floored({"y": x})[:, 2], plain({"y": x})[:, 2])
    standardised = floored({"y": x}).std(0, correction=0)
    torch.testing.assert_close(standardised[:2], (varies[:2] / 0.05).float(), rtol=1e-4, atol=0)
    off = fitted(x[:, 3:], sd_floor=0.05)({"y": torch.tensor([[7.1]])})
    assert off.item() == pytest.approx(2.0, rel=1e-4)


def test_a_floor_is_of_what_entries_share() -> None:
    """A channel is divided by the floor when all of it varies little, not where one member does."""
    scales = torch.tensor([[1.0, 1e-3], [1e-3, 1e-3], [1.0, 1e-3]])
    x = scales * torch.randn(200, 3, 2, generator=torch.Generator().manual_seed(0))
    preprocess = Preprocess(
        Variables([Variable("y", (3, 2))]), {}, sd_floor=0.05, scaling={"y": Scaling("channel", channel_axis=1)}
    )
    preprocess.fit({"y": x})
    assert preprocess.sd.reshape(3, 2)[:, 1].tolist() == [0.05] * 3
    assert preprocess.sd.reshape(3, 2)[:, 0].min() > 0.7


@pytest.mark.parametrize("floor", [-0.1, math.inf, math.nan])
def test_a_floor_is_finite_and_not_negative(floor: float) -> None:
    with pytest.raises(ValueError, match="sd_floor"):
        EstimatorSettings(sd_floor=floor)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("whiten", [False, True])
def test_constant_copied_and_collinear_columns_and_one_row_are_finite(name: str, whiten: bool) -> None:
    x = skewed()
    columns = torch.stack([x, x, 0.5 * x, torch.full_like(x, 0.25)], 1)
    for training in (columns, columns[:1], columns[:, 3:]):
        features = fitted(training, name, whiten=whiten)({"y": training})
        assert features.isfinite().all()
        assert features.abs().max() < 100


def test_imputed_entries_are_the_mean_and_do_not_move_it() -> None:
    whole = {"y": torch.tensor([1.0, 2.0, 6.0])}
    holed = {"y": torch.tensor([1.0, torch.nan, 2.0, 6.0])}
    both = [Preprocess(Variables([Variable("y")]), {}, impute=True) for _ in range(2)]
    both[0].fit(whole)
    both[1].fit(holed)
    assert torch.equal(both[0].mean, both[1].mean)
    assert torch.equal(both[0].sd, both[1].sd)
    assert both[1](holed)[1].item() == 0.0


def test_a_transform_that_does_not_fit_is_named() -> None:
    preprocess = Preprocess(Variables([Variable("y")]), {"y": "log"})
    with pytest.raises(NotFiniteError, match="`y` is not finite after `log` in 1 of 2 rows"):
        preprocess.fit({"y": torch.tensor([1.0, 0.0])})
    with pytest.raises(NotFiniteError, match="`y` is not finite after `logit` in 2 of 3 rows"):
        Preprocess(Variables([FRACTION]), {"y": "logit"}).fit({"y": torch.tensor([1.2, 0.0, -0.1])})
    with pytest.raises(ShapeError, match="no observable `z`"):
        Preprocess(OBSERVABLES, {"z": "log"})
    with pytest.raises(ShapeError, match=r"`logit` needs an observable with bounds; the support of `n` is 0.0 to inf"):
        Preprocess(OBSERVABLES, {"n": "logit"})


def test_whitened_features_are_uncorrelated_with_unit_variance() -> None:
    x = {"y": torch.cumsum(rows()["y"], -1), "n": rows()["n"]}
    preprocess = Preprocess(OBSERVABLES, {}, whiten=True)
    preprocess.fit(x)
    features = preprocess(x).double()
    torch.testing.assert_close(features.T @ features / len(features), torch.eye(7).double(), atol=1e-3, rtol=0)


def test_whitening_survives_entries_that_are_copies() -> None:
    preprocess = Preprocess(Variables([Variable("y", (2,))]), {}, whiten=True)
    x = {"y": torch.linspace(-1, 1, 50)[:, None].repeat(1, 2)}
    preprocess.fit(x)
    assert torch.isfinite(preprocess(x)).all()
    assert preprocess(x).abs().max() < 10


def test_whitening_is_refused_where_places_matter() -> None:
    settings = EstimatorSettings(embedding=EmbeddingSettings(kind="deep_set"), whiten=True)
    with pytest.raises(ConfigError, match="`whiten` mixes the entries of x, and `deep_set` needs them in their places"):
        build_preprocess(OBSERVABLES, settings)


@pytest.mark.parametrize(
    ("scaling", "alike"),
    [
        (Scaling("entry"), [[0], [1], [2], [3], [4], [5]]),
        (Scaling("channel", channel_axis=1), [[0, 2, 4], [1, 3, 5]]),
        (Scaling("channel", channel_axis=0), [[0, 1], [2, 3], [4, 5]]),
        (Scaling("all", channel_axis=0), [[0, 1, 2, 3, 4, 5]]),
    ],
)
def test_statistics_are_shared_by_what_is_alike(scaling: Scaling, alike: list[list[int]]) -> None:
    x = torch.randn(300, 3, 2, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7).reshape(3, 2)
    preprocess = Preprocess(Variables([Variable("y", (3, 2))]), {}, scaling={"y": scaling})
    preprocess.fit_parts(lambda: ({"y": part} for part in x.split(70)))
    flat = x.reshape(300, 6).double()
    for group in alike:
        assert preprocess.mean[group].tolist() == pytest.approx([flat[:, group].mean().item()] * len(group), abs=1e-9)
        sd = flat[:, group].std(correction=0).item()
        assert preprocess.sd[group].tolist() == pytest.approx([sd] * len(group))


@pytest.mark.parametrize("name", ["identity", "log", "rank", "auto"])
@pytest.mark.parametrize("mask", ["count", "each"])
def test_statistics_are_taken_over_present_members_only(name: XTransform, mask: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(400, 5, 2, generator=generator) + 0.5
    count = torch.randint(0, 6, (400,), generator=generator)
    present = torch.arange(5) < count[:, None]
    given = count.float() if mask == "count" else present.float()
    observables = Variables([Variable("y", (5, 2)), Variable("m", given.shape[1:])])
    features = []
    for padding in (0.0, -1e30, torch.nan):
        preprocess = Preprocess(observables, {"y": name}, scaling={"y": Scaling("channel", 1, "m")})
        padded = {"y": x.where(present[..., None], padding), "m": given}
        preprocess.fit(padded)
        features.append(preprocess(padded))
    assert torch.equal(features[0], features[1])
    assert torch.equal(features[0], features[2])
    members = features[0][:, :10].reshape(400, 5, 2)
    assert (members[~present] == 0).all()
    torch.testing.assert_close(members[present].mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    assert torch.equal(features[0][:, 10:], given.reshape(400, -1))


@pytest.mark.parametrize(
    ("draw", "support", "expected"),
    [
        (lambda rng: rng.normal(5.0, 2.0, 4000), Support(), "identity"),
        (lambda rng: rng.uniform(0.0, 1.0, 4000), UNIT_INTERVAL, "identity"),
        (lambda rng: rng.lognormal(0.0, 1.5, 4000), Support(), "log"),
        (lambda rng: 1e-30 * rng.lognormal(0.0, 1.5, 4000), Support(), "log"),
        (lambda rng: rng.standard_t(1.5, 4000), Support(), "arcsinh"),
        (lambda rng: 1e6 + 1e3 * rng.standard_cauchy(4000), Support(), "arcsinh"),
        (lambda rng: rng.beta(0.1, 0.1, 4000), UNIT_INTERVAL, "identity"),
        (lambda rng: rng.poisson(rng.gamma(1.0, 30.0, 4000)), COUNT, "sqrt"),
        (lambda rng: rng.poisson(rng.lognormal(3.0, 2.0, 4000)), COUNT, "log1p"),
        (lambda rng: rng.integers(0, 2, 4000), COUNT, "sqrt"),
        (lambda rng: np.full(4000, 3.0), Support(), "identity"),
    ],
)
def test_a_transform_is_chosen_from_the_data(draw, support: Support, expected: str) -> None:
    x = torch.from_numpy(draw(np.random.default_rng(0)).astype(np.float64))
    preprocess = Preprocess(Variables([Variable("y", support=support)]), {"y": "auto"})
    preprocess.fit_parts(lambda: ({"y": part} for part in x.split(999)))
    assert preprocess.transforms == {"y": expected}
    assert preprocess({"y": x}).isfinite().all()
    again = Preprocess(Variables([Variable("y", support=support)]), {"y": "auto"})
    again.load_state_dict(preprocess.state_dict())
    assert again.transforms == preprocess.transforms
    assert torch.equal(again({"y": x}), preprocess({"y": x}))


def test_what_was_chosen_does_not_fail_on_what_it_did_not_see() -> None:
    """A row that is not positive among the thousands between those that `auto` looks at."""
    x = torch.from_numpy(np.random.default_rng(0).lognormal(0, 2, 30_001))
    x[1] = 0.0
    preprocess = Preprocess(Variables([Variable("y")]), {"y": "auto"})
    preprocess.fit({"y": x})
    assert preprocess.transforms == {"y": "log"}
    assert preprocess({"y": x}).isfinite().all()


def test_weights_of_before_transforms_could_learn_mean_the_same() -> None:
    """A state dict of mean and sd alone: log1p for counts, the functions as they are, nothing softened."""
    preprocess = Preprocess(OBSERVABLES, {"y": "arcsinh"})
    preprocess.load_state_dict({"mean": torch.zeros(7), "sd": torch.full((7,), 0.01)})
    x = {"y": torch.full((1, 2, 3), 2.0), "n": torch.tensor([3.0])}
    expected = torch.tensor([math.asinh(2.0)] * 6 + [math.log(4.0)]) / 0.01
    torch.testing.assert_close(preprocess(x)[0], expected)
