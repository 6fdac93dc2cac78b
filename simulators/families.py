r"""Univariate families a prior is made of, each with a stable bijection to N(0, 1).

The bijection is :math:`z = \Phi^{-1}(F(\theta))`. Far in the upper tail F rounds to 1, so the smaller of F and
:math:`1 - F` is inverted, each computed without cancellation. Values come from torch where the formula is short and
from scipy elsewhere; derivatives of every order come from the densities, :math:`dz/d\theta = p(\theta) / \phi(z)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy  # `scipy.stats` takes half a second to import: here when a prior first asks for it
import torch
import torch.distributions as D
from scipy.special import ndtr
from torch import Tensor
from torch.distributions import constraints

_SQRT2 = math.sqrt(2.0)
_FAR = 25.0  # standard deviations of the prior: beyond, the density of a Cauchy overflows


class TruncatedNormal(D.Distribution):
    """Normal(loc, scale) restricted to [low, high]; either bound may be infinite."""

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(
        self,
        loc: float | Tensor,
        scale: float | Tensor,
        low: float | Tensor = -math.inf,
        high: float | Tensor = math.inf,
        validate_args: bool | None = None,
    ) -> None:
        tensors = [torch.as_tensor(value, dtype=torch.float64) for value in (loc, scale, low, high)]
        self.loc, self.scale, self.low, self.high = torch.broadcast_tensors(*tensors)
        super().__init__(self.loc.shape, validate_args=validate_args)
        if not (self.low < self.high).all():
            raise ValueError(f"TruncatedNormal needs low < high; got low={_show(self.low)}, high={_show(self.high)}")
        self._alpha, self._beta = (self.low - self.loc) / self.scale, (self.high - self.loc) / self.scale
        self._mass = _normal_mass(self._alpha, self._beta)
        if not (self._mass > 0).all():
            raise ValueError(
                f"TruncatedNormal has no mass between low={_show(self.low)} and high={_show(self.high)} in double precision"
            )

    @property
    def support(self) -> Any:
        return constraints.interval(self.low, self.high)

    def log_prob(self, value: Tensor) -> Tensor:
        xi = (value - self.loc) / self.scale
        inside = (value >= self.low) & (value <= self.high)
        density = log_phi(xi) - self.scale.log() - self._mass.log()
        return torch.where(inside, density, -math.inf)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        z = torch.randn(torch.Size(sample_shape) + self.batch_shape, dtype=torch.float64)
        return _from_truncated(self, z)


class LogUniform(D.Distribution):
    """Density proportional to 1 / value on [low, high]."""

    arg_constraints: ClassVar[dict[str, Any]] = {"low": constraints.positive, "high": constraints.positive}

    def __init__(self, low: float | Tensor, high: float | Tensor, validate_args: bool | None = None) -> None:
        tensors = [torch.as_tensor(value, dtype=torch.float64) for value in (low, high)]
        self.low, self.high = torch.broadcast_tensors(*tensors)
        super().__init__(self.low.shape, validate_args=validate_args)
        if not (self.low < self.high).all():
            raise ValueError(f"LogUniform needs low < high; got low={_show(self.low)}, high={_show(self.high)}")

    @property
    def support(self) -> Any:
        return constraints.interval(self.low, self.high)

    def log_prob(self, value: Tensor) -> Tensor:
        inside = (value >= self.low) & (value <= self.high)
        return torch.where(inside, -value.log() - (self.high / self.low).log().log(), -math.inf)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        z = torch.randn(torch.Size(sample_shape) + self.batch_shape, dtype=torch.float64)
        return _from_log_uniform(self, z)


class GeneralizedPareto(D.Distribution):
    """Excesses over ``loc`` with tail index ``concentration``; bounded above where that is negative.

    torch's class of this name compares float64 arguments with a float32 zero and raises.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.real,
        "scale": constraints.positive,
        "concentration": constraints.real,
    }

    def __init__(
        self,
        loc: float | Tensor,
        scale: float | Tensor,
        concentration: float | Tensor,
        validate_args: bool | None = None,
    ) -> None:
        tensors = [torch.as_tensor(value, dtype=torch.float64) for value in (loc, scale, concentration)]
        self.loc, self.scale, self.concentration = torch.broadcast_tensors(*tensors)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        bounded = self.concentration < 0
        longest = self.scale / torch.where(bounded, -self.concentration, 1.0)
        return constraints.interval(self.loc, torch.where(bounded, self.loc + longest, math.inf))

    def log_prob(self, value: Tensor) -> Tensor:
        inside = (value >= self.loc) & (value <= self.support.upper_bound)
        density = (1 + self.concentration) * self.log_survival(value) - self.scale.log()
        return torch.where(inside, density, -math.inf)

    def log_survival(self, value: Tensor) -> Tensor:
        """log P(theta > value)."""
        xi, heavy = (value - self.loc) / self.scale, self.concentration != 0
        shape = torch.where(heavy, self.concentration, 1.0)
        return torch.where(heavy, -torch.log1p(shape * xi) / shape, -xi)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        z = torch.randn(torch.Size(sample_shape) + self.batch_shape, dtype=torch.float64)
        return _from_generalized_pareto(self, z)


