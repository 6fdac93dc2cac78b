r"""Influenza in an English boarding school, January–February 1978: a SIR epidemic with over-dispersed counts.

.. math:: \dot S = -\beta S I / N, \quad \dot I = \beta S I / N - \gamma I, \quad N = 763,\ S(0) = 762,\ I(0) = 1

Boys confined to bed on day t = 1 … 14 are negative binomial with mean :math:`I(t)` and variance
:math:`I + \phi^{-1} I^2`. Data: British Medical Journal, 4 March 1978, p. 587. Model and priors: Grinsztajn et al.,
"Bayesian workflow for disease transmission modeling in Stan" (2021), https://arxiv.org/abs/2006.02985.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from scipy.stats import nbinom
from torch.distributions import Exponential

from ..data.variables import COUNT, Variable, Variables
from .families import TruncatedNormal
from .ode import rk4
from .prior import Prior

_BOYS = 763.0
_DAYS = np.arange(1.0, 15.0)
_STEP = 1 / 20  # relative error of I(t) below 1e-4 over the prior, see tests/simulators/test_influenza.py


class Influenza1978:
    """Boys in bed on fourteen days; parameters beta and gamma (per day) and the over-dispersion phi_inv."""

    prior = Prior(
        {
            "beta": TruncatedNormal(2.0, 1.0, low=0.0),
            "gamma": TruncatedNormal(0.4, 0.5, low=0.0),
            "phi_inv": Exponential(5.0),
        },
        units={"beta": "1/day", "gamma": "1/day"},
        labels={"beta": r"$\beta$", "gamma": r"$\gamma$", "phi_inv": r"$\phi^{-1}$"},
    )
    observables = Variables(
        [Variable("in_bed", (14,), "int32", units="boys", support=COUNT, label="boys in bed", dims=("day",))]
    )
    observations: ClassVar[dict[str, dict[str, list[int]]]] = {
        "influenza_1978": {"in_bed": [3, 8, 26, 76, 225, 298, 258, 233, 189, 128, 68, 29, 14, 4]}
    }

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        infected, dispersion = expected_in_bed(theta), _dispersion(theta)
        rate = rng.gamma(1 / dispersion, dispersion * infected)
        return {"in_bed": rng.poisson(rate).astype(np.int32)}

    def log_likelihood(
        self, theta: np.ndarray, x: dict[str, np.ndarray], context: dict[str, np.ndarray] | None = None
    ) -> np.ndarray:
        infected, size = np.maximum(expected_in_bed(theta), 1e-300), 1 / _dispersion(theta)
        return np.asarray(nbinom.logpmf(x["in_bed"], size, size / (size + infected))).sum(1)


def _dispersion(theta: np.ndarray) -> np.ndarray:
    return np.maximum(theta[:, 2:], 1e-9)  # below, the counts are Poisson to double precision


def expected_in_bed(theta: np.ndarray, step: float = _STEP) -> np.ndarray:
    """I(t) on days 1 … 14, shape ``(rows, 14)``."""
    beta, gamma = theta[:, 0], theta[:, 1]

    def derivative(state: np.ndarray) -> np.ndarray:
        infections = beta / _BOYS * state[0] * state[1]
        return np.stack([-infections, infections - gamma * state[1]])

    start = np.stack([np.full(len(theta), _BOYS - 1), np.ones(len(theta))])
    return np.maximum(rk4(derivative, start, _DAYS, step)[:, 1].T, 0.0)
