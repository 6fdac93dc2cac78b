r"""Lotka-Volterra, of the SBI benchmark: prey X and predators Y at ten times, each with ten per cent noise.

.. math:: \dot X = \alpha X - \beta X Y, \quad \dot Y = \delta X Y - \gamma Y, \quad X(0) = 30,\ Y(0) = 1

x is X at :math:`t_k = 0, 2.1, \dots, 18.9`, then Y, each :math:`\mathrm{LogNormal}(\log(\text{value}), 0.1)`;
:math:`\alpha, \gamma \sim \mathrm{LogNormal}(-0.125, 0.5)`, :math:`\beta, \delta \sim \mathrm{LogNormal}(-3, 0.5)`.
Lueckmann et al. (2021), https://arxiv.org/abs/2101.04653, T.10.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import scipy.stats
from torch.distributions import LogNormal

from ..data.variables import POSITIVE, Variable, Variables
from .benchmark import Observations, observations
from .populations import predator_prey
from .prior import Prior

_START = np.array([30.0, 1.0])
_TIMES = 2.1 * np.arange(10)
_NOISE = 0.1


class LotkaVolterra:
    """Ten numbers of prey, then ten of predators; parameters in the order alpha, beta, gamma, delta."""

    prior = Prior(
        {
            "alpha": LogNormal(-0.125, 0.5),
            "beta": LogNormal(-3.0, 0.5),
            "gamma": LogNormal(-0.125, 0.5),
            "delta": LogNormal(-3.0, 0.5),
        },
        labels={name: rf"$\{name}$" for name in ("alpha", "beta", "gamma", "delta")},
    )
    observables = Variables([Variable("x", (20,), support=POSITIVE)])
    observations: ClassVar[Observations] = observations("lotka_volterra")

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        noise = rng.standard_normal((len(theta), 20))
        return {"x": _medians(theta) * np.exp(_NOISE * noise)}

    def log_likelihood(
        self, theta: np.ndarray, x: dict[str, np.ndarray], context: dict[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """log p(x | theta), shape ``(rows,)``; NaN where the populations cannot be integrated."""
        return np.asarray(scipy.stats.lognorm.logpdf(x["x"], _NOISE, scale=_medians(theta))).sum(1)


def _medians(theta: np.ndarray) -> np.ndarray:
    """X, then Y, at the ten times, shape ``(rows, 20)``; the bounds are the benchmark's."""
    return np.clip(predator_prey(theta, _START, _TIMES).reshape(len(theta), 20), 1e-10, 1e4)
