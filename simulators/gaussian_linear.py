r"""Gaussian linear, of the SBI benchmark: :math:`\theta \sim N(0, 0.1 I_{10})`, :math:`x \sim N(\theta, 0.1 I_{10})`.

0.1 is a variance. The posterior is :math:`N(x / 2, 0.05 I)`, exactly. Lueckmann et al. (2021),
https://arxiv.org/abs/2101.04653, T.1.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch.distributions import Normal

from ..data.variables import Variable, Variables
from .prior import Prior

_DIM = 10
_SD = 0.1**0.5


class GaussianLinear:
    """Ten parameters, each seen once with noise as wide as its prior."""

    prior = Prior({f"t{i}": Normal(0.0, _SD) for i in range(1, _DIM + 1)})
    observables = Variables([Variable("x", (_DIM,))])
    observations: ClassVar[dict[str, dict[str, list[float]]]] = {"halves": {"x": [0.5] * _DIM}}

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        return {"x": theta + _SD * rng.standard_normal(theta.shape)}
