r"""Two moons, the toy of the SBI benchmark: a posterior of two crescents.

:math:`x = (r \cos a + 0.25 - |t_1 + t_2| / \sqrt 2,\ r \sin a + (t_2 - t_1) / \sqrt 2)` with
:math:`a \sim U(-\pi/2, \pi/2)`, :math:`r \sim N(0.1, 0.01^2)`. Greenberg et al. (2019); Lueckmann et al. (2021),
https://arxiv.org/abs/2101.04653, T.8.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch.distributions import Uniform

from ..data.variables import Variable, Variables
from .benchmark import Observations, observations
from .prior import Prior


class TwoMoons:
    """Parameters t1, t2 ~ U(-1, 1); the map folds along t1 + t2 = 0, so theta and its mirror image look the same."""

    prior = Prior(
        {"t1": Uniform(-1.0, 1.0), "t2": Uniform(-1.0, 1.0)}, labels={"t1": r"$\theta_1$", "t2": r"$\theta_2$"}
    )
    observables = Variables([Variable("x", (2,))])
    observations: ClassVar[Observations] = {"origin": {"x": [0.0, 0.0]}, **observations("two_moons")}

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        angle = rng.uniform(-np.pi / 2, np.pi / 2, len(theta))
        radius = rng.normal(0.1, 0.01, len(theta))
        total, difference = theta[:, 0] + theta[:, 1], theta[:, 1] - theta[:, 0]
        first = radius * np.cos(angle) + 0.25 - np.abs(total) / np.sqrt(2)
        second = radius * np.sin(angle) + difference / np.sqrt(2)
        return {"x": np.stack([first, second], axis=1)}

    def log_likelihood(
        self, theta: np.ndarray, x: dict[str, np.ndarray], context: dict[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """log p(x | theta), shape ``(rows,)``; -inf where no radius and angle lead there."""
        u = x["x"][:, 0] + np.abs(theta[:, 0] + theta[:, 1]) / np.sqrt(2) - 0.25
        v = x["x"][:, 1] - (theta[:, 1] - theta[:, 0]) / np.sqrt(2)
        radius = np.hypot(u, v)
        with np.errstate(divide="ignore"):
            density = -0.5 * ((radius - 0.1) / 0.01) ** 2 - np.log(0.01 * np.sqrt(2 * np.pi)) - np.log(np.pi * radius)
        return np.where(u > 0, density, -np.inf)
