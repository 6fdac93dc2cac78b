"""Direct products of named groups: elements and coordinates stand beside each other, and each acts by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product as combinations

import torch
from jaxtyping import Float
from torch import Tensor

from .base import LieGroup


@dataclass(frozen=True, slots=True)
class Product:
    """Several groups that commute with each other.

    Args:
        factors: Name of a component → its group, in order.
    """

    factors: Mapping[str, LieGroup]

    @property
    def dim(self) -> int:
        return sum(factor.dim for factor in self.factors.values())

    @property
    def freedom(self) -> int:
        return sum(factor.freedom for factor in self.factors.values())

    @property
    def circular(self) -> tuple[bool, ...]:
        return tuple(flag for factor in self.factors.values() for flag in factor.circular)

    def split(self, g: Float[Tensor, "rows element"]) -> dict[str, Tensor]:
        """Name of a component → its part of an element."""
        parts = g.split([factor.dim for factor in self.factors.values()], dim=-1)
        return dict(zip(self.factors, parts, strict=True))

    def split_coordinates(self, v: Float[Tensor, "rows coordinate"]) -> dict[str, Tensor]:
        """Name of a component → its part of the coordinates."""
        parts = v.split([factor.freedom for factor in self.factors.values()], dim=-1)
        return dict(zip(self.factors, parts, strict=True))

    def join(self, parts: Mapping[str, Tensor]) -> Float[Tensor, "rows element"]:
        """What `split` takes apart."""
        return torch.cat([parts[name] for name in self.factors], dim=-1)

    def identity(self, rows: int) -> Float[Tensor, "rows element"]:
        return torch.cat([factor.identity(rows) for factor in self.factors.values()], dim=-1)

    def inverse(self, g: Float[Tensor, "rows element"]) -> Float[Tensor, "rows element"]:
        return self._each(lambda group, part: group.inverse(part), self.split(g))

    def compose(
        self, g: Float[Tensor, "rows element"], h: Float[Tensor, "rows element"]
    ) -> Float[Tensor, "rows element"]:
        return self._each(lambda group, first, second: group.compose(first, second), self.split(g), self.split(h))

    def element(self, v: Float[Tensor, "rows coordinate"]) -> Float[Tensor, "rows element"]:
        return self._each(lambda group, part: group.element(part), self.split_coordinates(v))

    def coordinates(self, g: Float[Tensor, "rows element"]) -> Float[Tensor, "rows coordinate"]:
        return self._each(lambda group, part: group.coordinates(part), self.split(g))

    def log_haar(self, v: Float[Tensor, "rows coordinate"]) -> Float[Tensor, "rows"]:
        parts = self.split_coordinates(v)
        return torch.stack([factor.log_haar(parts[name]) for name, factor in self.factors.items()]).sum(0)

    def turns(self, v: Float[Tensor, "rows coordinate"]) -> Float[Tensor, "turn rows coordinate"]:
        parts = self.split_coordinates(v)
        each = [factor.turns(parts[name]) for name, factor in self.factors.items()]
        return torch.stack([torch.cat(chosen, dim=-1) for chosen in combinations(*each)])

    def _each(self, change: Callable[..., Tensor], *parts: Mapping[str, Tensor]) -> Tensor:
        changed = [change(group, *(part[name] for part in parts)) for name, group in self.factors.items()]
        return torch.cat(changed, dim=-1)
