r"""Gaussian linear with unequal gains, for attacks on a posterior that is known exactly.

:math:`\theta \sim N(0, I_{10})`, :math:`x = \mathrm{diag}(a)\, \theta + N(0, 0.1^2 I)`. The posterior is a diagonal
Gaussian. Gloeckler, Deistler and Macke, "Adversarial robustness of amortized Bayesian inference" (ICML 2023),
https://arxiv.org/abs/2305.14984.
"""

from __future__ import annotations

import numpy as np
import scipy.stats
from torch.distributions import Normal

from ..data.variables import Variable, Variables
from .prior import Prior

_GAINS = np.array([-0.2633, -1.9402, 1.6822, -0.29684, -0.031292, -1.0250, 0.056811, 0.29649, 1.2073, -1.7704])
_NOISE = 0.1


class RobustGaussianLinear:
    """Ten parameters, each seen once through a gain of its own."""

    prior = Prior({f"t{i}": Normal(0.0, 1.0) for i in range(1, 11)})
    observables = Variables([Variable("x", (10,))])

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        return {"x": _GAINS * theta + _NOISE * rng.standard_normal(theta.shape)}

    def log_likelihood(
        self, theta: np.ndarray, x: dict[str, np.ndarray], context: dict[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """log p(x | theta), shape ``(rows,)``."""
        return np.asarray(scipy.stats.norm.logpdf(x["x"], _GAINS * theta, _NOISE)).sum(1)

    def exact_posterior(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means, shaped like x, ``(rows, 10)``, and standard deviations, ``(10,)``, of the independent parameters."""
        variance = 1 / (1 + (_GAINS / _NOISE) ** 2)
        return variance * _GAINS / _NOISE**2 * x, np.sqrt(variance)
