r"""A damped harmonic oscillator at rest, struck at time tau: the toy of group-equivariant inference.

.. math:: s(t) = \frac{e^{-\beta \omega_0 (t - \tau)} \sin(\omega_d (t - \tau))}{\omega_d} \ (t > \tau), \quad
    \omega_d = \sqrt{1 - \beta^2}\, \omega_0

x is s in 200 bins of 0.05 from time 0 on, with white noise. A later blow shifts the signal: by whole bins, exactly. Dax et
al., "Group equivariant neural posterior estimation" (ICLR 2022), https://arxiv.org/abs/2111.13139, and the tutorial of
their code dingo. :math:`\omega_0 \sim U(3, 10)`, :math:`\beta \sim U(0.2, 0.5)` are its priors; :math:`\tau \sim U(1, 6)` keeps the blow
far from the edges of the window.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import scipy.stats
from torch.distributions import Uniform

from ..data.variables import Variable, Variables
from .prior import Prior
from .symmetry import Declaration, Shift

BIN = 0.05
_TIMES = BIN * np.arange(200)


class DampedOscillator:
    """A time series; angular frequency omega0, damping ratio beta, time of the blow tau.

    Args:
        noise: Standard deviation of the noise in a bin; the first swing is about 0.1.
    """

    prior = Prior(
        {"omega0": Uniform(3.0, 10.0), "beta": Uniform(0.2, 0.5), "tau": Uniform(1.0, 6.0)},
        labels={"omega0": r"$\omega_0$", "beta": r"$\beta$", "tau": r"$\tau$"},
    )
    observables = Variables([Variable("x", (200,), dims=("time",))])
    symmetry: ClassVar[dict[str, Declaration]] = {
        "time": Shift(by="tau", of="x", along="time", spacing=BIN, origin=2.0)
    }

    observations: ClassVar[dict[str, dict[str, np.ndarray]]] = {}

    def __init__(self, noise: float = 0.02) -> None:
        self.noise = noise

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        return {"x": signal(theta) + self.noise * rng.standard_normal((len(theta), 200))}

    def log_likelihood(
        self, theta: np.ndarray, x: dict[str, np.ndarray], context: dict[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """log p(x | theta), shape ``(rows,)``."""
        return np.asarray(scipy.stats.norm.logpdf(x["x"], signal(theta), self.noise)).sum(1)


def signal(theta: np.ndarray) -> np.ndarray:
    """s in every bin, shape ``(rows, 200)``."""
    omega0, beta, tau = theta.T[..., None]
    since = np.maximum(_TIMES - tau, 0.0)
    damped = np.sqrt(1 - beta**2) * omega0
    return np.exp(-beta * omega0 * since) * np.sin(damped * since) / damped


_EXAMPLE = np.array([[6.0, 0.3, 3.0]])
DampedOscillator.observations = {
    "example": {"x": DampedOscillator().simulate(_EXAMPLE, np.random.default_rng(0))["x"][0]}
}