class Kumaraswamy(D.Kumaraswamy):
    """torch's, whose own density goes through 1 - theta^a and is 0 where that rounds to 1."""

    def log_prob(self, value: Tensor) -> Tensor:
        a, b = self.concentration1, self.concentration0
        return a.log() + b.log() + (a - 1) * value.log() + (b - 1) * torch.log1p(-(value**a))


def relaxed_bernoulli(temperature: Tensor, probs: Tensor, validate_args: bool | None = None) -> D.RelaxedBernoulli:
    """torch's, which takes a negative temperature without a word."""
    if validate_args and not (temperature > 0).all():
        raise ValueError("`temperature` must satisfy GreaterThan(lower_bound=0.0)")
    return D.RelaxedBernoulli(temperature, probs, validate_args=validate_args)


Values = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Family:
    """One family: its distribution, the names of its arguments, and the two directions of its bijection."""

    distribution: Callable[..., D.Distribution]
    arguments: tuple[str, ...]
    to_normal: Values
    from_normal: Values
    in_torch: bool = True  # whether both directions are torch operations, which a program for torch alone can hold


def _show(values: Tensor) -> str:
    return f"{values.flatten()[0].item():g}"


def log_phi(z: Tensor) -> Tensor:
    """Log density of N(0, 1)."""
    return -0.5 * z**2 - 0.5 * math.log(2 * math.pi)


def _ndtr(z: Tensor) -> Tensor:
    """Phi(z). torch's own is 1 + erf, which is 0 below z = -8.3."""
    return 0.5 * torch.erfc(-z / _SQRT2)


def _normal_mass(low: Tensor, high: Tensor) -> Tensor:
    """P(low < N(0,1) < high), without cancellation in the upper tail."""
    return torch.where(low > 0, _ndtr(-low) - _ndtr(-high), _ndtr(high) - _ndtr(low))


def from_tails(cdf: Tensor, sf: Tensor) -> Tensor:
    """z from F and 1 - F, each accurate where it is small; finite even where it has rounded to 0."""
    lower = cdf < sf
    z = torch.special.ndtri(torch.where(lower, cdf, sf).clamp(min=torch.finfo(torch.float64).tiny))
    return torch.where(lower, z, -z)


def _to_uniform(d: D.Uniform, theta: Tensor) -> Tensor:
    width = d.high - d.low
    return from_tails((theta - d.low) / width, (d.high - theta) / width)


def _from_uniform(d: D.Uniform, z: Tensor) -> Tensor:
    step = (d.high - d.low) * _ndtr(-z.abs())
    return torch.where(z < 0, d.low + step, d.high - step)


def _to_log_uniform(d: LogUniform, theta: Tensor) -> Tensor:
    width = (d.high / d.low).log()
    return from_tails((theta / d.low).log() / width, (d.high / theta).log() / width)


def _from_log_uniform(d: LogUniform, z: Tensor) -> Tensor:
    step = (d.high / d.low).log() * _ndtr(-z.abs())
    return torch.where(z < 0, d.low * step.exp(), d.high * (-step).exp())


def _to_exponential(d: D.Exponential, theta: Tensor) -> Tensor:
    scaled = -d.rate * theta
    return from_tails(-torch.expm1(scaled), scaled.exp())


def _to_half_normal(d: D.HalfNormal, theta: Tensor) -> Tensor:
    xi = theta / d.scale
    return from_tails(torch.erf(xi / _SQRT2), 2 * _ndtr(-xi))


def _from_half_normal(d: D.HalfNormal, z: Tensor) -> Tensor:
    tail = _ndtr(-z.abs())
    return d.scale * torch.where(z < 0, _SQRT2 * torch.erfinv(tail), -torch.special.ndtri(tail / 2))


def _to_truncated(d: TruncatedNormal, theta: Tensor) -> Tensor:
    xi = (theta - d.loc) / d.scale
    return from_tails(_normal_mass(d._alpha, xi) / d._mass, _normal_mass(xi, d._beta) / d._mass)


