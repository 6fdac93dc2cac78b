r"""An elongated source in an image of 32 × 32 pixels: a comet, with a bright head and a tail that fades out to one side.

Along the tail the light is an exponential of length l, across it a point, all blurred by a Gaussian of width w:

.. math:: f(u, v) = F\, \mathcal{N}(v; 0, w^2) \int_0^\infty \tfrac{1}{l} e^{-t / l}\, \mathcal{N}(u - t; 0, w^2)\, dt

with u and v along and across the tail, from the head at (column, row); the position angle :math:`\alpha` runs from columns towards
rows. The integral is an exponentially modified Gaussian, :math:`e^{-u^2 / 2 w^2}\, \mathrm{erfcx}((w / l - u / w) / \sqrt 2) / 2 l`
(Grushka, Analytical Chemistry 44 (1972), 1733). w holds the pixels' own width, so that a pixel is f at its centre, with white
noise. As head and tail differ, the angle lives on the whole circle, where that of an ellipse would repeat after half a turn.
Moving and turning the source moves and turns the image: sources lie far enough from the edges, and are resolved well enough, for
this to hold to a small part of the noise.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import scipy.stats
from scipy.special import erfcx
from torch.distributions import Uniform

from ..data.variables import Variable, Variables
from .families import LogUniform
from .prior import Prior
from .symmetry import Declaration, PlaneMotion

_SIDE = 32
_CENTRES = np.arange(_SIDE) + 0.5


class ElongatedSource:
    """A comet in white noise; flux, width and length of the tail, position of the head in pixels from the corner, angle.

    Args:
        noise: Standard deviation of the noise in a pixel; the peak of a source is about 3 % of its flux.
    """

    prior = Prior(
        {
            "flux": LogUniform(300.0, 1000.0),
            "width": Uniform(1.3, 2.0),
            "length": Uniform(1.5, 3.0),
            "column": Uniform(13.0, 19.0),
            "row": Uniform(13.0, 19.0),
            "angle": Uniform(-math.pi, math.pi),
        },
        units={"width": "pixels", "length": "pixels", "column": "pixels", "row": "pixels", "angle": "rad"},
    )
    observables = Variables([Variable("image", (_SIDE, _SIDE), "float32", dims=("row", "column"))])
    symmetry: ClassVar[dict[str, Declaration]] = {
        "plane": PlaneMotion(by=("column", "row"), angle="angle", of="image", along=("column", "row"))
    }

    observations: ClassVar[dict[str, dict[str, np.ndarray]]] = {}

    def __init__(self, noise: float = 2.0) -> None:
        self.noise = noise

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        noise = self.noise * rng.standard_normal((len(theta), _SIDE, _SIDE))
        return {"image": (surface_brightness(theta) + noise).astype(np.float32)}

    def log_likelihood(
        self, theta: np.ndarray, x: dict[str, np.ndarray], context: dict[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """log p(image | theta), shape ``(rows,)``."""
        return np.asarray(scipy.stats.norm.logpdf(x["image"], surface_brightness(theta), self.noise)).sum((1, 2))


def surface_brightness(theta: np.ndarray) -> np.ndarray:
    """f at the centre of every pixel, shape ``(rows, 32, 32)``."""
    flux, width, length, column, row, angle = theta.T[..., None, None]
    across_columns, across_rows = _CENTRES - column, _CENTRES[:, None] - row
    u = np.cos(angle) * across_columns + np.sin(angle) * across_rows
    v = np.cos(angle) * across_rows - np.sin(angle) * across_columns
    tail = erfcx((width / length - u / width) / math.sqrt(2)) / (2 * length)
    return flux * tail * np.exp(-(u**2 + v**2) / (2 * width**2)) / (math.sqrt(2 * math.pi) * width)


_EXAMPLE = np.array([[400.0, 1.6, 2.0, 15.0, 17.0, 2.0]])
ElongatedSource.observations = {
    "example": {"image": ElongatedSource().simulate(_EXAMPLE, np.random.default_rng(0))["image"][0]}
}
