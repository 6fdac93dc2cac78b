r"""Scalings by a positive factor: :math:`g h` is the product. Coordinate :math:`\log g`; Haar measure :math:`dg / g`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Scalings:
    """An element is a factor, above 0."""

    dim: ClassVar[int] = 1
    freedom: ClassVar[int] = 1
    circular: ClassVar[tuple[bool, ...]] = (False,)

    def identity(self, rows: int) -> Float[Tensor, "rows element"]:
        return torch.ones(rows, 1, dtype=torch.float64)

    def inverse(self, g: Float[Tensor, "rows element"]) -> Float[Tensor, "rows element"]:
        return 1 / g

    def compose(
        self, g: Float[Tensor, "rows element"], h: Float[Tensor, "rows element"]
    ) -> Float[Tensor, "rows element"]:
        return g * h

    def element(self, v: Float[Tensor, "rows coordinate"]) -> Float[Tensor, "rows element"]:
        return v.exp()

    def coordinates(self, g: Float[Tensor, "rows element"]) -> Float[Tensor, "rows coordinate"]:
        return g.log()

    def log_haar(self, v: Float[Tensor, "rows coordinate"]) -> Float[Tensor, "rows"]:
        return torch.zeros_like(v[:, 0])

    def turns(self, v: Float[Tensor, "rows coordinate"]) -> Float[Tensor, "turn rows coordinate"]:
        return v[None]
