r"""Bernoulli GLM seen through its hundred bins: x is the train of spikes itself. Otherwise as `bernoulli_glm`.

Both have the same posterior. Lueckmann et al. (2021), https://arxiv.org/abs/2101.04653, T.6.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ..data.variables import Support, Variable, Variables
from .benchmark import Observations, observations
from .bernoulli_glm import BINS, design, glm_prior, log_density, spikes


class BernoulliGLMRaw:
    """Offset and temporal filter of a spiking neuron from its spikes."""

    prior = glm_prior()
    observables = Variables([Variable("x", (BINS,), "int8", support=Support(0.0, 1.0, integer=True), dims=("bin",))])
    observations: ClassVar[Observations] = observations("bernoulli_glm_raw")

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        return {"x": spikes(theta, rng).astype(np.int8)}

    def log_likelihood(
        self, theta: np.ndarray, x: dict[str, np.ndarray], context: dict[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """Log probability of the spikes, shape ``(rows,)``."""
        return log_density(theta, x["x"] @ design())
