r"""Bernoulli GLM, of the SBI benchmark: spikes of a neuron under white noise, seen through sufficient statistics.

:math:`y_t \sim \mathrm{Bernoulli}(\sigma(\psi_t))`, :math:`\psi = V \theta`, t = 1 … 100; x is :math:`V^T y`, whose
first entry is the number of spikes. V has a column of ones and the stimulus at nine lags. The prior of the offset is
N(0, 2), that of the filter :math:`N(0, (F^T F)^{-1})`, smooth and decaying. Lueckmann et al. (2017),
https://arxiv.org/abs/1711.01861; Lueckmann et al. (2021), https://arxiv.org/abs/2101.04653, T.5.
"""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import numpy as np
import torch
from scipy.special import expit
from torch.distributions import MultivariateNormal, Normal

from ..data.variables import Variable, Variables
from .benchmark import Observations, observations
from .prior import Prior

BINS = 100
_LAGS = 9


@cache
def design() -> np.ndarray:
    """V, shape ``(bin, parameter)``; the stimulus is the benchmark's own."""
    stimulus = np.random.RandomState(42).randn(BINS).astype(np.float32)
    lagged = [np.concatenate([np.zeros(lag), stimulus[: BINS - lag]]) for lag in range(_LAGS)]
    return np.stack([np.ones(BINS), *lagged], axis=1)


def glm_prior() -> Prior:
    """N(0, 2) for the offset; for the filter, differences of second order and sizes growing with the lag are penalised."""
    difference = np.eye(_LAGS) - np.eye(_LAGS, k=-1)
    penalty = difference @ difference + np.diag(np.sqrt(np.arange(_LAGS) / _LAGS))
    covariance = torch.from_numpy(np.linalg.inv(penalty.T @ penalty))
    names = tuple(f"f{lag}" for lag in range(1, _LAGS + 1))
    return Prior(
        {"offset": Normal(0.0, 2**0.5), names: MultivariateNormal(torch.zeros(_LAGS, dtype=torch.float64), covariance)},
        labels={name: f"$f_{name[1]}$" for name in names},
    )


def spikes(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """y, shape ``(rows, bin)``, bool."""
    return rng.random((len(theta), BINS)) < expit(theta @ design().T)


def log_density(theta: np.ndarray, statistics: np.ndarray) -> np.ndarray:
    """Log probability of the spikes y from V^T y, shape ``(rows,)``."""
    return (theta * statistics).sum(-1) - np.logaddexp(0.0, theta @ design().T).sum(-1)


class BernoulliGLM:
    """Offset and temporal filter of a spiking neuron from ten sufficient statistics."""

    prior = glm_prior()
    observables = Variables([Variable("x", (_LAGS + 1,))])
    observations: ClassVar[Observations] = observations("bernoulli_glm")

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        return {"x": spikes(theta, rng) @ design()}

    def log_likelihood(
        self, theta: np.ndarray, x: dict[str, np.ndarray], context: dict[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """Log probability of any one train of spikes with these statistics, shape ``(rows,)``.

        How many such trains there are does not depend on theta and is left out.
        """
        return log_density(theta, x["x"])
