r"""A posterior where some parameters are known, and of some parameters whatever the others are.

With :math:`\theta = (a, b)`, one integral gives both:

.. math:: q(b | a, x) = \frac{q(a, b | x)}{Z(a)}, \qquad q(a | x) = Z(a) = \int q(a, b | x)\, db .

Each free parameter goes to the real line by the logarithm or logit that its support asks for; there, coordinates are
centred and whitened by the linear regression of the free parameters on the known ones among draws of the posterior. In one
or two of them the density is summed on a grid that is moved, enlarged and zoomed until it holds all the mass; half of the
grid must give the same sum within a percent. In more, draws of Student's t are weighted by the density (importance
sampling, the proposal adapted to the weighted draws; Cappé et al. 2008, https://arxiv.org/abs/0710.4242) and refused
where their effective number or Pareto k says that the sum cannot be trusted. No Markov chains, nothing smoothed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints

from ..data.errors import ShapeError, UnsupportedError, did_you_mean
from ..data.variables import Support
from .base import Posterior, seeded
from .importance import LARGEST_PARETO_K, LEAST_ESS, pareto_k

_DRAWS = 2000
_SIDE = {1: 2049, 2: 257}  # points of a grid along one axis; odd, so that half of it has its ends
_WIDTH = 8.0  # of the first grid, in residual standard deviations to either side
_DEPTH = 20.0  # the density is taken for 0 where it is exp(-20) of its peak
_ZOOMS = 16
_SAME = 0.01
_PROPOSALS, _ADAPTATIONS = 20_000, 4
_DEGREES, _INFLATION = 5.0, 1.2  # of the proposal: heavier tails than the density's, and wider

Density = Callable[[Tensor], Tensor]


class Conditional:
    """q(free | given, x), as `condition` makes it.

    Attributes:
        names: The free parameters, in the order of the posterior.
        given: The known ones.
        method: ``grid`` or ``importance``.
        log_normaliser: log q(given | x).
        ess: Effective number of weighted draws; infinite on a grid.
    """

    def __init__(self, cut: Cut, given: Mapping[str, float], integral: Grid | Weighted) -> None:
        self.names, self.given = cut.slice.free, dict(given)
        self.method: Literal["grid", "importance"] = "grid" if isinstance(integral, Grid) else "importance"
        self.log_normaliser, self.ess = integral.log_sum, integral.ess
        self._cut, self._integral = cut, integral

    def sample(self, sample_shape: Sequence[int] = (), *, seed: int | None = None) -> Float[Tensor, "*sample free"]:
        """Draws of the free parameters; those of ``importance`` are resampled and may repeat."""
        with seeded(seed):
            theta, _ = self._cut.theta(self._integral.sample(math.prod(sample_shape), self._cut.log_density))
        return theta.reshape(*sample_shape, len(self.names))

    def log_prob(self, theta: Float[Tensor, "*batch free"]) -> Float[Tensor, "*batch"]:
        """Log density of the free parameters; -inf outside the support."""
        rows, shape = _rows(theta, self.names)
        return (self._cut.joint(rows) - self.log_normaliser).reshape(shape)


class Marginal:
    """q(some parameters | x), the others integrated over.

    Args:
        posterior: Of all.
        names: Which.
        x: One observation.

    Raises:
        ShapeError: No such parameter, or none is left out.
        UnsupportedError: The density is too rough to be integrated.
    """

    def __init__(self, posterior: Posterior, names: tuple[str, ...], x: dict[str, Tensor]) -> None:
        _require_smooth("marginal", posterior)
        self.names = names
        self._slice = Slice(posterior, names, x, 0)

    def sample(self, sample_shape: Sequence[int] = (), *, seed: int | None = None) -> Float[Tensor, "*sample some"]:
        """Draws of the posterior, without the other parameters."""
        posterior = self._slice.posterior
        draws = posterior.sample(sample_shape, self._slice.x, seed=seed)
        return draws[..., [posterior.parameters.names.index(name) for name in self.names]]

    def log_prob(self, theta: Float[Tensor, "*batch some"]) -> Float[Tensor, "*batch"]:
        """Log density, by one integral for each row; where three parameters or more are integrated over, within some 5 %.

        Raises:
            UnsupportedError: An integral cannot be trusted.
        """
        rows, shape = _rows(theta, self.names)
        order = [self.names.index(name) for name in self._slice.known]
        sums = [self._slice.at(row).integrate(0).log_sum for row in rows[:, order]]
        return torch.tensor(sums, dtype=torch.float64).reshape(shape)


def condition(
    posterior: Posterior, given: Mapping[str, float], x: dict[str, Tensor], *, seed: int | None = 0
) -> Conditional:
    """The density of the other parameters where those in ``given`` have these values.

    Raises:
        ShapeError: No such parameter, or none is left.
        UnsupportedError: No mass at these values, or an integral that cannot be trusted.
    """
    _require_smooth("conditional", posterior)
    slice_ = Slice(posterior, tuple(given), x, seed)
    cut = slice_.at(torch.tensor([float(given[name]) for name in slice_.known], dtype=torch.float64))
    integral = cut.integrate(seed)
    if not math.isfinite(integral.log_sum):
        shown = ", ".join(f"{name} = {float(value):g}" for name, value in given.items())
        raise UnsupportedError(
            f"`given` must lie where the posterior has mass; it has none at {shown} for this observation"
        )
    return Conditional(cut, given, integral)


class Slice:
    """The posterior of one observation, some of its parameters to be known.

    Args:
        posterior: Of all.
        known: Which are known.
        x: One observation.
        seed: Of the draws that give the coordinates.

    Raises:
        ShapeError: A name that is no parameter, or no parameter on one of the sides.
    """

    def __init__(self, posterior: Posterior, known: tuple[str, ...], x: dict[str, Tensor], seed: int | None) -> None:
        self.posterior, self.x = posterior, x
        names = posterior.parameters.names
        for name in known:
            if name not in names:
                raise ShapeError(f"no parameter `{name}`; {did_you_mean(name, names)}")
        self.known = tuple(name for name in names if name in known)
        self.free = tuple(name for name in names if name not in known)
        if not self.known or not self.free:
            raise ShapeError(f"some of {', '.join(names)} must be named, and not all; got {', '.join(known) or 'none'}")
        self.index = torch.tensor([names.index(name) for name in (*self.free, *self.known)])
        self.lines = [_line(posterior.parameters[name].support) for name in (*self.free, *self.known)]
        draws = posterior.sample((_DRAWS,), x, seed=seed).cpu()[:, self.index]
        self._fit(torch.stack([line.inv(column) for line, column in zip(self.lines, draws.T, strict=True)], -1))

    def _fit(self, w: Float[Tensor, "draw parameter"]) -> None:
        """Regression of the free coordinates on the known ones."""
        free, known = w.split([len(self.free), len(self.known)], -1)
        self._centres = free.mean(0), known.mean(0)
        self._slopes = torch.linalg.lstsq(known - self._centres[1], free - self._centres[0]).solution
        rest = free - self._centres[0] - (known - self._centres[1]) @ self._slopes
        self.factor = torch.linalg.cholesky(rest.T @ rest / len(rest) + torch.diag(1e-9 * free.var(0) + 1e-300))

    def at(self, values: Float[Tensor, "known"]) -> Cut:
        """Where the known parameters have these values."""
        lines = self.lines[len(self.free) :]
        known = torch.stack([line.inv(value) for line, value in zip(lines, values, strict=True)])
        return Cut(self, values, self._centres[0] + (known - self._centres[1]) @ self._slopes)


@dataclass(frozen=True, slots=True)
class Cut:
    """The density of the free parameters, up to its integral, in coordinates v in which it is about N(0, I).

    Attributes:
        slice: Of which posterior.
        values: Of the known parameters.
        centre: Of the free parameters on the real line.
    """

    slice: Slice
    values: Float[Tensor, "known"]
    centre: Float[Tensor, "free"]

    def theta(self, v: Float[Tensor, "row free"]) -> tuple[Float[Tensor, "row free"], Float[Tensor, "row"]]:
        """The free parameters at v, and log |dtheta / dv|."""
        columns = (self.centre + v @ self.slice.factor.T).unbind(-1)
        lines = self.slice.lines[: len(columns)]
        theta = [line(column) for line, column in zip(lines, columns, strict=True)]
        log_det = self.slice.factor.diagonal().log().sum().expand(len(v))
        for line, column, value in zip(lines, columns, theta, strict=True):
            log_det = log_det + line.log_abs_det_jacobian(column, value)
        return torch.stack(theta, -1), log_det

    def joint(self, free: Float[Tensor, "row free"]) -> Float[Tensor, "row"]:
        """log q of all parameters; -inf outside the support."""
        theta = torch.empty(len(free), len(self.slice.index), dtype=torch.float64)
        theta[:, self.slice.index] = torch.cat([free, self.values.expand(len(free), -1)], -1)
        lp = self.slice.posterior.log_prob(theta, self.slice.x).detach().cpu().double()
        return lp.nan_to_num(nan=-math.inf, neginf=-math.inf)

    def log_density(self, v: Float[Tensor, "row free"]) -> Float[Tensor, "row"]:
        """log of what is integrated over v."""
        theta, log_det = self.theta(v)
        return self.joint(theta) + log_det

    def integrate(self, seed: int | None) -> Grid | Weighted:
        """The integral over v; its logarithm is -inf where there is nothing.

        Raises:
            UnsupportedError: It cannot be trusted.
        """
        supports = [self.slice.posterior.parameters[name].support for name in self.slice.known]
        inside = all(s.low < value < s.high for s, value in zip(supports, self.values.tolist(), strict=True))
        if not inside:
            return Grid([], torch.zeros(0), -math.inf)
        dims = len(self.slice.free)
        if dims in _SIDE:
            return _on_grid(self.log_density, dims)
        with seeded(seed):
            return _weighted(self.log_density, dims)


@dataclass(frozen=True, slots=True)
class Grid:
    """A density on the points of a grid.

    Attributes:
        axes: Points along each axis, equally spaced.
        log_density: At all points, ``(side, ...)``.
        log_sum: log of its integral.
    """

    axes: list[Tensor]
    log_density: Tensor
    log_sum: float
    ess: float = math.inf

    def sample(self, rows: int, density: Density) -> Float[Tensor, "row axis"]:
        """Draws, uniform in the cell around each point."""
        weights = (self.log_density - self.log_density.max()).exp().flatten()
        chosen = torch.multinomial(weights, rows, replacement=True)
        points = torch.cartesian_prod(*self.axes).reshape(-1, len(self.axes))[chosen]
        steps = torch.stack([axis[1] - axis[0] for axis in self.axes])
        return points + steps * (torch.rand_like(points) - 0.5)


def _on_grid(density: Density, dims: int) -> Grid:
    low, high = torch.full((dims,), -_WIDTH, dtype=torch.float64), torch.full((dims,), _WIDTH, dtype=torch.float64)
    for _ in range(_ZOOMS):
        axes = [
            torch.linspace(*ends, _SIDE[dims], dtype=torch.float64)
            for ends in zip(low.tolist(), high.tolist(), strict=True)
        ]
        values = density(torch.cartesian_prod(*axes).reshape(-1, dims)).reshape([_SIDE[dims]] * dims)
        if not values.isfinite().any():
            low, high = 2 * low, 2 * high
            continue
        box = _box(values > values.max() - _DEPTH)
        if _fits(box, _SIDE[dims]):
            return _summed(axes, values)
        low, high = _moved(box, axes)
    if not values.isfinite().any():
        return Grid(axes, values, -math.inf)
    raise UnsupportedError("the conditional density spreads too far, or is too sharp, to be summed on a grid")


def _box(near: Tensor) -> list[tuple[int, int]]:
    """First and last index with any mass along each axis."""
    found = near.nonzero()
    return list(zip(found.amin(0).tolist(), found.amax(0).tolist(), strict=True))


def _fits(box: list[tuple[int, int]], side: int) -> bool:
    """Whether the mass stays off the edges and fills a third of every axis."""
    return all(first > 0 and last < side - 1 and last - first > side / 3 for first, last in box)


def _moved(box: list[tuple[int, int]], axes: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Ends of a grid around the mass: some points further where it ends, a whole width where it does not."""
    ends = []
    for (first, last), axis in zip(box, axes, strict=True):
        step, width = axis[1] - axis[0], axis[-1] - axis[0]
        ends.append(
            (axis[first] - (3 * step if first else width), axis[last] + (3 * step if last < len(axis) - 1 else width))
        )
    low, high = (torch.stack(side) for side in zip(*ends, strict=True))
    return low, high


