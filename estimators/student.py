r"""Mixtures of Student's t fitted to weighted draws: proposals whose tails are heavier than a posterior's.

.. math:: q(z) = \sum_k \pi_k\, t_\nu(z; \mu_k, \Sigma_k)

by weighted expectation-maximisation with fixed :math:`\nu`; the number of components is the one with the best weighted log
density on every other draw, left out of the fit. Peel & McLachlan (2000), https://doi.org/10.1023/A:1008981510081; as a
proposal: Cappé et al. (2008), https://arxiv.org/abs/0710.4242.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.linalg import solve_triangular
from scipy.special import gammaln, logsumexp, softmax

FREEDOM = 5.0  # degrees of freedom: tails far heavier than a Gaussian's, at little cost in efficiency
_COMPONENTS = (1, 2, 4, 8, 16)
_STEPS = 60
_TOLERANCE = 1e-3
_RIDGE = 1e-3  # of the common covariance, added to each: as a few draws would weigh
_LEAST_PER_PARAMETER = 3  # effective draws of a component


@dataclass(frozen=True, slots=True)
class StudentMixture:
    """A mixture of multivariate t.

    Attributes:
        log_share: log of each component's probability, ``(component,)``.
        mean: ``(component, dim)``.
        factor: Cholesky factor of each scale matrix, ``(component, dim, dim)``.
    """

    log_share: Float[np.ndarray, " component"]
    mean: Float[np.ndarray, "component dim"]
    factor: Float[np.ndarray, "component dim dim"]

    def sample(self, rows: int, rng: np.random.Generator) -> Float[np.ndarray, "rows dim"]:
        """Independent draws."""
        which = rng.choice(len(self.log_share), rows, p=softmax(self.log_share))
        normal = rng.standard_normal((rows, self.mean.shape[1]))
        scale = np.sqrt(FREEDOM / rng.chisquare(FREEDOM, rows))
        return self.mean[which] + scale[:, None] * np.einsum("rij,rj->ri", self.factor[which], normal)

    def log_prob(self, z: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, " rows"]:
        """Log density."""
        return np.asarray(logsumexp(self._joint(z)[0], axis=1))

    def _joint(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log density of each component with its share, and the squared distance to it; ``(rows, component)``."""
        dim = z.shape[1]
        distance = np.stack([_distance(z, m, f) for m, f in zip(self.mean, self.factor, strict=True)], axis=1)
        norm = gammaln((FREEDOM + dim) / 2) - gammaln(FREEDOM / 2) - dim / 2 * np.log(FREEDOM * np.pi)
        volume = np.log(np.diagonal(self.factor, axis1=1, axis2=2)).sum(1)
        tail = (FREEDOM + dim) / 2 * np.log1p(distance / FREEDOM)
        return self.log_share + norm - volume - tail, distance


def fit_student(
    z: Float[np.ndarray, "rows dim"], weights: Float[np.ndarray, " rows"], rng: np.random.Generator, most: int = 16
) -> StudentMixture:
    """The mixture that fits weighted draws best.

    Args:
        z: Draws.
        weights: Not negative; need not add up to one.
        rng: Of where components begin.
        most: Components at most.
    """
    z, weights = z[weights > 0], weights[weights > 0]
    learn, hold = slice(0, None, 2), slice(1, None, 2)
    scores: list[float] = []
    for components in _affordable(weights, z.shape[1], most):
        fitted = _fit(z[learn], weights[learn], components, rng)
        scores.append(float(np.average(fitted.log_prob(z[hold]), weights=weights[hold])))
        if len(scores) > 1 and scores[-1] < scores[-2]:
            break
    return _fit(z, weights, _COMPONENTS[int(np.argmax(scores))] if scores else 1, rng)


def _affordable(weights: np.ndarray, dim: int, most: int) -> list[int]:
    """Numbers of components that the effective draws determine."""
    effective = weights.sum() ** 2 / (weights**2).sum() / 2
    if len(weights) < 4:
        return []
    return [k for k in _COMPONENTS if k == 1 or (k <= most and k * _LEAST_PER_PARAMETER * dim <= effective)]


def _fit(z: np.ndarray, weights: np.ndarray, components: int, rng: np.random.Generator) -> StudentMixture:
    weights = weights / weights.sum()
    common = _covariance(z, weights, np.average(z, axis=0, weights=weights))
    common += 1e-12 * np.eye(z.shape[1])
    mixture = StudentMixture(
        np.full(components, -np.log(components)),
        _starts(z, weights, components, common, rng),
        np.repeat(np.linalg.cholesky(common / components ** (2 / z.shape[1]))[None], components, axis=0),
    )
    before = -np.inf
    for _ in range(_STEPS):
        joint, distance = mixture._joint(z)
        now = float(weights @ logsumexp(joint, axis=1))
        if now - before < _TOLERANCE:
            break
        mixture, before = _step(z, weights, joint, distance, common), now
    return mixture


def _step(
    z: np.ndarray, weights: np.ndarray, joint: np.ndarray, distance: np.ndarray, common: np.ndarray
) -> StudentMixture:
    """One step of expectation-maximisation."""
    dim = z.shape[1]
    share = weights[:, None] * softmax(joint, axis=1)
    heavy = share * (FREEDOM + dim) / (FREEDOM + distance)
    kept = share.sum(0) > 1e-6
    share, heavy = share[:, kept], heavy[:, kept]
    means = (heavy.T @ z) / heavy.sum(0)[:, None]
    factors = []
    for k, mean in enumerate(means):
        centred = z - mean
        scale = (heavy[:, k, None] * centred).T @ centred / share[:, k].sum()
        factors.append(np.linalg.cholesky(scale + _RIDGE * common))
    total = share.sum(0)
    return StudentMixture(np.log(total / total.sum()), means, np.stack(factors))


def _starts(
    z: np.ndarray, weights: np.ndarray, components: int, common: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draws far from each other, by weight times squared distance (k-means++)."""
    factor = np.linalg.cholesky(common)
    chosen = [z[rng.choice(len(z), p=weights)]]
    nearest = np.full(len(z), np.inf)
    for _ in range(components - 1):
        nearest = np.minimum(nearest, _distance(z, chosen[-1], factor))
        chance = weights * nearest
        chosen.append(z[rng.choice(len(z), p=chance / chance.sum())] if chance.sum() > 0 else chosen[-1])
    return np.stack(chosen)


def _distance(z: np.ndarray, mean: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return np.asarray((solve_triangular(factor, (z - mean).T, lower=True) ** 2).sum(0))


def _covariance(z: np.ndarray, weights: np.ndarray, mean: np.ndarray) -> np.ndarray:
    centred = z - mean
    return (weights[:, None] * centred).T @ centred
