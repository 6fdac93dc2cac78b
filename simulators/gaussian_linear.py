r"""Gaussian linear, of the SBI benchmark: :math:`\theta \sim N(0, 0.1 I_{10})`, :math:`x \sim N(\theta, 0.1 I_{10})`.

0.1 is a variance. The posterior is :math:`N(x / 2, 0.05 I)`, exactly. Lueckmann et al. (2021),
https://arxiv.org/abs/2101.04653, T.1.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch.distributions import Normal

from ..data.variables import Variable, Variables
from .benchmark import Observations, observations
from .prior import Prior

DIM = 10
VARIANCE = 0.1


class GaussianLinear:
    """Ten parameters, each seen once with noise as wide as its prior."""

    prior = Prior({f"t{i}": Normal(0.0, VARIANCE**0.5) for i in range(1, DIM + 1)})
    observables = Variables([Variable("x", (DIM,))])
    observations: ClassVar[Observations] = {"halves": {"x": [0.5] * DIM}, **observations("gaussian_linear")}

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        return noisy(theta, rng)

    def log_likelihood(
        self, theta: np.ndarray, x: dict[str, np.ndarray], context: dict[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """log N(x; theta, 0.1 I), shape ``(rows,)``."""
        return log_normal(theta, x["x"])


def noisy(theta: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """x ~ N(theta, 0.1 I), one row for each row of theta."""
    return {"x": theta + VARIANCE**0.5 * rng.standard_normal(theta.shape)}


def log_normal(theta: np.ndarray, x: np.ndarray, variance: float = VARIANCE) -> np.ndarray:
    """log N(x; theta, variance I) over the last axis."""
    squared = ((x - theta) ** 2).sum(-1)
    return -0.5 * squared / variance - 0.5 * theta.shape[-1] * np.log(2 * np.pi * variance)
