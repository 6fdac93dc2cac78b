r"""Gaussian linear with a box for a prior: :math:`\theta \sim U(-1, 1)^{10}`, :math:`x \sim N(\theta, 0.1 I_{10})`.

0.1 is a variance. The posterior is :math:`N(x, 0.1 I)` cut off at the box, exactly. Lueckmann et al. (2021),
https://arxiv.org/abs/2101.04653, T.2.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch.distributions import Uniform

from ..data.variables import Variable, Variables
from .benchmark import Observations, observations
from .gaussian_linear import DIM, log_normal, noisy
from .prior import Prior


class GaussianLinearUniform:
    """Ten parameters, each seen once with noise; the posterior leans on the edges of the prior."""

    prior = Prior({f"t{i}": Uniform(-1.0, 1.0) for i in range(1, DIM + 1)})
    observables = Variables([Variable("x", (DIM,))])
    observations: ClassVar[Observations] = observations("gaussian_linear_uniform")

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        return noisy(theta, rng)

    def log_likelihood(
        self, theta: np.ndarray, x: dict[str, np.ndarray], context: dict[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """log N(x; theta, 0.1 I), shape ``(rows,)``."""
        return log_normal(theta, x["x"])
