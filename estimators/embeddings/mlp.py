"""A multi-layer perceptron over all entries."""

from __future__ import annotations

import math

import zuko.nn
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..settings import NetworkSettings


class MLP(zuko.nn.MLP):  # type: ignore[misc]
    """Dense layers of widths ``hidden``."""

    def __init__(self, shape: tuple[int, ...], settings: NetworkSettings) -> None:
        super().__init__(math.prod(shape), settings.features, hidden_features=settings.hidden, activation=nn.SiLU)
        self.features = settings.features

    def forward(
        self, x: Float[Tensor, "rows *shape"], present: Bool[Tensor, "rows member"] | None = None
    ) -> Float[Tensor, "rows feature"]:
        return super().forward(x.flatten(1))
