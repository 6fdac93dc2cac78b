r"""Residual dense layers.

.. math:: h_{i+1} = h_i + W_i' \, \mathrm{SiLU}(W_i \, \mathrm{LN}(h_i))

He et al. (2016), https://arxiv.org/abs/1512.03385, with the normalisation inside the branch (2016b,
https://arxiv.org/abs/1603.05027), so that depth costs no accuracy.
"""

from __future__ import annotations

import math

from jaxtyping import Bool, Float
from torch import Tensor, nn
from zuko.nn import Residual

from ..settings import NetworkSettings


class ResNet(nn.Module):
    """``layers`` residual blocks of width ``width``."""

    def __init__(self, shape: tuple[int, ...], settings: NetworkSettings) -> None:
        super().__init__()
        self.features = settings.features
        blocks = [_block(settings.width) for _ in range(settings.layers)]
        self.network = nn.Sequential(
            nn.Linear(math.prod(shape), settings.width), *blocks, nn.Linear(settings.width, settings.features)
        )

    def forward(
        self, x: Float[Tensor, "rows *shape"], present: Bool[Tensor, "rows member"] | None = None
    ) -> Float[Tensor, "rows feature"]:
        return self.network(x.flatten(1))


def _block(width: int) -> Residual:
    return Residual(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
