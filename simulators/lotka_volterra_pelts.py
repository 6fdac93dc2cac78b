r"""Hares and lynx, 1900–1920: Lotka-Volterra behind the pelts that the Hudson's Bay Company collected.

.. math:: \dot u = (\alpha - \beta v) u, \quad \dot v = (-\gamma + \delta u) v

Every yearly count in thousands, the first included, is LogNormal(log z, sigma) with a sigma for each species. Data:
Elton and Nicholson, "The ten-year cycle in numbers of the lynx in Canada", Journal of Animal Ecology 11 (1942), 215–244,
and Howard (2009). Model and priors: Carpenter, "Predator-prey population dynamics: the Lotka-Volterra model in Stan"
(2018), https://mc-stan.org/users/documentation/case-studies/lotka-volterra-predator-prey.html.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import scipy.stats
from torch.distributions import LogNormal

from ..data.variables import POSITIVE, Variable, Variables
from .families import TruncatedNormal
from .populations import predator_prey
from .prior import Prior

# fmt: off
_HARES = [30, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22, 25.4, 27.1, 40.3, 57, 76.6, 52.3, 19.5, 11.2, 7.6, 14.6, 16.2, 24.7]
_LYNX = [4, 6.1, 9.8, 35.2, 59.4, 41.7, 19, 13, 8.3, 9.1, 7.4, 8, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8, 9.7, 10.1, 8.6]
# fmt: on
_YEARS = np.arange(21.0)
_LOWEST, _HIGHEST = 1e-10, 1e10  # far from any count; a population of 0 would have no logarithm


class LotkaVolterraPelts:
    """21 yearly counts of either species; rates per year, populations at the start, and the noise of each series."""

    prior = Prior(
        {
            "alpha": TruncatedNormal(1.0, 0.5, low=0.0),
            "beta": TruncatedNormal(0.05, 0.05, low=0.0),
            "gamma": TruncatedNormal(1.0, 0.5, low=0.0),
            "delta": TruncatedNormal(0.05, 0.05, low=0.0),
            "u0": LogNormal(float(np.log(10.0)), 1.0),
            "v0": LogNormal(float(np.log(10.0)), 1.0),
            "sigma_u": LogNormal(-1.0, 1.0),
            "sigma_v": LogNormal(-1.0, 1.0),
        },
        units={
            "alpha": "1/year",
            "beta": "1/year/thousand",
            "gamma": "1/year",
            "delta": "1/year/thousand",
            "u0": "thousands",
            "v0": "thousands",
        },
        labels={
            "alpha": r"$\alpha$",
            "beta": r"$\beta$",
            "gamma": r"$\gamma$",
            "delta": r"$\delta$",
            "u0": "$u_0$",
            "v0": "$v_0$",
            "sigma_u": r"$\sigma_u$",
            "sigma_v": r"$\sigma_v$",
        },
    )
    observables = Variables(
        Variable(name, (21,), units="thousands", support=POSITIVE, dims=("year",)) for name in ("hares", "lynx")
    )
    observations: ClassVar[dict[str, dict[str, list[float]]]] = {
        "hare_lynx_1900_1920": {"hares": _HARES, "lynx": _LYNX}
    }

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        noise = rng.standard_normal((len(theta), 2, 21))
        pelts = _medians(theta) * np.exp(theta[:, 6:, None] * noise)
        return {"hares": pelts[:, 0], "lynx": pelts[:, 1]}

    def log_likelihood(
        self, theta: np.ndarray, x: dict[str, np.ndarray], context: dict[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """log p(x | theta), shape ``(rows,)``; NaN where the populations cannot be integrated."""
        pelts = np.stack([x["hares"], x["lynx"]], axis=1)
        return np.asarray(scipy.stats.lognorm.logpdf(pelts, theta[:, 6:, None], scale=_medians(theta))).sum((1, 2))


def _medians(theta: np.ndarray) -> np.ndarray:
    """Hares and lynx in every year, shape ``(rows, 2, 21)``."""
    return np.clip(predator_prey(theta[:, :4], theta[:, 4:6], _YEARS), _LOWEST, _HIGHEST)
