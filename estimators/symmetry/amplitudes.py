"""Multiplication of an observable by a positive factor."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor


class ScaleValues:
    """T_g x = g x, of all entries."""

    def __call__(
        self, g: Float[Tensor, "rows element"], x: Float[Tensor, "rows *shape"]
    ) -> Float[Tensor, "rows *shape"]:
        return g.to(x).reshape(-1, *[1] * (x.ndim - 1)) * x

    def log_det(self, g: Float[Tensor, "rows element"], x: Float[Tensor, "rows *shape"]) -> Float[Tensor, "rows"]:
        return math.prod(x.shape[1:]) * g[:, 0].log()