def _from_truncated(d: TruncatedNormal, z: Tensor) -> Tensor:
    tail = _ndtr(-z.abs()) * d._mass
    lower = _quantile_above(d._alpha, tail)
    upper = -_quantile_above(-d._beta, tail)
    return d.loc + d.scale * torch.where(z < 0, lower, upper)


def _quantile_above(start: Tensor, mass: Tensor) -> Tensor:
    """The xi with P(start < N(0,1) < xi) = mass."""
    ndtri = torch.special.ndtri
    below = _ndtr(start) + mass
    return torch.where(below < 0.5, ndtri(below), -ndtri(_ndtr(-start) - mass))


def _to_generalized_pareto(d: GeneralizedPareto, theta: Tensor) -> Tensor:
    log_survival = d.log_survival(theta)
    return from_tails(-torch.expm1(log_survival), log_survival.exp())


def _from_generalized_pareto(d: GeneralizedPareto, z: Tensor) -> Tensor:
    log_survival, heavy = torch.special.log_ndtr(-z), d.concentration != 0
    shape = torch.where(heavy, d.concentration, 1.0)
    return d.loc + d.scale * torch.where(heavy, torch.expm1(-shape * log_survival) / shape, -log_survival)


def _to_kumaraswamy(d: D.Kumaraswamy, theta: Tensor) -> Tensor:
    log_survival = d.concentration0 * torch.log1p(-(theta**d.concentration1))
    return from_tails(-torch.expm1(log_survival), log_survival.exp())


def _from_kumaraswamy(d: D.Kumaraswamy, z: Tensor) -> Tensor:
    log_survival = torch.special.log_ndtr(-z) / d.concentration0
    return (-torch.expm1(log_survival)) ** (1 / d.concentration1)


def _to_continuous_bernoulli(d: D.ContinuousBernoulli, theta: Tensor) -> Tensor:
    """A density proportional to exp(logits theta) on [0, 1]."""
    flat = d.logits == 0
    rate = torch.where(flat, 1.0, d.logits)
    cdf = torch.where(flat, theta, torch.expm1(rate * theta) / torch.expm1(rate))
    survival = torch.where(flat, 1 - theta, torch.expm1(rate * (theta - 1)) / torch.expm1(-rate))
    return from_tails(cdf, survival)


def _from_continuous_bernoulli(d: D.ContinuousBernoulli, z: Tensor) -> Tensor:
    flat, tail = d.logits == 0, _ndtr(-z.abs())
    rate = torch.where(flat, 1.0, torch.where(z < 0, d.logits, -d.logits))
    step = torch.where(flat, tail, torch.log1p(tail * torch.expm1(rate)) / rate)
    return torch.where(z < 0, step, 1 - step)


def _to_relaxed_bernoulli(d: D.RelaxedBernoulli, theta: Tensor) -> Tensor:
    logistic = d.temperature * torch.logit(theta) - d.logits
    return from_tails(torch.sigmoid(logistic), torch.sigmoid(-logistic))


def _from_relaxed_bernoulli(d: D.RelaxedBernoulli, z: Tensor) -> Tensor:
    logistic = torch.special.log_ndtr(z) - torch.special.log_ndtr(-z)
    return torch.sigmoid((logistic + d.logits) / d.temperature)


def _scipy(
    distribution: Callable[..., D.Distribution], arguments: tuple[str, ...], frozen: Callable[[Any], Any]
) -> Family:
    """A family with both directions through a scipy distribution made from the torch one."""

    def to_z(d: Any, theta: Tensor) -> Tensor:
        law, values = frozen(d), theta.detach().cpu().numpy()
        tails = (torch.as_tensor(np.asarray(tail)) for tail in (law.cdf(values), law.sf(values)))
        return from_tails(*tails).to(theta)

    def from_z(d: Any, z: Tensor) -> Tensor:
        law, values = frozen(d), z.detach().cpu().numpy()
        tail = ndtr(-np.abs(values))
        return torch.as_tensor(np.where(values < 0, law.ppf(tail), law.isf(tail))).to(z)

    return Family(distribution, arguments, to_z, from_z, in_torch=False)


