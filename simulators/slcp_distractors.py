r"""SLCP hidden among 92 uninformative numbers, of the SBI benchmark.

The eight numbers of `slcp`, then noise from an equal mixture of 20 multivariate Student t distributions with two
degrees of freedom, then one fixed permutation of the hundred. Locations, scales and permutation are the benchmark's own,
made from its seed. Greenberg et al. (2019), https://arxiv.org/abs/1905.07488; Lueckmann et al. (2021),
https://arxiv.org/abs/2101.04653, T.4.
"""

from __future__ import annotations

from functools import cache
from typing import ClassVar, NamedTuple

import numpy as np

from ..data.variables import Variable, Variables
from .benchmark import Observations, observations
from .slcp import SIZE, four_points, log_density, slcp_prior

_DIM = 100
_NOISE = _DIM - SIZE
_COMPONENTS = 20
_DEGREES = 2


class SLCPDistractors:
    """SLCP whose network must find the eight numbers that matter among a hundred."""

    prior = slcp_prior()
    observables = Variables([Variable("x", (_DIM,))])
    observations: ClassVar[Observations] = observations("slcp_distractors")

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        both = np.concatenate([four_points(theta, rng), _distractors(len(theta), rng)], axis=1)
        return {"x": both[:, mixture().permutation]}

    def log_likelihood(
        self, theta: np.ndarray, x: dict[str, np.ndarray], context: dict[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """Log density of the eight numbers that depend on theta, shape ``(rows,)``.

        That of the others is left out: the condition numbers of their scales reach 5e18, beyond double precision.
        """
        return log_density(theta, x["x"][:, np.argsort(mixture().permutation)[:SIZE]])


class Mixture(NamedTuple):
    """The distribution of the noise, and what hides the informative numbers in it.

    Attributes:
        loc: ``(component, 92)``.
        scale: Lower-triangular, ``(component, 92, 92)``.
        permutation: Which of the hundred stands where, ``(100,)``.
    """

    loc: np.ndarray
    scale: np.ndarray
    permutation: np.ndarray


@cache
def mixture() -> Mixture:
    """The benchmark's own, draw for draw."""
    rng = np.random.RandomState(42)  # no other generator gives the benchmark's numbers
    loc = np.stack([15 * rng.normal(size=_NOISE) for _ in range(_COMPONENTS)])
    scale = np.stack([_triangle(rng) for _ in range(_COMPONENTS)])
    return Mixture(loc, scale, rng.permutation(_DIM))


def _triangle(rng: np.random.RandomState) -> np.ndarray:
    below = np.tril(rng.normal(size=(_NOISE, _NOISE)))
    return 3 * (below + np.diag(np.exp(rng.normal(size=_NOISE))))


def _distractors(rows: int, rng: np.random.Generator) -> np.ndarray:
    loc, scale, _ = mixture()
    component = rng.integers(_COMPONENTS, size=rows)
    normal, chi2 = rng.standard_normal((rows, _NOISE)), rng.chisquare(_DEGREES, rows)
    correlated = np.empty_like(normal)
    for k in range(_COMPONENTS):  # a scale for every row would take 68 kB each
        correlated[component == k] = normal[component == k] @ scale[k].T
    return loc[component] + correlated / np.sqrt(chi2 / _DEGREES)[:, None]
