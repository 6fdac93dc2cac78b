r"""Rotations of the plane: angles in radians, :math:`g h = g + h` but for full turns. Haar measure: :math:`dg`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .base import wrapped

TURNS = 2 * math.pi * torch.arange(-3, 4, dtype=torch.float64)  # three turns are six widths of a kernel of half a turn


@dataclass(frozen=True, slots=True)
class Rotations:
    """An element is an angle within half a turn of 0."""

    dim: ClassVar[int] = 1
    freedom: ClassVar[int] = 1
    circular: ClassVar[tuple[bool, ...]] = (True,)

    def identity(self, rows: int) -> Float[Tensor, "rows element"]:
        return torch.zeros(rows, 1, dtype=torch.float64)

    def inverse(self, g: Float[Tensor, "rows element"]) -> Float[Tensor, "rows element"]:
        return -g

    def compose(
        self, g: Float[Tensor, "rows element"], h: Float[Tensor, "rows element"]
    ) -> Float[Tensor, "rows element"]:
        return wrapped(g + h)

    def element(self, v: Float[Tensor, "rows coordinate"]) -> Float[Tensor, "rows element"]:
        return wrapped(v)

    def coordinates(self, g: Float[Tensor, "rows element"]) -> Float[Tensor, "rows coordinate"]:
        return wrapped(g)

    def log_haar(self, v: Float[Tensor, "rows coordinate"]) -> Float[Tensor, "rows"]:
        return torch.zeros_like(v[:, 0])

    def turns(self, v: Float[Tensor, "rows coordinate"]) -> Float[Tensor, "turn rows coordinate"]:
        return v + TURNS.to(v)[:, None, None]


def rotated(angle: Float[Tensor, "rows"], points: Float[Tensor, "rows *shape 2"]) -> Float[Tensor, "rows *shape 2"]:
    """Points of the plane, turned about 0 from the first axis towards the second."""
    angle = angle.to(points).reshape(-1, *[1] * (points.ndim - 2))
    first, second = points.unbind(-1)
    return torch.stack([angle.cos() * first - angle.sin() * second, angle.sin() * first + angle.cos() * second], dim=-1)
