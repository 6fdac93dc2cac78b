"""Laws of groups, of how they act on theta and x, and of the kernels that blur poses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, Uniform

from simfer.data.errors import SymmetryError
from simfer.data.variables import COUNT, Variable, Variables
from simfer.estimators.symmetry import build_symmetry
from simfer.estimators.symmetry.base import Action, Group, Kernel, LieGroup, Symmetry, distance, wrapped
from simfer.estimators.symmetry.images import TurnImage
from simfer.estimators.symmetry.kernels import normal_kernel, uniform_kernel
from simfer.estimators.symmetry.permutations import Permutations, PermuteMembers
from simfer.estimators.symmetry.product import Product
from simfer.estimators.symmetry.rotations import Rotations
from simfer.estimators.symmetry.scalings import Scalings
from simfer.estimators.symmetry.se2 import SE2
from simfer.estimators.symmetry.shifts import shifted
from simfer.estimators.symmetry.so3 import SO3
from simfer.estimators.symmetry.translations import Translations
from simfer.simulators.families import LogUniform
from simfer.simulators.prior import Prior
from simfer.simulators.symmetry import (
    MoveImage,
    MovePoints,
    PlaneMotion,
    PlaneMotionOfPoints,
    RotateImage,
    RotatePoints,
    Scale,
    Shift,
)

ROWS = 40
GROUPS: dict[str, LieGroup] = {
    "translations": Translations(2),
    "scalings": Scalings(),
    "rotations": Rotations(),
    "so3": SO3(),
    "se2": SE2(),
    "product": Product({"time": Translations(1), "turn": Rotations(), "size": Scalings()}),
}
EVERY_GROUP = pytest.mark.parametrize("group", GROUPS.values(), ids=list(GROUPS))
KERNELS: dict[str, Callable[..., Kernel]] = {"normal": normal_kernel, "uniform": uniform_kernel}


def elements(group: LieGroup, rows: int = ROWS, width: float = 2.0) -> Tensor:
    return group.element(width * torch.randn(rows, group.freedom, dtype=torch.float64))


def near(group: LieGroup, g: Tensor, h: Tensor, atol: float = 1e-7) -> bool:
    return bool((distance(group, g, h) < atol).all())


@EVERY_GROUP
def test_it_is_a_group(group: LieGroup) -> None:
    g, h, k = (elements(group) for _ in range(3))
    compose, inverse, identity = group.compose, group.inverse, group.identity(ROWS)
    assert isinstance(group, LieGroup)
    assert g.shape == identity.shape == (ROWS, group.dim)
    assert near(group, compose(identity, g), g)
    assert near(group, compose(g, identity), g)
    assert near(group, compose(g, inverse(g)), identity)
    assert near(group, compose(inverse(g), g), identity)
    assert near(group, compose(compose(g, h), k), compose(g, compose(h, k)))


@EVERY_GROUP
def test_coordinates_belong_to_elements(group: LieGroup) -> None:
    g = elements(group)
    v = group.coordinates(g)
    assert v.shape == (ROWS, group.freedom) == (ROWS, len(group.circular))
    assert near(group, group.element(v), g)
    torch.testing.assert_close(group.coordinates(group.identity(3)), torch.zeros(3, group.freedom, dtype=torch.float64))
    turns = group.turns(v)
    assert all(near(group, group.element(turn), g) for turn in turns)
    assert turns.norm(dim=-1).amin(0).allclose(v.norm(dim=-1))


@EVERY_GROUP
def test_the_haar_measure_is_left_invariant(group: LieGroup) -> None:
    """d(coordinates of g h) / d(coordinates of h) changes volumes as log_haar says."""
    g = elements(group)
    v = 0.5 * torch.randn(ROWS, group.freedom, dtype=torch.float64)
    for i in range(10):
        move = lambda w, i=i: group.coordinates(group.compose(g[i : i + 1], group.element(w[None])))[0]
        volume = torch.linalg.slogdet(torch.autograd.functional.jacobian(move, v[i])).logabsdet
        change = group.log_haar(v[i : i + 1]) - group.log_haar(move(v[i])[None])
        torch.testing.assert_close(volume, change[0], atol=1e-7, rtol=0)


def test_turns_of_space_and_of_the_plane_do_not_commute_with_what_follows() -> None:
    for group in (SO3(), SE2()):
        g, h = elements(group), elements(group)
        assert not near(group, group.compose(g, h), group.compose(h, g), atol=0.1)


def test_permutations_are_a_group_that_acts_on_members() -> None:
    group, act = Permutations(6), PermuteMembers(axis=1)
    g, h = group.sample(ROWS), group.sample(ROWS)
    x = torch.randn(ROWS, 6, 3)
    identity = group.identity(ROWS)
    assert isinstance(group, Group)
    assert not isinstance(group, LieGroup)
    assert isinstance(act, Action)
    assert torch.equal(group.compose(g, group.inverse(g)), identity)
    assert torch.equal(group.compose(identity, g), g)
    assert torch.equal(act(g, act(h, x)), act(group.compose(g, h), x))
    assert torch.equal(act(identity, x), x)
    assert torch.equal(act(g, x)[0, 2], x[0, g[0, 2]])
    assert (act.log_det(g, x) == 0).all()


@EVERY_GROUP
@pytest.mark.parametrize("make", KERNELS.values(), ids=list(KERNELS))
@pytest.mark.parametrize("width", [0.3, 1.2])
def test_a_kernel_integrates_to_one(group: LieGroup, make: Callable[..., Kernel], width: float) -> None:
    """Over coordinates that are those of their element, with the weight of the Haar measure; wide ones wrap."""
    kernel = make(group, width)
    assert isinstance(kernel, Kernel)
    wraps = any(group.circular) or isinstance(group, SO3)
    reach = math.pi if wraps else 6 * width
    cut = 2 * math.erfc(reach / width / 2**0.5) if wraps else 0.0  # of what does not wrap beside what does
    v = reach * (2 * torch.rand(200_000, group.freedom, dtype=torch.float64) - 1)
    inside = (group.coordinates(group.element(v)) - v).abs().amax(1) < 1e-9
    density = (kernel.log_prob(group.element(v)) + group.log_haar(v)).exp()
    values = torch.where(inside, density, 0.0) * (2 * reach) ** group.freedom
    assert abs(float(values.mean()) - 1) < 4 * float(values.std()) / len(v) ** 0.5 + cut


@EVERY_GROUP
@pytest.mark.parametrize("make", KERNELS.values(), ids=list(KERNELS))
def test_draws_are_near_the_identity_and_seeded(group: LieGroup, make: Callable[..., Kernel]) -> None:
    kernel = make(group, [0.01 * (i + 1) for i in range(group.freedom)])
    torch.manual_seed(1)
    eps = kernel.sample(2000)
    sd = torch.arange(1, group.freedom + 1) * 0.01 / (1 if make is normal_kernel else 3**0.5)
    torch.testing.assert_close(group.coordinates(eps).std(0), sd.double(), rtol=0.1, atol=0)
    assert kernel.log_prob(eps).isfinite().all()
    torch.manual_seed(1)
    assert torch.equal(eps, kernel.sample(2000))


def test_widths_go_by_component() -> None:
    group = Product({"time": Translations(1), "plane": SE2()})
    kernel = normal_kernel(group, {"plane": (0.1, 0.2, 0.3), "time": 1.0})
    torch.testing.assert_close(kernel.law.stddev, torch.tensor([1.0, 0.1, 0.2, 0.3], dtype=torch.float64))


@pytest.mark.parametrize(
    ("width", "match"),
    [
        (0.0, "`width` of a kernel must be above 0 and finite; got 0.0"),
        ((0.1, 0.2), "must be one number, or one for each of 3 coordinates"),
        ({"tme": 1.0}, "no component `tme`; did you mean `time`?"),
        ({"time": 1.0}, "must name every component; missing: plane"),
    ],
)
def test_bad_widths_are_named(width: Any, match: str) -> None:
    group = Product({"time": Translations(1), "plane": Translations(2)})
    with pytest.raises(SymmetryError, match=match):
        normal_kernel(group, width)


IMAGE = Variables([Variable("image", (24, 24), dims=("row", "column"))])
PLACE = {"column": Uniform(10.0, 14.0), "row": Uniform(10.0, 14.0)}
ANGLE = {"angle": Uniform(0.0, 2 * math.pi)}
SET = Variables([Variable("set", (7, 4), dims=("member", "value"))])
SIGNALS = Variables(
    [Variable("one", (2, 31), dims=("channel", "time")), Variable("two", (31,), dims=("time",)), Variable("n", ())]
)


def some_data(rows: int, observables: Variables) -> dict[str, Tensor]:
    """Noise; images smooth and in the middle, as they must be to be resampled."""
    x = {v.name: torch.randn(rows, *v.shape, dtype=torch.float64) for v in observables}
    if "image" in x:
        places = torch.arange(24, dtype=torch.float64) - 11.5
        across, along = torch.exp(-((places - 1) ** 2) / 6), torch.exp(-((places + 1) ** 2) / 8)
        x["image"] = x["image"][:, :1, :1].sign() * across[:, None] * along
    return x


CASES: dict[str, tuple[Prior, Variables, dict[str, Any]]] = {
    "shift": (
        Prior({"a": Normal(0.0, 1.0), "tau": Uniform(0.0, 9.0), "later": Uniform(0.0, 20.0)}),
        SIGNALS,
        {"time": Shift(by="tau", of=("one", "two"), along="time", spacing=0.3, origin=2.0, others=("later",))},
    ),
    "scale": (
        Prior({"amplitude": LogUniform(0.1, 10.0), "b": Normal(0.0, 1.0), "sd": LogUniform(0.1, 1.0)}),
        SIGNALS,
        {"size": Scale(by="amplitude", of="one", origin=2.0, others=("sd",))},
    ),
    "move image": (
        Prior({"flux": Uniform(0.0, 1.0), **PLACE}),
        IMAGE,
        {"place": MoveImage(("column", "row"), "image", ("column", "row"))},
    ),
    "rotate image": (
        Prior({**ANGLE, "other": Uniform(-math.pi, math.pi)}),
        IMAGE,
        {"turn": RotateImage(by="angle", of="image", along=("column", "row"))},
    ),
    "rotate image and what is on it": (
        Prior({**ANGLE, "other": Uniform(-math.pi, math.pi)}),
        IMAGE,
        {"turn": RotateImage(by="angle", of="image", along=("column", "row"), others=("other",))},
    ),
    "plane motion": (
        Prior({**ANGLE, **PLACE}),
        IMAGE,
        {"plane": PlaneMotion(by=("column", "row"), angle="angle", of="image", along=("column", "row"))},
    ),
    "move points": (
        Prior({"x": Normal(0.0, 1.0), "y": Normal(0.0, 1.0), "z": Normal(0.0, 1.0)}),
        SET,
        {"place": MovePoints(("x", "y", "z"), "set")},
    ),
    "rotate points": (Prior(ANGLE), SET, {"turn": RotatePoints(("angle",), "set", entries=(3, 1))}),
    "rotate in space": (
        Prior({name: Uniform(-1.5, 1.5) for name in "abc"}),
        SET,
        {"turn": RotatePoints(("a", "b", "c"), "set")},
    ),
    "plane motion of points": (
        Prior({"x": Normal(0.0, 1.0), "y": Normal(0.0, 1.0), **ANGLE}),
        SET,
        {"plane": PlaneMotionOfPoints(("x", "y"), "angle", "set")},
    ),
    "product": (
        Prior({"amplitude": LogUniform(0.1, 10.0), "tau": Uniform(0.0, 9.0), "b": Normal(0.0, 1.0)}),
        SIGNALS,
        {
            "size": Scale(by="amplitude", of=("one", "two")),
            "time": Shift(by="tau", of="one", along="time", spacing=0.3),
        },
    ),
}
RESAMPLED = {"rotate image", "plane motion"}  # and whatever else has these words in its name
Case = tuple[Symmetry, Tensor, dict[str, Tensor], Tensor, Tensor]


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest, rng: np.random.Generator) -> Case:
    """A symmetry, theta, x, and two elements that lead from theta to the poses of others."""
    prior, observables, declared = CASES[request.param]
    symmetry = build_symmetry(prior, observables, declared)
    theta, second, third = (torch.from_numpy(prior.sample(ROWS, rng)) for _ in range(3))
    group = symmetry.group
    g = group.compose(symmetry.pose(second), group.inverse(symmetry.pose(theta)))
    h = group.compose(symmetry.pose(third), group.inverse(symmetry.pose(second)))
    return symmetry, theta, some_data(ROWS, observables), g, h


def test_it_acts_on_theta(case: Case) -> None:
    symmetry, theta, _, g, h = case
    group, act = symmetry.group, symmetry.act_theta
    close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-7)
    assert isinstance(symmetry, Symmetry)
    close(act(group.identity(ROWS), theta), theta)
    close(act(group.inverse(g), act(g, theta)), theta)
    close(act(h, act(g, theta)), act(group.compose(h, g), theta))
    assert near(group, symmetry.pose(act(g, theta)), group.compose(g, symmetry.pose(theta)))


def test_place_undoes_pose(case: Case) -> None:
    symmetry, theta, _, g, _ = case
    placed = symmetry.place(theta, g)
    assert near(symmetry.group, symmetry.pose(placed), g)
    torch.testing.assert_close(symmetry.place(placed, symmetry.pose(theta)), theta, atol=1e-7, rtol=1e-7)


def test_the_pose_relative_to_its_proxy_is_the_blur_undone(case: Case) -> None:
    symmetry, theta, *_ = case
    group = symmetry.group
    eps = normal_kernel(group, 0.1).sample(ROWS)
    proxy = group.compose(symmetry.pose(theta), eps)
    relative = symmetry.pose(symmetry.act_theta(group.inverse(proxy), theta))
    assert near(group, relative, group.inverse(eps))


def test_log_kappa_moves_along(case: Case) -> None:
    """kappa(h ghat | h theta) = kappa(ghat | theta), without a Jacobian."""
    symmetry, theta, _, _, h = case
    group = symmetry.group
    kernel = normal_kernel(group, 0.5)
    log_kappa = lambda proxy, t: kernel.log_prob(group.compose(group.inverse(symmetry.pose(t)), proxy))
    proxy = group.compose(symmetry.pose(theta), kernel.sample(ROWS))
    moved = log_kappa(group.compose(h, proxy), symmetry.act_theta(h, theta))
    torch.testing.assert_close(moved, log_kappa(proxy, theta), atol=1e-5, rtol=1e-5)


def test_volumes_of_theta_by_autograd(case: Case) -> None:
    symmetry, theta, _, g, _ = case
    declared = symmetry.log_det_theta(g, theta)
    for i in range(10):
        one = slice(i, i + 1)
        act = lambda t, one=one: symmetry.act_theta(g[one], t[None])[0]
        found = torch.linalg.slogdet(torch.autograd.functional.jacobian(act, theta[i])).logabsdet
        torch.testing.assert_close(found, declared[i], atol=1e-7, rtol=0)


def test_volumes_of_x_by_autograd(case: Case) -> None:
    symmetry, _, x, g, _ = case
    one = {name: values[:1] for name, values in x.items()}
    total = 0.0
    for name in x:
        act = lambda v, name=name: symmetry.act_x(g[:1], {**one, name: v.reshape(one[name].shape)})[name].reshape(-1)
        matrix = torch.autograd.functional.jacobian(act, one[name].reshape(-1), vectorize=True)
        total += float(torch.linalg.slogdet(matrix).logabsdet)
    assert total == pytest.approx(float(symmetry.log_det_x(g[:1], one)), abs=1e-7)


def test_it_acts_on_x(case: Case, request: pytest.FixtureRequest) -> None:
    symmetry, _, x, g, h = case
    group, act = symmetry.group, symmetry.act_x
    resampled = any(name in request.node.name for name in RESAMPLED)
    atol = 5e-3 if resampled else 1e-6 if "image" in x else 1e-9
    for name, values in x.items():
        close = lambda a, b, atol=atol, name=name: torch.testing.assert_close(a[name], b[name], atol=atol, rtol=1e-7)
        close(act(group.identity(ROWS), x), x, 1e-12)
        close(act(group.inverse(g), act(g, x)), x)
        close(act(h, act(g, x)), act(group.compose(h, g), x))
        assert act(g, x)[name].shape == values.shape


def test_x_keeps_its_precision_and_what_is_not_moved(case: Case) -> None:
    symmetry, _, x, g, _ = case
    single = {name: values.float() for name, values in x.items()}
    moved = symmetry.act_x(g, single)
    for name, values in symmetry.act_x(g, x).items():
        assert moved[name].dtype == torch.float32
        torch.testing.assert_close(moved[name].double(), values, atol=1e-4, rtol=1e-4)
    if "n" in x:
        assert torch.equal(moved["n"], single["n"])


@pytest.mark.parametrize("size", [31, 32])
def test_shifts(size: int) -> None:
    x = torch.randn(ROWS, size, 3, dtype=torch.float64)
    bins = torch.empty(ROWS, 1, 1, dtype=torch.float64).uniform_(-80, 80)
    whole = torch.full((ROWS, 1, 1), 7.0, dtype=torch.float64)
    close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-11, rtol=0)
    close(shifted(x, whole, 1), x.roll(7, 1))
    close(shifted(x, -whole, 1), x.roll(-7, 1))
    close(shifted(shifted(x, bins, 1), -bins, 1), x)
    close(shifted(x, bins, 1).square().sum(1), x.square().sum(1))
    half = torch.full((ROWS, 1, 1), 0.5, dtype=torch.float64)
    close(shifted(shifted(x, half, 1), -half, 1), x)


def test_shifts_compose_but_for_the_nyquist_frequency() -> None:
    for size in (31, 32):
        x = torch.randn(ROWS, size, dtype=torch.float64)
        a, b = torch.rand(2, ROWS, 1, dtype=torch.float64) * 10
        left = torch.fft.rfft(shifted(shifted(x, a, 1), b, 1) - shifted(x, a + b, 1)).abs()
        assert (left[:, : (size + 1) // 2] < 1e-12).all()
    assert (left[:, -1] > 0.1).any()


def test_a_shift_of_a_band_limited_signal_is_the_signal_later() -> None:
    times = torch.arange(64, dtype=torch.float64)
    signal = lambda t: torch.sin(2 * math.pi * 3 * t / 64 + 0.3)
    bins = torch.tensor([[2.37]], dtype=torch.float64)
    torch.testing.assert_close(shifted(signal(times)[None], bins, 1)[0], signal(times - 2.37), atol=1e-12, rtol=0)


def test_a_quarter_turn_is_exact_and_goes_from_the_first_axis_to_the_second() -> None:
    image = torch.zeros(1, 5, 5, dtype=torch.float64)
    image[0, 2, 4] = 1.0  # along columns from the middle
    turned = TurnImage((2, 1))(torch.tensor([[math.pi / 2]], dtype=torch.float64), image)
    assert turned[0].argmax() == 4 * 5 + 2  # along rows
    torch.testing.assert_close(turned.sum(), image.sum())


def test_a_turn_keeps_white_noise_and_undoes_itself_where_splines_do_not() -> None:
    noise = torch.randn(200, 16, 16, dtype=torch.float64)
    angle = torch.full((200, 1), 0.6, dtype=torch.float64)
    turn = TurnImage((2, 1))
    turned = turn(angle, noise)
    torch.testing.assert_close(turned.square().sum((1, 2)), noise.square().sum((1, 2)))
    for any_angle in torch.linspace(-3.1, 3.1, 13).double():
        there = turn(any_angle.expand(200, 1), noise)
        torch.testing.assert_close(turn(-any_angle.expand(200, 1), there), noise, atol=1e-12, rtol=0)
    degrees = math.degrees(0.6)
    spline = lambda x, a: scipy.ndimage.rotate(x, a, axes=(2, 1), reshape=False, order=3, mode="grid-wrap")
    back = spline(spline(noise.numpy(), degrees), -degrees)
    middle = (slice(None), slice(4, 12), slice(4, 12))
    assert np.sqrt(np.mean((back - noise.numpy())[middle] ** 2)) > 0.1


def test_angles_stay_within_a_turn_of_the_middle_of_the_prior() -> None:
    prior, observables, declared = CASES["rotate points"]
    symmetry = build_symmetry(prior, observables, declared)
    theta = torch.from_numpy(prior.sample(500, np.random.default_rng(0)))
    moved = symmetry.act_theta(Rotations().element(10 * torch.randn(500, 1, dtype=torch.float64)), theta)
    assert prior.contains(moved).all()
    prior, observables, declared = CASES["rotate image and what is on it"]
    turned = build_symmetry(prior, observables, declared)
    theta = torch.from_numpy(prior.sample(500, np.random.default_rng(0)))
    g = Rotations().element(10 * torch.randn(500, 1, dtype=torch.float64))
    assert prior.contains(turned.act_theta(g, theta)).all()
    assert (wrapped(torch.tensor([3 * math.pi, -7.0])).abs() <= math.pi + 1e-6).all()


def test_a_symmetry_of_ones_own_passes_as_it_is() -> None:
    prior, observables, declared = CASES["product"]
    own = build_symmetry(prior, observables, declared)
    assert build_symmetry(prior, observables, own) is own


SERIES = Variables([Variable("x", (10,), dims=("time",)), Variable("s"), Variable("n", (10,), support=COUNT)])
TALL = Variables([Variable("image", (5, 6), dims=("row", "column"))])
SHIFT = {"by": "tau", "of": "x", "along": "time", "spacing": 1.0}
FREE = Prior({"tau": Uniform(0.0, 1.0), "b": Normal(0.0, 1.0), "c": Uniform(0.0, 1.0)})
TIED = Prior({"tau, b": MultivariateNormal(torch.zeros(2), torch.eye(2)), "c": Uniform(0.0, 1.0)})
BOTH = ("tau", "c")
AXES = ("column", "row")


@pytest.mark.parametrize(
    ("prior", "observables", "declared", "match"),
    [
        (FREE, SERIES, {}, "`symmetry` must name its components"),
        (FREE, SERIES, Shift(**SHIFT), "`symmetry` must name its components"),
        (FREE, SERIES, {"t": "tau"}, "`symmetry` of `t`: must be a declaration of simfer.simulators.symmetry"),
        (FREE, SERIES, {"t": Shift(**{**SHIFT, "by": "tua"})}, "no parameter `tua`; did you mean `tau`?"),
        (FREE, SERIES, {"t": Shift(**SHIFT, others=("d",))}, "no parameter `d`"),
        (FREE, SERIES, {"t": Shift(**{**SHIFT, "of": "y"})}, "no observable `y`; Known: n, s, x"),
        (FREE, SERIES, {"t": Shift(**{**SHIFT, "of": "s"})}, "`s` is a single number: it has no axis `time`"),
        (FREE, SERIES, {"t": Shift(**{**SHIFT, "of": "n"})}, "`n` holds whole numbers"),
        (FREE, SERIES, {"t": Shift(**{**SHIFT, "along": "tim"})}, "`x` has no axis `tim`; did you mean `time`?"),
        (FREE, SERIES, {"t": Shift(**{**SHIFT, "spacing": 0.0})}, "`spacing` must be a number other than 0"),
        (
            TIED,
            SERIES,
            {"t": Shift(**SHIFT)},
            "the prior ties `tau` to b: what carries a pose needs a prior of its own",
        ),
        (FREE, SERIES, {"t": Shift(**SHIFT), "u": Scale("tau", "x")}, "`tau` is moved by both `t` and `u`"),
        (FREE, SERIES, {"t": Scale("b", "x")}, "a factor must be positive, and the prior of `b` goes below 0"),
        (FREE, SERIES, {"t": Scale("c", "x", origin=0.0)}, "`origin` of a factor must be above 0"),
        (FREE, TALL, {"t": RotateImage("c", "image", AXES)}, "only a square image can be rotated; `image` has 6 × 5"),
        (FREE, TALL, {"t": MoveImage(BOTH, "image", ("row", "row"))}, "an image has two axes; got `row` twice"),
        (FREE, TALL, {"t": MovePoints(("tau",), "image", (7,))}, "`entries` must be 1 places in the last axis"),
        (FREE, TALL, {"t": RotatePoints(BOTH, "image")}, "must name one angle, or the three of a rotation vector"),
        (
            Prior({"a": Uniform(0.0, 7.0)}),
            IMAGE,
            {"t": RotateImage("a", "image", AXES)},
            "spans 7, more than a full turn",
        ),
        (Prior({"a": Normal(0.0, 1.0)}), IMAGE, {"t": RotateImage("a", "image", AXES)}, "spans inf, more than a full"),
        (
            Prior({"a": Uniform(0.0, 1.0), "b": Uniform(0.0, 7.0)}),
            IMAGE,
            {"t": RotateImage("a", "image", AXES, others=("b",))},
            "the prior of the angle `b` spans 7",
        ),
        (
            Prior({name: Uniform(-2.0, 2.0) for name in "abc"}),
            SET,
            {"t": RotatePoints(("a", "b", "c"), "set")},
            "the prior of the rotation vector `a`, `b`, `c` reaches a length of 3.464, and beyond π the same rotation has",
        ),
        (
            Prior({"a": Uniform(3.0, 3.2), "b": Uniform(0.0, 0.1), "c": Uniform(0.0, 0.1)}),
            SET,
            {"t": RotatePoints(("a", "b", "c"), "set")},
            "reaches a length of 3.203",
        ),
        (
            Prior({name: Normal(0.0, 0.5) for name in "abc"}),
            SET,
            {"t": RotatePoints(("a", "b", "c"), "set")},
            "give each a range within ±π/√3 = 1.814",
        ),
        (
            Prior({"a": Uniform(0.0, 1.0), **PLACE}),
            IMAGE,
            {"m": MoveImage(AXES, "image", AXES), "r": RotateImage("a", "image", AXES)},
            "moved and rotated by two components, which do not commute: declare one PlaneMotion",
        ),
    ],
)
def test_bad_declarations_are_named(prior: Prior, observables: Variables, declared: Any, match: str) -> None:
    with pytest.raises(SymmetryError) as raised:
        build_symmetry(prior, observables, declared)
    assert match in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
