r"""Functions that are applied to x before standardisation, each with the logarithm of its slope, and the choice among them.

A function acts on :math:`u = (x - c) / s`. One whose domain has an end goes on as its tangent from a point near that end,
the floor (for ``logit`` also the ceiling): it has one continuous slope, increases everywhere, and has a finite value for
whatever may be observed.

``rank`` is the rank-normal transform :math:`\Phi^{-1}(F(x))` with F the empirical cdf of training rows, linear between its
quantiles at :math:`\Phi(-3), \Phi(-2.75), \dots, \Phi(3)` and beyond the outermost ones; ties share the mean of their scores.
Van der Waerden (1952), Indagationes Mathematicae 55, 453–458.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.statistics import column_quantiles
from ..data.variables import Support
from .settings import XTransform

SCORES = torch.linspace(-3, 3, 25, dtype=torch.float64)
_LEVELS = 0.5 * (1 + torch.erf(SCORES / math.sqrt(2)))
_TANGENT_FROM = 0.1  # of the distance between the end of the domain and the training row nearest to it

NON_NORMAL = 0.2  # at least so much of the variance of normal scores must be left unexplained for a change by `auto`
GAIN = 0.5  # and at most so much of that after it

Scores = Float[Tensor, "score group"]
Values = Float[Tensor, "rows group"]


@dataclass(frozen=True, slots=True)
class Function:
    """An increasing function, the logarithm of its slope, the ends of its domain, and what of u it is meant for."""

    value: Callable[[Tensor], Tensor]
    log_slope: Callable[[Tensor], Tensor]
    low: float = -math.inf
    high: float = math.inf
    fits: Callable[[Tensor], Tensor] = torch.isfinite

    def __call__(self, u: Tensor) -> Tensor:
        return self.value(u)


def _root(u: Tensor) -> Tensor:
    """The square root, with slope 0 at 0, where counts are: an infinite one makes every gradient in x no number."""
    return torch.where(u == 0, 1.0, u).sqrt() * (u != 0)


FUNCTIONS: dict[XTransform, Function] = {
    "identity": Function(lambda u: u, torch.zeros_like),
    "log": Function(torch.log, lambda u: -torch.log(u), low=0.0, fits=lambda u: u > 0),
    "log1p": Function(torch.log1p, lambda u: -torch.log1p(u), low=-1.0, fits=lambda u: u > -1),
    "sqrt": Function(
        lambda u: u.sign() * _root(u.abs()), lambda u: -math.log(2) - 0.5 * u.abs().log(), fits=lambda u: u >= 0
    ),
    "arcsinh": Function(torch.arcsinh, lambda u: -torch.log(torch.hypot(u, torch.ones_like(u)))),
    "logit": Function(
        torch.logit,
        lambda u: -torch.log(u) - torch.log1p(-u),
        low=0.0,
        high=1.0,
        fits=lambda u: (u >= 0) & (u <= 1),
    ),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """What a function has learned, one number per entry or group: centre, scale, floor and ceiling (in units of u)."""

    centre: Tensor
    scale: Tensor
    floor: Tensor
    ceiling: Tensor

    @classmethod
    def plain(cls, columns: int) -> Shape:
        """The function as it is, not defined outside its domain."""
        ends = (0.0, 1.0, -math.inf, math.inf)
        return cls(*(torch.full((columns,), end, dtype=torch.float64) for end in ends))

    @classmethod
    def of(cls, table: Float[Tensor, "4 column"]) -> Shape:
        return cls(*table)

    def table(self) -> Float[Tensor, "4 column"]:
        return torch.stack([self.centre, self.scale, self.floor, self.ceiling])

    def inside(self, name: XTransform, x: Tensor) -> tuple[Tensor, Tensor]:
        """u, and u moved to where the function itself is used."""
        function, u = FUNCTIONS[name], (x - self.centre) / self.scale
        inner = u if math.isinf(function.low) else torch.maximum(u, self.floor)
        return u, inner if math.isinf(function.high) else torch.minimum(inner, self.ceiling)


def transformed(name: XTransform, x: Float[Tensor, "rows column"], shape: Shape) -> Float[Tensor, "rows column"]:
    """T(x); NaN only where x is, if the shape was learned."""
    function = FUNCTIONS[name]
    u, inner = shape.inside(name, x)
    value = function.value(inner)
    if math.isfinite(function.low):
        value = value + (u - shape.floor).clamp(max=0) * _slope(function, shape.floor)
    if math.isfinite(function.high):
        value = value + (u - shape.ceiling).clamp(min=0) * _slope(function, shape.ceiling)
    return value


def _slope(function: Function, end: Tensor) -> Tensor:
    """Of the tangent at floor or ceiling; 0 where there is none."""
    return torch.where(end.isfinite(), function.log_slope(end).exp(), 0.0)


def log_slope(name: XTransform, x: Float[Tensor, "rows column"], shape: Shape) -> Float[Tensor, "rows column"]:
    """log dT/dx."""
    _, inner = shape.inside(name, x)
    return FUNCTIONS[name].log_slope(inner) - shape.scale.log()


def learn(name: XTransform, values: Values, support: Support) -> Shape:
    """What a function needs to know, from training rows; NaN marks what is not there."""
    plain = Shape.plain(values.shape[1])
    centre, scale = plain.centre, plain.scale
    if name == "identity":
        scale = _power_of_two(values)
    if name == "arcsinh":
        centre, scale = _middle(values)
    if name == "logit":
        centre, scale = centre + support.low, scale * (support.high - support.low)
    function = FUNCTIONS[name]
    u = (values - centre) / scale
    floor, ceiling = plain.floor, plain.ceiling
    if math.isfinite(function.low):
        least = torch.where(u > function.low, u, math.inf).amin(0)
        floor = function.low + _TANGENT_FROM * (least.where(least.isfinite(), function.low + 1) - function.low)
    if math.isfinite(function.high):
        most = torch.where(u < function.high, u, -math.inf).amax(0)
        ceiling = function.high - _TANGENT_FROM * (function.high - most.where(most.isfinite(), function.high))
        ceiling = ceiling.clamp(max=1 - 1e-12)
        floor = torch.minimum(floor, ceiling)
    return Shape(centre, scale, floor, ceiling)


def knots(values: Values) -> Float[Tensor, "2 score group"]:
    """Abscissae and normal scores of the rank-normal transform, both increasing, from training rows."""
    quantiles = column_quantiles(values, _LEVELS)
    return torch.stack([torch.stack(_distinct(column), 0) for column in quantiles.T], -1)


def ranked(x: Float[Tensor, "rows column"], table: Float[Tensor, "2 score column"]) -> Float[Tensor, "rows column"]:
    """Normal scores, linear between knots and beyond them."""
    (x0, x1), (z0, z1) = _around(x, table)
    return z0 + (x - x0) * ((z1 - z0) / (x1 - x0))


def ranked_log_slope(x: Float[Tensor, "rows column"], table: Float[Tensor, "2 score column"]) -> Tensor:
    """log dT/dx of `ranked`."""
    (x0, x1), (z0, z1) = _around(x, table)
    return (z1 - z0).log() - (x1 - x0).log()


def choose(values: Values, support: Support, plain: XTransform) -> XTransform:
    """The function that makes the values most nearly normal, if it is much better at that than the ``plain`` one.

    Normality of a group is the squared correlation between normal scores and the transformed quantiles at these (a
    probability plot; Filliben, 1975, Technometrics 17, 111–117), averaged over groups that are not constant. What has
    bounds on both sides keeps the plain function: nothing in it can be far away.
    """
    if math.isfinite(support.high - support.low):
        return plain
    quantiles = column_quantiles(values, _LEVELS)
    varied = quantiles[-1] > quantiles[0]
    if not varied.any():
        return plain
    values, quantiles = values[:, varied], quantiles[:, varied]
    left = {
        name: _unexplained(name, values, quantiles, support)
        for name in {plain: 0, **dict.fromkeys(_candidates(values, support))}
    }
    best = min(left, key=lambda name: left[name])
    return best if left[plain] > NON_NORMAL and left[best] < GAIN * left[plain] else plain


def _candidates(values: Values, support: Support) -> Iterator[XTransform]:
    least = float(values.nan_to_num(nan=math.inf).min())
    yield "identity"
    if least > 0:
        yield "log"
    if least >= 0:
        yield "sqrt"
    if least >= 0 and support.integer:
        yield "log1p"
    yield "arcsinh"


def _unexplained(name: XTransform, values: Values, quantiles: Scores, support: Support) -> float:
    """1 - r² of the probability plot."""
    y = transformed(name, quantiles, learn(name, values, support))
    y = y - y.mean(0)
    y = y / y.abs().amax(0).clamp(min=1e-300)
    r = (y * SCORES[:, None]).sum(0) / (y.square().sum(0) * SCORES.square().sum()).sqrt().clamp(min=1e-300)
    return float((1 - r.square()).mean())


def _middle(values: Values) -> tuple[Tensor, Tensor]:
    """Centre and scale of the bulk: the median, or 0 where nothing is negative, and the median distance from it."""
    half = torch.tensor([0.5], dtype=torch.float64)
    middle = column_quantiles(values, half)[0]
    centre = torch.where(values.nan_to_num(nan=0.0).amin(0) >= 0, 0.0, middle)
    distance = (values - centre).abs()
    scale = column_quantiles(distance, half)[0]
    widest = distance.nan_to_num(nan=0.0).amax(0)
    scale = torch.where(scale > 1e-12 * widest, scale, widest)
    return centre, torch.where(scale > 0, scale, 1.0)


def _power_of_two(values: Values) -> Tensor:
    """1, or the order of magnitude of values whose squares float64 cannot hold."""
    largest = values.nan_to_num(nan=0.0).abs().amax(0)
    usual = (largest == 0) | ((largest > 1e-100) & (largest < 1e100))
    return torch.where(usual, 1.0, torch.exp2(largest.where(~usual, 1.0).log2().floor()))


def _distinct(quantiles: Float[Tensor, "score"]) -> tuple[Tensor, Tensor]:
    """Knots of one group: equal quantiles become one, and the last segment is prolonged to have as many knots as ever."""
    x, inverse = quantiles.unique(return_inverse=True)
    total = torch.zeros(len(x), dtype=torch.float64).index_add(0, inverse, SCORES)
    z = total / torch.bincount(inverse)
    if len(x) == 1:
        x, z = torch.cat([x, x + x.abs().clamp(min=1.0)]), torch.tensor([0.0, 1.0], dtype=torch.float64)
    more = torch.arange(1, len(SCORES) - len(x) + 1, dtype=torch.float64)
    return (
        torch.cat([x, x[-1] + more * (x[-1] - x[-2])]),
        torch.cat([z, z[-1] + more * (z[-1] - z[-2])]),
    )


def _around(x: Tensor, table: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The knots on either side of x, of the outermost segment beyond the knots."""
    places, scores = table[0].T.contiguous(), table[1].T
    right = torch.searchsorted(places, x.detach().T.contiguous()).clamp(1, len(SCORES) - 1)
    return (
        (places.gather(1, right - 1).T, places.gather(1, right).T),
        (scores.gather(1, right - 1).T, scores.gather(1, right).T),
    )
