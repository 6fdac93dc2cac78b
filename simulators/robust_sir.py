r"""SIR seen fifty times, for attacks on a posterior.

:math:`\dot S = -\beta S I / N`, :math:`\dot I = \beta S I / N - \gamma I`, :math:`N = 5,\ S(0) = 5,\ I(0) = 0.25`, where
:math:`(\beta, \gamma) = \mathrm{sigmoid}(\theta)` and :math:`\theta \sim N(0, 2^2 I_2)`;
:math:`x_k \sim \mathrm{LogNormal}(\log(I(t_k) + 10^{-4}), 0.2)` at 50 times from 0 to 50. Gloeckler, Deistler and Macke
(ICML 2023), https://arxiv.org/abs/2305.14984.
"""

from __future__ import annotations

import numpy as np
import scipy.stats
from scipy.special import expit
from torch.distributions import Normal

from ..data.variables import POSITIVE, Variable, Variables
from .populations import infected
from .prior import Prior

_TIMES = np.linspace(0.0, 50.0, 50)
_NOISE = 0.2


class RobustSIR:
    """The infected at fifty times; t1 and t2 stand for the rates of contact and recovery."""

    prior = Prior({"t1": Normal(0.0, 2.0), "t2": Normal(0.0, 2.0)}, labels={"t1": r"$\theta_1$", "t2": r"$\theta_2$"})
    observables = Variables([Variable("x", (50,), support=POSITIVE, dims=("time",))])

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        noise = rng.standard_normal((len(theta), 50))
        return {"x": _medians(theta) * np.exp(_NOISE * noise)}

    def log_likelihood(
        self, theta: np.ndarray, x: dict[str, np.ndarray], context: dict[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """log p(x | theta), shape ``(rows,)``."""
        return np.asarray(scipy.stats.lognorm.logpdf(x["x"], _NOISE, scale=_medians(theta))).sum(1)


def _medians(theta: np.ndarray) -> np.ndarray:
    return infected(expit(theta), (5.0, 0.25), 5.0, _TIMES) + 1e-4
