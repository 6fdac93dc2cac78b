r"""Rotations of space as unit quaternions :math:`(\cos\frac{|v|}{2}, \sin\frac{|v|}{2}\, v / |v|)`.

Coordinates are rotation vectors v, axis times angle. Haar measure: :math:`d\mu = (2 \sin(|v| / 2) / |v|)^2\, dv`, of total
volume :math:`8 \pi^2`. Huynh, "Metrics for 3D rotations", J. Math. Imaging Vis. 35 (2009), 155; Chirikjian, "Engineering
Applications of Noncommutative Harmonic Analysis" (2000), chapter 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .rotations import TURNS

_TINY = 1e-6  # radians; nearer to the identity the axis is not told


@dataclass(frozen=True, slots=True)
class SO3:
    """An element is a unit quaternion, scalar first; q and -q are the same rotation."""

    dim: ClassVar[int] = 4
    freedom: ClassVar[int] = 3
    circular: ClassVar[tuple[bool, ...]] = (False, False, False)

    def identity(self, rows: int) -> Float[Tensor, "rows element"]:
        return torch.eye(1, 4, dtype=torch.float64).expand(rows, 4).clone()

    def inverse(self, g: Float[Tensor, "rows element"]) -> Float[Tensor, "rows element"]:
        return torch.cat([g[:, :1], -g[:, 1:]], dim=1)

    def compose(
        self, g: Float[Tensor, "rows element"], h: Float[Tensor, "rows element"]
    ) -> Float[Tensor, "rows element"]:
        (a, u), (b, w) = (q.split([1, 3], dim=1) for q in (g, h))
        product = torch.cat([a * b - (u * w).sum(1, keepdim=True), a * w + b * u + torch.linalg.cross(u, w)], dim=1)
        return product / product.norm(dim=1, keepdim=True)

    def element(self, v: Float[Tensor, "rows coordinate"]) -> Float[Tensor, "rows element"]:
        angle = torch.linalg.vector_norm(v, dim=1, keepdim=True)
        return torch.cat([(angle / 2).cos(), v * torch.sinc(angle / (2 * math.pi)) / 2], dim=1)

    def coordinates(self, g: Float[Tensor, "rows element"]) -> Float[Tensor, "rows coordinate"]:
        scalar, vector = torch.where(g[:, :1] < 0, -g, g).split([1, 3], dim=1)
        sine = torch.linalg.vector_norm(vector, dim=1, keepdim=True)
        small = sine < _TINY
        safe = torch.where(small, 1.0, sine)
        return vector * torch.where(small, 2 / scalar, 2 * torch.atan2(safe, scalar) / safe)

    def log_haar(self, v: Float[Tensor, "rows coordinate"]) -> Float[Tensor, "rows"]:
        return 2 * torch.sinc(v.norm(dim=-1) / (2 * math.pi)).abs().log()

    def turns(self, v: Float[Tensor, "rows coordinate"]) -> Float[Tensor, "turn rows coordinate"]:
        angle = v.norm(dim=-1, keepdim=True)
        first = torch.eye(1, 3).to(v)
        axis = torch.where(angle < _TINY, first, v / angle.clamp(min=_TINY))
        return axis * (angle.clamp(min=_TINY) + TURNS.to(v)[:, None, None])


def rotated_in_space(
    g: Float[Tensor, "rows 4"], points: Float[Tensor, "rows *shape 3"]
) -> Float[Tensor, "rows *shape 3"]:
    r"""Points of space under a rotation, :math:`p + 2 a\, u \times p + 2\, u \times (u \times p)` for q = (a, u)."""
    shape = (-1, *[1] * (points.ndim - 2))
    scalar, vector = g[:, :1].to(points).reshape(*shape, 1), g[:, 1:].to(points).reshape(*shape, 3).expand_as(points)
    across = 2 * torch.linalg.cross(vector, points)
    return points + scalar * across + torch.linalg.cross(vector, across)
