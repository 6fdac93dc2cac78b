r"""Permutations of n members, as indices: :math:`(T_g x)_i = x_{g(i)}`, so that :math:`(gh)(i) = h(g(i))`.

They are symmetries of data alone, such as of the members of a set: no parameter carries one, and none is blurred.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Permutations:
    """An element says for every place which member comes there.

    Args:
        dim: How many members there are.
    """

    dim: int

    def identity(self, rows: int) -> Int64[Tensor, "rows element"]:
        return torch.arange(self.dim).expand(rows, -1).clone()

    def inverse(self, g: Int64[Tensor, "rows element"]) -> Int64[Tensor, "rows element"]:
        return g.argsort(1)

    def compose(
        self, g: Int64[Tensor, "rows element"], h: Int64[Tensor, "rows element"]
    ) -> Int64[Tensor, "rows element"]:
        return h.gather(1, g)

    def sample(self, rows: int) -> Int64[Tensor, "rows element"]:
        """All permutations alike, from torch's global generator."""
        return torch.rand(rows, self.dim).argsort(1)


@dataclass(frozen=True, slots=True)
class PermuteMembers:
    """Permutes an observable along one axis.

    Args:
        axis: Counted with the rows as axis 0.
    """

    axis: int = 1

    def __call__(
        self, g: Int64[Tensor, "rows element"], x: Float[Tensor, "rows *shape"]
    ) -> Float[Tensor, "rows *shape"]:
        members = x.movedim(self.axis, 1)
        index = g.to(x.device).reshape(*g.shape, *[1] * (x.ndim - 2)).expand_as(members)
        return members.gather(1, index).movedim(1, self.axis)

    def log_det(self, g: Int64[Tensor, "rows element"], x: Float[Tensor, "rows *shape"]) -> Float[Tensor, "rows"]:
        return torch.zeros(len(x), dtype=torch.float64)
