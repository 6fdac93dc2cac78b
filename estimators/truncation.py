r"""The prior truncated to where a posterior has its mass, as truncated sequential inference simulates from.

.. math:: \tilde p(\theta) \propto p(\theta)\, 1[\theta \in M_1 \cap \dots \cap M_r], \qquad
    M_r = \{ \theta : \log q_r(\theta | x_o) \ge \tau_r \} \cap B_r \cap E_r,

where :math:`\tau_r` is the :math:`\epsilon`-quantile of :math:`\log q_r` over draws of the posterior :math:`q_r` of round
r, and :math:`B_r` and :math:`E_r` the box and the ellipsoid, along the principal axes of those draws in z, that hold them
with a margin. As the regions are nested, all simulations inside the last one are drawn from the prior restricted to it, and
the loss needs no correction. Deistler, Goncalves & Macke (2022), https://arxiv.org/abs/2210.04815; box and ellipsoid are
ours: the prior restricted to either can be drawn from, because it is N(0, I) along any axes of z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.special
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..data.errors import TrainingError
from ..data.variables import Arrays
from ..simulators.prior import Prior
from .base import Posterior

LEAST_ACCEPTED = 1e-3  # below, sampling-importance-resampling costs less than rejection
OVERSAMPLING = 128  # draws of q per row that is resampled
_MARGIN = 0.05  # of the box, in its own width, and of the ellipsoid
_AT_ONCE = 50_000
_TRIAL = 10_000  # candidates of either shape before one is chosen
_BEYOND = 10.0  # draws per expected draw below the threshold: its quantile is then known to a third

Method = Literal["rejection", "sampling-importance-resampling"]
Shape = Literal["box", "ellipsoid"]


_ARRAYS = ("axes", "low", "high", "centre", "width")


@dataclass(frozen=True, slots=True)
class Region:
    """The highest-density region of one posterior.

    Attributes:
        posterior: Of one round.
        threshold: Of its log density at the observation.
        axes: Orthonormal, one a column, ``(parameter, parameter)``; box and ellipsoid lie along them in z.
        low: Of the box, ``(parameter,)``.
        high: Of the box.
        centre: Of the ellipsoid.
        width: Of the draws, one standard deviation along each axis.
        radius: Of the ellipsoid, in these widths.
    """

    posterior: Posterior
    threshold: float
    axes: Float[np.ndarray, "parameter parameter"]
    low: Float[np.ndarray, " parameter"]
    high: Float[np.ndarray, " parameter"]
    centre: Float[np.ndarray, " parameter"]
    width: Float[np.ndarray, " parameter"]
    radius: float

    @classmethod
    def around(cls, posterior: Posterior, threshold: float, theta: Float[np.ndarray, "rows parameter"]) -> Region:
        """With the box and the ellipsoid that hold these draws."""
        z = posterior.prior.to_unconstrained(torch.from_numpy(theta)).numpy()
        axes = np.linalg.eigh(np.cov(z.T).reshape(z.shape[1], -1))[1]
        along = z @ axes
        low, high, centre, width = along.min(0), along.max(0), along.mean(0), along.std(0)
        margin = _MARGIN * (high - low)
        radius = (1 + _MARGIN) * float(np.sqrt((((along - centre) / width) ** 2).sum(1).max()))
        return cls(posterior, threshold, axes, low - margin, high + margin, centre, width, radius)

    def contains(self, theta: Float[np.ndarray, "rows parameter"], x: Arrays) -> Bool[np.ndarray, " rows"]:
        """Which rows lie inside; the network is asked only about those in box and ellipsoid."""
        along = self.posterior.prior.to_unconstrained(torch.from_numpy(theta)).numpy() @ self.axes
        near = (((along - self.centre) / self.width) ** 2).sum(1) <= self.radius**2
        found = near & ((along >= self.low) & (along <= self.high)).all(1)
        found[found] = self._dense(theta[found], x)
        return found

    def _dense(self, theta: np.ndarray, x: Arrays) -> np.ndarray:
        parts = [torch.from_numpy(theta[i : i + _AT_ONCE]) for i in range(0, len(theta), _AT_ONCE)]
        dense = [_log_prob(self.posterior, part, x) >= self.threshold for part in parts]
        return np.concatenate(dense) if dense else np.zeros(0, dtype=bool)

    def draw(self, shape: Shape, rows: int, rng: np.random.Generator) -> Float[np.ndarray, "some parameter"]:
        """Draws of the prior restricted to box or ellipsoid, of so many candidates."""
        prior = self.posterior.prior
        if not prior.normal:
            return prior.sample(rows, rng)
        if shape == "box":
            along = _truncated_normal(self.low, self.high, rng.random((rows, prior.dim)))
        else:
            along = self._in_ellipsoid(rows, rng)
        return prior.from_unconstrained(torch.from_numpy(along @ self.axes.T)).numpy()

    def _in_ellipsoid(self, rows: int, rng: np.random.Generator) -> np.ndarray:
        """Uniform inside, thinned by the prior's density over the highest that it has there."""
        y = rng.standard_normal((rows, len(self.centre)))
        y *= self.radius * rng.random((rows, 1)) ** (1 / y.shape[1]) / np.linalg.norm(y, axis=1, keepdims=True)
        along = self.centre + self.width * y
        excess = (along**2).sum(1) - _least_square(self.centre, self.width, self.radius)
        return along[np.log(rng.random(rows)) <= -excess / 2]

    def to_json(self) -> dict[str, Any]:
        """All but the posterior."""
        arrays = {name: getattr(self, name).tolist() for name in _ARRAYS}
        return {"threshold": self.threshold, "radius": self.radius, **arrays}

    @classmethod
    def from_json(cls, posterior: Posterior, item: dict[str, Any]) -> Region:
        """The inverse of `to_json`."""
        arrays = {name: np.asarray(item[name]) for name in _ARRAYS}
        return cls(posterior, item["threshold"], radius=item["radius"], **arrays)


