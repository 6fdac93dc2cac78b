r"""Lotka-Volterra with rates between 1 and e, for attacks on a posterior.

:math:`\dot X = \alpha X - \beta X Y`, :math:`\dot Y = \delta X Y - \gamma Y`, :math:`X(0) = Y(0) = 1`, where
:math:`(\alpha, \beta, \gamma, \delta) = \exp(\mathrm{sigmoid}(\theta))` and :math:`\theta \sim N(0, 0.5^2 I_4)`. x is X at 50
times from 0 to 20, then Y, each with noise N(0, 0.05²). Gloeckler, Deistler and Macke (ICML 2023),
https://arxiv.org/abs/2305.14984.
"""

from __future__ import annotations

import numpy as np
import scipy.stats
from scipy.special import expit
from torch.distributions import Normal

from ..data.variables import Variable, Variables
from .populations import predator_prey
from .prior import Prior

_TIMES = np.linspace(0.0, 20.0, 50)
_NOISE = 0.05


class RobustLotkaVolterra:
    """Fifty numbers of prey, then fifty of predators; t1 … t4 stand for alpha, beta, gamma, delta."""

    prior = Prior(
        {f"t{i}": Normal(0.0, 0.5) for i in range(1, 5)}, labels={f"t{i}": rf"$\theta_{i}$" for i in range(1, 5)}
    )
    observables = Variables([Variable("x", (100,))])

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        noise = rng.standard_normal((len(theta), 100))
        return {"x": populations(theta) + _NOISE * noise}

    def log_likelihood(
        self, theta: np.ndarray, x: dict[str, np.ndarray], context: dict[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """log p(x | theta), shape ``(rows,)``."""
        return np.asarray(scipy.stats.norm.logpdf(x["x"], populations(theta), _NOISE)).sum(1)


def populations(theta: np.ndarray) -> np.ndarray:
    """X, then Y, at the fifty times, shape ``(rows, 100)``."""
    return predator_prey(np.exp(expit(theta)), np.ones(2), _TIMES).reshape(len(theta), 100)
