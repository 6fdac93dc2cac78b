r"""Motions of the plane: a rotation by :math:`\phi` about 0, then a displacement b, which do not commute.

.. math:: (b, \phi)(c, \psi) = (b + R_\phi c, \phi + \psi), \quad (b, \phi)^{-1} = (-R_{-\phi} b, -\phi)

The coordinates are :math:`(b_1, b_2, \phi)` themselves; the Haar measure, invariant from both sides, is
:math:`db_1\, db_2\, d\phi`. Chirikjian, "Stochastic Models, Information Theory, and Lie Groups" 2 (2012), chapter 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .base import wrapped
from .rotations import TURNS, rotated


@dataclass(frozen=True, slots=True)
class SE2:
    """An element is a displacement and an angle in radians."""

    dim: ClassVar[int] = 3
    freedom: ClassVar[int] = 3
    circular: ClassVar[tuple[bool, ...]] = (False, False, True)

    def identity(self, rows: int) -> Float[Tensor, "rows element"]:
        return torch.zeros(rows, 3, dtype=torch.float64)

    def inverse(self, g: Float[Tensor, "rows element"]) -> Float[Tensor, "rows element"]:
        return torch.cat([-rotated(-g[:, 2], g[:, :2]), -g[:, 2:]], dim=1)

    def compose(
        self, g: Float[Tensor, "rows element"], h: Float[Tensor, "rows element"]
    ) -> Float[Tensor, "rows element"]:
        return torch.cat([g[:, :2] + rotated(g[:, 2], h[:, :2]), wrapped(g[:, 2:] + h[:, 2:])], dim=1)

    def element(self, v: Float[Tensor, "rows coordinate"]) -> Float[Tensor, "rows element"]:
        return torch.cat([v[:, :2], wrapped(v[:, 2:])], dim=1)

    def coordinates(self, g: Float[Tensor, "rows element"]) -> Float[Tensor, "rows coordinate"]:
        return self.element(g)

    def log_haar(self, v: Float[Tensor, "rows coordinate"]) -> Float[Tensor, "rows"]:
        return torch.zeros_like(v[:, 0])

    def turns(self, v: Float[Tensor, "rows coordinate"]) -> Float[Tensor, "turn rows coordinate"]:
        angles = v[:, 2:] + TURNS.to(v)[:, None, None]
        return torch.cat([v[:, :2].expand(len(angles), -1, -1), angles], dim=-1)