def _summed(axes: list[Tensor], values: Tensor) -> Grid:
    """The integral, which half of the grid must give as well."""
    log_cell = sum(math.log(axis[1] - axis[0]) for axis in axes)
    whole = float(values.flatten().logsumexp(0)) + log_cell
    half = values[(slice(None, None, 2),) * len(axes)]
    coarse = float(half.flatten().logsumexp(0)) + log_cell + len(axes) * math.log(2)
    if abs(coarse - whole) > _SAME:
        raise UnsupportedError(
            f"the conditional density is too sharp for a grid of {' × '.join(map(str, values.shape))} points: "
            f"half of them give an integral {math.expm1(coarse - whole):+.1%} apart"
        )
    return Grid(axes, values, whole)


@dataclass(frozen=True, slots=True)
class Weighted:
    """A density known by weighted draws of Student's t.

    Attributes:
        loc: Its centre.
        factor: Its scale matrix, as a Cholesky factor.
        log_sum: log of the integral of the density.
        ess: Effective number of draws.
    """

    loc: Float[Tensor, "axis"]
    factor: Float[Tensor, "axis axis"]
    log_sum: float
    ess: float

    def sample(self, rows: int, density: Density) -> Float[Tensor, "row axis"]:
        """Systematic resampling of fresh proposals, enough for ``rows`` effective ones or forty per row."""
        needed = math.ceil(2 * rows * _PROPOSALS / self.ess)
        v, log_weights = _proposed(density, self.loc, self.factor, max(_PROPOSALS, min(needed, 40 * rows)))
        edges = log_weights.softmax(0).cumsum(0)
        points = (torch.rand((), dtype=torch.float64) + torch.arange(rows)) / rows
        chosen = torch.searchsorted(edges, points * edges[-1], right=True).clamp(max=len(edges) - 1)
        return v[chosen[torch.randperm(rows)]]


