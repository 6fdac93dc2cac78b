r"""Simple likelihood, complex posterior (SLCP), of the SBI benchmark: four points of a Gaussian in the plane.

:math:`\theta \sim U(-3, 3)^5`; mean :math:`(t_1, t_2)` and covariance :math:`\begin{pmatrix} s_1^2 + e & \rho s_1 s_2
\\ \rho s_1 s_2 & s_2^2 + e \end{pmatrix}` with :math:`s_1 = t_3^2`, :math:`s_2 = t_4^2`, :math:`\rho = \tanh t_5`,
:math:`e = 10^{-6}`. x is (y1, y2) of the first point, of the second, …. The signs of t3 and t4 are not identified: the
posterior has four modes. Papamakarios, Sterratt & Murray (2019), https://arxiv.org/abs/1805.07226; Lueckmann et al.
(2021), https://arxiv.org/abs/2101.04653, T.3.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch.distributions import Uniform

from ..data.variables import Variable, Variables
from .benchmark import Observations, observations
from .prior import Prior

_POINTS = 4
_JITTER = 1e-6  # the benchmark's, on both variances
SIZE = 2 * _POINTS


def slcp_prior() -> Prior:
    """U(-3, 3) for each of t1 … t5."""
    names = [f"t{i}" for i in range(1, 6)]
    return Prior({name: Uniform(-3.0, 3.0) for name in names}, labels={name: rf"$\theta_{name[1]}$" for name in names})


class SLCP:
    """Mean, scales and correlation of a Gaussian in the plane from four of its points."""

    prior = slcp_prior()
    observables = Variables([Variable("x", (SIZE,))])
    observations: ClassVar[Observations] = observations("slcp")

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        return {"x": four_points(theta, rng)}

    def log_likelihood(
        self, theta: np.ndarray, x: dict[str, np.ndarray], context: dict[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """Log density of the four points, shape ``(rows,)``."""
        return log_density(theta, x["x"])


def four_points(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Four points for each row of theta, shape ``(rows, 8)``."""
    first, slope, rest = _factors(theta)
    noise = rng.standard_normal((len(theta), _POINTS, 2))
    y1 = theta[:, :1] + first * noise[..., 0]
    y2 = theta[:, 1:2] + slope * first * noise[..., 0] + rest * noise[..., 1]
    return np.stack([y1, y2], -1).reshape(len(theta), SIZE)


def log_density(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """log p(x | theta), shape ``(rows,)``; x ``(rows or 1, 8)``."""
    first, slope, rest = _factors(theta)
    points = x.reshape(len(x), _POINTS, 2)
    d1, d2 = points[..., 0] - theta[:, :1], points[..., 1] - theta[:, 1:2]
    squared = (d1 / first) ** 2 + ((d2 - slope * d1) / rest) ** 2
    return -0.5 * squared.sum(-1) - _POINTS * (np.log(2 * np.pi) + np.log(first) + np.log(rest))[:, 0]


def _factors(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sd of y1, slope of y2 on y1 and sd of what is left, each ``(rows, 1)``; no digits lost where rho is near 1."""
    v1, v2, t5 = theta[:, 2:3] ** 4, theta[:, 3:4] ** 4, theta[:, 4:5]
    first = v1 + _JITTER
    determinant = v1 * v2 / np.cosh(t5) ** 2 + _JITTER * (v1 + v2 + _JITTER)
    return np.sqrt(first), np.tanh(t5) * np.sqrt(v1 * v2) / first, np.sqrt(determinant / first)
