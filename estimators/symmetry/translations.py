r"""Translations of :math:`\mathbb{R}^n`: :math:`g h = g + h`. Haar measure: :math:`dg_1 \cdots dg_n`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Translations:
    """An element is a displacement.

    Args:
        dim: Of the space.
    """

    dim: int = 1

    @property
    def freedom(self) -> int:
        return self.dim

    @property
    def circular(self) -> tuple[bool, ...]:
        return (False,) * self.dim

    def identity(self, rows: int) -> Float[Tensor, "rows element"]:
        return torch.zeros(rows, self.dim, dtype=torch.float64)

    def inverse(self, g: Float[Tensor, "rows element"]) -> Float[Tensor, "rows element"]:
        return -g

    def compose(
        self, g: Float[Tensor, "rows element"], h: Float[Tensor, "rows element"]
    ) -> Float[Tensor, "rows element"]:
        return g + h

    def element(self, v: Float[Tensor, "rows coordinate"]) -> Float[Tensor, "rows element"]:
        return v

    def coordinates(self, g: Float[Tensor, "rows element"]) -> Float[Tensor, "rows coordinate"]:
        return g

    def log_haar(self, v: Float[Tensor, "rows coordinate"]) -> Float[Tensor, "rows"]:
        return torch.zeros_like(v[:, 0])

    def turns(self, v: Float[Tensor, "rows coordinate"]) -> Float[Tensor, "turn rows coordinate"]:
        return v[None]