def _weighted(density: Density, dims: int) -> Weighted:
    loc, factor = torch.zeros(dims, dtype=torch.float64), _INFLATION * torch.eye(dims, dtype=torch.float64)
    for _ in range(_ADAPTATIONS):
        v, log_weights = _proposed(density, loc, factor, _PROPOSALS)
        if not log_weights.isfinite().any():
            return Weighted(loc, factor, -math.inf, 0.0)
        loc, factor = _adapted(v, log_weights)
    _, log_weights = _proposed(density, loc, factor, _PROPOSALS)
    ess, k = _ess(log_weights), pareto_k(log_weights.numpy())
    if ess < LEAST_ESS or k > LARGEST_PARETO_K:
        raise UnsupportedError(
            f"the conditional density cannot be trusted: {ess:.0f} of {_PROPOSALS} weighted draws are effective "
            f"({LEAST_ESS:.0f} are needed), Pareto k = {k:.2f} (at most {LARGEST_PARETO_K}): fix more parameters"
        )
    return Weighted(loc, factor, float(log_weights.logsumexp(0)) - math.log(_PROPOSALS), ess)


def _adapted(v: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and widened Cholesky factor of weighted draws, the weights flattened until enough of them count."""
    while _ess(log_weights) < 10 * v.shape[-1]:
        log_weights = log_weights / 2
    weights = log_weights.softmax(0)
    loc = weights @ v
    covariance = (v - loc).T @ (weights[:, None] * (v - loc))
    return loc, _INFLATION * torch.linalg.cholesky(covariance + 1e-12 * torch.eye(len(loc), dtype=v.dtype))


def _proposed(density: Density, loc: Tensor, factor: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Draws of Student's t and the logarithms of their weights."""
    dims = len(loc)
    chi2 = torch.distributions.Chi2(torch.tensor(_DEGREES, dtype=torch.float64)).sample((rows, 1))
    standard = torch.randn(rows, dims, dtype=torch.float64) / (chi2 / _DEGREES).sqrt()
    v = loc + standard @ factor.T
    log_t = -0.5 * (_DEGREES + dims) * torch.log1p(standard.square().sum(-1) / _DEGREES)
    constant = (
        math.lgamma(0.5 * (_DEGREES + dims)) - math.lgamma(0.5 * _DEGREES) - 0.5 * dims * math.log(_DEGREES * math.pi)
    )
    return v, density(v) - log_t - constant + factor.diagonal().log().sum()


def _ess(log_weights: Tensor) -> float:
    return float(1 / log_weights.softmax(0).square().sum())


def _require_smooth(what: str, posterior: Posterior) -> None:
    if not posterior.differentiable:
        raise UnsupportedError(
            f"a {what} density needs one that can be integrated, and that of {type(posterior).__name__} is a mean over random "
            "poses: take columns of `sample`, or ask a network that was trained without `symmetry` or with `symmetry: {by: augmentation}`"
        )


def _rows(theta: Tensor, names: tuple[str, ...]) -> tuple[Tensor, torch.Size]:
    theta = torch.as_tensor(theta).double()
    if theta.shape[-1:] != (len(names),):
        raise ShapeError(f"`theta` must have {', '.join(names)} in its last axis; got shape {tuple(theta.shape)}")
    return theta.reshape(-1, len(names)), theta.shape[:-1]


def _line(support: Support) -> Transform:
    """From the real line to a support."""
    bounded = math.isfinite(support.low), math.isfinite(support.high)
    if all(bounded):
        return biject_to(constraints.interval(support.low, support.high))
    if not any(bounded):
        return biject_to(constraints.real)
    return biject_to(constraints.greater_than(support.low) if bounded[0] else constraints.less_than(support.high))