@dataclass(frozen=True, slots=True)
class Proposed:
    """Draws of a truncated prior.

    Attributes:
        theta: ``(rows, parameter)``.
        method: Exact by ``rejection``; ``sampling-importance-resampling`` where that accepts too little, which is exact
            only as draws per row go to infinity.
        acceptance: Of candidates in the box, or the ellipsoid, of the last region.
    """

    theta: Float[np.ndarray, "rows parameter"]
    method: Method
    acceptance: float


class Truncation:
    """A prior restricted to nested regions at one observation; to all of its support where there is none.

    Args:
        prior: Of theta.
        x: The observation, context included.
        regions: Of the rounds so far, in order.
    """

    def __init__(self, prior: Prior, x: Arrays, regions: tuple[Region, ...] = ()) -> None:
        self.prior, self.x, self.regions = prior, x, regions

    def contains(self, theta: Float[np.ndarray, "rows parameter"]) -> Bool[np.ndarray, " rows"]:
        """Which rows lie inside all regions; the last one, the smallest, is asked first."""
        found = self.prior.contains(torch.from_numpy(theta)).numpy().copy()
        for region in reversed(self.regions):
            found[found] = region.contains(theta[found], self.x)
        return found

    def narrowed(self, posterior: Posterior, epsilon: float = 1e-4, *, seed: int = 0) -> Truncation:
        """Restricted further to the highest-density region of ``posterior`` at the observation.

        Args:
            posterior: Of any method that can be sampled; its log density may lack a constant.
            epsilon: Mass of the posterior below the threshold.
            seed: Of the draws.

        Raises:
            TrainingError: Its draws lie outside the regions before, or have no density.
        """
        draws, log_q = self._draws(posterior, max(10_000, math.ceil(_BEYOND / epsilon)), seed)
        threshold = float(np.quantile(log_q, epsilon))
        region = Region.around(posterior, threshold, draws[log_q >= threshold])
        return Truncation(self.prior, self.x, (*self.regions, region))

    def leaked(self, posterior: Posterior, *, draws: int = 10_000, seed: int = 0) -> float:
        """Mass that ``posterior`` has outside, where it has learned from nothing."""
        theta = posterior.sample((draws,), self.x, seed=seed).cpu().numpy()
        return float(1 - self.contains(theta).mean())

    def sample(self, rows: int, rng: np.random.Generator, *, seed: int = 0) -> Proposed:
        """Draws of the restricted prior: by rejection while acceptance allows, else by resampling.

        Candidates are of the prior restricted to the box or the ellipsoid of the last region, whichever accepts more.

        Args:
            rows: How many.
            rng: Of the candidates.
            seed: Of the posterior's draws, where those are resampled.
        """
        if not self.regions:
            return Proposed(self.prior.sample(rows, rng), "rejection", 1.0)
        shapes: tuple[Shape, ...] = ("box", "ellipsoid")
        trials = {shape: self._accepted(shape, _TRIAL, rng) for shape in shapes}
        shape = max(shapes, key=lambda shape: len(trials[shape]))
        kept, tried = [trials[shape]], _TRIAL
        while (accepted := sum(map(len, kept))) < rows or accepted < LEAST_ACCEPTED * tried:
            if accepted < LEAST_ACCEPTED * tried:
                return Proposed(self._resampled(rows, rng, seed), "sampling-importance-resampling", accepted / tried)
            kept.append(self._accepted(shape, _AT_ONCE, rng))
            tried += _AT_ONCE
        return Proposed(np.concatenate(kept)[:rows], "rejection", accepted / tried)

    def _accepted(self, shape: Shape, rows: int, rng: np.random.Generator) -> np.ndarray:
        candidates = self.regions[-1].draw(shape, rows, rng)
        return candidates[self.contains(candidates)]

    def _resampled(self, rows: int, rng: np.random.Generator, seed: int) -> np.ndarray:
        """One of every `OVERSAMPLING` draws of the last posterior, by weights p / q inside and 0 outside."""
        chosen, count = [], max(_AT_ONCE // OVERSAMPLING, 1)
        for portion in range(-(-rows // count)):
            words = np.random.SeedSequence(seed, spawn_key=(portion,)).generate_state(1)
            draws, log_q = _sampled(self.regions[-1].posterior, self.x, count * OVERSAMPLING, int(words[0]))
            log_weights = self.prior.log_prob(torch.from_numpy(draws)).numpy() - log_q
            log_weights[~self.contains(draws)] = -np.inf
            noisy = (log_weights + rng.gumbel(size=len(draws))).reshape(count, OVERSAMPLING)
            best = noisy.argmax(1)
            found = draws.reshape(count, OVERSAMPLING, -1)[np.arange(count), best]
            chosen.append(found[np.isfinite(noisy[np.arange(count), best])])
        return _repeated(np.concatenate(chosen), rows)

    def _draws(self, posterior: Posterior, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws inside the regions so far, and their log density."""
        theta, log_q = _sampled(posterior, self.x, draws, seed)
        kept = np.isfinite(log_q) & self.contains(theta)
        if kept.sum() < 10 * self.prior.dim + 10:
            raise TrainingError(
                f"the posterior of round {len(self.regions) + 1} lies outside the truncation of the round before "
                f"({int(kept.sum())} of {draws} draws are inside): give more `rows`, or a smaller `epsilon`"
            )
        return theta[kept], log_q[kept]


def _sampled(posterior: Posterior, x: Arrays, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rows = posterior.observables.rows(x, finite=not posterior.imputes)
    theta, log_q = posterior.sample_with_log_prob((draws,), rows, seed=seed)
    return theta[:, 0].cpu().numpy(), log_q[:, 0].cpu().double().numpy()


def _log_prob(posterior: Posterior, theta: Tensor, x: Arrays) -> np.ndarray:
    with torch.no_grad():
        return posterior.log_prob(theta, x).cpu().double().numpy()


def _truncated_normal(low: np.ndarray, high: np.ndarray, u: np.ndarray) -> np.ndarray:
    """N(0, 1) restricted to [low, high] at quantiles u, from the tail that does not round to 1."""
    upper = low > 0
    a, b = np.where(upper, -high, low), np.where(upper, -low, high)
    first, last = scipy.special.ndtr(a), scipy.special.ndtr(b)
    found = scipy.special.ndtri(first + u * (last - first)).clip(a, b)
    return np.where(upper, -found, found)


def _least_square(centre: np.ndarray, width: np.ndarray, radius: float) -> float:
    """The least squared distance from the origin to an ellipsoid, by bisection for its Lagrange multiplier."""
    if ((centre / width) ** 2).sum() <= radius**2:
        return 0.0

    def nearest(multiplier: float) -> np.ndarray:
        return -centre * width / (width**2 + multiplier)

    low, high = 0.0, float(np.linalg.norm(centre * width)) / radius
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (nearest(middle) ** 2).sum() > radius**2 else (low, middle)
    return float(((centre + width * nearest(low)) ** 2).sum())


def _repeated(theta: np.ndarray, rows: int) -> np.ndarray:
    """As many rows as are wanted; a portion without any weight gave none."""
    return theta[np.arange(rows) % len(theta)]
