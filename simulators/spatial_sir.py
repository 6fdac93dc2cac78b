r"""An epidemic on a 30 × 30 grid after ten steps, for attacks on a posterior.

Every cell starts infected with probability 4/900. In a step a susceptible cell is infected with probability
:math:`\beta k / 8`, k the infected among its eight neighbours (none beyond the edge), and an infected one recovers with
probability :math:`\gamma`; both look at the state before the step, so that a cell that recovers counts as infected for one
step more. Each cell is read as :math:`\mathrm{Beta}(I + 0.05, 1 - I + 0.05)`. :math:`\beta, \gamma \sim \mathrm{LogNormal}(0, 0.5)`.
Gloeckler, Deistler and Macke (ICML 2023), https://arxiv.org/abs/2305.14984. The likelihood is a sum over all histories.
"""

from __future__ import annotations

import numpy as np
from torch.distributions import LogNormal

from ..data.variables import UNIT_INTERVAL, Variable, Variables
from .prior import Prior

_SIDE, _STEPS = 30, 10
_SEEDS = 4 / _SIDE**2
_BLUR = 0.05
_CHUNK = 1000  # rows at once: their uniform numbers fit in the cache
_INSIDE = (float(np.finfo(np.float32).tiny), 1 - 2.0**-24)  # the open interval in float32, for logarithms


class SpatialSIR:
    """An image of infected cells; the strengths of infection and of recovery."""

    prior = Prior(
        {"beta": LogNormal(0.0, 0.5), "gamma": LogNormal(0.0, 0.5)}, labels={"beta": r"$\beta$", "gamma": r"$\gamma$"}
    )
    observables = Variables(
        [Variable("x", (_SIDE**2,), "float32", support=UNIT_INTERVAL, label="infected", dims=("cell",))]
    )

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        x = np.empty((len(theta), _SIDE**2), np.float32)
        for first in range(0, len(theta), _CHUNK):
            part = slice(first, first + _CHUNK)
            x[part] = _read(infected_cells(theta[part], rng), rng).reshape(-1, _SIDE**2)
        x[~np.isfinite(theta).all(1)] = np.nan
        return {"x": x}


def infected_cells(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The infected cells after the last step, boolean, ``(rows, 30, 30)``."""
    beta, gamma = theta.astype(np.float32).T[..., None, None]
    shape = (len(theta), _SIDE, _SIDE)
    infected, recovered = rng.random(shape, np.float32) < _SEEDS, np.zeros(shape, bool)
    for _ in range(_STEPS):
        catches = (beta / 8 * neighbours(infected) > rng.random(shape, np.float32)) & ~infected & ~recovered
        recovers = (gamma > rng.random(shape, np.float32)) & infected
        infected, recovered = (catches | infected) & ~recovered, recovers | recovered
    return infected


def neighbours(infected: np.ndarray) -> np.ndarray:
    """How many of the eight cells around each are infected, ``(rows, side, side)``."""
    padded = np.pad(infected.astype(np.uint8), ((0, 0), (1, 1), (1, 1)))
    columns = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return columns[:, :, :-2] + columns[:, :, 1:-1] + columns[:, :, 2:] - infected


def _read(infected: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Beta(1 + b, b) is the mirror image of Beta(b, 1 + b): the same draws serve either state of a cell."""
    low = rng.beta(_BLUR, 1 + _BLUR, infected.shape)
    return np.clip(np.where(infected, 1 - low, low), *_INSIDE)
