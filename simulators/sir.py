r"""SIR, of the SBI benchmark: an epidemic in a million, seen ten times through a thousand tests.

.. math:: \dot S = -\beta S I / N, \quad \dot I = \beta S I / N - \gamma I, \quad N = 10^6,\ I(0) = 1,\ S(0) = N - 1

:math:`x_k \sim \mathrm{Binomial}(1000, I(t_k) / N)` at :math:`t_k = 0, 17, \dots, 153` days;
:math:`\beta \sim \mathrm{LogNormal}(\log 0.4, 0.5)`, :math:`\gamma \sim \mathrm{LogNormal}(\log 0.125, 0.2)`.
Lueckmann et al. (2021), https://arxiv.org/abs/2101.04653, T.9. There the system is solved to about 1e-3, here to 1e-6.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import scipy.stats
from torch.distributions import LogNormal

from ..data.variables import Support, Variable, Variables
from .benchmark import Observations, observations
from .populations import infected
from .prior import Prior

_PEOPLE = 1e6
_TESTS = 1000.0
_DAYS = 17.0 * np.arange(10)


class SIR:
    """Positive tests on ten days; the rates of contact and recovery, per day."""

    prior = Prior(
        {"beta": LogNormal(float(np.log(0.4)), 0.5), "gamma": LogNormal(float(np.log(0.125)), 0.2)},
        units={"beta": "1/day", "gamma": "1/day"},
        labels={"beta": r"$\beta$", "gamma": r"$\gamma$"},
    )
    observables = Variables(
        [Variable("x", (10,), support=Support(0.0, _TESTS, integer=True), label="positive tests", dims=("day",))]
    )
    observations: ClassVar[Observations] = observations("sir")

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        uniform = rng.random((len(theta), 10))  # through the quantile function: as many draws for every theta
        return {"x": np.asarray(scipy.stats.binom.ppf(uniform, _TESTS, _share(theta)))}

    def log_likelihood(
        self, theta: np.ndarray, x: dict[str, np.ndarray], context: dict[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """log p(x | theta), shape ``(rows,)``; NaN where the epidemic cannot be integrated."""
        return np.asarray(scipy.stats.binom.logpmf(x["x"], _TESTS, _share(theta))).sum(1)


def _share(theta: np.ndarray) -> np.ndarray:
    """I / N, shape ``(rows, 10)``."""
    return np.clip(infected(theta, (_PEOPLE - 1, 1.0), _PEOPLE, _DAYS) / _PEOPLE, 0.0, 1.0)
