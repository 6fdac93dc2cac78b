r"""The g-and-k distribution, defined by its quantile function.

.. math:: Q(z) = A + B\, (1 + 0.8 \tanh(g z / 2))\, z\, (1 + z^2)^k, \qquad z = \Phi^{-1}(u),\ u \sim U(0, 1)

x are independent draws; :math:`A, B, g, k \sim U(0, 10)`. Rayner and MacGillivray, Statistics and Computing 12 (2002), 57–75;
prior: Fearnhead and Prangle, JRSS B 74 (2012), 419–474. The density inverts Q:
:math:`\log p(x) = \log \phi(z) - \log Q'(z)` where :math:`Q(z) = x`.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import elementwise
from scipy.special import ndtri
from torch.distributions import Uniform

from ..data.variables import Variable, Variables
from .prior import Prior

_C = 0.8


class GAndK:
    """Location A, scale B, skewness g and tail weight k.

    Args:
        points: How many independent draws make one row of x.
    """

    prior = Prior({name: Uniform(0.0, 10.0) for name in ("A", "B", "g", "k")})

    def __init__(self, points: int = 100) -> None:
        self.points = points
        self.observables = Variables([Variable("x", (points,))])
        self.u_shape = (points,)

    def sample_u(self, rows: int, rng: np.random.Generator) -> np.ndarray:
        """Uniform on the open interval (0, 1), shape ``(rows, points)``."""
        return np.clip(rng.random((rows, self.points)), np.finfo(float).tiny, None)

    def simulate_from_u(
        self, theta: np.ndarray, u: np.ndarray, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """x as a function of theta and u alone, smooth in both."""
        location, scale, g, k = theta.T[..., None]
        return {"x": location + scale * _standard(ndtri(u), g, k)}

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        return self.simulate_from_u(theta, self.sample_u(len(theta), rng))

    def log_likelihood(
        self, theta: np.ndarray, x: dict[str, np.ndarray], context: dict[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """log p(x | theta), shape ``(rows,)``; relative error of z below 1e-12."""
        location, scale, g, k = theta.T[..., None]
        z = _inverted((x["x"] - location) / scale, g, k)
        log_density = -0.5 * z**2 - 0.5 * np.log(2 * np.pi) - np.log(scale) - _log_slope(z, g, k)
        return log_density.sum(1)


def _standard(z: np.ndarray, g: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Q for A = 0 and B = 1."""
    return (1 + _C * np.tanh(g * z / 2)) * z * (1 + z**2) ** k


def _log_slope(z: np.ndarray, g: np.ndarray, k: np.ndarray) -> np.ndarray:
    """log of the derivative of `_standard` in z."""
    tanh, square = np.tanh(g * z / 2), z**2
    skew, skewed = _C * g / 2 * (1 - tanh**2) * z, 1 + _C * tanh
    return k * np.log1p(square) + np.log(skew + skewed * (1 + 2 * k * square / (1 + square)))


def _inverted(target: np.ndarray, g: np.ndarray, k: np.ndarray) -> np.ndarray:
    """The z with Q(z) = target for k >= 0, where Q increases and is at least 1 - c times as far from 0 as z."""
    reach = np.abs(target) / (1 - _C) + 1.0
    found = elementwise.find_root(_excess, (-reach, reach), args=(g, k, target))
    return np.asarray(found.x)


def _excess(z: np.ndarray, g: np.ndarray, k: np.ndarray, target: np.ndarray) -> np.ndarray:
    return _standard(z, g, k) - target
