r"""Points in space, as a set whose summaries turn with it: thin layers over e3nn's spherical harmonics.

With :math:`c` the centroid and :math:`r_i = p_i - c`, every point gives :math:`R(|r_i|, s_i)\, Y_{lm}(r_i / |r_i|)`, l = 0, 1, 2, R a dense
network of its distance and its other channels s. Their mean over points is a code of scalars, vectors and quadrupoles. Two mixtures a, b
of its channels are multiplied so that what is a scalar stays apart from what is a vector, with Wigner's 3j symbols w:

.. math:: \sum_m a_{lm} b_{lm} \ (l = 0, 1, 2), \qquad a_0\, b_{1k}, \quad \sum_{mn} w_{mnk}\, a_{1m} b_{2n} .

The order of points is not seen; a motion of all of them leaves scalars as they are and turns vectors. Geiger & Smidt (2022),
https://arxiv.org/abs/2207.09453.
"""

from __future__ import annotations

from typing import Any

import torch
import zuko.nn
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ...data.errors import ShapeError, UnsupportedError
from ..settings import NetworkSettings
from .base import as_steps, steps

_VECTORS = 8
_TINY = 1e-12


class Points3d(nn.Module):
    """Scalars and vectors of points; dense layers of ``hidden`` over both, and over scalars alone without ``position``.

    Args:
        shape: ``(point, 3)``, or with other channels behind the coordinates.
        settings: Widths, and whether to keep where points are and how they are turned.

    Raises:
        ShapeError: Fewer than three channels.
        UnsupportedError: e3nn is not installed: ``pip install 'simfer[e3nn]'``.
    """

    symbols: Tensor

    def __init__(self, shape: tuple[int, ...], settings: NetworkSettings) -> None:
        super().__init__()
        channels = steps(shape, settings)[1]
        if channels < 3:
            raise ShapeError(f"`points3d` needs points of three coordinates in the last axis; x has {channels}")
        o3 = _imported()
        self.features, self.settings = settings.features, settings
        width = settings.hidden[-1] if settings.hidden else settings.features
        self._harmonics = o3.spherical_harmonics
        self.register_buffer("symbols", o3.wigner_3j(1, 2, 1), persistent=False)
        self.radial = zuko.nn.MLP(channels - 2, 3 * width, hidden_features=settings.hidden, activation=nn.SiLU)
        self.mixtures = nn.ModuleList(nn.Linear(width, 2 * width, bias=False) for _ in range(3))
        self.vectors = nn.Linear(3 * width, _VECTORS, bias=False)
        inside = 4 * width + _VECTORS + (3 * (_VECTORS + 1) if settings.position else 0)
        self.dense = zuko.nn.MLP(inside, settings.features, hidden_features=settings.hidden, activation=nn.SiLU)

    def forward(
        self, x: Float[Tensor, "rows *shape"], present: Bool[Tensor, "rows member"] | None = None
    ) -> Float[Tensor, "rows feature"]:
        scalars, vectors = self.parts(x, present)
        return self.dense(torch.cat([scalars, vectors.flatten(1)], 1) if self.settings.position else scalars)

    def parts(
        self, x: Float[Tensor, "rows *shape"], present: Bool[Tensor, "rows member"] | None = None
    ) -> tuple[Float[Tensor, "rows scalar"], Float[Tensor, "rows vector 3"]]:
        """What a motion of all points does not change, and what it turns; the last vector is the centroid, which it moves."""
        points = as_steps(x, self.settings)
        weights = torch.ones_like(points[..., :1]) if present is None else present[..., None].to(points)
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
        centre = (weights * points[..., :3]).sum(1)
        code = self._code(points[..., :3] - centre[:, None], points[..., 3:], weights)
        pairs = [mix(part.mT).chunk(2, -1) for mix, part in zip(self.mixtures, code, strict=True)]
        scalars = [code[0][..., 0], *((a * b).sum(1) for a, b in pairs)]
        (a0, _), (a1, b1), (_, b2) = pairs
        crossed = torch.einsum("mnk,rmc,rnc->rkc", self.symbols, a1, b2)
        vectors = self.vectors(torch.cat([code[1].mT, a0 * b1, crossed], -1)).mT
        scalars.append(vectors.square().sum(-1))
        return torch.cat(scalars, 1), torch.cat([vectors, centre[:, None]], 1)

    def _code(
        self,
        off: Float[Tensor, "rows point 3"],
        others: Float[Tensor, "rows point channel"],
        weights: Float[Tensor, "rows point 1"],
    ) -> list[Float[Tensor, "rows width order"]]:
        """The mean over points of each order."""
        distance = (off.square().sum(-1, keepdim=True) + _TINY).sqrt()
        radial = (weights * self.radial(torch.cat([distance, others], -1))).chunk(3, -1)
        angular = (self._harmonics(order, off / distance, normalize=False) for order in range(3))
        return [torch.einsum("rpc,rpm->rcm", r, y) for r, y in zip(radial, angular, strict=True)]


def _imported() -> Any:
    try:
        from e3nn import o3
    except ImportError as error:
        raise UnsupportedError("`points3d` needs e3nn, which is not installed: pip install 'simfer[e3nn]'") from error
    return o3
