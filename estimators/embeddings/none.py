"""No network: the standardised entries themselves."""

from __future__ import annotations

import math

from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..settings import NetworkSettings


class Flat(nn.Module):
    """x as a vector."""

    def __init__(self, shape: tuple[int, ...], settings: NetworkSettings) -> None:
        super().__init__()
        self.features = math.prod(shape)

    def forward(
        self, x: Float[Tensor, "rows *shape"], present: Bool[Tensor, "rows member"] | None = None
    ) -> Float[Tensor, "rows feature"]:
        return x.flatten(1)
