r"""A point source in an image of 16 × 16 pixels, with known point-spread function and background.

Counts are Poisson with mean :math:`b + f \int_{pixel} N(r; (x, y), w^2 I)\, dr`. The width w of the Gaussian point-spread
function and the background b per pixel are known for every image and come as context. After Patel, Zhang, Avestruz and
Regier, "Neural posterior estimation for cataloging astronomical images with spatially varying backgrounds and point spread
functions", Astronomical Journal 170 (2025), 155, https://arxiv.org/abs/2503.00156, whose images hold many sources.
"""

from __future__ import annotations

import numpy as np
import scipy.stats
from scipy.special import ndtr
from torch.distributions import Uniform

from ..data.errors import ContractError
from ..data.variables import COUNT, Variable, Variables
from .families import LogUniform
from .prior import Prior

_SIDE = 16
_EDGES = np.arange(_SIDE + 1.0)


class PointSource:
    """Photon counts; flux in counts, position in pixels from the corner; context psf_width and background."""

    prior = Prior(
        {"flux": LogUniform(300.0, 10_000.0), "column": Uniform(4.0, 12.0), "row": Uniform(4.0, 12.0)},
        units={"flux": "counts", "column": "pixels", "row": "pixels"},
    )
    context = Prior(
        {"psf_width": Uniform(0.8, 2.5), "background": Uniform(5.0, 100.0)},
        units={"psf_width": "pixels", "background": "counts per pixel"},
    )
    observables = Variables(
        [Variable("image", (_SIDE, _SIDE), "float32", units="counts", support=COUNT, dims=("row", "column"))]
    )

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Every row has a generator of its own: Poisson draws take more or fewer numbers from it as the mean tells.

        Raises:
            ContractError: No ``context``.
        """
        means = expected_image(theta, context)
        possible = (means >= 0).all((1, 2))
        seeds = rng.integers(2**63, size=len(theta))
        counts = np.full(means.shape, np.nan, np.float32)
        for i in np.flatnonzero(possible):
            counts[i] = np.random.default_rng(seeds[i]).poisson(means[i])
        return {"image": counts}

    def log_likelihood(
        self, theta: np.ndarray, x: dict[str, np.ndarray], context: dict[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """log p(image | theta, context), shape ``(rows,)``.

        Raises:
            ContractError: No ``context``.
        """
        return np.asarray(scipy.stats.poisson.logpmf(x["image"], expected_image(theta, context))).sum((1, 2))


def expected_image(theta: np.ndarray, context: dict[str, np.ndarray] | None) -> np.ndarray:
    """Mean counts, shape ``(rows, 16, 16)``: the Gaussian integrated over each pixel.

    Raises:
        ContractError: No ``context``.
    """
    if context is None:
        raise ContractError("`context` of PointSource must give psf_width and background; got None")
    flux, column, row = theta.T
    width, background = context["psf_width"], context["background"]
    along_rows, along_columns = _shares(row, width), _shares(column, width)
    return background[:, None, None] + flux[:, None, None] * along_rows[:, :, None] * along_columns[:, None, :]


def _shares(centre: np.ndarray, width: np.ndarray) -> np.ndarray:
    """The share of the light between neighbouring edges along one axis, shape ``(rows, 16)``."""
    return np.diff(ndtr((_EDGES - centre[:, None]) / width[:, None]), axis=1)
