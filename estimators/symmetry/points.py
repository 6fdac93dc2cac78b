"""Points as rows of coordinates in the last axis of an observable, moved and rotated; exact."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .rotations import rotated
from .so3 import rotated_in_space


@dataclass(frozen=True, slots=True)
class MoveCoordinates:
    """Displaces points.

    Args:
        entries: Where in the last axis the coordinates are.
    """

    entries: tuple[int, ...]

    def __call__(
        self, g: Float[Tensor, "rows element"], x: Float[Tensor, "rows *shape"]
    ) -> Float[Tensor, "rows *shape"]:
        points = x[..., list(self.entries)]
        return _with(x, self.entries, points + g.to(x).reshape(len(g), *[1] * (x.ndim - 2), -1))

    def log_det(self, g: Float[Tensor, "rows element"], x: Float[Tensor, "rows *shape"]) -> Float[Tensor, "rows"]:
        return torch.zeros_like(g[:, 0])


@dataclass(frozen=True, slots=True)
class RotateCoordinates:
    """Rotates points about 0: in the plane by an angle, in space by a unit quaternion.

    Args:
        entries: Where in the last axis the coordinates are, two or three.
    """

    entries: tuple[int, ...]

    def __call__(
        self, g: Float[Tensor, "rows element"], x: Float[Tensor, "rows *shape"]
    ) -> Float[Tensor, "rows *shape"]:
        points = x[..., list(self.entries)]
        turned = rotated(g[:, 0], points) if len(self.entries) == 2 else rotated_in_space(g, points)
        return _with(x, self.entries, turned)

    def log_det(self, g: Float[Tensor, "rows element"], x: Float[Tensor, "rows *shape"]) -> Float[Tensor, "rows"]:
        return torch.zeros_like(g[:, 0])


@dataclass(frozen=True, slots=True)
class MoveAndRotateCoordinates:
    """Moves points of the plane: rotates them about 0, then displaces them.

    Args:
        entries: Where in the last axis the two coordinates are.
    """

    entries: tuple[int, ...]

    def __call__(
        self, g: Float[Tensor, "rows element"], x: Float[Tensor, "rows *shape"]
    ) -> Float[Tensor, "rows *shape"]:
        return MoveCoordinates(self.entries)(g[:, :2], RotateCoordinates(self.entries)(g[:, 2:], x))

    def log_det(self, g: Float[Tensor, "rows element"], x: Float[Tensor, "rows *shape"]) -> Float[Tensor, "rows"]:
        return torch.zeros_like(g[:, 0])


def _with(x: Tensor, entries: tuple[int, ...], points: Tensor) -> Tensor:
    """The same x with other coordinates."""
    return x.index_copy(x.ndim - 1, torch.tensor(entries, device=x.device), points)