def _n(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()


FAMILIES: dict[str, Family] = {
    "Normal": Family(D.Normal, ("loc", "scale"), lambda d, t: (t - d.loc) / d.scale, lambda d, z: d.loc + d.scale * z),
    "LogNormal": Family(
        D.LogNormal,
        ("loc", "scale"),
        lambda d, t: (t.log() - d.loc) / d.scale,
        lambda d, z: (d.loc + d.scale * z).exp(),
    ),
    "Uniform": Family(D.Uniform, ("low", "high"), _to_uniform, _from_uniform),
    "LogUniform": Family(LogUniform, ("low", "high"), _to_log_uniform, _from_log_uniform),
    "Exponential": Family(D.Exponential, ("rate",), _to_exponential, lambda d, z: -torch.special.log_ndtr(-z) / d.rate),
    "HalfNormal": Family(D.HalfNormal, ("scale",), _to_half_normal, _from_half_normal),
    "TruncatedNormal": Family(TruncatedNormal, ("loc", "scale", "low", "high"), _to_truncated, _from_truncated),
    "Beta": _scipy(
        D.Beta,
        ("concentration1", "concentration0"),
        lambda d: scipy.stats.beta(_n(d.concentration1), _n(d.concentration0)),
    ),
    "Cauchy": _scipy(D.Cauchy, ("loc", "scale"), lambda d: scipy.stats.cauchy(_n(d.loc), _n(d.scale))),
    "Chi2": _scipy(D.Chi2, ("df",), lambda d: scipy.stats.chi2(_n(d.df))),
    "ContinuousBernoulli": Family(
        D.ContinuousBernoulli, ("probs",), _to_continuous_bernoulli, _from_continuous_bernoulli
    ),
    "FisherSnedecor": _scipy(D.FisherSnedecor, ("df1", "df2"), lambda d: scipy.stats.f(_n(d.df1), _n(d.df2))),
    "Gamma": _scipy(
        D.Gamma, ("concentration", "rate"), lambda d: scipy.stats.gamma(_n(d.concentration), scale=1 / _n(d.rate))
    ),
    "GeneralizedPareto": Family(
        GeneralizedPareto, ("loc", "scale", "concentration"), _to_generalized_pareto, _from_generalized_pareto
    ),
    "Gumbel": _scipy(D.Gumbel, ("loc", "scale"), lambda d: scipy.stats.gumbel_r(_n(d.loc), _n(d.scale))),
    "HalfCauchy": _scipy(D.HalfCauchy, ("scale",), lambda d: scipy.stats.halfcauchy(scale=_n(d.scale))),
    "InverseGamma": _scipy(
        D.InverseGamma, ("concentration", "rate"), lambda d: scipy.stats.invgamma(_n(d.concentration), scale=_n(d.rate))
    ),
    "Kumaraswamy": Family(Kumaraswamy, ("concentration1", "concentration0"), _to_kumaraswamy, _from_kumaraswamy),
    "Laplace": _scipy(D.Laplace, ("loc", "scale"), lambda d: scipy.stats.laplace(_n(d.loc), _n(d.scale))),
    "Pareto": _scipy(D.Pareto, ("scale", "alpha"), lambda d: scipy.stats.pareto(_n(d.alpha), scale=_n(d.scale))),
    "RelaxedBernoulli": Family(
        relaxed_bernoulli, ("temperature", "probs"), _to_relaxed_bernoulli, _from_relaxed_bernoulli
    ),
    "StudentT": _scipy(D.StudentT, ("df", "loc", "scale"), lambda d: scipy.stats.t(_n(d.df), _n(d.loc), _n(d.scale))),
    "Weibull": _scipy(
        D.Weibull, ("scale", "concentration"), lambda d: scipy.stats.weibull_min(_n(d.concentration), scale=_n(d.scale))
    ),
}


def from_normal(z: Tensor, family: Family, distribution: D.Distribution, low: Tensor, high: Tensor) -> Tensor:
    """z → theta within [low, high], as values: `FromNormal` without its derivative."""
    return family.from_normal(distribution, z.clamp(-_FAR, _FAR)).clamp(low, high)


class ToNormal(torch.autograd.Function):
    """theta → z, whose derivative is p(theta) / phi(z)."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, family: Family, distribution: D.Distribution) -> Tensor:
        z = family.to_normal(distribution, theta)
        ctx.save_for_backward(theta, z)
        ctx.distribution = distribution
        return z

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        theta, z = ctx.saved_tensors
        return gradient * (ctx.distribution.log_prob(theta) - log_phi(z)).exp(), None, None


class FromNormal(torch.autograd.Function):
    """z → theta, whose derivative is phi(z) / p(theta)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, family: Family, distribution: D.Distribution, low: Tensor, high: Tensor) -> Tensor:
        theta = from_normal(z, family, distribution, low, high)
        ctx.save_for_backward(z, theta)
        ctx.distribution = distribution
        return theta

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        z, theta = ctx.saved_tensors
        return gradient * (log_phi(z) - ctx.distribution.log_prob(theta)).exp(), None, None, None, None
