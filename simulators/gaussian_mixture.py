r"""Gaussian mixture, of the SBI benchmark: a wide and a narrow Gaussian around one mean.

:math:`\theta \sim U(-10, 10)^2`, :math:`x \sim \frac12 N(\theta, I) + \frac12 N(\theta, 0.01 I)`. The component is
drawn for each row, once for both coordinates. Sisson et al. (2007); Lueckmann et al. (2021),
https://arxiv.org/abs/2101.04653, T.7. The benchmark's own code draws one component for each call instead, which is
not the model its reference posteriors belong to.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch.distributions import Uniform

from ..data.variables import Variable, Variables
from .benchmark import Observations, observations
from .gaussian_linear import log_normal
from .prior import Prior

_NARROW = 0.1  # standard deviation; the wide component has 1


class GaussianMixture:
    """The common mean of two Gaussians of very different width."""

    prior = Prior(
        {"t1": Uniform(-10.0, 10.0), "t2": Uniform(-10.0, 10.0)}, labels={"t1": r"$\theta_1$", "t2": r"$\theta_2$"}
    )
    observables = Variables([Variable("x", (2,))])
    observations: ClassVar[Observations] = observations("gaussian_mixture")

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        scale = np.where(rng.random((len(theta), 1)) < 0.5, 1.0, _NARROW)
        return {"x": theta + scale * rng.standard_normal(theta.shape)}

    def log_likelihood(
        self, theta: np.ndarray, x: dict[str, np.ndarray], context: dict[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """Log density of the mixture at x, shape ``(rows,)``."""
        wide, narrow = log_normal(theta, x["x"], 1.0), log_normal(theta, x["x"], _NARROW**2)
        return np.logaddexp(wide, narrow) - np.log(2)
